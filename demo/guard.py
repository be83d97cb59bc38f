"""What stands before Gradio: the routes that this page has, requests that are bounded and well formed, and
visitors that have signed in."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from typing import Any

from dit_heads.demo.log import log_error
from dit_heads.demo.requests import checked_body, signed_in
from dit_heads.demo.sentences import BUG
from dit_heads.errors import InputError

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]

API = "/gradio_api"
# Whoever may not see the page yet needs these to sign in.
_OPEN = re.compile(
    r"/|/(config|login|logout|theme\.css|favicon\.ico|manifest\.json|robots\.txt|pwa_icon(/\w+)?)/?"
    r"|/(assets|static)(/\w[\w.@-]{0,119}){1,5}"
    r"|/gradio_api/(app_id|login_check|startup-events|theme\.css|token|user)/?"
)
_READ = re.compile(
    r"/gradio_api/(info|openapi\.json|queue/data|queue/status|heartbeat/[\w-]+|mcp(/.*)?"
    r"|call/(v2/)?\w+/[\w-]+)/?"
)
_WRITTEN = re.compile(r"/gradio_api/(queue/join|cancel|mcp(/.*)?|call/(v2/)?\w+)/?")
READING = 60.0  # seconds that the body of a request may take
_LARGE_AT_ONCE = 4
_NOTHING = "There is nothing here."
_LARGE = "This request is too large."


class Refused(Exception):
    """A request that is answered with a status and a sentence."""

    def __init__(self, status: int, text: str) -> None:
        super().__init__(text)
        self.status, self.text = status, text


class Guard:
    """ASGI middleware. Gradio has more routes than this page needs, among them those that take files of any
    kind, serve files and fetch from elsewhere; only the ones that are listed here are open.

    Args:
        app: the application behind it.
        most: bytes of an event of the page.
        small: bytes of every other request.
    """

    def __init__(self, app: Any, most: int, small: int = 256 * 2**10) -> None:
        self.app, self.most, self.small = app, most, small
        self._large = asyncio.Semaphore(_LARGE_AT_ONCE)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            if scope["type"] == "lifespan":
                await self.app(scope, receive, send)
            return
        began = False

        async def sending(message: Message) -> None:
            nonlocal began
            began = True
            await send(message)

        try:
            _check_route(scope)
            await self.app(scope, await self._bounded(scope, receive), sending)
        except Exception as error:
            if not isinstance(error, Refused):
                log_error("a request failed", error)
                error = Refused(500, BUG)
            if not began:
                await _refuse(send, error)

    async def _bounded(self, scope: Scope, receive: Receive) -> Receive:
        """A `receive` that gives no more bytes than allowed; the body of a call is read and checked here."""
        event = scope["path"].startswith(f"{API}/queue/join")
        most = self.most if event else self.small
        if _length(scope) > most:
            raise Refused(413, _LARGE)
        counted = _counted(receive, most)
        if scope["method"] != "POST" or not scope["path"].startswith(API):
            return counted
        if event and not 0 < _length(scope) <= self.small:
            async with self._large:
                return _replayed(await _read(scope, counted), receive)
        return _replayed(await _read(scope, counted), receive)


def _check_route(scope: Scope) -> None:
    """Raise Refused for a route that the page does not have, and for a visitor who has not signed in."""
    path, reads = scope["path"], scope["method"] in ("GET", "HEAD")
    if b"deep_link" in scope.get("query_string", b""):
        raise Refused(404, _NOTHING)
    if _OPEN.fullmatch(path):
        if reads or path.rstrip("/") == "/login":
            return
        raise Refused(405, _NOTHING)
    if not (_READ if reads else _WRITTEN).fullmatch(path):
        raise Refused(404, _NOTHING)
    if not signed_in(scope["app"], _headers(scope)):
        raise Refused(401, "Please sign in first.")


def _headers(scope: Scope) -> Mapping[bytes, bytes]:
    return {name.lower(): value for name, value in scope["headers"]}


def _length(scope: Scope) -> int:
    """The length that a request says it has."""
    text = _headers(scope).get(b"content-length", b"0")
    return int(text) if text.isdigit() and len(text) < 20 else 0


def _counted(receive: Receive, most: int) -> Receive:
    seen = 0

    async def counted() -> Message:
        nonlocal seen
        message = await receive()
        seen += len(message.get("body", b""))
        if seen > most:
            raise Refused(413, _LARGE)
        return message

    return counted


async def _read(scope: Scope, receive: Receive) -> bytes:
    """The checked body of a call, whose headers are made to fit it."""
    try:
        async with asyncio.timeout(READING):
            body = await _whole(receive)
        path = scope["path"].removeprefix(API).rstrip("/")
        checked = await asyncio.to_thread(checked_body, body, path, scope["app"])
    except TimeoutError as error:
        raise Refused(408, "This request took too long to arrive.") from error
    except InputError as error:
        raise Refused(400, str(error)) from error
    scope["headers"] = _as_json(scope["headers"], len(checked))
    return checked


async def _whole(receive: Receive) -> bytes:
    parts = []
    while (message := await receive())["type"] == "http.request":
        parts.append(message.get("body", b""))
        if not message.get("more_body"):
            return b"".join(parts)
    raise Refused(400, "This request has no end.")


def _as_json(headers: list[tuple[bytes, bytes]], length: int) -> list[tuple[bytes, bytes]]:
    replaced = (b"content-length", b"content-type", b"transfer-encoding")
    kept = [(name, value) for name, value in headers if name.lower() not in replaced]
    return [*kept, (b"content-type", b"application/json"), (b"content-length", b"%d" % length)]


def _replayed(body: bytes, receive: Receive) -> Receive:
    """The body as one message, then what comes after it."""
    messages = [{"type": "http.request", "body": body, "more_body": False}]

    async def replayed() -> Message:
        return messages.pop() if messages else await receive()

    return replayed


async def _refuse(send: Send, refused: Refused) -> None:
    text = json.dumps({"detail": refused.text}).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(text))]
    if refused.status == 401:
        headers.append((b"www-authenticate", b'Basic realm="dit-heads"'))
    await send({"type": "http.response.start", "status": refused.status, "headers": headers})
    await send({"type": "http.response.body", "body": text})
