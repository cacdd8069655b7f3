"""The grocer's production: what an incident does to purchases and outcomes, what is learned again, and what monitoring sees of it."""

import numpy as np
import pandas as pd
import pytest

from mlops_core import audit, grocer, health, monitor
from mlops_core.data import load_dataset
from mlops_core.govern import CheckName, GovernanceError, runbooks
from mlops_core.log import joined
from mlops_core.loop import replay
from mlops_core.recommend import Habits, PersonalFrequency
from mlops_core.rehearsal import rehearsal
from mlops_core.watching import detection_rates, watch

RULES = grocer.Settings(k=5, minimum_buyers=3)


@pytest.fixture(scope="module")
def shop(tmp_path_factory):
    """A user's own data set: 60 households with names, a time zone, and no products table; each buys mostly its own six of forty goods."""
    folder, random = tmp_path_factory.mktemp("data") / "shop", np.random.default_rng(0)
    folder.mkdir()
    goods = [f"good {n}" for n in range(40)]
    own = {f"house {n}": random.choice(goods, 6, replace=False) for n in range(60)}
    days = pd.date_range("2026-01-01", periods=140, tz="UTC")
    rows = [(house, item, day + pd.Timedelta(hours=int(random.integers(24)))) for house, theirs in own.items()
            for day in days[random.random(140) < 0.35] for item in random.choice(theirs, 3, replace=False)]  # fmt: skip
    pd.DataFrame(rows, columns=["house", "thing", "when"]).to_parquet(folder / "sales.parquet")
    (folder / "dataset.toml").write_text("""
        tables = {sales = "sales.parquet"}
        roles = {interactions = "sales", user = "house", item = "thing", time = "when"}
    """)
    with pytest.warns(UserWarning):
        return load_dataset(str(folder))


@pytest.fixture(scope="module")
def frame(shop):
    return grocer.baskets(shop)


def change(name, size, frame, begins="2026-03-01"):
    return grocer.befall_purchases(grocer.GROCER_INCIDENTS[name], size, frame, pd.Timestamp(begins))


def test_an_incident_changes_what_it_says_and_nothing_before_it_begins(frame):
    late = frame["time"] >= "2026-03-01"
    for name in grocer.GROCER_INCIDENTS:
        changed = change(name, 0.5, frame)
        assert changed["item"][~late].equals(frame["item"][~late]) and changed[["user", "time"]].equals(frame[["user", "time"]])
    moved = change("popularity_shock", 0.5, frame)
    share = (moved["item"] != frame["item"])[late].mean()
    theirs = moved[late & (moved["item"] != frame["item"])].groupby("user")["item"].nunique()
    assert 0.35 < share < 0.55 and theirs.max() <= 3, "half move (some to what they bought anyway), to three goods at most for a household"
    gone = change("catalogue_change", 1.0, frame)
    assert gone["item"][late].str.endswith(" (new)").all()
    for name in ("none", "lost_tracking", "stale_lists", "bad_successor"):
        assert change(name, 1.0, frame).equals(frame), "these change no purchase"


def test_visits_are_lost_whole(frame):
    seen = grocer.seen_visits(frame, 0.4)
    visits = frame.assign(seen=seen, day=frame["time"].dt.normalize()).groupby(["user", "day"])["seen"].nunique()
    assert (visits == 1).all() and 0.5 < seen.mean() < 0.7
    assert grocer.seen_visits(frame, 0.0).all() and not grocer.seen_visits(frame, 1.0).any()


