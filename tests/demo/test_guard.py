"""Requests are bounded before anything reads them."""

import asyncio

import pytest

from dit_heads.demo.guard import Guard


def ask(path="/", headers=(), chunks=(b"",), most=10):
    """The status and body that a guarded application answers, and the bytes that it was given."""
    read, sent, parts = [], [], iter(chunks)

    async def app(scope, receive, send):
        for _ in chunks:
            read.append((await receive())["body"])
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"fine"})

    async def receive():
        return {"type": "http.request", "body": next(parts)}

    async def send(message):
        sent.append(message)

    scope = {"type": "http", "path": path, "headers": list(headers)}
    asyncio.run(Guard(app, most)(scope, receive, send))
    return sent[0]["status"], b"".join(read)


def test_a_small_request_goes_through():
    assert ask(chunks=[b"12345", b"67890"]) == (200, b"1234567890")


def test_a_request_that_says_it_is_large_is_refused_unread():
    assert ask(headers=[(b"content-length", b"11")]) == (413, b"")


def test_a_request_that_grows_too_large_is_cut():
    assert ask(chunks=[b"12345", b"67890", b"1"]) == (413, b"1234567890")


@pytest.mark.parametrize("path", ["/gradio_api/file=http://example.com/x", "/gradio_api/proxy=https://a.b/c"])
def test_nothing_is_fetched_from_elsewhere(path):
    assert ask(path)[0] == 404
