"""Two versions on the same rows: who would have been treated differently, and who was right among those of whom that can be known."""

import json

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from mlops_core.core import generator
from mlops_core.log import Prediction, PredictionLog, record_outcomes
from mlops_core.shadow import ShadowError, compare_outcomes, mature, score_shift, side_by_side, treated_differently


def answer(number, version, role, p, group="a", time="2026-06-01", action=True, **more):
    said = {"action": ("yes" if p < 0.5 else "no") if action else "", "output": json.dumps({"p": p}), "input": json.dumps({"group": group})}
    when = pd.Timestamp(time).to_pydatetime()
    return Prediction("credit_risk", f"r{number}", version, role, subject=f"s{number}", time=when, **(said | more))


def write(*answers):
    with PredictionLog() as writer:
        for one in answers:
            writer.write([one])


@pytest.fixture
def workspace(tmp_path, monkeypatch):
    monkeypatch.setenv("MLOPS_WORKSPACE", str(tmp_path))
    monkeypatch.delenv("MLOPS_OPS_URL", raising=False)


def frame(n=400, seed=0):
    "Rows as `side_by_side` gives them; the challenger knows more than the champion."
    random = generator(seed, "rows")
    risk = random.random(n) ** 3
    value = (random.random(n) < risk).astype(float)
    ours, theirs = risk, np.clip(0.5 * risk + 0.25, 0, 1)
    said = {f"output_{who}": [json.dumps({"p": float(p)}) for p in scores] for who, scores in (("champion", theirs), ("challenger", ours))}
    acted = {f"action_{who}": np.where(scores < 0.4, "yes", "no") for who, scores in (("champion", theirs), ("challenger", ours))}
    time = pd.Timestamp("2026-06-01") + pd.to_timedelta(np.arange(n) % 30, unit="D")
    who = {"request_id": [f"r{i}" for i in range(n)], "subject": [f"s{i}" for i in range(n)]}
    return pd.DataFrame({**who, "time": time, "input": '{"group": "a"}', **said, **acted, "value": value})


def brier(rows):
    return ((rows["output"] - rows["value"]) ** 2).mean()


def test_pairs_are_rows_that_both_answered_whichever_was_sent(operations):
    write(answer(1, 1, "champion", 0.2), answer(1, 2, "shadow", 0.7), answer(2, 2, "challenger", 0.1), answer(2, 1, "shadow", 0.3),
          answer(3, 1, "champion", 0.9), answer(4, 1, "champion", 0.9), answer(4, 2, "shadow", 0.9, output="{}"),
          answer(5, 1, "champion", 0.1), answer(5, 3, "shadow", 0.2))  # fmt: skip
    record_outcomes("credit_risk", pd.DataFrame({"request_id": ["r1"], "value": [1.0]}))
    both = side_by_side("credit_risk", 1, 2).set_index("request_id")
    assert set(both.index) == {"r1", "r2"} and both.loc["r1", "value"] == 1 and np.isnan(both.loc["r2", "value"])
    assert json.loads(both.loc["r1", "output_challenger"]) == {"p": 0.7} and json.loads(both.loc["r2", "output_champion"]) == {"p": 0.3}
    assert (both.loc["r1", ["action_champion", "action_challenger"]] == ["yes", "no"]).all()
    with pytest.raises(ShadowError, match="versions 1 and 7"):
        side_by_side("credit_risk", 1, 7)


def test_an_outcome_that_came_with_the_challengers_answer_is_there(workspace):
    write(answer(1, 2, "challenger", 0.2), answer(1, 1, "shadow", 0.7))
    record_outcomes("credit_risk", pd.DataFrame({"request_id": ["r1"], "value": [0.0]}))
    assert side_by_side("credit_risk", 1, 2)["value"].tolist() == [0.0]


def test_the_shift_is_measured_row_by_row():
    both = frame()
    theirs, ours = (both[f"output_{who}"].map(lambda text: json.loads(text)["p"]) for who in ("champion", "challenger"))
    found = score_shift(both, "p")
    test = stats.ttest_rel(ours, theirs).confidence_interval()
    assert (found["low"], found["high"]) == pytest.approx((test.low, test.high))
    assert found["distance"] == stats.ks_2samp(ours, theirs).statistic and found["rank_correlation"] == pytest.approx(1)
    assert found["mean_change"] == pytest.approx((ours - theirs).abs().mean())


def test_directions_and_groups_add_up(workspace):
    rows = [(0.2, 0.7, "a"), (0.2, 0.3, "a"), (0.8, 0.1, "b"), (0.9, 0.1, "b"), (0.1, 0.1, "b")]
    for number, (theirs, ours, group) in enumerate(rows):
        write(answer(number, 1, "champion", theirs, group), answer(number, 2, "shadow", ours, group))
    table = treated_differently(side_by_side("credit_risk", 1, 2), "group").set_index("group")
    assert table["n"].to_dict() == {"all": 5, "group a": 2, "group b": 3} and table.loc["all", "share"] == pytest.approx(0.6)
    assert table.loc["group a", ["yes > no", "no > yes"]].tolist() == [0.5, 0] and table.loc["group b", "no > yes"] == pytest.approx(2 / 3)
    assert (table["low"] < table["share"]).all() and (table["share"] < table["high"]).all()


def test_two_that_agree_differ_nowhere():
    both = frame().assign(action_champion="yes", action_challenger="yes")
    assert treated_differently(both).loc[0, ["share", "low"]].tolist() == pytest.approx([0, 0])
    with pytest.raises(ShadowError, match="no action was logged"):
        treated_differently(both.assign(action_champion=""))


def test_early_outcomes_mislead_and_mature_ones_do_not():
    both = frame(3000)
    known_at = both["time"] + pd.to_timedelta(np.where(both["value"] == 1, 5, 90), unit="D")
    cut = pd.Timestamp("2026-09-14")
    so_far = both.assign(value=both["value"].where(known_at <= cut))
    truth = compare_outcomes(both, "p", brier, "90 days", "2027-01-01").iloc[0]
    found = compare_outcomes(so_far, "p", brier, "90 days", cut).iloc[0]
    everything_so_far = compare_outcomes(so_far, "p", brier, "0 days", cut).iloc[0]
    assert found["low"] < truth["value"] < found["high"] < 0 and found["mature"] == 1600 and found["unknown"] == 0
    assert abs(everything_so_far["champion"] - truth["champion"]) > 4 * abs(found["champion"] - truth["champion"])


def test_what_is_mature_and_still_unknown_is_counted():
    both = frame()
    found = compare_outcomes(both.assign(value=both["value"].where(both.index % 4 > 0)), "p", brier, "90 days", "2027-01-01").iloc[0]
    assert (found["mature"], found["unknown"], found["n"]) == (400, 100, 300)


def test_the_day_on_which_a_row_is_mature_counts():
    both = frame(2).assign(time=pd.to_datetime(["2026-06-01 10:00", "2026-06-01 10:01"]))
    assert len(mature(both, "90 days", "2026-08-30 10:00")) == 1
    assert len(mature(both, "90 days", pd.Timestamp("2026-08-30 12:01", tz="Europe/Paris"))) == 2


def test_too_few_outcomes_are_no_comparison():
    with pytest.raises(ShadowError, match="0 rows are mature.*400 of 400 are younger than 90 days: wait"):
        compare_outcomes(frame(), "p", brier, "90 days", "2026-07-01")
