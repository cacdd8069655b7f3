"""What is expected before outcomes come agrees with what comes, and says how sure it is."""

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import brier_score_loss, roc_auc_score

from mlops_core import estimate, evaluate
from mlops_core.evaluate import Costs

RANDOM = np.random.default_rng(0)
RISK = np.round(RANDOM.beta(1.2, 4, 12_000), 3)  # with ties
OUTCOME = (RANDOM.random(12_000) < RISK).astype(float)
SERVED = pd.DataFrame({"probability": RISK**0.5})  # ranks right, and is no probability


def test_with_outcomes_as_weights_it_is_the_usual_metric():
    found = estimate.weighted_metrics(OUTCOME, RISK, Costs())
    assert found["roc_auc"] == pytest.approx(roc_auc_score(OUTCOME, RISK), abs=1e-12)
    assert found["brier"] == pytest.approx(brier_score_loss(OUTCOME, RISK), abs=1e-12)
    assert found["cost_per_1000"] == pytest.approx(evaluate.cost_curve(OUTCOME, RISK, Costs(), Costs().cut_off)["cost_per_1000"][0])


def test_a_weighted_auc_is_that_of_rows_counted_as_bad_and_as_good():
    weights = RANDOM.random(500)
    doubled, counted = np.r_[np.ones(500), np.zeros(500)], np.r_[weights, 1 - weights]
    expected = roc_auc_score(doubled, np.tile(RISK[:500], 2), sample_weight=counted)
    assert estimate.weighted_auc(weights, RISK[:500]) == pytest.approx(expected, abs=1e-9)
    many = estimate.weighted_auc(np.tile(weights, (3, 1)), RISK[:500])
    assert many.shape == (3,) and np.allclose(many, expected)
    assert np.isnan(estimate.weighted_auc(np.ones(5), RISK[:5])), "one class only"


def test_intervals_hold_what_comes_true_as_often_as_they_say():
    fitted = estimate.fit_confidence(OUTCOME[:4000], SERVED[:4000])
    hits = []
    for window in range(40):
        rows = slice(4000 + 200 * window, 4200 + 200 * window)
        table = fitted.estimate(SERVED[rows], seed=window).set_index("metric")
        truth = estimate.weighted_metrics(OUTCOME[rows], SERVED["probability"].to_numpy()[rows], Costs())
        hits.append([table.loc[name, "low"] <= truth[name] <= table.loc[name, "high"] for name in table.index])
    assert 0.88 <= np.mean(hits) <= 0.99
    believed = SERVED["probability"].mean()
    assert abs(fitted.estimate(SERVED[4000:]).set_index("metric").loc["bad_rate", "value"] - OUTCOME[4000:].mean()) < 0.015 < abs(believed - 0.23)


def test_the_estimate_is_blind_to_a_changed_world_and_the_band_shows_it():
    fitted = estimate.fit_confidence(OUTCOME[:6000], SERVED[:6000])
    changed = np.maximum(OUTCOME[6000:], RANDOM.random(6000) < 0.2)
    row = fitted.estimate(SERVED[6000:]).set_index("metric").loc["bad_rate"]
    assert not row["low"] <= changed.mean() <= row["high"] and row["low"] <= OUTCOME[6000:].mean() <= row["high"]


def test_the_check_of_the_estimator_sees_a_bad_one():
    good = estimate.check_estimator(OUTCOME, SERVED)
    assert good["inside"].mean() >= 0.85 and good["error"].abs().max() < 20
    turned = np.where(np.arange(12_000) % 2 == 0, OUTCOME, 1 - OUTCOME)  # the half that it is checked on is another world
    assert estimate.check_estimator(turned, SERVED)["inside"].mean() < 0.2


@pytest.mark.parametrize(
    "outcome, served, message",
    [
        (np.ones(100), np.full(100, 0.2), "all 100 outcomes are alike"),
        (np.arange(100) % 2, np.r_[np.nan, np.full(99, 0.2)], "needs a probability and an outcome"),
        (np.r_[np.nan, np.arange(99) % 2], np.full(100, 0.2), "needs a probability and an outcome"),
        (np.array([]), np.array([]), "all 0 outcomes are alike"),
    ],
)
def test_what_cannot_be_calibrated_is_refused(outcome, served, message):
    with pytest.raises(ValueError, match=message):
        estimate.fit_confidence(outcome, pd.DataFrame({"probability": served}))


def test_the_calibration_error_that_chance_makes_is_not_taken_for_one():
    over = []
    for window in range(60):
        rows = slice(200 * window, 200 * window + 200)
        over.append(evaluate.expected_calibration_error(OUTCOME[rows], RISK[rows]) > estimate.calibration_noise(RISK[rows], window))
    assert np.mean(over) <= 0.1 and estimate.calibration_noise(RISK[:200]) > 3 * estimate.calibration_noise(RISK)


def forecasts(days, seed, level=100.0):
    random, time = np.random.default_rng(seed), pd.date_range("2027-01-01", periods=48 * days, freq="30min")
    size = level * (1 + (time.hour >= 17))
    error = size * (np.repeat(random.normal(size=days), 48) + random.normal(size=48 * days)) / 1.5
    rows = pd.DataFrame({"origin": time.normalize(), "time": time, "forecast": 5000.0, "low": 5000 - 1.2 * size, "high": 5000 + 1.2 * size})
    return rows, 5000 + error


def test_an_error_model_says_how_large_errors_are_and_when():
    known, actual = forecasts(60, 1)
    model = estimate.fit_error_model(actual, known)
    evening = model.size.predict(estimate._drivers(known[known["time"].dt.hour >= 17])).mean()
    assert evening > 1.5 * model.size.predict(estimate._drivers(known[known["time"].dt.hour < 17])).mean()
    inside = []
    for seed in range(12):
        week, came = forecasts(7, 10 + seed)
        table = model.estimate(week, seed, draws=60).set_index("metric")
        real = pd.Series(evaluate.forecast_metrics(came, week["forecast"], low=week["low"], high=week["high"]))
        inside.append(real["mae"] >= table.loc["mae", "low"] and real["mae"] <= table.loc["mae", "high"])
    assert np.mean(inside) >= 0.75
    week, came = forecasts(7, 99, level=300.0)
    assert np.abs(came - 5000).mean() > model.estimate(week.assign(low=known["low"], high=known["high"])).set_index("metric").loc["mae", "high"]


def test_an_error_model_needs_days_and_values():
    known, actual = forecasts(9, 1)
    with pytest.raises(ValueError, match="9 origins, 0 values missing"):
        estimate.fit_error_model(actual, known)
    known, actual = forecasts(12, 1)
    actual[3] = np.nan
    with pytest.raises(ValueError, match="12 origins, 1 values missing"):
        estimate.fit_error_model(actual, known)
    assert estimate.fit_estimator(None, pd.DataFrame({"user": [1], "item": [2], "rank": [1]}), Costs()) is None
