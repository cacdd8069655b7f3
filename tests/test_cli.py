"""The command line: text becomes parameters, and the exit code says how it went."""

import functools
import importlib.metadata
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
import webbrowser
from pathlib import Path

import nbformat
import pytest

from mlops_core import cli, core
from mlops_core.archive import list_runs
from mlops_core.cli import join_pairs, main, parse_value

PARAMETERS = """
seed: int = 0  # drives everything [0, 100]
shift: float = 0.5  # how far [-1, 1]
fast: bool = False  # skip the slow part
channel: str = "push"  # which list
"""
SECTIONS = {"question": "?", "verdict": "It is so.", "headline": [{"name": "x", "value": 0.5, "limit": 0.4}], "results": {"x": 0.5}}
RECORD = f"""
from IPython.display import display
given = {{"seed": seed, "shift": shift, "fast": fast, "channel": channel}}
display({{{core.RECORD_TYPE!r}: {SECTIONS!r} | {{"data": given}}}}, raw=True)
"""


def write_case(path, *sources):
    cells = [nbformat.v4.new_code_cell(source) for source in (PARAMETERS, *sources)]
    cells[0].metadata["tags"] = ["parameters"]
    path.parent.mkdir(parents=True, exist_ok=True)
    nbformat.write(nbformat.v4.new_notebook(cells=cells), path)
    return path


@pytest.fixture
def case(tmp_path):
    return write_case(tmp_path / "tiny.ipynb", RECORD)


@pytest.fixture
def archive(tmp_path):
    "Two runs written by hand, the second with another seed, code and package."
    first = SECTIONS | {
        "status": "succeeded", "headline": [{"name": "roc_auc", "value": 0.780, "low": 0.775, "high": 0.785, "greater_is_better": True}],
        "results": {"roc_auc": 0.780, "ks": 0.41, "chosen": "gam", **{f"row_{n}": n for n in range(50)}}, "data": {"fingerprint": "aa"},
        "parameters": {"seed": 0}, "code_revision": "e773408", "code_fingerprint": "c0de", "environment": {"numpy": "2.4.1"},
    }  # fmt: skip
    second = first | {
        "headline": [{"name": "roc_auc", "value": 0.790, "low": 0.785, "high": 0.795, "greater_is_better": True}],
        "parameters": {"seed": 3},
        "results": {"roc_auc": 0.790, "ks": 0.41, "chosen": "gam", **{f"row_{n}": n + 1 for n in range(50)}},
        "code_fingerprint": "c0ff", "environment": {"numpy": "2.4.2"},
    }  # fmt: skip
    for run_id, run in (("20260301T090000Z-aaaaaa", first), ("20260302T090000Z-bbbbbb", second)):
        folder = tmp_path / "reports" / "credit" / run_id
        folder.mkdir(parents=True)
        (folder / "results.json").write_text(json.dumps(run))
    return str(tmp_path / "reports")


@pytest.mark.parametrize("kind,text,value", [
    (int, "3", 3), (int, "-3", -3), (int, "3.0", "3.0"), (int, "three", "three"), (int, "", ""),
    (float, "3", 3.0), (float, "-1e-3", -0.001), (float, "half", "half"), (str, "2024", "2024"), (str, "", ""),
    (bool, "true", True), (bool, "No", False), (bool, "0", False), (bool, "2", "2"),
])  # fmt: skip
def test_text_is_read_as_the_parameter_declares(kind, text, value):
    read = parse_value(core.Parameter("x", kind, kind(), ""), text)
    assert (read, type(read)) == (value, type(value))


@pytest.mark.parametrize("words,joined", [
    (["-p", "a", "1", "x"], ["--parameter=a=1", "x"]), (["x", "-p", "a", "-1e-3"], ["x", "--parameter=a=-1e-3"]),
    (["-p", "a=1", "x"], ["--parameter=a=1", "x"]), (["--parameter", "a", "-b"], ["--parameter=a=-b"]), (["-p", "a"], ["--parameter=a"]),
    (["-p", "a", ""], ["--parameter=a="]), (["-p"], ["-p"]),
    (["-p", "a", "b c", "-p", "d", "=="], ["--parameter=a=b c", "--parameter=d==="]),
])  # fmt: skip
def test_name_and_value_become_one_word(words, joined):
    assert join_pairs(words) == joined


def test_describe_prints_type_default_rule_and_meaning(case, capsys):
    assert main(["report", str(case), "--describe"]) == 0
    lines = [line.split(maxsplit=3) for line in capsys.readouterr().out.splitlines()]
    assert lines[2] == ["seed", "int", "0", "in [0, 100]  drives everything"]
    assert [line[0] for line in lines[2:]] == ["seed", "shift", "fast", "channel"]


