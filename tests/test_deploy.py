"""Containers, manifests and pipelines say what is so: their commands, variables, ports and metrics are those of the program."""

import functools
import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tomllib
import venv
from pathlib import Path

import httpx
import psutil
import pytest
import yaml
from mlflow.cli import cli as mlflow_cli
from prometheus_client.parser import text_string_to_metric_families
from study_image import environment, health_check, installations, instructions, lay_out, started

from mlops_core import audit, cli, core, credit, package
from mlops_core.data import load_dataset
from mlops_core.experiment import classification_fold
from mlops_core.govern import load_use_case
from mlops_core.keys import create_key
from mlops_core.report import case_notebook, declared_parameters
from mlops_core.scoring import RequestLimits

HOME = core.home()
DEPLOY = HOME / "deploy"
VERSION = tomllib.loads((HOME / "pyproject.toml").read_text())["project"]["version"]
SOURCES = "".join(path.read_text() for path in (HOME / "mlops_core").glob("*.py"))
READ = set(re.findall(r"environ(?:\.get\(|\[)\"(MLOPS_\w+)\"", SOURCES))
COMPOSE = yaml.safe_load((DEPLOY / "compose.yaml").read_text())["services"]
MANIFESTS = [one for path in sorted((DEPLOY / "kubernetes").glob("*.yaml")) for one in yaml.safe_load_all(path.read_text())]
WORKFLOWS = sorted((HOME / ".github" / "workflows").glob("*.yml"))


def check_command(words):
    "Fail if `words` are no command line of `mlops`, or name a parameter that a case has not."
    words = cli.join_pairs([str(word) for word in words])
    options = cli.parser(words).parse_args(words)
    if words[0] == "report":
        assert {name for name, _ in options.parameter} <= declared_parameters(case_notebook(options.case)).keys()


def kind(name):
    return [one for one in MANIFESTS if one["kind"] == name]


def test_variables_that_are_set_are_variables_that_are_read():
    assert {"MLOPS_HOME", "MLOPS_WORKSPACE", "MLOPS_TRACKING_URI", "MLOPS_OPS_URL"} <= READ
    given = set(re.findall(r"(MLOPS_\w+)=", " ".join(instructions("ENV"))))
    given |= {name for service in COMPOSE.values() for name in service.get("environment", {})}
    given |= {name for settings in kind("ConfigMap") for name in settings["data"]}
    assert {name for name in given if name.startswith("MLOPS_")} <= READ
    others = {"PGPASSWORD", "POSTGRES_USER", "POSTGRES_DB", "POSTGRES_PASSWORD"}  # of PostgreSQL's driver and of its image
    assert {name for name in given if not name.startswith("MLOPS_")} == others


@pytest.mark.parametrize("name", COMPOSE)
def test_a_service_is_pinned_watched_and_bounded(name):
    service = COMPOSE[name]
    assert re.search(r":v?\d+\.\d+(\.\d+)?$", service["image"]), "a version, not latest"
    assert service["healthcheck"]["test"][0] == "CMD" and service["mem_limit"]
    assert set(service.get("depends_on", {})) <= COMPOSE.keys()
    for port in service.get("ports", []):
        host, _, inside = port.split(":")
        assert host == "127.0.0.1", "open on this machine only"
        assert inside in " ".join(service["healthcheck"]["test"]), "the port that is published is the one that is watched"
    for volume in service.get("volumes", []):
        source = volume.split(":")[0]
        assert (DEPLOY / source).is_file() if source.startswith(".") else source in yaml.safe_load((DEPLOY / "compose.yaml").read_text())["volumes"]


