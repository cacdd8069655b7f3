"""What was answered is in the log, once, whatever dies in between; outcomes count once, whenever they come."""

import random
import signal
import subprocess
import sys
import threading
import time

import pandas as pd
import pytest
import sqlalchemy as sa

from mlops_core import audit, core, log
from mlops_core.govern import GovernanceError
from mlops_core.log import LogUnavailable, Prediction, PredictionLog, Receipt


def answer(request_id, **more):
    return Prediction("credit_risk", str(request_id), **({"version": 1, "role": "champion"} | more))


def outcome(request_id, value, position=0, **more):
    return pd.DataFrame([{"request_id": request_id, "position": position, "value": value, **more}])


def logged(sent=True):
    return log.joined("credit_risk", sent=sent)


def test_an_answer_comes_back_as_it_was_logged(operations):
    given = answer("r", subject="Zoë", input='{"x": 1.5}', output='{"p": 0.1}', action="refer", rank=3, propensity=0.25, latency_ms=1.5)
    with PredictionLog() as writer:
        assert writer.write([given]) == [given]
    row = logged().iloc[0]
    assert {name: row[name] for name in ("subject", "action", "rank", "propensity", "version", "role")} == {
        "subject": "Zoë", "action": "refer", "rank": 3, "propensity": 0.25, "version": 1, "role": "champion"}  # fmt: skip
    assert log.expand(logged()["output"])["p"].tolist() == [0.1] and pd.Timestamp(row["time"]) == given.time


def test_a_repeated_request_gets_the_first_answer_and_is_logged_once(operations):
    with PredictionLog() as writer:
        first = writer.write([answer("r", output='{"p": 1}'), answer("r", position=1, output='{"p": 2}')])
        assert writer.write([answer("r", output='{"p": 9}')]) == first
    assert logged()["output"].tolist() == ['{"p": 1}', '{"p": 2}']


def test_requests_at_once_with_one_id_all_get_one_answer(operations):
    with PredictionLog() as one, PredictionLog() as two:
        waiting = [writer.submit([answer(number % 7, output=f'{{"p": {number}}}')]) for number in range(200) for writer in (one, two)]
        found = {(rows[0].request_id, rows[0].output) for rows in (done.result() for done in waiting)}
    assert len(found) == 7 and len(logged()) == 7


def test_a_shadow_answer_stands_beside_the_one_that_was_sent(operations):
    with PredictionLog() as writer:
        writer.write([answer("r", output='{"p": 1}')])
        writer.write([answer("r", role="shadow", version=2, output='{"p": 2}')])
    assert logged()["version"].tolist() == [1] and logged(sent=False)["version"].tolist() == [2]


def test_models_do_not_share_request_ids(operations):
    with PredictionLog() as writer:
        writer.write([answer("r")])
        writer.write([Prediction("recommendation", "r", 5, "champion")])
    assert logged()["version"].tolist() == [1] and log.joined("recommendation")["version"].tolist() == [5]


def test_answers_to_two_requests_are_refused_together():
    with pytest.raises(ValueError, match="split them by request"):
        PredictionLog.submit(None, [answer("a"), answer("b")])
    with pytest.raises(ValueError, match="one or more answers"):
        PredictionLog.submit(None, [])


WRITER = """
import sys, threading
from mlops_core.log import Prediction, PredictionLog
log, said = PredictionLog(), threading.Lock()
def client(name):
    for number in range(100000):
        row, = log.write([Prediction("credit_risk", f"{name}-{number}", 1, "champion", output=str(number))])
        with said:
            sys.stdout.write(f"{row.request_id} {row.output}\\n")
            sys.stdout.flush()
for name in range(8):
    threading.Thread(target=client, args=(f"{sys.argv[1]}-{name}",), daemon=True).start()
threading.Event().wait()
"""


