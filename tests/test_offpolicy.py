"""A policy is judged from the log of another, in the middle right and with intervals that hold; what the log cannot say is refused."""

import numpy as np
import pandas as pd
import pytest
from sklearn.linear_model import LinearRegression, LogisticRegression

from mlops_core.core import generator
from mlops_core.log import Prediction, PredictionLog, record_outcomes
from mlops_core.offpolicy import (
    OffPolicyError,
    OffPolicyRefused,
    effective_sample_size,
    expected_rewards,
    logged_decisions,
    off_policy,
    policy_weights,
)

ACTIONS = ["a", "b", "c"]


def world(seed=0, people=500, each=2):
    "Decisions of a champion, the policy of a challenger and what it truly earns: the reward depends on a trait of the person and on the action."
    random = generator(seed, "world")
    trait = np.repeat(random.random(people), each)
    champion = np.column_stack([0.6 - 0.4 * trait, 0.2 + 0.2 * trait, 0.2 + 0.2 * trait])
    target = np.column_stack([0.1 + 0 * trait, 0.1 + 0.7 * trait, 0.8 - 0.7 * trait])
    chance = np.column_stack([0.3 + 0 * trait, 0.1 + 0.6 * trait, 0.5 - 0.3 * trait])
    shown = (champion.cumsum(axis=1) < random.random((len(trait), 1))).sum(axis=1)
    rows = np.arange(len(trait))
    reward = (random.random(len(trait)) < chance[rows, shown]).astype(float)
    subjects = np.repeat(np.arange(people), each).astype(str)
    decisions = pd.DataFrame({"subject": subjects, "action": np.array(ACTIONS)[shown], "propensity": champion[rows, shown], "reward": reward})
    return decisions, pd.DataFrame(target, columns=ACTIONS), (target * chance).sum(axis=1).mean(), pd.DataFrame({"trait": trait})


def test_the_three_estimates_are_what_their_formulas_say():
    decisions = pd.DataFrame({"subject": list("uvwx"), "action": list("abab"), "propensity": [0.5, 0.5, 0.25, 0.75], "reward": [1.0, 0.0, 1.0, 1.0]})
    target = pd.DataFrame({"a": [0.5, 0.5, 0.25, 0.25], "b": [0.5, 0.5, 0.75, 0.75]})
    assert policy_weights(decisions, target).tolist() == [1, 1, 1, 1] and effective_sample_size([3, 0, 0]) == 1
    target.loc[0] = [0.8, 0.2]
    weights = [1.6, 1, 1, 1]
    model = pd.DataFrame({"a": [0.9, 0.5, 0.5, 0.5], "b": [0.1, 0.2, 0.4, 0.6]})
    found = off_policy(decisions, target, model, least=1).set_index("estimate")["value"]
    assert found["inverse propensity"] == pytest.approx((1.6 + 1 + 1) / 4)
    assert found["self-normalised"] == pytest.approx((1.6 + 1 + 1) / sum(weights))
    direct = [0.8 * 0.9 + 0.2 * 0.1, 0.35, 0.25 * 0.5 + 0.75 * 0.4, 0.25 * 0.5 + 0.75 * 0.6]
    errors = [1.6 * 0.1, -0.2, 0.5, 0.4]
    assert found["doubly robust"] == pytest.approx(np.mean(np.add(direct, errors)))


def test_intervals_hold_the_truth_as_often_as_they_say_and_two_of_them_are_narrower():
    hits, widths = [], []
    for seed in range(200):
        decisions, target, truth, features = world(seed)
        table = off_policy(decisions, target, expected_rewards(LinearRegression(), features, decisions, ACTIONS))
        hits.append(table["low"].le(truth) & table["high"].ge(truth))
        widths.append(table["high"] - table["low"])
    held, wide = np.mean(hits, axis=0), np.mean(widths, axis=0)
    assert ((held > 0.90) & (held < 0.99)).all(), "95 % of 200, within three standard errors"
    assert wide[1] < wide[0] and wide[2] < wide[0]


