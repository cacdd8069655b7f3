"""A version walks through the gates, the governance report shows evidence and gaps, and the command line says who may with its exit code."""

import functools
import json
import shlex
import subprocess

import pytest

from mlops_core import audit, core, credit, explain, governance, package
from mlops_core.cli import main
from mlops_core.data import feature_columns, load_dataset, reference_split
from mlops_core.evaluate import Costs, by_slice, fairness
from mlops_core.experiment import classification_fold, probabilities
from mlops_core.portable import ExportError, export_onnx, portable_parts
from mlops_core.rehearsal import walk_through


@pytest.fixture(scope="module")
def material():
    dataset = load_dataset("credit_default")
    features = tuple(feature_columns(dataset))
    recipe = package.Recipe("credit_default", functools.partial(classification_fold, features=features),
                            credit.BoostedTrees(credit.contract_signs(dataset, list(features))), 0)  # fmt: skip
    fold = recipe.fold()
    model = recipe.fit(fold)
    risk, test = probabilities(model, fold.X_test)["probability"], reference_split(dataset)[2]
    judged = test.assign(outcome=fold.y_test, risk=risk)
    shares = explain.mean_contributions(explain.shapley(model, fold.X_test.head(50), background=fold.X_train, seed=0))
    simple = credit.LinearModel().fit(fold.X_train, fold.y_train)
    tables = package.use_case_tables("credit_risk") | {
        "evaluation": [{"metric": "brier", "value": float(((risk - fold.y_test) ** 2).mean()), "low": 0.12, "high": 0.14}],
        "baseline": probabilities(simple, fold.X_test), "explanation": shares.rename_axis("column").reset_index(name="share"),
        "slices": by_slice(judged, ["sex"], lambda rows: {"brier": ((rows["risk"] - rows["outcome"]) ** 2).mean()}, draws=20),
        "fairness": fairness(fold.y_test, (risk < 1 / 6).to_numpy(), test[["sex"]], draws=20), "privacy": [{"auc": 0.5, "high": 0.51}],
        "stress": [{"probe": "x", "verdict": "pass"}], "inputs": [{"column": c, "source": f"clients.{c}"} for c in features],
    }  # fmt: skip
    case = credit.credit_case(dataset, list(features), Costs(5.0, 1.0))
    return case, model, recipe, fold, tables


@pytest.fixture
def version(material, tmp_path, monkeypatch):
    monkeypatch.setenv("MLOPS_WORKSPACE", str(tmp_path / "workspace"))
    case, model, recipe, fold, tables = material
    return package.package_model(case, model, recipe, fold, tables, actor="ana", role="data_scientist")


def test_a_version_walks_through_the_gates_and_the_report_shows_it(version):
    promotion = walk_through(version)
    assert promotion.status == "champion" and promotion.gates["passed"].all() and len(promotion.gates) == 13
    page = governance.governance_report("credit_risk")
    found = json.loads((page.parent / "governance.json").read_text())
    gaps = [step["claim"] for step in found["steps"] if step["gap"]]
    assert all("worked through" in gap or "looked at" in gap for gap in gaps) and len(gaps) == 4, "training and monitoring are open, and say so"
    assert found["live"]["approved_by"] == ["dov (subject_matter_expert)", "ben (model_risk_manager)", "cho (devops)"]
    assert found["live"]["version"] == "1" and found["log"]["wrong"] == []
    text = page.read_text()
    assert audit.head()[1] in text and "12 CFR 1002.9" in text and "http" not in text.split("</style>")[1]


def test_without_sign_offs_nothing_is_promoted(version):
    promotion = walk_through(version, "none")
    assert promotion.status == "refused" and audit.live("credit_risk") is None
    assert set(promotion.gates.loc[~promotion.gates["passed"], "gate"]) == {"reproducibility", "sign_offs"}


