"""Contributions add up and are the true Shapley values; reasons say what the contributions say and name nothing protected."""

from itertools import combinations
from math import factorial

import numpy as np
import pandas as pd
import pytest
import xgboost
from pygam import LinearGAM, LogisticGAM, f, s
from sklearn.compose import make_column_transformer
from sklearn.ensemble import RandomForestRegressor
from sklearn.linear_model import LinearRegression, LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder, StandardScaler

from mlops_core.core import generator
from mlops_core.data import Column
from mlops_core.explain import (
    adverse_action,
    check_additivity,
    gam_effects,
    margin,
    mean_contributions,
    permutation_table,
    plot_dependence,
    plot_gam_effects,
    plot_summary,
    reason_codes,
    shapley,
    typical_row,
)


@pytest.fixture(scope="module")
def people():
    "400 rows of numbers, a category and a flag, and an outcome that depends on arrears and job, together with savings."
    random = generator(0, "test people")
    frame = pd.DataFrame({"arrears": random.integers(0, 5, 400), "savings": random.gamma(2, 1000, 400).round(),
                          "job": random.choice(["clerk", "cook", "none"], 400), "owner": random.random(400) < 0.4})  # fmt: skip
    log_odds = -1 + 0.8 * frame.arrears - frame.savings / 2000 + 0.7 * (frame.job == "none") * frame.arrears
    return frame, (random.random(400) < 1 / (1 + np.exp(-log_odds))).astype(int)


@pytest.fixture(scope="module")
def pipeline(people):
    encode = make_column_transformer((OneHotEncoder(), ["job"]), remainder=StandardScaler())
    return make_pipeline(encode, LogisticRegression()).fit(*people)


@pytest.fixture(scope="module")
def booster(people):
    frame, outcome = people
    model = xgboost.XGBClassifier(n_estimators=30, max_depth=3, n_jobs=1, enable_categorical=True)
    return model.fit(frame.astype({"job": "category"}), outcome)


class Interacting:
    "Multiplies, so that what one column adds depends on the others."

    def predict(self, frame):
        return frame["a"] * frame["b"] + frame["c"] ** 2 + (frame["word"] == "yes") * frame["a"]


class Additive:
    "Knows its contributions, each with a constant that says nothing about a person."

    def predict(self, frame):
        return 3 * frame["a"] + 100 - 2 * frame["b"] - 90

    def contributions(self, frame):
        return pd.DataFrame({"base": 0.0, "a": 3 * frame["a"] + 100, "b": -2 * frame["b"] - 90})


def exact_shapley(estimator, person, background):
    "The definition: every subset of columns, known ones from `person`, the others from each row of `background`."
    columns, count = list(background), background.shape[1]

    def value(known):
        return estimator.predict(background.assign(**{name: person[name] for name in known})).mean()

    found = {}
    for name in columns:
        others = [column for column in columns if column != name]
        subsets = [subset for size in range(count) for subset in combinations(others, size)]
        weights = [factorial(len(subset)) * factorial(count - len(subset) - 1) / factorial(count) for subset in subsets]
        found[name] = sum(w * (value([*subset, name]) - value(subset)) for w, subset in zip(weights, subsets, strict=True))
    return pd.Series({"base": value([]), **found})


# Shapley values


def test_sampled_orders_approach_the_definition():
    random = generator(0, "interacting")
    rows = pd.DataFrame(random.normal(size=(30, 3)), columns=["a", "b", "c"]).assign(word=random.choice(["yes", "no"], 30))
    expected = exact_shapley(Interacting(), rows.iloc[0], rows)
    found = shapley(Interacting(), rows[:1], rows, permutations=60).iloc[0]
    assert found[["base", "c"]].tolist() == pytest.approx(expected[["base", "c"]].tolist())  # c is additive: exact in any order
    assert found[expected.index].to_numpy(float) == pytest.approx(expected.to_numpy(), abs=0.1)


