"""The version that did not answer answers too: nothing is lost or doubled when its process is killed, and it ends with its server."""

import asyncio
import json
import signal
import sys
import time
from dataclasses import replace

import psutil
import pytest
import test_scoring
from test_rollout import approve
from test_scoring import ask_all, broken, in_rollout, picky
from test_serve import TEST, WHO, Clients, Server, go_live, make_version, wait_for

from mlops_core import log, package, rollout, scoring, second, traffic


def shadows(model="toy"):
    return log.joined(model, sent=False).set_index("request_id")


def asked(numbers, route, rows=1):
    "Let a scorer answer requests of `rows` rows each; gives the route with its roll-out as the log has it."
    running = traffic.begin("toy", 1, 2, (0.5, 1.0))
    running = traffic.move(running, step=route.rollout.step) if route.rollout.step else running
    route = replace(route, rollout=running)
    with log.PredictionLog() as writer:
        scorer = scoring.Scorer(writer, None, 100)
        ask_all(scorer, numbers, route)
        scorer.close()
    return route


def follow(route, **how):
    with log.PredictionLog(promised=False) as writer:
        shadow = second.Shadow(writer, None, **how)
        while shadow.follow(route):
            pass
    return shadow


def test_who_did_not_answer_follows_and_who_has_failed_is_not_asked_again(operations):
    route = in_rollout(1)
    route = asked([1.0, 2.0, 7.0] * 10, replace(route, challenger=test_scoring.live(2, broken)))
    follow(route)
    sent = log.joined("toy").set_index("request_id")
    expected = {name: 3 - row.version for name, row in sent.iterrows() if not row.fallback}
    assert shadows()["version"].to_dict() == expected and set(expected.values()) == {1, 2}, "both directions"
    assert (sent["fallback"] != "").any() and (shadows()["fallback"][sent["role"] == "challenger"] == "").all()


def test_a_failure_is_logged_and_the_rows_beside_it_are_followed(operations):
    follow(asked([1.0, 7.0], in_rollout(0)))
    assert shadows()["fallback"].to_dict() == {"r0": "", "r1": "failed: KeyError"} and set(shadows()["version"]) == {2}
    assert shadows()["output"].to_dict() == {"r0": '{"half": 0.5}', "r1": "{}"}


def test_nothing_is_followed_twice_and_nothing_of_another_time_or_version(operations):
    with log.PredictionLog() as writer:
        writer.write([log.Prediction("toy", "before", 1, "champion", input='{"x": 1}')])
        route = asked([1.0, 2.0], in_rollout(0))
        writer.write([log.Prediction("toy", "other", 3, "champion", input='{"x": 1}')])
        writer.write([log.Prediction("other", "elsewhere", 1, "champion", input='{"x": 1}')])
        for _ in range(2):
            follow(route)
        assert sorted(shadows().index) == ["r0", "r1"] and second.unfollowed(route.rollout, 1, 0) == []
        shadow = second.Shadow(writer, None)
        assert shadow.follow(route) == 0
        writer.write([log.Prediction("toy", "late", 1, "champion", input='{"x": 1}')])
        shadow.follow(route)
        # another process got this number before, and committed after
        gap = log.predictions.c.request_id == "elsewhere"
        with operations.begin() as connection:
            number = connection.scalar(log.sa.select(log.predictions.c.number).where(gap))
            connection.execute(log.predictions.delete().where(gap))
            late = {"number": number, "model": "toy", "request_id": "later", "position": 0, "sent": True}
            connection.execute(log.predictions.insert(), vars(log.Prediction("toy", "later", 1, "champion", input='{"x": 1}')) | late)
        shadow.follow(route)
        assert sorted(shadows().index) == ["late", "later", "r0", "r1"]


def test_requests_with_many_rows_are_followed_whole_whoever_answered_which(operations):
    route = replace(asked([], in_rollout(1)), challenger=test_scoring.live(2, picky))
    rows, subjects = [{"x": 1.0}] * 1000, [f"s{number}" for number in range(1000)]
    with log.PredictionLog() as writer:
        scorer = scoring.Scorer(writer, None, 100)
        ask_rows(scorer, route, rows, subjects)
        scorer.close()
    follow(route)
    found = log.joined("toy", sent=False).sort_values(["request_id", "position"])
    sent = log.joined("toy").sort_values(["request_id", "position"])
    assert len(found) == 3000 and (found["version"].to_numpy() == 3 - sent["version"].to_numpy()).all()
    assert (found["subject"].to_numpy() == sent["subject"].to_numpy()).all()


def ask_rows(scorer, route, rows, subjects):
    async def together():
        return await asyncio.gather(*[scorer.answer(route, test_scoring.ASK(rows=rows, subjects=subjects), f"many-{n}") for n in range(3)])

    return asyncio.run(together())


def test_one_that_cannot_follow_drops_the_oldest_and_counts_them_once(operations):
    route = asked([float(number % 4) for number in range(30)], in_rollout(0))
    with log.PredictionLog() as writer:
        shadow = second.Shadow(writer, None, most=10)
        assert [shadow.follow(route), shadow.follow(route)] == [0, 0] and shadow.dropped == 20
    numbers = log.joined("toy")["request_id"].tolist()
    assert sorted(shadows().index) == sorted(numbers[-10:]), "the newest are followed"


