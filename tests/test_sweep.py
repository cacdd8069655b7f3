"""A sweep runs each point of its grid once, whatever is killed, and says of each how it ended."""

import json
import os
import re
import signal
import subprocess
import sys
import time

import pandas as pd
import pytest
from distributed import Client, LocalCluster
from test_report import wait_for, write_case

from mlops_core import report, sweep
from mlops_core.archive import list_runs
from mlops_core.cli import main
from mlops_core.core import RECORD_TYPE, ParameterError

PARAMETERS = """
seed: int = 0  # drives everything [0, 100]
rate: float = 0.5  # a number [0, 10]
channel: str = "push"  # which list {push, pull}
workspace: str = ""  # folder
"""
WORK = f"""
import os, pathlib, time
from IPython.display import display

assert rate < 10, "ten is too much"
begun = pathlib.Path({{begun!r}})
(begun / str(os.getpid())).write_text(str(os.getppid()))
time.sleep({{seconds}})
value = seed + rate
display({{{{{RECORD_TYPE!r}: {{{{
    "question": "?", "verdict": f"it is {{{{value}}}}", "results": {{{{"x": value}}}}, "data": {{{{"name": "d"}}}},
    "headline": [{{{{"name": "x", "label": "The sum", "value": value, "low": value - 1, "high": value + 1, "limit": 3}}}},
                 {{{{"name": "word", "value": channel}}}}],
}}}}}}}}, raw=True)
"""


def tiny(folder, seconds=0.0):
    """A case that takes so long; each run that begins leaves a file in folder/begun, with the process that started its kernel."""
    (folder / "begun").mkdir(parents=True)
    return write_case(folder / "tiny.ipynb", "# Tiny", PARAMETERS, "## Work", WORK.format(begun=str(folder / "begun"), seconds=seconds))


def grid_file(folder, text):
    (folder / "grid.yaml").write_text(text)
    return str(folder / "grid.yaml")


def in_another_process(case, grid, reports, **options):
    """A sweep in a process of its own, that can be killed."""
    program = f"from mlops_core.sweep import run_sweep; run_sweep({str(case)!r}, {grid!r}, {str(reports)!r}, progress=False, **{options!r})"
    return subprocess.Popen([sys.executable, "-c", program])


def succeeded(reports):
    return [run for run in list_runs(reports) if run["status"] == "succeeded"]


REFUSED = {
    "unknown name": ("sed: [1]", "unknown parameter sed; did you mean seed"),
    "bad value": ("seed: [1, 2]\nrate: [0.5, 11]", "parameter rate: 11 is not allowed; it takes float in \\[0, 10\\]"),
    "wrong type": ("seed: [1, '2']", "parameter seed: '2' is not allowed"),
    "not a choice": ("channel: [push, fax]", "parameter channel: 'fax' is not allowed; .*one of push, pull"),
    "no list": ("seed: 3", "parameter seed: 3 is no list of values; write seed: \\[3\\]"),
    "empty list": ("seed: []", "parameter seed: \\[\\] is no list of values"),
    "value twice": ("rate: [1, 1.0]", "parameter rate: 1.0 is in the grid more than once"),
    "name twice": ("seed: [1]\nseed: [2]", "parameter seed stands there 2 times"),
    "one workspace for all": ("workspace: [a]", "parameter workspace: each run of a sweep has a workspace of its own"),
    "empty": ("", "holds no grid"),
    "no grid": ("- seed", "holds no grid"),
    "no YAML": ("seed: [1", "cannot be read"),
    "something to run": ("seed: !!python/object/apply:os.getpid []", "cannot be read"),
}


@pytest.mark.parametrize("text,message", REFUSED.values(), ids=REFUSED)
def test_a_grid_that_cannot_be_run_stops_with_2_before_anything_runs(tmp_path, capsys, text, message):
    case = tiny(tmp_path)
    words = ["sweep", str(case), "--grid", grid_file(tmp_path, text), "--reports", str(tmp_path / "reports")]
    assert main(words) == 2
    assert re.search(message, capsys.readouterr().err)
    assert not (tmp_path / "reports").exists() and not list((tmp_path / "begun").iterdir())


def test_a_case_or_grid_that_is_not_there_leaves_with_2(tmp_path, capsys):
    assert main(["sweep", "credit_rsk", "--grid", grid_file(tmp_path, "seed: [1]")]) == 2
    assert main(["sweep", str(tiny(tmp_path)), "--grid", "nowhere.yaml"]) == 2
    with pytest.raises(SystemExit) as left:
        main(["sweep", "credit_risk", "--grid", "g", "--jobs", "0"])
    assert left.value.code == 2
    said = capsys.readouterr().err
    assert "did you mean credit_risk" in said and "nowhere.yaml" in said and "0 is not a number of runs at a time" in said


