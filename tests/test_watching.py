"""What counts as seen, how long it took, and what a study leaves out."""

import numpy as np
import pandas as pd
import pytest

from mlops_core import core, watching
from mlops_core.counts import Profile
from mlops_core.drift import scale_factor
from mlops_core.govern import Bounds, Limits
from mlops_core.monitor import judge_refusals

START = pd.Timestamp("2027-01-04")


class Known:
    """A stand-in for the reference of a version of credit, whose windows have 30 days."""
    loaded = type("Loaded", (), {"name": "credit_risk"})


def watched(periods=20, begins=10):
    return watching.Watched(Known, pd.Timedelta(days=7), periods, begins, START, draw=None)


def alarms(*rang):
    return pd.DataFrame(rang, columns=["period", "check"])


def test_an_alarm_that_was_there_just_before_has_not_seen_the_incident():
    assert watching.seen_after(watched(), alarms((9, "drift"), (10, "drift"), (12, "scores"))) == (2.0, "scores")
    assert watching.seen_after(watched(), alarms((3, "drift"), (10, "drift"))) == (0.0, "drift"), "long before is another story"
    never = watching.seen_after(watched(), alarms((9, "drift"), (11, "drift")))
    assert np.isnan(never[0]) and never[1] == ""


def test_no_round_is_held_before_a_window_is_full():
    assert watched().rounds == 16, "four weeks and two days of 20 weeks of seven days are not full"


def test_an_outcome_that_has_not_come_is_not_known():
    rows = pd.DataFrame({"time": [START, START], "value": [1.0, 0.0], "received_at": [START + pd.Timedelta(days=1), START + pd.Timedelta(days=9)]})
    clock = watching.label_clock("credit_risk")
    found = watching._window("credit_risk", rows, START, START + pd.Timedelta(days=1), START + pd.Timedelta(days=5), clock).rows
    assert found["value"].isna().tolist() == [False, True] and not found["matured"].any(), "and nothing is due yet"


@pytest.mark.parametrize(
    ("answered", "refused", "verdict"), [(100, 0, "pass"), (95, 5, "pass"), (80, 20, "breach"), (0, 30, "breach"), (10, 0, "too few")]
)
def test_refusals_ring_beyond_chance(answered, refused, verdict):
    found = judge_refusals(answered, pd.Series({"pay_0": refused}), Limits(champion_margin=1, p99_ms=1, size_bytes=1))
    assert found["verdict"] == verdict and (not refused or "pay_0" in found["why"])


@pytest.mark.parametrize("factor", [1000, 0.001, 30, 1 / 30])
def test_another_unit_is_told_from_behaviour_by_its_newest_values(factor):
    random = np.random.default_rng(0)
    money = pd.Series(random.lognormal(8, 1.2, 6000))
    known = Profile.fit(money.to_frame("money")).columns["money"]
    assert abs(scale_factor(known, pd.Series(random.permutation(money)[:100] * factor)) / factor - 1) < 0.5
    for other in (1.0, 1.5, 0.5, 2.5):
        assert scale_factor(known, pd.Series(random.permutation(money)[:100] * other)) is None
    assert scale_factor(known, money.head(10)) is None and scale_factor(known, pd.Series([None] * 50)) is None


def test_how_far_a_value_lies_beyond_its_bounds():
    assert Bounds(at_most=0.03).beyond(0.05) == pytest.approx(0.02) and Bounds(at_most=0.03).beyond(0.01) < 0
    assert Bounds(at_least=0.7, at_most=0.9).beyond(0.6) == pytest.approx(0.1) and Bounds().beyond(5) == float("-inf")


def test_the_readme_tells_what_the_last_study_found():
    table, readme = pd.read_csv(core.home() / "tests" / "study_watching.csv"), (core.home() / "README.md").read_text()
    words = {"credit_risk": "credit", "recommendation": "recommendation", "consumption_forecast": "forecast"}
    for case, rows in table.set_index("incident").groupby("case"):
        assert rows.loc["none", "replays"] == 60 and f"{100 * rows.loc['none', 'seen']:.1f} % ({words[case]})" in readme
    world = table[table["incident"].isin(["popularity_shock", "catalogue_change", "heat_wave", "lockdown"])]
    for case, seen in world.groupby("case", sort=False)["seen"]:
        assert f"{' and '.join(f'{100 * share:.0f}' for share in sorted(seen))} % ({words[case]}" in readme
    assert set(table["case"]) == set(words)
