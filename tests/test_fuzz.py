"""Whatever a sender sends, as fast or as slowly as may be: he is told what is wrong, the server goes on, and the log holds what was answered."""

import gzip
import json
import random
import re
import socket
import time

import pandas as pd
import pytest
from study_fuzz import INSIDE, fuzz
from test_release import limited
from test_serve import ROW, WHO, go_live, make_version, wait_for

from mlops_core import audit, core, keys, log, rollout, serve, traffic
from mlops_core.refusal import Door
from mlops_core.scoring import RequestLimits

GOOD = json.dumps({"rows": [ROW]}).encode()


@pytest.fixture(scope="module")
def workspace(tmp_path_factory):
    folder = tmp_path_factory.mktemp("fuzz")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLOPS_WORKSPACE", str(folder))
        go_live(make_version(0))
        make_version(1)
        yield folder


@pytest.fixture(scope="module")
def server(workspace):
    "A server that waits for nobody longer than half a second."
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Door, "head_seconds", 0.5)
        with serve.LocalServer(serve.make_app("credit_risk", auth=False, limits=RequestLimits(body_seconds=0.5))) as client:
            yield client


def statuses(client):
    "How many requests the server has counted by status."
    found = re.findall(r'mlops_requests_total\{.*status="(\d+)"\} (\d+)', client.get("/metrics").text)
    return {status: sum(int(number) for name, number in found if name == status) for status, _ in found}


def test_six_hundred_generated_requests_are_answered_as_described(workspace):
    key = keys.create_key("fuzz", ["predict", "outcome"], per_minute=1_000_000, **WHO)
    with serve.LocalServer(serve.make_app("credit_risk")) as client:
        cases, findings = fuzz(client.base_url, key, 120)
    assert findings == []
    assert sum(cases.values()) >= 500 and min(cases["POST /v1/predict"], cases["POST /v1/outcomes"]) > 150 and len(cases) == 8
    rows = log.joined("credit_risk")
    assert len(rows) > 50 and not rows.duplicated(["request_id", "position"]).any(), "and the log can be read"


def raw(client, *parts, wait=4.0, pause=0.0):
    "What the server says to bytes, and how long that took; b'' if it only closed the connection."
    start, found = time.monotonic(), b""
    with socket.create_connection((client.base_url.host, client.base_url.port), timeout=wait) as line:
        try:
            for part in parts:
                line.sendall(part)
                time.sleep(pause)
            while not re.search(rb"\r\n\r\n.+", found, re.S) and (part := line.recv(65536)):
                found += part
        except ConnectionError:
            pass  # closed while we were still sending
    return found, time.monotonic() - start


def post(body, headers=b"", length=None, path=b"/v1/predict"):
    return b"POST %s HTTP/1.1\r\nHost: x\r\n%sContent-Length: %d\r\n\r\n%s" % (path, headers, len(body) if length is None else length, body)


def nested(depth):
    return b'{"rows": ' + b"[" * depth + b"]" * depth + b"}"


def chunked(body):
    return b"POST /v1/predict HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n" + body


def row_with(text):
    return GOOD.replace(b'"pay_0": %d' % ROW["pay_0"], b'"pay_0": ' + text)


BODIES = {
    "random bytes": random.Random(0).randbytes(5000), "truncated": GOOD[:-3], "two bodies": GOOD + GOOD, "200 deep": nested(200),
    "100,000 deep": nested(100_000),
    "deep objects": b'{"rows": ' * 50_000, "NaN": row_with(b"NaN"), "minus infinity": row_with(b"-Infinity"), "1e999": row_with(b"1e999"),
    "400 digits": row_with(b"1" + b"0" * 400), "100,000 digits": row_with(b"9" * 100_000), "1e-999999999": row_with(b"1e999999999"),
    "a string of digits": row_with(b'"0"'), "true": row_with(b"true"), "hexadecimal": row_with(b"0x1"), "plus": row_with(b"+1"),
    "comma": row_with(b"0,5"),
    "a row twice nested": row_with(GOOD), "UTF-16": GOOD.decode().encode("utf-16"), "UTF-32": GOOD.decode().encode("utf-32-be"),
    "a byte order mark": b"\xef\xbb\xbf" + GOOD, "EBCDIC": GOOD.decode().encode("cp500"), "invalid UTF-8": row_with(b'"\xff\xfe"'),
    "overlong UTF-8": row_with(b'"\xc0\xaf"'), "null bytes": row_with(b'"a\\u0000b"'), "a raw null byte": row_with(b'"a\x00b"'),
    "a lone surrogate": row_with(b'"\\ud800"'), "a key with a surrogate": GOOD.replace(b"pay_0", b"\\ud800"), "gzip": gzip.compress(GOOD),
    "spaces only": b" " * 900_000, "a comment": b"/* */" + GOOD, "a form": b"rows=1&reasons=2", "XML": b"<rows/>", "null": b"null",
    "a surrogate as id": GOOD[:-1] + b', "request_id": "\\udfff"}', "a null as id": GOOD[:-1] + b', "request_id": "\\u0000"}',
    "letters as id": GOOD[:-1] + ', "request_id": "ä"}'.encode(), "an id without end": GOOD[:-1] + b', "request_id": "' + b"a" * 100_000 + b'"}',
    "the same column of many names": b'{"rows": [{' + b",".join(b'"c%d": 0' % number for number in range(50_000)) + b"}]}",
}  # fmt: skip


