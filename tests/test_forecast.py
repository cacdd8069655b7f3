"""A forecast knows nothing of what comes after its origin, repeats itself, and the case runs on anybody's series."""

import nbformat
import numpy as np
import pandas as pd
import papermill
import pytest

from mlops_core import core, forecast, series
from mlops_core.data import load_dataset

CASE = core.home() / "nbs" / "cases" / "consumption_forecast.ipynb"


@pytest.fixture(scope="module")
def victoria():
    dataset = load_dataset("electricity")
    return series.prepare(dataset.table, dataset.roles)


@pytest.fixture(scope="module")
def fold(victoria):
    table, task = victoria
    return series.forecast_fold(table, task, pd.Timestamp("2014-11-02", tz=table.index.tz), days=7)


def test_requests_hide_the_future(victoria):
    table, task = victoria
    origins = series.day_starts(table, task)[40:42]
    request = series.requests(table, task, origins)
    assert request.loc[request["time"] >= request["origin"], "value"].isna().all()
    assert request.loc[request["time"] < request["origin"], "value"].notna().all()
    tampered = table.copy()
    tampered.loc[tampered.index >= origins[-1], "value"] = 0.0
    pd.testing.assert_frame_equal(request, series.requests(tampered, task, origins))


@pytest.mark.parametrize("name, most", [("seasonal_naive", 12), ("same_day_type", 8), ("gam", 4.5), ("arima", 5), ("xgboost", 4)])
def test_forecasters_are_better_than_they_may_be_bad_and_repeat_themselves(victoria, fold, name, most):
    _, task = victoria
    candidate = next(c for c in forecast.forecast_candidates(task) if c.name == name)
    first, second = (forecast.answer(candidate.build(0).fit(fold.X_train, fold.y_train), fold.X_test) for _ in range(2))
    pd.testing.assert_frame_equal(first, second)
    assert forecast.score(fold.y_test, first)["mape"] < most


def test_weather_errors_grow_with_the_lead_and_follow_the_seed(victoria):
    table, _ = victoria
    dataset = load_dataset("electricity")
    table, task = series.prepare(dataset.table, dataset.roles, horizon_days=7)
    origins = series.day_starts(table, task)[40:80]
    perfect, blurred, again = (series.requests(table, task, origins, error, seed=1) for error in (0.0, 1.5, 1.5))
    pd.testing.assert_frame_equal(blurred, again)
    error = (blurred["temperature"] - perfect["temperature"]).abs()
    days = (perfect["time"] - perfect["origin"]) // pd.Timedelta(days=1)
    assert error[days < 0].eq(0).all(), "the past is known"
    assert error[days == 6].mean() > error[days == 0].mean() > 0.3


def test_gappy_series_are_refused(victoria):
    dataset = load_dataset("electricity")
    with pytest.raises(ValueError):
        series.prepare(dataset.table.drop(index=dataset.table.index[500:600]), dataset.roles)


def run(tmp_path, **parameters):
    parameters = {"workspace": str(tmp_path / "workspace")} | parameters
    papermill.execute_notebook(CASE, tmp_path / "out.ipynb", parameters=parameters, kernel_name="python3", progress_bar=False)
    return core.read_records(nbformat.read(tmp_path / "out.ipynb", as_version=4))


def test_case_on_a_small_sample(tmp_path):
    found = run(tmp_path, sample=7)
    assert {"seasonal_naive", "same_day_type", "gam", "arima", "xgboost", "lstm", "chosen"} <= found["results"]["mape"].keys()
    assert found["results"]["mape"]["chosen"] < found["results"]["mape"]["seasonal_naive"]


def test_case_on_a_series_of_ones_own(tmp_path):
    generator = np.random.default_rng(0)
    hours = pd.date_range("2023-01-01", periods=24 * 240, freq="h")
    load = 100 + 30 * np.sin(2 * np.pi * hours.hour / 24) + 10 * (hours.dayofweek < 5) + generator.normal(0, 3, len(hours))
    folder = tmp_path / "plant"
    folder.mkdir()
    pd.DataFrame({"stamp": hours, "steam": load}).to_csv(folder / "meter.csv", index=False)
    (folder / "dataset.toml").write_text(
        '[tables]\nmeter = "meter.csv"\n[roles]\ntable = "meter"\ntime = "stamp"\nvalue = "steam"\nfrequency = "1h"\n'
    )
    found = run(tmp_path, dataset=str(folder), sample=5)
    assert found["results"]["mape"]["chosen"] < found["results"]["mape"]["seasonal_naive"]
