"""Who comes late gets the state that the notebook leaves, from its own cells; who empties a workspace empties nothing else."""

import os
import re
import signal
import socket
import subprocess
import sys

import mlflow
import nbformat
import pytest
from test_report import wait_for, write_case

from mlops_core import audit, credit, evaluate, workshop
from mlops_core.actions import QUICK
from mlops_core.archive import UnknownName
from mlops_core.cli import main
from mlops_core.core import home, operations_engine
from mlops_core.data import load_dataset, reference_split
from mlops_core.experiment import open_experiment, sample_rows
from mlops_core.govern import load_use_case
from mlops_core.report import LIFECYCLE, RunFailed, before_section, case_notebook, cases, check_request
from mlops_core.views import write_fleet

PARAMETERS = "seed: int = 0  # drives everything [0, 100]\nrefuse: str = \"no\"  # what the gate says {yes, no}"
START = "from mlops_core import audit\nwho = {'actor': 'eli', 'role': 'data_engineer'}"
PACKAGE = "number = len(audit.entries('toy', event='packaged')) + 1\naudit.append('packaged', f'toy/{number}', {'seed': seed}, **who)"
GATES = """
audit.append("gates", f"toy/{number}", {"failed": ["calibration"] if refuse == "yes" else []}, **who)
if refuse == "no":
    audit.append("champion", f"toy/{number}", **who)
"""
TOY = ("# A toy", PARAMETERS, "## Data", START, "## Package\n\nText.", PACKAGE, "Text before it.\n\n## Gates", GATES)


