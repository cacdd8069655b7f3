"""The runner refuses what cannot be run, says where a run failed, and gives the same numbers for the same request."""

import json
import os
import signal
import subprocess
import sys
import time

import nbformat
import pytest

from mlops_core.archive import UnknownName, comparable, find_run, list_runs
from mlops_core.core import RECORD_TYPE, ParameterError, environment
from mlops_core.page import build_index
from mlops_core.report import RunFailed, check_request, run_report

PARAMETERS = """
seed: int = 0  # drives everything [0, 100]
rate: float = 0.5  # share of heads [0, 1]
channel: str = "push"  # which list {push, pull}
dataset: str = "credit_default"  # name under data/ or path of a data set folder
"""
WORK = """
import os, sys
import matplotlib.pyplot as plt
from mlops_core.core import generator, record, show

share = float((generator(seed, "coin").random(1000) < rate).mean())
figure, axis = plt.subplots(figsize=(2, 1))
axis.bar(["heads"], [share])
show(figure, alt="A bar")
"""
RECORD = """
record(question="Is it fair?", verdict=f"Heads: {share}.", headline=[{"name": "heads", "value": share}],
       data={"name": "coin", "fingerprint": "77"},
       results={"heads": share, "order": list({"a", "b", "c", "d"}), "kind": type(rate).__name__},
       timings={"prefix": sys.prefix, "workspace": os.environ["MLOPS_WORKSPACE"]})
"""  # fmt: skip
GIVEN = {"seed": 3, "rate": 1}


def write_case(path, *sources, tag="parameters"):
    "A notebook at `path`: text that starts with # is markdown, the first code cell gets the tag."
    cells = [nbformat.v4.new_markdown_cell(s) if s.startswith("#") else nbformat.v4.new_code_cell(s) for s in sources]
    next(cell for cell in cells if cell.cell_type == "code").metadata["tags"] = [tag]
    path.parent.mkdir(parents=True, exist_ok=True)
    nbformat.write(nbformat.v4.new_notebook(cells=cells), path)
    return path


@pytest.fixture(scope="module")
def twice(tmp_path_factory):
    "The same request twice, on a machine whose kernel python3 is another one, from a folder with braces, with a silent backend set."
    folder = tmp_path_factory.mktemp("twice") / "{braces}"
    case = write_case(folder / "coin.ipynb", "# The coin", PARAMETERS, "## Work", WORK, RECORD)
    spec = folder / "jupyter" / "kernels" / "python3" / "kernel.json"
    spec.parent.mkdir(parents=True)
    spec.write_text(json.dumps({"argv": ["/bin/false", "{connection_file}"], "display_name": "wrong", "language": "python"}))
    settings = {"JUPYTER_PATH": folder / "jupyter", "MPLBACKEND": "Agg", "PYTHONHASHSEED": "7", "MLOPS_WORKSPACE": folder}
    with pytest.MonkeyPatch.context() as patch:
        for name, value in settings.items():
            patch.setenv(name, str(value))
        runs = [run_report(case, GIVEN, folder / "reports") for _ in range(2)]
        assert os.environ["MLOPS_WORKSPACE"] == str(folder), "the caller's own settings stay as they are"
    return runs


@pytest.fixture(scope="module")
def results(twice):
    return json.loads((twice[0] / "results.json").read_text())


def test_the_same_request_twice_gives_the_same_results(twice, results):
    second = json.loads((twice[1] / "results.json").read_text())
    assert comparable(results) == comparable(second)
    assert results["run_id"] != second["run_id"] and results["timings"] != second["timings"]


def test_results_hold_what_a_run_is_known_by(twice, results):
    assert results["status"] == "succeeded" and results["run_id"] == twice[0].name and results["case"] == "coin"
    assert results["parameters"] == {"seed": 3, "rate": 1.0, "channel": "push", "dataset": "credit_default"} and results["seed"] == 3
    assert results["results"]["heads"] == results["headline"][0]["value"] == 1.0 and results["data"]["fingerprint"] == "77"
    assert results["environment"] == environment() and results["code_revision"] and len(results["code_fingerprint"]) == 16
    assert results["timings"]["duration_seconds"] > 0 and results["started"] < results["finished"]
    assert results["command"].startswith("mlops report ") and results["command"].endswith("coin.ipynb' -p seed 3 -p rate 1.0")


def test_a_run_id_is_its_moment_and_six_characters(results):
    moment = results["started"].replace("-", "").replace(":", "")[:15]
    assert results["run_id"][:-6] == f"{moment}Z-" and len(results["run_id"]) == 23


def test_an_integer_reaches_a_float_parameter_as_float(results):
    assert results["results"]["kind"] == "float"


def test_the_kernel_is_the_python_that_runs_the_report(results):
    assert os.path.samefile(results["timings"]["prefix"], sys.prefix)


def test_each_run_has_a_workspace_of_its_own(twice, results):
    assert results["timings"]["workspace"] == str(twice[0] / "workspace") and (twice[0] / "workspace").is_dir()


