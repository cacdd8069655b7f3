"""Files of rows: every row is answered or named, a kill costs one piece, memory does not grow with the file."""

import functools
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import dask
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from distributed import LocalCluster
from distributed.scheduler import KilledWorker

from mlops_core import audit, batch, credit, package
from mlops_core.artifact import sha256
from mlops_core.cli import main
from mlops_core.contract import check_table, row_faults
from mlops_core.data import load_dataset
from mlops_core.experiment import classification_fold
from mlops_core.govern import GovernanceError, load_use_case
from mlops_core.scoring import RequestLimits, make_live

WHO = {"actor": "cho", "role": "devops"}
COLUMNS = ("limit_bal", "education", "pay_0", "pay_2", "bill_amt1", "pay_amt1")
CLIENTS = load_dataset("credit_default").table[["client_id", *COLUMNS]]
BROKEN = {3: ("pay_0", 99), 4: ("pay_0", np.nan), 5: ("education", "phd"), 1500: ("limit_bal", np.inf), 2999: ("pay_2", 0.5)}


@pytest.fixture(scope="module", autouse=True)
def version(tmp_path_factory):
    before, os.environ["MLOPS_WORKSPACE"] = os.environ.get("MLOPS_WORKSPACE"), str(tmp_path_factory.mktemp("batch"))
    source = load_dataset("credit_default")
    build = functools.partial(classification_fold, features=COLUMNS, sample=3000)
    recipe = package.Recipe("credit_default", build, credit.BoostedTrees(), 0)
    fold, tables = recipe.fold(), {"inputs": [{"column": column, "source": f"clients.{column}"} for column in COLUMNS]}
    case = credit.credit_case(source, list(COLUMNS))
    made = package.package_model(case, recipe.fit(fold), recipe, fold, tables, actor="ana", role="data_scientist")
    audit.append("champion", made.subject, {"manifest": made.manifest}, **WHO)
    yield made
    os.environ.pop("MLOPS_WORKSPACE") if before is None else os.environ.update(MLOPS_WORKSPACE=before)


@pytest.fixture
def clients(tmp_path):
    "3,000 clients, of whom some have rows that cannot be."
    rows = CLIENTS.head(3000).astype({"limit_bal": "float64", "pay_0": "float64", "pay_2": "float64"})
    for row, (column, value) in BROKEN.items():
        rows.loc[row, column] = value
    rows.to_parquet(tmp_path / "in.parquet")
    return tmp_path / "in.parquet"


def score(source, target=None, size=400, **more):
    return batch.score_file("credit_risk", source, target or source.with_name("out.parquet"), size, **(WHO | more))


def test_every_row_is_answered_or_named(version, clients):
    report = score(clients)
    answered, rejected, rows = pd.read_parquet(report.target), pd.read_parquet(report.side_file), pd.read_parquet(clients)
    assert rejected["row"].tolist() == list(BROKEN)
    assert [reasons.split(":")[0] for reasons in rejected["reasons"]] == [column for column, _ in BROKEN.values()]
    assert rejected["client_id"].tolist() == rows.loc[list(BROKEN), "client_id"].tolist(), "a rejected row is there as it came"
    assert sorted([*answered["row"], *rejected["row"]]) == list(range(3000))
    expected = version.answer(rows.drop(index=list(BROKEN))[list(COLUMNS)])
    np.testing.assert_allclose(answered["probability"], expected["probability"], rtol=1e-9)
    assert answered["client_id"].tolist() == rows.drop(index=list(BROKEN))["client_id"].tolist()
    decided = version.decide(expected, load_use_case("credit_risk").review_band)
    assert answered["action"].tolist() == decided.tolist() and report.actions == decided.value_counts().to_dict()


def test_the_audit_log_has_one_entry_with_the_hashes(clients):
    report = score(clients)
    entry = audit.entries(event="scored").iloc[-1]
    assert entry["payload"]["input"] == sha256(clients) and entry["payload"]["output"] == sha256(report.target)
    assert entry["payload"]["side_file"] == sha256(report.side_file) and entry["subject"] == report.subject
    assert (entry["payload"]["rows"], entry["payload"]["rejected"], entry["actor"]) == (3000, 5, "cho")


