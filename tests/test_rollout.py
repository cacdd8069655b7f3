"""A bad version is rolled back by itself, a good one goes all the way, two operators cannot fight, and the way back takes less than a second."""

import json
import shutil
import threading
import time

import numpy as np
import pandas as pd
import pytest
from test_serve import COLUMNS, TEST, WHO, Clients, Server, go_live, make_version, wait_for

from mlops_core import audit, log, package, rollout, traffic
from mlops_core.artifact import ArtifactError
from mlops_core.cli import main
from mlops_core.data import load_dataset, reference_split
from mlops_core.govern import GovernanceError
from mlops_core.serve import LocalServer, make_app

WHY = "the tests have no weeks to wait for"
TRUTH = reference_split(load_dataset("credit_default"))[2]["default_next_month"]


def approve(version):
    audit.append("approved", version.subject, {"manifest": version.manifest}, **WHO)
    return version


@pytest.fixture
def two(tmp_path, monkeypatch):
    "A workspace with a live version and an approved one."
    monkeypatch.setenv("MLOPS_WORKSPACE", str(tmp_path))
    monkeypatch.delenv("MLOPS_OPS_URL", raising=False)
    go_live(approve(make_version(0)))
    return approve(make_version(1))


@pytest.fixture
def server(two):
    running = Server("none")
    yield running
    running.stop()


def logged(running, rows=400, changed=lambda p: p, action=lambda p: "approve" if p < 0.2 else "refuse", broken=()):
    "Write what a server would have logged in a step: the champion sent, the challenger in the shadow."
    answers = package.load_model("credit_risk", 1).answer(TEST.iloc[:rows])["probability"]
    with log.PredictionLog() as writer:
        for number, probability in enumerate(answers):
            for version, role, says in ((1, "champion", probability), (2, "shadow", changed(probability))):
                fails = version == 2 and number in broken
                said = {"output": json.dumps({"probability": says}), "action": action(says)}
                said = {"output": "{}", "fallback": "failed: KeyError"} if fails else said
                writer.submit([log.Prediction("credit_risk", f"{running.number}-{running.step}-{number}", version, role, latency_ms=5.0, **said)])


def verdict(running, check):
    return rollout.judge(running).set_index("check").loc[check, "verdict"]


def test_a_good_version_goes_through_all_steps_and_is_live(two):
    running = rollout.start("credit_risk", 2, **WHO)
    shares = []
    while running.state == "running":
        shares.append(running.share)
        logged(running)
        running = rollout.advance("credit_risk", WHY, **WHO)
    assert shares == [0, 0.05, 0.25, 0.5, 1.0] and running.state == "passed" and audit.live("credit_risk") == "2"
    events = audit.entries("credit_risk")["event"].tolist()
    assert events.count("rollout_step") == 5 and events[-1] == "champion" and audit.verify() == []
    assert {row["because"] for row in audit.entries("credit_risk", event="rollout_step")["payload"]} == {WHY}


@pytest.mark.parametrize("check, how", [
    ("errors", {"broken": range(30)}), ("shift", {"changed": lambda p: min(1.0, p + 0.15)}),
    ("disagreement", {"action": lambda p: "approve" if round(p * 1e6) % 2 else "refuse", "changed": lambda p: p + 1e-6}),
])  # fmt: skip
def test_a_bad_version_is_rolled_back_by_the_guard(two, check, how):
    running = rollout.start("credit_risk", 2, **WHO)
    logged(running)
    rollout.guard("credit_risk")
    assert traffic.running("credit_risk") == running, "a good one is left alone"
    with log.operations_engine().begin() as connection:
        connection.execute(log.predictions.delete())
    logged(running, **how)
    assert verdict(running, check) == "breach"
    rollout.guard("credit_risk")
    assert traffic.rollout_history("credit_risk")[-1].state == "rolled_back" and check in traffic.rollout_history("credit_risk")[-1].reason
    assert audit.live("credit_risk") == "1" and audit.live("credit_risk", "challenger") is None