@pytest.fixture
def var(tmp_path, monkeypatch):
    """A workspace that is the setting's."""
    monkeypatch.setenv("MLOPS_WORKSPACE", str(tmp_path / "var"))
    for name in ("MLOPS_OPS_URL", "MLOPS_TRACKING_URI"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path / "var"


def toy(folder, *more):
    cells = [nbformat.v4.new_markdown_cell(s) if re.search("^#+ ", s, re.M) else nbformat.v4.new_code_cell(s) for s in (*TOY, *more)]
    cells[1] = nbformat.v4.new_code_cell(PARAMETERS, metadata={"tags": ["parameters"]})
    nbformat.write(nbformat.v4.new_notebook(cells=cells), folder / "toy.ipynb")
    return folder / "toy.ipynb"


@pytest.mark.parametrize("after", [("## Deploy", "1 / 0"), ("## Monitor", "1 / 0"), ("## Iterate", "1 / 0", "## Deploy of old", "1 / 0")])
def test_the_place_to_stop_is_found_by_name_or_by_what_comes_next(tmp_path, after):
    notebook = nbformat.read(toy(tmp_path, *after), 4)
    assert [cell.source for cell in before_section(notebook, "Deploy").cells] == list(TOY)
    assert [cell.source for cell in before_section(notebook, "Gates").cells] == list(TOY[:6])
    assert len(notebook.cells) == len(TOY) + len(after), "the notebook that was given stays whole"


def test_a_notebook_that_ends_before_says_what_it_has(tmp_path):
    with pytest.raises(UnknownName, match="no section 'Deploy'; there are: Data, Package, Gates"):
        before_section(nbformat.read(toy(tmp_path), 4), "Deploy")


@pytest.mark.parametrize("case", cases())
def test_each_case_has_the_places_and_takes_the_quick_parameters(case):
    _, _, values = check_request(case, QUICK[case])
    assert QUICK[case].items() <= values.items() and values["sign_offs"] == "demonstration"
    whole = nbformat.read(case_notebook(case), 4)
    text = {to: "\n".join(cell.source for cell in before_section(whole, to.capitalize()).cells if cell.cell_type == "code") for to in workshop.STOPS}
    assert "package_model(" in text["gates"] and "walk_through(" not in text["gates"]
    assert "walk_through(" in text["deploy"] and "record(" not in text["deploy"]
    assert all(to.capitalize() in LIFECYCLE for to in workshop.STOPS)


def test_the_applicants_of_the_quick_way_are_enough_to_show_calibration():
    """What the gate asks of the chosen model, at the size that people get: with few applicants it is luck."""
    source = sample_rows(load_dataset("credit_default"), QUICK["credit_risk"]["sample"], 0)
    (train, _, test), features = reference_split(source), credit.credit_features(source)
    model = credit.BoostedTrees(credit.contract_signs(source, features), seed=0).fit(train[features], credit.credit_outcome(source, train))
    found = evaluate.classification_metrics(credit.credit_outcome(source, test), credit.probabilities(model, test[features])["probability"])
    assert found["ece"] <= 0.8 * load_use_case("credit_risk").limits.metrics["ece"].at_most


def test_catch_up_builds_once_and_then_says_what_is_there(tmp_path, var, capsys):
    case = toy(tmp_path, "## Iterate", "1 / 0")
    assert main(["catch-up", str(case), "--to", "gates"]) == 0
    assert "toy/1 is packaged" in capsys.readouterr().out and audit.live("toy") is None
    assert main(["catch-up", str(case), "--to", "deploy"]) == 0
    assert "toy/2 is champion\n" in capsys.readouterr().out, "the version that waited is left alone: its sign-offs may be under way"
    entries = len(audit.entries("toy"))
    assert main(["catch-up", str(case), "--to", "deploy"]) == main(["catch-up", str(case), "--to", "gates"]) == 0
    said = capsys.readouterr().out
    assert "toy/2 is champion already; nothing is done" in said and "toy/2 is packaged already; nothing is done" in said
    assert len(audit.entries("toy")) == entries and not list((var / "in_use").iterdir())


def test_catch_up_takes_the_workspace_that_is_named(tmp_path, var, monkeypatch, capsys):
    case = toy(tmp_path, "## Deploy", "1 / 0")
    assert main(["catch-up", str(case), "--to", "deploy", "--workspace", str(tmp_path / "mine")]) == 0
    assert (tmp_path / "mine" / "operations.db").exists() and not var.exists()


def test_a_gate_that_refuses_is_named_and_leaves_with_3(tmp_path, var, capsys):
    case = toy(tmp_path, "## Deploy", "1 / 0")
    with pytest.raises(workshop.NotReached, match="toy is not ready for deploy; refused by: calibration"):
        workshop.catch_up(case, "deploy", {"refuse": "yes"}, progress=False)
    write_case(case, "# A toy", PARAMETERS, "## Deploy", "1 / 0")
    audit.append("retired", "toy/1", actor="eli", role="data_engineer")
    assert main(["catch-up", str(case), "--to", "deploy"]) == 3


def test_a_cell_that_fails_is_named_and_what_ran_is_kept(tmp_path, var, capsys):
    case = write_case(tmp_path / "toy.ipynb", PARAMETERS, "## Data", "1 / 0", "## Deploy")
    assert main(["catch-up", str(case), "--to", "deploy"]) == 1
    said = capsys.readouterr().out
    assert 'cell [2], under "Data": ZeroDivisionError' in said and (var / "until" / "toy" / "report.ipynb").exists()
    with pytest.raises(RunFailed):
        workshop.catch_up(case, "deploy", progress=False)


@pytest.mark.parametrize("words,message", [
    (["catch-up", "credit_risk", "--to", "deploi"], "choose from '?gates'?, '?deploy'?"), (["catch-up", "credit_risk"], "--to"),
    (["catch-up", "credit_rsk", "--to", "deploy"], "did you mean credit_risk"),
])  # fmt: skip
def test_what_cannot_be_caught_up_with_leaves_with_2_and_the_list(var, capsys, words, message):
    try:
        code = main(words)
    except SystemExit as left:
        code = left.code
    assert code == 2 and re.search(message, capsys.readouterr().err)


@pytest.mark.skipif(not os.path.exists("/proc/self"), reason="kills as Linux does")
def test_catch_up_that_is_killed_can_be_called_again(tmp_path, var, capsys):
    sign = tmp_path / "begun"
    wait = f"import pathlib, time\nif not pathlib.Path({str(sign)!r}).exists():\n    pathlib.Path({str(sign)!r}).touch()\n    time.sleep(600)"
    case = toy(tmp_path, "## Explain of nothing", wait, "## Deploy")
    program = f"from mlops_core.workshop import catch_up; catch_up({str(case)!r}, 'deploy', progress=False)"
    notebook = nbformat.read(case, 4)
    notebook.cells.insert(6, notebook.cells.pop(9))  # it waits when the version is packaged and not yet judged
    nbformat.write(notebook, case)
    running = subprocess.Popen([sys.executable, "-c", program])
    try:
        wait_for(sign.exists)
        assert workshop.users(var), "while it runs, nobody empties the workspace"
    finally:
        running.send_signal(signal.SIGKILL)
        running.wait()
    assert not workshop.users(var)
    assert main(["catch-up", str(case), "--to", "deploy"]) == 0
    assert "toy/2 is champion" in capsys.readouterr().out and audit.verify() == []


def test_a_kill_while_mlflow_makes_its_tables_does_not_spoil_the_workspace(var):
    fresh = f"import os, sys; sys.prefix = {str(var)!r}"  # as if MLflow had been installed a moment ago
    cut = f"{fresh}; import alembic.runtime.migration as steps; steps.HeadMaintainer.update_to_step = lambda *step: os._exit(9)"  # not yet noted
    done = subprocess.run([sys.executable, "-c", f"{cut}; from mlops_core.experiment import open_experiment; open_experiment('toy')"])
    assert done.returncode == 9 and not list(var.glob("mlflow-*"))
    open_experiment("toy")
    assert mlflow.get_experiment_by_name("toy").artifact_location == (var / "artifacts").as_uri()


@pytest.fixture
def used(var):
    """A workspace with an entry and files of all kinds."""
    audit.append("packaged", "toy/1", actor="eli", role="data_engineer")
    (var / "artifacts" / "deep").mkdir(parents=True)
    (var / "artifacts" / "deep" / "model.ubj").write_text("model")
    (var / "mlflow.db").touch()
    (var / "governance").mkdir()
    return var


def test_reset_says_what_goes_asks_and_empties(used, capsys, monkeypatch):
    answers = iter(["no", "var"])
    monkeypatch.setattr("builtins.input", lambda question: next(answers))
    assert main(["reset"]) == 2 and (used / "operations.db").exists()
    said = capsys.readouterr().out
    assert f"{used}: 1 audit log entries, 1 packaged versions" in said and "nothing was touched" in said
    assert main(["reset"]) == 0 and not list(used.iterdir())
    assert main(["reset", "--yes"]) == 0 and "holds nothing" in capsys.readouterr().out


def test_reset_knows_the_pages_that_monitoring_writes(used):
    write_fleet()
    (used / "views").mkdir()  # where the pages of the roles go
    workshop.reset(used)
    assert not [*used.iterdir()]


def test_reset_does_not_follow_links_and_takes_what_a_kill_left(used, tmp_path):
    precious = tmp_path / "precious"
    precious.mkdir()
    (precious / "thesis.txt").touch()
    (used / "tmp1234").symlink_to(precious)
    (used / ".going-12345678").mkdir()
    (used / ".going-12345678" / "mlflow.db").touch()
    assert main(["reset", "--yes"]) == 0
    assert not list(used.iterdir()) and (precious / "thesis.txt").exists()


def test_a_folder_that_is_no_workspace_of_ours_is_refused(tmp_path, var, capsys):
    other = tmp_path / "photographs"
    other.mkdir()
    (other / "anna.jpg").touch()
    assert main(["reset", "--yes", "--workspace", str(other)]) == 2 and "is no workspace" in capsys.readouterr().out
    (other / "operations.db").write_text("a file that has the name")
    assert main(["reset", "--yes", "--workspace", str(other)]) == 2 and "is no workspace" in capsys.readouterr().out
    (other / "operations.db").unlink()
    os.environ["MLOPS_WORKSPACE"] = str(other)
    operations_engine()
    assert main(["reset", "--yes"]) == 2 and "anna.jpg; move it elsewhere first" in capsys.readouterr().out
    assert (other / "anna.jpg").exists() and (other / "operations.db").exists()


@pytest.mark.parametrize("place", ["data", "reports", "data/credit_default", "reports/credit_risk/x/workspace", ".", ".."])
def test_data_reports_and_what_holds_them_are_never_emptied(place):
    with pytest.raises(workshop.ResetRefused, match="never emptied"):
        workshop.require_workspace((home() / place).resolve())


def test_state_that_is_elsewhere_is_not_forgotten(used, monkeypatch, capsys):
    monkeypatch.setenv("MLOPS_OPS_URL", "postgresql+psycopg://x@127.0.0.1/x")
    assert main(["reset", "--yes"]) == 2 and "MLOPS_OPS_URL keep state outside" in capsys.readouterr().out and (used / "operations.db").exists()


def test_nobody_there_to_answer_is_a_no(used):
    done = subprocess.run([sys.executable, "-m", "mlops_core.cli", "reset"], stdin=subprocess.DEVNULL, capture_output=True, text=True)
    assert done.returncode == 2 and "--yes" in done.stdout + done.stderr and (used / "operations.db").exists()


def test_a_workspace_in_which_a_server_answers_is_refused(used, capsys):
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    server = subprocess.Popen([sys.executable, "-m", "mlops_core.cli", "serve", "credit_risk", "--no-auth", "--port", str(port)])
    try:
        wait_for(lambda: workshop.users(used))
        assert main(["reset", "--yes"]) == 2
        assert f"in use by server on port {port}, process {server.pid}; end that first" in capsys.readouterr().out
    finally:
        server.kill()
        server.wait()
    assert main(["reset", "--yes"]) == 0


def test_the_real_thing_from_an_empty_workspace(var, capsys):
    """The case that is the quickest, at the size that people get, to a champion that the gates let through."""
    assert main(["catch-up", "consumption_forecast", "--to", "deploy"]) == 0
    assert "consumption_forecast/1 is champion" in capsys.readouterr().out
    assert audit.entries("consumption_forecast", event="gates")["payload"].iloc[-1]["failed"] == [] and audit.verify() == []
