"""A metric is read once its outcomes are due and there, and is an error before."""

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import f1_score

from mlops_core import log, maturity
from mlops_core.govern import GovernanceError
from mlops_core.log import Prediction, PredictionLog
from mlops_core.maturity import Immature, LabelClock

START, DAY = pd.Timestamp("2027-01-01"), pd.Timedelta(days=1)
CLOCK = LabelClock(10 * DAY, 0.9)


def write(times, first=0):
    with PredictionLog() as writer:
        made = [Prediction("credit_risk", f"r-{first + n}", 1, "champion", time=pd.Timestamp(t).to_pydatetime()) for n, t in enumerate(times)]
        assert all(one.result() for one in [writer.submit([row]) for row in made])


def report(monkeypatch, at, values):
    "Hand in `values` by number of the request, at the time `at`."
    monkeypatch.setattr(log, "now", lambda: pd.Timestamp(at, tz="UTC"))
    log.record_outcomes("credit_risk", pd.DataFrame({"request_id": [f"r-{n}" for n in values], "value": list(values.values())}))


def look(as_of, start=START, days=10, **more):
    return maturity.window("credit_risk", start, start + days * DAY, as_of, CLOCK, **more)


def test_an_answer_matures_when_its_outcome_is_due_and_there(operations, monkeypatch):
    write([START + n * DAY for n in range(10)])
    report(monkeypatch, "2027-01-04", {0: 1.0, 1: 1.0})  # before they are due
    report(monkeypatch, "2027-01-20", {n: 0.0 for n in range(2, 9)})
    early, later = look("2027-01-05"), look("2027-01-21")
    assert (early.known, early.due, early.matured) == (2, 0, 0), "bad news that came early is no sample of the news"
    assert (later.known, later.due, later.matured, later.share) == (9, 10, 9, 0.9)
    assert maturity.realised(later, lambda rows: {"n": len(rows)}) == {"n": 9}
    with pytest.raises(Immature, match="0.0% of 5 answers .* 90% are needed; the last is due 2027-01-15") as refused:
        maturity.realised(early, len)
    assert refused.value.window is early


def test_a_window_holds_its_own_answers_as_they_were_known(operations, monkeypatch):
    write([START - pd.Timedelta(seconds=1), START, START + 10 * DAY - pd.Timedelta(seconds=1), START + 10 * DAY])
    report(monkeypatch, "2027-03-01", {n: 1.0 for n in range(4)})
    assert look("2027-03-02").rows["request_id"].tolist() == ["r-1", "r-2"] and look("2027-03-02").share == 1
    assert look("2027-02-28").share == 0 and "2 outcomes are overdue" in maturity.why(look("2027-02-28"))
    assert len(log.joined("credit_risk", since=START)) == 3 and len(log.joined("credit_risk", before=START)) == 1


@pytest.mark.parametrize("operations", ["sqlite"], indirect=True)
def test_with_most_bad_news_late_the_naive_score_is_far_off_and_ours_is_withheld(operations, monkeypatch):
    random = np.random.default_rng(0)
    truth = (random.random(1500) < 0.25).astype(float)
    said = (0.12 + 0.7 * truth + random.normal(0, 0.2, 1500)) > 0.5
    late = (truth == 1) & (random.random(1500) < 0.7)
    naive, true = f1_score(truth[~late], said[~late]), f1_score(truth, said)
    assert true - naive > 0.05
    write([START] * 1500)
    report(monkeypatch, "2027-01-15", {n: truth[n] for n in np.flatnonzero(~late)})

    def measure(rows):
        return {"f1": f1_score(rows["value"], said[rows["request_id"].str[2:].astype(int)])}

    with pytest.raises(Immature, match="outcomes are overdue"):
        maturity.realised(look("2027-01-16"), measure)
    report(monkeypatch, "2027-02-15", {n: 1.0 for n in np.flatnonzero(late)})
    assert maturity.realised(look("2027-02-16"), measure)["f1"] == pytest.approx(true, abs=1e-12)


@pytest.mark.parametrize("operations", ["sqlite"], indirect=True)
def test_what_cannot_be_a_window_is_refused(operations, monkeypatch):
    with pytest.raises(ValueError, match="runs forward"):
        look("2027-01-05", days=0)
    empty = look("2027-01-05")
    assert np.isnan(empty.share)
    with pytest.raises(Immature, match="no answers of credit_risk from 2027-01-01 to 2027-01-11"):
        maturity.realised(empty, len)
    case = maturity.load_use_case("credit_risk").model_copy(update={"label_delay_days": None})
    monkeypatch.setattr(maturity, "load_use_case", lambda name: case)
    with pytest.raises(GovernanceError, match="credit_risk.toml does not say when an outcome is due"):
        maturity.label_clock("credit_risk")
