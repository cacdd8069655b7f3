"""A forecast knows nothing of what comes after its origin, repeats itself, and covers what it promises; the case runs on anybody's series."""

import json

import nbformat
import numpy as np
import pandas as pd
import papermill
import pytest
from cells import run_before
from statsmodels.tsa.statespace.sarimax import SARIMAX

from mlops_core import core, forecast, series
from mlops_core.data import load_dataset
from mlops_core.evaluate import forecast_metrics
from mlops_core.series import SeriesError

CASE = core.home() / "nbs" / "cases" / "consumption_forecast.ipynb"
DATASET = load_dataset("electricity")
TABLE, TASK = series.prepare(DATASET.table, DATASET.roles)
TEST_FROM = pd.Timestamp("2014-11-02", tz=TABLE.index.tz)


def hourly(days=120, tz=None, start="2023-02-01"):
    times = pd.date_range(start, periods=24 * days, freq="h", tz=tz)
    day_and_week = 30 * np.sin(2 * np.pi * times.hour / 24) + 10 * (times.day_of_week < 5)
    return pd.DataFrame({"stamp": times, "steam": 100 + day_and_week + np.random.default_rng(0).normal(0, 3, len(times))})


ROLES = {"time": "stamp", "value": "steam"}


@pytest.fixture(scope="module")
def fold():
    return series.forecast_fold(TABLE, TASK, TEST_FROM, days=10)


@pytest.fixture(scope="module")
def fitted(fold):
    return {c.name: c.build(0).fit(fold.X_train, fold.y_train) for c in forecast.forecast_candidates(TASK, epochs=3)}


# what is known when


def test_requests_hide_the_future():
    origins = series.day_starts(TABLE, TASK)[40:42]
    request = series.requests(TABLE, TASK, origins)
    assert len(request) == 2 * (TASK.window + TASK.horizon)
    assert request.loc[request["time"] >= request["origin"], "value"].isna().all()
    assert request.loc[request["time"] < request["origin"], "value"].notna().all()


@pytest.mark.parametrize("name", ["seasonal_naive", "same_day_type", "gam", "arima", "xgboost", "combination", "lstm"])
def test_no_forecast_depends_on_what_comes_after_its_origin(fitted, name):
    origins = series.day_starts(TABLE, TASK)[-40:-37]
    tampered = TABLE.copy()
    tampered.loc[origins[1] :, "value"] *= 3
    tampered.loc[origins[1] + pd.Timedelta("1D") :, ["temperature", "workday"]] = 0
    before, after = (fitted[name].predict(series.requests(table, TASK, origins)) for table in (TABLE, tampered))
    first_two = before["origin"] <= origins[1]
    pd.testing.assert_frame_equal(before[first_two], after[first_two])
    assert name == "seasonal_naive" or not before[~first_two].equals(after[~first_two]), "the third day sees the second, so it must change"


@pytest.mark.parametrize("name", ["gam", "arima", "xgboost", "lstm"])
def test_an_answer_does_not_depend_on_the_other_requests(fold, fitted, name):
    together = fitted[name].predict(fold.X_test)
    alone = fold.X_test[fold.X_test["origin"] == fold.X_test["origin"].iloc[-1]]
    expected = together.tail(TASK.horizon).reset_index(drop=True)
    pd.testing.assert_frame_equal(fitted[name].predict(alone), expected, rtol=1e-5)


def test_features_for_later_days_use_only_known_days():
    table, task = series.prepare(DATASET.table, DATASET.roles, horizon_days=9)
    origin = series.day_starts(table, task)[100]
    found = series.features(series.requests(table, task, [origin]), task)
    ninth = slice(8 * 48, 9 * 48)
    expected = {"last_day": "9D", "last_week": "14D", "two_weeks": "21D"}
    for column, back in expected.items():
        times = pd.date_range(origin + pd.Timedelta("8D"), periods=48, freq="30min") - pd.Timedelta(back)
        np.testing.assert_allclose(np.exp(found[column][ninth]), table["value"].loc[times], err_msg=column)