def test_two_columns_are_exact_in_one_order_and_back():
    rows = pd.DataFrame(generator(0, "two").normal(size=(20, 2)), columns=["a", "b"])
    model = type("Product", (), {"predict": lambda self, frame: frame["a"] * frame["b"]})()
    for row in range(3):
        found = shapley(model, rows.iloc[[row]], rows, permutations=1).iloc[0]
        assert found.to_numpy() == pytest.approx(exact_shapley(model, rows.iloc[row], rows).to_numpy())


def test_linear_model_gets_coefficient_times_distance():
    rows = pd.DataFrame(generator(0, "linear").normal(5, 2, size=(40, 3)), columns=["a", "b", "c"])
    model = LinearRegression().fit(rows, rows @ [1, -2, 3])
    found = shapley(model, rows[:5], rows)
    assert found[["a", "b", "c"]].to_numpy() == pytest.approx(((rows[:5] - rows.mean()) * [1, -2, 3]).to_numpy())
    assert found.base.to_numpy() == pytest.approx(model.predict(rows).mean())


def test_pipeline_with_categories_adds_up_on_raw_columns(people, pipeline):
    frame, _ = people
    found = shapley(pipeline, frame[:20], frame)
    probability = pipeline.predict_proba(frame[:20])[:, 1]
    assert list(found) == ["base", *frame] and found.index.equals(frame.index[:20])
    assert found.sum(axis=1).to_numpy() == pytest.approx(np.log(probability / (1 - probability)))


def test_same_seed_same_values_and_other_orders_with_another(people):
    frame, _ = people
    rows = frame.drop(columns="job")
    forest = RandomForestRegressor(5, random_state=0).fit(rows, rows.arrears * rows.owner * (rows.savings > 2000))
    one, same, other = (shapley(forest, rows[:3], rows[:40], seed=seed, permutations=1) for seed in (0, 0, 1))
    assert one.equals(same) and not np.allclose(one, other)


def test_trees_are_exact_and_take_categories(people, booster):
    frame = people[0].astype({"job": "category"})
    found = shapley(booster, frame[:50])
    assert found.sum(axis=1).to_numpy() == pytest.approx(booster.predict(frame[:50], output_margin=True), abs=1e-4)
    assert found.base.nunique() == 1


def test_trees_stopped_early_are_explained_as_they_predict(people):
    frame, outcome = people[0][["arrears", "savings"]], people[1]
    model = xgboost.XGBClassifier(n_estimators=200, early_stopping_rounds=3, n_jobs=1)
    model.fit(frame[:200], outcome[:200], eval_set=[(frame[200:], outcome[200:])], verbose=False)
    assert model.best_iteration < 100
    found = shapley(model, frame[200:])
    assert found.sum(axis=1).to_numpy() == pytest.approx(margin(model, frame[200:]), abs=1e-4)


def test_background_takes_the_constants_out():
    rows = pd.DataFrame({"a": [1.0, 2, 3, 6], "b": [0.0, 2, 4, 2]})
    raw, found = shapley(Additive(), rows), shapley(Additive(), rows, background=rows)
    assert raw.a.tolist() == [103, 106, 109, 118]
    assert found.a.tolist() == [-6, -3, 0, 9] and found.b.tolist() == [4, 0, -4, 0]
    assert found.base.to_numpy() == pytest.approx(Additive().predict(rows).mean())


def test_contributions_that_do_not_add_up_are_refused():
    class Wrong(Additive):
        def predict(self, frame):
            return super().predict(frame) + 0.5

    with pytest.raises(ValueError, match="miss the model's output by up to 0.0"):
        shapley(Wrong(), pd.DataFrame({"a": [1.0], "b": [1.0]}))


def test_check_additivity_knows_its_tolerance():
    table = pd.DataFrame({"base": [1.0, 1.0], "a": [2.0, np.nan]})
    assert check_additivity(table[:1], np.array([3.0005])).equals(table[:1])
    for output in ([3.01, 1.0], [3.0, np.nan]):
        with pytest.raises(ValueError, match="must add up"):
            check_additivity(table, np.array(output))


