"""Loading, fingerprints, splits and views of the past, on the shipped data and on tables made here."""

import shutil
import warnings
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from mlops_core.contract import Column, ContractError, DatasetError
from mlops_core.core import generator, home
from mlops_core.data import (
    LeakageError,
    as_of,
    available_columns,
    feature_columns,
    fingerprint,
    grouped_split,
    load_dataset,
    random_split,
    reference_split,
    require_available,
    time_split,
    validate,
)


@pytest.fixture(scope="module")
def credit():
    return load_dataset("credit_default")


@pytest.fixture(scope="module")
def grocery():
    return load_dataset("grocery")


@pytest.fixture(scope="module")
def electricity():
    return load_dataset("electricity")


# the shipped data


def test_credit_is_as_documented(credit):
    assert credit.kind == "classification" and len(credit.table) == 30000
    assert credit.table["sex"].value_counts()["female"] == 18112 and credit.table["default_next_month"].sum() == 6636
    assert [len(part) for part in reference_split(credit)] == [18000, 6000, 6000]
    features = feature_columns(credit)
    assert len(features) == 20 and not {"client_id", "sex", "age", "age_band", "marriage", "default_next_month"} & set(features)
    assert {"sex", "age_band", "marriage"} < set(available_columns(credit))
    contract = credit.columns["clients"]
    assert all(contract[name].monotone == 1 for name in contract if name.startswith("pay_") and not name.startswith("pay_amt"))
    assert all(contract[name].monotone == -1 for name in contract if name.startswith("pay_amt") or name == "limit_bal")
    assert not any(contract[name].actionable for name in ("sex", "age", "marriage", "limit_bal", "pay_6", "bill_amt6"))


def test_grocery_is_as_documented(grocery):
    assert grocery.kind == "recommendation" and len(grocery.table) == 1_469_307 and grocery.table["household_id"].nunique() == 2469
    train, validation, test = reference_split(grocery)
    time = grocery.roles["time"]
    assert train[time].max() < pd.Timestamp("2017-12-04") <= validation[time].min()
    assert validation[time].max() < pd.Timestamp("2017-12-18") <= test[time].min()
    assert len(train) + len(validation) + len(test) == len(grocery.table)
    assert grocery.roles["item_group"] == "product_type" and "FUEL" in grocery.roles["exclude_items"]["department"]
    assert set(grocery.tables) >= {"products", "demographics", "campaigns", "campaign_descriptions", "coupons", "coupon_redemptions"}


def test_electricity_is_as_documented(electricity):
    assert electricity.kind == "forecast" and len(electricity.table) == 17520
    train, validation, test = reference_split(electricity)
    assert len(validation) == len(test) == 60 * 48 and str(test["time"].min()) == "2014-11-02 00:00:00+10:00"
    require_available(electricity, "demand", ["temperature", "workday"])
    with pytest.raises(LeakageError, match="demand.demand is available after_outcome"):
        require_available(electricity, "demand", ["demand"])


@pytest.mark.parametrize("name", ["credit_default", "grocery", "electricity"])
def test_every_column_is_described_and_says_when_it_is_there(name, request):
    dataset = request.getfixturevalue({"credit_default": "credit"}.get(name, name))
    for table, frame in dataset.tables.items():
        assert set(dataset.columns[table]) == set(frame)
        assert all(column.description and column.available and not column.inferred for column in dataset.columns[table].values())
    assert dataset.title and dataset.license and dataset.citation and dataset.period
    assert (dataset.folder / "README.md").read_text().count("\n## ") >= 6


def test_shipped_files_are_small():
    assert sum(path.stat().st_size for path in (home() / "data").glob("*/*.parquet")) < 20e6


# broken rows of the shipped data


def copy_of(dataset, folder, table, frame):
    shutil.copytree(dataset.folder, folder)
    frame.to_parquet(folder / f"{table}.parquet", index=False)
    return folder


def clients_with(credit, row, column, value):
    clients = credit.table.astype({column: object})
    clients.loc[row, column] = value
    return clients


BREAKS = {
    "null key": lambda credit: clients_with(credit, 5, "client_id", None).astype({"client_id": "float64"}),
    "unknown level": lambda credit: clients_with(credit, 5, "education", "PhD"),
    "out of range": lambda credit: clients_with(credit, 5, "pay_0", 11).astype({"pay_0": "int64"}),
    "duplicate key": lambda credit: clients_with(credit, 5, "client_id", 1).astype({"client_id": "int64"}),
    "wrong type": lambda credit: clients_with(credit, slice(None), "age", "old"),
    "missing column": lambda credit: credit.table.drop(columns="pay_6"),
    "extra column": lambda credit: credit.table.assign(hair="red"),
    "infinite value": lambda credit: clients_with(credit, 5, "limit_bal", np.inf).astype({"limit_bal": "float64"}),
    "empty table": lambda credit: credit.table.head(0),
}


