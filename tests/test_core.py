"""Settings are found from anywhere, chance is repeatable, parameters defend themselves, records survive the notebook."""

import nbformat
import numpy as np
import pandas as pd
import papermill
import pytest

from mlops_core import core


def test_home_is_found_from_any_folder(tmp_path, monkeypatch):
    monkeypatch.delenv("MLOPS_HOME", raising=False)
    project = core.home()
    assert (project / "settings.ini").exists()
    monkeypatch.chdir(tmp_path)
    assert core.home() == project
    monkeypatch.setenv("MLOPS_HOME", str(tmp_path))
    assert core.home() == tmp_path.resolve()


def test_one_setting_moves_state_to_a_server(tmp_path, monkeypatch):
    monkeypatch.setenv("MLOPS_WORKSPACE", str(tmp_path / "new"))
    assert core.tracking_uri() == f"sqlite:///{tmp_path / 'new' / 'mlflow.db'}" and (tmp_path / "new").is_dir()
    monkeypatch.setenv("MLOPS_TRACKING_URI", "http://127.0.0.1:5000")
    assert core.tracking_uri() == "http://127.0.0.1:5000"
    monkeypatch.setenv("MLOPS_OPS_URL", f"sqlite:///{tmp_path / 'elsewhere.db'}")
    assert str(core.operations_engine().url).endswith("elsewhere.db")


def test_evaluations_come_back_tidy_with_gaps_as_gaps(tmp_path, monkeypatch):
    monkeypatch.setenv("MLOPS_WORKSPACE", str(tmp_path))
    frame = pd.DataFrame({"metric": ["auc", "auc"], "slice": ["all", "sex=male"], "value": [0.7, 0.6], "low": [0.6, np.nan], "n": [10, 5]})
    core.log_evaluations(frame, "credit_risk/1", "credit_default")
    core.log_evaluations(frame.head(1), "credit_risk/2", "credit_default")
    read = core.read_evaluations(subject="credit_risk/1")
    assert read[["slice", "value", "n"]].values.tolist() == [["all", 0.7, 10], ["sex=male", 0.6, 5]]
    assert read["low"].isna().tolist() == [False, True] and read["high"].isna().all()
    assert len(core.read_evaluations()) == 3 and read["recorded_at"].notna().all()


def test_streams_do_not_disturb_each_other():
    alone = core.generator(3, "bootstrap").random(5)
    other = core.generator(3, "split")
    other.random(100)
    assert (core.generator(3, "bootstrap").random(5) == alone).all()
    assert not np.allclose(core.generator(4, "bootstrap").random(5), alone)


CELL = '''
seed: int = 0  # drives everything [0, 2147483647]
share: float = 0.5  # how many [0, 1]
mode: str = "push"  # which list {push, pull}
deep: bool = False  # try harder
note: str = ""  # free text
'''


def test_parameters_are_read_from_the_cell():
    found = core.parse_parameters(CELL)
    assert list(found) == ["seed", "share", "mode", "deep", "note"]
    assert (found["share"].low, found["share"].high, found["mode"].choices) == (0, 1, ("push", "pull"))
    assert found["deep"].type is bool and found["note"].meaning == "free text"
    assert core.check_parameters(found, {"share": 1})["share"] == 1.0


@pytest.mark.parametrize(
    "given, message",
    [
        ({"sede": 1}, "unknown parameter sede; did you mean seed"),
        ({"zzz": 1}, "there are: seed, share"),
        ({"seed": 1.5}, "seed: 1.5 is not allowed; it takes int"),
        ({"seed": True}, "seed: True is not allowed"),
        ({"seed": -1}, "drives everything"),
        ({"share": float("nan")}, "share: nan"),
        ({"share": 1.01}, r"float in \[0, 1\]"),
        ({"mode": "fax"}, "one of push, pull"),
        ({"deep": 1}, "deep: 1 is not allowed; it takes bool"),
    ],
)
def test_bad_parameters_name_what_is_allowed(given, message):
    with pytest.raises(core.ParameterError, match=message):
        core.check_parameters(core.parse_parameters(CELL), given)


def test_notebook_without_parameters_is_refused(tmp_path):
    nbformat.write(nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell("seed = 0")]), tmp_path / "bare.ipynb")
    with pytest.raises(core.ParameterError, match="no cell tagged parameters"):
        core.case_parameters(tmp_path / "bare.ipynb")


def test_records_figures_and_what_ifs_survive_execution(tmp_path):
    code = """
import ipywidgets, matplotlib.pyplot as plt, numpy as np, pandas as pd
from mlops_core.core import record, show, what_if
figure, axis = plt.subplots()
_ = show(figure, "An empty plot")
def answer(n):
    figure, axis = plt.subplots()
    axis.plot(range(n))
    return figure
what_if("how long?", answer, n=ipywidgets.IntSlider(value=3))
record(results={"a": np.float32(0.5), "gap": np.nan}, candidates=pd.DataFrame({"x": [1]}))
record(results={"a": 2})
"""
    nbformat.write(nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(code)]), tmp_path / "in.ipynb")
    done = papermill.execute_notebook(tmp_path / "in.ipynb", tmp_path / "out.ipynb", kernel_name="python3", progress_bar=False)
    done = nbformat.read(tmp_path / "out.ipynb", as_version=4)
    assert core.read_records(done) == {"results": {"a": 2}, "candidates": [{"x": 1}]}
    pictures = [output.metadata["image/png"]["alt"] for output in done.cells[0].outputs if "image/png" in output.get("data", {})]
    assert pictures == ["An empty plot", "how long?"]


def test_a_database_that_is_put_in_the_place_of_another_gets_its_tables(tmp_path, monkeypatch):
    monkeypatch.setenv("MLOPS_WORKSPACE", str(tmp_path))
    first = core.operations_engine()
    assert core.operations_engine() is first, "it is kept"
    for file in tmp_path.glob("operations.db*"):
        file.rename(tmp_path / f"old-{file.name}")
    with pytest.raises(FileNotFoundError, match="is gone"):
        core.operations_engine()
    (tmp_path / "operations.db").touch()
    core.log_evaluations(pd.DataFrame({"metric": ["auc"], "value": [0.7]}), "credit_risk/1", "credit_default")
    assert len(core.read_evaluations()) == 1


def test_a_replay_sets_the_clock_and_gives_it_back_also_when_it_fails():
    moment = pd.Timestamp("2031-05-01", tz="UTC")
    with pytest.raises(KeyError), core.replayed_clock() as clock:
        clock(moment)
        before = core.stopwatch()
        assert core.now() == moment and sum(range(100_000)) and core.stopwatch() == before, "how long something takes is no matter of a replay"
        raise KeyError
    before = core.stopwatch()
    assert abs(core.now() - pd.Timestamp.now(tz="UTC")) < pd.Timedelta("1min") and sum(range(100_000)) and core.stopwatch() > before


def test_a_time_is_kept_in_utc_without_its_zone_whatever_form_it_has():
    noon = pd.Timestamp("2026-03-01 12:00")
    for form in ("2026-03-01T13:00:00+01:00", pd.Timestamp("2026-03-01 13:00", tz="Europe/Vienna"), noon, noon.to_pydatetime(), "2026-03-01 12:00"):
        assert core.naive_utc(form) == noon and core.naive_utc(form).tz is None
