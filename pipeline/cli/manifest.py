"""`mavqa-manifest`: build, check and synthesize manifests. It only parses options and shows results."""

import os
import tomllib
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from pipeline.cli.command import Group, file_option, folder_option, json_option, progress_bar, show_json
from pipeline.errors import UserError
from pipeline.manifests.check import Finding, Report, check_manifest, count
from pipeline.manifests.manifest import SPLITS, Manifest, load_manifest, save_manifest
from pipeline.manifests.sources.music_avqa import RELEASES
from pipeline.manifests.sources.records import Built
from pipeline.manifests.sources.registry import load_source

SHOWN_PER_KIND = 5

out_option = folder_option("--out", "Folder for the manifest; its name becomes the dataset's name.", required=True)


@click.group(cls=Group)
def manifest() -> None:
    """Say what exists: the videos, questions and frozen vocabulary of a dataset, as files."""


@manifest.group(cls=Group)
def build() -> None:
    """Build a manifest from a published release, a table of your own, or a folder of videos."""


@build.command("music-avqa")
@folder_option("--annotations", "Folder of the published annotation files.")
@click.option("--release", type=click.Choice(list(RELEASES)), default="json_update", show_default=True)
@file_option("--train", "Training questions; wins over --annotations.")
@file_option("--val", "Validation questions; wins over --annotations.")
@file_option("--test", "Test questions; wins over --annotations.")
@folder_option("--videos", "Folder of the videos, searched for <video id>.* to note paths and SHA-256.")
@out_option
@json_option
def build_music_avqa(
    annotations: Path | None,
    release: str,
    videos: Path | None,
    out: Path,
    as_json: bool,
    **files: Path | None,
) -> None:
    """Build the manifest of a MUSIC-AVQA release from its own JSON files.

    The splits that are there are built.

    \b
    Examples:
      mavqa-manifest build music-avqa --annotations MUSIC-AVQA/data --out data_manifests/music-avqa
      mavqa-manifest build music-avqa --release v2 --test test_balance.json --out data_manifests/v2
    """
    given = {split: path for split in SPLITS if (path := files[split]) is not None}
    with progress_bar("hashing videos") as progress:
        built = load_source("music-avqa")(_name_of(out), release, annotations, given, videos, progress)
    _finish(built, out, as_json)


@build.command("avqa")
@folder_option("--annotations", "Folder of the published annotation files.")
@file_option("--train", "Training questions; repeatable; wins over --annotations.", multiple=True)
@file_option("--val", "Validation questions; repeatable; wins over --annotations.", multiple=True)
@file_option("--test", "Test questions; repeatable; wins over --annotations.", multiple=True)
@folder_option("--videos", "Folder of the videos, searched for <video name>.* to note paths and SHA-256.")
@out_option
@json_option
def build_avqa(
    annotations: Path | None, videos: Path | None, out: Path, as_json: bool, **files: tuple[Path, ...]
) -> None:
    """Build the manifest of AVQA (eight types, multiple choice) from its own JSON files.

    In --annotations a split is <split>_qa.json, or one file a type, such as train_Where.json. The splits that are
    there are built; AVQA has train and val.

    \b
    Examples:
      mavqa-manifest build avqa --annotations AVQA --out data_manifests/avqa
      mavqa-manifest build avqa --train a.json --train b.json --test val_qa.json --out data_manifests/avqa
    """
    given = {split: files[split] for split in SPLITS if files[split]}
    with progress_bar("hashing videos") as progress:
        built = load_source("avqa")(_name_of(out), annotations, given, videos, progress)
    _finish(built, out, as_json)


@build.command("table")
@file_option("--csv", "Table with the columns video, question, answer.", required=True)
@folder_option("--videos", "Folder of the videos, searched to note paths and SHA-256.")
@out_option
@json_option
def build_table(csv: Path, videos: Path | None, out: Path, as_json: bool) -> None:
    """Build a manifest from your own questions in a CSV file.

    Columns: video (a path below --videos, or a name without suffix), question, answer; optional type,
    modality (Audio, Visual or Audio-Visual), split (train, val or test), choices (divided by |), question_id.

    \b
    Example:
      mavqa-manifest build table --csv questions.csv --videos clips --out data_manifests/mine
    """
    with progress_bar("hashing videos") as progress:
        built = load_source("table")(_name_of(out), csv, videos, progress)
    _finish(built, out, as_json)


@build.command("folder")
@folder_option("--videos", "Folder of the videos, searched with all folders below.", required=True)
@out_option
@json_option
def build_folder(videos: Path, out: Path, as_json: bool) -> None:
    """Build a manifest of a folder of videos without questions, to extract features from.

    \b
    Example:
      mavqa-manifest build folder --videos clips --out data_manifests/clips
    """
    with progress_bar("hashing videos") as progress:
        built = load_source("folder")(_name_of(out), videos, progress)
    _finish(built, out, as_json)