def test_rows_are_judged_as_the_data_contract_judges_them(version, clients):
    contract, rows = make_live(version, RequestLimits()).contract, pd.read_parquet(clients)[list(COLUMNS)]
    faults, found = row_faults(rows, contract), check_table(rows, contract)
    said = {(row, f"{one.column}: {one.rule}") for one in found.itertuples() for row in one.rows}
    assert said == {(row, fault) for row, text in faults[faults != ""].items() for fault in text.split("; ")}


KILLED = """
import os, pathlib, signal, sys
from mlops_core import batch
whole, calls = batch.score_rows, []
def until(*words):
    calls.append(1)
    if len(calls) == 4:
        os.kill(os.getpid(), signal.SIGKILL)
    return whole(*words)
if sys.argv[3] == "piece":
    batch.score_rows = until
elif sys.argv[3] == "note":  # half of the note that the fourth piece is done
    def half(path, text, write=pathlib.Path.write_text):
        write(path, text[: len(text) // 2] if path.name.startswith("000003") else text)
        if path.name.startswith("000003"):
            os.kill(os.getpid(), signal.SIGKILL)
    pathlib.Path.write_text = half
else:  # when the entry is written and the file is not there yet
    replace = os.replace
    os.replace = lambda a, b: os.kill(os.getpid(), signal.SIGKILL) if str(b) == sys.argv[2] else replace(a, b)
batch.score_file("credit_risk", sys.argv[1], sys.argv[2], 400, actor="cho", role="devops")
"""


@pytest.mark.parametrize("where", ["piece", "note", "end"])
def test_a_kill_costs_one_piece(clients, where, monkeypatch):
    whole, target = score(clients, clients.with_name("whole.parquet")), clients.with_name("out.parquet")
    entries = len(audit.entries(event="scored"))
    done = subprocess.run([sys.executable, "-c", KILLED, clients, target, where], capture_output=True)
    assert done.returncode == -signal.SIGKILL and not target.exists(), "no half file"
    scored = []
    monkeypatch.setattr(batch, "score_rows", lambda *words, made=batch.score_rows: scored.append(1) or made(*words))
    score(clients)
    assert len(scored) == (0 if where == "end" else 5), "8 pieces, of which those that were done are not done again"
    assert sha256(target) == sha256(whole.target)
    assert len(audit.entries(event="scored")) == entries + 1 and not list(clients.parent.glob("*.pieces"))


def test_a_piece_that_cannot_be_seen_is_no_shorter_file(clients, monkeypatch):
    entries = len(audit.entries(event="scored"))
    with monkeypatch.context() as patch:
        patch.setattr(batch, "_is_done", lambda pieces, number: number == 3)
        with pytest.raises(batch.BatchError, match=r"2,600 of 3,000 rows can be seen .* out.parquet is not written; run the same again"):
            score(clients)
    assert not clients.with_name("out.parquet").exists() and len(audit.entries(event="scored")) == entries
    assert score(clients).rows == 3000


def test_pieces_of_another_input_or_size_are_not_used(clients):
    pieces = clients.with_name("out.parquet.pieces")
    pieces.mkdir()
    (pieces / "plan.json").write_text('{"input": "another", "job": "x"}')
    (pieces / "000000.json").write_text('{"rows": 400, "rejected": 0, "actions": {}}')
    assert score(clients).rows == 3000 and pq.read_metadata(clients.with_name("out.parquet")).num_rows == 2995


BUSY = """
import pathlib, sys, time
from mlops_core import batch
def for_ever(*words):
    pathlib.Path(sys.argv[3]).touch()
    time.sleep(600)
batch.score_rows = for_ever
batch.score_file("credit_risk", sys.argv[1], sys.argv[2], 400, actor="cho", role="devops")
"""


def test_of_two_processes_that_write_one_file_the_second_is_refused_and_a_kill_leaves_no_lock(clients):
    busy = clients.with_name("busy")
    other = subprocess.Popen([sys.executable, "-c", BUSY, clients, clients.with_name("out.parquet"), busy])
    try:
        while not busy.exists():
            assert other.poll() is None
            time.sleep(0.05)
        with pytest.raises(batch.BatchError, match=r"out\.parquet is being written by another process; wait"):
            score(clients)
        score(clients, clients.with_name("free.parquet"))
    finally:
        other.kill()
        other.wait()
    assert score(clients).rows == 3000 and not list(clients.parent.glob("out.parquet.pieces"))