@pytest.mark.parametrize("rule", BREAKS)
def test_a_broken_file_is_refused_by_the_rule_it_breaks(credit, tmp_path, rule):
    folder = copy_of(credit, tmp_path / "broken", "clients", BREAKS[rule](credit))
    with pytest.raises(ContractError) as caught:
        load_dataset(folder)
    assert caught.value.failures["rule"].tolist() == [rule]
    assert f"clients{'' if rule == 'empty table' else '.'}" in str(caught.value) and rule in str(caught.value)


def test_a_future_date_is_refused(electricity):
    ahead = electricity.table.assign(time=electricity.table["time"] + pd.Timedelta(days=365 * 100))
    with pytest.raises(ContractError, match=r"demand.time: future date \(17520x, in rows 0, 1"):
        validate(replace(electricity, tables={"demand": ahead}))


def test_a_gap_and_a_repeated_step_in_a_series_are_refused(electricity):
    with pytest.raises(ContractError, match=r"demand.time: irregular step \(1x, 2014-01-03 02:00:00\+10:00\)"):
        validate(replace(electricity, tables={"demand": electricity.table.drop(index=100)}))
    doubled = pd.concat([electricity.table, electricity.table.iloc[[100]]])
    with pytest.raises(ContractError, match="demand.time: duplicate key"):
        validate(replace(electricity, tables={"demand": doubled}))


# a user's own folder


def write_folder(folder, frame, roles, more="", suffix="csv"):
    folder.mkdir(exist_ok=True)
    frame.to_csv(folder / "rows.csv", index=False) if suffix == "csv" else frame.to_parquet(folder / "rows.parquet")
    folder.joinpath("dataset.toml").write_text(f'tables = {{rows = "rows.{suffix}"}}\nroles = {{{roles}}}\n{more}')
    return folder


MEMBERS = pd.DataFrame({"who": range(100), "plan": ["basic", "gold"] * 50, "visits": np.arange(100) % 9, "joined": "2020-01-05"})
MEMBERS["quit"] = ["yes", "no", "no", "no"] * 25
QUIT = 'table = "rows", key = "who", target = "quit", positive = "yes"'


def load_quietly(folder):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return load_dataset(folder)


def test_only_roles_and_tables_are_needed_and_inference_warns_by_name(tmp_path):
    with pytest.warns(UserWarning, match="contract of rows.who, rows.plan, rows.visits, rows.joined, rows.quit inferred"):
        dataset = load_dataset(write_folder(tmp_path / "gym", MEMBERS, QUIT))
    assert dataset.name == "gym" and dataset.kind == "classification"
    assert dataset.columns["rows"]["plan"].levels == ("basic", "gold") and dataset.columns["rows"]["quit"].available == "after_outcome"
    assert feature_columns(dataset) == ["plan", "visits", "joined"]
    assert [len(part) for part in reference_split(dataset)] == [60, 20, 20]
    assert [part["quit"].eq("yes").sum() for part in reference_split(dataset)] == [15, 5, 5]


def test_the_contract_is_inferred_from_training_rows_only(tmp_path):
    shown = MEMBERS.assign(joined=pd.date_range("2020-01-01", periods=100).astype(str))
    shown.loc[99, "plan"] = "platinum"
    dataset = load_quietly(write_folder(tmp_path / "gym", shown, QUIT + ', time = "joined"'))
    assert dataset.columns["rows"]["plan"].levels == ("basic", "gold") and reference_split(dataset)[2]["plan"].iloc[-1] == "platinum"


def test_csv_and_parquet_give_the_same_data_set(tmp_path):
    more = "[columns.rows.joined]\ntype = 'time'\n[columns.rows.plan]\ntype = 'category'\nlevels = ['basic', 'gold']"
    csv = load_quietly(write_folder(tmp_path / "csv", MEMBERS, QUIT, more))
    parquet = load_quietly(write_folder(tmp_path / "parquet", MEMBERS.astype({"joined": "datetime64[ns]"}), QUIT, more, "parquet"))
    assert csv.table["joined"].dtype.kind == "M" and fingerprint(csv) == fingerprint(parquet)


