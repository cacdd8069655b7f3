"""What chance alone finds is as much as was promised, on real revenue; what was planted is found as often as planned."""

import numpy as np
import pandas as pd
import pytest
import tea_tasting as tt
from scipy import stats

from mlops_core.abtest import SRM_LIMIT, ABError, daily_totals, differences, durations, sample_ratio, sequence_width, window
from mlops_core.core import generator
from mlops_core.data import load_dataset
from mlops_core.traffic import place

START, SPLITS = "2017-07-03", 2000


@pytest.fixture(scope="module")
def grocery():
    return load_dataset("grocery")


@pytest.fixture(scope="module")
def daily(grocery):
    return daily_totals(grocery.table, "household_id", "transaction_timestamp", "sales_value")


@pytest.fixture(scope="module")
def splits(daily):
    "Households by lot, as an experiment assigns them."
    names = [f"household:{number}" for number in daily.index]
    return np.array([[place(name, f"A/A {number}") < 0.5 for name in names] for number in range(SPLITS)])


@pytest.fixture(scope="module")
def revenue(daily):
    return window(daily, START, 14).to_numpy()


@pytest.fixture(scope="module")
def earlier(daily):
    return window(daily, "2017-05-08", 56).to_numpy()


def within(count, number, share, level=0.999):
    "Is `count` of `number` what a true `share` gives, but for one in a thousand?"
    return stats.binom.ppf((1 - level) / 2, number, share) <= count <= stats.binom.ppf((1 + level) / 2, number, share)


def test_the_kpi_is_the_one_of_the_reference(revenue, earlier):
    assert 72 <= revenue.mean() <= 76 and revenue.std() / revenue.mean() == pytest.approx(1.36, abs=0.01)
    assert (revenue == 0).mean() == pytest.approx(0.29, abs=0.005)
    frame = pd.DataFrame({"value": revenue, "covariate": earlier})
    plain, cuped = (tt.Mean("value", covariate).solve_power(frame)[0].rel_effect_size for covariate in (None, "covariate"))
    assert round(float(plain), 2) == 0.15 and round(float(cuped), 2) == 0.10


def test_many_splits_at_once_agree_with_the_library(splits, revenue, earlier):
    for split in splits[:20]:
        frame = pd.DataFrame({"variant": split.astype(int), "revenue": revenue, "earlier": earlier})
        library = tt.Experiment(plain=tt.Mean("revenue"), cuped=tt.Mean("revenue", "earlier")).analyze(frame)
        for name, covariate in {"plain": None, "cuped": earlier}.items():
            ours, theirs = differences(split, revenue, covariate).iloc[0], library[name]
            assert abs(ours["effect"] - theirs.effect_size) < 1e-9 and abs(ours["p_value"] - theirs.pvalue) < 1e-9
            assert ours["effect"] / ours["error"] == pytest.approx(theirs.statistic, abs=1e-9)


def test_where_nothing_is_five_per_cent_find_something(splits, revenue, earlier):
    for covariate in (None, earlier):
        fired = (differences(splits, revenue, covariate)["p_value"] < 0.05).sum()
        assert within(fired, SPLITS, 0.05) and 0.04 <= fired / SPLITS <= 0.06


def test_peeking_fires_four_times_as_often_and_the_sequence_does_not(splits, daily):
    naive, steady, steady_with_all = [], [], []
    for days in range(1, 15):
        bought = window(daily, START, days).to_numpy()
        so_far, everybody = differences(splits[:, bought > 0], bought[bought > 0]), differences(splits, bought)
        naive.append(so_far["p_value"] < 0.05)
        steady.append(so_far["effect"].abs() > sequence_width(so_far["error"], (bought > 0).sum(), len(daily)))
        steady_with_all.append(everybody["effect"].abs() > sequence_width(everybody["error"], len(daily), len(daily)))
    assert 0.18 < np.any(naive, axis=0).mean() < 0.24
    assert np.any(steady, axis=0).mean() < 0.05 and np.any(steady_with_all, axis=0).mean() < 0.05


@pytest.mark.parametrize("kind", ["plain", "cuped"])
def test_a_planted_effect_is_found_as_often_as_planned(splits, revenue, earlier, kind):
    covariate = earlier if kind == "cuped" else None
    frame = pd.DataFrame({"value": revenue, "covariate": earlier})
    metric = tt.Mean("value", None if covariate is None else "covariate")
    effect, chosen = float(metric.solve_power(frame)[0].effect_size), splits[1000:1600]
    found = sum(differences(split, revenue + effect * split, covariate)["p_value"][0] < 0.05 for split in chosen)
    assert within(found, len(chosen), 0.8)


