"""The rules of the house: what every notebook, module and page here must keep."""

import ast
import importlib.metadata
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import nbformat
import pytest
from packaging.requirements import Requirement

from mlops_core import core

HOME = core.home()
LESSONS = sorted((HOME / "nbs").glob("[0-9]*.ipynb"))
CASES = sorted((HOME / "nbs" / "cases").glob("*.ipynb"))
START = HOME / "nbs" / "start_here.ipynb"
BOOKS = [START, *LESSONS, *CASES]
LEAD = re.compile(
    r"\*\*Chapter\*\* (\d+), ([^·]+) · \*\*Read\*\* (\d+) min · \*\*Try\*\* (\d+) min · "
    r"\*\*Previous\*\* (?:none|\[([^\]]+)\]\(([^)]+)\)) · \*\*Next\*\* (?:none|\[([^\]]+)\]\(([^)]+)\))"
)


def ids(paths):
    return [path.stem for path in paths]


def cells(path, kind=None):
    return [cell for cell in nbformat.read(path, as_version=4).cells if kind in (None, cell.cell_type)]


def module_of(path):
    return next((m[1] for c in cells(path, "code") if (m := re.match(r"#\| default_exp (\w+)", c.source))), None)


MODULES = {module_of(path): path for path in LESSONS}


def test_the_house_has_its_rooms():
    expected = {"core", "data", "evaluate", "experiment", "explain", "report", "credit", "recommend", "forecast", "cli"}
    assert expected <= MODULES.keys()
    assert ids(CASES) == ["consumption_forecast", "credit_risk", "recommendation"]


def test_one_notebook_is_one_module():
    assert None not in MODULES and len(MODULES) == len(LESSONS)
    modules = {path.stem for path in (HOME / "mlops_core").glob("*.py")} - {"__init__", "_modidx"}
    assert modules == MODULES.keys(), "a module without its notebook, or a notebook that was not exported"
    for path in LESSONS:
        assert path.stem == f"{path.stem[:2]}_{MODULES and module_of(path)}", "the file's name is number_module"


def test_export_is_in_sync_and_clean(tmp_path):
    for name in ("nbs", "mlops_core", "settings.ini", "pyproject.toml"):
        (shutil.copytree if (HOME / name).is_dir() else shutil.copy)(HOME / name, tmp_path / name)
    for module in (tmp_path / "mlops_core").glob("*.py"):
        module.unlink()
    for command in ("nbdev_export", "nbdev_clean"):
        done = subprocess.run([Path(sys.executable).parent / command], cwd=tmp_path, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
    for path in sorted((HOME / "mlops_core").glob("*.py")):
        assert (tmp_path / "mlops_core" / path.name).read_text() == path.read_text(), f"{path.name}: run nbdev_export"
    for path in BOOKS:
        assert (tmp_path / path.relative_to(HOME)).read_text() == path.read_text(), f"{path.name}: run nbdev_clean"


def imports(source):
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom):
            assert all(alias.name != "*" for alias in node.names), "star import"
            found |= {f"{node.module}.{alias.name}" for alias in node.names} | {node.module}
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
    return found


def rooms(source):
    return {name.split(".")[1] for name in imports(source) if name and name.startswith("mlops_core.")} & MODULES.keys()


@pytest.mark.parametrize("path", LESSONS, ids=ids(LESSONS))
def test_imports_go_downwards(path):
    for cell in cells(path, "code"):
        for room in rooms(cell.source):
            assert MODULES[room].stem < path.stem, f"{path.stem} imports {MODULES[room].stem}"


