"""Profiles: bins that no outlier spoils, sums without an order, the same result from frames, files and Dask."""

import math

import dask
import dask.dataframe
import numpy as np
import pandas as pd
import pytest
from scipy.stats import ks_2samp

from mlops_core import bins, counts
from mlops_core.counts import Profile, ProfileError

GENERATOR = np.random.default_rng(0)
ROWS = 30_000


def table(rows=ROWS, seed=0):
    random = np.random.default_rng(seed)
    frame = pd.DataFrame({
        "normal": random.normal(1e6, 1, rows), "tail": random.pareto(0.8, rows), "whole": random.poisson(3, rows),
        "region": random.choice(list("abcdef"), rows), "code": pd.Categorical(random.integers(1, 9, rows).astype(str)),
        "yes": random.random(rows) < 0.3, "when": pd.date_range("2024", periods=rows, freq="min"),
    })  # fmt: skip
    return frame.assign(normal=frame.normal.mask(frame.index % 11 == 0), region=frame.region.mask(frame.index % 13 == 0))


def distance(one, other):
    return np.abs(np.cumsum(one.counts) / one.known - np.cumsum(other.counts) / other.known).max()


def samples():
    n = GENERATOR.normal
    yield "alike", n(size=5000), n(size=3000)
    yield "moved", n(size=50_000), n(0.2, 1.1, 20_000)
    yield "one value of 1e9", np.append(n(size=20_000), 1e9), n(0.6, 1, 20_000)
    yield "1e9 in the current rows", n(size=20_000), np.append(n(0.6, 1, 5000), 1e9)
    yield "heavy tail", GENERATOR.pareto(0.5, 30_000), GENERATOR.pareto(0.6, 30_000)
    yield "ties", GENERATOR.poisson(2, 30_000).astype(float), GENERATOR.poisson(2.3, 10_000).astype(float)
    yield "between the ties", GENERATOR.poisson(2, 30_000).astype(float), GENERATOR.poisson(2, 10_000) - 0.5
    yield "half zeros", np.where(GENERATOR.random(20_000) < 0.5, 0, n(size=20_000)), np.where(GENERATOR.random(9000) < 0.4, -1e-12, n(size=9000))
    yield "all in one bin", n(size=300_000), np.full(1000, 0.12345)
    yield "small reference", n(size=300), n(0.3, 1, 5000)
    yield "tiny reference", np.array([1.0, 2.0, 2.0]), np.array([1.5, 1.7, 2.5])
    yield "as many values as bins", np.arange(bins.BINS * 1.5), np.arange(bins.BINS * 1.5) + 0.25
    yield "1e300", n(size=2000) * 1e300, n(size=2000) * 2e300


@pytest.mark.parametrize("name, old, new", list(samples()), ids=lambda value: value if isinstance(value, str) else "")
def test_distance_from_bins_is_within_a_thousandth_of_the_exact_one(name, old, new):
    reference = Profile.fit(pd.DataFrame({"x": old}))
    binned = distance(reference.columns["x"], reference.count(pd.DataFrame({"x": new})).columns["x"])
    exact = ks_2samp(old, new).statistic
    assert exact - 0.001 <= binned <= exact + 1e-12


@pytest.mark.parametrize("values", [
    GENERATOR.normal(1e8, 1, 3001), GENERATOR.pareto(0.3, 1000) * 1e20, np.array([1e200, 1, -1e200, 1e-300]), np.array([5e-324, -5e-324, 1]),
    np.zeros(5), np.array([]), np.array([0.1])], ids=["large", "tail", "cancels", "tiny", "zeros", "none", "one"])  # fmt: skip
def test_sums_are_exact(values):
    assert float(bins.exact_sum(values)) == math.fsum(values)
    assert bins.exact_sum(values) == bins.exact_sum(values[::-1]) == sum(map(bins.Fraction, values.tolist()))


@pytest.mark.parametrize("name", ["grid", "heavy tail", "few values"])
def test_counts_are_those_of_a_search_for_each_value(name):
    draw = {"grid": lambda: GENERATOR.normal(size=200_000), "heavy tail": lambda: GENERATOR.pareto(0.4, 200_000),
            "few values": lambda: GENERATOR.poisson(4, 200_000).astype(float)}  # fmt: skip
    values = draw[name]()
    new = np.concatenate([values * 1.1, bins.choose_edges(values), [np.inf, -np.inf, np.nan, 1e300]])
    reference = Profile.fit(pd.DataFrame({"x": values})).columns["x"]
    found = Profile(0, {"x": reference}).count(pd.DataFrame({"x": new})).columns["x"]
    search = np.bincount(np.searchsorted(reference.marks, new[~np.isnan(new)]), minlength=len(reference.marks) + 1)
    assert np.array_equal(found.counts, search) and found.missing == 1 and found.huge == 3
    assert (found.low, found.high) == (-np.inf, np.inf)


