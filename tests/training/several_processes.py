"""Train tiny runs in FOLDER: as one process, or as one of those that the variables of `torchrun` describe.

Noise and sampled modalities are drawn by question id, so that they do not depend on which process has a question.
"""

import hashlib
import os
import signal
import sys
from pathlib import Path
from zlib import crc32

import numpy as np
import torch
from tiny_run import tiny_config
from tiny_store import make_manifest, make_store

from pipeline.errors import Stopped
from train import processes
from train.data.dataset import QuestionDataset
from train.data.feature_bank import FeatureBank
from train.evaluation.predict import predict
from train.interfaces import inputs_of
from train.methods.registry import METHODS
from train.training import loop, optimisation
from train.training.fit import fit

RUNS = {
    "zero-fill": {"options": {"missing_fill": "mean"}, "accumulate": 2},
    # One of its batches has a single question.
    "rmm": {"options": {"slots": 7}, "missing_rates": {"audio": 0.3, "visual": 0.2}, "batch_size": 6, "clip_norm": 0.5},
    "rmm-avr": {"options": {"slots": 7}, "ema_decay": 0.5},
    "constant-fill": {},
    "actionmae": {},
}
# Each process has its own dropout.
DROPPED = {"dropout": 0.5}
COMMON = {"dropout": 0.0, "batch_size": 7, "epochs": 2, "learning_rate": 1e-3, "whiten": False}
questions: tuple[str, ...] = ()


def draw_by_question() -> None:
    """Replace what torch samples without a generator by values that depend on the question of their row."""

    def replaced(sample):
        def sampled(*arguments, generator=None, **settings):
            shape = arguments[-1] if questions and generator is None else ()
            if not shape or shape[0] % len(questions):
                return sample(*arguments, generator=generator, **settings)
            each = (shape[0] // len(questions), *shape[1:])
            seeds = (torch.Generator().manual_seed(crc32(f"{name} {each}".encode())) for name in questions)
            return torch.cat([sample(*arguments[:-1], each, generator=seed, **settings) for seed in seeds])

        return sampled

    torch.randn, torch.randint = replaced(torch.randn), replaced(torch.randint)
    take_step = optimisation.take_step

    def noted(method, optimiser, batches, *arguments):
        def note():
            global questions
            for batch in batches:
                questions = batch.question_id
                yield batch
                questions = ()

        return take_step(method, optimiser, note(), *arguments)

    loop.take_step = noted


def ignore_rounding() -> None:
    """Let the optimiser take no step along a gradient of 0 that only rounding makes another number."""
    make_optimiser = optimisation.make_optimiser

    def made(*arguments):
        optimiser = make_optimiser(*arguments)
        for group in optimiser.param_groups:
            group["eps"] = 1e-3
        return optimiser

    loop.make_optimiser = made


def train(folder: Path, name: str, settings: dict, report=None, resume=False):
    store = make_store(videos=60, incomplete=False)
    config = tiny_config(**{**COMMON, "method": name, **settings})
    bank, manifest = FeatureBank(store), make_manifest(store)
    method, _ = fit(config, manifest, bank, folder / name, resume=resume, keep_state=True, report=report)
    dataset = QuestionDataset(bank, manifest, "val", inputs_of(method.backbone, config.map_size))
    answers = predict(method, dataset, np.arange(len(dataset)), {}, 5, "cpu")
    state = b"".join(values.numpy().tobytes() for values in method.state_dict().values())
    (folder / f"{name}-{processes.rank()}.txt").write_text(f"{answers} {hashlib.sha256(state).hexdigest()}")


def stop_in_second(progress) -> None:
    if processes.rank() == 1 and (progress.epoch, progress.step) == (2, 3):
        os.kill(os.getpid(), signal.SIGTERM)


def main(folder: Path) -> None:
    with processes.joined():
        draw_by_question()
        ignore_rounding()
        for name, settings in RUNS.items():
            train(folder, name, settings)
        if processes.count() > 1:
            train(folder / "uninterrupted", "zero-fill", DROPPED)
            try:
                train(folder / "stopped", "zero-fill", DROPPED, report=stop_in_second)
            except Stopped:
                (folder / "stopped" / f"stopped-{processes.rank()}.txt").touch()
            train(folder / "stopped", "zero-fill", DROPPED, resume=True)


if __name__ == "__main__":
    assert METHODS.keys() >= RUNS.keys()
    torch.set_num_threads(1)
    main(Path(sys.argv[1]))
