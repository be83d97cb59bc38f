"""Controls that several tabs have."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import gradio as gr

from dit_heads.demo.facts import Facts
from dit_heads.demo.limits import MAX_SEED
from dit_heads.demo.page import QUIET


def model_choice(models: Mapping[str, Facts]) -> gr.Radio:
    """The models of a page; hidden where there is one alone."""
    choices = [(_title(facts), facts.public) for facts in models.values()]
    return gr.Radio(choices, value=choices[0][1], label="Model", visible=len(choices) > 1)


def _title(facts: Facts) -> str:
    return {"embedded": "SD3, small", "embedded/flux": "FLUX, small"}.get(facts.name, facts.public)


def slider(low: float, high: float, value: float, step: float, label: str, info: str) -> gr.Slider:
    """A slider of half a column."""
    return gr.Slider(low, high, value, step=step, label=label, info=info, min_width=150)


def seed_line() -> gr.Number:
    """A seed, and a button for another one."""
    with gr.Row():
        seed = gr.Number(0, label="Seed", precision=0, minimum=0, maximum=MAX_SEED, min_width=140)
        dice = gr.Button("Another seed", size="md", min_width=110, elem_classes="dh-dice")
        dice.click(None, None, seed, js=f"() => Math.floor(Math.random() * {2**31})", **QUIET)
    return seed


def negative_prompt() -> gr.Textbox:
    """What classifier-free guidance leads away from."""
    info = "What CFG leads away from; FLUX reads none"
    return gr.Textbox(label="Negative prompt", info=info, max_length=1000)


def recipe_codes(name: str) -> list[gr.Code]:
    """Places for a command line and for Python."""
    empty = "# It stands here once something is drawn."  # Gradio's sign of no code fails readers of screens
    options: dict[str, Any] = {"interactive": False, "wrap_lines": True, "show_line_numbers": False}
    return [
        gr.Code(empty, "shell", label="Command line", lines=1, elem_id=f"dh-{name}command", **options),
        gr.Code(empty, "python", label="Python", lines=1, elem_id=f"dh-{name}python", **options),
    ]


def swapped(busy: bool) -> list[Any]:
    """Updates of a button that starts and of one that cancels, of which one is shown."""
    return [gr.update(visible=not busy), gr.update(visible=busy)]
