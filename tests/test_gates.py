"""For every gate a version that deserves to fail it, and the exact set of gates that refuse it; promotion lets one through."""

import dataclasses
import functools
import os
import random
import shutil
import signal
import subprocess
import sys
import time

import mlflow
import numpy as np
import pandas as pd
import pytest
from sklearn.dummy import DummyClassifier
from sklearn.ensemble import RandomForestClassifier
from sklearn.metrics import roc_auc_score

from mlops_core import audit, core, evaluate, gates, package, signoff
from mlops_core.artifact import ArtifactError
from mlops_core.credit import BoostedTrees
from mlops_core.data import Case, load_dataset
from mlops_core.experiment import classification_fold, probabilities, probability_score
from mlops_core.govern import GovernanceError

COLUMNS = ("limit_bal", "pay_0", "pay_2", "pay_3", "pay_4", "bill_amt1", "pay_amt1", "pay_amt2", "pay_amt3", "pay_amt4")
SIGNS = {"pay_0": 1, "pay_2": 1, "limit_bal": -1}
COSTS = evaluate.Costs(5.0, 1.0)
CASE = Case("credit_risk", "Gates", "roc_auc", True, (), probabilities, functools.partial(probability_score, costs=COSTS))
PROTECTED = load_dataset("credit_default").table[["sex", "age_band", "marriage"]]


@pytest.fixture(autouse=True)
def own_workspace(tmp_path, monkeypatch):
    monkeypatch.setenv("MLOPS_WORKSPACE", str(tmp_path / "workspace"))


def measure(model, fold):
    "The evidence that a case would hand over, computed from the model."
    answers = probabilities(model, fold.X_test)
    score = CASE.score(fold.y_test, answers)
    judged = PROTECTED.loc[fold.X_test.index].assign(outcome=fold.y_test, risk=answers["probability"])
    slices = evaluate.by_slice(judged, list(PROTECTED), lambda rows: {"brier": ((rows["risk"] - rows["outcome"]) ** 2).mean()}, draws=20)
    fair = evaluate.fairness(fold.y_test, (judged["risk"] < COSTS.cut_off).to_numpy(), PROTECTED.loc[fold.X_test.index], draws=20)
    late = probabilities(model, fold.X_test.assign(pay_0=fold.X_test["pay_0"] + 2))["probability"]
    surprise = [np.abs(model.predict_proba(X)[:, 1] - y) for X, y in ((fold.X_train, fold.y_train), (fold.X_test, fold.y_test))]
    member = np.repeat([1, 0], [len(losses) for losses in surprise])
    return {
        "use_case": [{"purpose": "a test"}], "evaluation": pd.Series(score).rename_axis("metric").reset_index(name="value"),
        "baseline": probabilities(DummyClassifier().fit(fold.X_train, fold.y_train), fold.X_test), "slices": slices, "fairness": fair,
        "inputs": [{"column": column, "source": f"clients.{column}"} for column in fold.X_test], "explanation": [{"column": "pay_0"}],
        "stress": [{"probe": "later never safer", "verdict": "pass" if (late >= answers["probability"] - 1e-9).all() else "fail"}],
        "privacy": [{"auc": roc_auc_score(member, -np.concatenate(surprise)), "high": 1.0}], "risks": [{"event": "none"}],
        "assumptions": [{"says": "none"}], "monitoring": [{"what": "nothing"}],
    }  # fmt: skip


GOOD = BoostedTrees(SIGNS)


@functools.cache
def learned(estimator, columns, alter):
    "Recipe, fold, model and its evidence; most tests ask for those of the good version."
    recipe = package.Recipe("credit_default", functools.partial(classification_fold, features=columns), estimator, 0)
    fold = recipe.fold()
    model = recipe.fit(fold)
    alter(model)
    return recipe, fold, model, measure(model, fold)