def test_shapley_refuses_what_it_cannot_do(people, pipeline):
    frame, _ = people
    for rows, background in ((frame[:5], None), (frame[:0], frame), (frame[:5], frame[:0]), (pd.concat([frame] * 3), frame)):
        with pytest.raises(ValueError, match="pass a sample of the training rows"):
            shapley(pipeline, rows, background)
    with pytest.raises(ValueError, match="differ in {'c'}"):
        shapley(Additive(), pd.DataFrame({"a": [1.0], "b": [1.0], "c": [1.0]}))
    with pytest.raises(ValueError, match="rename the column"):
        shapley(Additive(), pd.DataFrame({"a": [1.0], "b": [1.0], "base": [1.0]}))


def test_margin_of_certainty_is_finite_and_of_three_classes_refused(people):
    frame, _ = people
    sure = type("Sure", (), {"predict_proba": lambda self, rows: np.tile([0.0, 1.0], (len(rows), 1))})()
    assert margin(sure, frame[:2]) == pytest.approx([np.log((1 - 1e-12) / 1e-12)] * 2)
    three = LogisticRegression().fit(frame[["savings"]], frame.job)
    with pytest.raises(ValueError, match="a classifier of two classes"):
        margin(three, frame[["savings"]])


def test_own_margin_comes_first():
    calibrated = type("Calibrated", (Additive,), {"margin": Additive.predict, "predict": lambda self, frame: 1 / 0})()
    rows = pd.DataFrame({"a": [1.0], "b": [2.0]})
    assert shapley(calibrated, rows).sum(axis=1).tolist() == [9.0]


# pictures


def test_mean_contributions_are_sorted(people, booster):
    frame = people[0].astype({"job": "category"})
    found = mean_contributions(shapley(booster, frame))
    assert found.index[0] == "arrears" and found.is_monotonic_decreasing and "base" not in found


def test_plots_show_what_was_asked(people, booster):
    frame = people[0].astype({"job": "category"})
    frame.loc[:5, "savings"] = np.nan
    contributions = shapley(booster, frame)
    summary = plot_summary(contributions, frame, top=3).axes[0]
    assert [text.get_text() for text in summary.get_yticklabels()] == mean_contributions(contributions).index[:3][::-1].tolist()
    assert all(len(dots.get_offsets()) == 400 and not np.ma.is_masked(dots.get_offsets()) for dots in summary.collections)
    assert len(plot_dependence(contributions, frame, "savings").axes[0].collections[0].get_offsets()) == 400
    assert [text.get_text() for text in plot_dependence(contributions, frame, "job").axes[0].get_yticklabels()] == ["clerk", "cook", "none"]


def test_summary_of_one_row_and_of_a_column_that_does_nothing():
    contributions = pd.DataFrame({"base": [1.0], "a": [0.0]})
    assert plot_summary(contributions, pd.DataFrame({"a": [3]})).axes


# reasons


@pytest.fixture
def declined():
    contributions = pd.Series({"base": -1.0, "arrears": 0.83, "savings": 0.4, "job": 0.2, "owner": 0.1, "sex": 0.05, "age": -0.3})
    person = pd.Series({"arrears": 2, "savings": 12345.0, "job": "self_employed", "owner": False, "sex": "f", "age": np.nan}, dtype=object)
    typical = pd.Series({"arrears": 0, "savings": 50000.0, "job": "clerk", "owner": True, "sex": "m", "age": 40}, dtype=object)
    return contributions, person, typical


def test_reasons_in_words(declined):
    savings = Column("number", unit="EUR", description="Savings: at any bank")
    columns = {"arrears": Column("integer", unit="months in arrears"), "savings": savings}
    assert reason_codes(*declined, columns).reason.tolist() == [
        "arrears: 2 months in arrears (+0.83 log-odds; typical applicant: 0)",
        "Savings: 12,345 EUR (+0.40 log-odds; typical applicant: 50,000)",
        "job: self employed (+0.20 log-odds; typical applicant: clerk)",
        "owner: no (+0.10 log-odds; typical applicant: yes)",
        "all other columns together (-0.25 log-odds)",
        "where everybody starts (-1.00 log-odds)",
    ]


@pytest.mark.parametrize("top", [0, 1, 4, 9])
def test_reasons_add_up_and_only_name_what_raises_the_risk(declined, top):
    found = reason_codes(*declined, top=top)
    assert found.contribution.sum() == pytest.approx(declined[0].sum())
    assert len(found) == min(top, 5) + 2 and "age" not in found.column.tolist()


