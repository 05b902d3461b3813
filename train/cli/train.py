"""`mavqa-train`: train a backbone with a method on a store, and evaluate it."""

from functools import partial
from pathlib import Path
from typing import Any

import click

from pipeline.cli.command import Command, complete_folders, complete_names, folder_option, json_option, show_json
from train.backbones.registry import BACKBONES
from train.cli.options import (
    device_option,
    report_left_out,
    require_manifest,
    require_store,
    runs_progress,
    show_scenarios,
    store_option,
)
from train.methods.registry import METHODS
from train.runs.config import PRESETS, TrainConfig, make_config

# The reference models are chosen by their inputs (--inputs).
CHOSEN_BY_NAME = [name for name in METHODS if name != "reference"]


@click.command(
    cls=Command,
    short_help="Train a backbone with a method, and evaluate it.",
    on_interrupt="run it with --resume to go on after the last complete epoch",
)
@click.option(
    "--backbone",
    shell_complete=complete_names(BACKBONES),
    help=f"Model to train: {', '.join(BACKBONES)}.  [default: the preset's, else avst]",
)
@click.option(
    "--method",
    shell_complete=complete_names(CHOSEN_BY_NAME),
    help=f"Missing-modality method: {', '.join(CHOSEN_BY_NAME)}.  "
    f"[default: the preset's, else {TrainConfig.model_fields['method'].default}]",
)
@click.option(
    "--dataset",
    default="music-avqa",
    show_default=True,
    shell_complete=complete_folders("data_manifests"),
    help="Dataset name in the default paths below.",
)
@folder_option("--manifest", "Manifest folder.  [default: data_manifests/DATASET]")
@store_option("stores/DATASET.zarr")
@folder_option("--out", "Run folder to write.  [default: runs/BACKBONE-METHOD-SEED]")
@click.option(
    "--preset",
    type=click.Choice(list(PRESETS)),
    default="paper",
    show_default=True,
    help="Hyper-parameters to use: the missing-modality paper's, its release's, a backbone's own, or the demo's.",
)
@click.option(
    "--objective",
    type=click.Choice(["answer", "grounding"]),
    help="grounding: pre-train audio-visual matching; use the run with --start-from.  "
    "[default: the preset's, else answer]",
)
@click.option(
    "--variant",
    shell_complete=complete_names(["paper", "recommended", "released"]),
    help="Version of the method and backbone: paper, released, or recommended (the backbone's paper and the corrected "
    "method).  "
    "[default: recommended]",
)
@click.option(
    "--inputs",
    type=click.Choice(["question", "audio,question", "visual,question", "all"]),
    default="all",
    show_default=True,
    help="Train a reference model restricted to these inputs (excludes --method).",
)
@click.option(
    "--start-from",
    metavar="RUN",
    shell_complete=complete_folders("runs"),
    help="Initialise the backbone from this run, which must be next to --out.  [default: random initialisation]",
)
@click.option("--epochs", type=click.IntRange(min=1), help="Number of training epochs.  [default: the preset's]")
@click.option(
    "--seed",
    type=click.IntRange(min=0),
    help=f"Random seed.  [default: the preset's, else {TrainConfig.model_fields['seed'].default}]",
)
@device_option
@click.option(
    "--precision",
    type=click.Choice(["float32"]),
    default="float32",
    show_default=True,
    help="Floating-point precision of training.",
)
@click.option(
    "--missing-rate",
    help="Share of the training questions that lose a modality, such as audio=0.3,visual=0.2.  [default: none]",
)
@click.option("--resume", is_flag=True, help="Resume the run in --out; a finished run is only evaluated.")
@json_option
def train(
    dataset: str,
    manifest: Path | None,
    store: str | None,
    out: Path | None,
    preset: str,
    missing_rate: str | None,
    resume: bool,
    as_json: bool,
    **settings: Any,
) -> None:
    """Train a backbone with a missing-modality method on extracted features, and evaluate it.

    Keeps the checkpoint of the final stage with the highest mean validation accuracy (ties: the latest), and evaluates
    it in every scenario of the test split, or of the val split if there is no test split.

    \b
    Examples:
      mavqa-train --backbone avst
      mavqa-train --method zero-fill --dataset music-avqa --seed 2
      mavqa-train --preset pstp --store stores/music-avqa.zarr
      mavqa-train --store s3://bucket/music-avqa.zarr
      mavqa-train --inputs question --out runs/question-only-2 --seed 2
      mavqa-train --preset grounding
      mavqa-train --backbone avst --start-from avst-grounding-1
    """
    manifest = require_manifest(manifest or Path("data_manifests") / dataset)
    store = require_store(store or f"stores/{dataset}.zarr", manifest)
    if missing_rate is not None:
        from train.data.scenarios import parse_rates

        settings["missing_rates"] = parse_rates(missing_rate)
    config = make_config(preset, manifest=str(manifest.absolute()), store=store, **settings)
    document = _train(config, out or Path("runs") / name_run(config), resume)
    if as_json:
        show_json(document)


def name_run(config: TrainConfig) -> str:
    """Return the default name of a run: backbone, method (or the inputs of a reference model) and seed."""
    method = config.method if config.inputs == "all" else f"{config.inputs.replace(',', '-')}-only"
    method = "grounding" if config.objective == "grounding" else method
    return f"{config.backbone}-{method}-{config.seed}"


def _train(config: TrainConfig, run: Path, resume: bool) -> dict[str, Any]:
    from pipeline.manifests.manifest import load_manifest
    from pipeline.store.reader import open_store
    from train.data.feature_bank import FeatureBank
    from train.evaluation.evaluate_run import count_left_out, default_split, evaluate_run, summarise_run
    from train.runs.claim import claim_data
    from train.runs.device import choose_device
    from train.runs.log import best_validation
    from train.training.fit import check_trainable, fit

    manifest = load_manifest(Path(config.manifest))
    bank = FeatureBank(open_store(config.store))
    device = str(choose_device(config.device))
    check_trainable(config, manifest, bank, run)
    claim_data(run, config, manifest, bank)
    click.echo(f"run: {run}", err=True)
    with runs_progress() as progress:
        report = partial(progress, run.name)
        fit(config, manifest, bank, run, resume=resume, report=report)
        if config.objective == "grounding":
            return {"run": run.name, "objective": "grounding", "validation": best_validation(run)}
        split = default_split(manifest)
        evaluate_run(run, manifest, bank, split, device=device, report=report)
    document = summarise_run(run, split)
    report_left_out(count_left_out(run, split))
    show_scenarios({run.name: document})
    return document
