"""Forecasts over HTTP from what meters reported; each input is taken away in turn, and the answer says what stood in."""

import functools
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from mlops_core import audit, core, fallback, forecast, history, package
from mlops_core.core import plain
from mlops_core.data import Unanswerable, load_dataset
from mlops_core.forecast import BoostedTrees, FeatureForecaster, WithIntervals
from mlops_core.log import joined
from mlops_core.package import Recipe
from mlops_core.release import smoke_tests
from mlops_core.series import ahead_rows, forecast_fold, prepare
from mlops_core.serve import LocalServer, make_app

WHO = {"actor": "cho", "role": "devops"}


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLOPS_WORKSPACE", str(tmp_path_factory.mktemp("workspace")))
        patch.delenv("MLOPS_OPS_URL", raising=False)
        patch.setitem(forecast.BOOSTING, "n_estimators", 40)
        source = load_dataset("electricity")
        series, task = prepare(source.table, source.roles)
        valid = forecast_fold(series, task, series.index[-120 * 48], None, 14)
        recipe = Recipe("electricity", functools.partial(forecast.consumption_fold, sample=3),
                        fallback.with_fallbacks(task, FeatureForecaster(task, BoostedTrees()), valid), 0)  # fmt: skip
        case = forecast.forecast_case(series, task, valid.X_test["origin"].iloc[0])
        case = replace(case, serving=fallback.forecast_serving())
        fold = recipe.fold()
        sources = {"origin": "time", "time": "time", "value": "demand", "temperature": "temperature", "workday": "workday"}
        inputs = [{"column": name, "source": f"demand.{column}"} for name, column in sources.items()]
        version = package.package_model(case, recipe.fit(fold), recipe, fold, {"inputs": inputs}, actor="ana", role="data_scientist")
        audit.append("champion", version.subject, {"manifest": version.manifest}, **WHO)
        with LocalServer(make_app("consumption_forecast", auth=False)) as client:
            yield client, version, fold.X_test


def report(client, frame):
    told = [{name: value for name, value in plain(row).items() if value is not None} for row in frame.to_dict("records")]
    said = client.post("/v1/readings", json={"readings": told})
    assert said.status_code == 200, said.text
    return said.json()


def ask(client, **row):
    return client.post("/v1/predict", json={"rows": [row]})


@pytest.fixture
def history_of_a_day(served):
    """The readings of the last packaged request are known, and nothing else."""
    client, version, requests = served
    with core.operations_engine().begin() as connection:
        connection.execute(history.readings.delete())
    one = requests[requests["origin"] == requests["origin"].iloc[-1]].reset_index(drop=True)
    assert report(client, one.drop(columns="origin"))["new"] == one[["value", "temperature", "workday"]].notna().sum().sum()
    return one


def test_without_history_it_says_what_is_needed(served):
    client, *_ = served
    said = ask(client, as_of="2014-06-01T00:00:00+10:00")
    assert said.status_code == 422 and "POST /v1/readings" in said.json()["detail"]


def test_the_answer_is_the_models_and_each_step_is_logged(served, history_of_a_day):
    client, version, _ = served
    moment = history_of_a_day["origin"].iloc[0] + pd.Timedelta("9h")
    (answer,) = ask(client, as_of=moment.isoformat()).json()["answers"]
    expected = version.answer(history_of_a_day)
    assert answer["fallback"] is None and len(answer["steps"]) == 48
    found = pd.DataFrame(answer["steps"])
    np.testing.assert_allclose(found[["forecast", "low", "high"]].astype(float), expected[["forecast", "low", "high"]], rtol=1e-12)
    (short,) = client.post("/v1/predict", json={"rows": [{"as_of": moment.isoformat(), "days": 1}], "request_id": "day"}).json()["answers"]
    assert short["steps"] == answer["steps"]
    logged = joined("consumption_forecast").query("request_id == 'day'")
    assert logged["position"].tolist() == list(range(48))


