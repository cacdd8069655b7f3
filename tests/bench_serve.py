"""Requests/s and latency of the inference API against `mlflow models serve` and a bare FastAPI app, in one run: `make bench`."""

import contextlib
import functools
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import httpx
import pandas as pd
import sqlalchemy as sa
from tqdm.auto import tqdm

from mlops_core import audit, core, credit, log, package, traffic
from mlops_core.core import plain
from mlops_core.data import load_dataset
from mlops_core.experiment import classification_fold
from mlops_core.rehearsal import rehearsal

WHO = {"actor": "cho", "role": "devops"}
ROWS = [  # what is compared, at how many connections, with which server, bound, goal; more is better but for times
    ("per_second", 8, "mlflow", 5, 10), ("per_second", 64, "mlflow", 8, 10), ("per_second", 8, "bare", 0.6, 0.7),
    ("per_second", 64, "bare", 0.6, 0.7), ("p99", 8, "mlflow", 0.5, 0.5), ("p99", 64, "mlflow", 0.5, 0.5),
]  # fmt: skip
SHADOW = 1.1  # the median with a shadow against that without, at half capacity
BIN, HERE = Path(sys.executable).parent, Path(__file__).parent


def make_version(sample=0):
    """Package boosted trees on all columns and (unless `sample` says how many) all training rows of the credit data, as the case does."""
    source = load_dataset("credit_default")
    features = credit.credit_features(source)
    build = functools.partial(classification_fold, features=tuple(features), sample=sample)
    recipe = package.Recipe("credit_default", build, credit.BoostedTrees(credit.contract_signs(source, features)), 0)
    fold = recipe.fold()
    tables = {"inputs": [{"column": column, "source": f"clients.{column}"} for column in features]}
    case = credit.credit_case(source, features)
    return package.package_model(case, recipe.fit(fold), recipe, fold, tables, actor="ana", role="data_scientist")