def test_what_is_not_written_is_followed_the_next_time(operations, monkeypatch):
    route = asked([1.0, 2.0], in_rollout(0))
    with log.PredictionLog() as writer:
        shadow = second.Shadow(writer, None)
        with monkeypatch.context() as patch:
            patch.setattr(log, "_write", lambda *_: (_ for _ in ()).throw(TimeoutError()))
            with pytest.raises(log.LogUnavailable):
                shadow.follow(route)
        assert shadow.follow(route) == 0 and len(shadows()) == 2


# the process, beside a real server


@pytest.fixture
def server(tmp_path, monkeypatch):
    monkeypatch.setenv("MLOPS_WORKSPACE", str(tmp_path))
    monkeypatch.delenv("MLOPS_OPS_URL", raising=False)
    go_live(approve(make_version(0)))
    approve(make_version(0))  # a twin, which no guard has a reason to roll back
    running = Server("none")
    yield running
    running.stop()


def follows(process):
    try:
        return "follow_rollouts" in " ".join(process.cmdline())
    except psutil.Error:  # it has just ended
        return False


def processes(server):
    return [one for one in psutil.Process(server.pid).children() if follows(one)]


def started(server):
    wait_for(lambda: len(processes(server)) == 1)
    return processes(server)[0]


def gone(process):
    return not process.is_running() or process.status() == psutil.STATUS_ZOMBIE


def all_followed():
    return len(log.joined("credit_risk")) == len(log.joined("credit_risk", sent=False))


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGKILL])
def test_it_ends_with_its_server(server, how):
    rollout.start("credit_risk", 2, **WHO)
    process = started(server)
    server.predict()
    wait_for(all_followed)
    server.end(how)
    wait_for(lambda: gone(process), seconds=5)


def test_one_that_has_just_begun_ends_with_its_server_too(server):
    rollout.start("credit_risk", 2, **WHO)
    process = started(server)
    server.end(signal.SIGKILL)
    wait_for(lambda: gone(process), seconds=20)


def test_it_ends_with_the_roll_out_and_there_is_none_without_one(server):
    server.predict()
    assert not processes(server)
    rollout.start("credit_risk", 2, **WHO)
    process = started(server)
    rollout.abort("credit_risk", "it was only a test", **WHO)
    wait_for(lambda: gone(process))
    time.sleep(1.5)
    assert not processes(server) and server.client.get("/ready").json()["problem"] == ""


def test_kills_lose_and_double_nothing(server):
    running = traffic.move(rollout.start("credit_risk", 2, **WHO), step=2)
    clients, killed = Clients(server, number=4), set()
    for _ in range(3):
        wait_for(lambda: (found := processes(server)) and found[0].pid not in killed and progress(found[0]))
        process = processes(server)[0]
        killed.add(process.pid)
        process.kill()
    clients.finish()
    clients.check()
    wait_for(all_followed)
    both, asked_, failed = rollout.paired(running, most=10**6)
    found = log.joined("credit_risk", sent=False)
    assert not found.duplicated(["request_id", "position"]).any() and len(both) == len(found) == asked_ and failed == 0
    assert {(row.version_ours, row.version_theirs) for row in both.itertuples()} == {(2, 1)}
    assert set(found["version"]) == {1, 2}, "both directions"
    said = server.client.get("/metrics").text
    assert "mlops_shadow_dropped 0.0" in said and clients.refused == []
    wait_for(lambda: "mlops_shadow_waiting 0.0" in server.client.get("/metrics").text)


def progress(process, known={}):  # noqa: B006 (it remembers on purpose)
    "Whether shadows were written since `process` was first seen."
    count = len(log.joined("credit_risk", sent=False))
    return count > known.setdefault(process.pid, count)


def test_two_servers_of_one_workspace_have_one_shadow_at_work(server):
    other = Server("none")
    try:
        rollout.start("credit_risk", 2, **WHO)
        first, waits = started(server), started(other)
        for one in (server, other):
            for _ in range(20):
                one.predict()
        wait_for(all_followed)
        working = [one for one in (first, waits) if any("operations.db" in file.path for file in one.open_files())]
        assert len(working) == 1, "one has the log open, the other waits"
        working, idle = working[0], next(one for one in (first, waits) if one not in working)
        working.kill()
        for one in (server, other):
            one.predict()
        wait_for(all_followed)
        assert idle.is_running()
        owner = server if working is first else other
        after_it = started(owner)  # it waits in its turn, and ends with its server all the same
        owner.end(signal.SIGKILL)
        wait_for(lambda: gone(after_it), seconds=20)
    finally:
        other.stop()


def test_one_that_cannot_live_is_told_and_not_started_without_end():
    shadow = second.ShadowProcess("credit_risk", lambda: True)
    try:
        shadow._command, begins = [sys.executable, "-c", "raise SystemExit(7)"], []
        wait_for(lambda: "exit code 7" in shadow.problem)
        end = time.monotonic() + 4
        while time.monotonic() < end:
            begins += [shadow._process] if shadow._process not in begins else []
            time.sleep(0.02)
        assert len(begins) <= 4, "later and later"
    finally:
        shadow.close()


def test_a_request_with_many_rows_is_followed_as_the_artifact_answers(server):
    rollout.start("credit_risk", 2, **WHO)
    rows = json.loads(TEST.iloc[:300].to_json(orient="records"))
    server.client.post("/v1/predict", json={"rows": rows, "request_id": "many"}).raise_for_status()
    wait_for(all_followed)
    found = log.expand(log.joined("credit_risk", sent=False).sort_values("position")["output"])["probability"]
    expected = package.load_model("credit_risk", 2).answer(TEST.iloc[:300])["probability"]
    assert max(abs(one - p) for one, p in zip(found, expected, strict=True)) < 1e-9