def test_a_protected_column_is_never_named(declined):
    with pytest.warns(UserWarning, match="protected columns .sex, owner."):
        found = reason_codes(*declined, protected=["sex", "owner", "marriage"], top=9)
    assert not found.reason.str.contains("sex|owner").any() and found.contribution.sum() == pytest.approx(declined[0].sum())
    assert "sex" not in adverse_action(found) and "owner" not in adverse_action(found)


def test_a_missing_value_is_said_to_be_missing(declined):
    contributions, person, typical = declined
    found = reason_codes(contributions.mask(contributions.index == "age", 2.0), person, typical)
    assert found.reason[0] == "age: not known (+2.00 log-odds; typical applicant: 40)"


def test_adverse_action_tells_reasons_without_arithmetic(declined):
    text = adverse_action(reason_codes(*declined, top=2)).split("\n")
    assert text[1:] == ["1. arrears: 2 (typical applicant: 0)", "2. savings: 12,345 (typical applicant: 50,000)"]
    assert "log-odds" not in "".join(text) and "No single entry" in adverse_action(reason_codes(*declined, top=0))


def test_typical_row_takes_values_that_occur():
    words, flags = ["a", "b", "b", None], [True, False, False, False]
    frame = pd.DataFrame({"n": [1, 2, 5, 9], "x": [0.5, np.nan, 1.5, 2.5], "word": words, "flag": flags})
    found = typical_row(frame)
    assert found.tolist() == [2, 1.5, "b", False] and isinstance(found["flag"], bool | np.bool_)


# additive models, permutation


def test_gam_effects_are_pygams_up_to_a_constant(people):
    frame, outcome = people
    codes = frame[["arrears", "savings", "job"]].assign(job=frame.job.astype("category").cat.codes)
    gam = LogisticGAM(s(0, n_splines=5) + s(1, n_splines=6) + f(2)).fit(codes, outcome)
    found = gam_effects(gam, list(codes), {"job": ["clerk", "cook", "none"]}, points=30)
    for number, name in enumerate(["arrears", "savings"]):
        part, pygams = found[found.term == name], gam.partial_dependence(number, gam.generate_X_grid(number, n=30))
        assert np.ptp(part.effect.to_numpy(float) - pygams) < 1e-9 and abs(part.effect.mean()) < 1e-9
    assert found.value[found.term == "job"].tolist() == ["clerk", "cook", "none"]
    assert (found.low < found.high).all() and len(plot_gam_effects(found).axes) == 3


def test_gam_effects_average_to_nothing_over_the_frame(people):
    frame, outcome = people[0][["savings"]], people[1]
    gam = LogisticGAM(s(0, n_splines=6)).fit(frame, outcome)
    found = gam_effects(gam, ["savings"], frame=frame, points=400)
    at_rows = np.interp(frame.savings, found.value.astype(float), found.effect)
    assert abs(at_rows.mean()) < 0.02
    assert (found.value.min(), found.value.max()) == pytest.approx(tuple(frame.savings.quantile([0.01, 0.99])))


def test_gam_band_covers_the_true_curve():
    random = generator(0, "gam band")
    inside = []
    for _ in range(20):
        x = random.uniform(-3, 3, 200)
        gam = LinearGAM(s(0)).fit(x[:, None], np.sin(x) + random.normal(0, 0.3, 200))
        found = gam_effects(gam, ["x"], frame=x[:, None])
        truth = np.sin(found.value.astype(float)) - np.sin(x).mean()
        inside.append(((found.low <= truth) & (truth <= found.high)).mean())
    assert 0.85 < np.mean(inside) <= 1


def test_permutation_finds_what_the_model_needs(people, pipeline):
    frame, outcome = people
    found = permutation_table(pipeline, frame, outcome, seed=1, repeats=3)
    assert found.column[0] == "arrears" and set(found.column) == set(frame) and found.importance.is_monotonic_decreasing
    assert found.equals(permutation_table(pipeline, frame, outcome, seed=1, repeats=3))
