"""The server's log names errors and their places, and nothing that a visitor typed or brought."""

import json
import logging
import re
import signal
import subprocess
import sys
import traceback
import warnings
from contextlib import nullcontext

import pytest
import torch
from diffusers import StableDiffusion3Pipeline
from PIL import Image

from dit_heads.demo.drawing import Drawing
from dit_heads.demo.engine import ASIDE, Engine
from dit_heads.demo.log import LOG, log_error, place_of, private_log
from dit_heads.demo.shelf import Shelf
from dit_heads.demo.training import Training
from tests.saved import tiny_pipeline, tiny_vae

WORDS = "zyzzyva"
pytestmark = pytest.mark.filterwarnings("default")  # as in a server


def fail(message: str):
    try:
        raise KeyError(message)
    except KeyError as error:
        raise RuntimeError(message) from error


def test_an_error_is_logged_by_its_kinds_and_places(capsys):
    with private_log():
        try:
            fail(WORDS)
        except RuntimeError as error:
            traceback.print_exc()
            log_error("again", error)
    text = capsys.readouterr().err
    assert WORDS not in text and text.count("a handler failed") == 1 and "again" not in text
    assert text.index("builtins.KeyError") < text.index("builtins.RuntimeError")
    assert "raise KeyError(message)" in text and "test_log.py" in text


def test_what_hides_its_cause_is_told_alone():
    try:
        try:
            fail("a")
        except RuntimeError:
            raise ValueError("b") from None
    except ValueError as error:
        assert "RuntimeError" not in place_of(error)


def test_nothing_else_reaches_the_log_and_afterwards_all_is_as_before(capsys):
    before = sys.stderr, list(LOG.handlers), LOG.propagate
    with private_log():
        print(WORDS, file=sys.stderr)
        warnings.warn(WORDS, stacklevel=1)
        logging.getLogger("other").warning(WORDS)
        LOG.error("the demo's own")
    assert (sys.stderr, LOG.handlers, LOG.propagate) == before
    text = capsys.readouterr().err
    assert "the demo's own" in text and WORDS not in text


@pytest.fixture
def folder(tmp_path) -> str:
    torch.manual_seed(1)
    parts = {**tiny_pipeline().components, "vae": tiny_vae(8, 8, 8, 8)}
    StableDiffusion3Pipeline(**parts).save_pretrained(tmp_path / "small")
    return str(tmp_path / "small")


def brought(folder, check):
    for number in range(2):
        (folder / f"{WORDS}{number}").mkdir(parents=True)
        for side in ("a", "b"):
            name = folder / f"{WORDS}{number}" / f"{WORDS} {side}.png"
            Image.new("RGB", (64, 64), (90 * number, 90, 200)).save(name)
        (folder / f"{WORDS}{number}" / "caption.txt").write_text(f"two. {f'{WORDS} ' * 99}")


@pytest.mark.slow
@pytest.mark.parametrize("private", [False, True])
def test_jobs_write_no_words_of_visitors(folder, settings, capsys, private):
    training = Training(
        folder, f"{WORDS}.safetensors", brought, 1, 2, 64, Shelf("lora", 4, 2**24), 1, 2, precision="no"
    )
    with private_log() if private else nullcontext(), Engine({folder: tiny_pipeline}) as engine:
        engine.submit(folder, Drawing(settings(model=folder, prompt=f"{WORDS} " * 99))).wait(60)
        engine.submit(ASIDE, training).wait(60)
    assert (WORDS in capsys.readouterr().err) is not private


@pytest.mark.slow
def test_the_log_of_a_server_names_no_words_of_its_visitors(folder, tmp_path):
    httpx = pytest.importorskip("httpx")
    pytest.importorskip("gradio")
    log = tmp_path / "log"
    command = [sys.executable, "-m", "dit_heads.cli", "demo", "--port", "0", "--model", folder]
    with log.open("w") as err:
        server = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=err, text=True)
    try:
        assert server.stdout
        address = re.search(r"http://\S+?(?=/? )", server.stdout.readline())
        assert address
        with httpx.Client(base_url=address.group(), timeout=120) as client:
            ask_everything(client)
    finally:
        server.send_signal(signal.SIGINT)
        server.communicate(timeout=60)
    assert "a handler failed" in log.read_text() and WORDS not in log.read_text()


def ask_everything(client):
    """Call every event with words of a visitor wherever text may stand, and the API with a long prompt."""
    api = "/gradio_api"
    asked = {"prompt": f"{WORDS} " * 99, "steps": 1}
    event = client.post(f"{api}/call/v2/draw", json=asked).json()["event_id"]
    assert "complete" in client.get(f"{api}/call/v2/draw/{event}").text
    config = client.get("/config").json()
    values = {part["id"]: part["props"].get("value") for part in config["components"]}
    for each in (event for event in config["dependencies"] if event["backend_fn"]):
        session = f"words{each['id']}"
        typed = [WORDS if isinstance(value := values[key], str | None) else value for key in each["inputs"]]
        body = {"data": typed, "fn_index": each["id"], "session_hash": session, "trigger_id": None}
        body["event_data"] = {"name": WORDS, "data": WORDS, "files": [{"name": WORDS, "data": WORDS}]}
        client.post(f"{api}/queue/join", json=body).raise_for_status()
        with client.stream("GET", f"{api}/queue/data", params={"session_hash": session}) as reply:
            for line in reply.iter_lines():
                if '"process_completed"' in line and json.loads(line.removeprefix("data: ")):
                    break
