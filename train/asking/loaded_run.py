"""A trained run in Python: its method and configuration, and answers to questions about new videos."""

from collections.abc import Collection, Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from train.asking.answerer import Answerer
from train.asking.reply import Reply
from train.interfaces import MissingModalityMethod
from train.runs.config import TrainConfig
from train.runs.folder import load_run as load_method


class _Loaded(NamedTuple):
    """What a run consists of."""

    method: MissingModalityMethod
    config: TrainConfig


class LoadedRun(_Loaded):
    """The trained method of a run, in evaluation mode, and its configuration: `method, config = load_run(run)`.

    `folder`: of the run.
    """

    folder: Path
    _answerers: dict[tuple[str, str | None, str | None], Answerer]

    def ask(
        self,
        video: str | Path,
        questions: str | Iterable[str],
        *,
        choices: Sequence[str] | None = None,
        drop: Collection[str] = (),
        device: str = "auto",
        weights: str | Path | None = None,
        store: str | Path | None = None,
    ) -> Reply:
        """Return the answers to `questions` about the file `video`.

        Features are computed as for the training; the networks are loaded at the first call. `choices`: restrict the
        answers to these. `drop`: modalities ("audio", "visual") to treat as missing. `device`: of the feature networks,
        "auto" is that of the training's features if it is available. `weights`: as for `mavqa-extract`; None: as the
        training's. `store`: for runs that did not record how their features were extracted. Nothing is written. Raises
        `UserError` for what `mavqa-ask` would refuse.
        """
        key = (device, None if weights is None else str(weights), None if store is None else str(store))
        if key not in self._answerers:
            settings = {"device": key[0], "weights": key[1], "store": key[2]}
            self._answerers[key] = Answerer(self.folder, self.method, self.config, **settings)  # type: ignore[arg-type]
        with self._answerers[key] as answerer:
            return answerer.ask(video, questions, choices=choices, drop=drop)


def load_run(run: str | Path, device: str = "cpu") -> LoadedRun:
    """Return the trained method of `run` (its best epoch, in evaluation mode) and its configuration.

    `device`: cpu, cuda, or auto, which is a GPU if one is available. `load_run(run).ask(video, questions)` answers
    questions about a new video. Raises `UserError` if the device is not available, or if a file is missing, corrupt or
    does not match the configuration.

    >>> method, config = load_run("runs/zero-fill")
    >>> config.method
    'zero-fill'
    """
    loaded = LoadedRun(*load_method(run, device))
    loaded.folder, loaded._answerers = Path(run), {}
    return loaded