def test_a_wrong_model_does_not_spoil_the_doubly_robust_estimate():
    far = []
    for seed in range(60):
        decisions, target, truth, _ = world(seed)
        nonsense = pd.DataFrame(0.9, target.index, target.columns)
        far.append(off_policy(decisions, target, nonsense)["value"].iloc[-1] - truth)
    assert abs(np.mean(far)) < 3 * np.std(far) / np.sqrt(len(far))


def test_decisions_about_one_person_count_together():
    decisions, target, _, _ = world(people=400, each=1)
    four = pd.concat([decisions] * 4, ignore_index=True)
    once, often = off_policy(decisions, target), off_policy(four, pd.concat([target] * 4, ignore_index=True))
    pd.testing.assert_frame_equal(once.drop(columns="effective"), often.drop(columns="effective"))


def test_an_effective_sample_of_two_in_ten_thousand_is_refused():
    random = generator(0, "rare")
    propensity = np.array([0.9998, 0.0002])
    shown = (random.random(10_000) < 0.0002).astype(int)
    shown[:2] = 1
    decisions = pd.DataFrame({"subject": range(10_000), "action": np.array(["usual", "rare"])[shown], "propensity": propensity[shown], "reward": 1.0})
    target = pd.DataFrame({"usual": 0.0, "rare": 1.0}, index=decisions.index)
    assert effective_sample_size(policy_weights(decisions, target)) < 10
    with pytest.raises(OffPolicyRefused, match=r"of 10000 decisions, at least 100 are needed"):
        off_policy(decisions, target)


def test_probabilities_that_were_not_those_of_the_draw_are_refused():
    decisions, target, _, _ = world(people=3000)
    off_policy(decisions, target)
    with pytest.raises(OffPolicyRefused, match="should have 1"):
        off_policy(decisions.assign(propensity=1 / 3), target)


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [(lambda d, t: (d.assign(propensity=np.nan), t), "explore a little"), (lambda d, t: (d.assign(propensity=0.0), t), "explore a little"),
     (lambda d, t: (d, t[["a", "b"]]), "c: chosen, and no column"), (lambda d, t: (d, t * 2), "sum 1"), (lambda d, t: (d, t.head(3)), "for each of")],
)  # fmt: skip
def test_what_cannot_be_weighed_is_named(spoil, reason):
    decisions, target, _, _ = world()
    with pytest.raises(OffPolicyError, match=reason):
        off_policy(*spoil(decisions, target))


def test_the_model_of_rewards_never_saw_the_person():
    decisions, _, _, features = world(people=60)
    found = expected_rewards(LogisticRegression(C=1e6), features, decisions, ACTIONS)
    changed = decisions.assign(reward=decisions["reward"].where(decisions["subject"] != "7", 1 - decisions["reward"]))
    again = expected_rewards(LogisticRegression(C=1e6), features, changed, ACTIONS)
    of_seven = (decisions["subject"] == "7").to_numpy()
    assert np.allclose(found[of_seven], again[of_seven]) and not np.allclose(found[~of_seven], again[~of_seven])


def test_decisions_come_from_the_log_with_the_outcomes_that_have_come(operations):
    with PredictionLog() as writer:
        for number, (item, propensity) in enumerate([("tea", 0.5), ("jam", 0.25), ("tea", None), ("tea", 0.5)]):
            answer = Prediction("slot", f"r{number}", 1, "champion", subject=f"h{number}", output=f'{{"item": "{item}"}}', propensity=propensity)
            writer.write([answer])
    assert logged_decisions("slot", "item").empty
    record_outcomes("slot", pd.DataFrame({"request_id": ["r0", "r1", "r2"], "value": [1.0, 0.0, 1.0]}))
    found = logged_decisions("slot", "item")
    assert found[["subject", "action", "reward"]].to_numpy().tolist() == [["h0", "tea", 1.0], ["h1", "jam", 0.0], ["h2", "tea", 1.0]]
    assert found["propensity"].iloc[:2].tolist() == [0.5, 0.25] and np.isnan(found["propensity"].iloc[2])