def test_a_version_that_fails_always_is_seen_before_the_rows_are_enough(two):
    running = rollout.start("credit_risk", 2, **WHO)
    logged(running, rows=10, broken=range(10))
    assert verdict(running, "errors") == "breach"


def test_one_failure_in_many_is_no_breach(two):
    running = rollout.start("credit_risk", 2, **WHO)
    logged(running, broken=[7])
    assert verdict(running, "errors") == "pass"


def test_late_outcomes_end_a_rollout_whose_version_ranks_worse(two):
    running = rollout.start("credit_risk", 2, **WHO)
    noise = iter(np.random.default_rng(0).random(2000))
    logged(running, rows=2000, changed=lambda p: next(noise) * 0.4)
    assert verdict(running, "metric") == "too few"
    known = [{"request_id": f"1-0-{number}", "value": float(TRUTH.iloc[number])} for number in range(2000)]
    log.record_outcomes("credit_risk", pd.DataFrame(known))
    table = rollout.judge(running).set_index("check")
    assert table.loc["metric", "verdict"] == "breach" and table.loc["metric", "value"] < -0.1


def test_outcomes_that_are_all_alike_say_nothing(two):
    running = rollout.start("credit_risk", 2, **WHO)
    logged(running)
    log.record_outcomes("credit_risk", pd.DataFrame({"request_id": [f"1-0-{number}" for number in range(400)], "value": 0.0}))
    assert verdict(running, "metric") == "too few"


def test_late_outcomes_leave_an_equal_version_alone(two):
    running = rollout.start("credit_risk", 2, **WHO)
    logged(running, rows=2000)
    known = [{"request_id": f"1-0-{number}", "value": float(TRUTH.iloc[number])} for number in range(2000)]
    log.record_outcomes("credit_risk", pd.DataFrame(known))
    assert verdict(running, "metric") == "pass"


def test_a_step_is_not_taken_too_early(two):
    running = rollout.start("credit_risk", 2, **WHO)
    with pytest.raises(rollout.RolloutRefused, match=r"lasts 7 days.*200 are needed"):
        rollout.advance("credit_risk", "because", **WHO)
    assert traffic.running("credit_risk") == running


def test_a_rollout_that_cannot_be_is_refused(two):
    with pytest.raises(rollout.RolloutError, match="no roll-out"):
        rollout.advance("credit_risk", WHY, **WHO)
    with pytest.raises(rollout.RolloutError, match="no roll-out"):
        rollout.abort("credit_risk", WHY, **WHO)
    with pytest.raises(rollout.RolloutError, match="live already"):
        rollout.start("credit_risk", 1, **WHO)
    with pytest.raises(rollout.RolloutError, match="not approved"):
        rollout.start("credit_risk", make_version(3).version, **WHO)
    with pytest.raises(rollout.RolloutError, match="wants steps"):
        rollout.start("credit_risk", 2, at_once=True, **WHO)
    with pytest.raises(ArtifactError, match="99"):
        rollout.start("credit_risk", 99, **WHO)
    with pytest.raises(GovernanceError, match="nobody does|does not hold"):
        rollout.start("credit_risk", 2, actor="mallory", role="devops")
    with pytest.raises(rollout.RolloutError, match="1 is the first"):
        rollout.rollback("credit_risk", WHY, **WHO)
    rollout.start("credit_risk", 2, **WHO)
    with pytest.raises(traffic.RolloutConflict, match="runs already"):
        rollout.start("credit_risk", 2, **WHO)


