"""Malformed requests of every kind: each is answered without a failure of the server, nothing of the machine
is shown, no file is written, and the demo goes on drawing."""

import json
import logging
import os
import re
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest

pytest.importorskip("gradio")

from dit_heads.demo import hunting
from dit_heads.demo.limits import Limits
from dit_heads.demo.serve import running
from tests.demo.malformed import API, JSON, Page, Request
from tests.saved import red, tiny_pipeline

pytestmark = pytest.mark.filterwarnings("ignore")  # those of the server's libraries
QUICK = Limits(steps=4, seconds=1.0, queue=500, per_visitor=500)
SHOWN = re.compile(r"Traceback|site-packages|\.py\"|root:x:|\[fonts\]")
_WRITTEN: list[str] = []
_WATCHING = False


def _watch(event, arguments):
    """Notes every file that this process makes or opens for writing."""
    if not _WATCHING or event not in ("open", "os.mkdir", "os.rename", "os.link", "os.symlink"):
        return
    flags = arguments[2] if event == "open" and len(arguments) > 2 else os.O_WRONLY
    if isinstance(arguments[0], str) and flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
        _WRITTEN.append(arguments[0])


sys.addaudithook(_watch)


@pytest.fixture(scope="module")
def served(model, instruct_lora, edit_lora, soft_tokens, tmp_path_factory):
    """The address of a demo whose folder of temporary files is its own, and that folder."""
    folder = tmp_path_factory.mktemp("temporary")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tempfile, "tempdir", str(folder))
        patch.setattr(hunting, "load_objective", lambda name, known: red)
        how = {"limits": QUICK, "loaders": {model: tiny_pipeline}, "instruct_lora": instruct_lora}
        how |= {"edit_lora": edit_lora, "soft_tokens": soft_tokens}
        with running([model], port=0, **how) as address:
            yield address.rstrip("/"), folder


@pytest.fixture
def client(served):
    with httpx.Client(base_url=served[0], timeout=60.0) as client:
        yield client


def routes() -> list[str]:
    """All paths that Gradio has, open or not."""
    from gradio import Blocks
    from gradio.routes import App

    with Blocks() as blocks:
        pass
    found = [getattr(route, "path", "") for route in App.create_app(blocks).routes]
    known = ["/file={path:path}", "/proxy={path:path}", "/upload", "/deep_link?session_hash=x", "/vibe-code/"]
    return sorted({path for path in found if path}) + [API + path for path in known]


def drawn(client) -> str:
    """A picture by the API."""
    asked = {"prompt": "a cat", "heads": "L1H1", "steps": 2, "seed": 3}
    event = client.post(f"{API}/call/v2/draw", json=asked).json()["event_id"]
    return client.get(f"{API}/call/v2/draw/{event}").text


def answer(client, request: Request) -> tuple[int, str]:
    """Status and text of a reply, and of what comes of the event that it began."""
    try:
        with client.stream(
            request.method, request.path, content=request.content, headers=request.headers, timeout=5.0
        ) as reply:
            status, text = reply.status_code, start_of(reply)
    except (httpx.InvalidURL, httpx.LocalProtocolError, UnicodeEncodeError):
        return 0, ""  # this client cannot even send it
    if status == 200 and "event_id" in text:
        text += outcome(client, request, json.loads(text)["event_id"])
    return status, text


def start_of(reply) -> str:
    """A reply, or the start of one that does not end."""
    if "event-stream" in reply.headers.get("content-type", "") and "mcp" not in str(reply.url):
        return next(reply.iter_text(), "")
    return reply.read().decode(errors="replace")


def outcome(client, request: Request, event: str) -> str:
    """All messages of an event until it is over."""
    call = request.path if "/call/" in request.path else ""
    path = f"{call.rstrip('/')}/{event}" if call else f"{API}/queue/data?session_hash={request.session}"
    text = ""
    with client.stream("GET", path, timeout=30.0) as reply:
        for line in reply.iter_lines():
            text += line
            if "process_completed" in line or "close_stream" in line:
                return text
    return text


def check(served, client, requests, caplog):
    """All that must hold of the answers to requests."""
    global _WATCHING
    folder = served[1]
    before, home = drawn(client), str(Path.home())
    secret = (str(folder), str(Path.cwd()), f"{home}/", os.environ.get("PATH", "/usr/bin"))
    _WRITTEN.clear()
    _WATCHING = True
    try:
        with ThreadPoolExecutor(8) as pool, caplog.at_level(logging.ERROR):
            answers = list(pool.map(lambda request: answer(client, request), requests))
    finally:
        _WATCHING = False
    wrong = []
    for request, (status, text) in zip(requests, answers, strict=True):
        if status >= 500 or SHOWN.search(text) or any(each in text for each in secret):
            asked = f"{request.method} {request.path} {request.content[:600]!r}"
            wrong.append(f"{status} {text[:600]}\n   for {asked}")
    assert not wrong, f"{len(wrong)}:\n" + "\n".join(wrong[:12])
    assert [record.getMessage() for record in caplog.records if record.levelno >= logging.ERROR] == []
    outside = [path for path in _WRITTEN if not path.startswith((str(folder), "/dev/", "/proc/"))]
    assert outside == []
    kept = [path.relative_to(folder) for path in folder.rglob("*") if path.is_file()]
    assert [path for path in kept if not path.parts[0].startswith("dit-heads-")] == []
    assert drawn(client) == before and before.startswith("event: complete")


@pytest.mark.parametrize("count", [60, pytest.param(2000, marks=pytest.mark.slow)])
def test_malformed_requests_are_refused_and_the_demo_goes_on_drawing(served, client, caplog, count):
    config = client.get("/config").json()
    check(served, client, list(Page(config, routes(), seed=count).requests(count)), caplog)


def test_nothing_of_the_machine_is_in_what_the_page_says_of_itself(served, client, model):
    for path in ("/", "/config", f"{API}/info", f"{API}/openapi.json", f"{API}/mcp/schema", "/theme.css"):
        text = client.get(path).text
        assert not SHOWN.search(text), path
        assert all(each not in text for each in (model, str(served[1]), str(Path.cwd()))), path


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("POST", f"{API}/upload", 404),
        ("GET", f"{API}/file=/etc/passwd", 404),
        ("GET", f"{API}/proxy=https://a.b/c", 404),
        ("GET", f"{API}/deep_link?session_hash=x", 404),
        ("POST", f"{API}/run/draw", 404),
        ("POST", f"{API}/vibe-edit", 404),
        ("PUT", "/", 405),
    ],
)
def test_routes_that_the_page_does_not_need_are_closed(client, method, path, status):
    assert client.request(method, path, json={"data": []}).status_code == status


def test_a_call_that_cannot_be_drawn_is_told_why(client):
    reply = client.post(f"{API}/call/v2/draw", json={"prompt": "a cat", "colour": "red"}, headers=JSON)
    assert reply.status_code == 400 and "expected prompt, heads" in reply.json()["detail"]
