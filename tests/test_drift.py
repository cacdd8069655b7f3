"""Drift: tests that keep their promises, a verdict for every fault, a classifier for what no column shows, a page that opens alone."""

import re

import numpy as np
import pandas as pd
import pytest
from scipy import stats
from statsmodels.stats.multitest import multipletests

from mlops_core import drift, shift
from mlops_core.bins import Counts
from mlops_core.counts import Profile, ProfileError
from mlops_core.drift import drift_report

GENERATOR = np.random.default_rng(0)


def table(rows, random=GENERATOR, columns=8):
    """Columns that have to do with each other, as those of a real table do."""
    common = random.normal(size=rows)
    numbers = {f"x{place}": 0.7 * common + random.normal(size=rows) for place in range(columns)}
    return pd.DataFrame(numbers | {"level": random.choice(list("abcde"), rows, p=[0.4, 0.3, 0.15, 0.1, 0.05]), "flag": random.random(rows) < 0.2,
                                   "gaps": np.where(random.random(rows) < 0.3, np.nan, common)})  # fmt: skip


REFERENCE = Profile.fit(table(20_000))


def levels(counts):
    return Counts("category", tuple(f"l{place}" for place in range(len(counts))), np.append(counts, 0))


def test_p_value_of_numbers_is_scipys():
    for moved in (0, 0.02, 0.05, 0.1):
        old, new = GENERATOR.normal(size=8000), GENERATOR.normal(moved, 1, 3000)
        reference = Profile.fit(pd.DataFrame({"x": old}))
        distance, p_value = drift.ks_test(reference.columns["x"], reference.count(pd.DataFrame({"x": new})).columns["x"])
        same = stats.kstwo.sf(distance, round(8000 * 3000 / 11000))
        assert p_value == pytest.approx(same, rel=0.05)
        assert stats.ks_2samp(old, new).statistic == pytest.approx(distance, abs=0.001)


def test_chi_squared_compares_two_samples():
    shares = GENERATOR.dirichlet(np.full(12, 3.0))
    months = [tuple(levels(GENERATOR.multinomial(2000, shares)) for _ in range(2)) for _ in range(1000)]
    ours = np.mean([drift.chi_squared(*pair)[1] < 0.05 for pair in months])
    naive = np.mean([stats.chisquare(new.counts[:12] + 0.5, (old.counts[:12] + 0.5)).pvalue < 0.05 for old, new in months])
    assert 0.035 < ours < 0.07, "two samples"
    assert naive > 0.45, "the reference taken for exact"
    unequal = [(levels(GENERATOR.multinomial(50_000, shares)), levels(GENERATOR.multinomial(2000, shares))) for _ in range(1000)]
    assert 0.035 < np.mean([drift.chi_squared(*pair)[1] < 0.05 for pair in unequal]) < 0.07


def test_chi_squared_is_the_contingency_tables():
    old, new = [300, 200, 100, 50], [250, 240, 90, 70]
    statistic, p_value, effect = drift.chi_squared(levels(old), levels(new))
    same = stats.chi2_contingency([old, new])
    assert (statistic, p_value) == pytest.approx((same.statistic, same.pvalue))
    assert effect == pytest.approx(np.abs(np.array(old) / 650 - np.array(new) / 650).sum() / 2)
    assert drift.chi_squared(levels([100, 0]), levels([90, 0])) == (0, 1, 0)


def test_rare_levels_make_no_false_alarms():
    shares = np.array([0.5, 0.3, 0.19] + [0.01 / 40] * 40)
    months = [(levels(GENERATOR.multinomial(2000, shares)), levels(GENERATOR.multinomial(500, shares))) for _ in range(1000)]
    assert 0.03 < np.mean([drift.chi_squared(*pair)[1] < 0.05 for pair in months]) < 0.075


@pytest.mark.parametrize("rows", [300, 2000])
def test_stability_index_without_drift_is_what_it_says(rows):
    found = []
    for _ in range(100):
        reference = Profile.fit(pd.DataFrame({"x": GENERATOR.normal(size=3000)}))
        found.append(drift.stability_index(reference.columns["x"], reference.count(pd.DataFrame({"x": GENERATOR.normal(size=rows)})).columns["x"]))
    measured, expected = np.mean(found, axis=0)
    assert measured == pytest.approx(expected, rel=0.15) and expected == pytest.approx(9 * (1 / 3000 + 1 / rows))


def test_stability_index_is_the_textbooks():
    old, new = np.array([400, 300, 200, 100]), np.array([350, 320, 180, 150])
    found, expected = drift.stability_index(levels(old), levels(new))
    shares = (old + 0.5) / (old + 0.5).sum(), (new + 0.5) / (new + 0.5).sum()
    assert found == pytest.approx(((shares[1] - shares[0]) * np.log(shares[1] / shares[0])).sum())
    assert expected == pytest.approx(3 * (1 / 1000 + 1 / 1000))
    assert np.isfinite(drift.stability_index(levels([500, 0]), levels([0, 500]))[0])