@pytest.fixture(scope="module")
def cluster(version):
    "A Dask cluster of two processes, each with one thread."
    with LocalCluster(n_workers=2, threads_per_worker=1, processes=True, dashboard_address=None) as made:
        yield made


def spread(cluster, clients, size=100):
    return score(clients, clients.with_name("spread.parquet"), size, scheduler=cluster.scheduler_address)


def test_a_cluster_writes_the_same_bytes_and_one_entry(clients, cluster):
    whole = score(clients, size=100)
    entries = len(audit.entries(event="scored"))
    report = spread(cluster, clients)
    assert (report.rows, report.rejected, report.actions) == (whole.rows, whole.rejected, whole.actions)
    assert [sha256(path) for path in (report.target, report.side_file)] == [sha256(path) for path in (whole.target, whole.side_file)]
    known = audit.entries(event="scored").iloc[entries:]["payload"].tolist()
    assert len(known) == 1 and known[0]["output"] == sha256(report.target) and known[0]["rows"] == 3000


def fails_late(*words):
    if words[3] == 12:
        raise OSError("No space left on device")
    return batch._score_there(*words)


def test_what_a_cluster_has_done_is_kept_and_one_process_goes_on(clients, cluster, monkeypatch):
    whole = score(clients, size=100)
    with monkeypatch.context() as patch:
        patch.setattr(batch, "_score_there", fails_late)
        with pytest.raises(batch.BatchError, match=r"not scored to its end: .*No space left.*run the same again"):
            spread(cluster, clients)
    done = len(list(clients.with_name("spread.parquet.pieces").rglob("*.json"))) - 1
    scored = []
    monkeypatch.setattr(batch, "score_rows", lambda *words, made=batch.score_rows: scored.append(1) or made(*words))
    report = score(clients, clients.with_name("spread.parquet"), 100)
    assert 8 <= done and len(scored) <= 30 - done, "what a worker had begun, it may have ended after the count"
    assert sha256(report.target) == sha256(whole.target)


def kills_each(*_):
    raise KilledWorker("a piece", SimpleNamespace(address="tcp://gone:1"), 3)


def test_a_piece_that_kills_each_worker_is_given_up(clients, cluster, monkeypatch):
    monkeypatch.setattr(batch, "_score_there", kills_each)
    with pytest.raises(batch.BatchError, match=r"gave a piece up: .*; what is done is kept: look at its workers and run the same again"):
        spread(cluster, clients)


def dies_once(*words):
    "Score a piece; the worker that has the eighth one for the first time is killed when its answers are written and its note is not."
    pieces, number = next(word for word in words if isinstance(word, Path)), words[3]
    died = pieces.parent.parent / "died"
    if number == 7 and not died.exists():
        died.touch()
        batch._note = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
    return batch._score_there(*words)


def test_a_worker_that_is_killed_half_way_loses_and_doubles_no_row(clients, cluster, monkeypatch):
    whole, before = score(clients, size=100), {worker.pid for worker in cluster.workers.values()}
    score_there = batch._score_there
    monkeypatch.setattr(batch, "_score_there", dies_once)
    report = spread(cluster, clients)
    monkeypatch.setattr(batch, "_score_there", score_there)
    assert clients.with_name("died").exists() and {worker.pid for worker in cluster.workers.values()} != before
    assert sha256(report.target) == sha256(whole.target) and sha256(report.side_file) == sha256(whole.side_file)
    rows = sorted(pd.concat([pd.read_parquet(path) for path in (report.target, report.side_file)])["row"])
    assert rows == list(range(3000)) and audit.verify() == []


def test_a_cluster_that_is_not_there_or_knows_another_version_is_an_error_with_its_remedy(version, clients, tmp_path, monkeypatch, capsys):
    line = ["score", "credit_risk", str(clients), str(tmp_path / "out.parquet"), "--scheduler", "tcp://127.0.0.1:1"]
    with dask.config.set({"distributed.comm.timeouts.connect": "1s"}):
        assert main([*line, "--actor", "cho", "--role", "devops"]) == 2
    assert "in.parquet was not scored to its end: OSError: Timed out trying to connect to tcp://127.0.0.1:1" in capsys.readouterr().out
    with pytest.raises(batch.BatchError, match=r"has another credit_risk/1 in its workspace; start the workers with the MLOPS_ variables"):
        batch._live_of("credit_risk/1", "0" * 64)
    monkeypatch.setenv("MLOPS_WORKSPACE", str(tmp_path / "elsewhere"))
    with pytest.raises(batch.BatchError, match=r"cannot load credit_risk/1: .*never recorded.*on storage that all share"):
        batch._live_of("credit_risk/1", version.manifest)


