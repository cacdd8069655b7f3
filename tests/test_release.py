"""A good version reaches production through a real server elsewhere; a bad one stops before it; a case from outside needs no change to the core."""

import functools
import os
import shutil
import types

import httpx
import pandas as pd
import pytest
from sklearn.datasets import load_digits
from sklearn.dummy import DummyClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from test_gates import make

from mlops_core import audit, core, package, release, signoff, traffic
from mlops_core.artifact import ArtifactError
from mlops_core.data import Case
from mlops_core.experiment import classification_fold, probabilities, probability_score
from mlops_core.gates import GateRefused

WHO = {"actor": "cho", "role": "devops"}


@pytest.fixture(autouse=True)
def own_workspace(tmp_path, monkeypatch):
    monkeypatch.setenv("MLOPS_WORKSPACE", str(tmp_path / "workspace"))
    monkeypatch.delenv("MLOPS_OPS_URL", raising=False)


def steps(event="release_step"):
    return [payload["step"] for payload in audit.entries(event=event)["payload"]]


def test_a_good_version_is_released_and_the_next_one_begins_in_the_shadow(monkeypatch):
    make()
    with monkeypatch.context() as patch:
        patch.setattr(release, "load_use_case", limited(p99_ms=0.001))
        with pytest.raises(release.SmokeRefused, match="1 smoke test.* refuse it"):
            release.release("credit_risk", **WHO)
    assert steps() == ["gates"] and steps("release_stopped") == ["test"] and audit.live("credit_risk") is None
    assert "is champion: none was live" in release.release("credit_risk", **WHO)
    assert audit.live("credit_risk") == "1" and steps() == ["gates", "gates", "test", "production"]
    assert not [name for name in ("MLOPS_TRACKING_URI", "MLOPS_OPS_URL") if name in os.environ], "the environment is as it was"
    make()
    assert "in the shadow" in release.release("credit_risk", **WHO)
    running = traffic.running("credit_risk")
    assert (running.champion, running.challenger, running.step) == (1, 2, 0) and audit.live("credit_risk") == "1"
    assert audit.verify() == []


def test_a_gate_stops_it_before_any_server_runs(monkeypatch):
    make(without=("stress",))
    monkeypatch.setattr(release, "server_process", None)
    with pytest.raises(GateRefused, match="behaviour"):
        release.release("credit_risk", **WHO)
    assert steps("release_stopped") == ["gates"] and audit.live("credit_risk") is None


def limited(**limits):
    kept = release.load_use_case("credit_risk")
    return lambda name: kept.model_copy(update={"limits": kept.limits.model_copy(update=limits)})


def test_what_is_served_wrongly_or_slowly_fails_its_smoke_test_and_the_rest_passes(monkeypatch):
    version = make(done=())
    asked, answers = release._requests(version)
    bad = {
        "speed": ("load_use_case", limited(p99_ms=0.001), "99 % of requests within"),
        "equal_answers": ("_requests", lambda loaded: (asked, answers + 1e-7), "answers differ from the artifact's by up to"),
        "logged": ("joined", lambda name, kept=release.joined: kept(name).iloc[:0], "0 of the answers"),
    }
    throughput = ("load_use_case", limited(requests_per_second=1e6), "requests/s from 8 connections")
    with release.trial_environment(version), release.server_process("credit_risk") as address:
        for test, (name, wrong, why) in [*bad.items(), ("speed", throughput)]:
            with monkeypatch.context() as patch:
                patch.setattr(release, name, wrong)
                table = release.smoke_tests(version, address, **WHO).set_index("test")
            assert not table.loc[test, "passed"] and why in table.loc[test, "why"], test
            assert table["passed"].sum() == len(table) - 1, table
        assert release.smoke_tests(version, address, **WHO)["passed"].all(), "and unharmed all pass"


@pytest.mark.parametrize("test, why", [
    (release._probes, "/ready says"), (release._keys, "not 401 and 403"), (release._refusals, "nonsense gets"), (release._metrics, "does not count"),
])
def test_a_server_that_says_yes_to_everything_fails(monkeypatch, test, why):
    monkeypatch.setattr(release, "_requests", lambda loaded: ([{}], None))
    yes = httpx.MockTransport(lambda request: httpx.Response(200, json={"version": 0}))
    with httpx.Client(transport=yes, base_url="http://yes") as client:
        found = release._outcome(test, types.SimpleNamespace(version=1), client, {"outcome": "a key"})
    assert not found["passed"] and why in found["why"]


