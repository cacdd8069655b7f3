"""Metrics agree with scikit-learn, with hand-computed examples and with slow versions; intervals hold what they promise."""

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import brier_score_loss, log_loss, ndcg_score, roc_auc_score, roc_curve

from mlops_core.core import generator
from mlops_core.evaluate import (
    Costs,
    approval_cut_off,
    approve,
    best_cut_off,
    bootstrap_interval,
    by_slice,
    calibration_table,
    classification_metrics,
    cost_curve,
    expected_calibration_error,
    fairness,
    forecast_error_by,
    forecast_metrics,
    mase_scale,
    paired_difference,
    pinball,
    plot_calibration,
    ranking_by_user,
    ranking_metrics,
)


@pytest.fixture(scope="module")
def scored():
    "2,000 rows whose probabilities are right, with groups of five that share their luck."
    random = generator(0, "test scored")
    probability = random.beta(1, 3, 2000).round(2)  # rounded, so that there are ties
    outcome = (random.random(2000) < probability).astype(int)
    rows = {"outcome": outcome, "probability": probability, "sex": random.choice(["f", "m"], 2000), "household": np.arange(2000) // 5}
    return pd.DataFrame(rows)


def auc_of(part):
    return classification_metrics(part.outcome, part.probability)["roc_auc"]


# classification


def test_classification_agrees_with_sklearn(scored):
    found = classification_metrics(scored.outcome, scored.probability)
    false_positives, true_positives, _ = roc_curve(scored.outcome, scored.probability, drop_intermediate=False)
    assert found["roc_auc"] == pytest.approx(roc_auc_score(scored.outcome, scored.probability))
    assert found["ks"] == pytest.approx(np.abs(true_positives - false_positives).max())
    assert found["brier"] == pytest.approx(brier_score_loss(scored.outcome, scored.probability))
    assert found["log_loss"] == pytest.approx(log_loss(scored.outcome, scored.probability))


def test_sure_and_wrong_is_finite_as_in_sklearn():
    assert classification_metrics([0, 1, 1], [1.0, 0.0, 0.9])["log_loss"] == pytest.approx(log_loss([0, 1, 1], [1.0, 0.0, 0.9]))


def test_names_and_plain_floats(scored):
    found = classification_metrics(scored.outcome, scored.probability)
    assert list(found) == ["roc_auc", "ks", "brier", "log_loss", "ece", "approval_rate", "cost_per_1000"]
    assert all(type(value) is float for value in found.values())


def test_calibration_by_hand():
    table = calibration_table([0, 1, 1, 0], [0.1, 0.1, 0.95, 1.0])
    assert table.n.tolist() == [2, 2] and table.low.tolist() == [0.1, 0.9] and table.high.tolist() == [0.2, 1.0]
    assert table.predicted.tolist() == pytest.approx([0.1, 0.975]) and table.observed.tolist() == [0.5, 0.5]
    assert expected_calibration_error([0, 1, 1, 0], [0.1, 0.1, 0.95, 1.0]) == pytest.approx((0.4 + 0.475) / 2)


def test_calibration_error_is_the_tables(scored):
    table = calibration_table(scored.outcome, scored.probability, bins=7)
    expected = np.average((table.predicted - table.observed).abs(), weights=table.n)
    assert expected_calibration_error(scored.outcome, scored.probability, bins=7) == pytest.approx(expected)
    right, wrong = (expected_calibration_error(scored.outcome, scored.probability**power) for power in (1, 2))
    assert right < 0.04 < wrong


def test_calibration_plot_has_a_line_per_model(scored):
    table = calibration_table(scored.outcome, scored.probability)
    labels = [text.get_text() for text in plot_calibration({"one": table, "two": table}).axes[0].get_legend().get_texts()]
    assert labels == ["as predicted", "one", "two"]


def test_cost_by_hand_and_by_loop(scored):
    by_hand = cost_curve([0, 1, 0, 1], [0.1, 0.3, 0.6, 0.9], Costs(5, 1), [0.0, 0.2, 0.4, 2.0])
    assert by_hand.cost_per_1000.tolist() == [500, 250, 1500, 2500]
    for cut_off in (0.0, 0.1, 0.17, 0.5, 1.0):
        approved = approve(scored.probability, cut_off)
        cost = 1000 * (7 * (approved & (scored.outcome == 1)) + 2 * (~approved & (scored.outcome == 0))).mean()
        row = cost_curve(scored.outcome, scored.probability, Costs(7, 2), cut_off).iloc[0]
        assert (row.cost_per_1000, row.approval_rate) == pytest.approx((cost, approved.mean()))
        assert row.bad_rate == pytest.approx(scored.outcome[approved].mean(), nan_ok=True)


def test_best_cut_off_beats_every_other_one(scored):
    best = best_cut_off(scored.outcome, scored.probability)
    best = cost_curve(scored.outcome, scored.probability, cut_offs=best).cost_per_1000[0]
    assert best <= cost_curve(scored.outcome, scored.probability, cut_offs=np.linspace(0, 1.1, 1000)).cost_per_1000.min()


def test_equal_cost_cut_off():
    assert Costs().cut_off == pytest.approx(1 / 6)  # a bad costs five goods
    assert best_cut_off([1, 1], [0.4, 0.6]) < 0.4 and best_cut_off([0, 0], [0.4, 1.0]) > 1.0


def test_approval_rate_is_met_up_to_ties():
    distinct = generator(0, "distinct").random(1000)
    for rate in (0.0, 0.001, 0.3, 0.7, 1.0):
        assert approve(distinct, approval_cut_off(distinct, rate)).mean() == rate
    assert approve([0.1, 0.2, 0.2, 0.2], approval_cut_off([0.1, 0.2, 0.2, 0.2], 0.5)).sum() == 1
    assert approve([0.5, 1.0], approval_cut_off([0.5, 1.0], 1.0)).all()
    assert not approve([0.0, 0.5], approval_cut_off([0.0, 0.5], 0.0)).any()


def test_float32_probabilities_are_decided_as_they_are():
    probability = np.array([0.1, 0.2, 0.3], dtype="float32")
    assert approve(probability, approval_cut_off(probability, 2 / 3)).tolist() == [True, True, False]


@pytest.mark.parametrize(("outcome", "probability", "message"), [
    ([0, 1], [0.1], "the same rows"),
    ([], [], "at least one"),
    ([0, 1], [0.1, np.nan], "probability has 1 values that are no finite number"),
    ([0, np.nan], [0.1, 0.2], "outcome has 1 values"),
    (["no", "yes"], [0.1, 0.2], "outcome has 2 values that are no finite number"),
    ([1, 2], [0.1, 0.2], "must be 0, or 1 for a bad"),
    ([0, 1], [-0.3, 0.2], "must lie in [0, 1]"),
    ([0, 1], [0.1, 1.2], "must lie in [0, 1]"),
    ([0, 1], [[0.9, 0.1], [0.8, 0.2]], "the same rows"),
    ([1, 1], [0.1, 0.2], "ranking needs goods and bads"),
])  # fmt: skip
def test_bad_input_is_refused_in_words(outcome, probability, message):
    with pytest.raises(ValueError) as error:
        classification_metrics(outcome, probability)
    assert message in str(error.value)


def test_impossible_settings_are_refused():
    with pytest.raises(ValueError, match="must be above 0"):
        Costs(false_negative=0)
    with pytest.raises(ValueError, match="0.7 for 70 %"):
        approval_cut_off([0.1, 0.2], 70)


# intervals, differences, slices


def test_interval_of_a_mean_is_the_textbooks():
    values = generator(0, "textbook").normal(10, 2, 400)
    found = bootstrap_interval(values, draws=4000).iloc[0]
    half = 1.96 * values.std() / 20
    assert (found.value, found.low, found.high) == pytest.approx((values.mean(), values.mean() - half, values.mean() + half), abs=0.02)


def test_interval_covers_at_its_level():
    random = generator(0, "coverage")
    found = [bootstrap_interval(random.exponential(1, 60), seed=seed, draws=200, level=0.9) for seed in range(200)]
    covered = [table.low[0] <= 1 <= table.high[0] for table in found]
    assert 0.82 <= np.mean(covered) <= 0.95


def test_interval_same_seed_same_numbers(scored):
    one, same, other = (bootstrap_interval(scored, auc_of, seed, draws=50) for seed in (0, 0, 1))
    assert one.equals(same) and one.value.equals(other.value) and not one.equals(other)


def test_rows_of_one_group_are_one_witness():
    luck = generator(0, "copies").normal(0, 1, 100)
    values = pd.DataFrame({"value": np.repeat(luck, 10), "household": np.repeat(np.arange(100), 10)})
    rows = bootstrap_interval(values, lambda part: part.value.mean())
    groups = bootstrap_interval(values, lambda part: part.value.mean(), groups="household")
    once = bootstrap_interval(values.drop_duplicates(), lambda part: part.value.mean())
    assert groups.high[0] - groups.low[0] > 2 * (rows.high[0] - rows.low[0])
    assert groups.high[0] - groups.low[0] == pytest.approx(once.high[0] - once.low[0], rel=0.2)


def test_groups_of_unequal_size_are_drawn_whole():
    frame = pd.DataFrame({"day": ["a", "b", "b", "c", "c", "c"], "row": range(6)}).sample(frac=1, random_state=0)
    sizes = []

    def look(part):
        sizes.append(part.groupby("day").row.agg(["size", "nunique"]))
        return 0.0

    bootstrap_interval(frame, look, groups="day", draws=30)
    assert len(sizes) == 31
    assert all((size["size"] % size["nunique"] == 0).all() for size in sizes)
    assert all((size["nunique"] == size.index.map({"a": 1, "b": 2, "c": 3})).all() for size in sizes)


def test_several_metrics_in_one_pass(scored):
    found = bootstrap_interval(scored, lambda part: classification_metrics(part.outcome, part.probability), draws=20)
    assert found.metric.tolist()[:2] == ["roc_auc", "ks"] and (found.low <= found.high).all() and (found.n == 2000).all()


def test_no_interval_where_most_draws_are_undefined():
    rare = pd.DataFrame({"outcome": [1] + [0] * 30, "probability": np.linspace(0, 1, 31)})
    found = bootstrap_interval(rare, auc_of, draws=100).iloc[0]
    assert found.value == 0 and np.isnan(found.low) and np.isnan(found.high)


def test_bootstrap_refuses_nothing_and_wrong_groups():
    for rows, groups in (([], None), ([1.0, 2.0], [1])):
        with pytest.raises(ValueError, match="a bootstrap needs"):
            bootstrap_interval(rows, groups=groups)


def test_paired_difference_sees_what_two_intervals_do_not():
    random = generator(0, "pairs")
    hard = random.normal(0, 1, 500)
    first, second = hard + 0.05 + random.normal(0, 0.1, 500), hard + random.normal(0, 0.1, 500)
    one, other, paired = bootstrap_interval(first), bootstrap_interval(second), paired_difference(first, second).iloc[0]
    assert one.low[0] < other.high[0] and paired.differs and paired_difference(second, first).differs[0]
    assert paired.value == pytest.approx(first.mean() - second.mean())
    assert (paired["first"], paired["second"]) == pytest.approx((first.mean(), second.mean()))


def test_paired_difference_of_a_model_with_itself_is_nothing(scored):
    found = paired_difference(scored, scored, auc_of, draws=20, groups="household").iloc[0]
    assert (found.value, found.low, found.high) == (0, 0, 0) and not found.differs


def test_paired_difference_wants_the_same_rows(scored):
    with pytest.raises(ValueError, match="reindex one like the other"):
        paired_difference(scored, scored[::-1], auc_of)


def test_slices_add_up_and_small_ones_are_silent(scored):
    frame = scored.assign(region=["tiny"] * 9 + [None] * 91 + ["north"] * 1900)
    found = by_slice(frame, ["sex", "region"], auc_of, draws=30).set_index("slice")
    assert found.index.tolist() == ["all", "sex=f", "sex=m", "region=north", "region=tiny", "region=missing"]
    assert found.n["sex=f"] + found.n["sex=m"] == found.n["all"] == 2000 and found.n["region=missing"] == 91
    assert found.loc["region=tiny", ["value", "low", "high"]].isna().all()
    assert found.note["region=tiny"] == "too few: 9, at least 30 are needed"
    assert found.value["sex=f"] == pytest.approx(auc_of(frame[frame.sex == "f"])) and found.note["sex=f"] == ""


def test_slice_of_one_class_says_so(scored):
    found = by_slice(scored.assign(bad=scored.outcome == 1), ["bad"], auc_of, draws=5)
    assert found.value[1:].isna().all() and found.note[1:].str.contains("ranking needs goods and bads").all()


def test_slice_counts_groups_not_rows(scored):
    part = scored.assign(region=np.where(scored.index < 100, "few households", "many"))
    found = by_slice(part, ["region"], auc_of, groups="household", draws=5).set_index("slice")
    assert found.note["region=few households"].startswith("too few: 20,")
    assert by_slice(part, ["region"], auc_of, groups="household", smallest=20, draws=5).note.tolist() == ["", "", ""]


def test_slice_by_a_number_is_refused(scored):
    with pytest.raises(ValueError, match=r"\['probability'\] have over 20 levels.*pandas.cut"):
        by_slice(scored, ["probability"], auc_of)


# fairness


def test_fairness_by_hand():
    sex = pd.DataFrame({"sex": ["f"] * 100 + ["m"] * 100})
    outcome = np.r_[np.ones(40), np.zeros(60), np.ones(50), np.zeros(50)]
    approved = np.r_[np.arange(40) < 10, np.arange(60) < 45, np.arange(50) < 20, np.arange(50) < 20]
    found = fairness(outcome, approved, sex).set_index(["rate", "level"])
    assert found.value.to_dict() == pytest.approx({
        ("approval_rate", "f"): 0.55, ("approval_rate", "m"): 0.40, ("false_positive_rate", "f"): 0.25, ("false_positive_rate", "m"): 0.60,
        ("false_negative_rate", "f"): 0.25, ("false_negative_rate", "m"): 0.40})  # fmt: skip
    assert found.n.tolist() == [100, 100, 60, 50, 40, 50]
    assert found.ratio["approval_rate", "m"] == pytest.approx(0.40 / 0.55)
    assert found.difference["approval_rate", "m"] == pytest.approx(-0.15)
    assert found.low["approval_rate", "m"] < 0.40 / 0.55 < found.high["approval_rate", "m"]
    assert found.loc[("approval_rate", "f"), ["ratio", "low", "high"]].tolist() == [1, 1, 1]


def test_fairness_interval_is_a_bootstrap_of_rows(scored):
    approved = approve(scored.probability, 0.2)
    found = fairness(scored.outcome, approved, scored[["sex"]], draws=4000).query("rate == 'approval_rate' and ratio < 1").iloc[0]
    other = ({"f", "m"} - {found.level}).pop()
    rows = scored.assign(approved=approved)
    slow = bootstrap_interval(rows, lambda p: p.approved[p.sex == found.level].mean() / p.approved[p.sex == other].mean(), draws=2000)
    assert (found.low, found.high) == pytest.approx((slow.low[0], slow.high[0]), abs=0.015)


def test_fairness_leaves_small_levels_out(scored):
    group = pd.DataFrame({"group": ["tiny"] * 20 + ["north"] * 1000 + ["south"] * 980})
    found = fairness(scored.outcome, np.r_[np.zeros(20), approve(scored.probability, 0.2)[20:]], group)
    tiny = found[found.level == "tiny"]
    assert tiny[["value", "ratio", "low", "high", "difference"]].isna().all(axis=None) and found[found.level != "tiny"].ratio.notna().all()


def test_fairness_when_nobody_is_approved(scored):
    found = fairness(scored.outcome, np.zeros(2000), scored[["sex"]]).query("rate == 'approval_rate'")
    assert (found.value == 0).all() and found.ratio.isna().all() and found.low.isna().all()


def test_fairness_refuses_probabilities_and_other_rows(scored):
    with pytest.raises(ValueError, match="pass the same rows for each"):
        fairness(scored.outcome, scored.outcome, scored[["sex"]].head())
    with pytest.raises(ValueError, match="approved 0 or 1"):
        fairness(scored.outcome, scored.probability, scored[["sex"]])


# ranking


def slow_ranking(recommended, purchased, k):
    "Textbook definitions, user by user."
    found = {}
    for user, relevant in purchased.groupby("user").item.agg(set).items():
        items = recommended[recommended.user == user].sort_values("rank").item.tolist()[:k]
        hits = [item in relevant for item in items]
        ideal = sum(1 / np.log2(i + 2) for i in range(min(k, len(relevant))))
        precisions = [sum(hits[: i + 1]) / (i + 1) for i, hit in enumerate(hits) if hit]
        gain = sum(hit / np.log2(i + 2) for i, hit in enumerate(hits))
        found[user] = (len(relevant), sum(hits) / len(relevant), gain / ideal, sum(precisions) / min(k, len(relevant)))
    return pd.DataFrame(found, index=["relevant", "recall", "ndcg", "map"]).T.rename_axis("user")


@pytest.fixture(scope="module")
def shopping():
    random = generator(0, "test shopping")
    lists = [pd.DataFrame({"user": user, "item": random.choice(40, 20, replace=False), "rank": range(1, 21)}) for user in range(60)]
    pairs = pd.DataFrame({"user": random.integers(0, 70, 600), "item": random.integers(0, 40, 600)})
    return pd.concat(lists).sample(frac=1, random_state=0), pairs[:300], pairs[300:]


@pytest.mark.parametrize("k", [1, 3, 10])
def test_ranking_agrees_with_the_slow_version(shopping, k):
    recommended, purchased, _ = shopping
    slow = slow_ranking(recommended, purchased, k)
    pd.testing.assert_frame_equal(ranking_by_user(recommended, purchased, k)[slow.columns], slow, check_dtype=False)


def test_ndcg_agrees_with_sklearn(shopping):
    recommended, purchased, _ = shopping
    both = sorted(set(recommended.user) & set(purchased.user))
    relevance = np.zeros((70, 40))
    relevance[purchased.user, purchased.item] = 1
    score = np.zeros((70, 40))
    score[recommended.user, recommended.item] = 100 - recommended["rank"]
    ours = ranking_by_user(recommended, purchased, 10).ndcg.loc[both].mean()
    assert ours == pytest.approx(ndcg_score(relevance[both], score[both], k=10))


def test_users_without_list_score_nothing_and_users_without_purchase_do_not_count(shopping):
    recommended, purchased, _ = shopping
    found = ranking_by_user(recommended, purchased)
    assert set(found.index) == set(purchased.user) and (found.loc[found.index >= 60, ["recall", "ndcg", "map"]] == 0).all(axis=None)


@pytest.mark.parametrize("part", ["new", "repeat"])
def test_new_and_repeat_are_ranked_among_themselves(shopping, part):
    recommended, purchased, seen = shopping
    known = set(zip(seen.user, seen.item, strict=True))
    keep = lambda rows: rows[[((u, i) in known) == (part == "repeat") for u, i in zip(rows.user, rows.item, strict=True)]]  # noqa: E731
    slow = slow_ranking(keep(recommended), keep(purchased), 5)
    pd.testing.assert_frame_equal(ranking_by_user(recommended, purchased, 5, part, seen)[slow.columns], slow, check_dtype=False)


def test_ranking_names_coverage_and_novelty():
    recommended = pd.DataFrame({"user": ["a", "a", "b", "b"], "rank": [1, 2, 1, 2], "item": ["x", "y", "x", "z"]})
    purchased = pd.DataFrame({"user": ["a"], "item": ["y"]})
    popularity = pd.Series({"x": 6, "y": 2})
    found = ranking_metrics(recommended, purchased, 2, catalogue=["x", "y", "z", "w"], popularity=popularity)
    assert found["coverage"] == 0.75 and found["novelty"] == pytest.approx(-np.log2([6 / 8, 2 / 8, 6 / 8, 1 / 8]).mean())
    assert found["recall_at_2"] == 1 and found["ndcg_at_2"] == pytest.approx(1 / np.log2(3)) and found["map_at_2"] == 0.5
    assert ranking_metrics(recommended, purchased, 1, catalogue=["x", "y", "z", "w"])["coverage"] == 0.25
    assert set(ranking_metrics(recommended, purchased, 1, "new", purchased.head(0))) == {"recall_at_1_new", "ndcg_at_1_new", "map_at_1_new"}


def test_an_item_bought_twice_counts_once():
    recommended = pd.DataFrame({"user": ["a"], "rank": [1], "item": ["x"]})
    assert ranking_by_user(recommended, pd.DataFrame({"user": ["a", "a"], "item": ["x", "x"]})).loc["a"].tolist() == [1, 1, 1, 1]


@pytest.mark.parametrize(("change", "message"), [
    ({"k": 0}, "k is 1 or more"),
    ({"part": "novel"}, "it must be all, new or repeat"),
    ({"part": "new"}, "pass them as `seen`"),
    ({"catalogue": [1, 2]}, "not in the catalogue"),
])  # fmt: skip
def test_ranking_refuses(shopping, change, message):
    with pytest.raises(ValueError, match=message):
        ranking_metrics(*shopping[:2], **change)


def test_ranking_refuses_broken_lists_and_ids_of_two_types(shopping):
    recommended, purchased, _ = shopping
    with pytest.raises(ValueError, match="items or ranks come twice"):
        ranking_metrics(pd.concat([recommended, recommended.head(1)]), purchased)
    with pytest.raises(ValueError, match="ids of one type"):
        ranking_metrics(recommended, purchased.astype(str))


# forecast


def test_forecast_by_hand():
    found = forecast_metrics([1, 2, 4], [2, 2, 2], scale=2, low=[0, 3, 1], high=[2, 4, 4])
    assert found == pytest.approx({
        "mae": 1, "rmse": np.sqrt(5 / 3), "mape": 50, "bias": -1 / 3, "mase": 0.5, "coverage_80": 2 / 3, "width_80": 2,
        "pinball_80": ((0.1 + 0.9 + 0.3) / 3 + (0.1 + 0.2 + 0) / 3) / 2})  # fmt: skip
    assert all(type(value) is float for value in found.values())


def test_pinball_is_lowest_at_the_quantile():
    values = generator(0, "pinball").normal(0, 1, 2000)
    losses = {q: pinball(values, np.full(2000, np.quantile(values, q)), 0.9) for q in (0.8, 0.9, 0.97)}
    assert min(losses, key=losses.get) == 0.9 and pinball(values, np.zeros(2000), 0.5) == pytest.approx(np.abs(values).mean() / 2)


def test_seasonal_naive_in_training_has_mase_one():
    series = generator(0, "series").normal(10, 1, 100)
    scale = mase_scale(series, 7)
    assert forecast_metrics(series[7:], series[:-7], scale)["mase"] == pytest.approx(1)


def test_percentage_of_nothing_is_nan_with_a_reason():
    with pytest.warns(UserWarning, match="1 of 2 actual values are 0"):
        found = forecast_metrics([0, 2], [1, 2])
    assert np.isnan(found["mape"]) and found["mae"] == 0.5


def test_error_by_group_is_the_metric_of_that_group():
    frame = pd.DataFrame({"actual": [1.0, 2, 4, 8], "forecast": [2.0, 2, 2, 6], "low": 0.0, "high": 5.0, "horizon": [1, 2, 1, 2]})
    found = forecast_error_by(frame, "horizon", scale=2, level=0.9)
    assert found.n.tolist() == [2, 2] and found.mae.tolist() == [1.5, 1] and found.coverage_90.tolist() == [1, 0.5]
    assert found.index.name == "horizon"
    assert forecast_error_by(frame, frame.horizon.rename("lead"))[["mae"]].equals(found[["mae"]].rename_axis("lead"))


@pytest.mark.parametrize(("call", "message"), [
    (lambda: forecast_metrics([1, 2], [1]), "the same rows"),
    (lambda: forecast_metrics([1, np.inf], [1, 2]), "actual has 1 values"),
    (lambda: forecast_metrics([1], [1], low=[2], high=[1]), "sort its ends"),
    (lambda: forecast_metrics([1, 2], [1, 2], low=[1, 2]), "high"),
    (lambda: mase_scale([3, 3, 3], 1), "no seasonal error"),
    (lambda: mase_scale([1, 2, 3], 3), "no seasonal error"),
    (lambda: mase_scale([1, 2, 3], 0), "no seasonal error"),
])  # fmt: skip
def test_forecast_refuses(call, message):
    with pytest.raises(ValueError, match=message):
        call()
