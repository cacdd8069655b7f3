"""Lists know nothing of the future, repeat themselves, and the case runs on anybody's purchases."""

import nbformat
import numpy as np
import pandas as pd
import papermill
import pytest

from mlops_core import core, recommend
from mlops_core.data import load_dataset
from mlops_core.evaluate import paired_difference, ranking_by_user, ranking_metrics

CASE = core.home() / "nbs" / "cases" / "recommendation.ipynb"
CUT = pd.Timestamp("2017-12-18")


@pytest.fixture(scope="module")
def everything():
    return recommend.purchases(load_dataset("grocery"))


@pytest.fixture(scope="module")
def bought(everything):
    return recommend.sample_users(everything, 150, seed=0)


def table(rows):
    "Purchases from (user, item, day of January 2024)."
    frame = pd.DataFrame(rows, columns=["user", "item", "day"])
    return frame.assign(time=pd.Timestamp("2023-12-31") + pd.to_timedelta(frame.pop("day"), unit="D"), value=1.0)


def test_purchases_drop_what_is_never_recommended(everything):
    dataset = load_dataset("grocery")
    departments = dataset.tables["products"].dropna(subset="product_type").groupby("product_type")["department"].agg(set)
    kept = departments.reindex(everything["item"].unique())
    assert kept.notna().all() and not (kept == {"FUEL"}).any() and everything["time"].is_monotonic_increasing
    assert len(everything) == 1_445_703


def test_reference_split_and_quality(everything):
    fold = recommend.ranking_fold(everything, CUT)
    new = fold.y_test[~fold.y_test["seen"] & fold.y_test["user"].isin(fold.X_train["user"])]
    assert new["user"].nunique() == 1573 and len(fold.X_test) == 1705
    models = {
        "two_stage": recommend.TwoStage(), "decayed": recommend.PersonalFrequency(60), "popularity": recommend.Popularity(),
        "neighbours": recommend.ItemNeighbours(),
    }  # fmt: skip
    models = {name: model.fit(fold.X_train) for name, model in models.items()}
    assert models["popularity"].history_.eligible.sum() == 1848
    ndcg = {name: ranking_by_user(recommend.recommend(model, fold.X_test["user"]), fold.y_test)["ndcg"] for name, model in models.items()}
    assert ndcg["two_stage"].mean() >= 0.436 and ndcg["popularity"].mean() == pytest.approx(0.304, abs=0.001)
    assert paired_difference(ndcg["two_stage"], ndcg["decayed"])["low"].item() > 0
    fresh = {n: ranking_metrics(recommend.recommend(m, new["user"], exclude_seen=True), new)["ndcg_at_10"] for n, m in models.items()}
    assert fresh["two_stage"] > max(fresh["popularity"], fresh["neighbours"], 0.074)


def test_a_random_split_flatters(bought):
    past = bought[bought["time"] < CUT]
    hidden = past.sample(frac=0.1, random_state=0)
    known = recommend.PersonalFrequency().fit(past.drop(hidden.index))
    at_random = ranking_metrics(recommend.recommend(known, hidden["user"].unique()), hidden)["ndcg_at_10"]
    fold = recommend.ranking_fold(bought, CUT)
    model = recommend.PersonalFrequency().fit(fold.X_train)
    in_time = ranking_metrics(recommend.recommend(model, fold.X_test["user"]), fold.y_test)["ndcg_at_10"]
    assert at_random > in_time + 0.03


def test_training_examples_hold_no_fact_from_their_own_future(bought):
    history = recommend.make_history(bought)
    day = history.day - 14
    events = history.events.assign(value=history.events["value"].where(history.events["day"] < day, 1e6))
    events = events[(events["day"] < day) | (events["item"] % 3 == 0)]
    codes = np.arange(30)
    views = [recommend.History(history.users, history.items, part, history.day).before(day) for part in (history.events, events)]
    first, second = (recommend.candidate_features(recommend.Facts(view), codes, 40, 20, 30) for view in views)
    assert np.array_equal(first[1], second[1])
    pd.testing.assert_frame_equal(first[2], second[2])


def test_facts_of_a_pair_by_hand():
    rows = [("ada", "milk", 1), ("ada", "milk", 3), ("ada", "milk", 7), ("ada", "tea", 7), ("bob", "milk", 10)]
    facts = recommend.Facts(recommend.make_history(table(rows), minimum_buyers=1))
    milk = facts.pairs.iloc[0]
    assert milk[["times", "days_since_last", "days_since_first", "usual_gap"]].tolist() == [3, 4, 10, 3]
    assert milk["gap_spread"] == pytest.approx(1.0) and milk["due"] == pytest.approx(4 / 3)
    assert facts.users["visits"].tolist() == [3, 1] and facts.items["buyers"].tolist() == [2, 1]
    assert np.isnan(facts.pairs["usual_gap"].iloc[1])