def test_the_card_is_computed_from_what_was_packaged(version):
    card = (version.folder / "MODEL_CARD.md").read_text()
    assert "Every table that a version must have is here" in card and "A **BoostedTrees**" in card and "Missing" not in card
    assert f"{load_dataset('credit_default').table['limit_bal'].max():,.4g}"[:3] in card and "monotone" in card
    assert (version.folder / "model_card.html").stat().st_size > 5000
    assert core.read_evaluations(subject="credit_risk/1", metric="brier")["value"].notna().all()


def test_the_model_leaves_for_a_small_machine(version, material, tmp_path):
    _, _, _, fold, _ = material
    export = export_onnx(version.model, fold.X_test.head(300).assign(education="never seen"), tmp_path / "small.onnx")
    assert export.difference < 1e-6 and export.peak_mb < 250 and export.size_bytes == (tmp_path / "small.onnx").stat().st_size
    with pytest.raises(ExportError, match="LinearModel cannot be exported"):
        portable_parts(credit.LinearModel(), fold.X_test)


def do(line):
    return main(shlex.split(line))


def test_from_the_command_line(version, tmp_path, capsys):
    assert do("promote credit_risk 1 --actor cho --role devops") == 3
    said = capsys.readouterr().out
    assert "2 gate(s) refuse it" in said and "not signed by subject_matter_expert, model_risk_manager" in said
    assert do("signoff credit_risk 1 --actor eve --role model_risk_manager --comment fine") == 2
    assert "ben does" in capsys.readouterr().out
    assert do("signoff credit_risk 1 --actor ben --role model_risk_manager --comment 'read it'") == 0
    assert do("signoff credit_risk 1 --actor dov --role subject_matter_expert --comment 'read it'") == 0
    assert do("reproduce credit_risk 1 --actor eli --role data_engineer") == 0 and "reproduced" in capsys.readouterr().out
    assert do("promote credit_risk 1 --override quality --actor ben --role model_risk_manager") == 2
    assert do("promote credit_risk 7 --actor cho --role devops") == 2 and "never recorded" in capsys.readouterr().out
    assert do("promote credit_risk 1 --actor cho --role devops") == 0 and "is champion" in capsys.readouterr().out
    kept = audit.head()[1]
    assert do(f"audit verify --head {kept}") == 0 and do("audit verify --head 1234") == 1
    assert do("audit show credit_risk") == 0 and "approved by ben (model_risk_manager), dov" in capsys.readouterr().out
    assert do("audit show credit_risk --at 2001-01-01") == 0 and "no version" in capsys.readouterr().out
    assert do("audit show credit_risk --at lunch") == 2
    assert do(f"audit export {tmp_path / 'out'}") == 0 and do(f"audit export {tmp_path / 'out'}") == 2
    assert do(f"governance credit_risk --folder {tmp_path / 'page'}") == 0 and (tmp_path / "page" / "governance.html").exists()
    assert do("governance credit_rsk") == 2 and "did you mean use_cases/credit_risk" in capsys.readouterr().out


def test_a_difference_names_its_cause(version, monkeypatch):
    before = package.facts(version.folder)
    for change, cause in (
        ({"training_data": "other"}, "data"), ({"settings": {}}, "settings"), ({"code_fingerprint": "other"}, "code"),
        ({"environment": before["environment"] | {"xgboost": "9.9"}}, "environment: xgboost"), ({}, "seed"),
    ):  # fmt: skip
        assert package._causes(before, before | change)[0].startswith(cause)


def test_a_recipe_that_fails_says_so(version, monkeypatch):
    monkeypatch.setattr(subprocess, "run", lambda *words, **more: subprocess.CompletedProcess(words, 1, "", "first\nMemoryError: too big\n"))
    with pytest.raises(package.ArtifactError, match="could not be made again: MemoryError: too big"):
        package.reproduce("credit_risk", 1, actor="eli", role="data_engineer")
    assert audit.entries(event="reproduced").empty