@pytest.mark.parametrize("name", ["credit_default", "electricity"])
def test_a_shipped_table_survives_csv(name, tmp_path, request):
    dataset = request.getfixturevalue({"credit_default": "credit"}.get(name, name))
    folder = shutil.copytree(dataset.folder, tmp_path / name)
    dataset.table.to_csv(folder / f"{dataset.main}.csv", index=False)
    described = (folder / "dataset.toml").read_text()
    (folder / "dataset.toml").write_text(described.replace(f"{dataset.main}.parquet", f"{dataset.main}.csv"))
    assert fingerprint(load_dataset(folder)) == fingerprint(dataset)


def test_roles_have_the_last_word(tmp_path):
    more = "[columns.rows.quit]\ntype = 'category'\nlevels = ['yes', 'no']\nnullable = true"
    column = load_quietly(write_folder(tmp_path / "gym", MEMBERS, QUIT, more)).columns["rows"]["quit"]
    assert column.available == "after_outcome" and not column.nullable
    with pytest.raises(ContractError, match="rows.quit: null value"):
        load_quietly(write_folder(tmp_path / "gaps", MEMBERS.assign(quit=[None, *MEMBERS["quit"][1:]]), QUIT, more))


def test_interactions_and_series_of_a_user(tmp_path):
    days = pd.date_range("2024-01-01", periods=60)
    loans = pd.DataFrame({"reader": np.arange(600) % 30, "book": np.arange(600) % 17, "at": days.repeat(10)})
    library = load_quietly(write_folder(tmp_path / "library", loans, 'interactions = "rows", user = "reader", item = "book", time = "at"'))
    assert library.kind == "recommendation" and library.period == "2024-01-01 to 2024-02-29"
    parts = reference_split(library)
    assert sum(map(len, parts)) == 600 and parts[0]["at"].max() < parts[1]["at"].min() and parts[1]["at"].max() < parts[2]["at"].min()
    sales = pd.DataFrame({"month": pd.date_range("2015-01-01", periods=80, freq="MS"), "sold": np.arange(80.0)})
    sales = sales.sample(frac=1, random_state=0)
    series = load_quietly(write_folder(tmp_path / "sales", sales, 'table = "rows", time = "month", value = "sold", frequency = "MS"'))
    assert series.kind == "forecast" and series.table["sold"].tolist() == list(range(80))


def test_times_come_into_the_zone_of_the_roles(tmp_path):
    roles = 'table = "rows", time = "t", value = "v", frequency = "h", timezone = "Etc/GMT-10"'
    local = pd.DataFrame({"t": pd.date_range("2024-01-01", periods=48, freq="h"), "v": 1.0})
    world = local.assign(t=local["t"].dt.tz_localize("Etc/GMT-10").dt.tz_convert("UTC"))
    first, second = (load_quietly(write_folder(tmp_path / name, rows, roles)) for name, rows in (("a", local), ("b", world)))
    assert str(first.table["t"].dt.tz) == "Etc/GMT-10" and fingerprint(first.table) == fingerprint(second.table)
    with pytest.raises(DatasetError, match="does not fit timezone 'Etc/Nowhere'"):
        load_quietly(write_folder(tmp_path / "c", local, roles.replace("GMT-10", "Nowhere")))


@pytest.mark.parametrize(
    ("roles", "more", "words"),
    [
        (QUIT.replace("quit", "quitt"), "", "role target: column of rows 'quitt' is unknown; did you mean quit?"),
        (QUIT + ', protected = ["sex"]', "", "role protected: column of rows 'sex' is unknown"),
        (QUIT.replace('"yes"', "1"), "", "target quit needs two values, one of them positive = 1; it has ['yes', 'no']"),
        (QUIT.replace("quit", "visits"), "", "target visits needs two values"),
        (QUIT, "[keys]\nrows = ['whom']", "'whom' is unknown; did you mean who?"),
    ],
)
def test_roles_that_do_not_fit_the_table(tmp_path, roles, more, words):
    with pytest.raises(DatasetError) as caught:
        load_quietly(write_folder(tmp_path / "gym", MEMBERS, roles, more))
    assert words in str(caught.value) and str(tmp_path) in str(caught.value)


def test_a_described_column_that_is_missing_is_a_broken_contract(tmp_path):
    more = "[columns.rows.who]\ntype = 'integer'\n[split]\nkey_modulo = 5\ntest = [0]\nvalidation = [1]"
    with pytest.raises(ContractError, match="rows.who: missing column"):
        load_quietly(write_folder(tmp_path / "gym", MEMBERS.drop(columns="who"), QUIT, more))


