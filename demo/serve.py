"""From a command to a running page. Gradio is imported here, after its environment is set."""

from __future__ import annotations

import os
import tempfile
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
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
) -> Iterator[str]:
    """The page, served while the block runs; what it keeps on the disk is deleted after it.

    Args:
        models: names as `--model` takes them.
        host, port: where it listens; port 0 is any free one.
        auth: the name and password that visitors need.
        share: also give it a public address, through Gradio's tunnel.
        limits: of everything.
        loaders: what loads the pipeline of each model. Default: `models.load_pipeline`.

    Yields:
        The address of the page.

    Raises:
        InputError: if Gradio is missing, a model is not supported, or the port is taken.
    """
    limits = limits or Limits()
    with tempfile.TemporaryDirectory(prefix="dit-heads-demo-") as folder:
        os.environ.update(LOCAL, GRADIO_TEMP_DIR=folder)
        gradio = _importing_gradio()
        from dit_heads.demo.engine import Engine
        from dit_heads.demo.facts import facts_of
        from dit_heads.models import load_pipeline

        facts = {name: facts_of(name) for name in models}
        with Engine(loaders or {name: partial(load_pipeline, name) for name in models}, limits) as engine:
            engine.warm_up()
            gradio.join()
            blocks = _blocks(engine, facts)
            try:
                yield _launched(blocks, host, port, auth, share, limits)
            finally:
                blocks.close(verbose=False)


def _importing_gradio() -> threading.Thread:
    """Import Gradio beside the rest, as both take seconds."""
    try:
        from importlib.util import find_spec

        if find_spec("gradio") is None:
            raise ImportError("gradio")
    except ImportError as error:
        raise InputError("demo: Gradio is missing: pip install 'dit-heads[demo]'") from error

    def load() -> None:
        import gradio  # noqa: F401

    thread = threading.Thread(target=load)
    thread.start()
    return thread


def _blocks(engine: Any, facts: Any) -> Any:
    from dit_heads.demo.app import build
    from dit_heads.demo.page import Page

    return build(Page(engine, facts))


def _launched(
    blocks: Any, host: str, port: int, auth: tuple[str, str] | None, share: bool, limits: Limits
) -> str:
    from importlib.util import find_spec

    from starlette.middleware import Middleware

    from dit_heads.demo.app import look
    from dit_heads.demo.guard import Guard

    blocks.queue(max_size=None, default_concurrency_limit=None)
    most = max(limits.lora_bytes, 2 * limits.upload_bytes)
    try:
        _, local, public = blocks.launch(
            server_name=host,
            server_port=port or _free_port(host),
            auth=auth,
            share=share,
            max_file_size=limits.lora_bytes,
            mcp_server=find_spec("mcp") is not None,
            app_kwargs={"middleware": [Middleware(Guard, most=most)]},
            prevent_thread_lock=True,
            show_error=False,
            quiet=True,
            ssr_mode=False,
            run_history=False,
            enable_monitoring=False,
            footer_links=["api"],
            **look(),
        )
    except OSError as error:
        raise InputError(f"port: {host}:{port} cannot be used: {error}") from error
    return public or local


def _free_port(host: str) -> int:
    import socket

    with socket.socket() as found:
        found.bind((host, 0))
        return found.getsockname()[1]
