"""The data of a run: the questions and the features that it was trained on, recorded before it is trained."""

import json
from pathlib import Path

from pipeline.errors import UserError
from pipeline.files import replace_text
from pipeline.manifests.manifest import Manifest
from pipeline.store.schema import MODALITIES
from train.backbones.registry import needs_of
from train.data.feature_bank import FeatureBank
from train.runs.config import TrainConfig
from train.runs.results import hash_questions

DATA_FILE = "data.json"


def claim_data(run: Path, config: TrainConfig, manifest: Manifest, bank: FeatureBank) -> None:
    """Record the questions and features of `run` before it is trained (`data.json`).

    Raises `UserError` if the folder contains a run on other data (resuming it would mix two datasets), or if the run to
    start from used other data (its words may differ, and its training questions may be test questions here).
    """
    needs = needs_of(config.backbone)
    features = {name: bank.store.fingerprint(name) for m in MODALITIES for name in needs[m]}
    questions = {split: hash_questions(manifest.questions[split]) for split in manifest.splits}
    claim = {"questions": questions, "vocabulary": manifest.vocabulary.to_json(), "features": features}
    text = json.dumps(claim, ensure_ascii=False, indent=1) + "\n"
    path = run / DATA_FILE
    start = run.parent / config.start_from
    start_data = start / DATA_FILE
    if config.start_from and start_data.exists() and start_data.read_bytes() != text.encode():
        raise UserError(f"cannot start from {start}: it was trained on other questions or features than {run} will be")
    if (run / "config.json").exists():
        if not path.exists() or path.read_bytes() != text.encode():
            raise UserError(
                f"{run} contains a run on other questions or features than those of manifest {manifest.name!r} "
                f"and store {bank.store.path}: remove it, or pass another --out"
            )
        return
    run.mkdir(parents=True, exist_ok=True)
    replace_text(path, text)
