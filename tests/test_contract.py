"""Broken rows and broken descriptions: each is found, by its own name, with what to do."""

import numpy as np
import pandas as pd
import pytest

from mlops_core.contract import Column, DatasetError, check_table, infer_column, read_description

CONTRACT = {
    "id": Column("integer", min=1),
    "amount": Column("number", min=0, max=100),
    "colour": Column("category", levels=("red", "blue")),
    "paid": Column("boolean"),
    "day": Column("time"),
    "note": Column("text", nullable=True),
}
GOOD = pd.DataFrame(
    {
        "id": [1, 2, 3],
        "amount": [0.0, 50.5, 100.0],
        "colour": ["red", "blue", "red"],
        "paid": [True, False, True],
        "day": pd.to_datetime(["2020-01-01", "2020-01-02", "2020-01-03"]),
        "note": ["", None, "late"],
    }
)
FUTURE = pd.Timestamp.now() + pd.Timedelta("400D")


def rules(frame, contract=CONTRACT, key=("id",)):
    return check_table(frame, contract, key, "sales")[["column", "rule", "rows"]].to_numpy().tolist()


def test_good_rows_pass():
    assert rules(GOOD) == []


@pytest.mark.parametrize(
    ("changes", "failure"),
    [
        ({"id": [1, None, 3]}, ["id", "null key", [1]]),
        ({"amount": [0.0, None, 1.0]}, ["amount", "null value", [1]]),
        ({"colour": ["red", "Blue", "red"]}, ["colour", "unknown level", [1]]),
        ({"amount": [0.0, 100.01, 1.0]}, ["amount", "out of range", [1]]),
        ({"amount": [-0.01, 0.0, 1.0]}, ["amount", "out of range", [0]]),
        ({"id": [1, 1, 3]}, ["id", "duplicate key", [0, 1]]),
        ({"amount": [0.0, "ten", 1.0]}, ["amount", "wrong type", [1]]),
        ({"id": [1.0, 2.5, 3.0]}, ["id", "wrong type", [1]]),
        ({"amount": ["0", "50", "100"]}, ["amount", "wrong type", [0, 1, 2]]),
        ({"day": ["2020-01-01", "2020-02-30", "2020-01-03"]}, ["day", "wrong type", [1]]),
        ({"paid": [True, False, 2]}, ["paid", "wrong type", [2]]),
        ({"note": ["", None, 7]}, ["note", "wrong type", [2]]),
        ({"hair": "red"}, ["hair", "extra column", []]),
        ({"day": [pd.Timestamp("2020-01-01"), FUTURE, pd.Timestamp("2020-01-03")]}, ["day", "future date", [1]]),
        ({"amount": [0.0, np.inf, 1.0]}, ["amount", "infinite value", [1]]),
        ({"amount": [0.0, -np.inf, 1.0]}, ["amount", "infinite value", [1]]),
    ],
)
def test_each_kind_of_broken_row_has_one_error_of_its_own(changes, failure):
    assert rules(GOOD.assign(**changes)) == [failure]


def test_missing_column_and_empty_table():
    assert rules(GOOD.drop(columns="amount")) == [["amount", "missing column", []]]
    assert rules(GOOD.head(0)) == [["", "empty table", []]]


def test_several_at_once_are_all_reported():
    broken = GOOD.assign(id=[1, 1, None], amount=[np.inf, -1, "x"], hair=1).drop(columns="note")
    found = {(column, rule) for column, rule, _ in rules(broken)}
    amount = {("amount", rule) for rule in ("infinite value", "out of range", "wrong type")}
    assert found == {("id", "duplicate key"), ("id", "null key"), ("hair", "extra column"), ("note", "missing column"), *amount}


def test_failures_carry_values_counts_and_a_remedy():
    many = pd.DataFrame({"amount": [-1.0] * 25 + [1.0]})
    (failure,) = check_table(many, {"amount": CONTRACT["amount"]}).to_dict("records")
    assert failure["count"] == 25 and failure["rows"] == list(range(10)) and failure["values"] == [-1.0] * 10
    assert "min and max" in failure["remedy"]


def test_row_numbers_count_from_zero_whatever_the_index():
    shuffled = GOOD.set_index(pd.Index([30, 10, 20])).assign(amount=[0.0, 1.0, -5.0])
    assert rules(shuffled) == [["amount", "out of range", [2]]]


def test_key_of_two_columns():
    contract = {"basket": Column("integer"), "item": Column("integer")}
    frame = pd.DataFrame({"basket": [1, 1, 2, 1], "item": [7, 8, 7, 7]})
    assert rules(frame, contract, ("basket", "item")) == [["basket + item", "duplicate key", [0, 3]]]


def test_a_key_is_never_missing_whatever_its_column_says():
    assert rules(pd.DataFrame({"id": [1, None]}), {"id": Column("integer", nullable=True)}) == [["id", "null key", [1]]]
    assert rules(pd.DataFrame({"id": [1, None]}), {"id": Column("integer", nullable=True)}, ()) == []


