"""Rules are files that refuse what they do not know; decisions are made by those who may."""

import shutil

import pytest

from mlops_core import audit, core, govern, signoff

CASES = ("credit_risk", "recommendation", "consumption_forecast")


@pytest.fixture(autouse=True)
def own_workspace(tmp_path, monkeypatch):
    monkeypatch.setenv("MLOPS_WORKSPACE", str(tmp_path / "workspace"))


@pytest.fixture
def rules(tmp_path, monkeypatch):
    "A copy of the rule files that a test may change."
    shutil.copytree(core.home() / "data" / "policies", tmp_path / "data" / "policies")
    monkeypatch.setenv("MLOPS_HOME", str(tmp_path))
    return tmp_path / "data" / "policies"


def edit(path, old, new):
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))


@pytest.mark.parametrize("case", CASES)
def test_shipped_use_cases_are_complete(case):
    use_case = govern.load_use_case(case)
    policy = govern.load_policy(govern.risk_class(use_case).name)
    checks = {risk.check for risk in use_case.risks} | {assumption.check for assumption in use_case.assumptions}
    assert checks <= set(policy.gates), "what mitigates a risk or watches an assumption is a gate of this class"
    assert all((core.home() / "nbs" / material).exists() for material in use_case.education)
    assert len({risk.cause for risk in use_case.risks}) >= 5 and use_case.regulation


def test_classes_follow_from_factors(rules):
    assert [govern.risk_class(govern.load_use_case(case)).name for case in CASES] == ["high", "medium", "low"]
    edit(rules / "use_cases" / "consumption_forecast.toml", "score = 2", "score = 4")
    assert govern.risk_class(govern.load_use_case("consumption_forecast")).name == "high", "an impact of 4 is always high"
    edit(rules / "use_cases" / "recommendation.toml", "score = 1", "score = 3")
    assert govern.risk_class(govern.load_use_case("recommendation")).name == "high", "a sum of 13"


@pytest.mark.parametrize(
    "file, old, new, message",
    [
        ("high", "sign_offs =", "sign_ofs =", "high.toml.*sign_ofs.*"),
        ("high", '"privacy"', '"privvacy"', "gates.8: Input should be 'contract'"),
        ("high", "override_days = 7", "override_days = -7", "override_days: Input should be greater than 0"),
        ("use_cases/credit_risk", 'kpi = "', 'kpii = "', "kpi: Field required"),
        ("use_cases/credit_risk", "likelihood = 3", "likelihood = 7", "risks.0.likelihood: Input should be less than or equal to 5"),
        ("use_cases/credit_risk", 'owner = "data_engineer"', 'owner = "the boss"', "risks.0.owner: Input should be 'subject_matter_expert'"),
        ("use_cases/credit_risk", "residual_likelihood = 1", "residual_likelihood = 5", "residual risk is above the risk"),
        ("use_cases/credit_risk", "sex = 0.8", "sex = 1.8", "limits.fairness.sex"),
        ("use_cases/credit_risk", "review_band = [0.15, 0.18]", "review_band = [0.18, 0.15]", "write the lower answer first"),
        ("use_cases/credit_risk", "[factors.impact]", "[factors.impact", "is no TOML"),
    ],
)
def test_broken_rules_are_refused_by_file_and_key(rules, file, old, new, message):
    edit(rules / f"{file}.toml", old, new)
    with pytest.raises(govern.GovernanceError, match=message):
        govern.load_use_case("credit_risk") if "/" in file else govern.load_policy(file)


def test_people_and_matrix_are_checked(rules):
    edit(rules / "responsibilities.toml", 'devops = "A"', 'devops = "R"')
    with pytest.raises(govern.GovernanceError, match="step deploy needs a title, one A"):
        signoff.responsibilities()
    edit(rules / "people.toml", '["devops"]', '["dev_ops"]')
    with pytest.raises(govern.GovernanceError, match="cho = .*dev_ops"):
        signoff.people()
    edit(rules / "responsible_ai.toml", '"fairness"', '"fair"')
    with pytest.raises(govern.GovernanceError, match="bias needs means and checks"):
        signoff.responsible_ai()


def test_every_step_has_somebody_to_answer_for_it():
    matrix = signoff.responsibilities()
    holders = {role for roles in signoff.people().values() for role in roles}
    assert ((matrix == "A").sum(axis=1) == 1).all() and set(matrix.columns) <= holders
    policies = [govern.load_policy(name) for name in ("low", "medium", "high")]
    assert all(matrix.loc["approve", role] in "RA" for policy in policies for role in policy.sign_offs), "who must sign may sign"
    assert all(policy.rollout[-1] == 1 and policy.rollout == sorted(policy.rollout) for policy in policies)


def packaged(actor="ana", manifest="ab12"):
    audit.append("packaged", "credit_risk/1", {"manifest": manifest}, actor=actor, role="data_scientist")


def sign(role="model_risk_manager", actor="ben", manifest="ab12", comment="read and accepted"):
    return signoff.sign_off("credit_risk", 1, role, actor=actor, manifest=manifest, report="ef56", comment=comment)


def test_a_sign_off_counts_for_its_artifact_only():
    packaged()
    sign()
    assert signoff.sign_offs("credit_risk", 1, "ab12")["role"].tolist() == ["model_risk_manager"]
    assert signoff.sign_offs("credit_risk", 1, "cd34").empty and signoff.sign_offs("credit_risk", 2, "ab12").empty


@pytest.mark.parametrize(
    "words, message",
    [
        ({"actor": "eve"}, "eve does not hold the role model_risk_manager; ben does"),
        ({"role": "devops", "actor": "cho"}, "devops is I in the step approve"),
        ({"role": "data_scientist", "actor": "ana"}, "data_scientist is C"),
        ({"comment": "  "}, "needs a comment"),
    ],
)
def test_who_may_not_sign_is_told_who_may(words, message):
    packaged()
    with pytest.raises(govern.GovernanceError, match=message):
        sign(**words)
    assert audit.entries(event="signed_off").empty


def test_no_author_is_his_own_risk_manager(rules):
    edit(rules / "people.toml", 'ana = ["data_scientist"]', 'ana = ["data_scientist", "model_risk_manager"]')
    packaged()
    with pytest.raises(govern.GovernanceError, match="ana made credit_risk/1"):
        sign(actor="ana")
    assert sign(actor="ben").event == "signed_off"


@pytest.mark.parametrize("case", CASES)
def test_a_claim_without_evidence_is_a_gap(case):
    before = signoff.governance_steps(case)
    assert set(before["step"]) == set(signoff.STEPS) and (before["gap"] != "").all() and (before["evidence"] == "").all()
    signoff.classify(case, actor="ben", role="model_risk_manager")
    after = signoff.governance_steps(case)
    assert (after["gap"] == "").sum() == 5 and after.loc[after["gap"] == "", "evidence"].str.startswith("entry 1 by ben").all()
    audit.append("packaged", f"{case}/1", {"manifest": "ab"}, actor="ana", role="data_scientist")
    assert (signoff.governance_steps(case)["gap"] == "").sum() == 6


def test_a_rule_that_changed_after_the_decision_is_a_gap_again(rules):
    signoff.classify("credit_risk", actor="ben", role="model_risk_manager")
    edit(rules / "high.toml", "override_days = 7", "override_days = 90")
    gaps = signoff.governance_steps("credit_risk").query("gap.str.contains('changed since entry 1')")
    assert gaps["claim"].tolist() == ["the policy high applies"]