@pytest.mark.parametrize("path", BOOKS, ids=ids(BOOKS))
def test_notebook_reads_as_the_house_reads(path):
    code = [c for c in cells(path, "code") if c.source.strip()]
    lines = sorted(len([line for line in c.source.splitlines() if line.strip() and not line.startswith("#|")]) for c in code)
    assert len(code) <= 45, "at most 45 code cells"
    assert lines[len(lines) // 2] <= 10 and lines[min(len(lines) - 1, int(len(lines) * 0.9))] <= 22, "cells are short"
    assert not [c for c in code if re.search(r"^\s*[!%]", c.source, re.M)], "no shell and no magic"
    assert not [c for c in cells(path) if re.search(r"(?<![\w.])/(?:home|root|work|tmp|Users)/", c.source)], "no absolute path"
    assert not [c for c in code if re.search(r"\bnow = lambda|\bpatch\.object", c.source)], "replayed_clock sets the clock, and sets it back"
    assert path.stat().st_size < 600_000, "outputs stay small"


@pytest.mark.parametrize("path", BOOKS, ids=ids(BOOKS))
def test_notebook_opens_with_its_lead(path):
    first = cells(path)[0]
    assert re.match(r"# \S.*\n\n> \S.*\n\n\*\*Chapter", first.source), "H1, a sentence in a block quote, the lead line"
    assert LEAD.search(first.source), f"lead line does not read as agreed: {first.source.splitlines()[4]}"


def test_notebooks_form_one_chain():
    seen, path = [], START
    while path:
        seen.append(path)
        match = LEAD.search(cells(path)[0].source)
        following = (path.parent / match[8]).resolve() if match[8] else None
        if following:
            assert following.exists(), f"{path.name} leads to {match[8]}, which is not there"
            back = LEAD.search(cells(following)[0].source)
            assert back[6] and (following.parent / back[6]).resolve() == path, f"{following.name} does not lead back to {path.name}"
            assert following not in seen, "the chain runs in a circle"
        path = following
    assert set(seen) == set(BOOKS), f"left out: {[b.name for b in set(BOOKS) - set(seen)]}"


@pytest.mark.parametrize("path", LESSONS, ids=ids(LESSONS))
def test_lesson_has_an_exercise_with_check_and_solution(path):
    headings = [i for i, c in enumerate(cells(path)) if re.search(r"^## Exercise", c.source, re.M)]
    assert len(headings) == 1, "one exercise"
    after = cells(path)[headings[0] :]
    assert any("**Solution" in c.source for c in after) and any("assert" in c.source for c in after if c.cell_type == "code")


@pytest.mark.parametrize("path", CASES, ids=ids(CASES))
def test_case_is_a_report(path):
    tagged = [c for c in cells(path, "code") if "parameters" in c.metadata.get("tags", [])]
    assert len(tagged) == 1
    declared = core.case_parameters(path)
    assert {"seed", "dataset", "sample", "workspace"} <= declared.keys() and len(declared) >= 6
    assert all(p.meaning for p in declared.values()), "each parameter says what it means"
    code = cells(path, "code")
    assert "record(" in code[-1].source, "the last cell records the results"
    assert not any(c.outputs or c.execution_count for c in code), "cases carry no outputs"
    assert sum(c.source.count("assert ") for c in code) >= 4, "claims are asserted where they are made"
    sections = re.split(r"^## ", "\n".join(("" if c.cell_type == "code" else "\n") + c.source for c in cells(path)), flags=re.M)[1:]
    for section in sections[:-1]:
        assert "what_if(" in section, f"section {section.splitlines()[0]} has no what-if"


PAGES = [HOME / "README.md", HOME / "reports" / "README.md", *sorted((HOME / "data").glob("*/README.md"))]


@pytest.mark.parametrize("path", [*BOOKS, *PAGES], ids=lambda p: f"{p.parent.name}-{p.stem}")
def test_no_dead_links(path):
    text = path.read_text() if path.suffix == ".md" else "\n".join(c.source for c in cells(path, "markdown"))
    for link in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", text):
        if not link.startswith(("http", "mailto")):
            assert (path.parent / link).exists(), f"{path.name} links to {link}"


def test_readme_maps_every_notebook_to_its_module():
    readme = (HOME / "README.md").read_text()
    for path in LESSONS:
        assert re.search(rf"nbs/{path.name}\).*`mlops_core\.{module_of(path)}`", readme), f"README's map lacks {path.name}"
    for path in CASES:
        assert f"nbs/cases/{path.name}" in readme


def test_no_undefined_names_in_the_package():
    ruff = [Path(sys.executable).parent / "ruff", "check", "--select", "F", "--isolated", HOME / "mlops_core"]
    done = subprocess.run(ruff, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


def requirements(name):
    lines = (HOME / name).read_text().splitlines()
    return [Requirement(line) for line in lines if line and not line.startswith(("#", "-"))]


def test_every_direct_requirement_is_imported_and_pinned():
    settings = dict(re.findall(r"^(\w+) = (.*)$", (HOME / "settings.ini").read_text(), re.M))
    direct = {Requirement(word).name for word in settings["requirements"].split()}
    sources = [c.source for path in BOOKS for c in cells(path, "code")]
    sources += [path.read_text() for path in [*(HOME / "tests").glob("*.py"), HOME / "data" / "build.py"]]
    imported = {name.split(".")[0] for source in sources for name in imports(source) if name}
    provided = importlib.metadata.packages_distributions()
    found = {dist.lower().replace("_", "-") for name in imported for dist in provided.get(name, [])}
    # what other processes start, pandas' parquet engine, the driver that a PostgreSQL URL names, and what uvicorn runs on where it is there
    started = {"jupyterlab", "ipykernel", "pyarrow", "onnxruntime", "psycopg", "psycopg-binary", "uvloop", "httptools"}
    assert direct - started <= found, f"nothing imports {direct - started - found}"
    assert direct <= {r.name for r in requirements("requirements.lock")}


def test_locks_pin_and_stay_lean():
    runtime = requirements("requirements.lock")
    assert all(str(r.specifier).startswith("==") for r in [*runtime, *requirements("requirements-dev.lock")])
    names = {r.name for r in runtime}
    assert not [n for n in names if re.search("nvidia|cuda|triton", n)], "no CUDA package in the lock of a run"
    assert not names & {"pytest", "ruff", "nbdev", "ghapi", "execnb"}, "developers' tools have a lock of their own"
    assert "torch==2.13.0" in (HOME / "requirements.lock").read_text().splitlines()


def test_settings_and_pyproject_agree():
    project = tomllib.loads((HOME / "pyproject.toml").read_text())["project"]
    settings = (HOME / "settings.ini").read_text()
    assert f"version = {project['version']}" in settings and f"lib_name = {project['name']}" in settings


@pytest.mark.parametrize("word", ["pypi.org", "pythonhosted", "/work/", "/root/"])
def test_project_names_no_registry_and_no_machine(word):
    patterns = "*.md *.toml *.lock Makefile *.ini data/*.py data/*/* mlops_core/*.py nbs/**/*.ipynb nbs/templates/* .github/**/*.yml deploy/**/*"
    for pattern in patterns.split():
        for path in HOME.glob(pattern):
            if path.suffix != ".parquet" and path.is_file():
                assert word not in path.read_text(errors="ignore"), f"{path} names {word}"