def put(frame):
    def make(path):
        frame.to_parquet(path)

    return make


REFUSED = {
    "missing": (lambda path: None, "there is no file"),
    "text": (lambda path: path.write_text("client_id"), "cannot be read as parquet"),
    "a column missing": (put(CLIENTS.drop(columns=["pay_0", "pay_2"])), "lacks pay_0, pay_2"),
    "empty": (put(CLIENTS.head(0)), "holds no rows"),
    "our names": (put(CLIENTS.head(9).assign(probability=1.0)), "has a column probability"),
    "all broken": (put(CLIENTS.head(9).assign(pay_0=77)), "not one of 9 rows"),
    "text for numbers": (put(CLIENTS.head(9).assign(pay_0="late")), "not one of 9 rows"),
}


@pytest.mark.parametrize("bad", REFUSED)
def test_what_cannot_be_scored_is_refused(tmp_path, bad):
    make, said = REFUSED[bad]
    make(tmp_path / "in.parquet")
    with pytest.raises(batch.BatchError, match=said):
        score(tmp_path / "in.parquet")
    assert not (tmp_path / "out.parquet").exists()


def test_a_file_that_breaks_off_keeps_what_is_done(tmp_path):
    whole = tmp_path / "whole.parquet"
    pq.write_table(pa.Table.from_pandas(CLIENTS.head(3000)), whole, row_group_size=500)
    content = bytearray(whole.read_bytes())
    at = pq.ParquetFile(whole).metadata.row_group(5).column(0).data_page_offset
    content[at : at + 60] = b"\xff" * 60
    (tmp_path / "in.parquet").write_bytes(content)
    with pytest.raises(batch.BatchError, match=r"not scored to its end.*run the same again"):
        score(tmp_path / "in.parquet", size=500)
    assert len(list((tmp_path / "out.parquet.pieces").rglob("*.answered.parquet"))) == 5


def test_nothing_is_written_over_and_only_who_may_acts(clients):
    score(clients)
    with pytest.raises(batch.BatchError, match="not written over"):
        score(clients)
    with pytest.raises(GovernanceError, match="does not hold"):
        score(clients, clients.with_name("other.parquet"), actor="mallory")
    assert not clients.with_name("other.parquet").exists()


def test_a_model_of_more_than_rows_is_refused(clients, monkeypatch):
    monkeypatch.setattr(batch, "facts", lambda folder: {"request_key": "user"})
    with pytest.raises(batch.BatchError, match="more than one row"):
        score(clients)


def test_the_command_line(clients, capsys):
    line = ["score", "credit_risk", str(clients), str(clients.with_name("out.parquet")), "--actor", "cho", "--role", "devops"]
    assert main(line) == 0 and "2,995 of 3,000 rows answered by credit_risk/1" in capsys.readouterr().out
    assert main(line) == 2 and "not written over" in capsys.readouterr().out


GROWING = """
import resource, sys
from mlops_core import batch
peaks = []
for name in ("small", "large"):
    source = f"{sys.argv[1]}/{name}.parquet"
    report = batch.score_file("credit_risk", source, source + ".out", 50_000, actor="cho", role="devops")
    peaks.append(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
print(report.rows, *peaks)
"""


def test_memory_does_not_grow_with_the_file(tmp_path):
    many = pa.Table.from_pandas(CLIENTS, preserve_index=False)
    for name, times in (("small", 5), ("large", 60)):
        with pq.ParquetWriter(tmp_path / f"{name}.parquet", many.schema, compression="none", use_dictionary=False) as writer:
            for _ in range(times):
                writer.write_table(many)
    assert 60 * many.nbytes > 90e6, "the whole file would be seen"
    done = subprocess.run([sys.executable, "-c", GROWING, tmp_path], capture_output=True, text=True, check=True)
    rows, small, large = map(float, done.stdout.split())
    assert rows == 1_800_000 and large - small < 45, "megabytes at the peak, for twelve times the rows"