def test_a_csv_out_of_a_spreadsheet_starts_with_a_mark(tmp_path):
    folder = write_folder(tmp_path / "gym", MEMBERS, QUIT)
    (folder / "rows.csv").write_bytes(b"\xef\xbb\xbf" + (folder / "rows.csv").read_bytes())
    assert load_quietly(folder).table.columns[0] == "who"


def test_columns_keep_the_order_of_the_table_and_odd_ones_are_no_features(tmp_path):
    odd = MEMBERS.assign(lists=[[1, 2]] * 100, joined="2020-01-05")
    dataset = load_quietly(write_folder(tmp_path / "gym", odd, QUIT, "[columns.rows.visits]\ntype = 'integer'", "parquet"))
    assert list(dataset.columns["rows"]) == list(odd) and feature_columns(dataset) == ["plan", "visits", "joined"]


def test_folders_and_files_that_are_no_data_set(tmp_path):
    with pytest.raises(DatasetError, match="'credit_defualt' is unknown; did you mean credit_default?"):
        load_dataset("credit_defualt")
    with pytest.raises(DatasetError, match="has no dataset.toml"):
        load_dataset(tmp_path)
    folder = write_folder(tmp_path / "gym", MEMBERS, QUIT)
    with pytest.raises(DatasetError, match="is not a folder"):
        load_dataset(folder / "rows.csv")
    (folder / "rows.csv").unlink()
    with pytest.raises(DatasetError, match="rows.csv is no .parquet or .csv file beside dataset.toml"):
        load_dataset(folder)
    for name, content in (("rows.csv", b""), ("rows.csv", b'a,b\n"1'), ("rows.csv", b"\xff\xfe\x00"), ("rows.parquet", b"PAR1 not really")):
        (folder / name).write_bytes(content)
        (folder / "dataset.toml").write_text(f'tables = {{rows = "{name}"}}\nroles = {{{QUIT}}}')
        with pytest.raises(DatasetError, match=f"{name} cannot be read"):
            load_dataset(folder)


def test_what_parquet_knows_and_pandas_does_not(tmp_path):
    import datetime
    import decimal

    odd = MEMBERS.assign(
        joined=[datetime.date(2020, 1, 1 + n % 20) for n in range(100)], fee=[decimal.Decimal("9.90")] * 100, due=pd.Timestamp("2090-01-01")
    ).set_index("who")
    dataset = load_quietly(write_folder(tmp_path / "gym", odd, QUIT, suffix="parquet"))
    assert dataset.columns["rows"]["joined"].type == "time" and dataset.columns["rows"]["fee"].type == "number"
    assert dataset.table["who"].tolist() == list(range(100))


# fingerprints

MIXED = pd.DataFrame(
    {
        "whole": [1, 2, 3],
        "part": [0.5, None, -0.0],
        "word": ["a", None, "c"],
        "truth": [True, False, True],
        "day": pd.to_datetime(["2020-01-01", None, "2020-01-03 04:05:06.789"], format="ISO8601"),
    }
)


@pytest.mark.parametrize(
    "same",
    [
        lambda frame: frame[frame.columns[::-1]],
        lambda frame: frame.iloc[[2, 0, 1]],
        lambda frame: frame.astype({"whole": "float64", "word": "category"}),
        lambda frame: frame.astype({"whole": "int32", "truth": "int8", "day": "datetime64[us]"}),
        lambda frame: frame.astype({"whole": "Int64", "part": "Float64", "truth": "boolean"}),
        lambda frame: frame.astype(object),
        lambda frame: frame.assign(part=[0.5, np.nan, 0.0]),
    ],
)
def test_same_values_same_fingerprint(same):
    assert fingerprint(same(MIXED)) == fingerprint(MIXED)


@pytest.mark.parametrize(
    "other",
    [
        lambda frame: frame.rename(columns={"whole": "total"}),
        lambda frame: frame.rename(columns={"whole": "part", "part": "whole"}),
        lambda frame: frame.assign(whole=[2, 1, 3]),
        lambda frame: frame.assign(word=["a", "", "c"]),
        lambda frame: frame.assign(whole=["1", "2", "3"]),
        lambda frame: frame.assign(day=frame["day"].dt.tz_localize("UTC")),
        lambda frame: frame.assign(day=frame["day"] + pd.Timedelta("1ns")),
        lambda frame: pd.concat([frame, frame.iloc[[0]]]),
        lambda frame: frame.head(2),
        lambda frame: frame.assign(more=1),
    ],
)
def test_other_values_other_fingerprint(other):
    assert fingerprint(other(MIXED)) != fingerprint(MIXED)