def test_services_of_our_image_start_with_real_commands():
    ours = {name: service for name, service in COMPOSE.items() if "build" in service}
    assert ours.keys() == {"api", "mlflow"}
    for service in ours.values():
        assert service["image"] == f"mlops-core:{VERSION}" and (DEPLOY / service["build"]["context"] / service["build"]["dockerfile"]).is_file()
        assert service["read_only"] and service["cap_drop"] == ["ALL"] and "root" not in str(service.get("user", ""))
    assert ours["api"]["command"] == json.loads(instructions("CMD")[0]) and ours["api"]["healthcheck"]["test"][1:] == health_check()
    check_command(ours["api"]["command"][1:])
    program, command, *words = ours["mlflow"]["command"]
    server = mlflow_cli.commands[command].make_context(command, words).params
    assert program == "mlflow" and "mlflow:5000" in server["allowed_hosts"].split(","), "else it refuses the API by its name"
    assert ours["api"]["environment"]["MLOPS_TRACKING_URI"] == f"http://mlflow:{server['port']}"
    databases = {COMPOSE["postgres"]["environment"]["POSTGRES_DB"], *re.findall(r"CREATE DATABASE (\w+)", (DEPLOY / "databases.sql").read_text())}
    user = COMPOSE["postgres"]["environment"]["POSTGRES_USER"]
    addresses = [ours["api"]["environment"]["MLOPS_OPS_URL"], server["backend_store_uri"]]
    assert set(addresses) == {f"postgresql+psycopg://{user}@postgres:5432/{database}" for database in databases}, "no password in an address"


@pytest.mark.parametrize("path", sorted(DEPLOY.rglob("*.*")), ids=lambda path: path.name)
def test_commands_in_comments_are_commands(path):
    said = re.findall(r"^#.*\bmlops ((?:report|release|key create) .*--.*)$", path.read_text(), re.M)
    for words in said:
        check_command(words.split())


def deployments():
    return {one["metadata"]["labels"]["track"]: one for one in kind("Deployment")}


def test_stable_and_canary_are_two_deployments_of_one_service():
    found = deployments()
    assert found.keys() == {"stable", "canary"}
    (service,), (budget,) = kind("Service"), kind("PodDisruptionBudget")
    for track, one in found.items():
        labels = one["spec"]["template"]["metadata"]["labels"]
        assert service["spec"]["selector"].items() <= labels.items() and "track" not in service["spec"]["selector"]
        assert budget["spec"]["selector"]["matchLabels"].items() <= labels.items()
        assert one["spec"]["selector"]["matchLabels"]["track"] == track, "no deployment takes the other's pods"
    assert found["canary"]["spec"]["replicas"] / sum(one["spec"]["replicas"] for one in found.values()) == 0.2, "as canary.yaml says"
    same = [re.sub(r"canary|stable|'replicas': \d+", "", str(one)) for one in found.values()]
    assert same[0] == same[1], "they differ in the image, once a release sets it, and in nothing else"