def test_a_scheduler_that_does_not_answer_is_named(tmp_path, capsys):
    words = ["sweep", str(tiny(tmp_path)), "--grid", grid_file(tmp_path, "seed: [1]"), "--reports", str(tmp_path / "reports"), "--scheduler"]
    assert main([*words, "nonsense"]) == 2
    assert "no Dask scheduler answers at nonsense" in capsys.readouterr().err


def test_the_grid_is_the_full_product_with_the_defaults_of_the_rest(tmp_path):
    points = sweep.grid_points(tiny(tmp_path), {"seed": [1, 2], "rate": [1, 0.5]})
    assert points == [{"seed": s, "rate": r, "channel": "push", "workspace": ""} for s in (1, 2) for r in (1.0, 0.5)]


def test_a_key_changes_with_what_changes_numbers_and_with_nothing_else(tmp_path):
    folder = tmp_path / "data"
    folder.mkdir()
    (folder / "dataset.toml").write_text("[tables]")
    (folder / "rows.csv").write_text("a,b\n1,2\n")
    case = write_case(tmp_path / "coin.ipynb", 'dataset: str = "credit_default"  # data', "x = 1")
    point = {"dataset": str(folder)}
    common, (key,) = sweep.keys_of(case, [point])
    run = common | {"parameters": point}
    assert sweep.run_key(json.loads(json.dumps(run))) == key
    assert sweep.run_key(run | {"started": "now", "run_id": "x", "timings": {"a": 1}, "code_revision": "z"}) == key
    assert sweep.run_key(run | {"environment": run["environment"] | {"platform": "another machine"}}) == key
    newer = run["environment"] | {"numpy": "1.0"}
    for change in ({"parameters": {"dataset": "grocery"}}, {"code_fingerprint": "0"}, {"environment": newer}, {"case": "b"}):
        assert sweep.run_key(run | change) != key
    (folder / "README.md").write_text("words are no data")
    assert sweep.keys_of(case, [point])[1].keys() == {key}
    (folder / "rows.csv").write_text("a,b\n1,3\n")
    assert sweep.keys_of(case, [point])[1].keys() != {key}
    write_case(tmp_path / "coin.ipynb", 'dataset: str = "credit_default"  # data', "x = 2")
    (folder / "rows.csv").write_text("a,b\n1,2\n")
    assert sweep.keys_of(case, [point])[1].keys() != {key}


@pytest.fixture(scope="module")
def swept(tmp_path_factory):
    """A grid of four with a point that fails, from the command line on two processes."""
    folder = tmp_path_factory.mktemp("swept")
    grid = grid_file(folder, "seed: [1, 2]\nrate: [0.5, 10]")
    words = ["sweep", str(tiny(folder)), "--grid", grid, "--jobs", "2", "--reports", str(folder / "reports")]
    code = main(words)
    made = next((folder / "reports" / "sweeps").glob("tiny-*"))
    return folder, words, code, made, sweep.read_sweep(made)


def test_a_run_that_fails_is_a_row_and_the_others_go_on(swept):
    folder, _, code, made, rows = swept
    assert code == 1 and [row["status"] for row in rows] == ["succeeded", "failed", "succeeded", "failed"]
    assert [(row["parameters"]["seed"], row["parameters"]["rate"]) for row in rows] == [(1, 0.5), (1, 10.0), (2, 0.5), (2, 10.0)]
    assert 'under "Work": AssertionError: ten is too much' in rows[1]["message"] and rows[0]["headline"][0]["value"] == 1.5
    assert all((folder / "reports" / "tiny" / row["run_id"] / "results.json").exists() for row in rows)
    asked = json.loads((made / "sweep.json").read_text())
    assert asked["grid"] == {"seed": [1, 2], "rate": [0.5, 10]} and asked["runs"] == 4 and asked["case"] == "tiny"
    assert sweep.read_grid(made / "grid.yaml") == asked["grid"]


def test_the_page_has_table_links_and_small_multiples_with_their_texts(swept):
    folder, _, _, made, rows = swept
    page = (made / "index.html").read_text()
    assert "2 of 4 succeeded, 2 failed" in page and "<script" not in page and "src=\"http" not in page
    assert "The sum of 2 runs against seed, rate: from 1.500 (seed 1, rate 0.5) to 2.500 (seed 2, rate 0.5)" in page
    assert page.count("data:image/png;base64") == 1, "a word is no number to draw"
    for link in re.findall(r'href="(\.\./[^"]+)"', page):
        assert (made / link).exists(), link
    assert f"{rows[0]['run_id']}/report.html" in page and f"{rows[1]['run_id']}/report.ipynb" in page and "ten is too much" in page
    index = (folder / "reports" / "index.html").read_text()
    assert rows[0]["run_id"] in index and f'href="sweeps/{made.name}/index.html"' in index