def test_each_missing_input_has_its_stand_in(served, history_of_a_day, monkeypatch):
    client, _, _ = served
    moment = {"as_of": history_of_a_day["origin"].iloc[0].isoformat()}
    monkeypatch.setattr(fallback, "now", lambda: core.now() + pd.Timedelta("25h"))
    (stale,) = ask(client, **moment).json()["answers"]
    assert stale["fallback"] == "model without temperature" and len(stale["steps"]) == 48
    report(client, history_of_a_day.loc[ahead_rows(history_of_a_day, served[1].model.task), ["time", "temperature"]])
    monkeypatch.undo()
    (fresh,) = ask(client, **moment).json()["answers"]
    assert fresh["fallback"] is None, "a forecast that was confirmed is fresh"
    with core.operations_engine().begin() as connection:
        connection.execute(history.readings.delete().where(history.readings.c.name == "workday"))
    (blind,) = ask(client, **moment).json()["answers"]
    assert blind["fallback"] == "model without workday"
    with core.operations_engine().begin() as connection:
        connection.execute(history.readings.delete().where(history.readings.c.name == "temperature"))
    (last,) = ask(client, **moment).json()["answers"]
    assert last["fallback"] == "recent weeks: no temperature, workday" and all(step["low"] < step["high"] for step in last["steps"])


def test_a_gap_of_the_meter_is_stood_in_for(served, history_of_a_day):
    client, *_ = served
    gap = history.readings.c.time == (history_of_a_day["origin"].iloc[0] - pd.Timedelta("12h")).tz_convert("UTC").tz_localize(None).to_pydatetime()
    with core.operations_engine().begin() as connection:
        connection.execute(history.readings.delete().where(gap, history.readings.c.name == "value"))
    (answer,) = ask(client, as_of=history_of_a_day["origin"].iloc[0].isoformat()).json()["answers"]
    assert answer["fallback"] == "recent weeks: no value"


def test_an_abnormal_week_is_not_repeated():
    source = load_dataset("electricity")
    series, task = prepare(source.table, source.roles)
    fold = forecast_fold(series, task, series.index[-120 * 48], None, 1)
    calm = fallback.RecentWeeks(task).predict(fold.X_test)
    ill = fold.X_test.assign(value=fold.X_test["value"].where(fold.X_test.index < len(fold.X_test) - 8 * 48, fold.X_test["value"] * 1.4))
    assert (fallback.RecentWeeks(task).predict(ill)["forecast"] / calm["forecast"]).mean() < 1.05, "last week's values would be 40 % higher"
    with pytest.raises(Unanswerable, match="48 steps"):
        fallback.RecentWeeks(task).predict(fold.X_test.assign(value=np.nan))


@pytest.mark.parametrize("body, field", [
    ({"time": "2014-11-02T00:00:00+10:00", "value": 999}, "readings.0.value"), ({"value": 4.0}, "readings.0.time"),
    ({"time": "2014-11-02T00:00:00+10:00", "demand": 4.0}, "readings.0.demand"), ({"time": "soon", "value": 4.0}, "readings.0.time"),
    ({"time": "2014-11-02T00:00:00", "value": 4.0}, "readings.0.time"),
])
def test_bad_readings_are_refused_and_none_is_taken(served, history_of_a_day, body, field):
    client, *_ = served
    good = {"time": "2015-01-02T00:00:00+10:00", "value": 4.0}
    said = client.post("/v1/readings", json={"readings": [good, body]})
    assert said.status_code == 422 and field.replace("0", "1") in [one["field"] for one in said.json()["errors"]]
    assert history.read_history("consumption_forecast", "2015-01-01", "2015-01-03")[0].empty


@pytest.mark.parametrize("row, field", [
    ({"as_of": "noon"}, "as_of"), ({"days": 2}, "days"), ({"days": 0}, "days"), ({"origin": "2014-11-02"}, "origin"),
])
def test_a_bad_request_is_refused_with_its_field(served, row, field):
    client, *_ = served
    said = ask(client, **row)
    assert said.status_code == 422 and f"rows.0.{field}" in [one["field"].rsplit(".int", 1)[0] for one in said.json()["errors"]]


def test_the_smoke_tests_pass(served):
    _, version, _ = served
    with LocalServer(make_app("consumption_forecast")) as client:
        found = smoke_tests(version, str(client.base_url), **WHO)
    assert found["passed"].all(), found.to_string()


def test_a_version_comes_back_from_its_artifact_with_its_chain(served):
    _, version, requests = served
    loaded = package.load_model("consumption_forecast", 1)
    blind = requests.assign(temperature=np.nan)
    pd.testing.assert_frame_equal(loaded.answer(blind), version.model.predict(blind))
    assert isinstance(loaded.model.last_, WithIntervals) and loaded.model.end_ == version.model.end_