def test_a_list_is_judged_by_the_days_after_it_alone():
    bought = pd.DataFrame({"user": ["a"] * 4, "item": ["tea", "tea", "salt", "oil"],
                           "time": [pd.Timestamp(day) for day in ("2026-01-01", "2026-01-05", "2026-01-18 11:00", "2026-01-19")]})  # fmt: skip
    lists = pd.DataFrame({"user": "a", "item": ["tea", "oil", "salt"], "time": pd.Timestamp("2026-01-04 12:00")})
    judged = grocer.judge_lists(lists, bought.sort_values("time"), days=14, k=3)
    assert judged["bought"].tolist() == [True, False, True] and (judged["missing"] == 0).all()
    nobody = grocer.judge_lists(lists.assign(user="b"), bought, days=14, k=3)
    assert not nobody["bought"].any() and (nobody["missing"] == 0).all()


def test_what_left_the_shelf_is_not_learned_and_what_is_rare_is_kept(frame):
    gone = frame[(frame["item"] != "good 3") | (frame["time"] < "2026-03-01")]
    kept = grocer.on_the_shelf(gone, gone["time"].max())
    assert "good 3" in set(gone["item"]) and set(gone["item"]) - set(kept["item"]) == {"good 3"}
    once = pd.concat([gone, gone.head(1).assign(item="a light bulb")])
    assert "a light bulb" in set(grocer.on_the_shelf(once, gone["time"].max())["item"]), "one purchase says nothing of the next"


def test_what_was_reported_while_tracking_was_broken_is_left_out(frame):
    delay, days = pd.Timedelta(days=14), frame["time"].dt.normalize()
    begin, end = pd.Timestamp("2026-02-01"), pd.Timestamp("2026-03-10")
    kept = grocer.whole_purchases(frame, [(begin, end)], delay, delay)["time"]
    assert not ((kept >= begin + delay) & (kept < end)).any() and (kept < begin + delay).sum() == (frame["time"] < begin + delay).sum()
    assert kept.max() == frame["time"].max()
    late = grocer.whole_purchases(frame, [(pd.Timestamp("2026-04-20"), None)], delay, delay)["time"]
    assert late.max() < pd.Timestamp("2026-05-04") <= days.max(), "what would judge a version is whole, too"


def test_habits_follow_a_fashion_sooner_than_a_household_does(frame):
    fashion = (frame["time"] >= "2026-03-01") & (np.random.default_rng(0).random(len(frame)) < 0.3)
    known = frame.assign(item=frame["item"].mask(fashion, "the new one"))
    known = known[known["time"] < "2026-03-06"]
    held = {}
    for name, model in (("habits", Habits(40.0, 14, 3)), ("own", PersonalFrequency(40.0, minimum_buyers=3))):
        lists = grocer.recommend(model.fit(known), np.sort(frame["user"].unique()), 5)
        held[name] = lists.loc[lists["item"] == "the new one", "user"].nunique()
    assert held["habits"] > 1.5 * held["own"]


def test_a_slipped_channel_gives_a_share_of_the_users_what_is_popular(frame):
    model = Habits(40.0, 14, 3).fit(frame)
    rows = pd.DataFrame({"user": np.sort(frame["user"].unique()), "basket": [[] for _ in range(60)], "stored": False})
    right = grocer.answer_shoppers(model, rows, "recommendation", k=5)
    assert grocer.answer_slipped(model, rows, 0.0, "recommendation", k=5).equals(right)
    slipped = grocer.answer_slipped(model, rows, 0.5, "recommendation", k=5)
    same = [slipped[slipped["row"] == row]["item"].tolist() == right[right["row"] == row]["item"].tolist() for row in range(60)]
    assert slipped.groupby("row").size().eq(5).all() and 15 < sum(same) < 50
    assert grocer.answer_slipped(model, rows, 1.0, "recommendation", k=5).groupby("row")["item"].agg(tuple).nunique() == 1


def test_too_short_a_file_is_refused_and_a_short_one_played_as_far_as_it_goes(frame):
    start, weeks = grocer.played_span(frame, 50, 14)
    assert weeks == 9 and start + pd.Timedelta(days=7 * weeks + 14) == frame["time"].max().normalize()
    with pytest.raises(ValueError, match="too few to play a week"):
        grocer.played_span(frame[frame["time"] < "2026-03-01"], 4, 14)


