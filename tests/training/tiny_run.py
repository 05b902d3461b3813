"""A tiny run: a configuration that trains in a second, and an exception to stop it with."""

from pathlib import Path

from tiny_store import make_manifest, make_store

from train.data.feature_bank import FeatureBank
from train.runs.config import make_config
from train.training.fit import fit

TINY = {
    "preset": "demo",
    "method": "zero-fill",
    "channels": 16,
    "heads": 2,
    "time_steps": 4,
    "map_size": 2,
    "batch_size": 16,
    "epochs": 3,
    "learning_rate": 3e-3,
    "device": "cpu",
}


def tiny_config(**overrides):
    settings = {**TINY, **overrides}
    if {"inputs", "objective"} & overrides.keys() and "method" not in overrides:
        del settings["method"]
    return make_config(**settings)


def train(run: Path, store=None, report=None, resume=False, keep_state=True, save_minutes=10.0, **overrides):
    store = make_store(videos=60) if store is None else store
    config, manifest, bank = tiny_config(**overrides), make_manifest(store), FeatureBank(store)
    saving = {"keep_state": keep_state, "save_minutes": save_minutes}
    return fit(config, manifest, bank, run, resume=resume, report=report, **saving)


class Killed(Exception):
    pass