def test_same_type_is_the_last_such_day_and_the_reference_for_the_naive_forecasts_is_met():
    found = series.forecast_fold(TABLE, TASK, TEST_FROM)
    for column, mape in (("last_week", 7.26), ("same_type", 5.96)):
        answers = forecast.Naive(TASK, column).predict(found.X_test)
        assert forecast_metrics(found.y_test["actual"], answers["forecast"])["mape"] == pytest.approx(mape, abs=0.005)


def test_weather_errors_grow_with_the_lead_and_follow_the_seed():
    table, task = series.prepare(DATASET.table, DATASET.roles, horizon_days=7)
    origins = series.day_starts(table, task)[40:240]
    asked = ((0, 1), (1.5, 1), (1.5, 1), (1.5, 2))
    perfect, blurred, again, other = (series.requests(table, task, origins, error, seed) for error, seed in asked)
    pd.testing.assert_frame_equal(blurred, again)
    assert not blurred.equals(other)
    error, lead = blurred["temperature"] - perfect["temperature"], (perfect["time"] - perfect["origin"]) / pd.Timedelta("30min")
    assert error[lead < 0].eq(0).all(), "the past is known"
    assert error[lead == 47].std() == pytest.approx(1.5, rel=0.2) and error[lead == 335].std() == pytest.approx(1.5 * 7**0.5, rel=0.2)
    assert np.corrcoef(error[lead == 40], error[lead == 41])[0, 1] > 0.8, "a warm error lasts"
    fewer = series.requests(table, task, origins[5:6], 1.5, 1)
    np.testing.assert_array_equal(fewer["temperature"], blurred.loc[blurred["origin"] == origins[5], "temperature"])


# series of every kind


def test_days_keep_their_length_through_daylight_saving():
    frame = hourly(tz="Europe/Berlin")
    table, task = series.prepare(frame, ROLES)
    lengths = pd.Series(table.index.date).value_counts()
    assert task.day == 24 and lengths.iloc[1:-1].eq(24).all()
    assert (table.index == pd.DatetimeIndex(frame["stamp"])).all(), "the moments stay what they are"


def test_daily_series_in_local_time_are_regular():
    times = pd.date_range("2023-01-01", periods=200, freq="D", tz="Europe/Berlin")
    table, task = series.prepare(pd.DataFrame({"stamp": times, "steam": np.arange(200.0)}), ROLES)
    assert task.day == 1 and not task.log, "values near zero are not taken as ratios"


def test_what_a_driver_is_follows_from_its_values():
    frame = hourly()
    frame = frame.assign(open=frame["stamp"].dt.day_of_week < 6, offer=(frame["stamp"].dt.day % 9 == 0) * 1, out=np.arange(len(frame)) % 17)
    _, task = series.prepare(frame, ROLES | {"known_ahead": ["offer", "open"], "forecasted": ["out"]})
    assert task.day_type == "open" and task.flags == ("offer",) and task.smooth == task.forecasted == ("out",)


@pytest.mark.parametrize(
    "spoil, roles, message",
    [
        (lambda f: f.drop(index=[50, 51]), {}, "fill the gaps"),
        (lambda f: pd.concat([f, f.iloc[[7]]]), {}, "fill the gaps"),
        (lambda f: f.iloc[:1], {}, "one row per step"),
        (lambda f: f.assign(stamp=pd.date_range("2020", periods=len(f), freq="7h")), {}, "does not divide a day"),
        (lambda f: f.assign(steam=f["steam"].where(f.index != 9)), {}, "value is missing in 1 of"),
        (lambda f: f.assign(sky="grey"), {"forecasted": ["sky"]}, "must be numbers"),
        (lambda f: f.assign(origin=1.0), {"known_ahead": ["origin"]}, "rename the column"),
        (lambda f: f, {"country": "Atlantis"}, "ISO 3166"),
    ],
)
def test_what_cannot_be_forecast_is_refused(spoil, roles, message):
    with pytest.raises(SeriesError, match=message):
        series.prepare(spoil(hourly()), ROLES | roles)