@pytest.mark.parametrize("what", BODIES)
def test_a_body_of_nonsense_is_refused_and_says_why(server, what):
    start = time.monotonic()
    said = server.post("/v1/predict", content=BODIES[what], headers={"Content-Type": "application/json"})
    assert said.status_code == 422 and said.headers["content-type"] == "application/problem+json" and time.monotonic() - start < 3
    assert said.json()["errors"] and all(set(one) == {"field", "rule", "value"} for one in said.json()["errors"])
    assert len(said.text) < 8000 and not INSIDE.search(said.text)


def test_what_is_odd_and_still_clear_is_answered_as_it_is_logged(server):
    twice = row_with(b'1, "pay_0": 2')  # the last one counts, for the model and for the log
    for number, (body, headers) in enumerate([(twice, {}), (GOOD, {"Content-Type": "text/plain; charset=utf-16"}), (b"\n\t " + GOOD, {}),
                                              (row_with(b"2.0"), {}), (row_with(b"-0.0"), {})]):  # fmt: skip
        body = body[:-1] + b', "request_id": "odd-%d"}' % number
        assert server.post("/v1/predict", content=body, headers=headers).status_code == 200
    rows = log.joined("credit_risk").set_index("request_id")["input"].map(json.loads)
    assert [rows[f"odd-{number}"]["pay_0"] for number in range(5)] == [2, ROW["pay_0"], ROW["pay_0"], 2, 0]