def test_the_page_of_a_run_has_its_figure_and_what_changed(twice):
    html = (twice[1] / "report.html").read_text()
    assert 'alt="A bar"' in html and "data:image/png;base64" in html and "unchanged" in html and twice[0].name in html
    assert "<script" not in html


def test_the_index_links_both_runs(twice):
    index = (twice[0].parent.parent / "index.html").read_text()
    assert all(f"coin/{folder.name}/report.html" in index for folder in twice)


def test_nothing_half_written_is_left(twice):
    for folder in twice:
        assert {path.name for path in folder.iterdir()} == {"report.ipynb", "report.html", "results.json", "workspace"}


REFUSED = {
    "unknown": ({"sed": 3}, "unknown parameter sed; did you mean seed"),
    "text for a number": ({"seed": "3"}, "parameter seed: '3' is not allowed; it takes int in"),
    "fraction for a number": ({"seed": 3.0}, "parameter seed: 3.0 is not allowed"),
    "truth for a number": ({"seed": True}, "parameter seed: True is not allowed"),
    "out of range": ({"rate": 1.5}, "parameter rate: 1.5 is not allowed; it takes float in \\[0, 1\\] \\(share of heads\\)"),
    "not finite": ({"rate": float("nan")}, "parameter rate: nan is not allowed"),
    "not a choice": ({"channel": "fax"}, "one of push, pull"),
    "no such data": ({"dataset": "credit_defalt"}, "parameter dataset: 'credit_defalt' is neither .*did you mean credit_default"),
    "folder without data": ({"dataset": "."}, "nor a folder that holds a dataset.toml"),
}


@pytest.mark.parametrize("given,message", REFUSED.values(), ids=REFUSED)
def test_a_request_that_cannot_be_met_stops_before_anything_runs(tmp_path, given, message):
    case = write_case(tmp_path / "coin.ipynb", PARAMETERS, "raise SystemExit('it ran')")
    with pytest.raises(ParameterError, match=message):
        run_report(case, given, tmp_path / "reports")
    assert not (tmp_path / "reports").exists()


def test_a_bad_default_is_refused_too(tmp_path):
    case = write_case(tmp_path / "coin.ipynb", "seed: int = 0  # drives everything [1, 9]")
    with pytest.raises(ParameterError, match="parameter seed: 0 is not allowed"):
        run_report(case, {}, tmp_path / "reports")


def test_a_data_set_may_be_a_folder(tmp_path):
    (tmp_path / "dataset.toml").write_text("")
    case = write_case(tmp_path / "coin.ipynb", PARAMETERS)
    assert check_request(case, {"dataset": str(tmp_path)})[2]["dataset"] == str(tmp_path)


def test_a_notebook_without_the_tag_is_refused(tmp_path):
    with pytest.raises(ParameterError, match="no cell tagged parameters"):
        run_report(write_case(tmp_path / "coin.ipynb", PARAMETERS, tag="params"), {}, tmp_path / "reports")


@pytest.mark.parametrize("content", ["", "no json", '{"cells": 3}', "{}"])
def test_a_broken_notebook_is_refused(tmp_path, content):
    (tmp_path / "coin.ipynb").write_text(content)
    with pytest.raises(ParameterError, match="coin.ipynb"):
        run_report(tmp_path / "coin.ipynb", {}, tmp_path / "reports")


@pytest.mark.parametrize("source", ["seed: int = ", "seed: int = 1 + x", "seed: int = (", "seed: int"])
def test_parameters_that_are_no_literals_are_refused(tmp_path, source):
    with pytest.raises(ParameterError, match="coin.ipynb cannot be read"):
        run_report(write_case(tmp_path / "coin.ipynb", source), {}, tmp_path / "reports")


@pytest.mark.parametrize("name", ["credit_rsk", "no/such.ipynb", "report.txt", "", "."])
def test_an_unknown_case_is_refused_with_the_nearest_name(tmp_path, name):
    with pytest.raises(UnknownName, match="there are: .*credit_risk" if name != "credit_rsk" else "did you mean credit_risk"):
        run_report(name, {}, tmp_path / "reports")


def fails(tmp_path, *sources, timeout=60, given=None):
    "Run a case that fails; its error, its folder and its executed notebook."
    reports = tmp_path / "reports"
    case = write_case(tmp_path / "bad.ipynb", "# Bad", PARAMETERS, "## Before", "x = 1", "## Candidates\n\nText.", *sources)
    with pytest.raises(RunFailed) as caught:
        run_report(case, given, reports, timeout)
    folder = caught.value.folder
    run = json.loads((folder / "results.json").read_text())
    assert run["status"] == "failed" and run["message"] in str(caught.value) and run["finished"]
    assert not (folder / "report.html").exists() and "report.html" not in (reports / "index.html").read_text()
    assert "failed" in (reports / "index.html").read_text()
    return str(caught.value), nbformat.read(folder / "report.ipynb", 4)


