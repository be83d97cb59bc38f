"""The demo as programs reach it: by Gradio's client, by MCP, with a password, and from the command line."""

import asyncio
import base64
import io
import json
import socket

import httpx
import pytest
from PIL import Image

pytest.importorskip("gradio")
pytest.importorskip("mcp")

from gradio_client import Client
from gradio_client.exceptions import AppError, AuthenticationError
from mcp import ClientSession
from mcp.client.streamable_http import streamablehttp_client

from benchmarks.demo import draw
from dit_heads.cli import main
from dit_heads.demo.serve import running
from dit_heads.errors import InputError
from tests.demo.watched import memory_grown
from tests.saved import tiny_pipeline

pytestmark = pytest.mark.filterwarnings("ignore")  # those of the server's libraries
ANN = ("ann", "secret")
ASKED = {"prompt": "a cat", "heads": "L1H1", "steps": 2, "seed": 5}


@pytest.fixture(scope="module")
def address(model):
    """A page on the saved pipeline of a folder, as `--model FOLDER` opens it."""
    with running([model], port=0) as address:
        yield address


@pytest.fixture(scope="module")
def guarded(model):
    with running([model], port=0, auth=ANN, loaders={model: tiny_pipeline}) as address:
        yield address


def settings_in(uri: str) -> dict:
    data = base64.b64decode(uri.removeprefix("data:image/png;base64,"))
    return json.loads(Image.open(io.BytesIO(data)).info["parameters"])


def tell(address, ask, auth=None):
    """What an MCP session answers to `ask`."""
    headers = {"authorization": "Basic " + base64.b64encode(":".join(auth).encode()).decode()} if auth else {}

    async def session():
        async with (
            streamablehttp_client(f"{address}gradio_api/mcp/", headers=headers) as (read, write, _),
            ClientSession(read, write) as session,
        ):
            await session.initialize()
            return await ask(session)

    return asyncio.run(session())


def test_gradios_client_draws_a_picture_that_keeps_its_settings(address):
    picture = Client(address, verbose=False).predict(**ASKED, api_name="/draw")
    kept = settings_in(picture)
    assert {name: kept[name] for name in ASKED} == ASKED and kept["model"] == "tiny"


def test_gradios_client_is_told_why_a_picture_is_not_drawn(address):
    with pytest.raises(AppError, match="steps: expected at most 60 here, got 61"):
        Client(address, verbose=False).predict("a cat", steps=61, api_name="/draw")


def test_mcp_lists_one_tool_which_draws_the_same_picture(address):
    picture = Client(address, verbose=False).predict(**ASKED, api_name="/draw")
    listed = tell(address, lambda session: session.list_tools())
    assert [tool.name for tool in listed.tools] == ["draw"]
    assert listed.tools[0].inputSchema["required"] == ["prompt"]
    drawn = tell(address, lambda session: session.call_tool("draw", ASKED))
    assert not drawn.isError and drawn.content[0].text == picture


@pytest.mark.parametrize(
    ("asked", "told"),
    [
        ({"prompt": "a cat", "steps": 61}, "steps: expected at most 60"),
        ({"prompt": "a cat", "heads": "L99"}, "heads: the model has blocks"),
        ({"prompt": "a cat", "model": "other"}, "model: expected one of this page, tiny"),
        ({"heads": "L1"}, "'prompt' is a required property"),
    ],
)
def test_mcp_is_told_why_a_picture_is_not_drawn(address, asked, told):
    drawn = tell(address, lambda session: session.call_tool("draw", asked))
    assert drawn.isError and told in drawn.content[0].text


@pytest.mark.slow
def test_memory_is_level_after_100_requests_by_http(address):
    def work(count):
        with httpx.Client(base_url=address, timeout=120) as client:
            for seed in range(count):
                assert draw(client, seed=seed, steps=2, heads=f"L{seed % 3}").startswith("event: complete")

    assert memory_grown(work) < 16 * 2**20


def test_with_a_password_nobody_draws_without_it(guarded):
    with pytest.raises(AuthenticationError):
        Client(guarded, verbose=False)
    with pytest.raises(ValueError, match="Could not login"):
        Client(guarded, auth=("ann", "guess"), verbose=False)
    with pytest.raises(ExceptionGroup, match="unhandled errors"):
        tell(guarded, lambda session: session.list_tools())


def test_with_a_password_both_kinds_of_clients_draw(guarded):
    picture = Client(guarded, auth=ANN, verbose=False).predict(**ASKED, api_name="/draw")
    drawn = tell(guarded, lambda session: session.call_tool("draw", ASKED), ANN)
    assert drawn.content[0].text == picture


def test_a_port_that_is_taken_is_told_in_a_sentence(model, capsys):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert main(["demo", "--model", model, "--port", str(port)]) == 2
    told = capsys.readouterr().err
    assert f"port: 127.0.0.1:{port} cannot be used" in told and "Traceback" not in told


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        (["--port", "70000"], "port: expected a number from 0 to 65535"),
        (["--auth", "ann"], "auth: expected NAME:PASSWORD"),
        (["--queue", "0"], "queue: expected"),
        (["--host", "256.1.1.1", "--port", "0"], "host: "),
        (["--model", "nothing/here"], "model: "),
    ],
)
def test_flags_that_cannot_be_followed_are_told_in_a_sentence(flags, told, model, capsys):
    flags = flags if "--model" in flags else [*flags, "--model", model]
    assert main(["demo", *flags]) == 2
    shown = capsys.readouterr().err
    assert told in shown and "Traceback" not in shown


def test_without_a_tunnel_there_is_no_public_page(model, monkeypatch):
    import gradio.networking

    def no_tunnel(**where):
        raise RuntimeError("Could not get share link")

    monkeypatch.setattr(gradio.networking, "setup_tunnel", no_tunnel)
    with (
        pytest.raises(InputError, match="share: there is no public address"),
        running([model], port=0, share=True, loaders={model: tiny_pipeline}),
    ):
        pass


def test_two_models_of_one_name_are_refused(model, tmp_path):
    from shutil import copytree

    copytree(model, tmp_path / "tiny")
    with (
        pytest.raises(InputError, match="expected models of different names, got two called 'tiny'"),
        running([model, str(tmp_path / "tiny")], port=0),
    ):
        pass
