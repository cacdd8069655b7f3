"""An alert opens once, persists in one row, closes after calm, and every opening and closing is in the audit log."""

from concurrent.futures import ThreadPoolExecutor

import pandas as pd
import pytest

from mlops_core import alerts, audit, govern
from mlops_core.govern import GovernanceError

START, DAY = pd.Timestamp("2027-01-01"), pd.Timedelta(days=1)


def round_(day, found, check="latency", model="credit_risk"):
    verdicts = pd.DataFrame([{"check": check, "verdict": found, "why": f"{found} on day {day}"}])
    return alerts.observe(model, verdicts, START + day * DAY)


def test_a_breach_that_lasts_is_one_alert_and_closes_after_two_calm_rounds(operations):
    for day in range(5):
        opened = round_(day, "breach")
    assert len(opened) == 1 and opened.iloc[0][["rounds", "owner", "severity", "evidence"]].tolist() == [5, "devops", "medium", "breach on day 4"]
    assert opened["do"][0].startswith("The slowest requests")
    assert len(round_(5, "pass")) == 1, "one calm round is no end"
    assert len(round_(6, "breach")) == 1 and len(round_(7, "pass")) == 1
    assert round_(8, "pass").empty
    row = alerts.alert_history("credit_risk").iloc[0]
    assert len(alerts.alert_history()) == 1 and (row["state"], row["rounds"]) == ("closed", 6) and pd.Timestamp(row["closed_at"]) == START + 8 * DAY
    said = audit.entries("credit_risk")
    assert said["event"].tolist() == ["alert_opened", "alert_closed"] and said["payload"][1]["check"] == "latency" and audit.verify() == []


def test_what_cannot_be_judged_changes_nothing(operations):
    round_(0, "breach")
    for day, found in enumerate(("too few", "withheld", "not watched", "too few"), 1):
        assert len(round_(day, found)) == 1
    assert alerts.alert_history()["rounds"].tolist() == [1]
    assert round_(9, "withheld", check="performance")["check"].tolist() == ["latency"]


def test_the_same_round_twice_and_an_older_one_count_once(operations):
    round_(3, "breach")
    round_(3, "breach")
    round_(2, "breach")
    assert alerts.alert_history()["rounds"].tolist() == [1]
    round_(4, "pass")
    assert len(round_(4, "pass")) == 1, "a repeated calm round is not two"
    assert len(audit.entries(event="alert_opened")) == 1


def test_checks_and_models_do_not_share_alerts(operations):
    round_(0, "breach")
    round_(0, "breach", check="drift")
    round_(0, "breach", model="recommendation")
    assert alerts.open_alerts("credit_risk")["check"].tolist() == ["latency", "drift"] and len(alerts.open_alerts()) == 3
    round_(1, "pass"), round_(2, "pass")
    assert alerts.open_alerts()["model"].tolist() == ["credit_risk", "recommendation"]


def test_two_rounds_at_once_open_one_alert(operations):
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda _: round_(0, "breach"), range(8)))
    assert len(alerts.alert_history()) == 1


@pytest.mark.parametrize("operations", ["sqlite"], indirect=True)
def test_what_a_dying_process_left_unsaid_is_said_by_the_next_round(operations, monkeypatch):
    def die(*words, **more):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(audit, "append", die)
        round_(0, "breach")
    assert len(alerts.open_alerts()) == 1 and audit.entries(event="alert_opened").empty
    round_(1, "too few")
    assert len(audit.entries(event="alert_opened")) == 1


@pytest.mark.parametrize("operations", ["sqlite"], indirect=True)
def test_every_check_has_an_owner_who_exists(operations, monkeypatch):
    with pytest.raises(GovernanceError, match="no runbook for weather"):
        round_(0, "breach", check="weather")
    books = govern.read_policy_file("runbook")
    assert set(govern.runbooks()) == set(govern.CheckName.__args__)
    for change, message in (
        ({name: book for name, book in books["checks"].items() if name != "drift"}, "an alert of drift would have no owner"),
        (books["checks"] | {"drift": books["checks"]["drift"] | {"owner": "nobody"}}, "checks.drift.owner"),
        (books["checks"] | {"weather": books["checks"]["drift"]}, "weather"),
    ):
        monkeypatch.setattr(govern, "read_policy_file", lambda name, change=change: {"checks": change})
        with pytest.raises(GovernanceError, match=message):
            govern.runbooks()
