"""The steps of a run for TensorBoard, in the folder `tensorboard` of the run folder. It is an optional package."""

import json
from pathlib import Path
from typing import Any

from pipeline.errors import UserError, one_line

FOLDER = "tensorboard"
INSTALL = "pip install 'mavqa[tensorboard]'"


class TensorBoard:
    """Record every step as scalars, and the settings as text. Raises `UserError` if TensorBoard is not installed."""

    def __init__(self) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise UserError(f"tracker 'tensorboard' cannot be loaded ({one_line(error)}): {INSTALL}") from None
        self._open = SummaryWriter

    def start(self, run: Path, settings: dict[str, Any], first_step: int) -> None:
        """Open an event file; TensorBoard ignores the steps from `first_step` on of earlier ones."""
        self._writer = self._open(str(run / FOLDER), purge_step=first_step)
        if first_step == 1:
            # Indented lines are code in Markdown.
            lines = (f"    {name}: {json.dumps(value)}\n" for name, value in settings.items())
            self._writer.add_text("settings", "".join(lines))

    def log_step(self, step: int, values: dict[str, float]) -> None:
        """Write the values, so that a training that is killed has lost no step that it had saved."""
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)
        self._writer.flush()

    def log_epoch(self, step: int, values: dict[str, float]) -> None:
        """Write the accuracies."""
        self.log_step(step, values)

    def close(self) -> None:
        """Close the event file."""
        self._writer.close()