def test_lost_visits_are_seen_as_what_they_are_and_nothing_is_trained(shop):
    with rehearsal():
        production = grocer.grocer_production(shop, "lost_tracking", 0.6, begins=4, weeks=6, households=0, settings=RULES)
        table = replay(production, progress=False)
        log = joined("recommendation")
        said = [payload["because"] for payload in audit.entries("recommendation", event="diagnosed")["payload"]]
    assert (table["live"] == 1).all() and "volume" in ", ".join(table["alerts"])
    assert any("tell the feed's owner: purchases: fell away" in done for done in table["done"]) and "the feed is mended" in set(table["done"])
    assert not any(because.startswith("performance") and "broken then" not in because for because in said)
    assert table["wrong"].tolist().index(True) == 4 and not table["wrong"].iloc[-1], "and it is mended"
    pushed = log["input"].str.contains('"stored":true')
    assert 0.4 < pushed.mean() < 0.6 and (log["fallback"] == "").all() and log["subject"].nunique() == 60


def test_lists_that_are_not_computed_fall_back_and_say_so(shop):
    with rehearsal():
        table = replay(grocer.grocer_production(shop, "stale_lists", begins=2, weeks=2, settings=RULES), progress=False)
        log = joined("recommendation")
        settled = monitor.look("recommendation")
    late = log["request_id"].str.match("round[23]-")
    pushed = log["input"].str.contains('"stored":true')
    assert log["fallback"][late & pushed].str.contains("popular items: stored list expired").all() and (log["fallback"][~late | ~pushed] == "").all()
    assert (table["live"] == 1).all() and "failures" in table["alerts"].iloc[-1] and len(settled.verdicts)


@pytest.fixture(scope="module")
def drawn(shop):
    with rehearsal():
        yield grocer.grocer_watched(shop, households=0, periods=6, begins=3, settings=RULES, weeks=6)


def test_drawn_weeks_are_quiet_unless_something_is_planted(drawn):
    rates = detection_rates(drawn, [(grocer.GROCER_INCIDENTS[name], size) for name, size in (("lost_tracking", 0.6), ("stale_lists", 1.0))], quiet=4,
                            each=2).set_index("incident")  # fmt: skip
    assert rates.loc["none", "seen"] <= 0.05
    assert rates.loc[["lost_tracking", "stale_lists"], "seen"].eq(1).all()
    assert rates.loc["lost_tracking", "dearer"] < rates.loc["none", "dearer"] + 0.3 < rates.loc["stale_lists", "dearer"], "households are fine"


def test_the_draws_outcomes_are_late_and_are_what_was_bought(drawn):
    rows = drawn.draw(5, grocer.GROCER_INCIDENTS["none"], 0.0)
    again = drawn.draw(5, grocer.GROCER_INCIDENTS["none"], 0.0)
    assert rows.equals(again) and (rows["received_at"] - rows["time"] == pd.Timedelta(days=14)).all()
    assert rows.groupby(["subject", "request_id"]).size().eq(5).all() and set(rows["value"]) == {0.0, 1.0}
    lost = drawn.draw(5, grocer.GROCER_INCIDENTS["lost_tracking"], 0.9)
    late = rows["time"] >= drawn.start + 3 * drawn.step
    assert lost["value"][late].sum() < 0.5 * rows["value"][late].sum() and lost["cost"].equals(rows["cost"]), "the households bought all the same"


def test_signals_are_compared_on_the_same_draws(drawn, shop):
    table = grocer.compare_signals(drawn, [(grocer.GROCER_INCIDENTS["lost_tracking"], 0.6)], quiet=2, each=2).set_index(["incident", "signal"])
    assert table.loc[("lost_tracking", "volume"), "seen"] == 1 and table.loc[("lost_tracking", "volume"), "periods"] == 0
    assert table.loc[("lost_tracking", "failures"), "seen"] == 0 and table.loc[("none", "volume"), "seen"] == 0


