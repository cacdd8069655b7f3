"""The audit log finds every change, survives a kill, and lets one of two rivals through."""

import json
import random
import signal
import subprocess
import sys
import time

import pytest
import sqlalchemy as sa

from mlops_core import audit, core


@pytest.fixture(autouse=True)
def own_workspace(tmp_path, monkeypatch):
    monkeypatch.setenv("MLOPS_WORKSPACE", str(tmp_path / "workspace"))
    monkeypatch.delenv("MLOPS_OPS_URL", raising=False)


def fill(number=12):
    for place in range(1, number + 1):
        audit.append("gates", f"credit_risk/{place}", {"passed": place, "of": "fünf"}, actor="ana", role="data_scientist")


def change(statement):
    with core.operations_engine().begin() as connection:
        connection.execute(statement)


def rows():
    with core.operations_engine().connect() as connection:
        return connection.execute(sa.select(audit.audit).order_by(audit.audit.c.number)).all()


def test_an_untouched_log_is_whole():
    assert audit.verify() == [] and audit.head() == (0, audit.START)
    fill()
    assert audit.verify() == [] and audit.head()[0] == 12 and audit.verify(audit.head()[1]) == []
    assert audit.entries()["payload"].iloc[2] == {"passed": 3, "of": "fünf"}


@pytest.mark.parametrize("column", ["event", "actor", "role", "time", "subject", "payload", "previous", "hash"])
def test_an_edited_field_is_found_and_its_entry_named(column):
    fill()
    old = getattr(rows()[4], column)
    change(audit.audit.update().where(audit.audit.c.number == 5).values({column: old[:-1] + ("x" if old[-1] != "x" else "y")}))
    assert 5 in [finding.number for finding in audit.verify()]


@pytest.mark.parametrize("number", [1, 5, 12])
def test_a_deleted_entry_is_named(number):
    fill()
    change(audit.audit.delete().where(audit.audit.c.number == number))
    assert number in [finding.number for finding in audit.verify()]


def test_a_deleted_and_renumbered_entry_is_found():
    fill()
    change(audit.audit.delete().where(audit.audit.c.number == 5))
    for number in range(6, 13):
        change(audit.audit.update().where(audit.audit.c.number == number).values(number=number - 1))
    assert min(finding.number for finding in audit.verify()) == 5


def test_an_inserted_entry_is_found_even_with_a_right_hash():
    fill()
    number, previous = audit.head()
    forged = audit.Entry(number + 1, "approved", "ben", "model_risk_manager", "2026-01-01T00:00:00+00:00", "credit_risk/1", "{}", previous)
    change(audit.audit.insert().values(**{n: getattr(forged, n) for n in audit.Entry.__dataclass_fields__}, hash=forged.hash))
    assert [finding.number for finding in audit.verify()] == [13] and "inserted" in audit.verify()[0].what


def test_two_entries_that_changed_places_are_found():
    fill()
    for number, other in ((3, 103), (7, 3), (103, 7)):
        change(audit.audit.update().where(audit.audit.c.number == number).values(number=other))
    assert {3, 7} <= {finding.number for finding in audit.verify()}


def rewrite(mend_witness):
    previous = audit.START
    for row in rows():
        entry = audit.Entry(row.number, row.event, "eve", row.role, row.time, row.subject, row.payload, previous)
        previous = entry.hash
        change(audit.audit.update().where(audit.audit.c.number == row.number).values(actor="eve", previous=entry.previous, hash=entry.hash))
    if mend_witness:
        audit.witness().write_text("".join(f"{row.number} {row.hash} begin\n{row.number} {row.hash}\n" for row in rows()))


def test_a_chain_that_was_rewritten_whole_is_found():
    fill()
    kept = audit.head()[1]
    rewrite(mend_witness=False)
    assert {finding.number for finding in audit.verify()} == set(range(1, 13))
    rewrite(mend_witness=True)
    assert audit.verify() == [] and "rewritten" in audit.verify(kept)[0].what


def test_a_cut_tail_is_found_and_so_is_a_lost_witness():
    fill()
    change(audit.audit.delete().where(audit.audit.c.number > 9))
    assert [finding.number for finding in audit.verify()] == [10, 11, 12] and "cut" in audit.verify()[0].what
    audit.witness().unlink()
    assert len(audit.verify()) == 9, "entries that no witness knows"


def test_a_hundred_random_bytes_are_all_found():
    fill()
    generator, found = random.Random(0), 0
    for _ in range(100):
        row, column = generator.choice(rows()), generator.choice(["event", "actor", "role", "time", "subject", "payload", "previous", "hash"])
        old, place = getattr(row, column), generator.randrange(len(getattr(row, column)))
        new = old[:place] + chr((ord(old[place]) ^ (1 << generator.randrange(5))) or 65) + old[place + 1 :]
        change(audit.audit.update().where(audit.audit.c.number == row.number).values({column: new}))
        found += row.number in [finding.number for finding in audit.verify()]
        change(audit.audit.update().where(audit.audit.c.number == row.number).values({column: old}))
    assert found == 100 and audit.verify() == []


WRITER = """
import sys
from mlops_core import audit
for number in range(int(sys.argv[1])):
    audit.append("tick", f"{sys.argv[2]}/{number}", actor="ana", role="data_scientist")
"""


def test_a_cut_tail_is_found_after_the_log_went_on(tmp_path):
    fill()
    change(audit.audit.delete().where(audit.audit.c.number > 9))
    fill(5)
    assert [finding.number for finding in audit.verify()] == [10, 11, 12] and "cut" in audit.verify()[0].what
    folder = audit.export_audit(tmp_path / "export")
    said = subprocess.run([sys.executable, str(folder / "check.py")], capture_output=True, text=True)
    assert said.returncode == 1 and "entries [10, 11, 12]" in said.stdout


