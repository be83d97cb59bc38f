"""What stands before Gradio: requests are bounded, and nothing is fetched from elsewhere."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
_ELSEWHERE = ("/file=http", "/file/http", "/proxy=", "/file%3dhttp", "/file%3Dhttp")


class TooLarge(Exception):
    """A request of more bytes than the demo reads."""


class Guard:
    """ASGI middleware.

    Args:
        app: the application behind it.
        most: bytes of a request.
    """

    def __init__(self, app: Any, most: int) -> None:
        self.app, self.most = app, most

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        if any(each in scope["path"] for each in _ELSEWHERE):
            return await _refuse(send, 404, b"There is nothing here.")
        if _length(scope) > self.most:
            return await _refuse(send, 413, b"This request is too large.")
        began = False

        async def sending(message: MutableMapping[str, Any]) -> None:
            nonlocal began
            began = True
            await send(message)

        try:
            await self.app(scope, self._counted(receive), sending)
        except TooLarge:
            if not began:
                await _refuse(send, 413, b"This request is too large.")

    def _counted(self, receive: Receive) -> Receive:
        seen = 0

        async def counted() -> MutableMapping[str, Any]:
            nonlocal seen
            message = await receive()
            seen += len(message.get("body", b""))
            if seen > self.most:
                raise TooLarge
            return message

        return counted


def _length(scope: Scope) -> int:
    """The length that a request says it has."""
    text = dict(scope["headers"]).get(b"content-length", b"0")
    return int(text) if text.isdigit() and len(text) < 20 else 0


async def _refuse(send: Send, status: int, text: bytes) -> None:
    headers = [(b"content-type", b"text/plain"), (b"content-length", str(len(text)).encode())]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": text})