def test_holm_is_statsmodels():
    for size in (1, 5, 40):
        p_values = GENERATOR.random(size) ** 3
        assert drift.holm(p_values) == pytest.approx(multipletests(p_values, method="holm")[1])


def test_no_drift_raises_an_alarm_in_at_most_five_windows_of_a_hundred():
    random, windows = np.random.default_rng(1), []
    for _ in range(150):
        report = drift_report(REFERENCE, table(1000, random), effect=0.0, minimum=300)  # the size would hide what the p-values do
        windows.append(report.alarm.any())
    assert np.mean(windows) <= 0.09, "5 % and what 150 windows may be off"
    calm = drift_report(REFERENCE, table(1000, random))
    assert set(calm.verdict) == {"ok"} and not calm.alarm.any()


def test_large_windows_need_a_size():
    old, new = GENERATOR.normal(size=300_000), GENERATOR.normal(0.02, 1, 300_000)
    reference = Profile.fit(pd.DataFrame({"x": old}))
    found = drift_report(reference, pd.DataFrame({"x": new})).iloc[0]
    assert found.p_adjusted < 0.001 and found.verdict == "ok" and "is certain" in found.why and "less than 10%" in found.why
    assert drift_report(reference, pd.DataFrame({"x": new}), effect=0.005).verdict[0] == "drift"
    assert drift_report(reference, pd.DataFrame({"x": new + 0.4})).verdict[0] == "drift"


def test_small_windows_are_too_few():
    needed = drift.rows_needed(20_000, 0.05 / 11)
    small = drift_report(REFERENCE, table(needed - 1))
    assert set(small.verdict) == {"too few"} and f"from {needed:,} each on" in small.why[0]
    assert "too few" not in set(drift_report(REFERENCE, table(2 * needed)).verdict)
    assert set(drift_report(REFERENCE, table(100), minimum=80).verdict) == {"ok", "too few"}, "gaps has values in two of three rows"
    assert drift.rows_needed(10**9, 0.0025) == pytest.approx(-np.log(0.0025 / 2) / 2 / 0.1**2, abs=1)
    tiny = Profile.fit(table(100))
    assert set(drift_report(tiny, table(5000)).verdict) == {"too few"}, "a reference can be too small as well"


def faults(now):
    rows = np.arange(len(now))
    yield "ok", now, "x0"
    yield "drift", now.assign(x0=now.x0 * 3), "x0"
    yield "drift", now.assign(level=now.level.where(rows % 3 > 0, "e")), "level"
    yield "missing", now.assign(x0=now.x0.mask(rows % 5 == 0)), "x0"
    yield "missing", now.assign(level=now.level.mask(rows % 5 == 0)), "level"
    yield "missing", now.assign(gaps=now.gaps.fillna(now.x0)), "gaps"
    yield "new levels", now.assign(level=now.level.mask(rows < 30, "z")), "level"
    yield "vanished levels", now.assign(level=now.level.replace("e", "d")), "level"
    yield "became constant", now.assign(x0=1.5), "x0"
    yield "became constant", now.assign(level="a"), "level"
    yield "became constant", now.assign(flag=False), "flag"
    yield "all missing", now.assign(x0=np.nan), "x0"
    yield "all missing", now.assign(level=None), "level"
    yield "all missing", now.assign(gaps=np.nan), "gaps"
    yield "type changed", now.assign(x0=now.x0.astype(str)), "x0"
    yield "type changed", now.assign(level=rows), "level"
    yield "type changed", now.assign(flag=now.flag.astype(int)), "flag"
    yield "type changed", now.assign(x0=now.x0.astype(object).mask(rows < 100, "n/a")), "x0"
    yield "column gone", now.drop(columns="x0"), "x0"


@pytest.mark.parametrize("verdict, now, column", list(faults(table(3000))), ids=lambda value: value if isinstance(value, str) else "")
def test_each_fault_has_its_verdict(verdict, now, column):
    report = drift_report(REFERENCE, now).set_index("column")
    found = report.loc[column]
    others = report.drop(index=column)
    assert found.verdict == verdict
    assert not others.alarm.any() and found.alarm == drift.VERDICTS[verdict][0]
    assert found.why and found.next == drift.VERDICTS[found.verdict][1]
    assert report.index[0] == column or not found.alarm, "alarms stand first"


def test_columns_without_news_have_verdicts_too():
    rows = pd.DataFrame({"same": ["a"] * 2000, "one": 1.0, "none": np.nan, "nothing": [None] * 2000})
    reference = Profile.fit(rows)
    assert drift_report(reference, rows).set_index("column").verdict.to_dict() == {
        "same": "constant", "one": "constant", "none": "empty", "nothing": "empty"}  # fmt: skip
    other = rows.assign(same="b", one=2.0, none=5.0, nothing="x")
    found = drift_report(reference, other).set_index("column").verdict.to_dict()
    assert found == {"same": "new levels", "one": "drift", "none": "no longer missing", "nothing": "no longer missing"}


