"""How the page looks: one accent colour, fonts of the visitor's own machine, and the style sheet."""

from __future__ import annotations

from pathlib import Path

import gradio as gr

PARTS = Path(__file__).with_name("parts")
_SANS = ("Inter", "ui-sans-serif", "system-ui", "Segoe UI", "sans-serif")
_MONO = ("ui-monospace", "SFMono-Regular", "Menlo", "Consolas", "monospace")
# From the lightest to the darkest.
_ACCENT = (
    *("#fdf4ef", "#f9e2d6", "#f3c3ab", "#ec9f7c", "#e27a4f", "#d05a2c"),
    *("#b8441f", "#98371b", "#7a2f1b", "#5f271a", "#34130b"),
)
_STONE = (
    *("#faf8f5", "#f4f0eb", "#e9e3dc", "#d9d1c8", "#aaa096", "#857b72"),
    *("#6b635c", "#4d463f", "#37312c", "#211e1b", "#181614"),
)


def part(name: str) -> str:
    """The text of a file of the page."""
    return (PARTS / name).read_text("utf-8")


def theme() -> gr.themes.Base:
    """Gradio's plainest theme in our colours, light and dark."""
    made = gr.themes.Base(
        primary_hue=gr.themes.Color(*_ACCENT, name="accent"),
        neutral_hue=gr.themes.Color(*_STONE, name="stone"),
        font=_SANS,
        font_mono=_MONO,
        radius_size=gr.themes.sizes.radius_lg,
        spacing_size=gr.themes.sizes.spacing_md,
    )
    return made.set(
        body_background_fill="#f8f5f1",
        body_background_fill_dark="#181614",
        body_text_color="#211d1a",
        body_text_color_dark="#f3eee8",
        body_text_color_subdued="#6b635c",
        body_text_color_subdued_dark="#a99f95",
        block_background_fill="#ffffff",
        block_background_fill_dark="#211e1b",
        block_border_color="#e4ddd5",
        block_border_color_dark="#37312c",
        block_border_width="1px",
        block_shadow="none",
        block_label_background_fill="transparent",
        block_label_background_fill_dark="transparent",
        block_label_border_width="0px",
        block_label_text_color="#6b635c",
        block_label_text_color_dark="#a99f95",
        checkbox_label_background_fill="#f1ece6",
        checkbox_label_background_fill_dark="#2a2622",
        checkbox_label_background_fill_selected="#f6e3da",
        checkbox_label_background_fill_selected_dark="#3a241a",
        button_secondary_background_fill="#f1ece6",
        button_secondary_background_fill_dark="#2a2622",
        button_secondary_text_color="#211d1a",
        button_secondary_text_color_dark="#f3eee8",
        block_title_text_weight="600",
        block_title_text_color="#211d1a",
        block_title_text_color_dark="#f3eee8",
        block_info_text_color="#6b635c",
        block_info_text_color_dark="#a99f95",
        block_radius="14px",
        input_background_fill="#ffffff",
        input_background_fill_dark="#1b1917",
        input_border_color="#d9d1c8",
        input_border_color_dark="#4d463f",
        slider_color="#b8441f",
        slider_color_dark="#ff8a5c",
        button_primary_background_fill="#b8441f",
        button_primary_background_fill_hover="#98371b",
        button_primary_background_fill_dark="#ff8a5c",
        button_primary_background_fill_hover_dark="#ffa17b",
        button_primary_text_color="#ffffff",
        button_primary_text_color_dark="#241006",
        button_large_radius="12px",
        button_large_text_weight="600",
        panel_border_width="0px",
        panel_background_fill="transparent",
        panel_background_fill_dark="transparent",
    )
