"""Train: a LoRA from a few sets of pictures, learned while one watches, used in In-context by one click."""

from __future__ import annotations

import base64
from collections.abc import AsyncIterator, Callable
from functools import partial
from pathlib import Path
from typing import Any

import gradio as gr

from dit_heads.cli.loras import SUFFIX
from dit_heads.demo import set_form
from dit_heads.demo.components import component, event_data
from dit_heads.demo.controls import model_choice, slider
from dit_heads.demo.engine import ASIDE
from dit_heads.demo.facts import Facts, known_as
from dit_heads.demo.files import quick_uri
from dit_heads.demo.in_context import grid_for
from dit_heads.demo.jobs import Job, View
from dit_heads.demo.lora_files import entries, plain_name
from dit_heads.demo.page import QUIET, Page, visitor
from dit_heads.demo.sentences import note_of, sentence
from dit_heads.demo.set_files import ROOT, Looked, bring_sets, copied, look
from dit_heads.demo.tabs.in_context import example_names, rack_lines
from dit_heads.demo.training import Learning, Trained, Training, check_training
from dit_heads.errors import InputError
from dit_heads.loras.sets.captions import JointCaption, check_caption

EXAMPLES = {
    "Sky: a scene by day, at sunset and at night": "sky",
    "Places: one subject on three grounds": "grounds",
    "Turntable: two solids from four sides": "turntable",
}
OWN = "My own sets"
REMEMBERED = "() => { try { return localStorage.getItem('dit-heads-training') || '' } catch { return '' } }"
_IDLE = (
    "A LoRA learns from sets what their panels have in common. It is trained on a copy of the model, so that "
    "others can go on drawing. It goes on when the page is reloaded."
)
_LARGE = (
    "The models of this page are too large to be trained in it. On this machine's command line, `dit-heads "
    "train` does it."
)


def build(page: Page) -> None:
    """Lay the tab out and connect it."""
    models = {n: f for n, f in page.models.items() if f.parameters <= page.limits.trained_parameters}
    if not models:
        gr.Markdown(_LARGE)
        return
    first = next(iter(models.values()))
    with gr.Row(equal_height=False, elem_classes="dh-columns"):
        with gr.Column(scale=5, min_width=320):
            model = model_choice(models)
            source, count, drop = _sources(page, first)
            name = gr.Textbox("my-lora", label="Name", max_length=40, elem_id="dh-train-name")
            steps = gr.Slider(
                20,
                page.limits.training_steps,
                120,
                step=20,
                label="Steps",
                info="More learn more, and take longer",
            )
            with gr.Accordion("More settings", open=False), gr.Row():
                rank = slider(1, page.limits.rank, 8, 1, "Rank", "Size of the LoRA")
                seed = gr.Number(0, label="Seed", precision=0, minimum=0, maximum=2**32 - 1, min_width=140)
            start = gr.Button("Train", variant="primary", size="lg", elem_id="dh-train")
            stop = gr.Button("Stop", size="lg", visible=False, elem_id="dh-train-stop")
        with gr.Column(scale=6, min_width=320):
            board = component("train_board", {"state": "empty", "note": _IDLE})
            use = gr.Button("Use it in In-context", visible=False, elem_id="dh-train-use")
    kept = gr.Textbox(visible=False)  # the id of the run
    outputs = [board, start, stop, use, kept]
    source.change(_turning, [source], [count, drop], **QUIET)
    model.input(_switching(page), [model], [drop], **QUIET)
    drop.bring(_bringing(page), [model, drop], [drop], **QUIET)
    drop.check(_checking(page), [model, drop], [drop], **QUIET)
    start.click(_starting(page), [model, source, count, drop, name, steps, rank, seed], outputs, **QUIET)
    stop.click(_stopping(page), [kept], None, **QUIET)
    in_context: list[Any] = [page.tabs, *page.rack]
    use.click(_using(page), [kept], in_context, **QUIET)
    page.on_load.append((_going_on(page), [kept], outputs, REMEMBERED))


def _sources(page: Page, first: Facts) -> tuple[gr.Radio, gr.Slider, gr.HTML]:
    """Where sets come from: examples, or files."""
    choices = [*EXAMPLES, OWN] if first.embedded else [OWN]
    source = gr.Radio(choices, value=choices[0], label="Learn from", elem_id="dh-train-source")
    count = gr.Slider(8, 40, 20, step=4, label="Sets", info="How many are rendered", visible=first.embedded)
    lines = set_form.layout_lines(first, page.limits)
    value = set_form.change(layouts=lines, layout=set_form.first_layout(lines))
    return source, count, component("set_drop", value, visible=not first.embedded)