def test_too_short_and_misshapen_is_refused(fold):
    table, task = series.prepare(hourly(days=45), ROLES)
    with pytest.raises(SeriesError, match="40 days is too short.*need 43.*longer series"):
        forecast.training_requests(table.iloc[: 40 * 24][[]], table["value"].iloc[: 40 * 24], task)
    with pytest.raises(SeriesError, match="the series is too short"):
        series.forecast_fold(table, task, table.index[20 * 24], table.index[27 * 24])
    with pytest.raises(SeriesError, match="raise window_days"):
        series.prepare(hourly(), ROLES, horizon_days=14, window_days=20)
    with pytest.raises(SeriesError, match="build it with requests"):
        series.features(fold.X_test.iloc[1:], TASK)
    with pytest.raises(SeriesError, match="build it with requests"):
        series.features(fold.X_test.assign(temperature=np.nan), TASK)


@pytest.mark.parametrize("name", ["seasonal_naive", "same_day_type", "gam", "arima", "xgboost", "lstm"])
@pytest.mark.parametrize("horizon", [1, 8])
def test_every_model_forecasts_a_series_without_drivers(name, horizon):
    table, task = series.prepare(hourly(), ROLES, horizon_days=horizon)
    fold = series.forecast_fold(table, task, table.index[100 * 24])
    candidate = next(c for c in forecast.forecast_candidates(task) if c.name == name)
    answers = forecast.answer(candidate.build(0).fit(fold.X_train, fold.y_train), fold.X_test)
    assert list(answers) == ["origin", "time", "forecast", "low", "high"]
    assert forecast.score(fold.y_test, answers)["mape"] < 6


# models


@pytest.mark.parametrize("name", ["gam", "arima", "xgboost", "lstm"])
def test_same_seed_same_numbers(fold, fitted, name):
    again = next(c for c in forecast.forecast_candidates(TASK, epochs=3) if c.name == name).build(0).fit(fold.X_train, fold.y_train)
    pd.testing.assert_frame_equal(again.predict(fold.X_test), fitted[name].predict(fold.X_test))


@pytest.mark.parametrize("name, most", [("gam", 3.9), ("arima", 4.6), ("xgboost", 3.5)])
def test_reference_numbers(name, most):
    fold = series.forecast_fold(TABLE, TASK, TEST_FROM)
    model = next(c for c in forecast.forecast_candidates(TASK) if c.name == name).build(1).fit(fold.X_train, fold.y_train)
    assert forecast.score(fold.y_test, model.predict(fold.X_test))["mape"] <= most


def test_arima_filter_agrees_with_the_state_space_model():
    ar, ma = np.polymul([1, -0.6, -0.2], [1, *[0] * 23, -0.5]), np.array([1, 0.4])
    errors = forecast.lfilter(ma, ar, np.random.default_rng(0).normal(size=600))
    expected = SARIMAX(errors, order=(2, 0, 1), seasonal_order=(1, 0, 0, 24)).smooth([0.6, 0.2, 0.4, 0.5, 1.0]).forecast(30)
    np.testing.assert_allclose(forecast._carry_on(errors[None], ar, ma, 30)[0], expected, atol=1e-5)


def test_trees_say_what_each_column_contributed(fold, fitted):
    trees, table = fitted["xgboost"].regressor_, series.features(fold.X_test.head(TASK.window + TASK.horizon), TASK)
    np.testing.assert_allclose(trees.contributions(table).sum(axis=1), trees.predict(table), atol=1e-3)


def test_mean_forecast_is_the_mean(fold, fitted):
    both = [fitted[name].predict(fold.X_test)["forecast"] for name in ("gam", "xgboost")]
    np.testing.assert_allclose(fitted["combination"].predict(fold.X_test)["forecast"], np.mean(both, axis=0))


