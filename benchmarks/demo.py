"""How soon the demo draws, and how soon it answers while it draws: `python benchmarks/demo.py`."""

from __future__ import annotations

import itertools
import json
import os
import re
import signal
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any, Literal

import httpx
import psutil
import tyro

API = "/gradio_api"
PROMPT = "a large red cube on grass in the day"


@dataclass(frozen=True)
class Measure:
    """Start `dit-heads demo` and measure it."""

    starts: int = 3
    """Number of starts, whose median counts; 0 measures none."""
    rounds: int = 5
    """Number of times that each event handler is called."""
    model: tuple[str, ...] = ("embedded", "embedded/flux")
    """Models of the page."""
    during: tuple[Literal["drawing", "hunt", "training"], ...] = ("drawing", "hunt", "training")
    """Jobs that run while event handlers are called, one kind after the other."""


@contextmanager
def demo(models: tuple[str, ...]) -> Iterator[tuple[str, float, subprocess.Popen[str]]]:
    """A demo of its own process: its address, the time when its command was given, and the process."""
    began = time.perf_counter()
    command = [sys.executable, "-m", "dit_heads.cli", "demo", "--port", "0", "--model", *models]
    process = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
    )
    assert process.stdout
    try:
        found = next(match for line in process.stdout if (match := re.search(r"http://\S+?(?=/? )", line)))
        yield found.group(), began, process
    finally:
        process.send_signal(signal.SIGINT)
        process.wait(60)


def draw(client: httpx.Client, **changes: Any) -> str:
    """A picture by the API, as it comes."""
    asked = {"prompt": PROMPT, "heads": "L0H5", **changes}
    event = client.post(f"{API}/call/v2/draw", json=asked).json()["event_id"]
    return client.get(f"{API}/call/v2/draw/{event}").text


def start(models: tuple[str, ...]) -> tuple[float, float, float, float]:
    """Seconds from the command to the page, to the first picture, of all cores until then, and of a second
    picture."""
    with demo(models) as (address, began, process), httpx.Client(base_url=address, timeout=300) as client:
        client.get("/").raise_for_status()
        page = time.perf_counter() - began
        assert draw(client).startswith("event: complete")
        first = time.perf_counter() - began
        used = psutil.Process(process.pid).cpu_times()
        draw(client, seed=1)
        return page, first, used.user + used.system, time.perf_counter() - began - first


def answers(client: httpx.Client, rounds: int) -> dict[str, list[float]]:
    """Seconds until each event handler of the page first answers, called with the values of the page."""
    config = client.get("/config").json()
    values = {part["id"]: part["props"].get("value") for part in config["components"]}
    found: dict[str, list[float]] = {}
    for number in range(rounds):
        for event in config["dependencies"]:
            if event["backend_fn"]:
                data = [values[key] for key in event["inputs"]]
                name = f"{event['id']} {event['targets'][0][1] if event['targets'] else event['api_name']}"
                session = f"measure{number}x{event['id']}"
                found.setdefault(name, []).append(answer(client, event["id"], data, session))
    return found


def answer(
    client: httpx.Client, number: int, data: list[Any], session: str, first: str = "process_generating"
) -> float:
    """Seconds until an event answers: at first, or with "process_completed" at last."""
    body = {"data": data, "fn_index": number, "session_hash": session, "event_data": {}, "trigger_id": None}
    began = time.perf_counter()
    client.post(f"{API}/queue/join", json=body).raise_for_status()
    with client.stream("GET", f"{API}/queue/data", params={"session_hash": session}) as reply:
        for line in reply.iter_lines():
            message = json.loads(line.removeprefix("data: ")) if line.startswith("data: ") else {}
            if message.get("msg") in (first, "process_completed"):
                return time.perf_counter() - began
    raise RuntimeError(f"event {number} has no answer")


def busy(client: httpx.Client, stop: threading.Event, kind: str = "drawing") -> None:
    """Keep one job of a kind under way, until it is to stop or the server has gone."""
    with suppress(httpx.HTTPError):
        for number in itertools.takewhile(lambda _: not stop.is_set(), itertools.count(1)):
            if kind == "drawing":
                draw(client, seed=number, steps=60)
            else:
                press(client, {"hunt": "dh-hunt", "training": "dh-train"}[kind], f"busy{number}")


def press(client: httpx.Client, button: str, session: str) -> None:
    """Press a button of the page, and wait until all that it does is done."""
    config = client.get("/config").json()
    values = {part["id"]: part["props"].get("value") for part in config["components"]}
    (part,) = (p["id"] for p in config["components"] if p["props"].get("elem_id") == button)
    event = next(e for e in config["dependencies"] if [part, "click"] in e["targets"])
    answer(client, event["id"], [values[key] for key in event["inputs"]], session, "process_completed")


def main(measure: Measure) -> None:
    """Print what was measured."""
    if starts := [start(measure.model) for _ in range(measure.starts)]:
        page, first, used, second = (statistics.median(each) for each in zip(*starts, strict=True))
        print(f"page after {page:.1f} s, first picture after {first:.1f} s ({used:.1f} s of all cores)")
        print(f"another picture in {second:.1f} s", flush=True)
    for kind in measure.during:
        print(f"event handlers during a {kind}:" if kind != "drawing" else "event handlers during drawings:")
        print_answers(measure, kind)


def print_answers(measure: Measure, kind: str) -> None:
    """How soon each event handler answers while a job of a kind runs."""
    stop = threading.Event()
    with demo(measure.model) as (address, _, _), httpx.Client(base_url=address, timeout=600) as client:
        draw(client)
        threading.Thread(target=busy, args=(client, stop, kind), daemon=True).start()
        time.sleep(1 if kind == "drawing" else 20)  # a search and a training take a while to begin
        found = answers(client, measure.rounds)
        stop.set()
    for name, seconds in found.items():
        print(f"{name:24} {1000 * statistics.median(seconds):6.0f} ms, at most {1000 * max(seconds):6.0f} ms")
    slowest = max(statistics.median(each) for each in found.values())
    print(f"slowest median: {1000 * slowest:.0f} ms", flush=True)


if __name__ == "__main__":
    main(tyro.cli(Measure))