@pytest.mark.parametrize("track", deployments())
def test_a_pod_is_probed_limited_and_not_root(track):
    pod = deployments()[track]["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    check_command(container["command"][1:])
    assert container["command"] == json.loads(instructions("CMD")[0]) and container["image"].endswith(f"/mlops-core:{VERSION}")
    paths = {probe: container[f"{probe}Probe"]["httpGet"]["path"] for probe in ("startup", "liveness", "readiness")}
    assert paths == {"startup": "/live", "liveness": "/live", "readiness": "/ready"}
    assert {"cpu", "memory"} <= container["resources"]["limits"].keys() & container["resources"]["requests"].keys()
    assert [f"{pod['securityContext'][who]}" for who in ("runAsUser", "runAsGroup")] == instructions("USER")[0].split(":")
    assert pod["securityContext"]["runAsNonRoot"] and container["securityContext"]["readOnlyRootFilesystem"]
    assert not container["securityContext"]["allowPrivilegeEscalation"] and container["securityContext"]["capabilities"] == {"drop": ["ALL"]}
    mounts = {mount["mountPath"]: mount["name"] for mount in container["volumeMounts"]}
    assert mounts.keys() == {*instructions("VOLUME"), "/tmp"} and set(mounts.values()) == {volume["name"] for volume in pod["volumes"]}
    claims = {claim["metadata"]["name"] for claim in kind("PersistentVolumeClaim")}
    assert {volume["persistentVolumeClaim"]["claimName"] for volume in pod["volumes"] if "persistentVolumeClaim" in volume} == claims
    assert {one["configMapRef"]["name"] for one in container["envFrom"]} == {one["metadata"]["name"] for one in kind("ConfigMap")}


def test_no_secret_is_written_down():
    assert not kind("Secret") and all("secretKeyRef" in one["valueFrom"] for d in deployments().values()
                                      for one in d["spec"]["template"]["spec"]["containers"][0]["env"])  # fmt: skip
    given = [str(value) for service in COMPOSE.values() for name, value in service.get("environment", {}).items() if "PASSWORD" in name]
    assert given and all(value.startswith("${POSTGRES_PASSWORD:?") for value in given)


BREAKS = {
    "a probe with a wrong name": ("kubernetes/stable.yaml", "readinessProbe", "readynessProbe"),
    "a number as text": ("kubernetes/canary.yaml", "replicas: 1", "replicas: one"),
    "a base without a version": ("Containerfile", "FROM python:3.11.14-slim-bookworm", "FROM python"),
    "root at the end": ("Containerfile", "USER 10001:10001", "USER root"),
}


@pytest.mark.parametrize("broken", [None, *BREAKS])
def test_make_check_refuses_what_is_broken(broken, tmp_path):
    recipe = re.search(r"^check:.*\n((?:\t.*\n)+)", (HOME / "Makefile").read_text(), re.M)[1]
    lints = [line.strip().replace("$(BIN)", str(Path(sys.executable).parent)) for line in recipe.splitlines() if " deploy/" in line]
    assert len(lints) == 2
    shutil.copytree(DEPLOY, tmp_path / "deploy")
    if broken:
        name, old, new = BREAKS[broken]
        text = (tmp_path / "deploy" / name).read_text()
        assert old in text
        (tmp_path / "deploy" / name).write_text(text.replace(old, new))
    assert any(subprocess.run(lint, shell=True, cwd=tmp_path, capture_output=True).returncode for lint in lints) == bool(broken)


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_a_workflow_calls_commands_that_are_there_and_needs_no_secret(path):
    text = path.read_text()
    assert "secrets." not in text
    targets = set(re.findall(r"^([\w-]+):", (HOME / "Makefile").read_text(), re.M))
    for job in yaml.safe_load(text)["jobs"].values():
        for line in "\n".join(step.get("run", "") for step in job["steps"]).split("\n"):
            words = line.replace('"$CASE"', "credit_risk").replace('"$MLOPS_WORKSPACE"', "workspace").split()
            if not words:
                continue
            assert words[0] in ("make", ".venv/bin/mlops", ".ci/run"), line
            if words[0] == "make":
                assert set(words[1:]) <= targets
            elif words[0] == ".ci/run":
                assert os.access(HOME / words[0], os.X_OK)
            else:
                check_command(words[1:])


def test_the_release_runs_by_hand_and_on_a_tag_and_leaves_what_an_auditor_wants():
    (path,) = [path for path in WORKFLOWS if path.stem == "release"]
    said = yaml.safe_load(path.read_text())
    when, steps = said[True], said["jobs"]["release"]["steps"]  # YAML reads the key `on` as true
    assert when.keys() == {"workflow_dispatch", "push"} and when["push"] == {"tags": ["v*"]}
    kept = {step["with"]["name"] for step in steps if step.get("uses", "").startswith("actions/upload-artifact@")}
    assert kept == {"audit", "reports"} and said["permissions"] == {"contents": "read"}
    assert set(when["workflow_dispatch"]["inputs"]["case"]["options"]) <= cli.cases().keys()


COLUMNS = ("limit_bal", "pay_0", "bill_amt1", "pay_amt1")


@pytest.fixture(scope="module")
def image(tmp_path_factory):
    """The image without a container engine: its files, its environment, its command, which runs on a workspace with a champion.

    All packages of the lock would be minutes and 2.7 GB (`study_image.py` does that). Here the new environment sees, through a .pth file, a
    folder of links to the packages of the one in which the tests run, without `mlops_core`, which is then really installed.
    """
    scratch = tmp_path_factory.mktemp("image")
    folder, packages = lay_out(scratch / "root"), scratch / "packages"
    packages.mkdir()
    for path in Path(sysconfig.get_paths()["purelib"]).iterdir():
        if "mlops_core" not in path.name and not path.name.endswith(".pth"):
            (packages / path.name).symlink_to(path)
    venv.create(scratch / "venv", with_pip=False)
    python = scratch / "venv" / "bin" / "python"
    (next((scratch / "venv").glob("lib/python*/site-packages")) / "packages.pth").write_text(f"{packages}\n")
    variables = environment(scratch / "root", python)
    lock, project = installations()
    assert "--requirement requirements.lock" in lock and (folder / "requirements.lock").is_file()
    subprocess.run(["sh", "-ec", project], cwd=folder, env=variables, check=True, capture_output=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLOPS_WORKSPACE", variables["MLOPS_WORKSPACE"])
        patch.delenv("MLOPS_OPS_URL", raising=False)
        build = functools.partial(classification_fold, features=COLUMNS, sample=2000)
        recipe = package.Recipe("credit_default", build, credit.BoostedTrees(), 0)
        fold, inputs = recipe.fold(), [{"column": column, "source": f"clients.{column}"} for column in COLUMNS]
        case = credit.credit_case(load_dataset("credit_default"), list(COLUMNS))
        made = package.package_model(case, recipe.fit(fold), recipe, fold, {"inputs": inputs}, actor="ana", role="data_scientist")
        audit.append("champion", made.subject, {"manifest": made.manifest}, actor="cho", role="devops")
        key = create_key("shop", ["predict"], actor="cho", role="devops")
        with started(folder, variables) as (address, process):
            with httpx.Client(base_url=address, headers={"Authorization": f"Bearer {key}"}, timeout=30) as client:
                yield client, process, python, variables, made


def test_the_image_installs_starts_and_answers(image):
    client, process, python, variables, made = image
    where = subprocess.run([python, "-c", "import mlops_core; print(mlops_core.__file__)"], env=variables, cwd="/", capture_output=True, text=True)
    assert Path(where.stdout.strip()).is_relative_to(python.parents[1]), "the package is the one that was installed"
    assert client.get("/live").status_code == 200 and client.get("/ready").json()["version"] == made.version
    rows = json.loads(load_dataset("credit_default").table[list(COLUMNS)].head(2).to_json(orient="records"))
    assert client.post("/v1/predict", json={"rows": rows}, headers={"Authorization": ""}).status_code == 401, "on every address it needs a key"
    assert len(client.post("/v1/predict", json={"rows": rows}).json()["answers"]) == 2
    limit = deployments()["stable"]["spec"]["template"]["spec"]["containers"][0]["resources"]["limits"]["memory"]
    assert limit.endswith("Gi") and psutil.Process(process.pid).memory_info().rss < 0.5 * int(limit[:-2]) * 2**30


def test_alerts_ask_for_metrics_that_the_image_has(image):
    client, *_ = image
    client.post("/v1/predict", json={"rows": []})
    exposed = {}
    for family in text_string_to_metric_families(client.get("/metrics").text):
        for sample in family.samples:
            for label, value in sample.labels.items() or [(None, None)]:
                exposed.setdefault(sample.name, {}).setdefault(label, set()).add(value)
    (scraped,) = yaml.safe_load((DEPLOY / "prometheus.yml").read_text())["scrape_configs"]
    assert scraped["metrics_path"] == "/metrics" and scraped["static_configs"] == [{"targets": ["api:8080"]}]
    asked = {"up": {"job": {scraped["job_name"]}}} | exposed
    rules = [rule for group in yaml.safe_load((DEPLOY / "alerts.yml").read_text())["groups"] for rule in group["rules"]]
    for rule in rules:
        assert {"alert", "expr", "labels", "annotations"} <= rule.keys() and rule["annotations"].keys() == {"summary", "runbook"}
        assert rule["expr"].count("(") == rule["expr"].count(")")
        found = re.findall(r"\b(up|mlops_\w+)\b(?:\{([^}]*)\})?", rule["expr"])
        assert found, rule["expr"]
        for name, selected in found:
            assert name in asked, f"{rule['alert']}: the program has no metric {name}"
            for label, how, value in re.findall(r'(\w+)(=~?)"([^"]*)"', selected):
                assert label in asked[name], f"{rule['alert']}: {name} has no label {label}"
                assert how == "=~" or value.isdigit() or value in asked[name][label], f"{rule['alert']}: no {name} has {label} {value}"
    slow, crowded = (next(rule for rule in rules if rule["alert"] == name) for name in ("SlowAnswers", "Crowded"))
    assert slow["expr"].endswith(f"> {load_use_case('credit_risk').limits.p99_ms / 1000:g}"), "the limit of the use case"
    assert f"At {RequestLimits().waiting:,} that wait" in crowded["annotations"]["runbook"]
