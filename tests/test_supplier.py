"The supplier's production: what an incident does to truth and readings, what is learned from them, and what a replay does about it."
import numpy as np
import pandas as pd
import pytest

from mlops_core import supplier
from mlops_core.data import load_dataset, reference_split
from mlops_core.history import append_readings, habits, reading_faults
from mlops_core.loop import replay
from mlops_core.rehearsal import rehearsal
from mlops_core.series import prepare, requests
from mlops_core.watching import detection_rates, watch


@pytest.fixture(scope="module")
def source():
    return load_dataset("electricity")


@pytest.fixture(scope="module")
def parts(source):
    series, task = prepare(source.table, source.roles)
    cut = len(reference_split(source)[0])
    return series.iloc[:cut], series.iloc[cut:], task


def test_a_missing_unit_costs_more_and_is_bought_against():
    said = pd.DataFrame({"forecast": [4.0], "low": [3.6], "high": [4.4]})
    assert supplier.purchase(said, 1)[0] == 4.0 and supplier.purchase(said, 1 / 9)[0] == pytest.approx(3.6)
    assert supplier.imbalance_cost([3.0, 5.0], [4.0, 4.0], 4.0, 3.0).tolist() == [75.0, 25.0]
    assert supplier.purchase(said.assign(low=np.nan, high=np.nan))[0] == 4.0


@pytest.mark.parametrize("name, moves_truth", [("lockdown", True), ("heat_wave", True), ("meter_fault", False), ("feed_down", False)])
def test_faults_change_what_is_told_and_only_the_world_changes_truth(parts, name, moves_truth):
    known, later, task = parts
    one = supplier.SUPPLIER_INCIDENTS[name]
    truth, told = supplier.befall_series(one, one.size, later.head(96), task, supplier.response(known, task))
    assert truth.equals(later.head(96)) != moves_truth and told.equals(truth) == moves_truth
    nothing, same = supplier.befall_series(one, 0.0, later.head(96), task, supplier.response(known, task))
    assert np.allclose(nothing, later.head(96)) and np.allclose(same, nothing)


def test_meters_are_judged_by_their_habits_and_a_fall_of_demand_is_no_fault(parts):
    known, later, task = parts
    both = pd.concat([known.tail(35 * 48), later]).tz_convert("UTC")
    usual, day = habits(known), (later.index[0] + pd.Timedelta("20D"), later.index[0] + pd.Timedelta("21D"))
    assert reading_faults(usual, both, *day).empty and usual["workday"].run == 0

    def told(change):
        frame = both.copy()
        change(frame)
        return dict(reading_faults(usual, frame, *day)[["column", "verdict"]].to_numpy())

    inside = (both.index >= day[0]) & (both.index < day[1])
    assert told(lambda frame: frame.__setitem__("value", frame["value"].mask(inside, 5.0))) == {"value": "became constant"}
    assert told(lambda frame: frame.__setitem__("value", frame["value"].mask(inside, 0.0)))["value"] in ("became constant", "implausible")
    assert told(lambda frame: frame.__setitem__("temperature", frame["temperature"].mask(inside))) == {"temperature": "all missing"}
    assert told(lambda frame: frame.__setitem__("temperature", (1.8 * frame["temperature"] + 32).where(inside, frame["temperature"]))) == {
        "temperature": "implausible"}
    assert told(lambda frame: frame.__setitem__("value", frame["value"].where(both.index < day[0], 0.88 * frame["value"]))) == {}


def test_what_was_broken_is_not_learned(parts, operations):
    known, later, task = parts
    told = later.head(3 * 48).assign(value=99.0)
    append_readings("toy", told.rename_axis("time").reset_index())
    as_of, first = later.index[3 * 48].tz_convert("UTC"), later.index[0].tz_convert("UTC").tz_localize(None)
    assert (supplier.known_series(known, "toy", task, as_of, [])["value"].tail(3 * 48) == 99).all()
    for end in (None, first + pd.Timedelta("3D")):
        learned = supplier.known_series(known, "toy", task, as_of, [(first, end)])
        assert len(learned) == len(known) + 3 * 48 and learned["value"].max() < 10 and learned.notna().all(axis=None)


def test_a_corrected_level_follows_a_fall_at_once_and_knows_nothing_of_the_future(parts):
    known, later, task = parts
    class Flat:
        def fit(self, X, y):
            return self

        def get_params(self, deep=True):
            return {}

        def predict(self, request):
            length = task.window - 7 * 48 + 48
            ahead = np.arange(len(request)) % length >= length - 48
            return request.loc[ahead, ["origin", "time"]].reset_index(drop=True).assign(forecast=5.0)

    both = pd.concat([known.tail(28 * 48), later.head(48)]).assign(value=4.0)
    asked = requests(both, task, [later.index[0]])
    said = supplier.LevelCorrected(task, Flat()).fit(None, None)
    said.forecaster_ = Flat()
    assert np.allclose(said.predict(asked)["forecast"], 4.0)
    asked.loc[asked.index[-48:], "value"] = 100.0
    assert np.allclose(said.predict(asked)["forecast"], 4.0)


def test_a_series_too_short_is_told_before_anything_is_played(source):
    from dataclasses import replace

    short = replace(source, tables={"demand": source.table.head(48 * 60)}, split={})
    assert "days, and" in supplier.why_not_played(short) and supplier.why_not_played(source) == ""
    with pytest.raises(ValueError, match="there is no incident flood; there are: none, heat_wave"):
        supplier.supplier_production(source, "flood")


def test_a_fault_of_meters_is_held_and_mended_and_a_pool_sees_it(source):
    with rehearsal():
        played = replay(supplier.supplier_production(source, "meter_fault", begins=3, periods=8), progress=False)
        assert played["done"][3].startswith("hold") and played["done"].str.contains("mended").any() and (played["live"] == 1).all()
        watched = supplier.supplier_watched(source, periods=14, begins=7)
        one = supplier.SUPPLIER_INCIDENTS["meter_fault"]
        table = detection_rates(watched, [(one, one.size)], quiet=1, each=2).set_index("incident")
        assert table.loc["meter_fault", "seen"] == 1 and table.loc["meter_fault", "delay"] == 0
        first, second = (watched.draw(3, one, one.size) for _ in range(2))
        pd.testing.assert_frame_equal(first, second)
        assert set(watch(watched, first).query("period < 7")["check"]) <= {"performance", "calibration"}