def test_one_odd_cell_is_no_alarm_and_new_names_among_names_are_none():
    now = table(3000)
    now["level"] = now.level.mask(np.arange(3000) == 7, "z")
    small = Profile.fit(table(3000))
    assert drift_report(small, now).set_index("column").verdict["level"] == "ok", "one row of 3,000 may be the first of its kind"
    random = np.random.default_rng(2)
    names = random.zipf(1.6, 20_000)
    names = pd.DataFrame({"name": names[names < 240].astype(str)})
    half = len(names) // 2
    reference = Profile.fit(names.head(half).replace([str(name) for name in range(100, 240, 3)], "100"))
    assert drift_report(Profile.fit(names.head(half)), names.tail(half)).verdict[0] == "ok"
    assert drift_report(reference, names.tail(half)).verdict[0] == "new levels", "47 names that were never seen are no chance"


def test_profiles_and_frames_give_the_same_report():
    now = table(2000)
    current = REFERENCE.count(now.head(700)) + REFERENCE.count(now.tail(1300))
    pd.testing.assert_frame_equal(drift_report(REFERENCE, now), drift_report(Profile.from_json(REFERENCE.to_json()), current))
    with pytest.raises(ProfileError, match="reference.count"):
        drift_report(REFERENCE, Profile.fit(now))


def test_answers_and_outcomes_are_tables_too():
    answers = pd.DataFrame({"probability": GENERATOR.beta(2, 8, 4000), "approved": GENERATOR.random(4000) < 0.8})
    reference = Profile.fit(answers)
    later = pd.DataFrame({"probability": GENERATOR.beta(3, 7, 1000), "approved": GENERATOR.random(1000) < 0.6})
    assert drift_report(reference, later).verdict.tolist() == ["drift", "drift"]


def test_classifier_finds_what_columns_do_not_show():
    random = np.random.default_rng(3)
    common = random.normal(size=(3000, 2))
    then = pd.DataFrame({"a": common[:, 0], "b": common[:, 0] + common[:, 1], "level": random.choice(list("xyz"), 3000), "n": random.random(3000)})
    common = random.normal(size=(3000, 2))
    now = pd.DataFrame({"a": common[:, 0], "b": -common[:, 0] + common[:, 1], "level": random.choice(list("xyz"), 3000), "n": random.random(3000)})
    assert not drift_report(Profile.fit(then), now).alarm.any()
    found = shift.tell_apart(then, now)
    assert found.auc > 0.75 and found.p_value == 1 / (shift.PERMUTATIONS + 1) and set(found.columns.column[:2]) == {"a", "b"}
    again = shift.tell_apart(then, now)
    assert again.auc == found.auc and again.columns.equals(found.columns), "the same seed, the same answer"
    new = shift.tell_apart(then, then.assign(level="new", n=np.nan))
    assert new.auc == 1, "a level that only one table has"


def test_classifiers_p_value_is_uniform_without_drift():
    random = np.random.default_rng(4)
    p_values = []
    for seed in range(25):
        rows = pd.DataFrame(random.normal(size=(300, 4)), columns=list("abcd"))
        p_values.append(shift.tell_apart(rows.head(150), rows.tail(150), seed).p_value)
    assert np.mean(np.array(p_values) <= 0.05) <= 0.16 and 0.3 < np.mean(p_values) < 0.7


@pytest.mark.parametrize("rows, columns, said", [(10, ["x0"], "10 against"), (100, ["x0", "level"], "columns missing: level")])
def test_classifier_refuses_what_it_cannot_compare(rows, columns, said):
    with pytest.raises(ValueError, match=said):
        shift.tell_apart(table(rows)[columns], table(100)[["x0"]])


def test_page_opens_alone(tmp_path):
    now = table(2000).assign(x0=lambda rows: rows.x0 * 3, x1=None, level="<b>new & bold</b>").drop(columns="x2")
    current = REFERENCE.count(now)
    report = drift_report(REFERENCE, current)
    page = shift.drift_page(report, REFERENCE, current, tmp_path / "page.html", "March & April <compared>")
    text = page.read_text()
    assert f"{report.alarm.sum()} of 11 columns raise an alarm" in text and text.count("<section") == 11
    assert "<b>new" not in text and "<compared>" not in text, "names are escaped"
    assert not re.search(r'<script|src="(?!data:)|href="http|url\(', text), "nothing is loaded, nothing runs"
    assert text.index("column gone") < text.index("No change that chance") and len(text) < 1_000_000
    for row in report[report.alarm].itertuples():
        assert row.next.split(":")[0] in text
    assert shift.drift_page(report, REFERENCE, current, tmp_path / "again.html", "March & April <compared>").read_text() == text


def test_pictures_are_drawn_from_counts():
    column, later = REFERENCE.columns["x0"], REFERENCE.count(table(2000).assign(x0=5.0)).columns["x0"]
    grid = np.linspace(-4, 6, 31)
    shares = shift._outline(column, grid)
    middle = (grid[1:] + grid[:-1]) / 2
    assert shares.sum() == pytest.approx(1, abs=0.01) and (shares * middle).sum() == pytest.approx(column.mean, abs=0.02)
    assert shift._outline(later, grid).max() == 1, "a constant is one step"