def test_profiles_enter_as_lifts_and_may_have_gaps(bought):
    users = np.sort(bought["user"].unique())
    profiles = pd.DataFrame({"band": pd.Categorical(np.where(users % 2, "young", "old"))}, index=users).iloc[:-20]
    model = recommend.TwoStage(profiles, rounds=5).fit(bought)
    _, _, features = model.features(np.arange(len(users)))
    assert features["lift_band"].notna().any() and features["lift_band"].isna().any()
    assert len(recommend.recommend(model, users[-1:])) == 10


def test_lists_of_few_items_few_users_and_strangers():
    rows = [("ada", "milk", 1), ("ada", "tea", 2), ("bob", "milk", 3)]
    lists = recommend.recommend(recommend.PersonalFrequency(minimum_buyers=1).fit(table(rows)), ["ada", "bob", "eve"], k=10)
    assert lists.groupby("user").size().tolist() == [2, 2, 2], "shorter where fewer items are left"
    alone = recommend.recommend(recommend.Popularity(minimum_buyers=1).fit(table(rows[:2])), ["ada"], exclude_seen=True)
    assert alone.empty and list(alone) == ["user", "rank", "item", "score", "new"]
    with pytest.raises(ValueError, match="0 rows"):
        recommend.make_history(table(rows).head(0))
    with pytest.raises(ValueError, match="lack .'value'"):
        recommend.make_history(table(rows).drop(columns="value"))
    with pytest.raises(ValueError, match="no examples"):
        recommend.TwoStage(minimum_buyers=1).fit(table(rows))


def test_a_basket_moves_up_what_goes_with_it():
    pairs = [("tea", "lemon"), ("beer", "chips")]
    rows = [(user, item, 1 + day) for user in range(12) for day in range(6) for item in pairs[(user + day) % 2]]
    model = recommend.Popularity(minimum_buyers=2).fit(table(rows))
    for shown, partner in pairs:
        basket = pd.DataFrame({"user": [3], "item": [shown]})
        assert recommend.recommend(model, [3], k=1, basket=basket, basket_weight=5.0)["item"].item() == partner
    still = recommend.recommend(model, [3, 4], basket=pd.DataFrame({"user": [3], "item": ["tea"]}), basket_weight=1.0)
    assert len(still[still["user"] == 4]) == 4, "another shopper's list keeps all four"


def test_half_baskets_share_nothing_and_come_from_one_visit(bought):
    items = bought["item"].unique()
    shown, rest = recommend.half_baskets(bought, items, seed=0)
    assert shown.merge(rest).empty and set(shown["user"]) == set(rest["user"])
    sizes = pd.concat([shown.groupby("user").size(), rest.groupby("user").size()], axis=1).fillna(0)
    assert (sizes.sum(axis=1) >= 4).all() and (sizes[0] - sizes[1]).abs().max() <= 1
    assert shown.equals(recommend.half_baskets(bought.sample(frac=1, random_state=1), items, seed=0)[0])
    assert not shown.equals(recommend.half_baskets(bought, items, seed=1)[0])


def test_sample_takes_whole_households(everything, bought):
    assert bought["user"].nunique() == 150
    assert len(bought) == everything["user"].isin(bought["user"].unique()).sum()
    assert recommend.sample_users(bought, 0, 0).equals(bought) and recommend.sample_users(bought, 999, 0).equals(bought)


@pytest.mark.parametrize("number", [1, 5, 29])
def test_a_sample_that_is_too_small_is_refused_by_its_name(bought, number):
    with pytest.raises(ValueError, match=f"parameter sample: {number} users are too few.*at least 30, or 0 for all"):
        recommend.sample_users(bought, number, 0)
    assert recommend.sample_users(bought, 30, 0)["user"].nunique() == 30


def models():
    return [recommend.Popularity(), recommend.PersonalFrequency(60), recommend.ItemNeighbours(), recommend.Factors(), recommend.TwoStage(rounds=10)]


@pytest.mark.parametrize("make", range(5))
def test_lists_do_not_see_the_future_and_repeat_themselves(bought, make):
    def lists(frame):
        fold = recommend.ranking_fold(frame, CUT)
        return recommend.recommend(models()[make].fit(fold.X_train, fold.y_train), np.sort(bought["user"].unique())[:40])

    first = lists(bought)
    generator = np.random.default_rng(0)
    later = bought["time"] >= CUT
    shuffled = bought.assign(item=bought["item"].where(~later, pd.Series(generator.permutation(bought["item"]), bought.index)))
    pd.testing.assert_frame_equal(first, lists(bought))
    pd.testing.assert_frame_equal(first, lists(shuffled))
    assert first.groupby("user")["rank"].max().le(10).all() and not first.duplicated(["user", "item"]).any()


