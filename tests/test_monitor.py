"""A live credit model over months: what each look finds, when alerts ring, and what the command line says."""

import functools
import shutil

import numpy as np
import pandas as pd
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from mlops_core import alerts, audit, core, gates, health, log, monitor
from mlops_core.artifact import ArtifactError
from mlops_core.cli import main
from mlops_core.data import Case
from mlops_core.experiment import classification_fold, probabilities, probability_score
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
        *[f'mlops_request_seconds_bucket{{path="/v1/predict",le="{edge}"}} {n}' for edge, n in (("0.01", 900), ("0.05", 995), ("+Inf", 1000))],
    ]) + "\n"  # fmt: skip
    assert monitor.resources(page) == {"requests": 1000, "errors": 0.05, "http_p99_ms": 50, "in_flight": 7}
    empty = monitor.resources("")
    assert empty["requests"] == 0 and np.isnan(empty["errors"]) and np.isnan(empty["http_p99_ms"])
