"""A result comes only from a plan that was there before, a lot that was kept and groups that are whole; the log has the rest."""

import dataclasses

import numpy as np
import pandas as pd
import pytest
import tea_tasting as tt

from mlops_core import audit, core
from mlops_core.abtest import ABError
from mlops_core.core import generator
from mlops_core.govern import GovernanceError
from mlops_core.log import Prediction, PredictionLog
from mlops_core.trial import ABRefused, Plan, analyse, assign, exposed, peek, read_plan, register_plan, registered_plan, share_at, write_plan

PLAN = Plan("spring", "recommendation", 1, 2, "revenue", "earlier", 3000, 0.1, start="2030-03-04")
WHO = {"actor": "ana", "role": "data_scientist"}
NAMES = [f"household:{number}" for number in range(3000)]


@pytest.fixture
def clock(monkeypatch):
    "Sets the time of the trial and of the audit log."

    def set_to(moment):
        for module in (core, audit):
            monkeypatch.setattr(module, "now", lambda: pd.Timestamp(moment, tz="UTC"))

    return set_to


@pytest.fixture
def workspace(tmp_path, monkeypatch):
    "An empty workspace on SQLite."
    monkeypatch.setenv("MLOPS_WORKSPACE", str(tmp_path / "workspace"))
    monkeypatch.delenv("MLOPS_OPS_URL", raising=False)


@pytest.fixture
def registered(workspace, tmp_path, clock):
    "The path of a plan that was registered in time; the experiment is over."
    clock("2030-03-01")
    path = write_plan(PLAN, tmp_path / "spring.toml")
    register_plan(path, **WHO)
    clock("2030-04-01")
    return path


def households(effect=0.0):
    random, given = generator(0, "households"), assign(PLAN, NAMES, 0.5)
    earlier = random.gamma(1.0, 70.0, len(NAMES))
    revenue = 0.5 * earlier + random.gamma(1.0, 35.0, len(NAMES)) + effect * given
    group = np.where(given, "challenger", "champion")
    return pd.DataFrame({"subject": NAMES, "group": group, "first_at": pd.Timestamp("2030-03-18"), "revenue": revenue, "earlier": earlier})


def test_a_plan_comes_back_from_its_file(tmp_path):
    plan = dataclasses.replace(PLAN, name='Früh"ling\n', ramp=(0.1, 0.5))
    assert read_plan(write_plan(plan, tmp_path / "plan.toml")) == plan
    with pytest.raises(FileExistsError):
        write_plan(PLAN, tmp_path / "plan.toml")


@pytest.mark.parametrize(
    ("change", "reason"),
    [({"ramp": (0.5, 0.2)}, "ramp must rise"), ({"ramp": ()}, "ramp must rise"), ({"ramp": (0.5, 1.0)}, "ramp must rise"),
     ({"days": 10}, "whole weeks"), ({"alpha": 0.0}, "alpha"), ({"challenger": 1}, "must differ"), ({"metric": ""}, "metric"),
     ({"smallest_effect": 0}, "above 0"), ({"start": "soon"}, "start must be a day"), ({"ramp_days": 0}, "1 or more")],
)  # fmt: skip
def test_a_plan_that_cannot_be_says_which_rule(change, reason):
    with pytest.raises(ABError, match=reason):
        dataclasses.replace(PLAN, **change)


def test_a_key_too_many_or_too_few_is_named(tmp_path):
    path = write_plan(PLAN, tmp_path / "plan.toml")
    text = path.read_text()
    for changed, word in ((text + "peeks = 3\n", "peeks"), (text.replace('metric = "revenue"\n', ""), "metric")):
        path.write_text(changed)
        with pytest.raises(ABError, match=word):
            read_plan(path)


def test_the_hash_of_the_plan_stands_in_the_log_before_the_start(operations, tmp_path, clock):
    clock("2030-03-01")
    path = write_plan(PLAN, tmp_path / "spring.toml")
    register_plan(path, **WHO)
    entry = audit.entries(event="ab_planned").iloc[0]
    assert entry["subject"] == "recommendation/2" and len(entry["payload"]["sha256"]) == 64
    assert registered_plan(path) == (PLAN, pd.Timestamp("2030-03-01", tz="UTC")) and audit.verify() == []