def test_no_answer_is_lost_or_doubled_when_the_writer_is_killed(operations):
    generator, sent = random.Random(0), []
    for turn in range(3):
        writer = subprocess.Popen([sys.executable, "-c", WRITER, str(turn)], stdout=subprocess.PIPE, text=True)
        sent.append(writer.stdout.readline())
        threading.Timer(generator.uniform(0.1, 0.6), writer.send_signal, [signal.SIGKILL]).start()
        sent += writer.stdout.readlines()
        writer.wait()
    known = [tuple(line.split()) for line in sent if line.endswith("\n") and len(line.split()) == 2]
    rows = logged()
    assert len(known) > 50 and not rows.duplicated(["request_id", "position"]).any()
    assert set(known) <= set(zip(rows["request_id"], rows["output"], strict=True)), "an answer that was sent is not in the log"


def test_a_locked_database_is_an_error_and_then_works_again(operations):
    with PredictionLog(wait_seconds=0.3) as writer:
        writer.write([answer("before")])
        with operations.connect() as holder:
            holder.exec_driver_sql("BEGIN IMMEDIATE" if operations.dialect.name == "sqlite" else "LOCK TABLE predictions IN ACCESS EXCLUSIVE MODE")
            start = time.monotonic()
            with pytest.raises(LogUnavailable, match="cannot be written"):
                writer.write([answer("during")])
            assert time.monotonic() - start < 5
        writer.write([answer("after")])
    assert logged()["request_id"].tolist() == ["before", "after"]


@pytest.mark.parametrize("operations", ["sqlite"], indirect=True)
def test_a_file_that_is_gone_is_an_error_and_never_a_new_empty_log(operations, tmp_path):
    file = core.workspace() / "operations.db"
    with PredictionLog() as writer:
        writer.write([answer("before")])
        for part in core.workspace().glob("operations.db*"):
            part.rename(tmp_path / part.name)
        for _ in range(2):
            with pytest.raises(LogUnavailable, match="operations.db is gone"):
                writer.write([answer("during")])
        assert not file.exists()
        for part in tmp_path.glob("operations.db*"):
            part.rename(core.workspace() / part.name)
        writer.write([answer("after")])
    assert logged()["request_id"].tolist() == ["before", "after"]


@pytest.mark.parametrize("operations", ["postgresql"], indirect=True)
def test_a_server_that_is_gone_is_an_error_until_it_is_back(operations, postgresql):
    with PredictionLog(wait_seconds=1) as writer:
        writer.write([answer("before")])
        postgresql.stop()
        with pytest.raises(LogUnavailable):
            writer.write([answer("during")])
        postgresql.start()
        writer.write([answer("after")])
    assert logged()["request_id"].tolist() == ["before", "after"]


@pytest.mark.parametrize("operations", ["sqlite"], indirect=True)
def test_a_full_disk_is_an_error_and_then_works_again(operations):
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    with PredictionLog() as writer:
        writer.write([answer("before")])
        try:
            resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, hard))
            with pytest.raises(LogUnavailable):
                writer.write([answer("during", input='"' + "x" * 1_000_000 + '"')])
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        writer.write([answer("after")])
    assert logged()["request_id"].tolist() == ["before", "after"]


def test_outcomes_count_once_in_any_order(operations):
    with PredictionLog() as writer:
        writer.write([answer("r", position=place) for place in range(3)])
    both = pd.concat([outcome("r", 1.0, 2), outcome("r", 0.0, 0), outcome("r", 1.0, 2), outcome("r", 0.5, 0), outcome("x", 1.0)])
    assert log.record_outcomes("credit_risk", both) == Receipt(applied=2, repeated=1, conflict=1, stray=1)
    assert log.record_outcomes("credit_risk", both) == Receipt(repeated=4, conflict=1)
    assert logged()["value"].tolist()[::2] == [0.0, 1.0] and logged()["value"].isna().tolist() == [False, True, False]
    assert log.strays("credit_risk")["request_id"].tolist() == ["x"] and log.contradicted("credit_risk")["value"].tolist() == [0.5, 0.5]