# intervals


def made_up(days, spread, start="2024-01-01", horizon=24):
    origins = pd.date_range(start, periods=days, freq="D").repeat(horizon)
    time = origins + pd.to_timedelta(np.tile(np.arange(horizon), days), unit="h")
    frame = pd.DataFrame({"origin": origins, "time": time, "forecast": 100.0})
    return frame.assign(actual=100 + np.random.default_rng(1).normal(0, 1, len(frame)) * spread(frame))


def covered(frame):
    return frame["actual"].between(frame["low"], frame["high"]).mean()


def test_intervals_cover_what_they_promise_by_hour_and_level():
    rows = made_up(400, lambda f: 1 + 4 * (f["time"].dt.hour >= 12))
    past, later = rows[rows["origin"] < "2024-04-01"], rows[rows["origin"] >= "2024-04-01"]
    for level in (0.5, 0.8, 0.95):
        assert covered(forecast.intervals(later, past, level)) == pytest.approx(level, abs=0.02)
    found = forecast.intervals(later, past)
    width = (found["high"] - found["low"]).groupby(found["time"].dt.hour).mean()
    assert width[18] > 3 * width[6], "each hour has its own errors"


def test_intervals_adapt_when_errors_double():
    rows = made_up(240, lambda f: np.where(f["time"] < "2024-04-01", 1.0, 2.0))
    past, later = rows[rows["origin"] < "2024-04-01"], rows[rows["origin"] >= "2024-04-01"]
    steered, rigid = forecast.intervals(later, past), forecast.intervals(later.drop(columns="actual"), past)
    assert covered(rigid.assign(actual=later["actual"].to_numpy())) < 0.6 < 0.75 < covered(steered)


def test_an_interval_uses_only_errors_known_at_its_origin():
    table, task = series.prepare(DATASET.table, DATASET.roles, horizon_days=3)
    fold = series.forecast_fold(table, task, TEST_FROM, days=20)
    rows = forecast.Naive(task).predict(fold.X_test).assign(actual=fold.y_test["actual"]).drop(columns=["low", "high"])
    origin = rows["origin"].unique()[12]
    changed = rows.assign(actual=rows["actual"].where(rows["time"] < origin, 0.0))
    first, second = (forecast.intervals(frame, frame.iloc[:0]).drop(columns="actual") for frame in (rows, changed))
    pd.testing.assert_frame_equal(first[first["origin"] <= origin], second[second["origin"] <= origin])
    assert first.loc[first["origin"] == origin, ["low", "high"]].notna().all(axis=None)
    assert not first[first["origin"] > origin].equals(second[second["origin"] > origin])


def test_intervals_need_a_past_of_the_same_horizon():
    rows = made_up(9, lambda f: 1.0)
    assert forecast.intervals(rows.tail(24), rows.head(4 * 24))["low"].isna().all(), "four forecasts are too few"
    with pytest.raises(SeriesError, match="differ in horizon"):
        forecast.intervals(rows.tail(24), made_up(9, lambda f: 1.0, start="2023-01-01", horizon=12))


def test_served_answers_have_an_interval_and_a_missing_answer_is_noticed(fold):
    past = forecast.Naive(TASK).predict(fold.X_test).assign(actual=fold.y_test["actual"])
    later = series.forecast_fold(TABLE, TASK, TEST_FROM + pd.Timedelta("10D"), days=1)
    model = forecast.WithIntervals(forecast.Naive(TASK), past).fit(later.X_train, later.y_train)
    answers = forecast.answer(model, later.X_test)
    assert (answers["low"] < answers["high"]).all()
    assert {"mape", "coverage_80", "pinball_80"} <= forecast.score(later.y_test, answers).keys()
    with pytest.raises(SeriesError, match="1 of 48 steps have no answer"):
        forecast.score(later.y_test, answers.iloc[1:])


# the case