def test_a_plan_is_registered_before_its_start_once_and_by_who_may(workspace, tmp_path, clock):
    path = write_plan(PLAN, tmp_path / "plan.toml")
    clock("2030-03-04 00:00")
    with pytest.raises(ABRefused, match="is over"):
        register_plan(path, **WHO)
    clock("2030-03-03 23:59")
    with pytest.raises(GovernanceError):
        register_plan(path, actor="ana", role="devops")
    register_plan(path, **WHO)
    with pytest.raises(ABRefused, match="registered already"):
        register_plan(path, **WHO)


@pytest.mark.parametrize("read", [lambda path: analyse(path, households(), **WHO), lambda path: peek(path, households())])
def test_a_plan_that_was_changed_or_never_registered_gives_no_result(registered, tmp_path, read):
    text = registered.read_text()
    registered.write_text(text.replace('metric = "revenue"', 'metric = "earlier"'))
    with pytest.raises(ABRefused, match="was changed"):
        read(registered)
    registered.write_text(text + "\n")
    with pytest.raises(ABRefused, match="was changed"):
        read(registered)
    registered.write_text(text)
    read(registered)
    other = write_plan(dataclasses.replace(PLAN, name="summer"), tmp_path / "other.toml")
    with pytest.raises(ABRefused, match="not in the audit log"):
        read(other)


def test_the_share_grows_and_nobody_changes_back():
    moments = ["2030-03-03 23:59", "2030-03-04", "2030-03-11", "2030-03-18", "2030-03-31 23:59", "2030-04-01"]
    assert [share_at(PLAN, moment) for moment in moments] == [0, 0.05, 0.2, 0.5, 0.5, 0]
    few, more, half = (assign(PLAN, NAMES, share) for share in PLAN.ramp)
    assert (few <= more).all() and (more <= half).all() and abs(half.mean() - 0.5) < 0.03
    again = assign(PLAN, NAMES[::-1], 0.5)[::-1]
    assert (again == half).all()
    other = assign(dataclasses.replace(PLAN, name="summer"), NAMES, 0.5)
    assert abs((half == other).mean() - 0.5) < 0.04, "another experiment draws anew"


def test_before_the_start_and_after_the_end_nobody_is_given_to_the_challenger(clock):
    for moment, share in (("2030-03-01", 0), ("2030-03-05", 0.05), ("2030-03-20", 0.5), ("2030-05-01", 0)):
        clock(moment)
        assert (assign(PLAN, NAMES) == assign(PLAN, NAMES, share)).all()


def test_the_result_is_the_librarys_and_is_logged(registered):
    units = households(effect=10.0)
    table = analyse(registered, units, **WHO).set_index("estimate")
    library = tt.Experiment(cuped=tt.Mean("revenue", "earlier")).analyze(units.assign(variant=(units["group"] == "challenger").astype(int)))
    found = library["cuped"]
    assert table.loc["CUPED", "effect"] == found.effect_size and table.loc["CUPED", "p_value"] == found.pvalue
    assert table["verdict"].tolist() == ["better", "better"] and table.loc["CUPED", "low"] < 10 < table.loc["CUPED", "high"]
    assert table.loc["CUPED", "high"] - table.loc["CUPED", "low"] < table.loc["plain", "high"] - table.loc["plain", "low"]
    assert audit.entries(event="ab_result").iloc[0]["payload"]["result"]["effect"] == table.loc["CUPED", "effect"]


def test_worse_is_said_and_no_difference_is_no_verdict(registered):
    assert analyse(registered, households(effect=-10.0), **WHO)["verdict"].iloc[-1] == "worse"
    assert analyse(registered, households(), **WHO)["verdict"].iloc[-1] == "no difference found"


def test_the_order_of_the_rows_does_not_matter(registered):
    one, two = (analyse(registered, units, **WHO) for units in (households(5.0), households(5.0).sample(frac=1, random_state=0)))
    pd.testing.assert_frame_equal(one, two, rtol=1e-12)