@manifest.command()
@out_option
@file_option("--settings", "Take the numbers below from this file's table [synthesize], and the dataset's name.")
@click.option("--videos", type=click.IntRange(min=1), help="How many clips.  [default: 400]")
@click.option("--seconds", type=click.IntRange(min=1), help="Length of each clip.  [default: 10]")
@click.option("--seed", type=click.IntRange(min=0), help="Same seed, same dataset.  [default: 0]")
@click.option("--workers", type=click.IntRange(min=1), help="Processes at work.  [default: one a core]")
@json_option
def synthesize(out: Path, settings: Path | None, workers: int | None, as_json: bool, **numbers: int | None) -> None:
    """Write the synthetic dataset: clips of drawn instruments, and questions with true answers.

    The clips go to the folder videos in --out.

    \b
    Examples:
      mavqa-manifest synthesize --out build/demo/data --videos 400 --seconds 10 --seed 0
      mavqa-manifest synthesize --out build/demo/data --settings data_manifests/demo/dataset.toml
    """
    from pipeline.synthetic import synthesize

    name, chosen = _synthetic_numbers(out, settings)
    chosen |= {key: value for key, value in numbers.items() if value is not None}
    with progress_bar("drawing clips") as progress:
        made = synthesize(out, **chosen, progress=progress, workers=workers or os.cpu_count() or 1, name=name)
    _show(Built(made), out, as_json)


def _synthetic_numbers(out: Path, settings: Path | None) -> tuple[str, dict[str, int]]:
    """Return the dataset's name and its numbers: the defaults, or what `settings` says."""
    numbers = {"videos": 400, "seconds": 10, "seed": 0}
    if settings is None:
        return _name_of(out), numbers
    try:
        said = tomllib.loads(settings.read_text(encoding="utf-8"))
        return str(said["name"]), numbers | {key: int(said["synthesize"][key]) for key in numbers}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"--settings {settings}: {error}: name a dataset.toml with a table [synthesize]") from None


@manifest.command()
@click.argument("folder", type=click.Path(path_type=Path))
@folder_option("--videos", "Folder of the videos [default: FOLDER/videos or data/videos/<dataset>, if there].")
@json_option
def check(folder: Path, videos: Path | None, as_json: bool) -> None:
    """Prove the manifest in FOLDER: ids, answers, words, files and their SHA-256.

    Ends with exit code 2 where something is wrong. Videos that splits share are counted.

    \b
    Example:
      mavqa-manifest check data_manifests/music-avqa --videos data/videos/music-avqa
    """
    checked = load_manifest(folder)
    defaults = (folder / "videos", Path("data/videos") / checked.name)
    videos = videos or next((default for default in defaults if default.is_dir()), None)
    with progress_bar("hashing videos") as progress:
        report = check_manifest(checked, videos, progress)
    if as_json:
        show_json({"manifest": str(folder), "videos": None if videos is None else str(videos), **report.to_json()})
    else:
        _show_report(checked, report)
    if report.errors:
        rest = f" (and {len(report.errors) - 1:,} more)" if len(report.errors) > 1 else ""
        raise UserError(f"manifest {str(folder)!r} fails its check: {report.errors[0].message}{rest}")


def _name_of(out: Path) -> str:
    return out.resolve().name


def _finish(built: Built, out: Path, as_json: bool) -> None:
    save_manifest(built.manifest, out)
    _show(built, out, as_json)


def _show(built: Built, out: Path, as_json: bool) -> None:
    if as_json:
        head = {"manifest": str(out), "name": built.manifest.name, "release": built.manifest.release}
        document = {**head, **count(built.manifest), "odd_records": built.counts, "notes": list(built.notes)}
        show_json(document)
        return
    click.echo(f"{_describe(built.manifest)} -> {out}")
    for name, number in built.counts.items():
        click.echo(f"  {name.replace('_', ' ')}: {number:,}")
    for note in built.notes:
        click.echo(f"note: {note}", err=True)


def _describe(described: Manifest) -> str:
    splits = [f"{split} {len(described.questions[split]):,}" for split in described.splits]
    vocabulary = described.vocabulary
    return (
        f"{described.name} ({described.release}): {len(described.videos):,} videos, "
        f"questions: {', '.join(splits) or 'none'}, "
        f"{len(vocabulary.tokens)} tokens, {len(vocabulary.answers)} answers"
    )


def _show_report(checked: Manifest, report: Report) -> None:
    click.echo(_describe(checked))
    for split, numbers in report.counts["splits"].items():
        types: dict[str, Any] = numbers["types"]
        listed = ", ".join(f"{name} {number:,}" for name, number in types.items())
        offered = f" ({numbers['multiple_choice']:,} multiple choice)" if numbers["multiple_choice"] else ""
        click.echo(f"  {split}: {numbers['questions']:,} questions{offered} on {numbers['videos']:,} videos: {listed}")
    for pair, shared in report.counts["shared"].items():
        click.echo(f"  shared by {pair}: {shared['videos']:,} videos, {shared['questions']:,} same questions")
    if not report.files_checked:
        click.echo("  files: not looked at, give --videos DIR")
    _show_findings(report.errors)
    _show_findings(report.warnings, "warning, ")


def _show_findings(findings: Sequence[Finding], prefix: str = "") -> None:
    for kind, number in Counter(finding.kind for finding in findings).items():
        click.echo(f"{prefix}{kind}: {number:,}", err=True)
        for finding in [finding for finding in findings if finding.kind == kind][:SHOWN_PER_KIND]:
            click.echo(f"  {finding.message}", err=True)
