"""A live credit model over months: what each look finds, when alerts ring, and what the command line says."""

import functools
import shutil
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from bs4 import BeautifulSoup
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from mlops_core import alerts, audit, core, forecast, gates, health, log, monitor, views
from mlops_core.artifact import ArtifactError
from mlops_core.cli import main
from mlops_core.data import Case
from mlops_core.experiment import classification_fold, probabilities, probability_score
from mlops_core.govern import Limits
from mlops_core.log import Prediction, PredictionLog
from mlops_core.package import Recipe, package_model

COLUMNS = ("limit_bal", "pay_0", "pay_2", "pay_3", "bill_amt1", "pay_amt1")
CASE = Case("credit_risk", "A test", "roc_auc", True, (), probabilities, probability_score)
START, DAY = pd.Timestamp("2027-01-01"), pd.Timedelta(days=1)
RECIPE = Recipe("credit_default", functools.partial(classification_fold, features=COLUMNS), make_pipeline(StandardScaler(), LogisticRegression()), 0)


@pytest.fixture(scope="module")
def packaged_once(tmp_path_factory):
    "A workspace with a live version and nothing else, and its test part."
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLOPS_WORKSPACE", str(folder := tmp_path_factory.mktemp("packaged")))
        fold = RECIPE.fold()
        inputs = [{"column": name, "source": f"clients.{name}"} for name in COLUMNS]
        version = package_model(CASE, RECIPE.fit(fold), RECIPE, fold, {"inputs": inputs}, actor="ana", role="data_scientist")
        audit.append("champion", version.subject, {"manifest": version.manifest}, actor="cho", role="devops")
    return folder, version, fold


@pytest.fixture()
def live(packaged_once, tmp_path, monkeypatch):
    "A copy of that workspace; gives the version and its test part."
    folder, version, fold = packaged_once
    monkeypatch.setenv("MLOPS_WORKSPACE", str(shutil.copytree(folder, tmp_path / "workspace")))
    return version, fold


def play(live, monkeypatch, days, change=lambda day, rows: rows, worse=lambda day: 0.0, delay=55, each=25, first=0, **more):
    "Answer `each` clients a day and let their outcomes come `delay(day)` days later; `change` alters inputs, `worse` turns goods into bads."
    version, fold = live
    random, sent, known = np.random.default_rng(7), [], {}
    for day in range(first, first + days):
        rows = change(day, fold.X_test.sample(each, random_state=day))
        for number, risk in version.answer(rows)["probability"].items():
            word, when = f"{day}-{number}", START + day * DAY + pd.Timedelta(hours=8)
            said = {"input": rows.loc[number].to_json(), "output": f'{{"probability": {risk}}}', "action": "approve" if risk < 1 / 6 else "refuse"}
            sent.append(Prediction("credit_risk", word, 1, "champion", time=when.to_pydatetime(), **said | {"latency_ms": 5.0} | more))
            late = delay(day) if callable(delay) else delay
            known.setdefault(day + late, {})[word] = float(max(fold.y_test[number], random.random() < worse(day)))
    with PredictionLog() as writer:
        assert all(one.result() for one in [writer.submit([row]) for row in sent])
    for day, values in sorted(known.items()):
        monkeypatch.setattr(log, "now", lambda day=day: pd.Timestamp(START + day * DAY, tz="UTC"))
        log.record_outcomes("credit_risk", pd.DataFrame({"request_id": list(values), "value": list(values.values())}))


def verdicts(day):
    return health.look("credit_risk", START + day * DAY).verdicts.set_index("check")["verdict"]


def test_quiet_months_ring_nobody_but_for_the_bound_that_the_version_never_kept(live, monkeypatch):
    play(live, monkeypatch, 150)
    for day in range(30, 151, 15):
        monitor.monitor_round("credit_risk", START + day * DAY)
    assert set(alerts.alert_history()["check"]) <= {"calibration"}  # its calibration error is 0.04 at approval, where 0.03 are allowed
    assert len(audit.entries(event="monitored")) == 9 and audit.verify() == []
    fared = monitor.scored("credit_risk")
    assert set(fared["metric"]) == {"roc_auc", "brier", "cost_per_1000"} and fared["inside"].mean() > 0.8
    assert fared["as_of"].max() == START + 90 * DAY, "what ended later is not due"


