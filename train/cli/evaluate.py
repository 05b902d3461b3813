"""`mavqa-evaluate`: evaluate a trained run in every scenario."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from pipeline.cli.command import complete_names, file_option, folder_option, json_option, show_json
from pipeline.cli.progress import show_task
from pipeline.errors import UserError
from train.cli.options import (
    RecordingCommand,
    device_option,
    loading_options,
    report_unanswerable,
    require_manifest,
    require_run,
    require_store,
    runs_progress,
    show_reliability,
    show_scenarios,
    store_option,
)
from train.data.loading import LoadingSettings
from train.data.scenarios import ALL_SCENARIOS, parse_parts, save_masks

if TYPE_CHECKING:
    from pipeline.manifests.manifest import Manifest, Question
    from train.data.feature_bank import FeatureBank
    from train.data.scenarios import Masks
    from train.evaluation.calibration import Calibration
    from train.runs.results import ResultRow


@click.command(cls=RecordingCommand, short_help="Measure a trained run in every scenario.")
@click.argument("run", type=click.Path(path_type=Path))
@click.option(
    "--scenario",
    "scenarios",
    multiple=True,
    shell_complete=complete_names(ALL_SCENARIOS),
    help=f"Scenario to evaluate: {', '.join(ALL_SCENARIOS)}; repeatable.  [default: all]",
)
@click.option(
    "--missing-rate",
    help="Share of the questions that lose a modality, such as audio=0.3,visual=0.2; replaces the scenarios.  "
    "[default: none]",
)
@click.option(
    "--unit",
    type=click.Choice(["question", "video"]),
    default="question",
    show_default=True,
    help="Whether single questions or whole videos lose a modality, for --missing-rate and --curves.",
)
@click.option(
    "--missing-part",
    help="Share of every video's seconds that lose a modality, such as audio=0.5; replaces the scenarios.  "
    "[default: none]",
)
@click.option("--curves", is_flag=True, help="Also compute the accuracy at every pair of missing rates.")
@file_option("--masks", "Mask file with the questions that lose a modality; replaces the scenarios.  [default: none]")
@click.option(
    "--split", type=click.Choice(["train", "val", "test"]), help="Split to evaluate.  [default: test, else val]"
)
@store_option("the run's")
@folder_option("--manifest", "Manifest folder.  [default: the run's]")
@folder_option("--question-only", "Run to take the question-only floor from.  [default: a matching run next to RUN]")
@folder_option("--out", "Folder to write the results and predictions to.  [default: RUN]")
@device_option
@loading_options
@json_option
def evaluate(
    run: Path,
    scenarios: tuple[str, ...],
    missing_rate: str | None,
    unit: Any,
    missing_part: str | None,
    curves: bool,
    masks: Path | None,
    split: str | None,
    store: str | None,
    manifest: Path | None,
    question_only: Path | None,
    out: Path | None,
    device: str,
    as_json: bool,
    loading: LoadingSettings,
) -> None:
    """Evaluate a trained RUN with each modality missing, and append the rows to its results.jsonl.

    Questions on videos recorded without audio or without video are in the scenario `natural`, not in `complete`. The
    probabilities of answers are calibrated on the val split, once per checkpoint (calibration.json).

    \b
    Examples:
      mavqa-evaluate runs/avst-rmm-avr-1
      mavqa-evaluate runs/avst-rmm-avr-1 --scenario audio-missing --split val --json
      mavqa-evaluate runs/avst-rmm-avr-1 --missing-rate audio=0.3,visual=0.2 --unit video
      mavqa-evaluate runs/avst-rmm-avr-1 --missing-part audio=0.5
      mavqa-evaluate runs/avst-rmm-avr-1 --curves
      mavqa-evaluate /shared/runs/avst-rmm-avr-1 --out evaluations/avst-rmm-avr-1
    """
    require_run(run)
    from train import processes
    from train.evaluation.evaluate_run import default_split
    from train.evaluation.rate_curves import add_curves
    from train.evaluation.summary import describe_reliability, summarise_rows
    from train.runs.device import choose_device
    from train.runs.folder import read_config

    processes.check_alone("mavqa-evaluate")
    _check_options(question_only, curves, scenarios, masks, missing_rate, missing_part)
    config, out, chosen_device = read_config(run), out or run, str(choose_device(device))
    loaded, bank = _open_data(manifest or Path(config.manifest), store or config.store, loading, chosen_device)
    split = split or default_split(loaded)
    chosen_masks = _choose_masks(loaded.questions.get(split, ()), masks, missing_rate, unit)
    of_split = {"split": split, "scenarios": scenarios or ALL_SCENARIOS, "masks": chosen_masks, "device": chosen_device}
    rows, calibration = _calibrate_and_evaluate(run, loaded, bank, out, parts=parse_parts(missing_part), **of_split)
    if missing_rate and chosen_masks:
        save_masks(chosen_masks, out / f"{chosen_masks.name}-{split}.json")
    if curves:
        with show_task("curves", "points") as on_progress:
            add_curves(out, rows[0], loaded, unit, on_progress=on_progress)
    document = summarise_rows(rows, question_only, near=run)
    document["reliability"] = describe_reliability(rows, calibration)
    report_unanswerable(document)
    if as_json:
        show_json(document)
    else:
        show_scenarios({document["run"]: document})
        show_reliability(document["reliability"])


def _calibrate_and_evaluate(
    run: Path, manifest: "Manifest", bank: "FeatureBank", out: Path, **of_split: Any
) -> "tuple[list[ResultRow], Calibration | None]":
    """Return the rows of `evaluate_run`, which gets `of_split`, and the calibration."""
    from train.evaluation.calibration import calibrate_run
    from train.evaluation.evaluate_run import evaluate_run

    name = run.resolve().name
    with runs_progress(bank) as progress:
        report = partial(progress, f"{name} on val")
        calibration = calibrate_run(run, manifest, bank, of_split["device"], report, out=out)
        temperatures = None if calibration is None else calibration.temperatures
        of_split |= {"report": partial(progress, name), "temperatures": temperatures}
        return evaluate_run(run, manifest, bank, out=out, **of_split), calibration


def _open_data(manifest: Path, store: str, loading: LoadingSettings, device: str) -> "tuple[Manifest, FeatureBank]":
    from pipeline.manifests.manifest import load_manifest
    from pipeline.store.reader import open_store
    from train.data.feature_bank import FeatureBank

    loaded = load_manifest(require_manifest(manifest))
    return loaded, FeatureBank(open_store(require_store(store, manifest)), loading, device)


def _check_options(question_only: Path | None, curves: bool, *exclusive: object) -> None:
    """Raise `UserError` for two options that choose what is missing, a unit without use, or a floor without results."""
    from train.runs.results import RESULTS_FILE, read_results

    options = ("--scenario", "--masks", "--missing-rate", "--missing-part")
    given = [option for option, value in zip(options, exclusive, strict=True) if value]
    if len(given) > 1:
        raise UserError(f"{' and '.join(given)} exclude each other: pass only one of them")
    is_given = click.get_current_context().get_parameter_source("unit") is not ParameterSource.DEFAULT
    if is_given and not curves and "--missing-rate" not in given:
        raise UserError("--unit is of --missing-rate and --curves: pass one of them, or leave it out")
    if question_only is not None:
        read_results(question_only / RESULTS_FILE)


def _choose_masks(questions: "Sequence[Question]", file: Path | None, rate: str | None, unit: Any) -> "Masks | None":
    """Return the masks of `file`, or new ones sampled at `rate`; None without either."""
    from train.data.scenarios import load_masks, parse_rates, sample_masks

    if file is not None:
        return load_masks(file)
    return None if rate is None else sample_masks(questions, parse_rates(rate), 0, unit)
