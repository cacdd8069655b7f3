"""A real server in a process of its own: what it answers is logged, what it refuses it names, and it goes on when a part fails."""

import functools
import json
import os
import signal
import socket
import sqlite3
import subprocess
import sys
import threading
import time

import httpx
import pytest

from mlops_core import audit, credit, keys, log, package
from mlops_core.data import load_dataset, reference_split
from mlops_core.experiment import classification_fold

WHO = {"actor": "cho", "role": "devops"}
STARTER = """
import os, signal, sys
from mlops_core.rollout import guard
from mlops_core.serve import serve
signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # whoever ends is gone
for line in sys.stdin:
    port, auth, workspace = line.split()
    if pid := os.fork():
        print(pid, flush=True)
        continue
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    os.environ["MLOPS_WORKSPACE"] = workspace
    serve("credit_risk", port=int(port), auth=auth == "auth", guard=guard)
    os._exit(0)
"""
COLUMNS = ("limit_bal", "education", "pay_0", "pay_2", "bill_amt1", "pay_amt1")


@functools.cache
def learned(seed):
    "Case, model, recipe and fold: the same for every test, which packages them into a workspace of its own."
    case = credit.credit_case(load_dataset("credit_default"), list(COLUMNS))
    build = functools.partial(classification_fold, features=COLUMNS, sample=3000)
    recipe = package.Recipe("credit_default", build, credit.BoostedTrees(seed=seed), seed)
    fold = recipe.fold()
    return case, recipe.fit(fold), recipe, fold


def make_version(seed=0):
    tables = {"inputs": [{"column": column, "source": f"clients.{column}"} for column in COLUMNS]}
    return package.package_model(*learned(seed), tables, actor="ana", role="data_scientist")


def go_live(version):
    audit.append("champion", version.subject, {"manifest": version.manifest}, **WHO)


@pytest.fixture(scope="module")
def two_versions(tmp_path_factory):
    folder = tmp_path_factory.mktemp("two")
    old, os.environ["MLOPS_WORKSPACE"] = os.environ.get("MLOPS_WORKSPACE"), str(folder)
    go_live(make_version(0))
    make_version(1)
    os.environ.pop("MLOPS_WORKSPACE") if old is None else os.environ.update(MLOPS_WORKSPACE=old)
    return folder


def wait_for(condition, seconds=60):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


