"""What the trainer can teach, one module a task. A new one is a module here and a line in `TASKS`."""

from collections.abc import Callable

from dit_heads.errors import InputError
from dit_heads.loras.config import TrainConfig
from dit_heads.loras.tasks.in_context import InContext
from dit_heads.loras.tasks.instruct import Instruct
from dit_heads.loras.tasks.multimodal import Multimodal
from dit_heads.loras.tasks.task import EMPTY_CAPTION, Drawing, Example, Task

__all__ = ["EMPTY_CAPTION", "TASKS", "Drawing", "Example", "Task", "task_of"]

TASKS: dict[str, Callable[[TrainConfig], Task]] = {
    "in_context": InContext.of,
    "instruct": Instruct.of,
    "multimodal": Multimodal.of,
}
"""How each task is made from the settings of a run, by the name that `task` has there."""


def task_of(config: TrainConfig) -> Task:
    """The task of a run.

    Raises:
        InputError: there is none of its name, or the task finds fault with its data.
    """
    if config.task not in TASKS:
        raise InputError(f"task: expected one of {', '.join(TASKS)}, got {config.task!r}")
    return TASKS[config.task](config)