def test_the_same_command_again_runs_only_what_has_not_succeeded(swept, capsys):
    folder, words, _, _, rows = swept
    before = set((folder / "begun").iterdir())
    assert main(words) == 1
    again = sweep.read_sweep(next((folder / "reports" / "sweeps").glob("tiny-*")))
    assert [row["run_id"] == old["run_id"] for row, old in zip(again, rows, strict=True)] == [True, False, True, False]
    assert set((folder / "begun").iterdir()) == before and len(succeeded(folder / "reports")) == 2
    assert "2 of 4 runs succeeded" in capsys.readouterr().out


def test_a_run_made_alone_or_by_another_sweep_counts(swept, monkeypatch):
    folder, words, _, _, rows = swept
    monkeypatch.setattr(sweep, "workers", None)  # nobody is needed
    made = sweep.run_sweep(folder / "tiny.ipynb", {"rate": [0.5], "seed": [2, 1]}, folder / "reports", progress=False)
    assert [row["run_id"] for row in sweep.read_sweep(made)] == [rows[2]["run_id"], rows[0]["run_id"]]
    assert made.name != next(path for path in made.parent.glob("tiny-*") if path != made).name


def test_a_worker_with_other_code_or_without_the_folder_says_so(swept, tmp_path):
    folder, _, _, made, _ = swept
    said = sweep.run_point(str(folder / "tiny.ipynb"), {"seed": 1, "rate": 0.5}, "0" * 16, tmp_path / "sweeps" / "none")
    assert "the worker does not see" in said["message"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sweep, "run_report", lambda *words, **options: folder / "reports" / "tiny" / "other")
        said = sweep.run_point(str(folder / "tiny.ipynb"), {"seed": 9}, "0" * 16, made)
    assert "the worker has other code, data or packages" in said["message"]


@pytest.mark.skipif(not os.path.exists("/proc/self"), reason="kills as Linux does")
def test_a_sweep_that_is_killed_goes_on_where_it_was(tmp_path):
    case, reports = tiny(tmp_path, 2.0), tmp_path / "reports"
    running = in_another_process(case, {"seed": [1, 2, 3]}, reports)
    try:
        wait_for(lambda: len(succeeded(reports)) == 1 and len(list((tmp_path / "begun").iterdir())) == 2, 180)
    finally:
        running.send_signal(signal.SIGKILL)
        running.wait()
    first = succeeded(reports)[0]["run_id"]
    made = next((reports / "sweeps").glob("tiny-*"))
    assert "waiting" in (made / "index.html").read_text()
    assert sweep.run_sweep(case, {"seed": [1, 2, 3]}, reports, progress=False) == made
    rows = sweep.read_sweep(made)
    assert [row["status"] for row in rows] == ["succeeded"] * 3 and first in [row["run_id"] for row in rows]
    assert len(succeeded(reports)) == 3 and len(list((tmp_path / "begun").iterdir())) == 4, "only the run that was cut off began twice"


@pytest.mark.skipif(not os.path.exists("/proc/self"), reason="kills as Linux does")
def test_on_a_cluster_a_worker_that_is_killed_loses_no_run_and_doubles_none(tmp_path):
    case, reports = tiny(tmp_path, 2.0), tmp_path / "reports"
    with LocalCluster(n_workers=2, threads_per_worker=1, processes=True, dashboard_address=None, silence_logs=50) as cluster:
        with Client(cluster) as client:
            processes = sorted(client.run(os.getpid).values())
        assert len(set(processes)) == 2 and os.getpid() not in processes
        running = in_another_process(case, {"seed": [1, 2, 3, 4]}, reports, scheduler=cluster.scheduler_address)
        try:
            wait_for(lambda: any(path.read_text() for path in (tmp_path / "begun").iterdir()), 180)
            busy = next(int(path.read_text()) for path in (tmp_path / "begun").iterdir() if path.read_text())
            assert busy in processes
            os.kill(busy, signal.SIGKILL)
            assert running.wait(240) == 0
        finally:
            running.kill()
    rows = sweep.read_sweep(next((reports / "sweeps").glob("tiny-*")))
    assert [row["status"] for row in rows] == ["succeeded"] * 4 and len({row["run_id"] for row in rows}) == 4
    assert sorted(run["results"]["x"] for run in succeeded(reports)) == [1.5, 2.5, 3.5, 4.5]
    assert len(list((tmp_path / "begun").iterdir())) == 5 and [run["status"] for run in list_runs(reports)].count("unfinished") == 1