def _turning(source: str) -> list[Any]:
    return [gr.update(visible=source != OWN), gr.update(visible=source == OWN)]


def _switching(page: Page) -> Callable[..., Any]:
    def switch(model: str) -> dict[str, Any]:
        return set_form.change(layouts=set_form.layout_lines(known_as(model, page.models), page.limits))

    return switch


# --- a visitor's own sets ---


def _bringing(page: Page) -> Callable[..., Any]:
    def take_in(request: gr.Request, model: str, drop: Any, event: gr.EventData) -> dict[str, Any]:
        try:
            page.sets.leave(visitor(request))  # in place of those that were there
            entry = bring_sets(page.sets, event_data(event, "files"), visitor(request), page.limits)
            return _told(_looked(page, model, drop, entry.folder / ROOT), entry.id)
        except InputError as error:
            return set_form.change(id="", told="", problems=[sentence(error)], notes=[])

    return take_in


def _checking(page: Page) -> Callable[..., Any]:
    def check(model: str, drop: Any) -> dict[str, Any]:
        key = drop.get("id") if isinstance(drop, dict) else None
        try:
            entry = page.sets.get(key)
            return _told(_looked(page, model, drop, entry.folder / ROOT), entry.id)
        except InputError as error:
            return set_form.change(id="", told="", problems=[sentence(error)], notes=[])

    return check


def _looked(page: Page, model: str, drop: Any, root: Path) -> Looked:
    facts = known_as(model, page.models)
    rows, columns = set_form.layout_from(facts, drop, page.limits)
    return look(root, rows, columns, grid_for(facts, rows, columns).heights[0], page.limits)


def _told(looked: Looked, key: str) -> dict[str, Any]:
    sets = f"{looked.count} set{'s' * (looked.count != 1)}"
    told = f"{sets}, ready to learn from." if looked.usable else f"{sets}; please mend this first:"
    problems = [sentence(InputError(each)) for each in looked.problems]
    return set_form.change(
        id=key, told=told if looked.count else "", problems=problems, notes=list(looked.notes)
    )


# --- training ---


def _starting(page: Page) -> Callable[..., Any]:
    async def start(request: gr.Request, *asked: Any) -> AsyncIterator[list[Any]]:
        try:
            # An owner of its own: a run outlives its page.
            job = page.engine.submit(ASIDE, training_from(page, *asked), f"training of {visitor(request)}")
        except InputError as error:
            yield _board({"state": "error", "note": sentence(error)}, over=True, kept="")
            return
        async for shown in _followed(job):
            yield shown

    return start


def training_from(
    page: Page, model: str, source: str, count: object, drop: Any, name: object, *numbers: object
) -> Training:
    """What a visitor asks for; the numbers are steps, rank and seed. Raises InputError for what does not
    fit."""
    facts = known_as(model, page.models)
    if facts.parameters > page.limits.trained_parameters:
        raise InputError("model: this one is too large to be trained here; `dit-heads train` does it")
    steps, rank, seed = check_training(page.limits, *numbers)
    if source in EXAMPLES and facts.embedded:
        taken = _example_sets(EXAMPLES[source], count)
    elif source == OWN:
        taken = _own_sets(page, facts, drop)
    else:
        raise InputError(f"sets: expected one of {', '.join([*EXAMPLES, OWN])}")
    side = grid_for(facts, taken["rows"], taken["columns"]).heights[0]
    file = plain_name(f"{name or 'lora'}{SUFFIX}" if isinstance(name, str) else "lora")
    more = {"side": side, "steps": steps, "rank": rank, "seed": seed}
    return Training(facts.name, file, shelf=page.loras, **more, **taken)


def _example_sets(task: str, count: object) -> dict[str, Any]:
    from dit_heads.embedded.sets import task_of, write_sets

    if not isinstance(count, int | float) or not 1 <= count <= 100:
        raise InputError("sets: expected a number from 1 to 100")
    kind = task_of(task)
    write = partial(write_sets, task, "train", int(count))
    return {"write": write, "rows": kind.rows, "columns": kind.columns}


