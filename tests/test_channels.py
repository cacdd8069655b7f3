"""Lists over HTTP: for a household with a basket, from last night, for strangers, and when the ranker fails or is slow."""

import functools
import time
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from mlops_core import audit, channels, core, lists, package, recommend, rollout, scoring, traffic
from mlops_core.artifact import ArtifactError
from mlops_core.log import joined, record_outcomes
from mlops_core.package import Recipe
from mlops_core.release import smoke_tests
from mlops_core.serve import LocalServer, make_app

WHO = {"actor": "cho", "role": "devops"}


def shop(folder):
    """A shop of 60 households in two tastes, as a data set folder."""
    folder.mkdir()
    random, days = np.random.default_rng(0), pd.date_range("2026-01-01", periods=84)
    goods = {taste: [f"{taste}{n}" for n in range(12)] for taste in ("red", "blue")}
    rows = [(house, item, day) for house in range(60) for day in days[house % 4 :: 4]
            for item in random.choice(goods["red" if house % 2 else "blue"], 4, replace=False)]  # fmt: skip
    pd.DataFrame(rows, columns=["house", "thing", "day"]).to_csv(folder / "sales.csv", index=False)
    (folder / "dataset.toml").write_text("""
        tables = {sales = "sales.csv"}
        roles = {interactions = "sales", user = "house", item = "thing", time = "day"}
        [columns.sales.house]
        type = "integer"
        min = 0
        [columns.sales.thing]
        type = "text"
        [columns.sales.day]
        type = "time"
    """)
    return str(folder)


def version_of(folder, days, **change):
    case = replace(recommend.recommendation_case(k=5), serving=channels.list_serving(k=5, **change))
    build = functools.partial(recommend.recommendation_fold, minimum_buyers=3)
    recipe = Recipe(folder, build, recommend.PersonalFrequency(days, minimum_buyers=3), 0)
    fold = recipe.fold()
    return package.package_model(case, recipe.fit(fold), recipe, fold, {"inputs": [{"column": "user", "source": "sales.house"}]},
                                 actor="ana", role="data_scientist")  # fmt: skip


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLOPS_WORKSPACE", str(tmp_path_factory.mktemp("workspace")))
        patch.delenv("MLOPS_OPS_URL", raising=False)
        folder = shop(tmp_path_factory.mktemp("data") / "shop")
        versions = [version_of(folder, days) for days in (None, 20)]
        for one in versions:
            audit.append("approved", one.subject, {"manifest": one.manifest}, **WHO)
        audit.append("champion", versions[0].subject, {"manifest": versions[0].manifest}, **WHO)
        app = make_app("recommendation", auth=False)
        with LocalServer(app) as client:
            yield client, versions, app


def ask(client, *rows, **more):
    said = client.post("/v1/predict", json={"rows": list(rows), **more})
    assert said.status_code == 200, said.text
    return said.json()["answers"]


def items(answer):
    return [one["item"] for one in answer["items"]]


def test_lists_are_the_models_own_and_each_place_is_logged(served):
    client, (version, _), _ = served
    first, again, other = ask(client, {"user": 1}, {"user": 1, "basket": ["red3"]}, {"user": 2}, request_id="r1")
    expected = version.answer(pd.DataFrame({"user": [1, 2]})).groupby("user")["item"].agg(list)
    assert (items(first), items(other)) == (expected[1], expected[2]) and first["fallback"] is None and first["version"] == 1
    assert "red3" not in items(again) and len(items(again)) == 5
    rows = joined("recommendation").query("request_id == 'r1'")
    assert len(rows) == 15 and rows["rank"].tolist() == [1, 2, 3, 4, 5] * 3
    assert set(rows["propensity"]) == {1.0} and set(rows["subject"]) == {"1", "2"}
    assert [one["position"] for one in other["items"]] == [20_000, 20_001, 20_002, 20_003, 20_004]
    assert client.post("/v1/outcomes", json={"outcomes": [{"request_id": "r1", "position": 20_001, "value": 1}]}).json()["applied"] == 1


def test_a_repeated_id_gets_the_first_lists_and_other_rows_a_refusal(served):
    client, *_ = served
    first = ask(client, {"user": 4}, {"user": 5}, request_id="twice")
    assert ask(client, {"user": 4}, {"user": 5}, request_id="twice") == first
    assert client.post("/v1/predict", json={"rows": [{"user": 5}, {"user": 4}], "request_id": "twice"}).status_code == 409


def test_strangers_get_what_is_popular_and_are_told(served):
    client, (version, _), _ = served
    (answer,) = ask(client, {"user": 4711})
    history = version.model.history_
    assert answer["fallback"] == "popular items: unknown user" and set(items(answer)) <= set(history.items[np.argsort(-history.popular)[:12]])