def test_a_version_that_is_meant_to_differ_needs_somebody_who_may_say_so(two):
    for who, differs, because in (("devops", 0.3, WHY), ("model_risk_manager", 0.3, "short"), ("model_risk_manager", 1.5, WHY)):
        with pytest.raises(rollout.RolloutError, match="a rationale of 20 characters or more, and one of model_risk_manager"):
            rollout.start("credit_risk", 2, differs=differs, because=because, actor="ben" if "risk" in who else "cho", role=who)
    assert traffic.running("credit_risk") is None
    running = rollout.start("credit_risk", 2, differs=0.9, because=WHY, actor="ben", role="model_risk_manager")
    logged(running, changed=lambda p: 1 - p)
    verdicts = rollout.judge(running).set_index("check")
    assert verdicts.loc["disagreement", "limit"] == verdicts.loc["shift", "limit"] == 0.9 and verdicts.loc["disagreement", "value"] > 0.1
    said = audit.entries(event="challenger", subject="credit_risk/2")["payload"].iloc[-1]
    assert said["differs"] == 0.9 and said["because"] == WHY


def test_what_is_paired_is_found_also_where_the_shadow_comes_in_one_piece_afterwards(two):
    running = rollout.start("credit_risk", 2, **WHO)
    answers = package.load_model("credit_risk", 1).answer(TEST.iloc[:300])["probability"]
    with log.PredictionLog() as writer:
        for version, role in ((1, "champion"), (2, "shadow")):
            rows = [log.Prediction("credit_risk", "one", version, role, position=number, output=json.dumps({"probability": p}), action="refuse")
                    for number, p in enumerate(answers)]  # fmt: skip
            writer.write(rows)
    assert len(rollout.paired(running, most=250)[0]) == 250


def test_the_way_back_may_lead_to_any_version_that_was_live(two):
    for number in (2, 3):
        version = two if number == 2 else approve(make_version(2))
        audit.append("champion", version.subject, {"manifest": version.manifest}, **WHO)
    with pytest.raises(rollout.RolloutError, match="credit_risk/9 was not live before; there are: credit_risk/1, credit_risk/2"):
        rollout.rollback("credit_risk", WHY, 9, **WHO)
    assert rollout.rollback("credit_risk", WHY, 1, **WHO) == 1 and audit.live("credit_risk") == "1"
    assert rollout.rollback("credit_risk", WHY, **WHO) == 3, "without a number the last one before"


def test_without_a_champion_there_is_nothing_to_replace(tmp_path, monkeypatch):
    monkeypatch.setenv("MLOPS_WORKSPACE", str(tmp_path))
    version = approve(make_version(0))
    with pytest.raises(rollout.RolloutError, match="no champion to replace"):
        rollout.start("credit_risk", version.version, **WHO)


def test_a_version_that_asks_for_more_columns_is_refused(two, monkeypatch):
    monkeypatch.setattr(rollout, "facts", lambda folder: {"features": [*COLUMNS, *(["income"] if folder == two.folder else [])]})
    with pytest.raises(rollout.RolloutError, match="income"):
        rollout.start("credit_risk", 2, **WHO)


def test_of_many_operators_one_takes_the_step(two, monkeypatch):
    running = rollout.start("credit_risk", 2, **WHO)
    logged(running)
    found, together, kept = [], threading.Barrier(6), rollout.judge

    def all_have_looked(one):
        table = kept(one)
        together.wait(60)
        return table

    def operate():
        try:
            found.append(rollout.advance("credit_risk", WHY, **WHO).step)
        except traffic.RolloutConflict:
            found.append("told so")

    monkeypatch.setattr(rollout, "judge", all_have_looked)
    threads = [threading.Thread(target=operate) for _ in range(6)]
    [thread.start() for thread in threads]
    [thread.join() for thread in threads]
    assert sorted(found, key=str) == [1] + ["told so"] * 5 and traffic.running("credit_risk").step == 1
    assert len(audit.entries("credit_risk", event="rollout_step")) == 1 and audit.verify() == []