def _own_sets(page: Page, facts: Facts, drop: Any) -> dict[str, Any]:
    rows, columns = set_form.layout_from(facts, drop, page.limits)
    key = drop.get("id") if isinstance(drop, dict) else None
    if not key:
        raise InputError("sets: please bring some first: drop a zip or a folder")
    entry = page.sets.get(key)
    looked = _looked(page, facts.public, drop, entry.folder / ROOT)
    if not looked.usable:
        raise InputError("sets: they cannot be used yet; what is wrong with them stands below them")
    page.sets.entrust(entry.id)
    return {"write": partial(copied, entry), "rows": rows, "columns": columns}


def _going_on(page: Page) -> Callable[..., Any]:
    async def go_on(kept: str) -> AsyncIterator[list[Any]]:
        """The run that a page has started before it was loaded again."""
        try:
            job = page.engine.job(kept if isinstance(kept, str) else "")
        except InputError:
            yield _board({"state": "empty", "note": _IDLE}, over=True, kept="")
            return
        async for shown in _followed(job):
            yield shown

    return go_on


async def _followed(job: Job) -> AsyncIterator[list[Any]]:
    async for view in job.follow():
        if view.state == "done" and isinstance(view.result, Trained):
            yield _ended(view.result, job.id)
        else:
            yield _board(_shown(view), view.over, job.id)


def _board(board: dict[str, Any], over: bool, kept: str) -> list[Any]:
    # With their labels, as a tab that was not shown yet loses what is not sent again.
    start, stop = gr.update(value="Train", visible=over), gr.update(value="Stop", visible=not over)
    return [{**board, "run": kept}, start, stop, gr.update(visible=False), kept]


def _shown(view: View) -> dict[str, Any]:
    seen = view.preview if isinstance(view.preview, Learning) else Learning()
    return {
        "state": "error" if view.state == "failed" else view.state,
        "note": note_of(view, "Training"),
        "step": view.step,
        "steps": view.steps,
        **_learned(seen),
    }


def _learned(seen: Learning | Trained) -> dict[str, Any]:
    drawings = [{"src": quick_uri(image), "step": step} for step, image in seen.drawings]
    return {"points": [list(point) for point in seen.points], "drawings": drawings}


def _ended(found: Trained, kept: str) -> list[Any]:
    stopped = "" if found.done == found.steps else f"Stopped after {found.done} of {found.steps} steps. "
    try:
        data = base64.b64encode(found.lora.path.read_bytes()).decode()
        file = {"href": f"data:application/octet-stream;base64,{data}", "name": found.lora.name}
        note = f"{stopped}{found.lora.name} has learned from its sets."
    except OSError:  # others have been trained since, and took its place
        file, note = None, f"{found.lora.name} is not here any more; please train it again."
    board = {
        "state": "done",
        "note": note,
        "steps": found.steps,
        "file": file,
        "run": kept,
        **_learned(found),
    }
    use = gr.update(value="Use it in In-context", visible=file is not None)
    return [board, gr.update(value="Train", visible=True), gr.update(visible=False), use, kept]


def _stopping(page: Page) -> Callable[..., Any]:
    def stop(kept: str) -> None:
        try:
            page.engine.job(kept if isinstance(kept, str) else "").cancel()
        except InputError:
            return

    return stop


def _using(page: Page) -> Callable[..., Any]:
    def use(kept: str) -> list[Any]:
        """In-context, with the LoRA that was trained and a caption of its kind."""
        try:
            job = page.engine.job(kept if isinstance(kept, str) else "")
            found, work = job.view.result, job.work
            if not isinstance(found, Trained) or not isinstance(work, Training):
                raise InputError("lora: it is not trained yet; please wait for it")
            facts = page.models[work.model]
            page.loras.get(found.lora.id)
        except InputError as error:
            raise gr.Error(sentence(error), print_exception=False) from error
        # Whole, as a tab that was not shown yet has lost what it had.
        lines = [*rack_lines(page), *entries(facts, [found.lora], {})]
        rack = set_form.change(add=lines, on={found.lora.id: 1.0}, model=facts.public, problem="")
        return [gr.Tabs(selected="in-context"), facts.public, _board_of(page, facts, work, found), rack]

    return use


def _board_of(page: Page, facts: Facts, work: Training, found: Trained) -> dict[str, Any]:
    whole = {"layouts": set_form.layout_lines(facts, page.limits), "examples": example_names(page)}
    try:
        caption = check_caption(found.caption, work.rows, work.columns)
    except InputError:
        caption = None
    if isinstance(caption, JointCaption):
        return {**set_form.filled(work.rows, work.columns, caption, {}), **whole}
    return set_form.change(**whole, layout=[work.rows, work.columns], given={})
