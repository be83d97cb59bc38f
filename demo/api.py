"""What programs may call: the API page and the MCP endpoint, under the limits of the page."""

from __future__ import annotations

from typing import Any, Literal

import gradio as gr

from dit_heads.cli.generate import Settings, stored
from dit_heads.demo.drawing import Drawing, check_settings
from dit_heads.demo.facts import known_as
from dit_heads.demo.files import png_uri
from dit_heads.demo.page import Page, visitor
from dit_heads.demo.sentences import sentence
from dit_heads.errors import InputError


def add_api(page: Page) -> None:
    """Add the calls to the page that is being built."""

    async def draw(
        prompt: str,
        heads: str = "",
        scale: float = 3.0,
        softness: float = 1.0,
        perturbation: Literal["identity", "uniform", "mean_query", "arg_max"] = "identity",
        region: Literal["joint", "image", "image_to_image"] = "joint",
        start: float = 0.0,
        stop: float = 1.0,
        negative_prompt: str = "",
        guidance_scale: float = 4.0,
        steps: int = 12,
        seed: int = 0,
        model: str = "",
        request: gr.Request = None,  # pyright: ignore[reportArgumentType]  # Gradio fills it in
    ) -> str:
        """Draw a picture, guided by chosen attention heads.

        Args:
            prompt: What the picture shows.
            heads: Names of heads, such as "L0H5, L2, L4H0-3". Empty for no head guidance.
            scale: Head guidance scale w.
            softness: How far the heads are perturbed, u, from 0 to 1.
            perturbation: What replaces the attention map of a head.
            region: Tokens whose attention is perturbed.
            start: Share of the steps after which head guidance begins.
            stop: Share of the steps after which head guidance ends.
            negative_prompt: What classifier-free guidance leads away from.
            guidance_scale: Scale of classifier-free guidance.
            steps: Number of denoising steps.
            seed: Seed of the noise.
            model: Name of the model. Empty for the first one of the page.

        Returns:
            A PNG with its settings inside, as a data URI.
        """
        chosen = (heads.strip() or None) if isinstance(heads, str) else heads
        asked = {"prompt": prompt, "heads": chosen, "scale": scale, "softness": softness}
        asked |= {"perturbation": perturbation, "region": region, "start": start, "stop": stop}
        asked |= {"negative_prompt": negative_prompt, "guidance_scale": guidance_scale}
        return await _drawn(page, model, asked | {"steps": steps, "seed": seed}, visitor(request))

    gr.api(draw, api_name="draw", concurrency_limit=None)


async def _drawn(page: Page, model: str, asked: dict[str, Any], owner: str | None) -> str:
    """The picture that is asked for, as a data URI; `model` may be empty."""
    try:
        facts = known_as(model, page.models) if model else page.first
        settings = Settings(**asked, model=facts.name)
        check_settings(settings, page.limits)
        drawn = await _result(page.engine.submit(facts.name, Drawing(settings), owner))
    except InputError as error:
        raise gr.Error(sentence(error), print_exception=False) from error
    return png_uri(drawn.image, {**stored(drawn.settings), "model": facts.public})


async def _result(job: Any) -> Any:
    """What a job returns; one whose caller has gone is cancelled."""
    try:
        async for _ in job.follow():
            pass
        return job.wait(0)
    finally:
        job.cancel()
