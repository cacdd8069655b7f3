"""The three cases at their defaults: whole reports on the whole data that reach the numbers they are held to."""

import json

import pytest

from mlops_core import core
from mlops_core.page import card
from mlops_core.report import run_report

NAMES = {
    "credit_risk": {"roc_auc", "ks", "brier", "ece", "approval_rate", "cost_per_1000"},
    "recommendation": {"recall_at_10", "ndcg_at_10", "map_at_10", "coverage", "ndcg_at_10_new"},
    "consumption_forecast": {"mape", "mase", "coverage_80"},
}


@pytest.fixture(scope="module", params=NAMES)
def report(request, tmp_path_factory):
    folder = run_report(request.param, reports=tmp_path_factory.mktemp("reports"), progress=False)
    return request.param, folder, json.loads((folder / "results.json").read_text())


def test_a_report_at_its_defaults_reaches_what_it_is_held_to(report):
    case, folder, found = report
    assert found["status"] == "succeeded" and NAMES[case] <= found["results"].keys()
    cards = [card(item) for item in found["headline"]]
    assert any("limit" in shown for shown in cards) and not [shown for shown in cards if shown.get("state") == "missed"]
    assert (folder / "report.html").stat().st_size < 3_000_000 and (folder / "report.ipynb").exists()
    limit = {"credit_risk": ("roc_auc", 0.785), "recommendation": ("ndcg_at_10", 0.436)}.get(case)
    assert limit is None or found["results"][limit[0]] >= limit[1]


def test_forecasts_reach_the_reference_numbers(report):
    case, _, found = report
    if case == "consumption_forecast":
        mape = found["results"]["mape"]
        assert mape["chosen"] <= 3.5 and mape["gam"] <= 3.9 and mape["lstm"] <= 4.3 and mape["arima"] <= 4.6
        assert mape.keys() >= {"seasonal_naive", "same_day_type", "gam", "arima", "xgboost", "lstm", "chosen"}
        assert 0.75 <= found["results"]["coverage_80"] <= 0.85


def test_new_items_are_ranked_above_popularity_and_neighbours(report):
    case, _, found = report
    if case == "recommendation":
        new = {row["candidate"]: row["ndcg_at_10_new"] for row in found["tested"]}
        assert found["results"]["ndcg_at_10_new"] > max(new["popularity"], new["item_neighbours"])


def test_candidates_hold_the_whole_comparison(report):
    case, _, found = report
    assert len(found["candidates"]) >= 6 and {"candidate", "size_bytes", "explains_itself"} <= found["candidates"][0].keys()
    assert {"fit_seconds", "p50_ms", "p99_ms", "requests_per_second"} <= next(iter(found["timings"]["candidates"].values())).keys()
    assert found["data"]["fingerprint"] and found["environment"]["python"].startswith("3.11") and found["code_revision"]
    assert found["parameters"].keys() == core.case_parameters(core.home() / "nbs" / "cases" / f"{case}.ipynb").keys()
