"""The methods that a grid compares have one budget within an exposure: start, epochs, batches, learning rate."""

from pathlib import Path

import pytest
from small_avqa import small_backbone

import train
from train.methods.registry import make_method, method_variants
from train.training.sweep import Cell, Grid, list_cells, read_grid

# The demo is to be short; in `backbones` nothing but the backbone is compared.
GRIDS = ["figure5", "methods", *(f"table{number}" for number in range(1, 7))]


def find_unequal(cells: list[Cell]) -> dict[str, set[tuple]]:
    """Return {exposure: budgets} of the exposures under which methods have several budgets.

    A budget is (total epochs with those of the start, questions per step).
    """
    by_name = {cell.name: cell for cell in cells}

    def epochs(cell: Cell) -> int:
        start = by_name.get(cell.config.start_from)
        return cell.config.epochs + (epochs(start) if start else 0)

    budgets: dict[str, set[tuple]] = {}
    for cell in cells:
        config = cell.config
        if cell.is_evaluated:
            variant = config.variant if method_variants(config.method) else None
            method = make_method(config.method, small_backbone(), variant, **config.options)
            budgets.setdefault(method.sees, set()).add((epochs(cell), config.batch_size * config.accumulate))
    return {exposure: of_exposure for exposure, of_exposure in budgets.items() if len(of_exposure) > 1}


def cells_of(name: str) -> list[Cell]:
    grid = read_grid(Path(train.__file__).parent / "grids" / f"{name}.toml")
    return [cell for cell in list_cells(grid, (0,), "m", "s") if cell.config.backbone == (grid.backbones or ("",))[-1]]


@pytest.mark.parametrize("name", GRIDS)
def test_methods_of_one_exposure_have_one_budget(name):
    assert not find_unequal(cells_of(name))


@pytest.mark.parametrize("change", [{"epochs": 3}, {"batch_size": 2}, {"accumulate": 2}, {"start_from": "first"}])
def test_a_method_with_another_budget_is_found(change):
    def budgets(options):
        entries = [
            {"name": "first", "method": "zero-fill", "evaluate": False},
            {"name": "drfuse"},
            {"name": "shaspec", "options": options, **change},
        ]
        cells = list_cells(Grid.model_validate({"preset": "demo", "methods": entries}), (0,), "m", "s")
        return find_unequal(cells)

    assert set(budgets({})) == {"sampled"}
    assert not budgets({"exposure": "all"})
