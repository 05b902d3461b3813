"""`mavqa-train`: train a backbone with a method on a store. It only parses options and shows results."""

from pathlib import Path
from typing import Any

import click

from pipeline.cli.command import Command, folder_option, json_option, show_json
from train.backbones.registry import BACKBONES
from train.cli.options import (
    device_option,
    report_left_out,
    require_manifest,
    require_store,
    show_scenarios,
    store_option,
    training_progress,
)
from train.methods.registry import METHODS
from train.runs.config import PRESETS, TrainConfig, make_config


@click.command(cls=Command)
@click.option("--backbone", help=f"The model that answers: {', '.join(BACKBONES)}.  [default: the preset's, else avst]")
@click.option(
    "--method",
    help=f"What stands in for a missing modality: {', '.join(name for name in METHODS if name != 'reference')}.  "
    f"[default: the preset's, else {TrainConfig.model_fields['method'].default}]",
)
@click.option("--dataset", default="music-avqa", show_default=True, help="Name that the defaults below take.")
@folder_option("--manifest", "Folder of the manifest.  [default: data_manifests/DATASET]")
@store_option("stores/DATASET.zarr")
@folder_option("--out", "Folder of the run.  [default: runs/BACKBONE-METHOD-SEED]")
@click.option(
    "--preset",
    type=click.Choice(list(PRESETS)),
    default="paper",
    show_default=True,
    help="Hyper-parameters of the missing-modality paper, its release, a backbone's own paper, or the demo.",
)
@click.option(
    "--objective",
    type=click.Choice(["answer", "grounding"]),
    help="grounding: pre-train telling matching sound and picture; start runs from it.  [default: the preset's, "
    "else answer]",
)
@click.option(
    "--variant",
    type=click.Choice(["paper", "released", "recommended"]),
    help="Which reading of method and backbone; recommended: the backbone's paper, the mended method.  "
    "[default: recommended]",
)
@click.option(
    "--inputs",
    type=click.Choice(["question", "audio,question", "visual,question", "all"]),
    default="all",
    show_default=True,
    help="Other than all: train a reference that never sees the rest, in place of a method.",
)
@click.option("--start-from", metavar="RUN", help="Start with the trained backbone of this run beside --out.")
@click.option("--epochs", type=click.IntRange(min=1), help="[default: the preset's]")
@click.option("--seed", type=click.IntRange(min=0), help=f"[default: {TrainConfig.model_fields['seed'].default}]")
@device_option
@click.option("--precision", type=click.Choice(["float32"]), default="float32", show_default=True)
@click.option("--missing-rate", help="Take modalities away in training, such as audio=0.3,visual=0.2.")
@click.option("--resume", is_flag=True, help="Go on with the run in --out; a finished one is only evaluated.")
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

    The best epoch is kept, chosen on the val split; every scenario of the test split is evaluated at the end.

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
    manifest = require_manifest(manifest or Path("data_manifests") / dataset, dataset)
    store = require_store(store or f"stores/{dataset}.zarr", dataset)
    if missing_rate:
        from train.data.scenarios import parse_rates

        settings["missing_rates"] = parse_rates(missing_rate)
    config = make_config(preset, manifest=str(manifest), store=store, **settings)
    document = _train(config, out or Path("runs") / name_run(config), resume)
    if as_json:
        show_json(document)


def name_run(config: TrainConfig) -> str:
    """Return the default name of a run: backbone, method (or the inputs of a reference) and seed."""
    method = config.method if config.inputs == "all" else f"{config.inputs.replace(',', '-')}-only"
    method = "grounding" if config.objective == "grounding" else method
    return f"{config.backbone}-{method}-{config.seed}"


def _train(config: TrainConfig, run: Path, resume: bool) -> dict[str, Any]:
    from pipeline.manifests.manifest import load_manifest
    from pipeline.store.reader import open_store
    from train.data.feature_bank import FeatureBank
    from train.evaluation.evaluate_run import claim_data, count_left_out, default_split, evaluate_run, summarise_run
    from train.runs.folder import build_method
    from train.runs.log import best_validation
    from train.training.fit import choose_device, fit, measure_sizes

    manifest = load_manifest(Path(config.manifest))
    bank = FeatureBank(open_store(config.store))
    device = str(choose_device(config.device))
    build_method(config.model_copy(update={"sizes": measure_sizes(config, manifest, bank)}))
    claim_data(run, config, manifest, bank)
    with training_progress() as progress:
        fit(config, manifest, bank, run, resume=resume, report=lambda said: progress(run.name, said))
    click.echo(f"run: {run}", err=True)
    if config.objective == "grounding":
        return {"run": run.name, "objective": "grounding", "validation": best_validation(run)}
    split = default_split(manifest)
    evaluate_run(run, manifest, bank, split, device=device)
    document = summarise_run(run, split)
    report_left_out(count_left_out(run, split))
    show_scenarios({run.name: document})
    return document