@functools.cache
def starter():
    "A process that has imported everything (which takes seconds) and makes a server of itself for each line that it reads."
    return subprocess.Popen([sys.executable, "-c", STARTER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


class Server:
    def __init__(self, auth):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        starter().stdin.write(f"{self.port} {auth} {os.environ['MLOPS_WORKSPACE']}\n")
        starter().stdin.flush()
        self.pid = int(starter().stdout.readline())
        self.client = httpx.Client(base_url=f"http://127.0.0.1:{self.port}", timeout=20)
        wait_for(self.answers)

    def answers(self):
        assert self.runs(), "the server ended"
        try:
            return self.client.get("/live").status_code == 200
        except httpx.TransportError:
            return False

    def runs(self):
        try:
            os.kill(self.pid, 0)
        except ProcessLookupError:
            return False
        return True

    def end(self, number=signal.SIGTERM):
        if self.runs():
            os.kill(self.pid, number)
        wait_for(lambda: not self.runs())

    def predict(self, **more):
        return self.client.post("/v1/predict", json={"rows": [ROW]} | more)

    def stop(self):
        self.end()
        self.client.close()


@pytest.fixture(scope="module")
def workspace(two_versions):
    "One workspace for the tests that leave the live version alone."
    os.environ["MLOPS_WORKSPACE"] = str(two_versions)
    yield two_versions
    os.environ.pop("MLOPS_WORKSPACE", None)


@pytest.fixture(scope="module")
def server(workspace):
    running = Server("none")
    yield running
    running.stop()


TEST = reference_split(load_dataset("credit_default"))[2][list(COLUMNS)]
ROW = json.loads(TEST.iloc[:1].to_json(orient="records"))[0]


def test_answers_equal_the_artifacts(server):
    rows = json.loads(TEST.iloc[:200].to_json(orient="records"))
    said = server.client.post("/v1/predict", json={"rows": rows}).json()
    expected = package.load_model("credit_risk").answer(TEST.iloc[:200])["probability"]
    assert max(abs(one["probability"] - p) for one, p in zip(said["answers"], expected, strict=True)) < 1e-9
    assert {one["action"] for one in said["answers"]} == {"approve", "refuse", "refer"}, "and some go to a person"


def test_an_answer_is_logged_with_all_that_belongs_to_it(server):
    said = server.predict(request_id="whole", subjects=["client:7"], reasons=True).json()
    row = log.joined("credit_risk").set_index("request_id").loc["whole"]
    assert json.loads(row["output"])["probability"] == said["answers"][0]["probability"] and json.loads(row["input"]) == ROW
    assert row["version"] == said["answers"][0]["version"] == 1 and row["subject"] == "client:7" and row["action"] == said["answers"][0]["action"]
    assert json.loads(row["reasons"]) == said["answers"][0]["reasons"] and row["latency_ms"] > 0 and row["role"] == "champion"


def test_the_same_id_gets_the_first_answer_and_other_rows_a_refusal(server):
    assert server.predict(request_id="twice").json() == server.predict(request_id="twice").json()
    other = server.client.post("/v1/predict", json={"rows": [ROW | {"pay_0": 2}], "request_id": "twice"})
    assert other.status_code == 409 and "use another id" in other.json()["detail"]
    assert (log.joined("credit_risk")["request_id"] == "twice").sum() == 1


def test_outcomes_come_in_once(server):
    server.predict(request_id="paid")
    given = {"outcomes": [{"request_id": "paid", "value": 0}, {"request_id": "paid", "value": 0}, {"request_id": "unheard", "value": 1}]}
    assert server.client.post("/v1/outcomes", json=given).json() == {"applied": 1, "repeated": 1, "conflict": 0, "stray": 1}
    bad = server.client.post("/v1/outcomes", json={"outcomes": [{"request_id": "paid", "value": 0, "happened_at": "soon"}]})
    wrong = {"field": "outcomes.0.happened_at", "rule": "is no time: write it as in 2026-03-01T12:00:00+01:00", "value": "soon"}
    assert bad.status_code == 422 and bad.json()["errors"] == [wrong]


def with_row(**changed):
    return json.dumps({"rows": [ROW | changed]}).encode()


BAD = {
    "no JSON": b"{", "nothing": b"", "a list": b"[]", "no rows": b'{"rows": []}', "deep": b'{"rows": ' + b"[" * 100_000, "bytes": bytes(range(256)),
    "NaN": b'{"rows": [{"limit_bal": NaN}]}', "infinity": with_row().replace(b"0", b"1e999", 1), "text for a number": with_row(limit_bal="much"),
    "out of range": with_row(pay_0=99), "unknown level": with_row(education="phd"), "extra column": with_row(sex="female"),
    "id with a line break": json.dumps({"rows": [ROW], "request_id": "a\nb"}).encode(), "utf-16": json.dumps({"rows": [ROW]}).encode("utf-16"),
    "subjects that do not fit": json.dumps({"rows": [ROW], "subjects": ["a", "b"]}).encode(), "too many": json.dumps({"rows": [{}] * 1001}).encode(),
}  # fmt: skip


@pytest.mark.parametrize("path", ["/v1/predict", "/v1/outcomes"])
@pytest.mark.parametrize("bad", BAD)
def test_a_bad_request_is_refused_with_field_and_rule(server, path, bad):
    said = server.client.post(path, content=BAD[bad])
    assert said.status_code == 422 and said.headers["content-type"] == "application/problem+json"
    assert all({"field", "rule", "value"} == set(one) for one in said.json()["errors"]) and "Traceback" not in said.text


def test_a_refused_row_is_named(server):
    said = server.client.post("/v1/predict", json={"rows": [ROW, ROW | {"pay_0": 99}]}).json()
    assert said["errors"] == [{"field": "rows.1.pay_0", "rule": said["errors"][0]["rule"], "value": 99}]


def test_a_huge_body_is_cut_off(server):
    assert server.client.post("/v1/predict", content=b'{"rows": [' + b" " * 2_000_000).status_code == 413


@pytest.mark.parametrize("method, path, status", [("GET", "/nowhere", 404), ("GET", "/v1/predict", 405), ("DELETE", "/v1/models", 405)])
def test_a_wrong_door_is_a_problem_too(server, method, path, status):
    said = server.client.request(method, path)
    assert said.status_code == status and said.json()["status"] == status


def test_the_page_shows_an_example_that_works(server):
    described = server.client.get("/openapi.json").json()
    example = described["components"]["schemas"]["PredictionRequest"]["example"]
    assert server.client.post("/v1/predict", json=example).status_code == 200
    assert described["components"]["schemas"]["Row"]["properties"]["pay_0"]["maximum"] == 9
    assert "http" not in server.client.get("/docs").text.replace("http://127.0.0.1", ""), "the page needs no network"
    assert server.client.get("/static/swagger-ui-bundle.js").status_code == 200


def test_probes_card_and_metrics(server):
    server.predict()
    assert server.client.get("/ready").json() == {"model": "credit_risk", "version": 1, "problem": ""}
    assert server.client.get("/v1/models").json()["models"][0]["version"] == 1 and "Model card" in server.client.get("/v1/models/champion/card").text
    said = server.client.get("/metrics").text
    assert 'mlops_requests_total{path="/v1/predict",status="200"}' in said and 'mlops_live_version{role="champion"} 1.0' in said


def test_keys_are_asked_for(workspace):
    allowed, other = keys.create_key("shop", ["predict"], **WHO), keys.create_key("meters", ["outcome"], **WHO)
    slow = keys.create_key("slow", ["predict"], per_minute=1, **WHO)
    running = Server("auth")
    try:
        def status(key):
            return running.client.post("/v1/predict", json={"rows": [ROW]}, headers={"Authorization": f"Bearer {key}"} if key else {}).status_code

        assert [status(key) for key in (allowed, other, "nonsense", "", slow, slow)] == [200, 403, 401, 401, 200, 429]
        assert running.client.get("/live").status_code == 200, "probes need no key"
        keys.revoke_key(allowed.split("_")[1], **WHO)
        time.sleep(1.2)
        assert status(allowed) == 401
    finally:
        running.stop()


def test_no_keys_only_at_home():
    from mlops_core.serve import ServeRefused, serve

    with pytest.raises(ServeRefused, match="loopback"):
        serve("credit_risk", host="0.0.0.0", auth=False)


def mlops(*words):
    done = subprocess.run([sys.executable, "-m", "mlops_core.cli", *words], capture_output=True, text=True, timeout=120)
    return done.returncode, done.stdout.strip() or done.stderr


def test_the_command_line_serves_and_gives_keys(workspace):
    code, key = mlops("key", "create", "shop", "--scopes", "predict", "--actor", "cho", "--role", "devops")
    assert code == 0 and keys.KeyRing().find(key).scopes == {"predict"}
    code, said = mlops("serve", "credit_risk", "--host", "0.0.0.0", "--no-auth")
    assert code == 2 and "loopback" in said
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    server = subprocess.Popen([sys.executable, "-m", "mlops_core.cli", "serve", "credit_risk", "--port", str(port)])
    try:
        def answer():
            try:
                return httpx.post(f"http://127.0.0.1:{port}/v1/predict", json={"rows": [ROW]}, headers={"Authorization": f"Bearer {key}"}).status_code
            except httpx.TransportError:
                return 0

        wait_for(lambda: answer() == 200)
    finally:
        server.terminate()
        server.wait(timeout=30)


@pytest.fixture
def own(tmp_path, monkeypatch):
    "A server on a workspace of its own, for tests that break things."
    monkeypatch.setenv("MLOPS_WORKSPACE", str(tmp_path))
    go_live(make_version(0))
    running = Server("none")
    yield running
    running.stop()


class Clients:
    "Clients that ask without a pause and keep a ledger of what they got."

    def __init__(self, server, number=8):
        self.server, self.stopping, self.answered, self.refused = server, threading.Event(), {}, []
        self.threads = [threading.Thread(target=self._ask, args=(name,)) for name in range(number)]
        [thread.start() for thread in self.threads]

    def _ask(self, name):
        with httpx.Client(base_url=f"http://127.0.0.1:{self.server.port}", timeout=20) as client:
            for number in range(100_000):
                if self.stopping.is_set():
                    return
                try:
                    said = client.post("/v1/predict", json={"rows": [ROW], "request_id": f"{name}-{number}"})
                except httpx.TransportError:
                    return
                if said.status_code == 200:
                    self.answered[f"{name}-{number}"] = (said.json()["answers"][0]["version"], said.json()["answers"][0]["probability"])
                else:
                    self.refused.append(said)
                    time.sleep(0.05)

    def finish(self):
        self.stopping.set()
        [thread.join() for thread in self.threads]

    def check(self):
        "Every answer that a client holds is in the log, once, as it was sent."
        rows = log.joined("credit_risk")
        assert not rows.duplicated(["request_id", "position"]).any()
        known = {row.request_id: (row.version, json.loads(row.output)["probability"]) for row in rows.itertuples()}
        assert self.answered and self.answered.items() <= known.items()


def test_a_switch_drops_no_answer_and_no_answer_is_half_old(own):
    second, clients = make_version(1), Clients(own)
    wait_for(lambda: len(clients.answered) > 50)
    go_live(second)
    wait_for(lambda: own.client.get("/ready").json()["version"] == 2)
    old = len(clients.answered)
    wait_for(lambda: len(clients.answered) > old + 50)
    clients.finish()
    clients.check()
    expected = {version: float(package.load_model("credit_risk", version).answer(TEST.iloc[:1])["probability"].iloc[0]) for version in (1, 2)}
    assert clients.refused == [] and expected[1] != expected[2]
    assert all(abs(expected[version] - probability) < 1e-9 for version, probability in clients.answered.values())
    assert {version for version, _ in clients.answered.values()} == {1, 2}


def test_a_corrupted_version_does_not_go_live_and_the_page_says_why(own):
    second = make_version(1)
    (second.folder / "model" / "object.json").write_text("{}")
    go_live(second)
    wait_for(lambda: own.client.get("/ready").json()["problem"])
    ready = own.client.get("/ready")
    assert ready.status_code == 200 and ready.json()["version"] == 1 and "object.json" in ready.json()["problem"]
    assert own.predict().json()["answers"][0]["version"] == 1


def test_without_a_champion_the_server_is_alive_and_not_ready(tmp_path, monkeypatch):
    monkeypatch.setenv("MLOPS_WORKSPACE", str(tmp_path))
    running = Server("none")
    try:
        assert running.client.get("/live").status_code == 200 and running.client.get("/ready").status_code == 503
        said = running.predict()
        assert said.status_code == 503 and "no champion" in said.json()["detail"] and said.headers["retry-after"]
        go_live(make_version(0))
        wait_for(lambda: running.predict().status_code == 200)
    finally:
        running.stop()


def test_twenty_kills_under_load_lose_and_double_nothing(own):
    for turn in range(20):
        clients = Clients(own)
        wait_for(lambda clients=clients, turn=turn: len(clients.answered) > 5 * (turn % 5 + 1))
        own.end(signal.SIGKILL)
        clients.finish()
        clients.check()
        with log.operations_engine().begin() as connection:  # ids are used again in the next turn
            connection.execute(log.predictions.delete())
        own.__init__("none")


def test_sigterm_finishes_what_is_running(own):
    clients = Clients(own)
    wait_for(lambda: len(clients.answered) > 50)
    own.end()
    clients.finish()
    clients.check()
    assert [said.status_code for said in clients.refused] == []


def test_a_locked_database_is_503_until_it_is_free(own, tmp_path):
    holder = sqlite3.connect(tmp_path / "operations.db", isolation_level=None)
    holder.execute("BEGIN IMMEDIATE")
    said = own.predict(request_id="during")
    holder.execute("ROLLBACK")
    holder.close()
    assert said.status_code == 503 and said.headers["retry-after"] and "locked" in said.json()["detail"]
    assert own.predict(request_id="after").status_code == 200
    assert log.joined("credit_risk")["request_id"].tolist() == ["after"]


def test_a_database_that_is_gone_is_503_until_it_is_back(own, tmp_path):
    files = list(tmp_path.glob("operations.db*"))
    for file in files:
        file.rename(file.with_name(f"away-{file.name}"))
    said = own.predict(request_id="during")
    assert said.status_code == 503 and "gone" in said.json()["detail"] and not (tmp_path / "operations.db").exists()
    for file in files:
        file.with_name(f"away-{file.name}").rename(file)
    assert own.predict(request_id="after").status_code == 200 and own.client.get("/ready").status_code == 200


def test_a_full_disk_is_503_until_there_is_room(own):
    resource = pytest.importorskip("resource")
    hard = resource.prlimit(own.pid, resource.RLIMIT_FSIZE)[1]
    resource.prlimit(own.pid, resource.RLIMIT_FSIZE, (1000, hard))
    said = own.predict(request_id="during")
    resource.prlimit(own.pid, resource.RLIMIT_FSIZE, (hard, hard))
    assert said.status_code == 503 and said.headers["retry-after"]
    assert own.predict(request_id="after").status_code == 200
    assert "during" not in log.joined("credit_risk")["request_id"].tolist()


def test_sixty_four_connections_are_answered(own):
    clients = Clients(own, number=64)
    wait_for(lambda: len(clients.answered) > 640, seconds=60)
    clients.finish()
    clients.check()
    assert clients.refused == []
