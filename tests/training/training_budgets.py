"""The budget of a run of a grid: epochs, answers to a question and questions per step."""

from typing import NamedTuple

from small_avqa import small_backbone

from train.methods.registry import make_method, method_variants
from train.training.loop import plan_stages
from train.training.sweep import Cell


class Budget(NamedTuple):
    """Epochs and answers per complete question, both with those of the start; questions per step; which questions."""

    epochs: int
    answers: int
    questions_per_step: int
    trains_on: str


def budget_of(cell: Cell, by_name: dict[str, Cell]) -> tuple[str, Budget]:
    """Return the exposure of a run and its budget."""
    config = cell.config
    variant = config.variant if method_variants(config.method) else None
    method = make_method(config.method, small_backbone(), variant, **config.options)
    answers = 0
    for stage, epochs in plan_stages(method, config.training, config.epochs):
        answers += len(epochs) * (3 if method.sees == "all" and stage.name != "backbone" else 1)
    start = budget_of(by_name[config.start_from], by_name)[1] if config.start_from else Budget(0, 0, 0, "")
    questions = config.batch_size * config.accumulate
    return method.sees, Budget(config.epochs + start.epochs, answers + start.answers, questions, method.trains_on)
