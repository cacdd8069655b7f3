"""Thousands of generated requests, good ones and broken ones, held against what the API says of itself: `make study`."""

import os
import re
import sys
import tempfile
from collections import Counter

import schemathesis
from schemathesis.engine import events, from_schema
from tqdm import tqdm

from mlops_core import keys
from mlops_core.serve import LocalServer, make_app

INSIDE = re.compile(r"Traceback|File \"|\.py\b|site-packages|/(?:home|root|tmp|usr|var)/")  # what no answer may show


@schemathesis.check
def shows_nothing_of_the_inside(ctx, response, case):
    """A traceback, or the path of a file, helps nobody but an attacker."""
    if found := INSIDE.search(response.text):
        raise AssertionError(f"the answer shows {found[0]!r}")


def keeps_what_no_schema_says(context, case):
    """A valid request that names subjects has one for each row; OpenAPI has no words for that."""
    body = case.body if isinstance(case.body, dict) else {}
    rows, subjects = body.get("rows"), body.get("subjects")
    broken = isinstance(rows, list) and isinstance(subjects, list) and subjects and len(rows) != len(subjects)
    return not (broken and case.meta.generation.mode == schemathesis.GenerationMode.POSITIVE)


def fuzz(url, key, examples, seed=0, seen=lambda: None):
    """Send each door at least `examples` generated requests with `key`; returns how many each got, and what was not as it should be.

    Valid and broken requests, at the borders of every rule and at random, with the key, with a wrong one and without. Of each: no 5xx; status,
    content type, headers and body as the description says; what is valid is taken and what is broken refused; no word of the inside; an answer
    within 5 seconds.
    """
    schema = schemathesis.openapi.from_url(f"{url}/openapi.json", config=schemathesis.Config(seed=seed))
    schema.config.update(headers={"Authorization": f"Bearer {key}"}, continue_on_failure=True)
    schema.config.generation.update(max_examples=examples, database="none", no_shrink=True)
    schema.config.checks.update(max_response_time=5.0)
    schema.hook("filter_case")(keeps_what_no_schema_says)
    cases, findings = Counter(), []

    @schema.hook
    def after_call(context, case, response):
        cases[case.operation.label] += 1
        seen()

    for event in from_schema(schema).execute():
        if isinstance(event, events.ScenarioFinished):
            found = [node for nodes in event.recorder.checks.values() for node in nodes if node.failure_info]
            findings += [f"{event.recorder.label}: {node.name}: {node.failure_info.failure}\n{node.failure_info.code_sample}" for node in found]
        elif isinstance(event, events.NonFatalError | events.FatalError):
            findings.append(repr(getattr(event, "value", None) or event.exception))
    return cases, findings


def main(least=5000):
    from test_serve import WHO, go_live, make_version

    with tempfile.TemporaryDirectory() as workspace:
        os.environ["MLOPS_WORKSPACE"] = workspace
        go_live(make_version())
        app, key = make_app("credit_risk"), keys.create_key("study", ["predict", "outcome"], per_minute=1_000_000, **WHO)
        with LocalServer(app) as client, tqdm(total=least, unit="request") as bar:
            cases, findings = fuzz(client.base_url, key, least // 2, seen=bar.update)
    print("\n".join(f"{number:7,} {door}" for door, number in sorted(cases.items())))
    print("\n\n".join(findings) or f"{sum(cases.values()):,} requests, no 5xx, and nothing that the description does not say")
    return 1 if findings or sum(cases.values()) < least else 0


if __name__ == "__main__":
    sys.exit(main())