def test_two_workers_on_one_point_make_one_run(tmp_path, monkeypatch):
    """As when a worker lost its connection, its work was given to another, and it was alive all the time."""
    from concurrent.futures import ThreadPoolExecutor

    made, started = tmp_path / "reports" / "sweeps" / "tiny-0", []
    (made.parent / ".locks").mkdir(parents=True)
    made.mkdir()
    (made / "sweep.json").write_text("{}")
    case = tiny(tmp_path)
    common, wanted = sweep.keys_of(case, sweep.grid_points(case, {"seed": [1]}))
    (key,) = wanted

    def slow(case, parameters, reports, progress):
        started.append(parameters)
        time.sleep(0.5)
        folder = reports / "tiny" / f"20260101T00000{len(started)}Z-abcdef"
        folder.mkdir(parents=True)
        (folder / "results.json").write_text(json.dumps(common | {"status": "succeeded", "parameters": parameters}))
        return folder

    monkeypatch.setattr(sweep, "run_report", slow)
    with ThreadPoolExecutor(2) as pool:
        assert list(pool.map(lambda _: sweep.run_point(str(case), wanted[key], key, made), range(2))) == [{}, {}]
    assert len(started) == 1


def test_an_interval_may_lie_beside_its_value():
    "As that of a calibration error on a small sample does, which chance makes larger in each draw."
    table = pd.DataFrame({"seed": [0, 1], "value": [0.01, 0.03], "low": [0.02, 0.02], "high": [0.04, 0.04]})
    (axis,) = sweep.small_multiples(table, ["seed"], {"name": "ece"}).axes
    assert [segment[:, 1].tolist() for segment in axis.collections[0].get_segments()] == [[0.02, 0.04]] * 2


def test_small_multiples_draw_numbers_words_and_wide_ranges():
    table = pd.DataFrame({"sample": [10, 1000, 10, 1000], "kind": ["a", "a", "b", "b"], "value": [1.0, 2, 3, 4], "low": [0.5] * 4, "high": [4.5] * 4})
    figure = sweep.small_multiples(table, ["sample", "kind"], {"name": "x", "limit": 2})
    left, right = figure.axes
    assert left.get_xscale() == "log" and [text.get_text() for text in right.get_xticklabels()] == ["a", "b"] and left.get_ylabel() == "x"
    thick = [[line.get_ydata().tolist() for line in axis.lines if line.get_linewidth() == 2] for axis in (left, right)]
    assert thick == [[[2.0, 3.0]], [[1.5, 3.5]]], "the thick line is the mean over the other parameter"


def test_a_missing_run_does_not_bend_the_mean():
    table = pd.DataFrame({"seed": [0, 1, 0], "rate": [1, 1, 9], "value": [1.0, 1.0, 9.0], "low": None, "high": None})
    table = table.astype({"low": float, "high": float})
    by_seed, by_rate = sweep.small_multiples(table, ["seed", "rate"], {"name": "x"}).axes
    assert [line.get_ydata().tolist() for line in by_seed.lines if line.get_linewidth() == 2] == [[1.0, 1.0]], "as if the rate of 9 were not there"
    assert [line.get_ydata().tolist() for line in by_rate.lines if line.get_linewidth() == 2] == [[1.0, 9.0]]


def test_a_case_keeps_its_name_in_the_command(monkeypatch, tmp_path):
    asked = []
    monkeypatch.setattr(sweep, "outcomes", lambda *words: asked.append(words[1]) or iter(()))
    monkeypatch.setattr(report, "environment", dict)
    made = sweep.run_sweep("credit_risk", {"seed": [1]}, tmp_path, progress=False)
    assert asked == ["credit_risk"] and json.loads((made / "sweep.json").read_text())["command"].startswith("mlops sweep credit_risk --grid ")


def test_read_grid_takes_a_file_with_comments_and_all_kinds(tmp_path):
    path = grid_file(tmp_path, "# what we ask\nseed: [0, 1]\nrate: [1.0e-3, 2]\nchannel:\n  - push\n  - pull\n")
    assert sweep.read_grid(path) == {"seed": [0, 1], "rate": [0.001, 2], "channel": ["push", "pull"]}
    with pytest.raises(ParameterError, match="cannot be read"):
        sweep.read_grid(tmp_path)