@pytest.mark.parametrize("state", ["passed", "aborted", "rolled_back"])
def test_a_crash_between_row_and_audit_log_is_settled(two, state):
    running = rollout.start("credit_risk", 2, **WHO)
    traffic.move(running, state=state, reason="and then the power went")
    assert audit.live("credit_risk", "challenger") == "2", "the log does not know yet"
    rollout.settle("credit_risk")
    expected = ("2", None) if state == "passed" else ("1", None)
    assert (audit.live("credit_risk"), audit.live("credit_risk", "challenger")) == expected
    number = audit.head()[0]
    rollout.settle("credit_risk")
    assert audit.head()[0] == number, "once"


def test_a_rollout_survives_a_killed_server(server):
    rollout.start("credit_risk", 2, **WHO)
    wait_for(lambda: len(server.client.get("/v1/models").json()["models"]) == 2)
    server.end(9)
    server.__init__("none")
    assert {one["role"]: one["version"] for one in server.client.get("/v1/models").json()["models"]} == {"champion": 1, "challenger": 2}


def ask(server, prefix, rows=300):
    given = json.loads(TEST.iloc[:rows].to_json(orient="records"))
    said = server.client.post("/v1/predict", json={"rows": given, "subjects": [f"client:{n}" for n in range(rows)], "request_id": prefix})
    return [one["version"] for one in said.json()["answers"]]


def test_a_server_sends_a_growing_share_and_nobody_changes_back(server):
    running = rollout.start("credit_risk", 2, **WHO)
    met = []
    wait_for(lambda: len(server.client.get("/v1/models").json()["models"]) == 2)
    for step in range(5):
        wait_for(lambda share=running.share: f"mlops_challenger_share {share}" in server.client.get("/metrics").text)
        met.append(np.array(ask(server, f"step-{step}")) == 2)
        running = traffic.move(running, step=step + 1) if step < 4 else running
    places = np.array([traffic.place(f"client:{number}", running.salt) for number in range(300)])
    assert [found.tolist() for found in met] == [(places < share).tolist() for share in (0, 0.05, 0.25, 0.5, 1)]
    wait_for(lambda: len(log.joined("credit_risk", sent=False)) == 1500)
    both, asked, failed = rollout.paired(running)
    assert (len(both), asked, failed) == (300, 300, 0), "in each step both have answered each row"


def test_the_way_back_takes_less_than_a_second_under_load(server):
    running = traffic.move(rollout.start("credit_risk", 2, **WHO), step=4)
    clients = Clients(server)
    arrived = []
    wait_for(lambda: any(version == 2 for version, _ in clients.answered.values()))
    start = time.monotonic()
    rollout.rollback("credit_risk", "too many complaints", **WHO)
    back = time.monotonic() - start

    def only_old():
        before = set(clients.answered)
        time.sleep(0.05)
        fresh = [clients.answered[name][0] for name in list(clients.answered) if name not in before]
        arrived.append(time.monotonic() - start)
        return bool(fresh) and set(fresh) == {1}

    wait_for(only_old)
    clients.finish()
    clients.check()
    assert clients.refused == [] and running.share == 1.0
    assert back < 1 and arrived[-1] < 1, (back, arrived)


def test_blue_green_switches_at_once_and_back(server, monkeypatch):
    monkeypatch.setattr(rollout, "policy_of", lambda name, kept=rollout.policy_of: kept(name).model_copy(update={"blue_green": True}))
    assert rollout.start("credit_risk", 2, at_once=True, **WHO).state == "passed"
    wait_for(lambda: server.predict().json()["answers"][0]["version"] == 2)
    shutil.rmtree(package.load_model("credit_risk", 1).folder)
    assert rollout.rollback("credit_risk", "a doubt", **WHO) == 1
    start = time.monotonic()
    wait_for(lambda: server.predict().json()["answers"][0]["version"] == 1)
    assert time.monotonic() - start < 1, "the version before was kept in memory: its files are gone"