def test_the_lists_of_the_night_are_sent_until_they_expire(served, monkeypatch):
    client, (version, _), _ = served
    (answer,) = ask(client, {"user": 7, "stored": True})
    assert answer["fallback"] == "popular items: no stored list" and len(items(answer)) == 5
    assert lists.compute_lists("recommendation", hours=2, **WHO) == 60
    (answer,) = ask(client, {"user": 7, "stored": True})
    assert answer["fallback"] is None and items(answer) == version.answer(pd.DataFrame({"user": [7]}))["item"].tolist()
    noted = audit.entries(event="lists")["payload"].iloc[-1]
    assert noted["lists"] == 60
    monkeypatch.setattr(lists, "now", lambda: core.now() + pd.Timedelta("3h"))
    (answer,) = ask(client, {"user": 7, "stored": True})
    assert "stored list expired at" in answer["fallback"]


def test_a_ranker_that_fails_or_is_slow_is_stood_in_for(served):
    client, (version, _), _ = served
    live = scoring.make_live(version, scoring.RequestLimits())
    calls = []

    def slow(model, rows):
        calls.append(len(rows))
        time.sleep(1)

    for broken, said in ((lambda model, rows: 1 / 0, "failed: ZeroDivisionError"), (slow, "slow: over 0.1 s"), (slow, "slow: over 0.1 s")):
        loaded = replace(version, serving=replace(version.serving, answer=broken))
        if broken is not slow or not calls:
            route = scoring.Route(replace(live, loaded=loaded, deadline=scoring.Deadline(0.1)))
        rows = [live.ask(rows=[{"user": number}]).rows[0] for number in (1, 2)]
        begin = time.perf_counter()
        found = scoring.answered_by_champion(route, rows, np.zeros(2, dtype=bool), None)
        assert time.perf_counter() - begin < 0.8 and [len(one) for one in found] == [5, 5] and {one[0]["fallback"] for one in found} == {said}
    assert len(calls) == 1, "while it hangs, it is not asked again"


@pytest.mark.parametrize("row, field", [
    ({}, "rows.0.user"), ({"user": "seven"}, "rows.0.user"), ({"user": -1}, "rows.0.user"), ({"user": 1, "basket": "milk"}, "rows.0.basket"),
    ({"user": 1, "baskets": []}, "rows.0.baskets"),
])
def test_a_bad_request_is_refused_with_its_field(served, row, field):
    client, *_ = served
    said = client.post("/v1/predict", json={"rows": [row]})
    assert said.status_code == 422 and field in [one["field"] for one in said.json()["errors"]]


def test_a_case_without_meters_takes_no_readings(served):
    client, *_ = served
    assert client.post("/v1/readings", json={"readings": [{"time": "2026-01-01"}]}).status_code == 404


def test_the_smoke_tests_pass(served, monkeypatch):
    _, (version, _), _ = served
    with LocalServer(make_app("recommendation")) as client:
        found = smoke_tests(version, str(client.base_url), **WHO)
    assert found["passed"].all(), found.to_string()


def test_a_rollout_of_lists_is_judged_by_what_is_shown_and_bought(served, monkeypatch):
    client, *_ = served
    running = traffic.move(rollout.start("recommendation", 2, **WHO), step=2)
    try:
        deadline = time.monotonic() + 60
        while "mlops_challenger_share 0.5" not in client.get("/metrics").text or len(client.get("/v1/models").json()["models"]) < 2:
            assert time.monotonic() < deadline
            time.sleep(0.05)
        versions = [ask(client, {"user": user}, request_id=f"c{user}")[0]["version"] for user in range(60)]
        assert versions == [2 if traffic.place(str(user), running.salt) < 0.5 else 1 for user in range(60)]
        assert len(ask(client, {"user": 1}, {"user": 2}, {"user": 3}, request_id="three")) == 3
        while len(rollout.paired(running)[0]) < 315:  # also all rows of a request that has several, whoever answered which
            assert time.monotonic() < deadline
            time.sleep(0.05)
        table = rollout.judge(running).set_index("check")
        assert table.loc["metric", "verdict"] == "too few" and 0 < table.loc["disagreement", "value"] < 0.5 and table.loc["errors", "value"] == 0
        # planted: whoever was answered by the challenger bought nothing, the others the first two of five
        values = [{"request_id": f"c{user}", "position": place, "value": float(version == 1 and place < 2)}
                  for user, version in enumerate(versions) for place in range(5)]  # fmt: skip
        record_outcomes("recommendation", pd.DataFrame(values))
        table = rollout.judge(running).set_index("check")
        assert table.loc["metric", "verdict"] == "breach" and table.loc["metric", "value"] == pytest.approx(-0.4)
    finally:
        rollout.abort("recommendation", "the test is over", **WHO)


def test_who_has_no_lists_is_told(served, monkeypatch):
    _, (version, _), _ = served
    monkeypatch.setattr(lists, "load_model", lambda name: replace(version, serving=None))
    with pytest.raises(ArtifactError, match="no lists to compute"):
        lists.compute_lists("recommendation", **WHO)