def make(estimator=GOOD, columns=COLUMNS, alter=lambda model: None, without=(), done=("reproduced", "signed"), **tables):
    "Package, have it made again and signed: what a good version has, but for what the test takes away."
    recipe, fold, model, measured = learned(estimator, columns, alter)
    found = {name: table for name, table in (measured | tables).items() if name not in without}
    version = package.package_model(CASE, model, recipe, fold, found, actor="ana", role="data_scientist")
    if "reproduced" in done:
        noted = {"manifest": version.manifest, "equal": True, "difference": 0.0, "causes": []}
        audit.append("reproduced", version.subject, noted, actor="eli", role="data_engineer")
    if "signed" in done:
        for role, actor in (("subject_matter_expert", "dov"), ("model_risk_manager", "ben")):
            signoff.sign_off("credit_risk", version.version, role, actor=actor, manifest=version.manifest, report="", comment="a test")
    return version


def refusals(version):
    table = gates.check_gates("credit_risk", version.version, actor="ana", role="data_scientist")
    assert list(table["gate"]) == list(gates.GATES) and table["why"].str.len().min() > 5
    return set(table.loc[~table["passed"], "gate"])


def promote(version, **words):
    return gates.promote("credit_risk", version.version, **({"actor": "cho", "role": "devops"} | words))