def test_a_failing_cell_is_named_with_its_heading_and_error(tmp_path):
    message, notebook = fails(tmp_path, 'raise ValueError("no <b>columns</b>")', "print('never')", given={"seed": 3})
    assert message == 'bad failed: cell [4], under "Candidates": ValueError: no <b>columns</b>'
    failed = next(cell for cell in notebook.cells if cell.get("execution_count") == 4)
    assert "raise ValueError" in failed.source and failed.outputs[0].ename == "ValueError"
    assert not notebook.cells[-1].outputs


def test_a_time_out_is_named_and_never_looks_completed(tmp_path):
    message, notebook = fails(tmp_path, "import asyncio\nprint('so far')\nawait asyncio.sleep(60)", "print('never')", timeout=4)
    assert 'cell [3], under "Candidates": still running when the time limit of 4 seconds was over' in message
    slept = next(cell for cell in notebook.cells if "sleep" in cell.source)
    assert slept.metadata.papermill.status == "failed" and [part.output_type for part in slept.outputs] == ["stream", "error"]


def test_the_time_limit_is_for_the_whole_run(tmp_path):
    naps = ["import time\ntime.sleep(1.5)", "time.sleep(1.5)", "time.sleep(1.5)", "time.sleep(1.5)"]
    started = time.monotonic()
    message, _ = fails(tmp_path, *naps, timeout=3)
    assert "time limit of 3 seconds" in message and time.monotonic() - started < 20


def test_a_kernel_that_dies_is_a_failure(tmp_path):
    message, _ = fails(tmp_path, "import os\nos._exit(1)")
    assert 'cell [3], under "Candidates": the kernel died' in message


def recording(sections):
    return f"from IPython.display import display\ndisplay({{{RECORD_TYPE!r}: {sections!r}}}, raw=True)"


COMPLETE = {"question": "?", "verdict": "!", "headline": [{"name": "x", "value": 1}], "results": {"x": 1}, "data": {"name": "d"}}


def test_a_notebook_that_records_nothing_has_failed(tmp_path):
    message, notebook = fails(tmp_path, "x = 2")
    assert "the notebook recorded nothing; it must end with record(...) that holds question (str), verdict (str), headline" in message
    assert not any(cell.get("outputs") for cell in notebook.cells), "no cell is blamed"


def test_a_notebook_that_leaves_with_success_too_early_has_failed(tmp_path):
    assert "recorded nothing" in fails(tmp_path, "import sys\nsys.exit(0)")[0]


@pytest.mark.parametrize("change,message", [
    ({"verdict": None}, "recorded question, verdict, headline, results, data; .*holds verdict \\(str\\)$"),
    ({"headline": {"x": 1}}, "holds headline \\(list\\)"),
    ({"headline": [{"name": "x"}]}, "each item of headline must be a dict with a name and a value"),
    ({"headline": ["x"]}, "each item of headline"),
])  # fmt: skip
def test_a_record_that_lacks_something_says_what(change, message):
    from mlops_core.report import RecordError, _recorded

    output = nbformat.v4.new_output("display_data", {RECORD_TYPE: COMPLETE | change})
    with pytest.raises(RecordError, match=message):
        _recorded(nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(outputs=[output])]))


def test_a_case_cannot_overwrite_what_its_run_is_known_by(tmp_path):
    forged = COMPLETE | {"status": "failed", "run_id": "forged", "parameters": {"seed": 99}, "environment": {}}
    folder = run_report(write_case(tmp_path / "sly.ipynb", "seed: int = 0  # seed", recording(forged)), {}, tmp_path / "reports")
    run = json.loads((folder / "results.json").read_text())
    assert run["status"] == "succeeded" and run["run_id"] == folder.name and run["parameters"] == {"seed": 0} and run["environment"]


def wait_for(condition, seconds=60):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.05)


def alive(process_id):
    try:
        return "zombie" not in open(f"/proc/{process_id}/status").read()
    except FileNotFoundError:
        return False


@pytest.mark.skipif(not os.path.exists("/proc/self"), reason="looks at processes through /proc")
def test_a_run_that_is_killed_is_listed_as_unfinished_and_takes_its_kernel_along(tmp_path):
    sign, reports = tmp_path / "kernel", tmp_path / "reports"
    work = f"import os, time\nopen({str(sign)!r}, 'w').write(str(os.getpid()))\ntime.sleep(600)"
    case = write_case(tmp_path / "long.ipynb", PARAMETERS, work)
    program = f"from mlops_core.report import run_report; run_report({str(case)!r}, {{}}, {str(reports)!r})"
    running = subprocess.Popen([sys.executable, "-c", program])
    try:
        wait_for(lambda: sign.exists() and sign.read_text())
    finally:
        running.send_signal(signal.SIGKILL)
        running.wait()
    assert [run["status"] for run in list_runs(reports)] == ["unfinished"]
    assert "unfinished" in build_index(reports).read_text()
    with pytest.raises(UnknownName, match="it is unfinished"):
        find_run(list_runs(reports)[0]["run_id"], reports)
    wait_for(lambda: not alive(sign.read_text()), 30)
