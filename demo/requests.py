"""What a request of the page and of its API must look like before Gradio sees it."""

from __future__ import annotations

import base64
import binascii
import json
import re
import secrets
from collections.abc import Mapping
from http.cookies import CookieError, SimpleCookie
from typing import Any

from dit_heads.errors import InputError

DEPTH = 32  # of lists and objects in one another
_SESSION = re.compile(r"[\w-]{1,64}")
_JOINED = ("data", "fn_index", "session_hash", "trigger_id", "event_data")


def checked_body(body: bytes, path: str, app: Any) -> bytes:
    """The body of a POST request as it is handed on.

    Args:
        body: its bytes.
        path: of its route, below Gradio's prefix.
        app: Gradio's application, whose events the request may name.

    Raises:
        InputError: for what is no JSON or does not fit an event.
    """
    sent = parsed(body)
    if path.startswith("/mcp"):
        return written(sent)
    if not isinstance(sent, dict):
        raise InputError(f"request: expected a JSON object, got {type(sent).__name__}")
    if path == "/queue/join":
        sent = _event(sent, app.get_blocks())
    elif path.startswith("/call/v2/"):
        sent = _named(sent, path.removeprefix("/call/v2/"), app.get_blocks())
    elif path.startswith("/call/"):
        sent = _listed(sent, path.removeprefix("/call/"), app.get_blocks())
    else:
        sent = _ended(sent)
    return written(sent)


def parsed(body: bytes) -> Any:
    """The value of JSON text. Raises InputError for other text, and for what is nested too deeply."""
    try:
        sent = json.loads(body)
        _check_value(sent, DEPTH)
    except (ValueError, RecursionError) as error:
        told = f"request: expected JSON text, nested at most {DEPTH} deep, without files on this machine"
        raise InputError(told) from error
    return sent


def written(value: Any) -> bytes:
    """JSON text of a value. Raises InputError for NaN, infinity, and text that cannot be stored as UTF-8."""
    try:
        return json.dumps(value, allow_nan=False, ensure_ascii=False).encode()
    except ValueError as error:
        raise InputError("request: expected finite numbers and text that can be stored as UTF-8") from error


def _check_value(value: Any, left: int) -> None:
    """Raise ValueError for deep nesting, for whole numbers of more than 64 bits, and for what Gradio takes
    for a file: it would look for it on this machine, or fetch it from another."""
    if isinstance(value, int) and abs(value) >= 2**63:
        raise ValueError("a number is too large")
    if isinstance(value, dict) and "path" in value and "meta" in value:
        raise ValueError("a file by its path")
    if isinstance(value, dict | list):
        if not left:
            raise ValueError("nested too deeply")
        for each in value.values() if isinstance(value, dict) else value:
            _check_value(each, left - 1)


def _event(sent: dict[str, Any], blocks: Any) -> dict[str, Any]:
    """An event of the page."""
    number = sent.get("fn_index")
    known = blocks.fns.get(number) if type(number) is int else None
    if known is None or known.fn is None:
        raise InputError("fn_index: expected the number of an event of this page")
    _check_session(sent)
    _check_data(sent.get("data"), len(known.inputs))
    return {name: sent[name] for name in _JOINED if name in sent}


def _listed(sent: dict[str, Any], name: str, blocks: Any) -> dict[str, Any]:
    """A call with its arguments in their order."""
    parameters = _parameters(name, blocks)
    _check_data(sent.get("data"), len(parameters))
    return {"data": sent["data"]}


def _named(sent: dict[str, Any], name: str, blocks: Any) -> dict[str, Any]:
    """A call with named arguments."""
    parameters = _parameters(name, blocks)
    names = [each["parameter_name"] for each in parameters]
    if unknown := sorted(set(sent) - set(names)):
        raise InputError(f"request: expected {', '.join(names)}, got '{unknown[0][:80]}'")
    needed = [each["parameter_name"] for each in parameters if not each["parameter_has_default"]]
    if missing := [each for each in needed if each not in sent]:
        raise InputError(f"{missing[0]}: expected a value, got none")
    return sent


def _ended(sent: dict[str, Any]) -> dict[str, Any]:
    """What ends an event."""
    _check_session(sent)
    number, event = sent.get("fn_index"), sent.get("event_id", "")
    if type(number) is not int or not isinstance(event, str) or not _SESSION.fullmatch(event or "-"):
        raise InputError("request: expected fn_index and event_id of an event of this page")
    return {"session_hash": sent["session_hash"], "fn_index": number, "event_id": event}


def _parameters(name: str, blocks: Any) -> list[dict[str, Any]]:
    named = blocks.get_api_info()["named_endpoints"]
    if f"/{name}" not in named:
        raise InputError(f"request: there is no call '{name[:80]}' here")
    return named[f"/{name}"]["parameters"]


def _check_session(sent: Mapping[str, Any]) -> None:
    session = sent.get("session_hash")
    if not isinstance(session, str) or not _SESSION.fullmatch(session):
        raise InputError("session_hash: expected at most 64 letters and digits")


def _check_data(data: object, count: int) -> None:
    if not isinstance(data, list) or len(data) != count:
        raise InputError(f"data: expected a list of {count} values")


def signed_in(app: Any, headers: Mapping[bytes, bytes]) -> bool:
    """Whether a request comes from somebody who has signed in, with Gradio's cookie or by HTTP's basic
    scheme; without `--auth` everybody has."""
    if app.auth is None:
        return True
    return _cookie(app, headers) or _basic(app.auth, headers)


def _cookie(app: Any, headers: Mapping[bytes, bytes]) -> bool:
    try:
        found = SimpleCookie(headers.get(b"cookie", b"").decode("latin-1"))
    except CookieError:
        return False
    names = (f"access-token-{app.cookie_id}", f"access-token-unsecure-{app.cookie_id}")
    return any(name in found and found[name].value in app.tokens for name in names)


def _basic(auth: Any, headers: Mapping[bytes, bytes]) -> bool:
    scheme, _, text = headers.get(b"authorization", b"").partition(b" ")
    if scheme.lower() != b"basic" or not isinstance(auth, Mapping):
        return False
    try:
        name, _, password = base64.b64decode(text, validate=True).decode().partition(":")
    except (binascii.Error, ValueError):
        return False
    return secrets.compare_digest(str(auth.get(name, "")).encode(), password.encode()) and name in auth