def halve(model):
    "Keep the first trees only: the order of risks stays, the probabilities crowd around the mean."
    model.model_._Booster = model.model_.get_booster()[: model.n_trees_ // 5]


def test_the_good_version_passes_every_gate_and_goes_live():
    version = make()
    assert refusals(version) == set()
    assert promote(version).status == "champion" and audit.live("credit_risk") == "1" and package.load_model("credit_risk").version == 1
    assert promote(make()).status == "approved", "a second version waits for its roll-out"
    assert audit.live("credit_risk") == "1"
    audit.append("rollout_passed", "credit_risk/2", actor="cho", role="devops")
    assert gates.promote("credit_risk", 2, actor="cho", role="devops").status == "champion" and audit.live("credit_risk") == "2"
    assert mlflow.MlflowClient().get_registered_model("credit_risk").aliases["champion"] in (2, "2") and audit.verify() == []


def relearn(turn):
    "Learn from outcomes that `turn(outcomes, men)` made worse for men."
    def alter(model):
        fold = classification_fold("credit_default", (*COLUMNS, "sex"))
        model.fit(fold.X_train, turn(fold.y_train.astype(bool), fold.X_train["sex"] == "male").astype("int8"))

    return alter


UNFAIR = lambda bad, men: bad | (men & (np.random.default_rng(0).random(len(bad)) < 0.3))  # noqa: E731
INVERTED = lambda bad, men: bad ^ men  # noqa: E731
OVERFIT = RandomForestClassifier(60, random_state=0)
BAD = {
    "contract": (lambda: make(inputs=[{"column": "pay_0", "source": "clients.pay_0"}]), {"contract"}),
    "unknown source": (lambda: make(inputs=[{"column": c, "source": f"clients.my_{c}"} for c in COLUMNS]), {"contract", "availability"}),
    "leaky": (lambda: make(columns=(*COLUMNS, "default_next_month")), {"availability"}),
    "no better than a guess": (lambda: make(DummyClassifier()), {"quality", "fairness"}),  # approving nobody is no fairness
    "miscalibrated": (lambda: make(alter=halve), {"calibration"}),
    "inverted sign": (lambda: make(BoostedTrees({"pay_0": -1, "pay_2": -1})), {"behaviour"}),
    "overfit": (lambda: make(OVERFIT), {"privacy", "behaviour", "budget"}),
    "unfair": (lambda: make(columns=(*COLUMNS, "sex"), alter=relearn(UNFAIR)), {"fairness", "calibration"}),
    "wrong for a group": (lambda: make(columns=(*COLUMNS, "sex"), alter=relearn(INVERTED)), {"slices", "fairness", "calibration"}),
    "undocumented": (lambda: make(without=["risks"]), {"documentation"}),
    "nobody made it again": (lambda: make(done=["signed"]), {"reproducibility"}),
    "unsigned": (lambda: make(done=["reproduced"]), {"sign_offs"}),
    "fairness not measured": (lambda: make(without=["fairness"]), {"fairness"}),
    "slices not measured": (lambda: make(without=["slices"]), {"slices", "documentation"}),
}


@pytest.mark.parametrize("bad", BAD)
def test_what_deserves_to_fail_a_gate_fails_exactly_it(bad):
    build, expected = BAD[bad]
    refused(build(), expected)


def refused(version, expected):
    found = refusals(version)
    assert found == expected
    with pytest.raises(gates.GateRefused) as refusal:
        promote(version)
    assert set(refusal.value.failed["gate"]) == found and audit.live("credit_risk") is None


def test_a_slow_version_is_refused_for_it_alone(monkeypatch):
    quick = BoostedTrees.predict_proba

    def slow(model, X):
        time.sleep(0.25)  # where 0.2 s are allowed
        return quick(model, X)

    version = make()
    with monkeypatch.context() as patch:
        patch.setattr(BoostedTrees, "predict_proba", slow)
        refused(version, {"budget"})
    assert refusals(version) == set(), "it was the time alone"


def test_one_pause_of_the_machine_refuses_nobody(monkeypatch):
    quick, pauses = BoostedTrees.predict_proba, iter([0.5])

    def paused_once(model, X):
        time.sleep(next(pauses, 0) if len(X) == 1 else 0)
        return quick(model, X)

    version = make()
    monkeypatch.setattr(BoostedTrees, "predict_proba", paused_once)
    assert refusals(version) == set() and next(pauses, None) is None


def test_a_worse_version_is_refused_by_the_champion_alone():
    assert promote(make()).status == "champion"
    fewer = make(BoostedTrees(SIGNS), columns=("limit_bal", "pay_0", "pay_amt1"))
    assert "champion" in refusals(fewer) and "quality" not in refusals(fewer)
    worse = make(BoostedTrees(SIGNS, max_depth=1, learning_rate=0.01))
    assert refusals(worse) - {"calibration"} == {"champion"} and audit.live("credit_risk") == "1"


def test_a_version_that_cannot_be_made_again_is_refused_for_it():
    recipe = package.Recipe("credit_default", functools.partial(classification_fold, features=COLUMNS, sample=3000), BoostedTrees(SIGNS), 0)
    fold = recipe.fold()
    model = BoostedTrees(SIGNS, seed=7).fit(fold.X_train, fold.y_train)
    version = package.package_model(CASE, model, recipe, fold, measure(model, fold), actor="ana", role="data_scientist")
    found = package.reproduce("credit_risk", version.version, actor="eli", role="data_engineer")
    assert not found.equal and "seed" in found.causes[0] and "reproducibility" in refusals(version)


UNTIL = core.now() + pd.Timedelta(days=3)
EXCUSE = gates.Override(("documentation",), "ben", "model_risk_manager", "the register follows on Friday, agreed in the review", UNTIL)


def test_an_override_lands_in_the_log_and_expires(monkeypatch):
    version = make(without=["risks"])
    assert promote(version, override=EXCUSE).status == "champion"
    shown = gates.open_overrides("credit_risk").iloc[0]
    assert shown["gates"] == "documentation" and shown["by"] == "ben (model_risk_manager)" and not shown["expired"]
    later = core.now() + pd.Timedelta(days=4)
    monkeypatch.setattr(core, "now", lambda: later)
    assert gates.open_overrides("credit_risk")["expired"].all()


@pytest.mark.parametrize(
    "change, message",
    [
        ({"actor": "cho", "role": "devops"}, "devops may not override; model_risk_manager may"),
        ({"actor": "ana"}, "ana does not hold the role"),
        ({"rationale": "trust me"}, "rationale of 20 characters"),
        ({"until": UNTIL + pd.Timedelta(days=30)}, "ends after now, by"),
        ({"until": UNTIL - pd.Timedelta(days=30)}, "ends after now, by"),
        ({"gates": ("beauty",)}, "no gate beauty"),
    ],
)
def test_an_override_that_may_not_be_changes_nothing(change, message):
    version = make(without=["risks"], done=[])
    with pytest.raises(GovernanceError, match=message):
        promote(version, override=dataclasses.replace(EXCUSE, **change))
    assert audit.entries(event="approved").empty and audit.live("credit_risk") is None


def test_an_override_opens_its_own_gates_only():
    version = make(without=["risks", "stress"])
    with pytest.raises(gates.GateRefused, match="behaviour"):
        promote(version, override=EXCUSE)
    assert audit.entries(event="override").empty


def test_an_alias_that_was_moved_by_hand_is_not_served_and_is_set_back():
    first, second = make(), make(without=["risks"])
    promote(first)
    client = mlflow.MlflowClient()
    client.set_registered_model_alias("credit_risk", "champion", str(second.version))
    assert package.load_model("credit_risk", "champion").version == first.version
    assert "calls version 2 the champion" in gates.alias_mismatch("credit_risk")[0]
    gates.mirror_aliases("credit_risk")
    assert gates.alias_mismatch("credit_risk") == [] and str(client.get_model_version_by_alias("credit_risk", "champion").version) == "1"


PROMOTER = """
import sys
from mlops_core import audit, gates
check, name = gates.check_gates, "credit_risk"

def slowly(*words, **more):
    found = check(*words, **more)
    print("checked", flush=True)
    sys.stdin.readline()
    return found

gates.check_gates = slowly
try:
    print(gates.promote(name, int(sys.argv[1]), actor="cho", role="devops").status)
except audit.AuditConflict as refusal:
    print(refusal)
"""


def promoter(number):
    return subprocess.Popen([sys.executable, "-c", PROMOTER, str(number)], stdin=-1, stdout=-1, text=True)


def test_of_two_promotions_at_once_one_wins():
    rivals = [promoter(make().version) for _ in range(2)]
    assert [rival.stdout.readline() for rival in rivals] == ["checked\n"] * 2
    answers = [rivals[0].communicate("go\n", timeout=90)[0].strip(), rivals[1].communicate("go\n", timeout=90)[0].strip()]
    assert answers[0] == "champion" and "credit_risk: entry" in answers[1] and "decide again" in answers[1]
    assert audit.live("credit_risk") == "1" and len(audit.entries(event="champion")) == 1 and audit.verify() == []


def test_a_kill_during_a_promotion_leaves_the_champion_as_it_was():
    promote(make())
    audit.append("rollout_passed", f"credit_risk/{make().version}", actor="cho", role="devops")
    dying = promoter(2)
    assert dying.stdout.readline() == "checked\n"
    dying.send_signal(signal.SIGKILL)
    dying.wait()
    assert audit.live("credit_risk") == "1" and package.load_model("credit_risk").version == 1 and audit.verify() == []


def test_a_kill_during_packaging_leaves_nothing_that_can_be_loaded(monkeypatch):
    def die(*words, **more):
        raise KeyboardInterrupt

    promote(make())
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(package.audit, "append", die)
        make()
    with pytest.raises(ArtifactError, match="credit_risk 2 was never recorded as packaged"):
        package.load_model("credit_risk", 2)
    assert package.load_model("credit_risk").version == 1 and make().version == 3


def test_any_byte_of_an_artifact_that_changes_is_found():
    version = make()
    root = version.folder.parent.parent
    files = sorted(path for path in root.rglob("*") if path.is_file() and path.name != "registered_model_meta" and path.stat().st_size)
    generator = random.Random(1)
    for _ in range(100):
        path = generator.choice(files)
        whole = path.read_bytes()
        place = generator.randrange(len(whole))
        path.write_bytes(whole[:place] + bytes([whole[place] ^ (1 << generator.randrange(8))]) + whole[place + 1 :])
        with pytest.raises(ArtifactError, match=path.name):
            package.load_model("credit_risk", 1)
        path.write_bytes(whole)
    package.load_model("credit_risk", 1)


def test_missing_and_extra_files_are_named_and_nothing_in_an_artifact_runs(tmp_path):
    version = make()
    trap = f"import pathlib\npathlib.Path({str(tmp_path / 'trapped')!r}).touch()\n"
    pickled = b"cos\nsystem\n(S'touch " + os.fsencode(tmp_path / "trapped") + b"'\ntR."
    for name, content in (("sitecustomize.py", trap.encode()), ("model.pkl", pickled)):
        extra = version.folder / "model" / name
        extra.write_bytes(content)
        with pytest.raises(ArtifactError, match=f"extra: data/parts/model/{name}"):
            package.load_model("credit_risk", 1)
        extra.unlink()
    card = version.folder / "MODEL_CARD.md"
    shutil.move(card, tmp_path / "card")
    with pytest.raises(ArtifactError, match="missing: data/parts/MODEL_CARD.md"):
        package.load_model("credit_risk", 1)
    assert not (tmp_path / "trapped").exists()
