"""A key opens what it says, until it is revoked, so many times a minute, and stands nowhere in the database."""

import pytest

from mlops_core import audit, core, keys
from mlops_core.govern import GovernanceError

WHO = {"actor": "cho", "role": "devops"}


def test_a_key_is_known_and_its_text_is_stored_nowhere(operations):
    text = keys.create_key("shop", ["predict"], **WHO)
    found = keys.KeyRing().find(text)
    assert found.holder == "shop" and found.scopes == {"predict"}
    assert "hash" not in keys.list_keys() and text.split("_", 2)[2] not in audit.entries().to_string()
    if operations.dialect.name == "sqlite":
        files = b"".join(file.read_bytes() for file in core.workspace().iterdir() if file.is_file())
        assert text.split("_", 2)[2].encode() not in files


@pytest.mark.parametrize("operations", ["sqlite"], indirect=True)
def test_no_other_text_opens(operations):
    text, ring = keys.create_key("shop", ["predict"], **WHO), keys.KeyRing()
    assert ring.find(text)
    for wrong in ("", "mlops_", text[:-1], text + "A", text.upper(), text[:15] + "A" * 43, "mlops_00000000_" + text[15:], "Ⅷ" * 58, "\x00"):
        assert ring.find(wrong) is None


def test_a_revoked_key_ends_and_cannot_be_revoked_twice(operations):
    text, ring = keys.create_key("shop", ["operate"], **WHO), keys.KeyRing(seconds=0)
    key_id = ring.find(text).key_id
    keys.revoke_key(key_id, **WHO)
    assert ring.find(text) is None and keys.list_keys()["revoked_at"].notna().all()
    with pytest.raises(keys.KeyRefused, match="no open key"):
        keys.revoke_key(key_id, **WHO)
    assert audit.entries(subject=f"key/{key_id}")["event"].tolist() == ["key_created", "key_revoked"]


@pytest.mark.parametrize("operations", ["sqlite"], indirect=True)
def test_a_key_has_so_many_requests_a_minute(operations, monkeypatch):
    ring, clock = keys.KeyRing(seconds=1e9), [0.0]
    key = ring.find(keys.create_key("meters", ["outcome"], per_minute=60, **WHO))
    monkeypatch.setattr(keys.time, "monotonic", lambda: clock[0])
    assert [ring.wait(key) for _ in range(60)] == [0.0] * 60 and ring.wait(key) == 1.0
    clock[0] = 2.0
    assert [ring.wait(key), ring.wait(key)] == [0.0, 0.0] and ring.wait(key) > 0
    clock[0] = 1000.0
    assert sum(ring.wait(key) == 0 for _ in range(100)) == 60, "what is not used does not pile up"


@pytest.mark.parametrize("holder, scopes, per_minute", [("", ["predict"], 1), ("shop", [], 1), ("shop", ["admin"], 1), ("shop", ["predict"], 0)])
@pytest.mark.parametrize("operations", ["sqlite"], indirect=True)
def test_a_key_that_makes_no_sense_is_refused(operations, holder, scopes, per_minute):
    with pytest.raises(keys.KeyRefused):
        keys.create_key(holder, scopes, per_minute, **WHO)
    assert keys.list_keys().empty


@pytest.mark.parametrize("operations", ["sqlite"], indirect=True)
def test_only_known_people_give_keys(operations):
    with pytest.raises(GovernanceError):
        keys.create_key("shop", ["predict"], actor="nobody", role="devops")
