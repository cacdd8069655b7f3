"""One bad row spoils no other request, a thread survives whatever happens, and there is an end to waiting."""

import asyncio
import types

import numpy as np
import pandas as pd
import pytest

from mlops_core import log, scoring, traffic
from mlops_core.contract import Column
from mlops_core.schema import row_type

pytestmark = pytest.mark.parametrize("operations", ["sqlite"], indirect=True)
ROW = row_type({"x": Column("number")})
ASK = scoring.request_type(ROW, {"x": 1.0}, scoring.RequestLimits())


def picky(frame):
    if (frame["x"] < 0).any():
        raise ArithmeticError
    return pd.DataFrame({"half": frame["x"] / 2})


def live(version=1, answer=picky):
    loaded = types.SimpleNamespace(name="toy", version=version, answer=answer, decide=None, reasons=None, serving=None)
    return scoring.Live(loaded, ASK, {}, {"x": np.dtype("float64")}, np.array([0.0]), np.array([10.0]))


def ask_all(scorer, numbers, route=None):
    async def together():
        one = route or scoring.Route(live())
        asked = [scorer.answer(one, ASK(rows=[{"x": number}]), f"r{place}") for place, number in enumerate(numbers)]
        return await asyncio.gather(*asked, return_exceptions=True)

    return asyncio.run(together())


def test_only_the_request_that_the_model_cannot_answer_is_refused(operations):
    with log.PredictionLog() as writer:
        scorer = scoring.Scorer(writer, None, 100)
        found = ask_all(scorer, [1.0, 2.0, -1.0, 20.0])
        scorer.close()
    assert [isinstance(one, scoring.Unanswerable) for one in found] == [False, False, True, False] and "ArithmeticError" in str(found[2])
    rows = log.joined("toy").set_index("request_id")
    assert rows["output"].to_dict() == {"r0": '{"half": 0.5}', "r1": '{"half": 1.0}', "r3": '{"half": 10.0}'}
    assert rows["violations"].to_dict() == {"r0": "[]", "r1": "[]", "r3": '["x outside of training"]'}


def test_who_would_wait_too_long_is_told_so(operations):
    with log.PredictionLog() as writer:
        scorer = scoring.Scorer(writer, None, 0)
        found = ask_all(scorer, [1.0])
        scorer.close()
    assert isinstance(found[0], scoring.Overloaded) and log.joined("toy").empty


def test_an_error_that_says_nothing_does_not_end_the_log(operations, monkeypatch):
    with log.PredictionLog() as writer:
        with monkeypatch.context() as patch:
            patch.setattr(log, "_write", lambda *_: (_ for _ in ()).throw(TimeoutError()))
            with pytest.raises(log.LogUnavailable, match="TimeoutError"):
                writer.submit([log.Prediction("toy", "r", 1, "champion")]).result(timeout=10)
        assert writer.submit([log.Prediction("toy", "r", 1, "champion")]).result(timeout=10)


def broken(frame):
    if (frame["x"] > 5).any():
        raise KeyError("a column")
    return pd.DataFrame({"half": frame["x"] / 2})


def in_rollout(step):
    running = traffic.Rollout(1, "toy", 1, 2, (0.5, 1.0), step, "running", 1, None, None, "")
    return scoring.Route(live(), live(2, broken), running)


def test_where_the_challenger_fails_the_champion_answers_and_the_log_says_so(operations):
    with log.PredictionLog() as writer:
        scorer = scoring.Scorer(writer, None, 100)
        found = ask_all(scorer, [1.0, 7.0, 2.0], in_rollout(2))
        scorer.close()
    sent = [(rows[0].version, rows[0].role, rows[0].fallback, rows[0].output) for rows in found]
    failed = (1, "champion", "challenger 2 failed: KeyError", '{"half": 3.5}')
    assert sent == [(2, "challenger", "", '{"half": 0.5}'), failed, (2, "challenger", "", '{"half": 1.0}')]


def test_a_share_is_kept_for_each_subject_of_a_request_with_many_rows(operations):
    rows, subjects = [{"x": 1.0}] * 400, [f"s{number % 100}" for number in range(400)]
    with log.PredictionLog() as writer:
        scorer, route = scoring.Scorer(writer, None, 100), in_rollout(1)
        found = asyncio.run(scorer.answer(route, ASK(rows=rows, subjects=subjects), "many"))
        scorer.close()
    met = {}
    for row in found:
        met.setdefault(row.subject, set()).add(row.version)
    assert all(len(versions) == 1 for versions in met.values()) and 30 < sum(versions == {2} for versions in met.values()) < 70
    assert [row.position for row in found] == list(range(400)) and [row.subject for row in found] == subjects
    assert {name for name, versions in met.items() if versions == {2}} == {name for name in met if traffic.place(name, "toy/2/1") < 0.5}