def test_a_report_runs_with_parameters_from_text(case, capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    words = ["-p", "seed", "7", "-p", "shift", "-1e-3", "-p", "fast", "yes", "-p", "channel", "--describe"]
    assert main(["report", "tiny.ipynb", *words, "--reports", "out"]) == 0
    (run,) = list_runs(tmp_path / "out")
    given = {"seed": 7, "shift": -0.001, "fast": True, "channel": "--describe"}
    assert run["parameters"] == run["data"] == given
    out = capsys.readouterr().out
    page = Path("out", "tiny", run["run_id"], "report.html")
    assert "tiny: It is so." in out and "✓ meets at least 0.4" in out and f"report: {page}" in out and page.exists()
    assert run["command"] == "mlops report tiny.ipynb -p seed 7 -p shift -0.001 -p fast True -p channel --describe"


def test_the_command_of_a_run_repeats_it(case, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    seen = []
    monkeypatch.setattr(cli, "run_report", lambda case, values, *_: seen.append(values) or tmp_path)
    monkeypatch.setattr(cli, "find_run", lambda folder: {"case": "tiny", "verdict": "", "headline": SECTIONS["headline"]})
    assert main(shlex.split("mlops report tiny.ipynb -p seed 7 -p shift -0.001 -p fast True -p channel 'a b'")[1:]) == 0
    assert seen == [{"seed": 7, "shift": -0.001, "fast": True, "channel": "a b"}]


IMPOSSIBLE = {
    "unknown parameter": (["-p", "sed", "3"], "unknown parameter sed; did you mean seed"),
    "wrong type": (["-p", "seed", "three"], "parameter seed: 'three' is not allowed; it takes int in [0, 100] (drives everything)"),
    "no whole number": (["-p", "seed", "3.0"], "parameter seed: '3.0' is not allowed"),
    "out of range": (["-p", "shift", "-1.5"], "parameter shift: -1.5 is not allowed; it takes float in [-1, 1]"),
    "no truth": (["-p", "fast", "perhaps"], "parameter fast: 'perhaps' is not allowed; it takes bool"),
    "not a number": (["-p", "shift", "nan"], "parameter shift: nan is not allowed"),
}


@pytest.mark.parametrize("words,message", IMPOSSIBLE.values(), ids=IMPOSSIBLE)
def test_the_impossible_is_said_before_anything_runs(case, capsys, tmp_path, words, message):
    assert main(["report", str(case), *words, "--reports", str(tmp_path / "out")]) == 2
    assert message in capsys.readouterr().err and not (tmp_path / "out").exists()


@pytest.mark.parametrize("words", [
    [], ["report"], ["repport"], ["compare", "latest"], ["report", "credit_risk", "--all"],
    ["report", "credit_risk", "-p", "seed"], ["report", "credit_risk", "-p"], ["report", "credit_risk", "--parameters", "seed"],
    *[["report", "credit_risk", "--timeout", seconds] for seconds in ("0", "0.0", "-5", "soon", "inf", "nan", "")],
])  # fmt: skip
def test_words_that_make_no_command_leave_with_2(words, capsys):
    with pytest.raises(SystemExit) as leaving:
        main(words)
    assert leaving.value.code == 2 and "error:" in capsys.readouterr().err


@pytest.mark.parametrize("words,message", [
    (["report", "credit_rsk"], "did you mean credit_risk"), (["report", "no.ipynb", "--describe"], "no case 'no.ipynb'"),
    (["report", "credit_risk", "-p", "dataset", "credt"], "did you mean credit_default"),
    (["compare", "latest", "20240101"], "no run"), (["compare", "a", "b"], "no run 'a'"),
])  # fmt: skip
def test_names_that_are_not_there_leave_with_2_and_the_nearest(words, message, capsys, tmp_path):
    assert main([*words, "--reports", str(tmp_path)]) == 2
    assert message in capsys.readouterr().err


def home_with(tmp_path, monkeypatch, **sources):
    "A project of its own with a case for each of `sources`."
    shutil.copytree(core.home() / "nbs" / "templates", tmp_path / "nbs" / "templates")
    for name, source in sources.items():
        write_case(tmp_path / "nbs" / "cases" / f"{name}.ipynb", source)
    monkeypatch.setenv("MLOPS_HOME", str(tmp_path))


def test_all_runs_every_case_even_after_one_failed(tmp_path, monkeypatch, capsys):
    home_with(tmp_path, monkeypatch, apples="1 / 0", pears=RECORD)
    assert main(["report", "--all", "-p", "seed", "3"]) == 1
    runs = {run["case"]: run for run in list_runs()}
    assert runs["apples"]["status"] == "failed" and runs["pears"]["status"] == "succeeded"
    assert runs["pears"]["command"] == "mlops report pears -p seed 3"
    said = capsys.readouterr()
    assert "mlops: apples failed: cell [3]: ZeroDivisionError: division by zero" in said.err and "pears: It is so." in said.out
    assert f"{Path('reports', 'apples', runs['apples']['run_id'], 'report.ipynb')}" in said.err


def test_all_is_checked_before_the_first_case_runs(tmp_path, monkeypatch, capsys):
    home_with(tmp_path, monkeypatch, apples=RECORD, pears=RECORD)
    path = tmp_path / "nbs" / "cases" / "pears.ipynb"
    path.write_text(path.read_text().replace("seed: int", "dice: int"))
    assert main(["report", "--all", "-p", "seed", "3"]) == 2
    assert "unknown parameter seed" in capsys.readouterr().err and not (tmp_path / "reports").exists()


def test_describe_all(tmp_path, monkeypatch, capsys):
    home_with(tmp_path, monkeypatch, apples=RECORD, pears=RECORD)
    assert main(["report", "--all", "--describe"]) == 0
    assert capsys.readouterr().out.count("drives everything") == 2


def test_compare_says_what_moved_and_what_else_differs(archive, capsys):
    assert main(["compare", "previous", "latest", "--reports", archive]) == 0
    out = " ".join(capsys.readouterr().out.split())
    for said in (
        "credit 20260301T090000Z-aaaaaa, code e773408", "roc_auc 0.780 0.790 +0.010 beyond noise, better", "row_0 0 1 +1 moved",
        "... and 20 more that moved", "2 of 53 numbers are the same", "data: the same", "parameters: seed 0 -> 3",
        "code: fingerprint c0de -> c0ff", "environment: numpy 2.4.1 -> 2.4.2",
    ):  # fmt: skip
        assert said in out, said
    assert "ks 0.41" not in out


def test_compare_of_a_run_with_itself_finds_nothing(archive, capsys):
    assert main(["compare", "aaaaaa", "aaaaaa", "--reports", archive]) == 0
    out = " ".join(capsys.readouterr().out.split())
    assert "53 of 53 numbers are the same" in out and out.count("the same") == 5 and "->" not in out


def test_a_full_disk_is_a_failure_not_a_traceback(case, capsys, tmp_path):
    (tmp_path / "out").write_text("a file where a folder is wanted")
    assert main(["report", str(case), "--reports", str(tmp_path / "out")]) == 1
    assert capsys.readouterr().err.startswith("mlops: ")


@pytest.mark.skipif(os.name == "nt", reason="signals")
def test_ctrl_c_ends_the_run_and_says_so(tmp_path):
    sign, reports = tmp_path / "running", tmp_path / "out"
    case = write_case(tmp_path / "long.ipynb", f"import time\nopen({str(sign)!r}, 'w').write('x')\ntime.sleep(600)")
    words = [sys.executable, "-m", "mlops_core.cli", "report", str(case), "--reports", str(reports)]
    # a shell that runs us in the background has told its children to ignore Ctrl-C
    heeds = functools.partial(signal.signal, signal.SIGINT, signal.default_int_handler)
    running = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, preexec_fn=heeds)
    try:
        end = time.monotonic() + 60
        while not sign.exists():
            assert time.monotonic() < end and running.poll() is None
            time.sleep(0.05)
        running.send_signal(signal.SIGINT)
        _, err = running.communicate(timeout=60)
    finally:
        running.kill()
    assert running.returncode == 130 and "interrupted" in err and "Traceback" not in err
    (run,) = list_runs(reports)
    assert run["status"] == "failed" and run["message"] == "cell [2]: interrupted" and (reports / "index.html").exists()


def test_both_doors_lead_here(case):
    (script,) = (entry for entry in importlib.metadata.entry_points(group="console_scripts") if entry.name == "mlops")
    assert script.value == "mlops_core.cli:main"
    done = subprocess.run([sys.executable, "-m", "mlops_core.cli", "report", str(case), "--describe"], capture_output=True, text=True)
    assert done.returncode == 0 and "drives everything" in done.stdout


@pytest.mark.parametrize("screen,opened", [({}, 0), ({"DISPLAY": ":0"}, 1)])
@pytest.mark.skipif(sys.platform in ("win32", "darwin"), reason="there is always a screen")
def test_the_browser_opens_only_where_there_is_one(monkeypatch, tmp_path, screen, opened):
    for name in ("DISPLAY", "WAYLAND_DISPLAY"):
        monkeypatch.delenv(name, raising=False)
    for name, value in screen.items():
        monkeypatch.setenv(name, value)
    pages = []
    monkeypatch.setattr(webbrowser, "open", pages.append)
    cli._open(tmp_path / "report.html")
    assert pages == [(tmp_path / "report.html").as_uri()][:opened]


def test_a_picture_needs_a_browser(monkeypatch, tmp_path, capsys):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(FileNotFoundError, match="a picture needs a browser on the PATH, one of chromium.*install chromium"):
        cli.picture(tmp_path / "report.html", tmp_path / "x.png")


@pytest.mark.skipif(os.name == "nt", reason="a shell script plays the browser")
def test_pictures_show_each_case_s_latest_report(monkeypatch, tmp_path, capsys, archive):
    home_with(tmp_path, monkeypatch, credit=RECORD)
    browser = tmp_path / "bin" / "chromium"
    browser.parent.mkdir()
    browser.write_text('#!/bin/sh\nfor word in "$@"; do case $word in --screenshot=*) echo "$@" > "${word#--screenshot=}";; esac; done\n')
    browser.chmod(0o755)
    monkeypatch.setenv("PATH", f"{browser.parent}{os.pathsep}{os.environ['PATH']}")
    assert main(["pictures"]) == 0
    asked = (tmp_path / "nbs" / "pictures" / "credit.png").read_text()
    assert "20260302T090000Z-bbbbbb/report.html" in asked and "--window-size=1280,800" in asked and "--headless" in asked
