"""Rows/s and peak memory of a file of 1, 4 and 20 million rows, scored from parquet to parquet: `make bench`."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from bench_serve import WHO, make_version
from tqdm.auto import tqdm

from mlops_core import audit, core
from mlops_core.data import load_dataset
from mlops_core.rehearsal import rehearsal

FLOOR = 200_000  # rows/s
GROWTH = 1.1  # peak memory of the largest file against that of the smallest
SCORE = """
import json, resource, sys, time
from pathlib import Path
from mlops_core.batch import score_file
begin = time.perf_counter()
report = score_file("credit_risk", Path(sys.argv[1]), Path(sys.argv[2]), actor="cho", role="devops")
seconds = time.perf_counter() - begin
print(json.dumps({"rows": report.rows, "per_second": report.rows / seconds, "mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024}))
"""


def write_rows(target, columns, rows, piece=250_000):
    """A parquet file of `rows` clients, drawn from those that there are."""
    clients, draw = load_dataset("credit_default").table[["client_id", *columns]], np.random.default_rng(0)
    schema = pa.Schema.from_pandas(clients, preserve_index=False)
    with pq.ParquetWriter(target, schema) as writer:
        for _ in tqdm(range(0, rows, piece), desc="write", disable=None):
            drawn = clients.iloc[draw.integers(len(clients), size=piece)]
            writer.write_table(pa.Table.from_pandas(drawn, schema, preserve_index=False))


def score(columns, rows):
    """Rows/s and peak memory of a process that scores so many rows; leaves no file."""
    source, target = (core.workspace() / name for name in ("in.parquet", "out.parquet"))
    write_rows(source, columns, rows)
    try:
        done = subprocess.run([sys.executable, "-c", SCORE, source, target], stdout=subprocess.PIPE, text=True, check=True)
        return json.loads(done.stdout)
    finally:
        for path in (source, target):
            Path(path).unlink(missing_ok=True)


def main(sizes):
    with rehearsal():
        version = make_version()
        audit.append("champion", version.subject, {"manifest": version.manifest}, **WHO)
        print(f"{version.model.n_trees_} boosted trees, {len(version.model.columns_)} columns, parquet to parquet")
        print(f"{'rows':>12}{'rows/s':>12}{'peak MB':>10}")
        found = []
        for millions in sizes:
            found.append(score(list(version.model.columns_), int(1e6 * millions)))
            print("{rows:12,}{per_second:12,.0f}{mb:10,.0f}".format(**found[-1]))
    slow, growth = min(one["per_second"] for one in found), found[-1]["mb"] / found[0]["mb"]
    print(f"slowest {slow:,.0f} rows/s (floor {FLOOR:,}); memory grows {growth:.2f} times (at most {GROWTH})")
    return int(slow < FLOOR or growth > GROWTH)


if __name__ == "__main__":
    sys.exit(main([float(word) for word in sys.argv[1:]] or [1, 4, 20]))