def test_bounds_of_times_and_dates_of_plans():
    contract = {"day": Column("time", min=pd.Timestamp("2020-01-02").date(), available="known_ahead")}
    assert rules(pd.DataFrame({"day": pd.to_datetime(["2020-01-01", "2090-01-01"])}), contract, ()) == [["day", "out of range", [0]]]
    aware = pd.DataFrame({"day": pd.to_datetime(["2020-01-01 23:00", "2020-01-02 01:00"]).tz_localize("Etc/GMT-10")})
    assert rules(aware, contract, ()) == [["day", "out of range", [0]]]


def test_an_inferred_contract_enforces_types_only():
    contract = {"colour": infer_column(pd.Series(["red", "blue"])), "amount": infer_column(pd.Series([1.0, 2.0]))}
    assert contract["colour"].levels == ("blue", "red")
    assert rules(pd.DataFrame({"colour": ["green", None], "amount": [1e9, None]}), contract, ()) == []
    assert rules(pd.DataFrame({"colour": "red", "amount": ["many", 2]}), contract, ()) == [["amount", "wrong type", [0]]]


def test_what_is_inferred():
    assert infer_column(pd.Series([1, 2])).type == "integer" and infer_column(pd.Series([1.0, None])).type == "number"
    assert infer_column(pd.Series([True, False])).type == "boolean"
    assert infer_column(pd.to_datetime(pd.Series(["2020-01-01"]))).type == "time"
    assert infer_column(pd.Series([f"name {n}" for n in range(60)])).type == "text"
    assert infer_column(pd.Series([1, "a", (2, 3)])) == Column("category", inferred=True)


BASE = 'tables = {sales = "sales.csv"}\n'
ROLES = BASE + 'roles = {table = "sales", key = "id", target = "paid", positive = true}\n'


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("tables = {", "not valid TOML"),
        (ROLES + "[colums.sales.id]\ntype = 'integer'", "'colums' is unknown; did you mean columns?"),
        ('roles = {table = "sales"}', "dataset.toml lacks tables"),
        (BASE, "dataset.toml lacks roles"),
        (BASE + 'roles = {table = "sales", key = "id", positive = 1}', "[roles] lacks target"),
        (BASE + 'roles = {table = "sales", key = "id", tagret = "paid", target = "paid", positive = 1}', "did you mean target?"),
        (BASE + 'roles = {table = "sale", key = "id", target = "paid", positive = 1}', "table 'sale' is unknown; did you mean sales?"),
        (BASE + 'roles = {table = "sales", key = 3, target = "paid", positive = 1}', "key = 3 is not allowed; it takes str"),
        (BASE + 'roles = {table = "sales", time = "day", value = "amount"}', "lacks frequency"),
        (BASE + 'roles = {table = "sales", time = "day", value = "amount", frequency = "half"}', "frequency = 'half'"),
        (BASE + 'roles = {interactions = "sales", user = "who", item = "what"}', "[roles] lacks time; a recommendation needs"),
        ('roles = {table = "a", key = "b", target = "c", positive = 1}\ntables = {a = 3}', "[tables] a = 3 is not allowed; it takes str"),
        (ROLES + "[columns.sale.id]\ntype = 'integer'", "table 'sale' is unknown"),
        (ROLES + "[columns.sales.id]\ntype = 'int'", "[columns.sales.id] type = 'int' is not allowed; it takes number, integer"),
        (ROLES + "[columns.sales.id]\nmin = 1", "[columns.sales.id] lacks type"),
        (ROLES + "[columns.sales.id]\ntype = 'integer'\nminimum = 1", "did you mean min?"),
        (ROLES + "[columns.sales.id]\ntype = 'integer'\nmin = 2020-01-01", "give dates for a time, else numbers"),
        (ROLES + "[columns.sales.id]\ntype = 'integer'\nmonotone = 2", "it takes -1, 0, 1"),
        (ROLES + "[columns.sales.id]\ntype = 'integer'\navailable = 'later'", "takes known_ahead, at_decision, forecasted, after_outcome"),
        (ROLES + "[columns.sales]\nid = 'integer'", "id = 'integer' is not allowed; it takes dict"),
        (ROLES + "[keys]\nsales = 'id'", "[keys] sales = 'id' is not allowed; it takes list"),
        (ROLES + "[split]\ntest_form = 2020-01-01", "did you mean test_from?"),
        (ROLES + "[split]\ntest_from = 2020-01-01", "[split] with test_from says nothing; give"),
        (ROLES + "[split]\ntest_from = 2020-01-02\nvalidation_from = 2020-01-01", "role time"),
        (ROLES + "[split]\nkey_modulo = 5", "[split] with key_modulo says nothing"),
        (ROLES + "[split]\nsizes = [0.5, 0.5]", "three sizes, or how many rows are last"),
        (ROLES + "[split]\nlast = [10]", "how many rows are last (validation, test)"),
        (ROLES + "[split]\nlast = [10, 0.5]", "how many rows are last (validation, test)"),
        (ROLES.replace("true}", 'true, protected = "sex"}'), "protected = 'sex' is not allowed; it takes list"),
        (BASE + 'roles = {interactions = "sales", user = "u", item = "i", time = "t", exclude_items = {i = "a"}}', "i = 'a' is not"),
    ],
)
def test_mistakes_in_the_description(tmp_path, text, words):
    (tmp_path / "dataset.toml").write_text(text)
    with pytest.raises(DatasetError) as caught:
        read_description(tmp_path)
    assert words in str(caught.value)
