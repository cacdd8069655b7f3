"""The comparison measures what it says, and the written rule chooses as it is written."""

import mlflow
import numpy as np
import pandas as pd
import pytest
from sklearn.dummy import DummyClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score

from mlops_core.data import Case, Fold
from mlops_core.experiment import TIMINGS, Candidate, Limits, choose, compare


def answer(model, requests):
    return pd.DataFrame({"probability": model.predict_proba(requests)[:, 1]}, index=requests.index)


def score(truth, answers):
    return {"roc_auc": roc_auc_score(truth, answers["probability"])}


CANDIDATES = (
    Candidate("dummy", lambda seed: DummyClassifier(), 1, True),
    Candidate("logistic", lambda seed: LogisticRegression(), 2, True),
)
CASE = Case("tested", "Test", "roc_auc", True, CANDIDATES, answer, score)


def make_folds(n=2, rows=200):
    generator = np.random.default_rng(0)
    X = pd.DataFrame(generator.normal(size=(rows * n, 3)), columns=list("abc"))
    y = pd.Series((X["a"] + generator.normal(size=len(X)) > 0).astype(int))
    parts = np.array_split(X.index, n)
    return [Fold(X.drop(index=p), y.drop(index=p), X.loc[p], y.loc[p]) for p in parts]


@pytest.fixture
def workspace(tmp_path, monkeypatch):
    monkeypatch.setenv("MLOPS_WORKSPACE", str(tmp_path))
    return tmp_path


def test_every_row_is_a_run_with_its_provenance(workspace):
    table = compare(CASE, make_folds(), seed=7, data_fingerprint="abc").table
    runs = mlflow.search_runs(experiment_names=["tested"]).set_index("run_id")
    assert set(runs.index) == set(table["run_id"])
    assert set(runs["tags.seed"]) == {"7"} and set(runs["tags.data"]) == {"abc"} and runs["tags.code"].notna().all()
    row = table.set_index("candidate").loc["logistic"]
    assert runs.loc[row["run_id"], "metrics.roc_auc"] == pytest.approx(row["roc_auc"])
    environment = mlflow.artifacts.load_dict(runs.loc[row["run_id"], "artifact_uri"] + "/environment.json")
    assert environment["pandas"] == pd.__version__
    assert not (workspace.parent / "mlruns").exists()


def test_scores_are_means_over_folds_with_paired_differences(workspace):
    folds = make_folds(4)
    table = compare(CASE, folds, seed=0, data_fingerprint="x").table.set_index("candidate")
    by_hand = [score(f.y_test, answer(LogisticRegression().fit(f.X_train, f.y_train), f.X_test))["roc_auc"] for f in folds]
    assert table.loc["logistic", "roc_auc"] == pytest.approx(np.mean(by_hand))
    assert table.loc["logistic", "roc_auc_se"] == pytest.approx(np.std(by_hand, ddof=1) / 2)
    assert table.loc["dummy", "behind"] == pytest.approx(np.mean(by_hand) - 0.5)
    assert table.loc["logistic", "behind"] == 0


def test_two_runs_agree_but_for_timings(workspace):
    first, second = (compare(CASE, make_folds(), seed=0, data_fingerprint="x").table.drop(columns=[*TIMINGS, "run_id"]) for _ in range(2))
    pd.testing.assert_frame_equal(first, second)


def test_requests_that_share_a_key_stay_together(workspace):
    fold = make_folds(1, 60)[0]
    X = fold.X_test.assign(person=np.repeat(range(20), 3))
    seen = []

    def by_person(truth, answers):
        seen.append(set(answers["person"]))
        assert (answers["person"].value_counts() == 3).all()
        return {"error": float((truth["y"] - answers["probability"]).abs().mean())}

    def answer_person(model, requests):
        return answer(model, requests[list("abc")]).assign(person=requests["person"])

    case = Case("people", "People", "error", False, CANDIDATES, answer_person, by_person, request_key="person")
    truth = pd.DataFrame({"y": fold.y_test, "person": X["person"]})
    table = compare(case, [Fold(fold.X_test, fold.y_test, X, truth)], seed=0, data_fingerprint="x", blocks=4).table
    assert table["error_se"].gt(0).all() and len(seen) == 2 * 5
    assert set.union(*seen[1:5]) == set(range(20)) and sum(map(len, seen[1:5])) == 20


def test_no_folds_is_an_error(workspace):
    with pytest.raises(ValueError, match="at least one fold"):
        compare(CASE, [], seed=0, data_fingerprint="x")


TABLE = pd.DataFrame(
    [
        # name, metric, behind, its standard error, p99, size, explains, complexity
        ("simple", 0.770, 0.020, 0.004, 1.0, 100, True, 1),
        ("middle", 0.787, 0.003, 0.004, 5.0, 1000, True, 2),
        ("complex", 0.790, 0.000, 0.000, 40.0, 9000, False, 3),
    ],
    columns=["candidate", "roc_auc", "behind", "behind_se", "p99_ms", "size_bytes", "explains_itself", "complexity"],
)


def test_rule_takes_the_simplest_within_one_standard_error():
    choice = choose(TABLE, CASE)
    assert choice.winner == "middle" and "simplest that is within one standard error" in choice.sentence
    assert "0.02 behind complex" in choice.reasons["simple"] and "middle is simpler" in choice.reasons["complex"]


def test_rule_takes_the_best_if_the_others_are_beyond_noise():
    choice = choose(TABLE.assign(behind_se=[0.004, 0.001, 0.0]), CASE)
    assert choice.winner == "complex" and "it has the best score" in choice.sentence


@pytest.mark.parametrize(
    "limits, broken",
    [
        (Limits(p99_ms=10), "p99_ms 40.0 exceeds the limit of 10"),
        (Limits(size_bytes=5000), "size_bytes 9,000.0"),
        (Limits(explains_itself=True), "does not explain"),
    ],
)
def test_limits_rule_out_and_say_what_they_cost(limits, broken):
    choice = choose(TABLE.assign(behind_se=[0.004, 0.001, 0.0]), CASE, limits)
    assert choice.winner == "middle" and "which cost 0.003" in choice.sentence
    assert broken in choice.reasons["complex"]


def test_impossible_limits_are_an_error_that_names_each_reason():
    with pytest.raises(ValueError, match="simple: size_bytes 100.0 exceeds the limit of 10.*complex"):
        choose(TABLE, CASE, Limits(size_bytes=10))


def test_lower_is_better_where_the_case_says_so(workspace):
    def brier(truth, answers):
        return {"brier": float(((truth - answers["probability"]) ** 2).mean())}

    case = Case("lower", "Test", "brier", False, CANDIDATES, answer, brier)
    table = compare(case, make_folds(), seed=0, data_fingerprint="x").table
    assert choose(table, case).winner == "logistic" and (table["behind"] >= 0).all()