def test_before_outcomes_are_due_nothing_realised_is_written(live, monkeypatch):
    play(live, monkeypatch, 60, delay=5)  # they are there early, and are not read
    found = monitor.monitor_round("credit_risk", START + 60 * DAY).look
    assert found.verdicts.set_index("check")["verdict"][["performance", "calibration", "estimator"]].unique().tolist() == ["withheld"]
    kept = monitor.series("credit_risk")["metric"]
    assert "roc_auc" not in set(kept) and {"estimated roc_auc", "answers", "share approve", "p99_ms"} <= set(kept)


def test_outcomes_that_are_overdue_are_an_alert_of_their_own_and_withhold_the_metric(live, monkeypatch):
    version, fold = live
    play(live, monkeypatch, 35, delay=lambda day: 55 if day % 3 else 200)
    found = health.look("credit_risk", START + 92 * DAY)
    rows = found.verdicts.set_index("check")
    assert rows["verdict"][["outcomes", "performance"]].tolist() == ["breach", "withheld"]
    assert "outcomes are overdue" in rows["why"]["performance"] and 0.6 < rows["value"]["outcomes"] < 0.7
    assert found.metrics.set_index("metric")["value"]["matured_share"] == pytest.approx(rows["value"]["outcomes"])
    assert "roc_auc" not in set(found.metrics["metric"])
    later = health.look("credit_risk", START + 92 * DAY)
    pd.testing.assert_frame_equal(found.metrics, later.metrics)


def test_a_feed_that_breaks_rings_within_its_month_and_a_changed_world_when_outcomes_come(live, monkeypatch):
    play(live, monkeypatch, 60, change=lambda day, rows: rows.assign(limit_bal=rows["limit_bal"] / 30) if day >= 30 else rows)
    before, after = verdicts(30), verdicts(45)
    assert before[["drift", "scores"]].tolist() == ["pass", "pass"] and after["drift"] == "breach"
    play(live, monkeypatch, 60, first=200, worse=lambda day: 0.3)
    assert verdicts(260)[["drift", "estimate"]].tolist() == ["pass", "pass"], "nothing to be seen yet"
    came = verdicts(290 + 30)
    assert came["estimator"] == "breach" and came["calibration"] == "breach" and came["outcomes"] == "pass"


def test_service_checks_read_the_log(live, monkeypatch):
    play(live, monkeypatch, 20, latency_ms=900.0, violations='["pay_0 outside of training"]', fallback="challenger 2 failed: ValueError")
    found = verdicts(20)
    assert found[["latency", "violations", "failures", "silence"]].tolist() == ["breach", "breach", "breach", "pass"]
    assert verdicts(22)["silence"] == "breach"


def test_a_window_without_answers_with_few_or_with_one_class_cannot_be_judged(live, monkeypatch):
    empty = verdicts(900)
    assert "breach" not in set(empty) and empty["performance"] == "withheld" and empty["outcomes"] == "too few"
    play(live, monkeypatch, 10, each=5)
    few = health.look("credit_risk", START + 70 * DAY).verdicts.set_index("check")
    assert few["verdict"]["performance"] == "too few" and "50 outcomes, 200 are needed" in few["why"]["performance"]
    play(live, monkeypatch, 20, first=300, worse=lambda day: 2.0)
    one = health.look("credit_risk", START + 385 * DAY).verdicts.set_index("check")
    assert one["verdict"]["performance"] == "too few" and "ranking needs goods and bads" in one["why"]["performance"]


def test_answers_that_failed_are_no_answers(live, monkeypatch):
    play(live, monkeypatch, 10, output="{}")
    assert verdicts(10)[["drift", "scores", "estimate"]].tolist() == ["too few"] * 3


def test_an_override_that_has_run_out_rings(live, monkeypatch):
    version, _ = live
    noted = {"gates": ["documentation"], "rationale": "the register follows", "until": "2027-01-20T00:00:00+00:00", "manifest": version.manifest}
    audit.append("override", version.subject, noted, actor="ben", role="model_risk_manager")
    for day, expected in ((10, "pass"), (25, "breach")):
        monkeypatch.setattr(core, "now", lambda day=day: pd.Timestamp(START + day * DAY, tz="UTC"))
        assert verdicts(day)["overrides"] == expected
    assert gates.open_overrides("credit_risk")["expired"].all()


