"""Speed of this package against named alternatives, as ratios measured in one run: `make bench`."""

import time

import numpy as np
import pandas as pd
import xgboost
from sklearn.metrics import ndcg_score
from threadpoolctl import threadpool_limits

from mlops_core import credit, data, evaluate


def seconds(work, repeats=5):
    """Median seconds of `work()` after one call to warm up."""
    work()
    taken = []
    for _ in range(repeats):
        start = time.perf_counter()
        work()
        taken.append(time.perf_counter() - start)
    return float(np.median(taken))


def ranking():
    """NDCG@10 of 1,000 users over 500 items: our frames against scikit-learn's matrices, user by user scored as it wants them."""
    generator = np.random.default_rng(0)
    scores, truth = generator.random((1000, 500)), generator.random((1000, 500)) < 0.02
    top = np.argsort(-scores, axis=1)[:, :10]
    recommended = pd.DataFrame({"user": np.repeat(np.arange(1000), 10), "item": top.ravel(), "rank": np.tile(np.arange(1, 11), 1000)})
    purchased = pd.DataFrame(np.argwhere(truth), columns=["user", "item"])
    yield "NDCG@10, 1,000 users", "scikit-learn ndcg_score", (
        lambda: ndcg_score(truth, scores, k=10),
        lambda: evaluate.ranking_metrics(recommended, purchased),
    )


def single_row():
    """One applicant scored: boosted trees with one thread, as we pin them, against XGBoost's default of all cores."""
    dataset = data.load_dataset("credit_default")
    features = credit.credit_features(dataset)
    train, _, test = data.reference_split(dataset)
    numbers = [c for c in features if c != "education"]
    ours = credit.BoostedTrees().fit(train[numbers].head(4000), credit.credit_outcome(dataset, train).head(4000))
    default = xgboost.XGBClassifier(n_estimators=ours.n_trees_, max_depth=5)
    default.fit(train[numbers].head(4000), train["default_next_month"].head(4000))
    row = test[numbers].head(1)

    def pinned():
        with threadpool_limits(1):
            ours.predict_proba(row)

    yield "one applicant scored", "XGBoost with its default threads", (lambda: default.predict_proba(row), pinned)


def fingerprints():
    """A fingerprint of a million cells that ignores column order and dtype, against the shortest one that depends on both."""
    frame = pd.DataFrame(np.random.default_rng(0).random((100_000, 10))).add_prefix("column")
    yield "fingerprint, 1 M cells", "pandas hash_pandas_object", (
        lambda: pd.util.hash_pandas_object(frame).sum(),
        lambda: data.fingerprint(frame),
    )


def main():
    print(f"{'what':28}{'against':36}{'theirs ms':>10}{'ours ms':>10}{'ratio':>8}")
    for bench in (ranking, single_row, fingerprints):
        for what, peer, (theirs, ours) in bench():
            their, our = 1000 * seconds(theirs), 1000 * seconds(ours)
            print(f"{what:28}{peer:36}{their:10.2f}{our:10.2f}{their / our:8.2f}")


if __name__ == "__main__":
    main()