def test_mean_and_variance():
    frame = table()
    found = Profile.fit(frame).columns
    for name in ("normal", "tail", "whole"):
        assert found[name].mean == pytest.approx(frame[name].mean(), rel=1e-13)
        assert found[name].variance == pytest.approx(frame[name].var(), rel=1e-9)
        assert (found[name].low, found[name].high) == (frame[name].min(), frame[name].max())
    assert np.isnan(found["region"].mean) and "when" not in found, "times always move and are left out"
    assert found["normal"].missing == frame.normal.isna().sum() and found["region"].missing == frame.region.isna().sum()


def test_parts_add_up_to_the_whole_in_any_order():
    frame, reference = table(), Profile.fit(table(seed=1))
    whole = reference.count(frame)
    cuts = np.sort(GENERATOR.choice(ROWS, 40, replace=False))
    parts = [reference.count(part) for part in (frame.iloc[a:b] for a, b in zip([0, *cuts], [*cuts, ROWS], strict=True))]
    for _ in range(3):
        GENERATOR.shuffle(parts)
        assert sum(parts) == whole
        as_tree = list(parts)
        while len(as_tree) > 1:
            as_tree.append(as_tree.pop(0).merge(as_tree.pop(0)))
        assert as_tree[0] == whole
    assert reference.count(frame.sample(frac=1, random_state=0)) == whole, "nor does the order of rows matter"


def test_unseen_levels_add_up_whatever_is_kept_of_them():
    reference = Profile.fit(pd.DataFrame({"name": ["known"] * 10}))
    names = pd.DataFrame({"name": [f"n{number % 700:04}" for number in range(3000)]})
    parts = [reference.count(names.iloc[start : start + 100]) for start in range(0, 3000, 100)]
    GENERATOR.shuffle(parts)
    whole = reference.count(names)
    assert sum(parts) == whole
    column = whole.columns["name"]
    assert len(column.unseen) == bins.LEVELS and column.counts[-1] == 3000 and column.unseen["n0000"] == 5


def test_json_gives_the_same_profile():
    profile = Profile.fit(table())
    again = Profile.from_json(profile.to_json())
    assert again == profile and again + again == profile + profile
    assert again.columns["normal"].variance == profile.columns["normal"].variance
    wild = profile.count(pd.DataFrame({"normal": [np.inf, 0.1, None], "region": ["zz", None, "a"]}))
    assert Profile.from_json(wild.to_json()) == wild
    for broken in ("", "{}", "[1]", '{"rows": 1, "columns": {"a": {}}}'):
        with pytest.raises(ProfileError, match="no profile"):
            Profile.from_json(broken)


@pytest.fixture
def folder(tmp_path):
    frame = table()
    (tmp_path / "later").mkdir()
    frame.iloc[:7].to_parquet(tmp_path / "a.parquet")
    frame.iloc[7:20_000].to_parquet(tmp_path / "b.parquet", row_group_size=3000)
    frame.iloc[20_000:].to_parquet(tmp_path / "later" / "c.parquet")
    return tmp_path


@pytest.mark.parametrize("sample", [bins.BINS * 2, counts.SAMPLE])
def test_frame_files_and_dask_give_the_same_profile(folder, sample, monkeypatch):
    monkeypatch.setattr(counts, "SAMPLE", sample)
    frame = table()
    expected = Profile.fit(frame)
    assert Profile.fit(folder) == expected
    with dask.config.set(scheduler="synchronous"):
        partitions = dask.dataframe.from_pandas(frame, npartitions=7)
        assert Profile.fit(partitions) == expected
        assert expected.count(partitions) == expected.count(frame) == expected.count(str(folder))
    assert expected.count(folder / "a.parquet").rows == 7


def test_levels_that_the_sample_lacks_are_named_all_the_same(monkeypatch):
    monkeypatch.setattr(counts, "SAMPLE", 100)
    frame = pd.DataFrame({"level": ["common"] * 20_000 + ["rare"]})
    column = Profile.fit(frame).columns["level"]
    assert column.marks == ("common", "rare") and column.counts.tolist() == [20_000, 1, 0]
    ids = Profile.fit(pd.DataFrame({"id": [f"id{number}" for number in range(5000)]})).columns["id"]
    assert len(ids.marks) == 13 and ids.counts[-1] == 4987, "too many to be named: other"