def test_drift_is_asked_week_by_week_of_the_real_calendar(shop):
    table = grocer.drift_in_calendar(shop, [(grocer.GROCER_INCIDENTS["catalogue_change"], 1.0)], weeks=4)
    assert table.groupby("incident")["week"].nunique().tolist() == [4, 4] and set(table["incident"]) == {"none", "catalogue_change"}


def test_the_real_calendar_is_drawn_in_its_order(drawn):
    rows = drawn.draw(0, grocer.GROCER_INCIDENTS["none"], 0.0, ordered=True)
    assert rows["subject"].nunique() == 60 and rows.equals(drawn.draw(9, grocer.GROCER_INCIDENTS["none"], 0.0, ordered=True))


def test_age_costs_are_against_a_young_version_in_the_same_week(shop):
    table = grocer.staleness(shop, households=0, ages=(0, 2), weeks=3, settings=RULES)
    costs = grocer.age_costs(table)
    by_age = table.pivot(index="week", columns="age", values="missing")
    assert costs["more"].tolist() == [0.0, pytest.approx((by_age[2] - by_age[0]).mean())] and costs["if_every"].iloc[1] == costs["more"].iloc[1] / 2


# the check volume, and lists in monitoring


def test_a_feed_that_stops_altogether_is_seen(tmp_path, monkeypatch):
    monkeypatch.setenv("MLOPS_WORKSPACE", str(tmp_path))
    monday = pd.Timestamp("2026-06-01")
    assert monitor._volume("recommendation", monday, 7)[0] == [], "of a model without feeds nothing is said"
    for week in range(12):
        for feed, rows in (("purchases", 1000), ("clicks", 500)):
            monitor.report_rows("recommendation", feed, rows + week, monday - pd.Timedelta(days=7 * week + 1))
    checks, moved = monitor._volume("recommendation", monday, 7)
    assert checks[0]["verdict"] == "pass" and moved.empty
    checks, moved = monitor._volume("recommendation", monday + pd.Timedelta(days=7), 7)
    assert [one["verdict"] for one in checks] == ["breach"]
    assert set(moved["column"]) == {"purchases", "clicks"} and set(moved["verdict"]) == {"fell away"}


@pytest.mark.parametrize(("before", "newest", "verdict"), [(13, 990, "pass"), (13, 840, "breach"), (4, 100, "too few"), (13, 1500, "pass")])
def test_volume_is_held_against_the_weeks_before(before, newest, verdict):
    counts = pd.Series([1000.0, 1010, 990] * 5).tail(before)
    assert monitor.judge_volume("purchases", pd.concat([counts, pd.Series([newest])]))["verdict"] == verdict


def test_the_new_check_has_an_owner():
    assert "volume" in CheckName.__args__ and runbooks()["volume"].owner == "data_engineer"
    with pytest.raises((GovernanceError, ValueError)):
        type(next(iter(runbooks().values())))(severity="high", owner="data_engineer", do="too short")


def test_lists_are_measured_by_whom_they_were_given_to_and_each_time_anew():
    rows = pd.DataFrame({"output": ['{"item": "tea"}', '{"item": "oil"}'] * 2, "subject": "a", "request_id": ["r1", "r1", "r2", "r2"],
                         "value": [1.0, 0.0, 1.0, 1.0]})  # fmt: skip
    assert health.measure(None, health.answered(rows)) == {"hits_per_list": 1.5, "hit_rate": 1.0}


def test_what_a_stand_in_answered_is_not_held_against_the_version(drawn):
    rows = drawn.draw(7, grocer.GROCER_INCIDENTS["stale_lists"], 1.0)
    performance = [alarm for alarm in watch(drawn, rows)["check"] if alarm == "performance"]
    assert not performance and (rows["fallback"] != "").any()