def test_a_server_that_does_not_start_says_why():
    with pytest.raises(release.SmokeRefused, match="did not start: .*no_such_case.*try it"), release.server_process("no_such_case"):
        pass


def test_a_server_ends_also_when_its_block_fails():
    with pytest.raises(ZeroDivisionError), release.trial_environment(make()), release.server_process("credit_risk") as address:
        assert httpx.get(f"{address}/ready").status_code == 200
        raise ZeroDivisionError
    with pytest.raises(httpx.TransportError):
        httpx.get(f"{address}/live")


def test_what_is_not_there_cannot_be_released():
    with pytest.raises(ArtifactError, match="mlops report credit_risk"):
        release.release("credit_risk", **WHO)


PIXELS = tuple(f"pixel_{row}_{column}" for row in range(1, 7) for column in range(2, 6))


@pytest.fixture
def elsewhere(tmp_path, monkeypatch):
    "The project with a use case and a data set that it does not ship."
    home = tmp_path / "project"
    home.mkdir()
    for path in core.home().iterdir():
        if path.name not in ("data", "var", ".git", ".venv", "reports"):
            (home / path.name).symlink_to(path)
    shutil.copytree(core.home() / "data" / "policies", home / "data" / "policies")
    cases = home / "data" / "policies" / "use_cases"
    text = (cases / "credit_risk.toml").read_text().replace("score = 4", "score = 1").replace("score = 3", "score = 2")
    fair, rest = text.split("[limits.fairness]")
    (cases / "digits.toml").write_text(fair.replace("at_most = 0.03", "at_most = 0.2") + "[[risks]]" + rest.split("[[risks]]", 1)[1])
    table = load_digits(as_frame=True).frame[[*PIXELS, "target"]]
    folder = home / "data" / "digits"
    folder.mkdir()
    table = table.assign(even=(table["target"] % 2 == 0).astype(int)).drop(columns="target").rename_axis("key").reset_index()
    table.to_csv(folder / "digits.csv", index=False)
    columns = "".join(f'[columns.digits.{name}]\ntype = "number"\nmin = 0\nmax = 16\n' for name in PIXELS)
    roles = '[roles]\ntable = "digits"\nkey = "key"\ntarget = "even"\npositive = 1\n'
    (folder / "dataset.toml").write_text(f'[tables]\ndigits = "digits.csv"\n{roles}{columns}')
    monkeypatch.setenv("MLOPS_HOME", str(home))
    return home


def test_a_fourth_case_from_outside_is_packaged_gated_and_released(elsewhere):
    case = Case("digits", "Even digits", "roc_auc", True, (), probabilities, probability_score)
    estimator, build = make_pipeline(StandardScaler(), LogisticRegression()), functools.partial(classification_fold, features=PIXELS)
    recipe = package.Recipe("digits", build, estimator, 0)
    fold = recipe.fold()
    model = recipe.fit(fold)
    risk, reverse = (probabilities(model, X)["probability"] for X in (fold.X_test, fold.X_test[::-1]))
    tables = package.use_case_tables("digits") | {
        "evaluation": pd.Series(case.score(fold.y_test, risk.to_frame())).rename_axis("metric").reset_index(name="value"),
        "baseline": probabilities(DummyClassifier().fit(fold.X_train, fold.y_train), fold.X_test), "explanation": [{"column": PIXELS[0]}],
        "slices": [{"slice": "all", "metric": "brier", "value": ((risk - fold.y_test) ** 2).mean(), "n": len(risk)}],
        "inputs": [{"column": name, "source": f"digits.{name}"} for name in PIXELS],
        "stress": [{"probe": "the order of requests is nothing", "verdict": "pass" if (risk - reverse).abs().max() < 1e-12 else "fail"}],
    }  # fmt: skip
    version = package.package_model(case, model, recipe, fold, tables, actor="ana", role="data_scientist")
    package.reproduce("digits", 1, actor="eli", role="data_engineer")
    for actor, role in (("dov", "subject_matter_expert"), ("gil", "machine_learning_architect")):
        signoff.sign_off("digits", 1, role, actor=actor, manifest=version.manifest, report="0" * 64, comment="read and accepted")
    assert "is champion" in release.release("digits", **WHO)
    assert audit.live("digits") == "1" and steps() == ["gates", "test", "production"]