@pytest.mark.parametrize("old, new, foreign", [
    ([1.0, 2.0], ["a", "b"], 2), ([1.0, 2.0], ["1", "2"], 2), ([1, 2], [1, "b", None], 1), ([1.5, 2], [True, False], 2),
    (["a", "b"], [1, 2], 2), (["a", "b"], ["c", None], 0), (["1", "2"], [1, 2], 0), (["1", "2"], [1.0, np.nan], 0), ([True, False], [0, 1], 2),
    ([1, 2], [None, None], 0), ([1, 2], pd.array([1, None], dtype="Int64"), 0), (["a", "b"], pd.date_range("2024", periods=2), 2),
    ([1, 2], pd.date_range("2024", periods=2), 2)])  # fmt: skip
def test_cells_of_another_type_are_foreign(old, new, foreign):
    reference = Profile.fit(pd.DataFrame({"x": old}))
    column = reference.count(pd.DataFrame({"x": new})).columns["x"]
    assert column.foreign == foreign and column.rows == len(new)


def test_a_column_that_is_absent_is_counted_as_such():
    reference = Profile.fit(table())
    half = reference.count(table().head(10).drop(columns="tail")) + reference.count(table().head(5))
    assert half.columns["tail"].absent == 10 and half.columns["tail"].rows == half.rows == 15
    assert set(reference.count(table().assign(extra=1)).columns) == set(reference.columns), "the reference says what is looked at"


@pytest.mark.parametrize("call, said", [
    (lambda: Profile.fit(table(0)), "without rows"),
    (lambda: Profile.fit(table()[["when"]]), "without a column"),
    (lambda: Profile.fit(table(), ["region", "raegion"]), "raegion"),
    (lambda: Profile.fit({"a": [1]}), "a dict cannot be profiled"),
    (lambda: Profile.fit("nowhere.parquet"), "no parquet file"),
    (lambda: Profile.fit(table()) + Profile.fit(table(seed=2)), "normal, tail"),
    (lambda: Profile.fit(table()) + Profile.fit(table()[["tail"]]), "reference.count"),
], ids=["no rows", "times only", "unknown column", "no table", "no file", "other bins", "other columns"])  # fmt: skip
def test_what_cannot_be_profiled_is_refused_with_its_remedy(call, said):
    with pytest.raises(ProfileError, match=said):
        call()


def test_reference_travels_in_a_folder(tmp_path):
    counts.write_reference(tmp_path, {"inputs": table(), "outcomes": table()[["yes"]], "answers": table()[["when"]]})
    assert counts.reference_profile(tmp_path) == Profile.fit(table())
    assert counts.reference_profile(tmp_path, "outcomes").columns["yes"].marks == ("False", "True")
    with pytest.raises(ProfileError, match="no profile of answers, but of inputs, outcomes"):
        counts.reference_profile(tmp_path, "answers")
    with pytest.raises(ProfileError, match="but of nothing"):
        counts.reference_profile(tmp_path / "elsewhere")


def test_means_are_off_by_no_more_than_one_rounding_and_a_constant_has_no_variance():
    reference = GENERATOR.normal(7, 3, 5000)
    empty = bins.empty_counts("number", bins.choose_edges(reference))
    new = GENERATOR.normal(7.1, 3, 150_000)  # over several blocks
    found = bins.count_column(empty, pd.Series(new))
    assert abs(found.mean - math.fsum(new) / len(new)) < 12 * 2**-37, "four times the spread of some 12, of which 37 bits are kept"
    assert bins.count_column(empty, pd.Series([7.3] * 1000)).variance == 0
    far = bins.count_column(empty, pd.Series([1e6 + 0.25, 1e6 + 2**-30]))
    assert far.mean == 1e6 + 0.125 + 2**-31, "what lies far out is not rounded"


@pytest.mark.parametrize("middle, step", [(0.0, 1e-310), (5.0, 1e-15), (4e16, 8.0), (1e300, 1e290), (-1e12, 1e3)])
def test_sums_have_no_order_also_where_numbers_are_tiny_huge_or_hardly_differ(middle, step):
    column = middle + step * GENERATOR.integers(-9, 9, 70_000)
    empty = bins.empty_counts("number", bins.choose_edges(np.full(100, middle)))
    orders = (column, GENERATOR.permutation(column), column[:7], column[7:])
    whole, shuffled, first, rest = (bins.count_column(empty, pd.Series(values)) for values in orders)
    assert bins.plain_counts(whole) == bins.plain_counts(shuffled) == bins.plain_counts(bins.add_counts(first, rest))


@pytest.mark.parametrize("dtype", ["float64", "Int64", "str", "category", "object", "bool"])
def test_the_rows_that_choose_bins_are_those_at_their_places_for_every_type(dtype):
    column = pd.concat([pd.Series(GENERATOR.integers(0, 50, 700)).astype(dtype) for _ in range(3)], ignore_index=True).astype(dtype)
    places = np.array([0, 3, 699, 700, 701, 1400, 2099])
    assert counts._picked(column, places, np.empty(7)).tolist() == column.iloc[places].tolist()