def test_the_seed_alone_decides_the_ranker(bought):
    ranker = next(c for c in recommend.recommendation_case().candidates if c.name == "two_stage")
    users = np.sort(bought["user"].unique())[:60]
    found = [ranker.build(seed).set_params(rounds=10).fit(bought) for seed in (7, 7, 8)]
    first, again, other = (recommend.recommend(model, users) for model in found)
    pd.testing.assert_frame_equal(first, again)
    assert not np.allclose(first["score"], other["score"]), "another seed draws other rows and columns"
    assert [model.ranker_.get_params()["random_state"] for model in found] == [7, 7, 8]


def test_a_basket_leaves_the_list_and_unknown_households_get_the_popular(bought):
    fold = recommend.ranking_fold(bought, CUT)
    model = recommend.PersonalFrequency(60).fit(fold.X_train)
    user = fold.X_test["user"].iloc[0]
    items = recommend.recommend(model, [user])["item"].head(3)
    basket = pd.DataFrame({"user": user, "item": items})
    assert not set(items) & set(recommend.recommend(model, [user], basket=basket)["item"])
    stranger = recommend.recommend(model, [-1])
    popular = recommend.recommend(recommend.Popularity().fit(fold.X_train), [user])
    assert len(stranger) == 10 and len(set(stranger["item"]) & set(popular["item"])) >= 5


def test_new_places_are_kept_for_new_items(bought):
    fold = recommend.ranking_fold(bought, CUT)
    model = recommend.PersonalFrequency(60).fit(fold.X_train)
    lists = recommend.recommend(model, fold.X_test["user"], new_places=4)
    assert lists.groupby("user")["new"].sum().ge(4).all()
    assert not recommend.recommend(model, fold.X_test["user"], exclude_seen=True).merge(fold.X_train, on=["user", "item"]).size


def test_impossible_requests_are_refused(bought):
    with pytest.raises(ValueError, match="nothing to judge by"):
        recommend.ranking_fold(bought, pd.Timestamp("2019-01-01"))
    with pytest.raises(ValueError, match="lower minimum_buyers"):
        recommend.make_history(bought, minimum_buyers=10_000)
    with pytest.raises(ValueError, match="reserve no more"):
        recommend.recommend(recommend.Popularity().fit(bought), [1], k=3, new_places=4)


def run(tmp_path, **parameters):
    parameters = {"workspace": str(tmp_path / "workspace"), "sign_offs": "none", "weeks": 4} | parameters
    papermill.execute_notebook(CASE, tmp_path / "out.ipynb", parameters=parameters, kernel_name="python3", progress_bar=False)
    return core.read_records(nbformat.read(tmp_path / "out.ipynb", as_version=4))


def test_case_on_a_small_sample(tmp_path):
    found = run(tmp_path, sample=150)
    assert {"recall_at_10", "ndcg_at_10", "map_at_10", "coverage", "ndcg_at_10_new"} <= found["results"].keys()
    scores = {row["candidate"]: row["ndcg_at_10"] for row in found["tested"]}
    assert scores["frequency_decayed"] > scores["popularity"] + 0.05, "what a household bought tells more than what all bought"


def test_case_on_a_table_of_ones_own(tmp_path):
    generator = np.random.default_rng(0)
    n = 9000
    reader = generator.integers(0, 120, n)
    frame = pd.DataFrame({
        "reader": reader, "book": [f"book {(r * 7 + g) % 60}" for r, g in zip(reader, generator.geometric(0.15, n), strict=True)],
        "when": pd.Timestamp("2024-01-01") + pd.to_timedelta(np.sort(generator.integers(0, 200 * 86400, n)), unit="s"),
    })  # fmt: skip
    folder = tmp_path / "library"
    folder.mkdir()
    frame.to_parquet(folder / "loans.parquet")
    (folder / "dataset.toml").write_text(
        '[tables]\nloans = "loans.parquet"\n[roles]\ninteractions = "loans"\nuser = "reader"\nitem = "book"\ntime = "when"\n'
    )
    found = run(tmp_path, dataset=str(folder))
    assert found["data"]["rows"] == n and 0 < found["results"]["ndcg_at_10"] <= 1
    assert all(card["limit"] is None for card in found["headline"])
