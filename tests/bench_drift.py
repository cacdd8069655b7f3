"""Drift of 1 M against 1 M rows, 16 numbers and 4 categories, and a domain classifier, against named alternatives in one run: `make bench`.

Each runs in a process of its own on one thread, and its processor time counts, so that a busy machine changes little. Peers whose pins
conflict with ours live in environments of their own under .bench/, made at the first run.
"""

import ctypes
import gc
import json
import os
import subprocess
import sys
import time
from pathlib import Path

HOME = Path(__file__).resolve().parent.parent
BENCH = HOME / ".bench"
ROWS, FLOATS, CATEGORIES = 1_000_000, 16, 4
PEERS = {  # what to install; nannyml lacks statsmodels, evidently cannot be imported beside pandas 3.1
    "nannyml": ("nannyml==0.13.1", "statsmodels==0.15.0", "pandas==3.1.1", "pyarrow==26.0.1"),
    "evidently": ("evidently==0.7.23", "pandas==3.0.6", "pyarrow==26.0.1"),
}
ONE_THREAD = {f"{name}_NUM_THREADS": "1" for name in ("OMP", "OPENBLAS", "MKL", "NUMEXPR", "POLARS", "LOKY_MAX")}


def tables(folder):
    """Write reference and current rows of the drift comparison, and a tenth of them for the classifier, as parquet."""
    import numpy as np
    import pandas as pd

    random = np.random.default_rng(0)
    draw = (lambda shift: random.normal(shift, 1, ROWS), lambda shift: random.lognormal(shift, 1, ROWS),
            lambda shift: random.gamma(2 + shift, 1, ROWS), lambda shift: random.normal(shift, 1, ROWS) * (random.random(ROWS) < 0.7))  # fmt: skip
    for name, shift in (("reference", 0.0), ("current", 0.02)):
        frame = pd.DataFrame({f"number{place}": draw[place % 4](shift) for place in range(FLOATS)})
        shares = np.arange(12, 24) + 12 * shift * np.arange(12)
        for place in range(CATEGORIES):
            frame[f"level{place}"] = random.choice([f"level {letter}" for letter in "abcdefghijkl"], ROWS, p=shares / shares.sum())
        frame.to_parquet(folder / f"{name}.parquet")
        few = frame.head(ROWS // 10)
        few.assign(number0=few.number0 + 10 * shift, number4=few.number4 * (1 + 5 * shift)).to_parquet(folder / f"{name}_few.parquet")


def ours(reference, current):
    from mlops_core.counts import Profile
    from mlops_core.drift import drift_report

    profile = Profile.fit(reference)
    return len(drift_report(profile, profile.count(current)))


def bare_numpy(reference, current):
    import numpy as np

    found = {}
    for name in reference:
        if reference[name].dtype.kind == "f":
            old, new = reference[name].to_numpy(), current[name].to_numpy()
            edges = np.quantile(old, np.arange(1, 1280) / 1280)
            counts = [np.bincount(np.searchsorted(edges, values), minlength=1280) for values in (old, new)]
            found[name] = np.abs(np.cumsum(counts[0]) / len(old) - np.cumsum(counts[1]) / len(new)).max()
        else:
            found[name] = [frame[name].value_counts().to_dict() for frame in (reference, current)]
    return len(found)


def scipy_loop(reference, current):
    import pandas as pd
    from scipy import stats

    found = {}
    for name in reference:
        if reference[name].dtype.kind == "f":
            found[name] = stats.ks_2samp(reference[name], current[name], method="asymp").statistic
        else:
            counts = pd.concat([frame[name].value_counts() for frame in (reference, current)], axis=1).fillna(0)
            found[name] = stats.chi2_contingency(counts.T).pvalue
    return len(found)


def nannyml(reference, current):
    import nannyml

    calculator = nannyml.UnivariateDriftCalculator(column_names=list(reference), chunk_size=len(current),
                                                   continuous_methods=["kolmogorov_smirnov"], categorical_methods=["chi2"])  # fmt: skip
    return len(calculator.fit(reference).calculate(current).to_df().columns.get_level_values(0).unique()) - 1


def evidently(reference, current):
    from evidently import Report
    from evidently.presets import DataDriftPreset

    said = Report([DataDriftPreset(num_method="ks", cat_method="chisquare")]).run(current, reference).dict()
    return len(said["metrics"]) - 1


def ours_classifier(reference, current):
    from mlops_core.shift import tell_apart

    return tell_apart(reference, current).auc


def nannyml_classifier(reference, current):
    import nannyml

    calculator = nannyml.DomainClassifierCalculator(feature_column_names=list(reference), chunk_size=len(current), cv_folds_num=5)
    found = calculator.fit(reference).calculate(current).filter(period="analysis").to_df()
    return float(found[("domain_classifier_auroc", "value")].iloc[0])


def memory(word):
    """MB of this process as the system counts them: VmRSS now, VmHWM at the most."""
    return next(int(line.split()[1]) / 1024 for line in open("/proc/self/status") if line.startswith(word))


def work(name, folder):
    """Run one contestant here and print what it took."""
    import pandas as pd
    import pyarrow

    suffix = "_few" if name.endswith("classifier") else ""
    reference, current = (pd.read_parquet(f"{folder}/{part}{suffix}.parquet") for part in ("reference", "current"))
    contestant = globals()[name]
    contestant(reference.head(2000), current.head(2000))  # imports and caches are not what is measured
    gc.collect()
    pyarrow.default_memory_pool().release_unused()
    ctypes.CDLL(None).malloc_trim(0)  # what loading left free would hide what the work takes
    Path("/proc/self/clear_refs").write_text("5")  # forget the peak of loading
    before, wall, start = memory("VmRSS"), time.perf_counter(), time.process_time()
    answer = contestant(reference, current)
    print(json.dumps({"cpu": time.process_time() - start, "wall": time.perf_counter() - wall, "mb": memory("VmHWM") - before, "answer": answer}))


def environment(peer):
    """The interpreter of a peer's environment, made if it is not there; None if it cannot be made."""
    folder = BENCH / peer
    python = folder / "bin" / "python"
    if not (folder / "ready").exists():
        print(f"installing {' '.join(PEERS[peer])} into .bench/{peer}, once")
        for command in ([sys.executable, "-m", "venv", folder], [python, "-m", "pip", "install", "--quiet", *PEERS[peer]]):
            done = subprocess.run(command, capture_output=True, text=True)
            if done.returncode:
                print(f"{peer} cannot be installed and is left out: {(done.stderr.strip().splitlines() or ['no reason given'])[-1]}")
                return None
        (folder / "ready").touch()
    return python


def measured(name, python, folder, repeats):
    """The fastest of some runs of a contestant; None if it does not run."""
    found = []
    for _ in range(repeats):
        done = subprocess.run([python, __file__, name, folder], capture_output=True, text=True,
                              env=os.environ | ONE_THREAD | {"PYTHONPATH": str(HOME), "MLOPS_HOME": str(HOME)})  # fmt: skip
        if done.returncode:
            print(f"{name} does not run and is left out: {(done.stderr.strip().splitlines() or ['no reason given'])[-1]}")
            return None
        found.append(json.loads(done.stdout.strip().splitlines()[-1]))
    return min(found, key=lambda run: run["cpu"])


def main():
    data = BENCH / "data"
    if not (data / "current_few.parquet").exists():
        data.mkdir(parents=True, exist_ok=True)
        tables(data)
    pythons = {"ours": sys.executable, "bare_numpy": sys.executable, "scipy_loop": sys.executable, "ours_classifier": sys.executable}
    pythons |= {name: environment(name.removesuffix("_classifier")) for name in ("nannyml", "evidently", "nannyml_classifier")}
    print(f"{'what':22}{'cpu s':>9}{'wall s':>9}{'more MB':>9}{'result':>9}")
    runs = {}
    for name, python in pythons.items():
        run = python and measured(name, python, data, 1 if name == "evidently" else 3)
        if run:
            runs[name] = run
            print(f"{name:22}{run['cpu']:9.2f}{run['wall']:9.2f}{run['mb']:9.0f}{run['answer']:9.4g}", flush=True)
    peers = [runs[name]["cpu"] for name in ("scipy_loop", "nannyml", "evidently") if name in runs]
    bare, mine = runs["bare_numpy"], runs["ours"]
    checks = {f"fit and score {min(peers) / mine['cpu']:.1f} times as fast as the fastest peer (held: 2, goal: 4)": min(peers) >= 2 * mine["cpu"],
              f"{bare['cpu'] / mine['cpu']:.1f} times as fast as a bare numpy loop of the same binning": mine["cpu"] < bare["cpu"],
              f"{mine['mb']:.0f} MB more memory while at work, the numpy loop {bare['mb']:.0f}": mine["mb"] <= bare["mb"]}  # fmt: skip
    if "nannyml_classifier" in runs:
        theirs, own = runs["nannyml_classifier"], runs["ours_classifier"]
        ratio, aucs = theirs["cpu"] / own["cpu"], f"AUC {own['answer']:.3f} against {theirs['answer']:.3f}"
        said = f"domain classifier {ratio:.1f} times as fast as nannyml's, {aucs}"
        checks[said] = own["cpu"] <= theirs["cpu"] and own["answer"] >= theirs["answer"] - 0.005
    for said, held in checks.items():
        print(f"{'held' if held else 'NOT HELD'}: {said}")
    return 0 if all(checks.values()) else 1


if __name__ == "__main__":
    sys.exit(work(*sys.argv[1:]) if len(sys.argv) > 1 else main())