def lost_challengers(units):
    return units.drop(units.index[units["group"] == "challenger"][::5])


@pytest.mark.parametrize(
    ("spoil", "error", "reason"),
    [(lost_challengers, ABRefused, "sample ratio mismatch"),
     (lambda units: units.assign(group=units["group"].to_numpy()[::-1]), ABRefused, "met another version"),
     (lambda units: units.assign(first_at=units["first_at"].where(units.index > 0, pd.Timestamp("2030-02-01"))), ABRefused, "before plan spring"),
     (lambda units: units.head(150), ABRefused, "each side needs 100 subjects"), (lambda units: units.head(0), ABRefused, "each side needs 100"),
     (lambda units: pd.concat([units, units.head(5)]), ABError, "5 rows repeat a subject"),
     (lambda units: units.drop(columns="earlier"), ABError, "lacks earlier"),
     (lambda units: units.assign(revenue=units["revenue"].where(units["revenue"] > 20)), ABError, "nobody is dropped")],
)  # fmt: skip
def test_what_would_mislead_is_refused_with_its_reason_at_the_end_and_at_a_look(registered, spoil, error, reason):
    spoilt = spoil(households())
    for read in (lambda: analyse(registered, spoilt, **WHO), lambda: peek(registered, spoilt)):
        with pytest.raises(error, match=reason):
            read()
    assert audit.entries(event="ab_result").empty


def test_without_a_covariate_the_plain_estimate_counts(workspace, tmp_path, clock):
    clock("2030-03-01")
    path = write_plan(dataclasses.replace(PLAN, covariate=""), tmp_path / "plain.toml")
    register_plan(path, **WHO)
    clock("2030-04-01")
    units = households(10.0).drop(columns="earlier")
    assert analyse(path, units, **WHO)["estimate"].tolist() == peek(path, units)["estimate"].tolist() == ["plain"]


def test_a_few_whom_the_champion_had_to_answer_stay_where_the_lot_put_them(registered):
    units = households(5.0)
    some = units.assign(group=units["group"].where(units.index >= 20, "both"))
    pd.testing.assert_frame_equal(analyse(registered, some, **WHO), analyse(registered, units, **WHO))


def test_before_the_end_there_is_only_the_look_that_holds_at_any_time(registered, clock):
    clock("2030-03-31 23:59")
    with pytest.raises(ABRefused, match="use peek"):
        analyse(registered, households(10.0), **WHO)
    look = peek(registered, households(10.0)).set_index("estimate")
    clock("2030-04-01")
    final = analyse(registered, households(10.0), **WHO).set_index("estimate")
    assert look["effect"].to_dict() == pytest.approx(final["effect"].to_dict(), abs=1e-9)
    assert (look["low"] < final["low"]).all() and (look["high"] > final["high"]).all() and look.loc["CUPED", "verdict"] == "better"
    assert peek(registered, households())["verdict"].tolist() == ["go on", "go on"]
    clock("2030-03-17 23:59")
    with pytest.raises(ABRefused, match="is ramped up until"):
        peek(registered, households())


def test_who_met_whom_comes_from_the_log(operations, clock):
    def answer(number, version, subject, moment, role="champion"):
        return Prediction("recommendation", f"r{number}", version, role, subject=subject, time=pd.Timestamp(moment).to_pydatetime())

    rows = [(1, "a", "2030-03-18 10:00"), (1, "a", "2030-03-19"), (2, "b", "2030-03-20"), (1, "c", "2030-03-18"), (2, "c", "2030-03-22"),
            (1, "early", "2030-03-17"), (1, "late", "2030-04-01"), (3, "other", "2030-03-20")]  # fmt: skip
    with PredictionLog() as writer:
        for number, row in enumerate(rows):
            writer.write([answer(number, *row)])
        writer.write([answer("r", 2, "a", "2030-03-20", role="shadow")])
    clock("2030-05-01")
    found = exposed(PLAN).set_index("subject")
    assert found["group"].to_dict() == {"a": "champion", "b": "challenger", "c": "both"}
    assert found.loc["a", "first_at"] == pd.Timestamp("2030-03-18 10:00")