def test_a_stray_is_none_any_more_when_its_answer_is_logged_late(operations):
    log.record_outcomes("credit_risk", outcome("late", 1.0))
    with PredictionLog() as writer:
        writer.write([answer("late")])
    assert log.strays("credit_risk").empty and logged()["value"].tolist() == [1.0]


def test_rivals_cannot_both_have_the_first_word(operations):
    with PredictionLog() as writer:
        writer.write([answer("r", position=place) for place in range(50)])
    receipts = []

    def say(value):
        receipts.append(log.record_outcomes("credit_risk", pd.concat([outcome("r", value, place) for place in range(50)])))

    rivals = [threading.Thread(target=say, args=(value,)) for value in (0.0, 1.0, 2.0)]
    [rival.start() for rival in rivals], [rival.join() for rival in rivals]
    assert sum(receipt.applied for receipt in receipts) == 50 and sum(receipt.conflict for receipt in receipts) == 100
    assert len(log.contradicted("credit_risk")) == 100


@pytest.mark.parametrize("bad, rule", [
    ({"value": "paid"}, "value is no finite number in row 1"), ({"value": float("inf")}, "finite"), ({"value": None}, "finite"),
    ({"happened_at": "soon"}, "happened_at is no time"), ({"request_id": None}, "request_id is missing"),
    ({"position": "first"}, "position is no whole number"), ({"position": -1}, "position is no whole number"),
])  # fmt: skip
@pytest.mark.parametrize("operations", ["sqlite"], indirect=True)
def test_outcomes_that_cannot_be_read_change_nothing(operations, bad, rule):
    rows = [{"request_id": "r", "value": 1.0, "position": 0, "happened_at": "2026-01-01"}]
    with pytest.raises(log.OutcomeError, match=rule):
        log.record_outcomes("credit_risk", pd.DataFrame([*rows, rows[0] | bad]))
    assert log.strays("credit_risk").empty
    with pytest.raises(log.OutcomeError, match="lack value"):
        log.record_outcomes("credit_risk", pd.DataFrame({"request_id": ["r"]}))


def test_joined_knows_nothing_that_came_later(operations, monkeypatch):
    clock = pd.Timestamp("2026-01-01", tz="UTC")
    monkeypatch.setattr(log, "now", lambda: clock)
    with PredictionLog() as writer:
        for day in range(10):
            clock = pd.Timestamp("2026-01-01", tz="UTC") + pd.Timedelta(days=day)
            writer.write([answer(day)])
            if day >= 3:
                log.record_outcomes("credit_risk", outcome(str(day - 3), 1.0, happened_at="2026-01-01"))
        clock = pd.Timestamp("2025-12-01", tz="UTC")  # the clock of a machine can jump backwards
        writer.write([answer("backwards")])
    for day in range(10):
        rows = log.joined("credit_risk", f"2026-01-{day + 1:02d}T12:00")
        assert rows["request_id"].tolist() == [str(number) for number in range(day + 1)] + ["backwards"]
        assert rows["value"].notna().sum() == max(0, day - 2) and (rows["received_at"].dropna() <= f"2026-01-{day + 1:02d}T12:00").all()


