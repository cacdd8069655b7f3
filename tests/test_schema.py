"""A request type refuses what the data contract refuses, and says which field, which rule, which value."""

import pandas as pd
import pytest
from pydantic import ValidationError

from mlops_core.contract import Column, check_table, parse_times
from mlops_core.data import load_dataset
from mlops_core.schema import complaints, row_type

SETS = {"credit_default": "clients", "electricity": "demand", "grocery": "products"}
NASTY = [0, 1, -1, 2.5, 9, 1e6, -1e12, 1e308, float("inf"), float("-inf"), None, "", "2", "male", "Male", "2014-05-01T10:00:00", "soon", "ä" * 50]


def accepted(kind, row):
    try:
        kind.model_validate(row)
    except ValidationError:
        return False
    return True


def columns():
    for name in SETS:
        source = load_dataset(name)
        for table, contract in source.columns.items():
            for column in contract:
                yield pytest.param(source.tables[table][column].dropna().iloc[0], contract[column], id=f"{table}.{column}")


@pytest.mark.parametrize("example, column", columns())
def test_type_and_table_refuse_the_same(example, column):
    kind = row_type({"x": column})
    example = example.item() if hasattr(example, "item") else example
    assert accepted(kind, {"x": str(example) if isinstance(example, pd.Timestamp) else example}), "what the data hold"
    for value in NASTY:
        if column.type == "integer" and value == 1e308:
            continue  # a table of floats holds it; as a whole number it has more than 63 bits
        moment = pd.to_datetime(value, errors="coerce") if column.type == "time" and isinstance(value, str) and len(value) > 5 else pd.NaT
        cell = value if pd.isna(moment) else moment  # JSON has no times, so text stands for them
        table = check_table(pd.DataFrame({"x": pd.Series([cell], dtype=None if cell is moment else object)}), {"x": column})
        assert accepted(kind, {"x": value}) == table.empty, f"{value!r}: the table says {table['rule'].tolist()}"


def test_a_missing_and_an_extra_column_are_refused_as_in_the_table():
    contract = {"x": Column("number"), "y": Column("number", nullable=True)}
    kind = row_type(contract)
    for row in ({"x": 1.0}, {"x": 1.0, "y": 2.0, "z": 3.0}, {"x": None, "y": 1.0}):
        assert not accepted(kind, row) and not check_table(pd.DataFrame([row]), contract).empty
    assert accepted(kind, {"x": 1, "y": None})


@pytest.mark.parametrize("kind", ["number", "integer"])
@pytest.mark.parametrize("body", [
    "", "{", "[]", "null", '{"x": NaN}', '{"x": Infinity}', '{"x": 1e999}', '{"x": true}', '{"x": "1"}', '{"x": ' + "[" * 100_000,
    '{"x": ' + "9" * 5000 + "}", '{"x": 1, "x": "\ud800"}',
])  # fmt: skip
def test_nonsense_is_a_complaint_and_never_a_crash(kind, body):
    with pytest.raises(ValidationError) as error:
        row_type({"x": Column(kind)}).model_validate_json(body)
    found = complaints(error.value)
    assert found and all(set(one) == {"field", "rule", "value"} and len(str(one["value"])) <= 80 for one in found)


def test_a_complaint_names_field_rule_and_value():
    with pytest.raises(ValidationError) as error:
        row_type({"age": Column("integer", min=0, max=120)}).model_validate({"age": 200})
    assert complaints(error.value) == [{"field": "age", "rule": "Input should be less than or equal to 120", "value": 200}]


def test_the_type_describes_itself():
    schema = row_type({"age": Column("integer", min=0, max=120, unit="years", description="age at application")}, {"age": 30}).model_json_schema()
    assert schema["properties"]["age"]["maximum"] == 120 and "years" in schema["properties"]["age"]["description"]
    assert schema["example"] == {"age": 30} and schema["additionalProperties"] is False


ZONES = ["", "Z", "+01:00", "-14:00", "+14:00", "+25:00", "+01:75", "-00:00"]


@pytest.mark.parametrize("zone", ZONES)
def test_a_time_is_the_time_that_a_table_would_hold(zone):
    kind = row_type({"x": Column("time", available="known_ahead")})
    days = ["2026-03-01T12:00:00", "1900-12-31T23:59:59", "2099-02-28T00:00:00", "2026-03-01T24:00:00", "2026-02-30T12:00:00", "2026-03-01T12:60:00",
            "1812-06-01T12:00:00", "2026-03-01T12:00:00.5", "2026-03-01 12:00:00", "2026-03-01T12:00", "2026-02-30 12:00:00"]  # fmt: skip
    for text in [day + zone for day in days]:
        held = parse_times(pd.Series([text], dtype=object)).iloc[0]
        assert accepted(kind, {"x": text}) == pd.notna(held), text
        if pd.notna(held):
            read = kind.model_validate({"x": text}).x
            assert (read, str(read.tz), read.unit) == (held, str(held.tz), held.unit), text
