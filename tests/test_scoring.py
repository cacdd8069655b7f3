"""One bad row spoils no other request, a thread survives whatever happens, and there is an end to waiting."""

import asyncio
import types

import numpy as np
import pandas as pd
import pytest

from mlops_core import log, scoring
from mlops_core.contract import Column
from mlops_core.schema import row_type

pytestmark = pytest.mark.parametrize("operations", ["sqlite"], indirect=True)
ROW = row_type({"x": Column("number")})
ASK = scoring.request_type(ROW, {"x": 1.0}, scoring.RequestLimits())


def picky(frame):
    if (frame["x"] < 0).any():
        raise ArithmeticError
    return pd.DataFrame({"half": frame["x"] / 2})


def live():
    loaded = types.SimpleNamespace(name="toy", version=1, answer=picky, decide=None, reasons=None)
    return scoring.Live(loaded, ASK, {}, {"x": np.dtype("float64")}, np.array([0.0]), np.array([10.0]))


def ask_all(scorer, numbers):
    async def together():
        one = live()
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
