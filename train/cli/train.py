"""`mavqa-train`: train a backbone with a method on a store, and evaluate it."""

import re
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource

from pipeline.cli.command import (
    complete_folders,
    complete_names,
    file_option,
    folder_option,
    json_option,
    plain_name,
    show_json,
)
from pipeline.errors import UserError
from train.backbones.registry import BACKBONES
from train.cli.options import (
    RecordingCommand,
    device_option,
    loading_options,
    report_unanswerable,
    require_manifest,
    require_store,
    runs_progress,
    show_scenarios,
    store_option,
    tracker_option,
)
from train.data.loading import LoadingSettings
from train.methods.registry import METHODS
from train.runs.config import LARGEST_SEED, PRECISIONS, PRESETS, TrainConfig, make_config, read_none
from train.runs.identity import is_run_folder
from train.runs.settings import format_settings, merge_settings, parse_assignments, read_settings

DEFAULT_DATASET, DEFAULT_PRESET = "music-avqa", "paper"
# The reference models are chosen by their inputs (--inputs).
CHOSEN_BY_NAME = [name for name in METHODS if name != "reference"]


@click.command(
    cls=RecordingCommand,
    short_help="Train a backbone with a method, and evaluate it.",
    on_interrupt="run it with --resume to go on from the last state that was written",
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
    default=DEFAULT_DATASET,
    show_default=True,
    callback=plain_name,
    shell_complete=complete_folders("data_manifests"),
    help="Dataset name in the default paths below.",
)
@folder_option("--manifest", "Manifest folder.  [default: data_manifests/DATASET]")
@store_option("stores/DATASET.zarr")
@folder_option("--out", "Run folder to write.  [default: runs/BACKBONE-METHOD-SEED, with other settings in between]")
@click.option(
    "--preset",
    type=click.Choice(list(PRESETS)),
    default=DEFAULT_PRESET,
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
    type=click.IntRange(0, LARGEST_SEED),
    help=f"Random seed.  [default: the preset's, else {TrainConfig.model_fields['seed'].default}]",
)
@device_option
@loading_options
@click.option(
    "--precision",
    type=click.Choice(PRECISIONS),
    default=TrainConfig.model_fields["precision"].default,
    show_default=True,
    help="Floating-point precision of training; tf32: of products on a GPU. Answers are computed in float32.",
)
@click.option(
    "--missing-rate",
    help="Share of the training questions that lose a modality, such as audio=0.3,visual=0.2.  [default: none]",
)
@file_option("--config", "TOML file of settings, or the config.json of a run; other options replace its values.")
@click.option(
    "--set",
    "assignments",
    multiple=True,
    metavar="SETTING=VALUE",
    help="Any other setting, such as batch_size=32, options.slots=50 (of the method) or backbone_options.layers=2; "
    "repeatable.",
)
@click.option("--show-settings", is_flag=True, help="Print all settings as a file for --config, and stop.")
@click.option(
    "--resume",
    is_flag=True,
    help="Resume the run in --out with its own settings; a finished run is only evaluated.",
)
@click.option(
    "--keep-state",
    is_flag=True,
    help="Keep the optimiser's state (last.safetensors) of a finished run, which --resume can then train for more "
    "--epochs.",
)
@click.option(
    "--save-every",
    type=click.FloatRange(min=0, min_open=True),
    default=10,
    show_default=True,
    metavar="MINUTES",
    help="Write the state for --resume so often inside an epoch, besides at its end and on SIGTERM.",
)
@tracker_option
@json_option
def train(
    dataset: str,
    manifest: Path | None,
    store: str | None,
    out: Path | None,
    missing_rate: str | None,
    config: Path | None,
    assignments: tuple[str, ...],
    show_settings: bool,
    resume: bool,
    keep_state: bool,
    save_every: float,
    trackers: tuple[str, ...],
    as_json: bool,
    loading: LoadingSettings,
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
      mavqa-train --set batch_size=32 --set options.slots=50
      mavqa-train --backbone pstp --show-settings > mine.toml
      mavqa-train --config mine.toml --out runs/mine
      mavqa-train --resume --out runs/avst-rmm-avr-1
    """
    is_resumed, is_dataset_given = resume and out is not None and is_run_folder(out), _is_given("dataset")
    of_dataset = {"manifest": f"data_manifests/{dataset}", "store": f"stores/{dataset}.zarr"}
    options = {**settings, "manifest": manifest and str(manifest), "store": store}
    preferred = of_dataset if is_dataset_given and not is_resumed else {}
    given = _given_settings(config, preferred, options, missing_rate, assignments)
    if show_settings:
        click.echo(format_settings(make_config(given.pop("preset", DEFAULT_PRESET), **given)), nl=False)
        return
    if out and is_resumed:
        chosen = _recorded_config(out, dataset if is_dataset_given else None, given)
    else:
        places = {name: given.pop(name, "") or of_dataset[name] for name in of_dataset}
        place = require_manifest(Path(places["manifest"]))
        store = require_store(places["store"], place)
        preset = given.pop("preset", DEFAULT_PRESET)
        chosen = make_config(preset, manifest=str(place.absolute()), store=store, **given)
    document = _train(chosen, out, loading, resume, keep_state, save_every, trackers)
    if as_json and document:
        show_json(document)


def _is_given(option: str) -> bool:
    return click.get_current_context().get_parameter_source(option) is not ParameterSource.DEFAULT


def _given_settings(
    file: Path | None,
    of_dataset: dict[str, str],
    options: dict[str, Any],
    missing_rate: str | None,
    assignments: tuple[str, ...],
) -> dict[str, Any]:
    """Return the settings of the file, of the dataset, of the other options, and of --set; later ones replace earlier.

    Raises `UserError` if the file has the settings of another preset than the one that is given.
    """
    of_file = read_settings(file) if file else {}
    of_options = {name: value for name, value in options.items() if _is_given(name)}
    if missing_rate is not None:
        from train.data.scenarios import parse_rates

        of_options["missing_rates"] = parse_rates(missing_rate)
    if {"preset"} <= of_file.keys() & of_options.keys() and of_file["preset"] != of_options["preset"]:
        raise UserError(
            f"--preset {of_options['preset']} and --config {file} exclude each other: its settings, of preset "
            f"{of_file['preset']!r}, would replace those of the preset"
        )
    return merge_settings(of_file, of_dataset, of_options, parse_assignments(assignments))


def _recorded_config(run: Path, dataset: str | None, given: dict[str, Any]) -> TrainConfig:
    """Return the configuration that `run` was started with; its data and device may be elsewhere now.

    Raises `UserError` if it was imported, if another of the `given` settings differs, or if the `dataset` is not the
    name of its manifest's folder.
    """
    from train.runs.folder import read_config, read_environment

    if "imported_from" in read_environment(run):
        raise UserError(f"{run} was imported, it has no training to resume: evaluate it with 'mavqa-evaluate {run}'")
    config, device, epochs = read_config(run), given.pop("device", None), given.pop("epochs", 0)
    if 0 < epochs < config.epochs:
        raise UserError(f"{run} was started with epochs {config.epochs}, not {epochs}: pass another --out")
    manifest, store = given.pop("manifest", ""), given.pop("store", "")
    for name, value in given.items():
        recorded, value = getattr(config, name), read_none(value)
        if merge_settings({name: recorded}, {name: value}) != {name: recorded}:
            raise UserError(f"{run} was started with {name} {recorded!r}, not {value!r}: pass another --out")
    recorded_dataset = Path(config.manifest).name
    if dataset is not None and dataset != recorded_dataset:
        raise UserError(f"{run} was started with dataset {recorded_dataset!r}, not {dataset!r}: pass another --out")
    place = require_manifest(Path(manifest or config.manifest).absolute())
    changes = {"manifest": str(place), "store": require_store(store or config.store, place)}
    changes |= {"epochs": max(epochs, config.epochs)}
    return config.model_copy(update={**changes, **({"device": device} if device else {})})


def name_run(config: TrainConfig, dataset: str) -> str:
    """Return the default name of a run: backbone, method (or the inputs of a reference model) and seed.

    Before the seed stands what is not the default: preset, variant, missing rates, the run to start from, the dataset.
    """
    method = config.method if config.inputs == "all" else f"{config.inputs.replace(',', '-')}-only"
    method = "grounding" if config.objective == "grounding" else method
    defaults = TrainConfig.model_fields
    parts = [
        config.backbone,
        method,
        "" if config.preset in (defaults["preset"].default, method) else config.preset,
        "" if config.variant == defaults["variant"].default else config.variant,
        "-".join(f"missing-{modality}-{rate:g}" for modality, rate in sorted(config.missing_rates.items())),
        f"from-{config.start_from}" if config.start_from else "",
        "" if dataset == DEFAULT_DATASET else re.sub(r"[^\w.]+", "-", dataset),
        str(config.seed),
    ]
    return "-".join(part for part in parts if part)


def _train(
    config: TrainConfig,
    out: Path | None,
    loading: LoadingSettings,
    resume: bool,
    keep_state: bool,
    save_minutes: float,
    trackers: tuple[str, ...],
) -> dict[str, Any]:
    from pipeline.manifests.manifest import load_manifest
    from pipeline.store.reader import open_store
    from train import processes
    from train.data.feature_bank import FeatureBank
    from train.evaluation.evaluate_run import default_split, evaluate_run
    from train.evaluation.summary import summarise_rows
    from train.runs.device import choose_device
    from train.runs.log import best_validation
    from train.training.fit import fit
    from train.training.stopping import StopSignal
    from train.training.tracking import tracked

    with processes.joined(), StopSignal():
        device = str(choose_device(config.device))
        manifest = load_manifest(Path(config.manifest))
        run = out or Path("runs") / name_run(config, manifest.name)
        own_share = loading.shared_by(processes.count(), gpus=processes.count())
        bank = FeatureBank(open_store(config.store), own_share, device)
        # Before hours of training, not after them.
        split = default_split(manifest) if config.objective == "answer" else ""
        if processes.is_first():
            click.echo(f"run: {run}", err=True)
        is_first = processes.is_first()
        with runs_progress(bank) if is_first else nullcontext(lambda *of_run: None) as progress:
            report = partial(progress, run.name)
            with tracked(trackers, config, run, report) as record:
                fit(
                    config,
                    manifest,
                    bank,
                    run,
                    resume=resume,
                    keep_state=keep_state,
                    save_minutes=save_minutes,
                    report=record,
                )
            if config.objective == "grounding":
                validation = best_validation(run)
                return {"run": run.name, "objective": "grounding", "validation": validation} if is_first else {}
            rows = evaluate_run(run, manifest, bank, split, device=device, report=report)
        if not is_first:
            return {}
        document = summarise_rows(rows, near=run)
        report_unanswerable(document)
        show_scenarios({run.name: document})
        return document