def test_one_changed_cell_anywhere_changes_the_fingerprint(credit):
    frame, stream = credit.table.head(500), generator(0, "cells")
    known = fingerprint(frame)
    for _ in range(60):
        row, column = stream.integers(500), frame.columns[stream.integers(frame.shape[1])]
        value = frame.loc[row, column]
        changed = frame.copy()
        changed.loc[row, column] = value + "." if isinstance(value, str) else value + 1
        assert fingerprint(changed) != known, (row, column)
    large = pd.DataFrame({"id": [2**60, 2**60 + 2]})
    assert fingerprint(large) != fingerprint(large + 1)


def test_the_fingerprint_of_a_data_set_covers_what_columns_mean(credit):
    known = fingerprint(credit)
    contract = credit.columns["clients"]
    looser = contract | {"age": replace(contract["age"], max=200)}
    reworded = contract | {"age": replace(contract["age"], description="how old")}
    assert fingerprint(replace(credit, roles=credit.roles | {"positive": 0})) != known
    assert fingerprint(replace(credit, columns={"clients": looser})) != known
    assert fingerprint(replace(credit, split={})) != known
    assert fingerprint(replace(credit, tables={"clients": credit.table.head(10)})) != known
    assert fingerprint(replace(credit, columns={"clients": reworded}, title="other", folder=None)) == known


# splits

ROWS = pd.DataFrame({"row": range(503), "person": np.arange(503) % 71, "label": np.arange(503) % 10 == 0})
ROWS["at"] = pd.date_range("2024-01-01", periods=503)


def assert_partition(frame, parts):
    assert sorted(row for part in parts for row in part.index) == list(frame.index)
    assert all(part.index.is_monotonic_increasing for part in parts)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("sizes", [(0.8, 0.2), (0.6, 0.2, 0.2), (0.5, 0.3, 0.15, 0.05)])
def test_random_split_is_exact_and_stratified(sizes, seed):
    parts = random_split(ROWS, sizes, seed, stratify="label")
    assert_partition(ROWS, parts)
    for part, size in zip(parts, sizes, strict=True):
        assert abs(len(part) - size * len(ROWS)) <= 1 and abs(part["label"].sum() - size * ROWS["label"].sum()) < 2


def test_random_split_depends_on_seed_and_rows_but_not_on_their_order():
    first, other = random_split(ROWS, (0.5, 0.5), 0)[0], random_split(ROWS, (0.5, 0.5), 1)[0]
    shuffled = random_split(ROWS.sample(frac=1, random_state=3), (0.5, 0.5), 0)[0]
    assert set(first["row"]) == set(shuffled["row"]) == set(random_split(ROWS, (0.5, 0.5), 0)[0]["row"]) != set(other["row"])


@pytest.mark.parametrize("seed", range(5))
def test_grouped_split_never_splits_a_group(seed):
    stream = generator(seed, "groups")
    frame = ROWS.assign(person=stream.zipf(1.6, size=len(ROWS)).clip(max=60))
    parts = grouped_split(frame, "person", (0.5, 0.5), seed)
    assert_partition(frame, parts)
    assert not set(parts[0]["person"]) & set(parts[1]["person"])
    shuffled = grouped_split(frame.sample(frac=1, random_state=seed), "person", (0.5, 0.5), seed)
    assert set(shuffled[0]["row"]) == set(parts[0]["row"])


def test_time_split_never_overlaps_even_with_ties():
    frame = ROWS.assign(at=ROWS["at"].sample(frac=1, random_state=0).to_numpy().astype("datetime64[M]"))
    parts = time_split(frame, "at", ["2024-04-01", "2024-09-15"])
    assert_partition(frame, parts)
    assert parts[0]["at"].max() < pd.Timestamp("2024-04-01") <= parts[1]["at"].min() and parts[1]["at"].max() < parts[2]["at"].min()