@pytest.fixture(autouse=True)
def own_workspace(tmp_path, monkeypatch):
    monkeypatch.setenv("MLOPS_WORKSPACE", str(tmp_path / "workspace"))


def run(tmp_path, **parameters):
    parameters = {"workspace": str(tmp_path / "workspace"), "sign_offs": "none", "days": 0} | parameters
    papermill.execute_notebook(CASE, tmp_path / "out.ipynb", parameters=parameters, kernel_name="python3", progress_bar=False)
    return core.read_records(nbformat.read(tmp_path / "out.ipynb", as_version=4))


def test_case_on_a_small_sample(monkeypatch):
    quick = {"sample": 7, "epochs": 3, "train_days": 90}
    perfect, off = (run_before("Explain", "consumption_forecast", monkeypatch, **quick, temperature_error=size)["scores"] for size in (0.0, 1.5))
    assert perfect.keys() >= {"seasonal_naive", "same_day_type", "gam", "arima", "xgboost", "lstm"}
    for scores in (perfect, off):
        best = min(scores[name]["mape"] for name in ("gam", "arima", "xgboost"))
        assert best < scores["seasonal_naive"]["mape"] and min(score["mase"] for score in scores.values()) < 1
    assert perfect["xgboost"]["mape"] != off["xgboost"]["mape"] and perfect["seasonal_naive"] == off["seasonal_naive"]


@pytest.fixture
def own_folder(tmp_path):
    def write(frame, roles):
        folder = tmp_path / "plant"
        folder.mkdir()
        frame.to_csv(folder / "meter.csv", index=False)
        (folder / "dataset.toml").write_text('[tables]\nmeter = "meter.csv"\n[roles]\ntable = "meter"\n' + roles)
        return str(folder)

    return write


def test_case_on_an_hourly_series_without_drivers_is_repeatable(own_folder, tmp_path):
    folder = own_folder(hourly(days=150), 'time = "stamp"\nvalue = "steam"\nfrequency = "1h"\n')
    found, again = (run(tmp_path, dataset=folder, sample=6, epochs=3) for _ in range(2))
    found.pop("timings"), again.pop("timings")
    assert json.dumps(found) == json.dumps(again)
    assert found["data"]["rows"] == 150 * 24 and found["results"]["mape"]["chosen"] < found["results"]["mape"]["seasonal_naive"]
    assert all(card["limit"] is None for card in found["headline"]), "reference limits belong to our own data only"


def test_case_on_a_daily_series_with_zeros_drivers_and_holidays(own_folder, tmp_path):
    days, generator = pd.date_range("2022-01-01", periods=400, freq="D"), np.random.default_rng(0)
    offer, price = generator.random(400) < 0.2, 10 + generator.normal(0, 0.3, 400).cumsum()
    sold = (days.day_of_week != 6) * (20 + 15 * offer - price + generator.normal(0, 1, 400))
    frame = pd.DataFrame({"Datum": days, "Stück": sold, "Aktion": offer * 1, "Preis": price})
    roles = 'time = "Datum"\nvalue = "Stück"\nfrequency = "D"\nknown_ahead = ["Aktion"]\nforecasted = ["Preis"]\ncountry = "DE"\n'
    found = run(tmp_path, dataset=own_folder(frame, roles), epochs=3, horizon_days=3)
    assert found["results"]["mape"]["chosen"] is None, "a percentage of zero means nothing"
    assert found["results"]["mase"] < 1 and found["headline"][0]["name"] == "mae"


@pytest.mark.parametrize(
    "parameters, message",
    [
        ({"horizon_days": 14, "window_days": 14}, "raise window_days"),
        ({"dataset": "credit_default"}, "this case needs"),
        ({"train_days": 30}, "too short"),
    ],
)
def test_case_refuses_what_cannot_be(monkeypatch, parameters, message):
    with pytest.raises(ValueError, match=message):
        run_before("Explain", "consumption_forecast", monkeypatch, **parameters)