BEGINNER = """
import sys
from mlops_core import audit
print("ready", flush=True)
sys.stdin.readline()
audit.append("tick", "credit_risk", actor="ana", role="data_scientist")
"""


def test_eight_processes_may_begin_the_log_at_once():
    writers = [subprocess.Popen([sys.executable, "-c", BEGINNER], stdin=-1, stdout=-1, stderr=-1, text=True) for _ in range(8)]
    assert [writer.stdout.readline() for writer in writers] == ["ready\n"] * 8
    for writer in writers:
        writer.stdin.write("go\n")
        writer.stdin.flush()
    said = [writer.communicate(timeout=120)[1] for writer in writers]
    assert [writer.returncode for writer in writers] == [0] * 8, "\n".join(said)
    assert audit.head()[0] == 8 and audit.verify() == []


def test_a_kill_in_the_middle_leaves_a_whole_chain():
    writer = subprocess.Popen([sys.executable, "-c", WRITER, "100000", "credit_risk"])
    end = time.monotonic() + 60
    while audit.head()[0] < 20:
        assert time.monotonic() < end and writer.poll() is None
    writer.send_signal(signal.SIGKILL)
    writer.wait()
    assert audit.verify() == []
    audit.append("tick", "credit_risk", actor="ana", role="data_scientist")
    assert audit.verify() == [], "and the log goes on"


def test_an_append_that_died_before_its_commit_is_no_finding(monkeypatch):
    fill(3)

    def die(entry, begin=False):
        real(entry, begin)
        raise KeyboardInterrupt

    real = audit._testify
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(audit, "_testify", die)
        fill(1)
    assert audit.head()[0] == 3 and audit.verify() == []


def test_two_processes_keep_one_chain():
    writers = [subprocess.Popen([sys.executable, "-c", WRITER, "40", model]) for model in ("credit_risk", "recommendation")]
    assert [writer.wait(timeout=120) for writer in writers] == [0, 0]
    assert audit.verify() == [] and audit.head()[0] == 80 and len(audit.entries("recommendation")) == 40


RIVAL = """
import sys
from mlops_core import audit
print("ready", flush=True)
sys.stdin.readline()
try:
    audit.append("champion", f"credit_risk/{sys.argv[1]}", actor="cho", role="devops", since=3)
    print("won")
except audit.AuditConflict as refusal:
    print(refusal)
"""


def test_of_two_rivals_one_wins_and_the_other_is_told():
    fill(3)
    rivals = [subprocess.Popen([sys.executable, "-c", RIVAL, str(n)], stdin=-1, stdout=-1, text=True) for n in (1, 2)]
    assert [rival.stdout.readline() for rival in rivals] == ["ready\n"] * 2
    for rival in rivals:
        rival.stdin.write("go\n")
        rival.stdin.flush()
    answers = sorted(rival.communicate(timeout=60)[0].strip() for rival in rivals)
    assert answers[1] == "won" and "entry 4 (champion credit_risk/" in answers[0] and "decide again" in answers[0]
    assert audit.verify() == [] and len(audit.entries(event="champion")) == 1


def test_since_minds_the_same_model_only():
    fill(2)
    audit.append("packaged", "recommendation/1", actor="ana", role="data_scientist")
    audit.append("approved", "credit_risk_2/1", actor="ana", role="data_scientist", since=2)
    audit.append("gates", "credit_risk/1", actor="ana", role="data_scientist")
    assert audit.append("approved", "credit_risk/1", actor="ben", role="model_risk_manager", since=2).number == 6


@pytest.mark.parametrize("empty", ["event", "subject", "actor", "role"])
def test_an_entry_says_who_did_what(empty):
    words = {"event": "packaged", "subject": "credit_risk/1", "actor": "ana", "role": "devops"} | {empty: ""}
    with pytest.raises(audit.AuditError, match="needs event, subject, actor and role"):
        audit.append(words["event"], words["subject"], actor=words["actor"], role=words["role"])
    assert audit.head()[0] == 0


def test_who_was_live_at_which_time():
    def step(event, version):
        audit.append(event, f"credit_risk/{version}", actor="cho", role="devops")
        return core.now()

    moments = [step("approved", 1), step("champion", 1), step("challenger", 2), step("champion", 2), step("challenger", 3), step("retired", 2)]
    assert [audit.live("credit_risk", at=moment) for moment in moments] == [None, "1", "1", "2", "2", None]
    assert [audit.live("credit_risk", "challenger", moment) for moment in moments] == [None, None, "2", None, "3", "3"]
    who = audit.answer_who("credit_risk", moments[1])
    assert who["version"] == "1" and who["approved_by"] == ["cho (devops)"] and list(who["evidence"]["event"]) == ["approved", "champion"]
    assert audit.answer_who("credit_risk") is None and audit.answer_who("recommendation") is None


def test_the_auditor_needs_none_of_our_code(tmp_path):
    fill()
    folder = audit.export_audit(tmp_path / "out")

    def check():
        return subprocess.run([sys.executable, "-I", folder / "check.py"], capture_output=True, text=True)

    assert check().returncode == 0 and audit.head()[1] in check().stdout and audit.head()[1] in (folder / "README.txt").read_text()
    lines = (folder / "entries.jsonl").read_text().splitlines()
    forged = json.loads(lines[6]) | {"actor": "eve"}
    for broken, named in (([*lines[:6], json.dumps(forged), *lines[7:]], "[7]"), (lines[:-2], "[11, 12]"), (lines[1:], "[1, 2")):
        (folder / "entries.jsonl").write_text("\n".join(broken) + "\n")
        assert check().returncode == 1 and named in check().stdout
    with pytest.raises(audit.AuditError, match="not empty"):
        audit.export_audit(folder)
