"""The credit models keep their promises, reach the reference, and the case runs on anybody's table."""

import json

import nbformat
import numpy as np
import pandas as pd
import papermill
import pytest
from cells import run_before

from mlops_core import core, credit
from mlops_core.data import LeakageError, load_dataset, reference_split
from mlops_core.evaluate import classification_metrics
from mlops_core.report import run_report

CASE = core.home() / "nbs" / "cases" / "credit_risk.ipynb"
BOUND = credit.BoostedTrees({"pay_0": 1, "limit_bal": -1})
MODELS = [credit.LinearModel(), credit.Scorecard(), credit.AdditiveModel(), credit.BoostedTrees(), BOUND]


@pytest.fixture(autouse=True)
def own_workspace(tmp_path, monkeypatch):
    monkeypatch.setenv("MLOPS_WORKSPACE", str(tmp_path / "workspace"))


@pytest.fixture(scope="module")
def bank():
    dataset = load_dataset("credit_default")
    features = credit.credit_features(dataset)
    parts = [(part[features], credit.credit_outcome(dataset, part)) for part in reference_split(dataset)]
    return dataset, features, parts


def run(tmp_path, **parameters):
    parameters = {"workspace": str(tmp_path / "workspace"), "sign_offs": "none", "weeks": 0} | parameters
    papermill.execute_notebook(CASE, tmp_path / "out.ipynb", parameters=parameters, kernel_name="python3", progress_bar=False)
    return core.read_records(nbformat.read(tmp_path / "out.ipynb", as_version=4))


def test_reference_numbers_as_means_of_five_seeds(bank):
    dataset, features, ((X, y), _, (X_test, y_test)) = bank
    signs = credit.contract_signs(dataset, features)
    scores = []
    for seed in range(5):
        risk = credit.BoostedTrees(signs, seed=seed).fit(X, y).predict_proba(X_test)[:, 1]
        scores.append(classification_metrics(y_test, risk))
    means = pd.DataFrame(scores).mean()
    assert means["roc_auc"] >= 0.785 and means["brier"] <= 0.134


def test_features_hold_nothing_protected_or_late(bank):
    dataset, features, _ = bank
    assert len(features) == 20 and not {"sex", "age", "age_band", "marriage", "client_id", "default_next_month"} & set(features)
    assert set(credit.credit_features(dataset, protected=True)) - set(features) == {"sex", "age", "age_band", "marriage"}
    with pytest.raises(LeakageError, match="default_next_month"):
        from mlops_core.data import require_available

        require_available(dataset, "clients", ["default_next_month"])


@pytest.mark.parametrize("model", MODELS, ids=lambda m: type(m).__name__)
def test_models_cope_with_gaps_and_unknown_levels_and_add_up(bank, model):
    _, _, ((X, y), (X_new, _), _) = bank
    X, y, rows = X.head(3000).copy(), y.head(3000), X_new.head(60).copy()
    X["bill_amt1"] = X["bill_amt1"].where(np.arange(len(X)) % 7 > 0)
    rows["bill_amt1"] = np.nan
    rows["education"] = "kindergarten"
    risk = model.fit(X, y).predict_proba(rows)[:, 1]
    assert np.isfinite(risk).all() and (risk > 0).all() and (risk < 1).all()
    contributions = model.contributions(rows)
    assert list(contributions) == ["base", *X.columns]
    np.testing.assert_allclose(contributions.sum(axis=1), np.log(risk / (1 - risk)), atol=1e-3)
    np.testing.assert_array_equal(model.fit(X, y).predict_proba(rows)[:, 1], risk, "the same fit twice gives the same answers")


def test_monotone_trees_keep_the_contract_for_every_applicant(bank):
    dataset, features, ((X, y), (X_new, _), _) = bank
    signs = credit.contract_signs(dataset, features)
    assert signs["pay_0"] == 1 and signs["limit_bal"] == -1
    bound, free = (credit.BoostedTrees(s).fit(X.head(8000), y.head(8000)) for s in (signs, None))
    people = X_new.head(300)

    def falls(model):
        curve = np.array([model.predict_proba(people.assign(pay_0=months))[:, 1] for months in range(-2, 9)])
        return (np.diff(curve, axis=0) < -1e-7).any()

    assert not falls(bound) and falls(free), "the constraint must hold, and without it the data must break it"


def test_folds_need_both_outcomes(bank):
    _, _, ((X, y), _, _) = bank
    with pytest.raises(ValueError, match="at least 5 rows of each outcome"):
        credit.credit_folds(X, y * 0, 5, seed=0)


