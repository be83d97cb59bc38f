"""Our own components: HTML and JavaScript of `parts/` behind Gradio's `gr.HTML`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import gradio as gr

from dit_heads.demo.facts import Facts
from dit_heads.demo.theme import part


def component(
    name: str, value: Mapping[str, Any], elem_id: str = "", scripts: Sequence[str] = (), **options: Any
) -> gr.HTML:
    """A component of `parts/NAME.html` and `parts/NAME.js`, whose value is JSON. `scripts` of `parts/` stand
    before its own."""
    return gr.HTML(
        value=value,
        html_template=part(f"{name}.html"),
        js_on_load="".join(part(f"{each}.js") for each in ("common", *scripts, name)),
        apply_default_css=False,
        elem_id=elem_id or f"dh-{name.replace('_', '-')}",
        elem_classes=["dh-part"],
        **options,
    )


def map_value(
    facts: Facts, text: str = "", scores: Mapping[str, float] | None = None, title: str = ""
) -> dict[str, Any]:
    """What the head map shows.

    Args:
        facts: of the model whose heads it shows.
        text: the chosen heads by name.
        scores: what colours the heads; by default the model's measured gains.
        title: what the scores are.
    """
    own = scores is None
    return {
        "text": text,
        "heads": list(facts.heads),
        "image_only": list(facts.image_only),
        "presets": list(facts.presets),
        "scores": dict(facts.scores if own else scores or {}),
        "title": "gain in CLIP score of each head alone" if own else title,
    }


def chosen_text(value: object) -> str:
    """The heads that a visitor chose, as text; what is none is none."""
    text = value.get("text") if isinstance(value, dict) else None
    return text.strip() if isinstance(text, str) else ""


def event_data(event: gr.EventData, name: str) -> Any:
    """A field of what one of our components sent with an event."""
    data = event._data
    return data.get(name) if isinstance(data, dict) else None