def test_a_running_server_rolls_a_bad_version_back_by_itself(server):
    rollout.start("credit_risk", 2, **WHO)
    with log.PredictionLog() as writer:  # what the challenger would have said, planted: its answers are another's
        for number in range(300):
            for version, role, says in ((1, "champion", 0.1), (2, "shadow", 0.9)):
                output = json.dumps({"probability": says})
                writer.submit([log.Prediction("credit_risk", f"planted-{number}", version, role, output=output, action=role, latency_ms=1.0)])
    wait_for(lambda: traffic.running("credit_risk") is None, seconds=20)
    assert traffic.rollout_history("credit_risk")[-1].state == "rolled_back"
    wait_for(lambda: audit.entries("credit_risk", event="rolled_back")["actor"].tolist() == ["guard"])


def test_a_judge_that_cannot_judge_says_so_until_it_can(two):
    rollout.start("credit_risk", 2, **WHO)
    broken = threading.Event()
    broken.set()

    def judge(name):
        if broken.is_set():
            raise ArithmeticError("no numbers")

    with LocalServer(make_app("credit_risk", auth=False, guard=judge)) as client:
        wait_for(lambda: "cannot be judged: ArithmeticError: no numbers" in client.get("/ready").json()["problem"])
        assert client.get("/ready").status_code == 200
        broken.clear()
        wait_for(lambda: client.get("/ready").json()["problem"] == "")


def test_what_was_wrong_is_forgotten_when_it_is_over(server, tmp_path):
    files = list(tmp_path.glob("operations.db*"))
    [file.rename(file.with_name(f"away-{file.name}")) for file in files]
    wait_for(lambda: "gone" in server.client.get("/ready").json()["problem"])
    [file.with_name(f"away-{file.name}").rename(file) for file in files]
    wait_for(lambda: server.client.get("/ready").json() == {"model": "credit_risk", "version": 1, "problem": ""})


def test_a_corrupted_challenger_leaves_the_champion_alone(server, two):
    (two.folder / "model" / "object.json").write_text("{}")
    with pytest.raises(ArtifactError, match=r"object\.json"):
        rollout.start("credit_risk", 2, **WHO)
    traffic.begin("credit_risk", 1, 2, (1.0,))
    traffic.move(traffic.running("credit_risk"), step=1)
    wait_for(lambda: "object.json" in server.client.get("/ready").json()["problem"])
    assert set(ask(server, "still")) == {1}


def test_the_command_line_has_the_whole_way(two, capsys):
    def mlops(*words):
        code, told = main(list(words)), capsys.readouterr()
        return code, told.out + told.err

    who = ("--actor", "cho", "--role", "devops")
    code, said = mlops("rollout", "start", "credit_risk", "2", *who)
    assert code == 0 and "in the shadow" in said and "too few" in said
    assert mlops("rollout", "advance", "credit_risk", *who)[0] == 3
    assert mlops("rollout", "start", "credit_risk", "2", *who)[0] == 1
    assert mlops("rollout", "abort", "credit_risk", "--because", "a test", *who)[0] == 0
    code, said = mlops("rollout", "status", "credit_risk")
    assert code == 0 and "aborted" in said and "a test" in said
    assert mlops("rollout", "rollback", "credit_risk", "--because", "a test", *who)[0] == 2


def test_a_step_is_followed_when_the_shadow_has_answered_or_failed_on_all_that_it_should(operations):
    rolling = traffic.begin("toy", 1, 2, (0.5,))
    with log.PredictionLog() as writer:
        writer.write([log.Prediction("other", "z", 1, "champion")])
        assert rollout.followed(rolling), "nothing was asked of this model"
        writer.write([log.Prediction("toy", "a", 1, "champion")])
        assert not rollout.followed(rolling)
        writer.write([log.Prediction("toy", "a", 2, "shadow", output="{}", fallback="failed: KeyError")])
        assert rollout.followed(rolling), "what failed will be judged"
        writer.write([log.Prediction("toy", "b", 1, "champion", fallback="challenger 2 failed: KeyError")])
        assert rollout.followed(rolling), "it has failed on this one already"
        writer.write([log.Prediction("toy", "c", 2, "challenger")])
        assert not rollout.followed(rolling), "the champion follows, too"