WIRE = {
    "random bytes": (random.Random(1).randbytes(3000), {400}), "another protocol": (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", {400}),
    "TLS": (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(500), {400}),
    "an unknown method": (b"BREW /v1/predict HTTP/1.1\r\nHost: x\r\n\r\n", {400}),
    "a wrong method": (b"TRACE /v1/predict HTTP/1.1\r\nHost: x\r\n\r\n", {405}),
    "an upgrade": (b"GET /v1/predict HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\n"
    b"Upgrade: websocket\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n", {405}),
    "a slash too many": (b"POST /v1/predict/ HTTP/1.1\r\nHost: elsewhere\r\nContent-Length: 0\r\n\r\n", {404}),
    "a way up": (b"GET /static/../../../../etc/passwd HTTP/1.1\r\nHost: x\r\n\r\n", {404}),
    "a null in the path": (b"GET /static/a%00 HTTP/1.1\r\nHost: x\r\n\r\n", {404}),
    "a hidden way up": (b"GET /static/%2e%2e/%2e%2e/settings.ini HTTP/1.1\r\nHost: x\r\n\r\n", {404}),
    "bytes in the path": (b"GET /\xff\xfe HTTP/1.1\r\nHost: x\r\n\r\n", {400}),
    "a long path": (b"GET /" + b"a" * 100_000 + b" HTTP/1.1\r\nHost: x\r\n\r\n", {431}),
    "a long header": (b"GET /live HTTP/1.1\r\nX: " + b"a" * 100_000 + b"\r\n\r\n", {431}),
    "many headers": (b"GET /live HTTP/1.1\r\n" + b"".join(b"X%d: a\r\n" % number for number in range(20_000)) + b"\r\n", {431}),
    "a header without end": (b"GET /live HTTP/1.1\r\nX: " + b"a" * 5_000_000, {431, None}),
    "a null in a header": (b"GET /live HTTP/1.1\r\nX: a\x00b\r\n\r\n", {400}),
    "no length": (b"POST /v1/predict HTTP/1.1\r\nHost: x\r\n\r\n" + GOOD, {400}),
    "too short a length": (post(GOOD, length=10), {400}),
    "too long a length": (post(GOOD, length=len(GOOD) + 1), {408}),
    "a negative length": (post(GOOD, length=-1), {400}), "a length of words": (post(GOOD).replace(b"Length: ", b"Length: a"), {400}),
    "two lengths": (post(GOOD, b"Content-Length: 3\r\n"), {400}), "length and chunks": (post(GOOD, b"Transfer-Encoding: chunked\r\n"), {400}),
    "no chunks": (chunked(GOOD), {400}), "a chunk without end": (chunked(b"f" * 40 + b"\r\n"), {400}),
    "a huge body in chunks": (chunked(b"100000\r\n" + b" " * 0x100000 + b"\r\n0\r\n\r\n"), {413, None}),
    "a body just too large": (post(b" " * 1_000_001), {413, None}), "half a line": (b"POST /v1/pre", {408}),
    "half a head": (b"POST /v1/predict HTTP/1.1\r\nHost: x\r\nContent-", {408}), "half a body": (post(GOOD[:30], length=len(GOOD)), {408}),
    "half a chunk": (chunked(b"%x\r\n%s" % (len(GOOD), GOOD[:20])), {408}), "nothing": (b"", {408}), "line ends only": (b"\r\n" * 1000, {408}),
}  # fmt: skip


@pytest.mark.parametrize("what", WIRE)
def test_nonsense_on_the_wire_gets_an_answer_or_an_end(server, what):
    sent, expected = WIRE[what]
    found, seconds = raw(server, sent)
    status = int(found[9:12]) if found else None
    assert status in expected and seconds < 3 and not INSIDE.search(found.decode("latin-1"))
    if found:
        assert b"content-type: application/problem+json" in found and json.loads(found.split(b"\r\n\r\n", 1)[1])["status"] == status
    assert server.post("/v1/predict", content=GOOD).status_code == 200


def test_who_trickles_his_bytes_does_not_hold_the_server(server):
    found, seconds = raw(server, *[bytes([byte]) for byte in b"POST /v1/predict HTTP/1.1\r\nHost: x\r\n"[:20]], pause=0.1)
    assert found[9:12] == b"408" or not found and seconds < 3
    many = [socket.create_connection((server.base_url.host, server.base_url.port)) for _ in range(200)]
    assert server.post("/v1/predict", content=GOOD).status_code == 200, "many who say nothing are in nobody's way"
    time.sleep(1)
    assert all(line.recv(1000)[9:12] == b"408" and line.recv(1) == b"" for line in many), "and are sent home"
    [line.close() for line in many]


def test_who_leaves_before_the_answer_has_it_in_the_log_once_and_is_no_error(server):
    for number in range(20):
        with socket.create_connection((server.base_url.host, server.base_url.port)) as line:
            line.sendall(post(GOOD[:-1] + b', "request_id": "left-%d"}' % number))
        with socket.create_connection((server.base_url.host, server.base_url.port)) as line:
            line.sendall(post(GOOD[:20], length=len(GOOD)))
    wait_for(lambda: log.joined("credit_risk")["request_id"].str.startswith("left-").sum() == 20)
    again = server.post("/v1/predict", content=GOOD[:-1] + b', "request_id": "left-3"}')
    assert again.status_code == 200 and (log.joined("credit_risk")["request_id"] == "left-3").sum() == 1
    wait_for(lambda: statuses(server).get("499", 0) >= 20)
    assert not [status for status in statuses(server) if status.startswith("5")], "in all of these tests"


def test_the_server_that_is_started_has_this_door(workspace, monkeypatch):
    started = []
    monkeypatch.setattr(serve.uvicorn.Server, "run", lambda self: started.append(self.config))
    serve.serve("credit_risk", auth=False)
    monkeypatch.undo()
    with serve.LocalServer(started[0].app):  # its threads end with it
        assert [one.http for one in started] == [Door]


TIMES = {"9999-12-31T23:59:59-14:00": 422, "0001-01-01T00:00:00+14:00": 422, "-1": 422, "-9999-01-01": 422, "": 422, "now": 422, "1/1/1": 422,
         "\u0000": 422,
         "2020-02-30": 422, "2020-01-01T25:00": 422, "2020-01-01": 200, "2020-01-01T12:00:00.123456789Z": 200,
         "2020-01-01T12:00:00+14:00": 200}  # fmt: skip


@pytest.mark.parametrize("when", TIMES)
def test_a_time_is_a_time_or_is_refused_by_name(server, when):
    server.post("/v1/predict", content=GOOD[:-1] + b', "request_id": "timed"}')
    said = server.post("/v1/outcomes", json={"outcomes": [{"request_id": "timed", "value": 1, "happened_at": when}, {"request_id": "t", "value": 1}]})
    assert said.status_code == TIMES[when]
    if said.status_code == 422:
        assert [(one["field"], one["value"]) for one in said.json()["errors"]] == [("outcomes.0.happened_at", when)]


def test_times_of_several_forms_may_come_together(server):
    forms = ["2020-01-01", "2020-01-01T12:00:00+14:00", "2020-01-01 12:00:00.5", None]
    known = [{"request_id": f"form-{number}", "value": 1, "happened_at": when} for number, when in enumerate(forms)]
    assert server.post("/v1/outcomes", json={"outcomes": known}).json()["stray"] == 4
    found = log.strays("credit_risk").set_index("request_id")["happened_at"]
    expected = ["2020-01-01", "2019-12-31 22:00", "2020-01-01 12:00:00.5"]
    assert [found[f"form-{number}"] for number in range(3)] == [pd.Timestamp(when) for when in expected]


@pytest.fixture
def clock(monkeypatch):
    "Sets the clock of all modules so many hours off."
    kept, off = core.now, pd.Timedelta(0)

    def set_by(hours):
        nonlocal off
        off = pd.Timedelta(hours=hours)

    for module in (core, audit, keys, log, serve, traffic):
        monkeypatch.setattr(module, "now", lambda: kept() + off)
    return set_by


@pytest.mark.parametrize("hours", [-1, -24, 24])
def test_a_clock_that_jumps_hides_and_stops_nothing(workspace, clock, monkeypatch, hours):
    # one row over and over is no fair sample, and a busy machine is slow: neither shall end the roll-out, which is here for its clock
    monkeypatch.setattr(rollout, "load_use_case", limited(p99_ms=60_000, rollout_shift=1.0, rollout_disagreement=1.0))
    text, slow = (keys.create_key("shop", ["predict", "outcome"], per_minute=number, **WHO) for number in (6000, 60))
    started = traffic.begin("credit_risk", 1, 2, (0.5, 1.0))
    with serve.LocalServer(serve.make_app("credit_risk", guard=rollout.guard)) as client:
        def ask(numbers, key=text):
            bodies = [{"rows": [ROW], "request_id": f"jump{hours}-{number}"} for number in numbers]
            return {client.post("/v1/predict", json=body, headers={"Authorization": f"Bearer {key}"}).status_code for body in bodies}

        assert ask(range(20)) == {200}
        before = core.now()
        clock(hours)
        assert ask(range(20, 40)) == {200}
        assert 429 in ask(range(70), slow), "a key has its requests a minute by a clock that nobody sets"
        wait_for(lambda: ask([1], slow) == {200}, seconds=10)
        late = keys.create_key("late", ["predict"], **WHO)
        wait_for(lambda: ask([1], late) == {200}, seconds=10)  # keys are read again
        wait_for(lambda: pd.Timestamp(traffic.running("credit_risk").since) <= core.now().tz_localize(None), seconds=10)
        assert ask(range(100, 120)) == {200}
        moved, asked = traffic.running("credit_risk"), {f"jump{hours}-{number}" for number in range(100, 120)}
        assert (moved.number, moved.step, moved.state) == (started.number, 0, "running")
        wait_for(lambda: asked <= set(rollout.paired(moved)[0]["request_id"]))  # the judge sees what happens now; a shadow takes seconds to start
        assert client.get("/ready").json()["problem"] == ""
    traffic.move(traffic.running("credit_risk"), state="aborted")
    ours = [f"jump{hours}-{number}" for number in [*range(70), *range(100, 120)]]
    rows = log.joined("credit_risk")
    found = rows[rows["request_id"].str.startswith(f"jump{hours}-")]
    assert set(found["request_id"]) <= set(ours) and found["request_id"].tolist()[:40] == ours[:40] and set(found["request_id"]) >= asked
    assert not found.duplicated(["request_id", "position"]).any()
    early = log.joined("credit_risk", before)
    assert (pd.to_datetime(early["time"]) <= before.tz_localize(None)).all() and set(ours[:20]) <= set(early["request_id"])


def test_a_server_that_starts_after_the_clock_was_set_back_serves_the_newest_version(workspace, clock):
    audit.append("champion", "credit_risk/2", **WHO)
    clock(-1)
    assert audit.live("credit_risk") == "2" and audit.answer_who("credit_risk")["version"] == "2"
    with serve.LocalServer(serve.make_app("credit_risk", auth=False)) as client:
        assert client.get("/ready").json()["version"] == 2
