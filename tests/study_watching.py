"""How often monitors fire when they should, how late, and how often when they should not: hundreds of replays in memory, for each case.

`python tests/study_watching.py [CASE ...]` prints a table per case and keeps it in study_watching.csv. For each incident the smallest of a few
sizes is played that makes answers 5 % dearer; where none does, the largest. Goals: an alarm in at most 5 % of the quiet periods, and 90 % of
the incidents seen; what misses them is printed.
"""

import sys
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd

from mlops_core.core import home
from mlops_core.data import load_dataset
from mlops_core.grocer import GROCER_INCIDENTS, grocer_watched
from mlops_core.health import reference
from mlops_core.lender import CREDIT_INCIDENTS, credit_production, credit_watched
from mlops_core.rehearsal import rehearsal
from mlops_core.supplier import SUPPLIER_INCIDENTS, supplier_production, supplier_watched
from mlops_core.watching import detection_rates

KEPT = Path(__file__).with_suffix(".csv")
SEED, QUIET, EACH = 0, 60, 30
SIZES = {
    "credit_risk": (CREDIT_INCIDENTS, {
        "covariate_shift": (0.05, 0.1, 0.2, 0.4), "concept_shift": (0.1, 0.2, 0.4), "unit_error": (0.5, 0.1, 0.001),
        "missing_column": (0.1, 0.3, 1.0), "new_level": (0.1, 0.3, 1.0)}),
    "recommendation": (GROCER_INCIDENTS, {
        "popularity_shock": (0.1, 0.2, 0.4), "catalogue_change": (0.05, 0.1, 0.2, 0.3), "lost_tracking": (0.25, 0.5),
        "stale_lists": (0.25, 0.5, 1.0)}),
    "consumption_forecast": (SUPPLIER_INCIDENTS, {
        "heat_wave": (3.0, 6.0, 10.0), "meter_fault": (0.05, 0.1, 0.25), "feed_down": (0.25, 0.5, 1.0), "lockdown": (0.04, 0.08, 0.12)}),
}  # fmt: skip


def watched_of(case):
    """What is played, of a version that is packaged in the present workspace."""
    if case == "recommendation":
        return grocer_watched(load_dataset("grocery"), seed=SEED)
    name, make = {"credit_risk": ("credit_default", credit_production), "consumption_forecast": ("electricity", supplier_production)}[case]
    dataset = load_dataset(name)
    make(dataset).begin()
    return credit_watched(dataset, reference(case), SEED) if case == "credit_risk" else supplier_watched(dataset, seed=SEED)


def dearer(watched, none, incident, size, draws=5):
    """By what share an answer or a refusal costs more after the beginning than in the same replays without the incident (`none`)."""
    def cost(what, size, number):
        rows = watched.draw(SEED + number, what, size)
        return rows.loc[rows["time"] >= watched.start + watched.begins * watched.step, "cost"].mean()

    return np.mean([cost(incident, size, number) for number in range(draws)]) / np.mean([cost(none, 0.0, number) for number in range(draws)]) - 1


def study(case):
    """The table of a case."""
    incidents, sizes = SIZES[case]
    with rehearsal():
        watched = watched_of(case)
        more = partial(dearer, watched, incidents["none"])
        chosen = []
        for name, tried in sizes.items():
            costs = [more(incidents[name], size) for size in tried]
            size, cost = next(((size, cost) for size, cost in zip(tried, costs, strict=True) if cost >= 0.05), (tried[-1], costs[-1]))
            chosen.append((incidents[name], size, cost))
        table = detection_rates(watched, [one[:2] for one in chosen], QUIET, EACH, SEED)
    return table.assign(case=case, dearer=[0.0, *[one[2] for one in chosen]], seed=SEED, periods=watched.periods, begins=watched.begins)


def missed(table):
    """Where the goals are missed, in sentences."""
    for row in table.itertuples():
        if row.incident == "none" and row.seen > 0.05:
            yield f"{row.case}: an alarm in {row.seen:.1%} of the quiet periods, mostly {row.by}; the goal is 5 %"
        elif row.incident != "none" and row.dearer >= 0.05 and row.seen < 0.9:
            when = f"where it is seen, {row.by} does so after {row.delay:g} of the {row.periods - row.begins} periods that it lasts"
            yield f"{row.case}: {row.incident} of {row.size:g} costs {row.dearer:.0%} more and is seen in {row.seen:.0%}, not in 90 %; {when}"
        elif row.incident != "none" and row.dearer < 0.05:
            yield f"{row.case}: {row.incident} costs {row.dearer:.1%} more at the largest size that was tried; seen in {row.seen:.0%}"


if __name__ == "__main__":
    for case in sys.argv[1:] or list(SIZES):
        found = study(case)
        before = pd.read_csv(KEPT) if KEPT.exists() else found.head(0)
        kept = pd.concat([before[before["case"] != case], found], ignore_index=True)
        kept[found.columns].round(4).to_csv(KEPT, index=False)
        print(found.drop(columns=["case", "seed"]).round(3).to_string(index=False))
        print("\n".join(missed(found)) or "the goals are met", f"\nkept in {KEPT.relative_to(home())}")
