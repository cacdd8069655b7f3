"""Profile and drift of a folder of 20 million rows: the same numbers in one process and on Dask, and what memory that takes."""

import hashlib
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

HOME = Path(__file__).resolve().parent.parent
FILES, ROWS = 20, 1_000_000
LIMIT = 1500  # MB


def write(folder):
    """FILES parquet files of ROWS rows for the reference, and one that drifted a little."""
    import numpy as np
    import pandas as pd

    for file in range(FILES + 1):
        random, shift = np.random.default_rng(file), 0.4 * (file == FILES)
        products, part = [0.6, 0.3 + shift / 10, 0.1 - shift / 10], folder / ("now" if file == FILES else "then")
        frame = pd.DataFrame({
            "normal": random.normal(shift, 1, ROWS), "tail": random.pareto(1.0, ROWS),
            "gaps": np.where(random.random(ROWS) < 0.02, np.nan, random.normal(shift / 20, 1, ROWS)),
            "waiting": random.exponential(1 + shift, ROWS), "whole": random.poisson(4, ROWS),
            "zeros": random.normal(size=ROWS) * (random.random(ROWS) < 0.3), "region": random.choice(list("abcdefghijkl"), ROWS),
            "product": random.choice(["basic", "plus", "old"], ROWS, p=products),
        })  # fmt: skip
        part.mkdir(exist_ok=True)
        frame.to_parquet(part / f"{file:02}.parquet", row_group_size=250_000)


def peak(name="VmHWM"):
    """MB that this process held at the most."""
    return next(int(line.split()[1]) / 1024 for line in open("/proc/self/status") if line.startswith(name))


def compare(then, now):
    """The reference's hash and the report."""
    from mlops_core.counts import Profile
    from mlops_core.drift import drift_report

    start = time.perf_counter()
    reference = Profile.fit(then)
    report = drift_report(reference, reference.count(now))
    said = {"profile": hashlib.sha256(reference.to_json().encode()).hexdigest(), "report": report.to_json(double_precision=15)}
    return said | {"rows": reference.rows, "seconds": time.perf_counter() - start}


def one_process(folder):
    return compare(folder / "then", folder / "now") | {"peaks": {"the process": peak()}}


def on_dask(folder):
    import dask.dataframe
    from distributed import Client, LocalCluster

    with LocalCluster(n_workers=2, threads_per_worker=1, memory_limit=None, dashboard_address=None) as cluster, Client(cluster) as client:
        said = compare(*(dask.dataframe.read_parquet(folder / part, split_row_groups=True) for part in ("then", "now")))
        workers = client.run(peak)
    return said | {"peaks": {"the client": peak()} | {f"worker {place}": mb for place, mb in enumerate(workers.values())}}


def main():
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        write(folder)
        found = {}
        for way in ("one_process", "on_dask"):
            done = subprocess.run([sys.executable, __file__, way, scratch], capture_output=True, text=True,
                                  env=os.environ | {"PYTHONPATH": str(HOME), "MLOPS_HOME": str(HOME), "OMP_NUM_THREADS": "1"})  # fmt: skip
            if done.returncode:
                sys.exit(f"{way} failed: {done.stderr}")
            found[way] = json.loads(done.stdout.strip().splitlines()[-1])
            peaks = ", ".join(f"{name} {mb:,.0f} MB" for name, mb in found[way]["peaks"].items())
            print(f"{way:12} {found[way]['rows']:,} rows in {found[way]['seconds']:.0f} s; at the most {peaks}", flush=True)
    same = all(found["one_process"][part] == found["on_dask"][part] for part in ("profile", "report"))
    small = max(mb for way in found.values() for mb in way["peaks"].values()) < LIMIT
    print(f"{'held' if same else 'NOT HELD'}: profile and report are the same to the last bit")
    print(f"{'held' if small else 'NOT HELD'}: every process stays under {LIMIT:,} MB")
    return 0 if same and small else 1


if __name__ == "__main__":
    if len(sys.argv) > 1:
        print(json.dumps(globals()[sys.argv[1]](Path(sys.argv[2]))))
    else:
        sys.exit(main())
