"""From a command to a running page. Gradio is imported here, after its environment is set."""

from __future__ import annotations

import gc
import inspect
import io
import os
import socket
import tempfile
import threading
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, redirect_stdout
from functools import partial
from pathlib import Path
from typing import Any

from dit_heads.demo.limits import Limits
from dit_heads.errors import InputError

LOCAL = {"GRADIO_ANALYTICS_ENABLED": "False", "HF_HUB_DISABLE_TELEMETRY": "1", "GRADIO_NUM_PORTS": "1"}


@contextmanager
def running(
    models: Sequence[str],
    *,
    host: str = "127.0.0.1",
    port: int = 7860,
    auth: tuple[str, str] | None = None,
    share: bool = False,
    limits: Limits | None = None,
    loaders: Any = None,
    instruct_lora: Path | None = None,
    edit_lora: Path | None = None,
    soft_tokens: Path | None = None,
) -> Iterator[str]:
    """The page, served while the block runs; what it keeps on the disk is deleted after it.

    Args:
        models: names as `--model` takes them.
        host, port: where it listens; port 0 is any free one.
        auth: the name and password that visitors need.
        share: also give it a public address, through Gradio's tunnel.
        limits: of everything.
        loaders: what loads the pipeline of each model. Default: `models.load_pipeline`.
        instruct_lora: with which the first model answers questions. Default: the one that ships for it.
        edit_lora: with which it follows instructions with pictures in them. Default: as well.
        soft_tokens: folder with which it answers questions by soft tokens. Default: as well.

    Yields:
        The address of the page.

    Raises:
        InputError: if Gradio is missing, a model is not supported, two of them have one name, the LoRA does
            not fit, the port is taken, or there is no public address.
    """
    limits = limits or Limits()
    port = _usable_port(host, port)
    with tempfile.TemporaryDirectory(prefix="dit-heads-demo-") as folder, ExitStack() as start:
        os.environ.update(LOCAL, GRADIO_TEMP_DIR=folder)
        start.enter_context(_without_collecting())
        gradio = _importing_gradio()
        from dit_heads.demo.engine import Engine
        from dit_heads.demo.facts import facts_of, with_weights
        from dit_heads.models import load_pipeline, quiet_libraries

        facts = {name: facts_of(name) for name in models}
        facts[models[0]] = with_weights(facts[models[0]], instruct_lora, edit_lora, soft_tokens)
        _check_names([each.public for each in facts.values()])
        loaders = loaders or {name: partial(load_pipeline, name) for name in models}
        # Libraries' warnings quote what visitors type.
        with quiet_libraries(), Engine(loaders, limits) as engine:
            engine.warm_up()
            gradio.join()
            blocks = _blocks(engine, facts)
            try:
                address = _launched(blocks, host, port, auth, share, limits)
                start.close()
                yield address
            finally:
                blocks.close(verbose=False)


def _check_names(names: Sequence[str]) -> None:
    if twins := sorted({name for name in names if names.count(name) > 1}):
        raise InputError(f"model: expected models of different names, got two called '{twins[0]}'")


def _importing_gradio() -> threading.Thread:
    """Import Gradio beside the rest, as both take seconds."""
    try:
        from importlib.util import find_spec

        if find_spec("gradio") is None:
            raise ImportError("gradio")
    except ImportError as error:
        raise InputError("demo: Gradio is missing: pip install 'dit-heads[demo]'") from error

    def load() -> None:
        with _without_stubs():
            import gradio  # noqa: F401

    thread = threading.Thread(target=load)
    thread.start()
    return thread


@contextmanager
def _without_collecting() -> Iterator[None]:
    """No garbage is looked for while modules are imported, which so takes a fifth less time. What they have
    made by the end is never looked through again."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.freeze()
            gc.enable()


@contextmanager
def _without_stubs() -> Iterator[None]:
    """At each import Gradio parses the source of all its components, to write stubs for editors beside it,
    which takes as long as the rest. It does without for classes whose file is not known."""
    known = inspect.getfile

    def getfile(thing: Any) -> str:
        if isinstance(thing, type) and thing.__module__.startswith("gradio."):
            raise OSError("no stubs")
        return known(thing)

    inspect.getfile = getfile
    try:
        yield
    finally:
        inspect.getfile = known


def _blocks(engine: Any, facts: Any) -> Any:
    from dit_heads.demo.app import build
    from dit_heads.demo.page import Page

    return build(Page(engine, facts))


def _launched(
    blocks: Any, host: str, port: int, auth: tuple[str, str] | None, share: bool, limits: Limits
) -> str:
    blocks.queue(max_size=None, default_concurrency_limit=None)
    where = {"server_name": host, "server_port": port, "auth": auth, "share": share}
    try:
        with redirect_stdout(io.StringIO()):  # Gradio prints addresses of its own
            _, local, public = blocks.launch(**where, **_options(limits))
    except OSError as error:
        raise InputError(f"port: {host}:{port} cannot be used: {error}") from error
    if share and not public:
        raise InputError("share: there is no public address, as Gradio's tunnel cannot be reached from here")
    if auth and blocks.mcp_server:
        _sign_in(blocks.mcp_server_obj, local, auth)
    return public or local


def _options(limits: Limits) -> dict[str, Any]:
    from importlib.util import find_spec

    from starlette.middleware import Middleware

    from dit_heads.demo.app import look
    from dit_heads.demo.guard import Guard

    guard = Middleware(Guard, most=limits.request_bytes, small=limits.text_bytes)
    return {
        "mcp_server": find_spec("mcp") is not None,
        "app_kwargs": {"middleware": [guard]},
        "prevent_thread_lock": True,
        "state_session_capacity": limits.pages,
        "show_error": False,
        "quiet": True,
        "ssr_mode": False,
        "run_history": False,
        "enable_monitoring": False,
        "footer_links": ["api"],
        **look(),
    }


def _sign_in(mcp_server: Any, address: str, auth: tuple[str, str]) -> None:
    """Give the MCP endpoint, which calls the page by http, the password of the page."""
    from gradio_client import Client

    options: dict[str, Any] = {"download_files": False, "verbose": False, "analytics_enabled": False}
    mcp_server._client_instance = Client(
        address, auth=auth, headers={"x-gradio-user": "mcp"}, _skip_components=False, **options
    )


def _usable_port(host: str, port: int) -> int:
    """The port, or a free one for 0. Raises InputError, before anything is loaded, where none can be had."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind, protocol) as tried:
            tried.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            tried.bind(address)
            return tried.getsockname()[1]
    except socket.gaierror as error:
        raise InputError(f"host: expected an address of this machine, got '{host}'") from error
    except (OSError, UnicodeError) as error:
        raise InputError(f"port: {host}:{port} cannot be used: {error}") from error