def test_nobody_live_is_an_error(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("MLOPS_WORKSPACE", str(tmp_path))
    with pytest.raises(ArtifactError, match="credit_risk has no champion"):
        monitor.monitor_round("credit_risk")
    assert main(["monitor", "credit_risk"]) == 2 and "has no champion" in capsys.readouterr().out


def test_the_command_says_what_is_open_and_for_whom(live, monkeypatch, capsys):
    play(live, monkeypatch, 30)
    assert main(["monitor", "credit_risk", "--at", str(START + 30 * DAY)]) == 0
    said = capsys.readouterr().out
    assert "credit_risk/1 as of 2027-01-31 00:00 UTC: 0 alerts are open" in said and "performance  withheld" in said
    assert main(["monitor", "credit_risk", "--at", str(START + 33 * DAY)]) == 4
    said = capsys.readouterr().out
    assert "1 alerts are open" in said and "high: silence, for devops, since 2027-02-03" in said and "Look at /live and /ready" in said
    assert main(["monitor", "credit_risk", "--at", "soon"]) == 2
    assert main(["monitor", "credit_risk", "--at", str(START + 34 * DAY), "--metrics", "http://127.0.0.1:9/metrics"]) == 4
    assert "no metrics from http://127.0.0.1:9/metrics" in capsys.readouterr().out


def test_a_metrics_page_says_errors_times_and_who_waits():
    page = "\n".join([
        'mlops_requests_total{path="/v1/predict",status="200"} 950', 'mlops_requests_total{path="/v1/predict",status="500"} 50',
        'mlops_requests_total{path="/ready",status="503"} 1000', "mlops_requests_in_flight 7",
        'mlops_rows_total{action="refuse",role="champion"} 30', 'mlops_refused_rows_total{field="pay_0"} 4',
        *[f'mlops_request_seconds_bucket{{path="/v1/predict",le="{edge}"}} {n}' for edge, n in (("0.01", 900), ("0.05", 995), ("+Inf", 1000))],
    ]) + "\n"  # fmt: skip
    assert monitor.resources(page) == {"requests": 1000, "errors": 0.05, "http_p99_ms": 50, "in_flight": 7, "rows": 30, "refused_rows": 4}
    empty = monitor.resources("")
    assert empty["requests"] == 0 and np.isnan(empty["errors"]) and np.isnan(empty["http_p99_ms"])


@pytest.fixture(scope="module")
def watched(packaged_once, tmp_path_factory):
    "A workspace with five months of traffic, a broken feed in the third, and a round every 15 days; gives its folder."
    folder, version, fold = packaged_once
    with pytest.MonkeyPatch.context() as patch:
        workspace = shutil.copytree(folder, tmp_path_factory.mktemp("watched") / "workspace")
        patch.setenv("MLOPS_WORKSPACE", str(workspace))
        broken = lambda day, rows: rows.assign(limit_bal=rows["limit_bal"] / 30) if 60 <= day < 90 else rows  # noqa: E731
        play((version, fold), patch, 150, change=broken)
        for day in range(30, 166, 15):
            monitor.monitor_round("credit_risk", START + day * DAY)
    return workspace


@pytest.fixture()
def seen(watched, tmp_path, monkeypatch):
    "A copy of it, on the day after the last round."
    monkeypatch.setenv("MLOPS_WORKSPACE", str(shutil.copytree(watched, tmp_path / "workspace")))
    monkeypatch.setattr(core, "now", lambda: pd.Timestamp(START + 166 * DAY, tz="UTC"))
    return tmp_path / "workspace"


def headings(page):
    return [title.text for title in BeautifulSoup(page.read_text(), "html.parser")("h2")]


def test_each_role_sees_what_it_decides_on_and_no_more(seen):
    pages = {view: views.write_view("credit_risk", view) for view in views.VIEWS}
    assert headings(pages["risk_manager"]) == ["Limits", "Breaches", "Overrides"]
    assert headings(pages["devops"]) == ["Your alerts", "Service", "Roll-outs"]
    assert headings(pages["data_scientist"]) == ["Expected and realised", "Alerts", "How estimates fared"] and len(headings(pages["business"])) == 1
    told = {view: BeautifulSoup(page.read_text(), "html.parser").get_text(" ") for view, page in pages.items()}
    assert "limit_bal: drift" in told["data_scientist"] and "limit_bal" not in told["business"] + told["devops"]
    for page in pages.values():
        soup = BeautifulSoup(page.read_text(), "html.parser")
        assert not soup("script") and not soup("link", href=lambda href: href != "data:,") and all(image["alt"] for image in soup("img"))
        assert all(image["src"].startswith("data:image/png") for image in soup("img")) and page.stat().st_size < 400_000


def test_a_period_shows_its_own_windows_and_the_alerts_that_were_open_in_it(seen):
    every = alerts.alert_history("credit_risk").set_index("check")
    month = f"{every.loc['drift', 'opened_at']:%Y-%m}"
    assert "drift" in set(views.alerts_in("credit_risk", month)["check"]) and "drift" not in set(views.alerts_in("credit_risk", "2027-02")["check"])
    assert views.alerts_in("credit_risk", "2026").empty
    found = views.metrics_in("credit_risk", "2027-03")
    assert found["as_of"].between("2027-03-01", "2027-04-01").all() and len(found) < len(views.metrics_in("credit_risk")) / 2
    quarters = [len(views.metrics_in("credit_risk", f"2027Q{number}")) for number in (1, 2, 3, 4)]
    assert sum(quarters) == len(views.metrics_in("credit_risk", "2027"))
    shown = views.view_facts("credit_risk", "risk_manager", "2027-03")["items"][0]
    assert shown["value"] == found[found["metric"] == "roc_auc"]["value"].iloc[-1]


def test_the_business_reads_the_cost_of_its_decisions(seen):
    facts = views.view_facts("credit_risk", "business")
    cost = views.metrics_in("credit_risk").query("metric == 'cost_per_1000'")["value"].iloc[-1]
    assert next(item for item in facts["items"] if item["name"] == "cost_per_1000")["value"] == cost
    assert 0 < next(item for item in facts["items"] if item["name"] == "share approve")["value"] < 1
    assert views.baseline_cost(health.reference("credit_risk")) is None, "no baseline was packaged, so nothing is claimed"
    assert "Without the model" not in facts["verdict"]


def test_the_fleet_has_a_row_for_each_use_case_also_where_files_are_damaged(seen, monkeypatch):
    table = views.fleet().set_index("model")
    assert table["health"].to_dict()["recommendation"] == "none live" and table.loc["credit_risk", "version"] == "1"
    assert table.loc["credit_risk", "due"] == "", "the round was a day ago"
    text = BeautifulSoup(views.write_fleet().read_text(), "html.parser").get_text(" ")
    assert "1 of 3 models are live" in text and "consumption_forecast" in text

    def damaged(name):
        raise ArtifactError("changed: data/parts/model")

    monkeypatch.setattr(views, "reference", damaged)
    assert views.fleet().set_index("model").loc["credit_risk", "health"] == "files damaged"


def test_duties_that_are_late_are_on_the_fleet_page(seen, monkeypatch):
    monkeypatch.setattr(core, "now", lambda: pd.Timestamp(START + 180 * DAY, tz="UTC"))
    due = views.fleet().set_index("model").loc["credit_risk", "due"]
    assert "monitoring round, every 1 days" in due and "Drift of each column against training (data scientist)" in due
    assert "Realised default rate" not in due, "that is looked at every 90 days"


def test_views_and_fleet_from_the_command_line(seen, monkeypatch, capsys, tmp_path):
    monkeypatch.setenv("MLOPS_WORKSPACE", str(tmp_path / "elsewhere"))
    asked = ["report", "credit_risk", "--view", "risk_manager", "-p", "period", "2027-03"]
    assert main([*asked, "-p", "workspace", str(seen)]) == 0
    page = capsys.readouterr().out.strip()
    assert page.endswith("risk_manager-2027-03.html") and (seen / "views" / "credit_risk" / "risk_manager-2027-03.html").is_file()
    assert main(["fleet", "--workspace", str(seen)]) == 0 and (seen / "fleet.html").is_file()
    for words, message in (
        (["--view", "risk_manger"], "did you mean risk_manager"), (["--view", "devops", "-p", "period", "last month"], "no period 'last month'"),
        (["--view", "devops", "-p", "seed", "3"], "no parameter of a view 'seed'"),
    ):  # fmt: skip
        assert main(["report", "credit_risk", *words]) == 2
        assert message in capsys.readouterr().err
    monkeypatch.setenv("MLOPS_WORKSPACE", str(tmp_path / "empty"))
    assert main(["report", "credit_risk", "--view", "devops"]) == 2 and "has no champion" in capsys.readouterr().err


def test_forecasts_and_lists_are_measured_from_the_log_as_well():
    hours = pd.date_range("2027-01-01", periods=240, freq="h")
    said = pd.DataFrame({"origin": hours.normalize(), "time": hours, "forecast": 100.0, "low": 90.0, "high": 110.0})
    truth = said[["origin", "time"]].assign(actual=100 + np.tile([5.0, -5.0, 20.0], 80))
    scored = SimpleNamespace(score=forecast.score)
    rows = pd.DataFrame({"output": [row.to_json(date_format="iso") for _, row in said.iterrows()], "value": truth["actual"]})
    opened = health.answered(pd.concat([rows, pd.DataFrame({"output": ["{}"], "value": [np.nan]})], ignore_index=True))
    assert len(opened) == 240 and health.measure(scored, opened) == pytest.approx(health.measure(scored, health._with_truth(said, truth)))
    table = health.with_intervals(scored, opened).set_index("metric")
    assert table.loc["mae", "value"] == pytest.approx(10) and table.loc["coverage_80", "value"] == pytest.approx(2 / 3)
    assert table.loc["mae", "low"] <= 10 <= table.loc["mae", "high"] and np.isfinite(table["high"]).all()

    lists = pd.DataFrame({"user": np.repeat(np.arange(30), 5), "rank": np.tile(np.arange(1, 6), 30), "item": np.tile(np.arange(5), 30)})
    bought = pd.DataFrame({"user": [0, 0, 1, 99], "item": [0, 4, 2, 0]})
    shown = health._with_truth(lists, bought)
    assert health.measure(None, shown) == {"hits_per_list": 0.1, "hit_rate": pytest.approx(2 / 30)}
    assert np.isnan(health.with_intervals(None, shown)["low"]).sum() == 0


def test_a_breach_of_a_bound_needs_the_whole_interval_beyond_it():
    limits = Limits(champion_margin=1, p99_ms=1, size_bytes=1, metrics={"coverage_80": {"at_least": 0.7, "at_most": 0.9}})
    for value, low, high, expected in ((0.6, 0.5, 0.69, "breach"), (0.6, 0.5, 0.75, "pass"), (0.95, 0.91, 1.0, "breach"), (0.8, 0.75, 0.85, "pass"),
                                       (0.6, -np.inf, np.inf, "too few")):  # fmt: skip
        table = pd.DataFrame([{"metric": "coverage_80", "value": value, "low": low, "high": high, "n": 300}])
        assert health._bounds(limits, table)["verdict"] == expected
    assert health._bounds(limits, table.assign(metric="mae"))["verdict"] == "not watched"


def test_a_calibrated_model_does_not_ring_in_small_windows():
    random, limits = np.random.default_rng(3), Limits(champion_margin=1, p99_ms=1, size_bytes=1, metrics={"ece": {"at_most": 0.03}})
    loaded, found, over = SimpleNamespace(score=probability_score), [], []
    for _ in range(40):
        risk = random.beta(1.2, 4, 250)
        table = health.with_intervals(loaded, pd.DataFrame({"probability": risk, "value": (random.random(250) < risk).astype(float)}))
        over.append(table.set_index("metric").loc["ece", "value"] > 0.03)
        found.append(health._bounds(limits, table)["verdict"] == "breach")
    assert np.mean(over) > 0.5 and np.mean(found) <= 0.05
    worse = pd.DataFrame({"probability": risk / 2, "value": (random.random(250) < risk).astype(float)})
    assert health._bounds(limits, health.with_intervals(loaded, worse))["verdict"] == "breach"
