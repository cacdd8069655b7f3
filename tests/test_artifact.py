"""Every candidate of the three cases survives the way through files, and files that want more than to be read are refused."""

import functools
import json
import pickle
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
from sklearn.linear_model import LogisticRegression

from mlops_core import credit, forecast, recommend, series
from mlops_core.artifact import ArtifactError, load_object, save_object, verify_manifest, write_manifest
from mlops_core.data import load_dataset, reference_split
from mlops_core.experiment import probabilities


def trip(thing, folder):
    save_object(thing, folder)
    return load_object(folder)


@pytest.fixture(scope="module")
def bank():
    dataset = load_dataset("credit_default")
    features = credit.credit_features(dataset)
    train, _, test = reference_split(dataset)
    return dataset, features, train[features].head(3000), credit.credit_outcome(dataset, train).head(3000), test[features].head(200)


@pytest.mark.parametrize("place", range(6))
def test_credit_models_answer_the_same_after_a_round_trip(bank, place, tmp_path):
    dataset, features, X, y, X_new = bank
    model = credit.credit_candidates(credit.contract_signs(dataset, features))[place].build(0).fit(X, y)
    np.testing.assert_array_equal(trip(model, tmp_path / "model").predict_proba(X_new), model.predict_proba(X_new))


def test_recommenders_answer_the_same_after_a_round_trip(tmp_path):
    bought = recommend.sample_users(recommend.purchases(load_dataset("grocery")), 120, seed=0)
    fold = recommend.ranking_fold(bought, pd.Timestamp("2017-12-18"))
    for candidate in recommend.recommendation_case().candidates:
        model = candidate.build(0).fit(fold.X_train)
        again = trip(model, tmp_path / candidate.name)
        pd.testing.assert_frame_equal(recommend.recommend(again, fold.X_test["user"]), recommend.recommend(model, fold.X_test["user"]))


def test_forecasters_answer_the_same_after_a_round_trip(tmp_path):
    dataset = load_dataset("electricity")
    table, task = series.prepare(dataset.table.tail(90 * 48), dataset.roles)
    fold = series.forecast_fold(table, task, table.index[-5 * 48])
    for candidate in forecast.forecast_candidates(task, epochs=1):
        model = candidate.build(0).fit(fold.X_train, fold.y_train)
        pd.testing.assert_frame_equal(trip(model, tmp_path / candidate.name).predict(fold.X_test), model.predict(fold.X_test))


def odd_frame():
    frame = pd.DataFrame({"when": pd.date_range("2024-01-01", periods=3, tz="Etc/GMT-10"), "what": ["ä", None, "c"], "any": [1, "x", None]})
    frame["kind"] = pd.Categorical(["b", "a", "b"], ["b", "a"], ordered=True)
    return frame


def test_odd_values_survive(tmp_path):
    frame = odd_frame()
    shared = np.arange(6).reshape(2, 3)
    thing = {
        "frame": frame, "pair": (shared, shared), "numbers": [np.float32(1.5), float("nan"), float("-inf"), 2**70, True, None], 3: {"ü"},
        "time": pd.Timestamp("2024-05-01 12:00"), "index": pd.Index(["a", "b"], name="name"), "text": np.array(["x", None], dtype=object),
        "serves": functools.partial(probabilities), "column": frame["when"],
    }  # fmt: skip
    back = trip(thing, tmp_path / "thing")
    pd.testing.assert_frame_equal(back["frame"], frame)
    pd.testing.assert_series_equal(back["column"], thing["column"])
    pd.testing.assert_index_equal(back["index"], thing["index"])
    assert back["pair"][0] is back["pair"][1] and (back["pair"][0] == shared).all() and back[3] == {"ü"} and back["time"] == thing["time"]
    assert back["numbers"][0].dtype == "float32" and np.isnan(back["numbers"][1]) and back["numbers"][2:] == thing["numbers"][2:]
    assert list(back["text"]) == ["x", None] and back["serves"].func is probabilities


def test_what_needs_pickle_is_refused_when_it_is_written(tmp_path):
    class Local:
        pass

    for thing, message in ((lambda: 1, "cannot be stored by name"), (Local(), "without pickle|only types of"), (open(__file__), "without pickle")):
        with pytest.raises(ArtifactError, match=message):
            save_object({"thing": thing}, tmp_path / str(id(thing)))


@pytest.mark.parametrize(
    "old, new, message",
    [
        ('"class": "mlops_core.credit.LinearModel"', '"class": "os.system"', "os.system is named in the artifact"),
        ('"class": "mlops_core.credit.LinearModel"', '"class": "mlops_core.credit.subprocess"', "is no type here"),
        ('"class": "mlops_core.credit.LinearModel"', '"class": "mlops_core.nothing.At"', "cannot be read"),
        ('"array": "', '"array": "../', "which is not in"),
        ('"skops"', '"pickle"', "kind 'pickle'"),
        ('{"', '["', "cannot be read"),
    ],
)
def test_files_that_want_more_are_refused(bank, old, new, message, tmp_path):
    _, _, X, y, _ = bank
    save_object(credit.LinearModel().fit(X, y), tmp_path / "model")
    text = json.dumps(json.loads((tmp_path / "model" / "object.json").read_text()))
    assert old in text
    (tmp_path / "model" / "object.json").write_text(text.replace(old, new, 1))
    with pytest.raises(ArtifactError, match=message):
        load_object(tmp_path / "model")


def test_a_trapped_pickle_in_the_place_of_a_file_never_runs(tmp_path):
    class Trap:
        def __reduce__(self):
            return (tmp_path / "trapped").touch, ()

    save_object({"model": LogisticRegression().fit([[0.0], [1.0]], [0, 1]), "array": np.arange(3)}, tmp_path / "model")
    for path in (tmp_path / "model").iterdir():
        whole = path.read_bytes()
        path.write_bytes(pickle.dumps(Trap()))
        with pytest.raises(ArtifactError):
            load_object(tmp_path / "model")
        path.write_bytes(whole)
    assert not (tmp_path / "trapped").exists()


def test_a_manifest_names_what_is_wrong(tmp_path):
    for name in ("a", "b", "c"):
        (tmp_path / name).write_text(name)
    known = write_manifest(tmp_path)
    (tmp_path / "registered_model_meta").write_text("MLflow's own")
    verify_manifest(tmp_path, known)
    (tmp_path / "a").write_text("A")
    (tmp_path / "b").unlink()
    (tmp_path / "d").symlink_to("c")
    with pytest.raises(ArtifactError, match="changed: a; missing: b; extra: d"):
        verify_manifest(tmp_path, known)
    write_manifest(tmp_path)
    with pytest.raises(ArtifactError, match="not the one that was recorded"):
        verify_manifest(tmp_path, known)


def test_a_server_of_trees_does_not_wait_for_what_only_other_models_need(bank, tmp_path):
    X, y = bank[2:4]
    save_object(credit.BoostedTrees().fit(X, y), tmp_path / "model")
    program = "import sys; from mlops_core import artifact, fallback, forecast, serve; artifact.load_object(sys.argv[1]); print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", program, tmp_path / "model"], capture_output=True, text=True, check=True)
    assert not {"skops", "torch", "shap", "nbformat", "nbconvert"} & set(done.stdout.split())
    save_object(credit.LinearModel().fit(X, y), tmp_path / "linear")
    done = subprocess.run([sys.executable, "-c", program, tmp_path / "linear"], capture_output=True, text=True, check=True)
    assert {"torch", "dask", "skops"} & set(done.stdout.split()) == {"skops"}