@contextlib.contextmanager
def process(*command, alive):
    """A server in a process group of its own; gives its port when it answers. Ends all of it, whatever happens."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    with tempfile.TemporaryFile() as said:
        found_in = os.environ | {"PATH": os.pathsep.join([str(BIN), os.environ.get("PATH", "")])}  # MLflow looks for uvicorn there
        running = subprocess.Popen([*command, str(port)], stdout=said, stderr=subprocess.STDOUT, start_new_session=True, env=found_in)
        try:
            wait_until_alive(running, f"http://127.0.0.1:{port}{alive}", said)
            yield port
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(running.pid, signal.SIGTERM)
            try:
                running.wait(15)
            finally:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(running.pid, signal.SIGKILL)
                running.wait()


def wait_until_alive(running, address, said, seconds=120):
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        with contextlib.suppress(httpx.TransportError):
            if httpx.get(address).status_code == 200:
                return
        if running.poll() is not None:
            break
        time.sleep(0.2)
    said.seek(0)
    raise RuntimeError(f"{address} does not answer: {said.read()[-2000:].decode()}")


def ours():
    return process(sys.executable, "-m", "mlops_core.cli", "serve", "credit_risk", "--no-auth", "--port", alive="/live")


def bare():
    return process(sys.executable, HERE / "bare_app.py", "credit_risk", alive="/live")


def mlflow(version):
    folder = version.folder.parent.parent  # the MLflow model around our parts
    return process(BIN / "mlflow", "models", "serve", "--env-manager", "local", "--model-uri", folder, "--port", alive="/ping")


def requests_for(version):
    """The packaged sample, a row a request: as our API and the bare app want it, and as MLflow does."""
    rows = [plain(row) for row in pd.read_parquet(version.folder / "sample" / "requests.parquet").to_dict("records")]
    as_ours, as_mlflow = ([json.dumps({name: [row]}) for row in rows] for name in ("rows", "dataframe_records"))
    return ("/v1/predict", as_ours), ("/invocations", as_mlflow)


def load(port, asked, **how):
    """Load a server from another process; raises if it refuses anything."""
    path, bodies = asked
    given = json.dumps({"port": port, "path": path, "bodies": bodies} | how)
    done = subprocess.run([sys.executable, HERE / "load.py"], input=given, capture_output=True, text=True, check=True)
    found = json.loads(done.stdout)
    if found["failed"]:
        raise RuntimeError(f"{found['failed']} requests failed on {path}")
    return found


def compare(version, our, rounds, seconds):
    """All measurements of the three servers, which take turns so that noise meets all; ours answers at the port `our`."""
    as_ours, as_mlflow = requests_for(version)
    with bare() as plain_app, mlflow(version) as theirs:
        servers = {"ours": (our, as_ours), "bare": (plain_app, as_ours), "mlflow": (theirs, as_mlflow)}
        turns = [(turn, connections, name) for turn in range(rounds) for connections in (8, 64) for name in servers]
        found = []
        for turn, connections, name in tqdm(turns, desc="closed loop", disable=None):
            measured = load(*servers[name], connections=connections, warm_up=0.5, seconds=seconds)
            found.append({"turn": turn, "connections": connections, "server": name} | measured)
    return pd.DataFrame(found).drop(columns="failed")


def with_shadow(version, our, per_second, rounds, seconds):
    """Median ms at `per_second` in an open loop, turn by turn with a roll-out of `version` + 1 in the shadow, and before and after without."""
    asked, found = requests_for(version)[0], []
    alone = load(our, asked, per_second=per_second, warm_up=1, seconds=seconds)
    for turn in tqdm(range(rounds), desc="open loop", disable=None):
        running = traffic.begin(version.name, version.version, version.version + 1, [0.05])
        wait_for_challenger(our, version.version + 1)
        wait_for_shadow(our, asked, running)
        both = load(our, asked, per_second=per_second, warm_up=1, seconds=seconds)
        if traffic.running(version.name) != running:
            raise RuntimeError(f"the guard ended the roll-out: {traffic.rollout_history(version.name)[-1].reason}")
        count, sent = followed(running), per_second * (1 + seconds)
        if count < 0.7 * sent:  # it looks twice a second
            raise RuntimeError(f"the shadow followed {count} of {sent:.0f} requests: what is measured is not what it costs")
        traffic.move(running, state="aborted")
        before, alone = alone, load(our, asked, per_second=per_second, warm_up=1, seconds=seconds)
        # before against after is what no shadow at all seems to cost: the noise
        found.append({"turn": turn, "before": before["p50"], "shadow": both["p50"], "after": alone["p50"], "shadow p99": both["p99"]})
    return pd.DataFrame(found)


def wait_for_challenger(port, version):
    end = time.monotonic() + 30
    while version not in [one["version"] for one in httpx.get(f"http://127.0.0.1:{port}/v1/models").json()["models"]]:
        if time.monotonic() > end:
            raise RuntimeError("the challenger is not loaded")
        time.sleep(0.05)


def followed(rollout):
    """How many rows of `rollout` a shadow has followed."""
    shadows = sa.select(sa.func.count()).where(log.predictions.c.time >= rollout.started_at, ~log.predictions.c.sent)
    with core.operations_engine().connect() as connection:
        return connection.scalar(shadows)


def wait_for_shadow(port, asked, rollout):
    """Until the process of the shadow has started, which takes seconds and happens once, and has followed a first request."""
    httpx.post(f"http://127.0.0.1:{port}{asked[0]}", content=asked[1][0]).raise_for_status()
    end = time.monotonic() + 60
    while not followed(rollout):
        if time.monotonic() > end:
            raise RuntimeError("no shadow follows")
        time.sleep(0.1)


def judged(found, open_loop=None):
    """Each comparison as the median over the turns of ours against theirs: what, value, bound, goal and whether the bound holds."""
    table = found.pivot(index=["turn", "connections"], columns="server")
    rows = []
    for what, connections, server, bound, goal in ROWS:
        pairs = table[what].xs(connections, level="connections")
        value = float((pairs["ours"] / pairs[server]).median())
        holds = value <= bound if what == "p99" else value >= bound
        rows.append((f"{what.replace('per_second', 'requests/s')} against {server}, {connections} connections", value, bound, goal, holds))
    if open_loop is not None:
        value = float((open_loop["shadow"] / open_loop[["before", "after"]].mean(axis=1)).median())
        rows.append(("median with a shadow against without, half capacity", value, SHADOW, SHADOW, value <= SHADOW))
    return pd.DataFrame(rows, columns=["ratio", "ours", "bound", "goal", "holds"])


def measure(rounds, seconds, sample=0, shadow_rounds=12):
    """Both tables of measurements (the second only if it has rounds), of servers of a new workspace that is gone afterwards."""
    with rehearsal():
        version = make_version(sample)
        make_version(sample)  # a twin, which no guard has a reason to roll back
        audit.append("champion", version.subject, {"manifest": version.manifest}, **WHO)
        with ours() as our:
            found = compare(version, our, rounds, seconds)
            # of 64 clients who wait for each other, all ask at once and share frames, as no clients of an open loop do
            capacity = found.query("server == 'ours' and connections == 8")["per_second"].median()
            return found, with_shadow(version, our, capacity / 2, shadow_rounds, max(seconds, 2)) if shadow_rounds else None


def main(rounds=5, seconds=4.0):
    found, open_loop = measure(rounds, seconds)
    print(found.groupby(["connections", "server"])[["per_second", "p50", "p99"]].median().round(1), "\n")
    print(open_loop.drop(columns="turn").round(2), "\n")
    table = judged(found, open_loop)
    print(table.to_string(index=False, float_format="%.2f"))
    noise = (open_loop["after"] / open_loop["before"]).quantile([0.25, 0.75])
    print(f"the same without a shadow, after against before: half of the turns between {noise.iloc[0]:.2f} and {noise.iloc[1]:.2f}")
    print(f"\nmedians of {rounds} turns of {seconds:g} s; {os.cpu_count()} cores, load of the last minute {os.getloadavg()[0]:.1f}")
    return int(not table["holds"].all())


if __name__ == "__main__":
    sys.exit(main())
