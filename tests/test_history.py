"""Readings come late, twice and corrected, and lists are kept until their hour: on SQLite and on PostgreSQL."""

import threading
import types

import numpy as np
import pandas as pd
import pytest
import sqlalchemy as sa

from mlops_core import audit, core, history, lists

HOURS = pd.date_range("2026-03-01", periods=48, freq="h", tz="Australia/Brisbane")
FRAME = pd.DataFrame({"time": HOURS, "value": np.arange(48.0), "temperature": np.where(np.arange(48) < 40, 20.0, np.nan)})
WHO = {"actor": "cho", "role": "devops"}


def test_what_is_reported_is_read_back_in_utc_and_empty_cells_say_nothing(operations):
    assert history.append_readings("grid", FRAME) == history.Report(new=88)
    found, received = history.read_history("grid", HOURS[10], HOURS[42])
    assert found.index[0] == HOURS[10].tz_convert("UTC") and len(found) == 32 and found["value"].tolist() == list(range(10, 42))
    assert found["temperature"].notna().sum() == 30 and received["value"].notna().all()
    assert history.read_history("another", HOURS[0], HOURS[-1])[0].empty


def test_what_comes_again_is_counted_and_what_comes_other_corrects(operations, monkeypatch):
    history.append_readings("grid", FRAME)
    later = core.now() + pd.Timedelta("2h")
    monkeypatch.setattr(history, "now", lambda: later)
    changed = FRAME.assign(value=FRAME["value"].where(FRAME.index != 3, 99.0)).head(5)
    assert history.append_readings("grid", changed) == history.Report(repeated=9, corrected=1)
    found, received = history.read_history("grid", HOURS[0], HOURS[6])
    assert found["value"].tolist() == [0, 1, 2, 99, 4, 5]
    assert (received["value"] > core.now()).tolist() == [True] * 5 + [False], "what was confirmed is fresh, too"


@pytest.mark.parametrize("wrong, why", [
    (FRAME.drop(columns="time"), "they need time"), (FRAME[["time"]], "at least one quantity"),
    (FRAME.assign(time=[*FRAME["time"][:-1].astype(str), "soon"]), r"row 47 \('soon'\)"),
    (FRAME.assign(value=np.inf), "value at .* is no finite number"), (FRAME.assign(value="much"), "value at .* is no finite number"),
])
def test_what_cannot_be_read_is_refused_whole(operations, wrong, why):
    with pytest.raises(history.HistoryError, match=why):
        history.append_readings("grid", wrong)
    assert history.read_history("grid", HOURS[0], HOURS[-1])[0].empty


def test_many_meters_at_once_lose_and_double_nothing(operations):
    counts, begin = [], threading.Barrier(6)

    def report():
        begin.wait()
        counts.append(history.append_readings("grid", FRAME))

    threads = [threading.Thread(target=report) for _ in range(6)]
    [thread.start() for thread in threads]
    [thread.join() for thread in threads]
    assert sum(one.new for one in counts) == 88 and sum(one.repeated for one in counts) == 5 * 88
    assert len(history.read_history("grid", HOURS[0], HOURS[-1] + pd.Timedelta("1h"))[0]) == 48


def test_many_that_begin_a_database_at_once_do_not_trip(operations):
    with operations.begin() as connection:
        for table in reversed(core.tables.sorted_tables):
            connection.execute(sa.schema.DropTable(table, if_exists=True))
    for _ in range(5):
        found, begin = [], threading.Barrier(6)

        def prepare(found=found, begin=begin):
            begin.wait()
            try:
                found.append(core.operations_engine())
            except sa.exc.DBAPIError as error:
                found.append(error)

        core._PREPARED.clear()
        threads = [threading.Thread(target=prepare) for _ in range(6)]
        [thread.start() for thread in threads]
        [thread.join() for thread in threads]
        assert all(isinstance(one, sa.Engine) for one in found), found
        with operations.begin() as connection:
            connection.execute(sa.schema.DropTable(history.readings))


def test_lists_are_replaced_whole_and_end_with_their_hour(operations, monkeypatch):
    def answer(model, rows):
        if model == "broken" and len(rows) < 3:
            raise ArithmeticError
        return pd.DataFrame({"row": range(len(rows)), "fallback": "", "item": rows["user"] + model})

    def version(model):
        serving = types.SimpleNamespace(subject="user", answer=answer, everyone=lambda model: pd.DataFrame({"user": list("abcdefgh")}))
        return types.SimpleNamespace(name="toy", version=1, subject="toy/1", model=model, serving=serving)

    monkeypatch.setattr(lists, "load_model", lambda name: version("1"))
    assert lists.compute_lists("toy", hours=1, part=3, **WHO) == 8
    monkeypatch.setattr(lists, "load_model", lambda name: version("broken"))
    with pytest.raises(ArithmeticError):
        lists.compute_lists("toy", part=3, **WHO)
    found = lists.find_lists("toy", ["a", "h", "z"])
    assert found == {"a": [{"item": "a1"}], "h": [{"item": "h1"}], "z": "no stored list"}, "a night that failed leaves those of the night before"
    assert len(audit.entries(event="lists")) == 1
    monkeypatch.setattr(lists, "now", lambda: core.now() + pd.Timedelta("61min"))
    assert lists.find_lists("toy", ["a"])["a"].startswith("stored list expired at 20")
