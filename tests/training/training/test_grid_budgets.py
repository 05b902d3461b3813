"""The methods that a grid compares have one budget within an exposure, and references at least as large a one."""

from pathlib import Path

import pytest
from training_budgets import Budget, budget_of

import train
from train.training.sweep import Cell, Grid, list_cells, read_grid

# The demo is to be short; in `backbones` nothing but the backbone is compared; `tuning` has a test of its own.
GRIDS = ["dial", "figure5", "methods", *(f"table{number}" for number in range(1, 7))]


def budgets_of(cells: list[Cell]) -> tuple[dict[str, set[Budget]], dict[str, set[Budget]]]:
    """Return {exposure: budgets} of the methods and of the references that are evaluated."""
    by_name = {cell.name: cell for cell in cells}
    methods: dict[str, set[Budget]] = {}
    references: dict[str, set[Budget]] = {}
    for cell in cells:
        if cell.is_evaluated:
            exposure, budget = budget_of(cell, by_name)
            kind = methods if cell.config.inputs == "all" else references
            kind.setdefault(exposure, set()).add(budget)
    return methods, references


def cells_of(name: str) -> list[Cell]:
    grid = read_grid(Path(train.__file__).parent / "grids" / f"{name}.toml")
    return [cell for cell in list_cells(grid, (0,), "m", "s") if cell.config.backbone == (grid.backbones or ("",))[-1]]


@pytest.mark.parametrize("name", GRIDS)
def test_methods_of_one_exposure_have_one_budget_and_references_no_smaller_one(name):
    methods, references = budgets_of(cells_of(name))
    assert {exposure: found for exposure, found in methods.items() if len(found) > 1} == {}
    for exposure, found in references.items():
        for budget in found:
            for method in methods.get(exposure, ()):
                assert budget.epochs >= method.epochs
                assert budget.answers >= method.answers
                assert budget.questions_per_step == method.questions_per_step


@pytest.mark.parametrize(
    "change",
    [
        {"epochs": 3},
        {"batch_size": 2},
        {"accumulate": 2},
        {"start_from": "first"},
        {"method": "rmm", "options": {}, "training": "staged"},
    ],
)
def test_a_method_with_another_budget_is_found(change):
    entries = [
        {"name": "first", "method": "zero-fill", "evaluate": False},
        {"name": "drfuse", "options": {"exposure": "all"}},
        {"name": "shaspec", "method": "shaspec", "options": {"exposure": "all"}, **change},
    ]
    for found, entry in ((1, {**entries[2], **dict.fromkeys(change), "method": "shaspec"}), (2, entries[2])):
        given = {name: value for name, value in entry.items() if value is not None}
        given.setdefault("options", {"exposure": "all"})
        grid = {"preset": "demo", "methods": [*entries[:2], given]}
        methods, _ = budgets_of(list_cells(Grid.model_validate(grid), (0,), "m", "s"))
        assert len(methods["all"]) == found