@pytest.mark.parametrize(
    ("split", "words"),
    [
        (lambda: random_split(ROWS, (0.7, 0.7), 0), "sum to 1"),
        (lambda: random_split(ROWS, (1.2, -0.2), 0), "positive shares"),
        (lambda: random_split(ROWS, (1.0,), 0), "two or more"),
        (lambda: random_split(ROWS, ("half", "half"), 0), "positive shares"),
        (lambda: random_split(ROWS.head(2), (0.9, 0.1), 0), "leaves a part of the 2 rows empty (2, 0)"),
        (lambda: grouped_split(ROWS.assign(person=1), "person", (0.5, 0.5), 0), "leaves a part of the 503 rows empty"),
        (lambda: grouped_split(ROWS.assign(person=None), "person", (0.5, 0.5), 0), "person is missing in 503 row(s)"),
        (lambda: time_split(ROWS, "at", ["2030-01-01"]), "empty (503, 0)"),
        (lambda: time_split(ROWS, "at", ["2024-03-01", "2024-02-01"]), "rising cuts"),
        (lambda: time_split(ROWS, "at", []), "rising cuts"),
        (lambda: time_split(ROWS.assign(at=pd.NaT), "at", ["2024-03-01"]), "503 gap(s)"),
        (lambda: time_split(ROWS, "row", ["2024-03-01"]), "not times"),
        (lambda: time_split(ROWS, "at", [pd.Timestamp("2024-03-01", tz="UTC")]), "has a time zone"),
    ],
)
def test_impossible_splits_say_why(split, words):
    with pytest.raises(DatasetError) as caught:
        split()
    assert words in str(caught.value)


def test_split_settings_of_the_folder_are_followed(tmp_path):
    timed = MEMBERS.assign(joined=pd.date_range("2024-01-01", periods=100).astype(str))
    more = "[split]\nvalidation_from = 2024-02-01\ntest_from = 2024-03-01\nlabel_delay = '90 days'"
    parts = reference_split(load_quietly(write_folder(tmp_path / "time", timed, QUIT + ', time = "joined"', more)))
    assert [len(part) for part in parts] == [31, 29, 40]
    parts = reference_split(load_quietly(write_folder(tmp_path / "sizes", MEMBERS, QUIT, "[split]\nsizes = [0.5, 0.25, 0.25]")))
    assert [len(part) for part in parts] == [50, 25, 25]
    parts = reference_split(load_quietly(write_folder(tmp_path / "last", MEMBERS, QUIT, "[split]\nlast = [5, 30]")))
    assert [part.index.tolist() for part in parts] == [list(range(65)), list(range(65, 70)), list(range(70, 100))], "in the order of the table"
    with pytest.raises(DatasetError, match="leaves a part"):
        reference_split(load_quietly(write_folder(tmp_path / "all", MEMBERS, QUIT, "[split]\nlast = [50, 50]")))
    with pytest.raises(DatasetError, match="leaves a part"):
        reference_split(load_quietly(write_folder(tmp_path / "no", MEMBERS, QUIT, "[split]\nkey_modulo = 5\ntest = [7]\nvalidation = [1]")))


# the past, and what is not there


def test_views_of_the_past_cannot_see_the_future():
    stream = generator(0, "views")
    for _ in range(200):
        size = stream.integers(1, 40)
        days = pd.Timestamp("2024-01-01") + pd.to_timedelta(stream.integers(0, 20, size), unit="D")
        frame = pd.DataFrame({"at": days, "value": stream.random(size)})
        frame.loc[stream.random(size) < 0.1, "at"] = pd.NaT
        moment = pd.Timestamp("2024-01-01") + pd.Timedelta(days=int(stream.integers(-1, 22)))
        past = as_of(frame, "at", moment)
        assert past["at"].notna().all() and (past["at"] < moment).all()
        assert len(past) == (frame["at"] < moment).sum()
        altered = frame.assign(value=frame["value"].where(frame["at"] < moment, 99.0))
        assert as_of(altered, "at", moment).equals(past), "what happens later must not show"


def test_writing_into_a_view_does_not_touch_the_table():
    frame = ROWS.copy()
    view = as_of(frame, "at", "2024-02-01")
    view["row"] = -1
    assert frame["row"].tolist() == list(range(503))


def test_a_column_that_would_not_be_there_is_refused_by_name(credit):
    told = replace(credit, columns={"clients": credit.columns["clients"] | {"calls": Column("integer", available="after_outcome")}})
    require_available(told, "clients", feature_columns(told))
    with pytest.raises(LeakageError, match="clients.calls is available after_outcome.*take it out of the features"):
        require_available(told, "clients", ["limit_bal", "calls"])
    with pytest.raises(LeakageError, match="default_next_month"):
        require_available(credit, "clients", ["default_next_month"])
    with pytest.raises(DatasetError, match="did you mean limit_bal?"):
        require_available(credit, "clients", ["limitbal"])
