"""`mavqa-predict`: answers to a table of questions about files, or to the questions of a split, as a CSV file."""

import csv
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from pipeline.cli.command import (
    FAILURES_RECORDED,
    Command,
    file_option,
    folder_option,
    json_option,
    show_json,
)
from pipeline.cli.progress import Progress, show_progress
from pipeline.errors import UserError
from pipeline.files import staged
from pipeline.manifests.manifest import SPLITS
from pipeline.store.schema import MODALITIES
from train.cli.options import features_options, open_answerer, require_manifest, require_run, require_store
from train.data.loading import LoadingSettings

if TYPE_CHECKING:
    from train.asking.predictions import PredictedRow

FAILURES_SHOWN = 10


@click.command(
    cls=Command,
    short_help="Answer many questions: a CSV file about videos, or a split.",
    on_interrupt="no answers were written, run the same command again",
)
@click.argument("run", type=click.Path(path_type=Path))
@file_option("--questions", "CSV file with the columns video and question, optionally choices (A|B) and question_id.")
@folder_option("--videos", "Folder of the videos of --questions.")
@click.option("--split", type=click.Choice(SPLITS), help="Answer this split from a store, in place of --questions.")
@folder_option("--manifest", "Manifest folder of --split.  [default: the run's]")
@file_option("--out", "CSV file to write.", required=True)
@click.option(
    "--drop",
    multiple=True,
    type=click.Choice(MODALITIES),
    help="Treat this modality of every video as missing. Repeatable.",
)
@features_options
@json_option
def predict(
    run: Path,
    questions: Path | None,
    videos: Path | None,
    split: str | None,
    manifest: Path | None,
    out: Path,
    drop: tuple[str, ...],
    as_json: bool,
    **of_features: Any,
) -> None:
    """Write the answers of RUN to many questions: those of a CSV file about media files, or those of a split.

    Each file is decoded once; the rows of --out are in the order in which its videos first appear. A row that has no
    answer says why. Exit codes: 0 all answered, 2 invalid usage or input, 3 some rows have no answer.

    \b
    Examples:
      mavqa-predict runs/avst-rmm-avr-1 --questions questions.csv --videos clips --out answers.csv
      mavqa-predict runs/avst-rmm-avr-1 --questions questions.csv --videos clips --drop audio --out without-audio.csv
      mavqa-predict runs/avst-rmm-avr-1 --split test --out answers.csv
    """
    require_run(run)
    _check_options(questions, videos, split, manifest, of_features["weights"])
    if questions is not None and videos is not None:
        opened = _of_videos(run, questions, videos, drop, **of_features)
    else:
        opened = _of_split(run, split or "", manifest, drop, of_features["device"], of_features["store"])
    with opened as rows:
        count, failures = _write(out, rows)
    if as_json:
        show_json({"format": 1, "out": str(out), "questions": count, "failures": failures})
    else:
        for failure in failures[:FAILURES_SHOWN]:
            click.echo(f"no answer: {failure['question_id']} ({failure['video']}): {failure['reason']}", err=True)
        if len(failures) > FAILURES_SHOWN:
            click.echo(f"... and {len(failures) - FAILURES_SHOWN} more, in {out}", err=True)
        click.echo(f"{out}: {count - len(failures):,} of {count:,} questions answered", err=True)
    if failures:
        sys.exit(FAILURES_RECORDED)


def _check_options(
    questions: Path | None, videos: Path | None, split: str | None, manifest: Path | None, weights: str | None
) -> None:
    """Raise `UserError` unless the options name either files with questions or a split, and nothing of the other."""
    if (questions is None) == (split is None):
        raise UserError("pass --questions with --videos, to answer about files, or --split, to answer from a store")
    if split is not None:
        unread = [name for name, value in (("--videos", videos), ("--weights", weights)) if value is not None]
    else:
        unread = ["--manifest"] if manifest is not None else []
        if videos is None:
            raise UserError("--questions needs the folder of its videos: pass --videos")
    if unread:
        raise UserError(f"{unread[0]} has no effect with {'--split' if split else '--questions'}: leave it out")


@contextmanager
def _of_videos(
    run: Path, questions: Path, videos: Path, drop: tuple[str, ...], **of_features: Any
) -> "Iterator[Iterable[PredictedRow]]":
    from train.asking.predictions import predict_videos, read_questions

    asked = read_questions(questions)
    with show_progress() as shown, open_answerer(run, shown, **of_features) as answerer:
        for note in answerer.notes:
            shown.write(f"features may be rounded otherwise than those of the training: {note}")
        yield predict_videos(answerer, asked, videos, drop, _reporter(shown, run, "videos"))


@contextmanager
def _of_split(
    run: Path, split: str, manifest: Path | None, drop: tuple[str, ...], device: str, store: str | None
) -> "Iterator[Iterable[PredictedRow]]":
    from pipeline.manifests.manifest import load_manifest
    from pipeline.store.reader import open_store
    from train.asking.predictions import predict_split
    from train.data.feature_bank import FeatureBank
    from train.runs.device import choose_device
    from train.runs.folder import read_config

    config, chosen = read_config(run), str(choose_device(device))
    place = require_manifest(manifest or Path(config.manifest))
    bank = FeatureBank(open_store(require_store(store or config.store, place)), LoadingSettings(), chosen)
    with show_progress() as shown:
        report = _reporter(shown, run, "questions")
        yield predict_split(run, load_manifest(place), bank, split, chosen, drop, report)


def _reporter(shown: Progress, run: Path, unit: str) -> Any:
    return lambda done, total: shown.update(f"predict {run.name}", done, total, unit)


def _write(out: Path, rows: "Iterable[PredictedRow]") -> tuple[int, list[dict[str, str]]]:
    """Write the rows as they come, under a staging name until the last one; return their number and the failures."""
    from train.asking.predictions import COLUMNS

    failures: list[dict[str, str]] = []
    count = 0
    with staged(out) as staging, staging.open("w", encoding="utf-8", errors="replace", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        writer.writeheader()
        for row in rows:
            count += 1
            record = asdict(row)
            if not isinstance(row.probability, str):
                record["probability"] = f"{row.probability:.6f}"
                record["calibrated"] = "yes" if row.calibrated else "no"
            writer.writerow(record)
            if row.reason:
                failures.append({name: str(record[name]) for name in ("question_id", "video", "reason")})
    return count, failures
