"""Requests are bounded and looked at before anything reads them."""

import asyncio
import base64
import json
from types import SimpleNamespace

import pytest

from dit_heads.demo import guard
from dit_heads.demo.guard import API, Guard
from dit_heads.demo.requests import checked_body
from dit_heads.demo.sentences import BUG
from dit_heads.errors import InputError

JOIN = f"{API}/queue/join"
BLOCKS = SimpleNamespace(
    fns={3: SimpleNamespace(fn=print, inputs=[1, 2]), 4: SimpleNamespace(fn=None, inputs=[])},
    get_api_info=lambda: {
        "named_endpoints": {
            "/draw": {
                "parameters": [
                    {"parameter_name": "prompt", "parameter_has_default": False},
                    {"parameter_name": "heads", "parameter_has_default": True},
                ]
            }
        }
    },
)
EVENT = {"data": [1, "a"], "fn_index": 3, "session_hash": "ann"}


def app_of(auth=None):
    return SimpleNamespace(auth=auth, tokens={"t0": "ann"}, cookie_id="c", get_blocks=lambda: BLOCKS)


def ask(path="/", headers=(), chunks=(b"",), most=100, small=10, method="GET", auth=None, fails=None):
    """The status that a guarded application answers, and the bytes that it was given."""
    read, sent, parts = [], [], list(chunks)

    async def app(scope, receive, send):
        if fails:
            raise fails
        while (message := await receive())["type"] == "http.request":
            read.append(message["body"])
            if not message["more_body"]:
                break
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"fine"})

    async def receive():
        await asyncio.sleep(0)
        return {"type": "http.request", "body": parts.pop(0), "more_body": bool(parts)}

    async def send(message):
        sent.append(message)

    scope = {"type": "http", "path": path, "method": method, "headers": list(headers), "app": app_of(auth)}
    asyncio.run(Guard(app, most, small)(scope, receive, send))
    return sent[0]["status"], b"".join(read) if sent[0]["status"] == 200 else sent[1]["body"].decode()


def test_a_small_request_goes_through():
    assert ask(chunks=[b"12345", b"67890"]) == (200, b"1234567890")


def test_a_request_that_says_it_is_large_is_refused_unread():
    assert ask(headers=[(b"content-length", b"11")])[0] == 413


def test_a_request_that_grows_too_large_is_cut():
    assert ask(chunks=[b"12345", b"67890", b"1"])[0] == 413
    assert ask(JOIN, method="POST", chunks=[b"1" * 60, b"2" * 60])[0] == 413


def test_a_request_that_does_not_arrive_is_given_up(monkeypatch):
    monkeypatch.setattr(guard, "READING", 0.01)

    async def receive():
        await asyncio.sleep(0.005)
        return {"type": "http.request", "body": b"", "more_body": True}

    with pytest.raises(guard.Refused) as refused:
        asyncio.run(guard._read({"path": JOIN}, receive))
    assert refused.value.status == 408


def test_an_event_of_the_page_goes_through_with_the_fields_that_it_has():
    body = json.dumps({**EVENT, "batched": True, "oauth_token": "x"}).encode()
    status, read = ask(JOIN, method="POST", chunks=[body[:5], body[5:]], most=1000)
    assert status == 200 and json.loads(read) == EVENT


@pytest.mark.parametrize(
    "path",
    [
        *(f"{API}/file=http://example.com/x", f"{API}/proxy=https://a.b/c", f"{API}/file=/etc/passwd"),
        *(f"{API}/upload_progress", "/svelte/x", "/static/../../secret", "/static/" + "x" * 300, "/docs"),
    ],
)
def test_nothing_is_fetched_or_served_that_the_page_does_not_need(path):
    assert ask(path)[0] == 404


def test_a_failure_is_told_without_its_details(caplog):
    assert ask(fails=OSError("/root/house")) == (500, json.dumps({"detail": BUG}))
    assert "a request failed" in caplog.text and "OSError" in caplog.text
    assert "house" not in caplog.text


@pytest.mark.parametrize(
    ("path", "sent", "told"),
    [
        ("/queue/join", [], "expected a JSON object, got list"),
        ("/queue/join", {**EVENT, "fn_index": True}, "fn_index: expected the number"),
        ("/queue/join", {**EVENT, "fn_index": 4}, "fn_index: expected the number"),
        ("/queue/join", {**EVENT, "session_hash": "../x"}, "session_hash: expected at most 64"),
        ("/queue/join", {**EVENT, "data": [1]}, "data: expected a list of 2"),
        ("/queue/join", {**EVENT, "data": [1, "\ud800"]}, "stored as UTF-8"),
        ("/queue/join", {**EVENT, "data": [1, float("nan")]}, "finite numbers"),
        ("/queue/join", {**EVENT, "data": [1, 2**64]}, "expected JSON text"),
        ("/queue/join", {**EVENT, "data": [1, {"path": "/etc/passwd", "meta": {}}]}, "without files on this"),
        ("/call/draw", {"data": []}, "data: expected a list of 2"),
        ("/call/other", {"data": []}, "there is no call 'other'"),
        ("/call/v2/draw", {}, "prompt: expected a value"),
        ("/call/v2/draw", {"prompt": "a", "colour": "red"}, "expected prompt, heads, got 'colour'"),
        ("/cancel", {"session_hash": "ann"}, "expected fn_index and event_id"),
    ],
)
def test_what_fits_no_event_is_refused_in_a_sentence(path, sent, told):
    with pytest.raises(InputError, match=told):
        checked_body(json.dumps(sent).encode(), path, app_of())


@pytest.mark.parametrize("body", [b"", b"\xff", b"{", b"[" * 10**5, b"[" * 40 + b"]" * 40, b"9" * 5000])
def test_what_is_no_json_is_refused_in_a_sentence(body):
    with pytest.raises(InputError, match="expected JSON text"):
        checked_body(body, "/mcp", app_of())


def test_with_a_password_everything_but_the_way_in_asks_for_it():
    auth = {"ann": "secret"}
    for path in (f"{API}/mcp", f"{API}/mcp/sse", f"{API}/info", f"{API}/queue/data"):
        assert ask(path, auth=auth)[0] == 401
    assert ask("/", auth=auth)[0] == ask("/assets/index.js", auth=auth)[0] == 200


@pytest.mark.parametrize(
    ("name", "value", "status"),
    [
        (b"Cookie", b"access-token-c=t0", 200),
        (b"Cookie", b"access-token-unsecure-c=t0; other=1", 200),
        (b"Cookie", b"access-token-c=t1", 401),
        (b"Authorization", b"Basic " + base64.b64encode(b"ann:secret"), 200),
        (b"Authorization", b"Basic " + base64.b64encode(b"ann:guess"), 401),
        (b"Authorization", b"Basic " + base64.b64encode(b"bob:"), 401),
        (b"Authorization", b"Basic !!!", 401),
        (b"Authorization", b"Bearer secret", 401),
    ],
)
def test_cookies_and_passwords_are_checked(name, value, status):
    assert ask(f"{API}/mcp", headers=[(name, value)], auth={"ann": "secret"})[0] == status
