"""What a look calls for: broken inputs before outcomes, outcomes before the model, and the policy says who decides."""

import pandas as pd
import pytest

from mlops_core.diagnosis import BROKEN, REALISED, Diagnosis, diagnose
from mlops_core.govern import Action, load_policy, load_use_case
from mlops_core.health import NOTHING_MOVED, Look

USE_CASE = load_use_case("credit_risk")


def seen(*breached, column=None, verdict="drift"):
    rows = [{"check": check, "value": 0.0, "limit": 0.0, "verdict": "breach", "why": f"{check} said so"} for check in breached]
    moved = NOTHING_MOVED if column is None else pd.DataFrame({"column": [column], "verdict": [verdict], "effect": [0.9], "why": ["it moved"]})
    verdicts = pd.DataFrame(rows, columns=["check", "value", "limit", "verdict", "why"])
    return Look("credit_risk", 1, pd.Timestamp("2027-01-01"), verdicts, pd.DataFrame(), moved)


@pytest.mark.parametrize("verdict", BROKEN)
def test_a_broken_input_is_no_reason_to_learn_whatever_else_rings(verdict):
    said = diagnose(seen("drift", "outcomes", *REALISED, column="pay_0", verdict=verdict), USE_CASE, 10**6, 10**4)
    assert said.action == "fallback" and said.columns == ("pay_0",) and verdict in said.because and "it moved" in said.because


@pytest.mark.parametrize("check", REALISED)
def test_outcomes_that_are_worse_call_for_training_once_enough_are_known(check):
    assert diagnose(seen(check), USE_CASE, USE_CASE.retrain_rows, 1).action == "retrain"
    waits = diagnose(seen(check), USE_CASE, USE_CASE.retrain_rows - 1, 1)
    assert waits.action == "hold" and f"{USE_CASE.retrain_rows:,}" in waits.because and f"{check} said so" in waits.because
    assert diagnose(seen(check, "outcomes"), USE_CASE, 10**6, 1).action == "hold", "what comes is not all there is"
    assert diagnose(seen(check), USE_CASE, 10**6, 1, was_broken=True).action == "hold"


def test_what_did_not_help_is_not_tried_again():
    assert diagnose(seen("performance"), USE_CASE, 10**6, 1, tried=("retrain",)).action == "new_features"
    assert diagnose(seen("performance", "drift", column="pay_0"), USE_CASE, 10**6, 1, tried=("retrain",)).action == "new_algorithm"


@pytest.mark.parametrize("checks", [("drift",), ("scores",), ("estimate",), ("drift", "scores", "estimate"), ("latency",)])
def test_without_outcomes_nothing_is_learned(checks):
    said = diagnose(seen(*checks, column="pay_0"), USE_CASE, 10**6, 1)
    assert said.action == "hold" and all(check in said.because for check in checks)


def test_a_calm_model_is_trained_when_it_is_due_and_there_is_something_to_learn():
    assert diagnose(seen(), USE_CASE, 10**6, USE_CASE.retrain_every_days).action == "retrain"
    assert diagnose(seen(), USE_CASE, 10**6, USE_CASE.retrain_every_days - 1) == Diagnosis("hold", "")
    assert diagnose(seen(), USE_CASE, USE_CASE.retrain_rows - 1, 10**4) == Diagnosis("hold", "")
    assert diagnose(seen(), USE_CASE.model_copy(update={"retrain_every_days": None}), 10**6, 10**4) == Diagnosis("hold", "")


def test_the_policy_says_what_may_happen_without_a_person():
    for name in ("low", "medium", "high"):
        policy = load_policy(name)
        assert {"hold", "fallback"} <= set(policy.unattended) and not {"new_features", "new_algorithm"} & set(policy.unattended)
        assert all(Diagnosis(action, "").needs_person(policy) != (action in policy.unattended) for action in Action.__args__)
    assert Diagnosis("retrain", "").needs_person(load_policy("high")), "where people are judged a person decides"
