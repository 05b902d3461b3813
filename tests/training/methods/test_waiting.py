"""A training step reads few values back from its device, because a GPU then runs out of work."""

from collections import Counter
from typing import Any

import pytest
import torch
from product import make
from tiny_store import make_manifest, make_store
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from train.data.dataset import QuestionDataset
from train.data.feature_bank import FeatureBank
from train.interfaces import inputs_of, uses_negatives
from train.methods.registry import METHODS

MOST_VALUES = 8
# They have nothing to read per step of a video.
PLAIN = ("zero-fill", "mean-fill", "constant-fill", "reference")


class Reads(TorchDispatchMode):
    """Count the values read as Python numbers, and the uses of a mask as an index, whose rows must be counted."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()

    def __torch_dispatch__(self, operator: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = operator._schema.name.removeprefix("aten::")
        if name.startswith(("index", "_index")) and isinstance(args[1], (list, tuple)):
            self.counts["mask"] += any(isinstance(i, Tensor) and i.dtype == torch.bool for i in args[1])
        self.counts["value"] += name == "_local_scalar_dense"
        return operator(*args, **(kwargs or {}))


@pytest.mark.parametrize("name", [name for name in METHODS if name not in PLAIN])
def test_a_step_on_complete_videos_waits_for_few_values(name: str) -> None:
    method, store = make(name, "avst").train(), make_store(incomplete=False)
    dataset = QuestionDataset(FeatureBank(store), make_manifest(store), "train", inputs_of(method.backbone))
    negatives = torch.Generator().manual_seed(0) if uses_negatives(method) else None
    batch = dataset.batch(range(4), negatives)
    torch.manual_seed(1)
    with Reads() as reads:
        method.training_loss(batch)["total"].backward()
    assert reads.counts["mask"] == 0
    assert reads.counts["value"] <= MOST_VALUES
