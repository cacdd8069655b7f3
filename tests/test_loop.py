"""A year of production under three arms: what the loop does, who may say so, and that its story stands in the stores."""

import pandas as pd
import pytest

from mlops_core import audit, core, lender, loop, rehearsal
from mlops_core.alerts import alert_history
from mlops_core.data import load_dataset
from mlops_core.govern import load_use_case
from mlops_core.log import joined
from mlops_core.traffic import rollout_history


@pytest.fixture(scope="module")
def dataset():
    return load_dataset("credit_default")


def kept(table):
    """All that a story is read from, while its workspace is there."""
    return {"table": table, "log": audit.entries("credit_risk"), "whole": audit.verify(), "rows": joined("credit_risk"),
            "alerts": alert_history("credit_risk"), "rollouts": rollout_history("credit_risk")}  # fmt: skip


@pytest.fixture(scope="module")
def unit_error(dataset):
    with rehearsal.rehearsal():
        yield kept(loop.replay(lender.credit_production(dataset, "unit_error", begins=4, weeks=11), progress=False))


@pytest.fixture(scope="module")
def slip(dataset):
    """A year that begins late: the live version is due at once, and its successor has a tenth of the cut-off."""
    with rehearsal.rehearsal():
        with pytest.MonkeyPatch.context() as patch:
            hasty = load_use_case("credit_risk").model_copy(update={"retrain_every_days": 7, "retrain_rows": 1, "label_delay_days": 3})
            for module in ("loop", "lender", "health", "maturity"):
                patch.setattr(f"mlops_core.{module}.load_use_case", lambda name: hasty)
            found = kept(loop.replay(lender.credit_production(dataset, "bad_successor", begins=0, weeks=5), progress=False))
        yield found


def test_a_broken_feed_is_met_by_falling_back_and_nothing_is_learned(unit_error):
    table, log = unit_error["table"], unit_error["log"]
    assert table["live"].tolist() == [2] * 5 + [1] * 3 + [2] * 3 and table["wrong"].tolist() == [False] * 4 + [True] * 3 + [False] * 4
    assert log["event"].tolist().count("packaged") == 2, "the two of the beginning, and no other"
    back = [row.payload for row in log[log["event"] == "champion"].itertuples() if "instead_of" in row.payload]
    assert [one["instead_of"] for one in back] == [2, 1] and "other unit" in back[0]["because"] and "mended" in back[1]["because"]
    said = next(row for row in log[log["event"] == "diagnosed"].itertuples())
    assert said.payload["action"] == "fallback" and said.payload["without_a_person"] and said.actor == "loop"
    assert "bill_amt2" in said.payload["columns"]


def test_requests_are_in_the_log_under_the_played_time_and_outcomes_come_late(unit_error):
    rows, table = unit_error["rows"], unit_error["table"]
    times = pd.to_datetime(rows["time"])
    assert len(rows) == table["n"].sum() and times.between(table["as_of"].iloc[0] - pd.Timedelta(days=7), table["as_of"].iloc[-1]).all()
    assert (times.diff().dropna() >= pd.Timedelta(0)).all() and core.now() > table["as_of"].iloc[-1].tz_localize("UTC") - pd.Timedelta(days=400)
    late = pd.to_datetime(rows["received_at"]) - times
    assert rows["value"].notna().any() and (late.dropna() >= pd.Timedelta(days=60)).all() and rows["value"].isna().any()


def test_the_story_is_read_from_the_stores_and_the_log_is_whole(unit_error):
    table, log = unit_error["table"], unit_error["log"]
    assert unit_error["whole"] == [] and len(log[log["event"] == "monitored"]) == len(table) == 11
    acted = {payload["period"]: payload["done"] for payload in log.loc[log["event"] == "acted", "payload"]}
    assert acted == table.loc[table["done"] != "", "done"].to_dict()
    assert "drift" in table["alerts"].iloc[4] and "drift" not in table["alerts"].iloc[3]
    assert unit_error["alerts"]["opened_at"].min() == table["as_of"].iloc[4]


def test_a_worse_successor_passes_the_gates_and_is_rolled_back_before_anybody_meets_it(slip):
    table, (rolling, *_) = slip["table"], slip["rollouts"]
    assert rolling.state == "rolled_back" and rolling.step == 0 and "disagreement" in rolling.reason
    assert set(table["live"]) == {2} and set(slip["rows"]["version"]) == {2}, "the shadow's answers are not sent"
    events = slip["log"].query("subject == 'credit_risk/3'")["event"].tolist()
    assert events.index("approved") < events.index("challenger") < events.index("rolled_back") and "champion" not in events


def test_a_successor_may_differ_only_as_far_as_somebody_who_may_says(slip):
    begun = slip["log"].loc[slip["log"]["event"] == "challenger", "payload"]
    assert len(begun) and not any("differs" in payload for payload in begun), "it was due, and not meant to"


def test_an_unknown_incident_is_refused_with_those_there_are(dataset):
    with pytest.raises(ValueError, match="there is no incident flood; there are: none, covariate_shift"):
        lender.credit_production(dataset, "flood")


def test_the_same_replay_again_comes_out_the_same(unit_error, dataset):
    with rehearsal.rehearsal():
        again = loop.replay(lender.credit_production(dataset, "unit_error", begins=4, weeks=11), progress=False)
    pd.testing.assert_frame_equal(again, unit_error["table"])
    assert (unit_error["rows"]["latency_ms"] == 0).all(), "how fast a machine is changes nothing"


def test_how_often_to_train_counts_the_price_of_each_training():
    ages = pd.DataFrame([{"trained": trained, "week": week, "age": week - trained, "cost": 10.0 + week - trained, "n": 1}
                         for trained in (0, 2, 4) for week in range(trained, 6)])  # fmt: skip
    curve = loop.retraining_curve(ages, 3).set_index("every")
    assert curve["trainings"].to_dict() == {2: 2, 4: 1, 6: 0} and curve["cost"].to_dict() == {2: 63.0, 4: 67.0, 6: 75.0}
    assert curve["with the price"].to_dict() == {2: 69.0, 4: 70.0, 6: 75.0}