def test_cuped_takes_a_third_off_the_smallest_effect(daily):
    past = daily.loc[:, :"2017-06-18"]
    table = durations(past, effect=0.12).set_index("weeks")
    assert (table["smallest_effect_cuped"] / table["smallest_effect"]).loc[2:].between(0.5, 0.75).all()
    assert table["smallest_effect"].is_monotonic_decreasing
    row = table.loc[2]
    distance = stats.norm.isf(0.025) + stats.norm.isf(0.2)
    assert row["subjects"] == pytest.approx(4 * (distance * row["variation"] / 0.12) ** 2, rel=0.002)
    frame = pd.DataFrame({"value": window(past, "2017-06-05", 14), "covariate": window(past, "2017-03-27", 56)})
    for name, column in (("", None), ("_cuped", "covariate")):
        library = tt.Mean("value", column).solve_power(frame)[0].rel_effect_size
        assert row[f"smallest_effect{name}"] == pytest.approx(float(library), rel=1e-3)
    uneven = durations(past, effect=0.12, weeks=(2,), share=0.2).iloc[0]
    assert uneven["subjects"] == pytest.approx(row["subjects"] / (4 * 0.2 * 0.8), rel=0.01)


def test_the_sequence_has_the_width_of_the_worked_example_and_holds_over_thirty_looks():
    error = np.sqrt(0.1 * 0.9 / 10_000 + 0.11 * 0.89 / 10_000)
    assert sequence_width(error, 20_000, tuning=5000) == pytest.approx(0.01355524, abs=5e-9)
    sums = generator(0, "looks").normal(0, np.sqrt(200), (4000, 30)).cumsum(axis=1)
    n = 200 * np.arange(1, 31)
    naive = (np.abs(sums / n) > stats.norm.isf(0.025) / np.sqrt(n)).any(axis=1).mean()
    steady = (np.abs(sums / n) > sequence_width(1 / np.sqrt(n), n, tuning=5000)).any(axis=1).mean()
    assert 0.25 < naive < 0.31 and steady < 0.02
    narrowest = min(range(1000, 20_000, 100), key=lambda n: sequence_width(1 / np.sqrt(n), n, 5000) * np.sqrt(n))
    assert narrowest == pytest.approx(5000, rel=0.05), "beside a naive interval it is the narrowest about its tuning"


def test_a_lost_household_is_seen_only_by_many():
    seen = {}
    for n in (2469, 20_000):
        counts = np.arange(n + 1)
        near = np.abs(counts - 0.52 * n) < 6 * np.sqrt(n)
        blocked = np.array([sample_ratio(int(count), n - int(count), 0.5) < SRM_LIMIT for count in counts[near]])
        seen[n] = stats.binom.pmf(counts[near], n, 0.52)[blocked].sum()
    assert seen[2469] == pytest.approx(0.10, abs=0.01) and seen[20_000] == pytest.approx(0.99, abs=0.01)
    assert sample_ratio(20, 80, 0.2) > 0.9 and sample_ratio(50, 50, 0.2) < SRM_LIMIT


def test_days_that_the_table_does_not_have_are_refused(daily):
    assert window(daily, START, 14).sum() == pytest.approx(daily.loc[:, START:"2017-07-16"].to_numpy().sum())
    with pytest.raises(ABError, match="not in the table"):
        window(daily, "2017-12-30", 14)


def test_a_day_without_a_sale_and_a_household_that_paused_are_nought():
    when = pd.to_datetime(["2020-01-01 10:00", "2020-01-01 00:00", "2020-01-03 23:59"])
    frame = pd.DataFrame({"who": [1, 2, 1], "when": when, "paid": [1.0, 2.0, 3.0]})
    table = daily_totals(frame, "who", "when", "paid")
    assert table.to_numpy().tolist() == [[1, 0, 3], [2, 0, 0]]


def test_a_placebo_unmasks_the_lift_of_a_real_campaign(grocery, daily):
    campaigns, described = grocery.tables["campaigns"], grocery.tables["campaign_descriptions"].set_index("campaign_id")
    began = described.loc[13, "start_date"]
    reached = daily.index.isin(campaigns.query("campaign_id == 13")["household_id"])
    after, before = window(daily, began, 28), window(daily, began - pd.Timedelta(days=28), 28)
    lift, placebo = (revenue[reached].mean() / revenue[~reached].mean() - 1 for revenue in (after, before))
    change = (after - before)[reached].mean() - (after - before)[~reached].mean()
    assert [round(100 * number) for number in (lift, placebo, change / after[~reached].mean())] == [217, 220, -6]


def test_a_basket_is_no_case_of_its_own(grocery, splits, daily):
    frame = grocery.table
    inside = frame[frame["transaction_timestamp"].between(START, "2017-07-17", inclusive="left")]
    totals = inside.groupby(["household_id", "basket_id"])["sales_value"].sum()
    baskets = pd.DataFrame({"n": 1, "total": totals, "squares": totals**2}).groupby("household_id").sum().reindex(daily.index, fill_value=0)
    sums = [side.astype(float) @ baskets.to_numpy() for side in (splits, ~splits)]
    means = [side[:, 1] / side[:, 0] for side in sums]
    error = np.sqrt(sum((side[:, 2] / side[:, 0] - mean**2) / side[:, 0] for side, mean in zip(sums, means, strict=True)))
    assert np.mean(np.abs(means[0] - means[1]) > stats.norm.isf(0.025) * error) == pytest.approx(0.19, abs=0.03)
