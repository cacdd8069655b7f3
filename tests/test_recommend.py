"""Lists know nothing of the future, repeat themselves, and the case runs on anybody's purchases."""

import nbformat
import numpy as np
import pandas as pd
import papermill
import pytest

from mlops_core import core, recommend
from mlops_core.data import load_dataset

CASE = core.home() / "nbs" / "cases" / "recommendation.ipynb"
CUT = pd.Timestamp("2017-12-18")


@pytest.fixture(scope="module")
def bought():
    return recommend.sample_users(recommend.purchases(load_dataset("grocery")), 150, seed=0)


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
    parameters = {"workspace": str(tmp_path / "workspace")} | parameters
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