def test_case_on_a_small_sample_is_repeatable(tmp_path, monkeypatch):
    small = {"sample": 2000, "folds": 2}
    first, second = (run(tmp_path, **small, approval_rate=0.7) for _ in range(2))
    first.pop("timings"), second.pop("timings")
    assert json.dumps(first) == json.dumps(second)
    assert {"roc_auc", "ks", "brier", "ece", "approval_rate", "cost_per_1000"} <= first["results"].keys()
    assert first["results"]["roc_auc"] > 0.7 and first["results"]["approval_rate"] == pytest.approx(0.7, abs=0.06)
    other = run_before("Choice", "credit_risk", monkeypatch, **small, seed=5)["table"].set_index("candidate")
    assert all(other.loc[row["candidate"], "roc_auc"] != row["roc_auc"] for row in first["candidates"] if row["candidate"] != "base_rate")


@pytest.fixture
def own_table(tmp_path):
    generator = np.random.default_rng(1)
    n = 2500
    frame = pd.DataFrame({
        "contract": np.arange(n), "tenure months": generator.integers(1, 60, n), "plan": generator.choice(["basic", "plus", "família"], n),
        "calls": generator.poisson(3, n).astype(float), "autopay": generator.random(n) < 0.5,
    })  # fmt: skip
    frame.loc[::11, "calls"] = np.nan
    logit = -1.2 - 0.04 * frame["tenure months"] + 0.5 * frame["calls"].fillna(3) - 0.7 * frame["autopay"]
    frame["left"] = np.where(generator.random(n) < 1 / (1 + np.exp(-logit)), "yes", "no")
    folder = tmp_path / "churn"
    folder.mkdir()
    frame.to_csv(folder / "customers.csv", index=False)
    (folder / "dataset.toml").write_text(
        '[tables]\ncustomers = "customers.csv"\n[roles]\ntable = "customers"\nkey = "contract"\ntarget = "left"\npositive = "yes"\n'
    )
    return folder


def test_case_on_a_table_of_ones_own(own_table, tmp_path):
    asked = {"dataset": str(own_table), "folds": 3, "bad_cost": 3.0, "weeks": 6, "sign_offs": "none"}
    folder = run_report("credit_risk", asked, reports=tmp_path / "reports", progress=False)
    found = json.loads((folder / "results.json").read_text())
    assert found["status"] == "succeeded" and (folder / "report.html").stat().st_size < 3_000_000 and (folder / "report.ipynb").exists()
    assert found["parameters"].keys() == core.case_parameters(CASE).keys() and found["data"]["fingerprint"] and found["code_revision"]
    assert {"fit_seconds", "p50_ms", "p99_ms", "requests_per_second"} <= next(iter(found["timings"]["candidates"].values())).keys()
    assert {"candidate", "size_bytes", "explains_itself"} <= found["candidates"][0].keys()
    assert found["data"]["rows"] == 2500 and found["results"]["roc_auc"] > 0.65
    assert {row["candidate"] for row in found["candidates"]} == {"base_rate", "logistic", "scorecard", "gam", "xgboost_monotone", "xgboost"}
    assert all(card["limit"] is None for card in found["headline"]), "reference limits belong to our own data only"


@pytest.mark.parametrize(
    "parameters, message",
    [
        ({"dataset": "electricity"}, "this case needs"),
        ({"sample": 12}, "rows of each outcome"),
    ],
)
def test_case_refuses_what_cannot_be(monkeypatch, parameters, message):
    with pytest.raises(ValueError, match=message):
        run_before("Explain", "credit_risk", monkeypatch, **parameters)


def test_trees_read_a_matrix_as_xgboost_reads_a_frame(bank):
    X, y = bank[2][0]
    X, y = X.head(1500).assign(owner=X["pay_0"].head(1500) > 0), y.head(1500)
    model = credit.BoostedTrees().fit(X, y)
    asked = X.head(200).astype({"education": object, "limit_bal": float, "pay_2": "Int64"})
    asked.loc[asked.index[0], "education"], asked.loc[asked.index[1], "education"] = "phd", None
    asked.loc[asked.index[2], "limit_bal"], asked.loc[asked.index[3], "pay_2"] = np.nan, pd.NA
    np.testing.assert_array_equal(model.predict_proba(asked), model.model_.predict_proba(model._frame(asked)))
    assert model.predict_proba(asked).shape == (200, 2), "unknown and missing values are answered as missing"