def test_erasure_takes_the_person_and_leaves_the_totals(operations):
    with PredictionLog() as writer:
        for number in range(20):
            writer.write([answer(number, subject=f"person {number % 4}", action="approve" if number % 3 else "refuse", input='{"salary": 5000}')])
        writer.write([answer(0, subject="person 0", role="shadow", version=2)])
    log.record_outcomes("credit_risk", pd.concat([outcome(str(number), number) for number in range(10)] + [outcome("0", 77)]))
    before = log.volume("credit_risk")
    assert log.erase("credit_risk", "person 0", "a request by letter", actor="eli", role="data_engineer") == 6
    pd.testing.assert_frame_equal(log.volume("credit_risk"), before)
    assert "person 0" not in set(logged()["subject"]) and len(logged()) == 15 and logged(sent=False).empty
    assert log.strays("credit_risk").empty and log.contradicted("credit_risk").empty, "their outcomes went with them"
    entry = audit.entries(event="erased").iloc[-1]
    assert entry["payload"] == {"because": "a request by letter", "answers": 6} and "person 0" not in str(entry.to_dict())
    assert log.erase("credit_risk", "person 0", "once more", actor="eli", role="data_engineer") == 0
    if operations.dialect.name == "sqlite":
        files = b"".join(file.read_bytes() for file in core.workspace().glob("operations.db*"))
        assert b"person 0" not in files and b"person 1" in files


def test_retention_erases_what_is_old(operations, monkeypatch):
    moment = pd.Timestamp("2026-01-01", tz="UTC")
    monkeypatch.setattr(log, "now", lambda: moment)
    with PredictionLog() as writer:
        for number in range(6):
            moment = pd.Timestamp("2026-01-01", tz="UTC") + pd.Timedelta(days=number)
            writer.write([answer(number)])
    before = log.volume("credit_risk")
    assert log.expire("credit_risk", "2026-01-04", "90 days are over", actor="eli", role="data_engineer") == 3
    assert logged()["request_id"].tolist() == ["3", "4", "5"]
    pd.testing.assert_frame_equal(log.volume("credit_risk"), before)


@pytest.mark.parametrize("operations", ["sqlite"], indirect=True)
def test_only_who_may_act_erases(operations):
    with PredictionLog() as writer:
        writer.write([answer("r", subject="ann")])
    with pytest.raises(GovernanceError):
        log.erase("credit_risk", "ann", "no reason", actor="nobody", role="data_engineer")
    assert len(logged()) == 1


def test_the_audit_log_is_whole_with_rivals(operations):
    def write():
        for _ in range(10):
            audit.append("tick", "credit_risk", actor="ana", role="data_scientist")

    rivals = [threading.Thread(target=write) for _ in range(4)]
    [rival.start() for rival in rivals], [rival.join() for rival in rivals]
    assert audit.head()[0] == 40 and audit.verify() == []
    with operations.begin() as connection:
        connection.execute(audit.audit.update().where(audit.audit.c.number == 7).values(actor="eve"))
    assert 7 in [finding.number for finding in audit.verify()]


def test_many_may_begin_an_operations_database_at_once(tmp_path, monkeypatch):
    monkeypatch.delenv("MLOPS_OPS_URL", raising=False)
    wrong, barrier = [], threading.Barrier(8)

    def begin():
        barrier.wait()
        try:
            core.operations_engine()
        except Exception as error:
            wrong.append(error)

    for number in range(30):
        monkeypatch.setenv("MLOPS_WORKSPACE", str(tmp_path / str(number)))
        rivals = [threading.Thread(target=begin) for _ in range(8)]
        [rival.start() for rival in rivals], [rival.join() for rival in rivals]
    assert wrong == []


def test_a_database_that_vanished_is_not_begun_anew(tmp_path, monkeypatch):
    monkeypatch.setenv("MLOPS_WORKSPACE", str(tmp_path))
    core.operations_engine()
    for file in tmp_path.glob("operations.db*"):
        file.unlink()
    with pytest.raises(FileNotFoundError, match="is gone"):
        audit.head()
    assert not list(tmp_path.glob("operations.db*"))


def test_evaluations_and_tables_are_found_again(operations):
    core.log_evaluations(pd.DataFrame({"metric": ["auc"], "value": [0.7]}), "credit_risk/1", "credit_default")
    assert core.read_evaluations(metric="auc")["value"].tolist() == [0.7]
    assert {"predictions_by_time", "predictions_by_subject"} <= {index["name"] for index in sa.inspect(operations).get_indexes("predictions")}
