"""`mavqa-evaluate`: measure a trained run in every scenario. It only parses options and shows results."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from pipeline.cli.command import Command, file_option, folder_option, json_option, show_json
from pipeline.errors import UserError
from train.cli.options import (
    device_option,
    report_left_out,
    require_manifest,
    require_run,
    require_store,
    show_scenarios,
    store_option,
)

if TYPE_CHECKING:
    from pipeline.manifests.manifest import Question
    from train.data.scenarios import Masks


@click.command(cls=Command)
@click.argument("run", type=click.Path(path_type=Path))
@click.option(
    "--scenario",
    "scenarios",
    multiple=True,
    help="complete, audio-missing, visual-missing, both-missing or natural; repeatable.  [default: all]",
)
@click.option("--missing-rate", help="Take modalities away from some questions, such as audio=0.3,visual=0.2.")
@click.option(
    "--unit",
    type=click.Choice(["question", "video"]),
    default="question",
    show_default=True,
    help="What loses a modality at a --missing-rate.",
)
@click.option("--missing-part", help="Take a stretch of every video's seconds away, such as audio=0.5.")
@click.option("--curves", is_flag=True, help="Add the accuracy at every pair of missing rates.")
@file_option("--masks", "File that says which questions lose which modality, in place of scenarios.")
@click.option("--split", type=click.Choice(["train", "val", "test"]), help="[default: test, else val]")
@store_option("the run's")
@folder_option("--manifest", "Folder of the manifest.  [default: the run's]")
@folder_option("--question-only", "Run that gives the question-only floor.  [default: one beside RUN]")
@device_option
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
    device: str,
    as_json: bool,
) -> None:
    """Measure what a missing modality costs a trained RUN, and add the rows to its results.jsonl.

    Questions on videos that were recorded without sound or picture stand in `natural`, never in `complete`.

    \b
    Examples:
      mavqa-evaluate runs/avst-rmm-avr-1
      mavqa-evaluate runs/avst-rmm-avr-1 --scenario audio-missing --split val --json
      mavqa-evaluate runs/avst-rmm-avr-1 --missing-rate audio=0.3,visual=0.2 --unit video
      mavqa-evaluate runs/avst-rmm-avr-1 --missing-part audio=0.5
      mavqa-evaluate runs/avst-rmm-avr-1 --curves
    """
    require_run(run)
    from pipeline.manifests.manifest import load_manifest
    from pipeline.store.reader import open_store
    from train.data.feature_bank import FeatureBank
    from train.data.scenarios import ALL_SCENARIOS, parse_parts
    from train.evaluation.evaluate_run import count_left_out, default_split, evaluate_run, summarise_run
    from train.evaluation.rate_curves import add_curves
    from train.runs.folder import read_config
    from train.runs.results import RESULTS_FILE, read_results
    from train.training.fit import choose_device

    config = read_config(run)
    folder = manifest or Path(config.manifest)
    loaded = load_manifest(require_manifest(folder, folder.name))
    address = store or config.store
    bank = FeatureBank(open_store(require_store(address, Path(address).stem)))
    split = split or default_split(loaded)
    asked = scenarios or ALL_SCENARIOS
    if sum(map(bool, (masks, missing_rate, missing_part))) > 1:
        raise UserError("--masks, --missing-rate and --missing-part each say what is missing: give one of them")
    given = _find_masks(run, loaded.questions.get(split, ()), f"-{split}", masks, missing_rate, unit)
    if question_only is not None:
        read_results(question_only / RESULTS_FILE)
    found = evaluate_run(run, loaded, bank, split, asked, given, str(choose_device(device)), parse_parts(missing_part))
    if curves:
        add_curves(run, loaded, split, unit)
    document = summarise_run(run, split, found, question_only)
    report_left_out(count_left_out(run, split))
    if as_json:
        show_json(document)
    else:
        show_scenarios({run.resolve().name: document})


def _find_masks(
    run: Path, questions: "Sequence[Question]", suffix: str, file: Path | None, rate: str | None, unit: Any
) -> "Masks | None":
    """Return the masks of `file`, or those drawn at `rate`, which are saved in the run; None without either."""
    from train.data.scenarios import draw_masks, load_masks, parse_rates, save_masks

    if file is not None:
        return load_masks(file)
    if rate is None:
        return None
    drawn = draw_masks(questions, parse_rates(rate), 0, unit)
    save_masks(drawn, run / f"{drawn.name}{suffix}.json")
    return drawn
