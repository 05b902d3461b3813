"""`mavqa-manifest`: build, synthesize and check manifests. The work is in `manifests` and `synthetic`."""

import os
import sys
import tomllib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import click

from pipeline.cli.command import (
    FAILURES_RECORDED,
    Command,
    Decorator,
    Group,
    complete_names,
    file_option,
    folder_option,
    json_option,
    show_json,
)
from pipeline.cli.progress import show_task
from pipeline.errors import UserError, did_you_mean
from pipeline.manifests.check import Report, check_manifest, count
from pipeline.manifests.findings import Finding
from pipeline.manifests.manifest import Manifest, load_manifest, save_manifest
from pipeline.manifests.media_files import HARMLESS
from pipeline.manifests.review import review_questions, review_vocabulary
from pipeline.manifests.sources.interface import Built, Option, Source
from pipeline.manifests.sources.registry import SOURCES, load_source

SHOWN_PER_KIND = 5
# Files of settings that are installed with mavqa.
SETTINGS = Path(__file__).parent.parent / "synthetic"
BUNDLED = sorted(path.stem for path in SETTINGS.glob("*.toml"))

out_option = folder_option("--out", "Folder for the manifest; its name becomes the dataset's name.", required=True)


@click.group(cls=Group)
def manifest() -> None:
    """Describe a dataset: its videos, questions and vocabulary."""


class SourceGroup(Group):
    """One command per registered source, which is imported when its command is looked up."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the names of the sources."""
        return list(SOURCES)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Return the command that builds a manifest from the source `cmd_name`, or None if there is no such source.

        The command of a source that cannot be loaded says so, in its help and when it is run.
        """
        if cmd_name not in SOURCES:
            return None
        try:
            return _build_command(cmd_name, load_source(cmd_name))
        except UserError as error:
            return _broken_command(cmd_name, error)


@manifest.group(cls=SourceGroup, short_help="Build one from a release, a table or a folder.")
def build() -> None:
    """Build a manifest from a published release, a CSV table or a folder of videos.

    \b
    Examples:
      mavqa-manifest build music-avqa --annotations MUSIC-AVQA/data --out data_manifests/music-avqa
      mavqa-manifest build table --csv questions.csv --videos clips --out data_manifests/mine
    """


def _build_command(name: str, source: Source) -> click.Command:
    def run(out: Path, as_json: bool, **options: Any) -> None:
        with show_task("hash", "videos") as progress:
            built = source.build(_name_of(out), progress=progress, **options)
        save_manifest(built.manifest, out)
        reviewed = (*review_vocabulary(built.manifest), *review_questions(built.manifest))
        _show(replace(built, notes=(*built.notes, *(finding.message for finding in reviewed))), out, as_json)
        if unusable := sum(finding.kind not in HARMLESS for finding in built.skipped):
            click.echo(f"{unusable:,} media files or folders were left out: fix them and build again", err=True)
            sys.exit(FAILURES_RECORDED)

    decorators = [*map(_source_option, source.options), out_option, json_option]
    for decorate in reversed(decorators):
        run = decorate(run)
    return click.command(name, cls=Command, help=source.help)(run)


def _name_of(folder: Path) -> str:
    """Return the name of `folder`, of "." too; unlike `Path.resolve`, also of a link to itself."""
    return Path(os.path.realpath(folder)).name


def _broken_command(name: str, error: UserError) -> click.Command:
    @click.command(
        name,
        cls=Command,
        help=str(error),
        short_help="cannot be loaded",
        context_settings={"ignore_unknown_options": True},
    )
    @click.argument("words", nargs=-1, type=click.UNPROCESSED)
    def run(words: tuple[str, ...]) -> None:
        raise error

    return run


def _source_option(option: Option) -> Decorator:
    name = f"--{option.name}"
    kinds: dict[Any, click.ParamType] = {
        "folder": click.Path(file_okay=False, path_type=Path),
        "file": click.Path(dir_okay=False, path_type=Path),
        "text": click.STRING,
        "integer": click.INT,
    }
    return click.option(
        name,
        type=kinds.get(option.kind) or click.Choice(list(option.kind)),
        help=option.help,
        default=option.default,
        show_default=True,
        required=option.is_required,
        multiple=option.is_repeatable,
    )


@manifest.command(short_help="Render the synthetic dataset.", on_interrupt="run the same command again, it starts over")
@out_option
@file_option(
    "--settings",
    "TOML file with the dataset's name and, in a table [synthesize], the options below; demo: those of 'mavqa demo'.",
    shell_complete=complete_names(BUNDLED),
)
@click.option("--videos", type=click.IntRange(min=1), help="Number of clips.  [default: --settings, else 400]")
@click.option("--seconds", type=click.IntRange(min=1), help="Length of each clip.  [default: --settings, else 10]")
@click.option(
    "--seed",
    type=click.IntRange(min=0),
    help="Random seed; equal seeds give equal datasets.  [default: --settings, else 0]",
)
@click.option(
    "--redundancy",
    type=click.FloatRange(0, 1),
    help="Share of the clips whose audio and frames determine each other, 0 (independent) to 1 (redundant); the "
    "information is measured.  [default: --settings, else the demo's scenes]",
)
@click.option(
    "--difficulty",
    help="normal, or hard: up to 6 instruments, shapes behind them, noise.  [default: --settings, else normal]",
)
@click.option("--workers", type=click.IntRange(min=1), help="Number of worker processes.  [default: one per core]")
@json_option
def synthesize(out: Path, settings: Path | None, workers: int | None, as_json: bool, **options: Any) -> None:
    """Create the synthetic dataset: rendered clips of instruments, and questions with exact answers.

    The clips are written to the folder videos in --out. With --redundancy, redundancy.json in --out has the
    information of each modality about the other and about the answers.

    \b
    Examples:
      mavqa-manifest synthesize --out build/demo/data --videos 400 --seconds 10 --seed 0
      mavqa-manifest synthesize --out build/demo/data --settings demo
      mavqa-manifest synthesize --out build/half/data --redundancy 0.5 --difficulty hard --seconds 3
    """
    from pipeline.synthetic import read_redundancy, synthesize

    name, defaults = _synthetic_defaults(out, settings)
    chosen = defaults | {key: value for key, value in options.items() if value is not None}
    with show_task("synthesize", "clips") as progress:
        created = synthesize(out, **chosen, progress=progress, workers=workers or os.cpu_count() or 1, name=name)
    measured = {"redundancy": read_redundancy(out)} if "redundancy" in chosen else {}
    _show(Built(created), out, as_json, measured)


def _synthetic_defaults(out: Path, settings: Path | None) -> tuple[str, dict[str, Any]]:
    """Return the dataset's name and its options, from the file `settings` if there is one."""
    defaults, least = {"videos": 400, "seconds": 10, "seed": 0}, {"videos": 1, "seconds": 1, "seed": 0}
    optional = {"redundancy": ((int, float), "a number in [0, 1]"), "difficulty": ((str,), "text")}
    if settings is None:
        return _name_of(out), defaults
    file = SETTINGS / f"{settings}.toml" if str(settings) in BUNDLED and not settings.is_file() else settings
    try:
        document = tomllib.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(
            f"--settings {settings} does not exist: pass a dataset.toml, or one of {', '.join(BUNDLED)}"
        ) from None
    except ValueError as error:
        raise UserError(f"--settings {settings} is not valid TOML: {error}") from None
    table = document.get("synthesize")
    if not isinstance(document.get("name"), str) or not isinstance(table, dict):
        raise UserError(f"--settings {settings} has no text 'name' or no table [synthesize]: pass a dataset.toml")
    for key in (*table, *least):
        if key in optional:
            kinds, wanted = optional[key]
            if type(table[key]) not in kinds:
                raise UserError(f"--settings {settings}: [synthesize] {key} is {table[key]!r}: set {wanted}")
            continue
        if key not in least:
            known = (*least, *optional)
            hint, listed = did_you_mean(key, known), ", ".join(known)
            raise UserError(f"--settings {settings}: [synthesize] {key} is unknown{hint}: choose one of {listed}")
        if type(table.get(key)) is not int or table[key] < least[key]:
            found = repr(table[key]) if key in table else "missing"
            raise UserError(f"--settings {settings}: [synthesize] {key} is {found}: set an integer from {least[key]}")
    return document["name"], table


@manifest.command(short_help="Check ids, answers, words and files.")
@click.argument("folder", type=click.Path(path_type=Path))
@folder_option("--videos", "Folder of the videos.  [default: FOLDER/videos or data/videos/<dataset>, if it exists]")
@json_option
def check(folder: Path, videos: Path | None, as_json: bool) -> None:
    """Check the manifest in FOLDER: ids, answers, words, files and their SHA-256.

    Videos and questions shared by splits are counted. Exit code 2 if there are errors.

    \b
    Example:
      mavqa-manifest check data_manifests/music-avqa --videos data/videos/music-avqa
    """
    checked = load_manifest(folder)
    defaults = (folder / "videos", Path("data/videos") / checked.name)
    videos = videos or next((default for default in defaults if default.is_dir()), None)
    with show_task("hash", "videos") as progress:
        report = check_manifest(checked, videos, progress)
    if as_json:
        show_json({"manifest": str(folder), "videos": None if videos is None else str(videos), **report.to_json()})
    else:
        _show_report(checked, report)
    if report.errors:
        rest = f" (and {len(report.errors) - 1:,} more)" if len(report.errors) > 1 else ""
        raise UserError(f"manifest {str(folder)!r} is invalid: {report.errors[0].message}{rest}")


def _show(built: Built, out: Path, as_json: bool, measured: Mapping[str, Any] = MappingProxyType({})) -> None:
    if as_json:
        head = {"manifest": str(out), "name": built.manifest.name, "release": built.manifest.release}
        skipped = [asdict(finding) for finding in built.skipped]
        messages = {"odd_records": built.counts, "notes": list(built.notes), "skipped": skipped}
        show_json({**head, **count(built.manifest), **messages, **measured})
        return
    click.echo(f"{_describe(built.manifest)} -> {out}")
    for name, number in built.counts.items():
        click.echo(f"  {name.replace('_', ' ')}: {number:,}")
    for note in built.notes:
        click.echo(f"note: {note}", err=True)
    _show_findings(built.skipped, "left out, ")


def _describe(manifest: Manifest) -> str:
    splits = [f"{split} {len(manifest.questions[split]):,}" for split in manifest.splits]
    vocabulary = manifest.vocabulary
    return (
        f"{manifest.name} ({manifest.release}): {len(manifest.videos):,} videos, "
        f"questions: {', '.join(splits) or 'none'}, "
        f"{len(vocabulary.tokens)} tokens, {len(vocabulary.answers)} answers"
    )


def _show_report(checked: Manifest, report: Report) -> None:
    click.echo(_describe(checked))
    for split, numbers in report.counts["splits"].items():
        types: dict[str, Any] = numbers["types"]
        listed = ", ".join(f"{name} {number:,}" for name, number in types.items())
        choice = f" ({numbers['multiple_choice']:,} multiple choice)" if numbers["multiple_choice"] else ""
        click.echo(f"  {split}: {numbers['questions']:,} questions{choice} on {numbers['videos']:,} videos: {listed}")
    for pair, shared in report.counts["shared"].items():
        click.echo(f"  shared by {pair}: {shared['videos']:,} videos, {shared['questions']:,} identical questions")
    if not report.files_checked:
        click.echo("  files: not checked, pass --videos DIR")
    _show_findings(report.errors)
    _show_findings(report.warnings, "warning, ")


def _show_findings(findings: Sequence[Finding], prefix: str = "") -> None:
    for kind, number in Counter(finding.kind for finding in findings).items():
        click.echo(f"{prefix}{kind}: {number:,}", err=True)
        for finding in [finding for finding in findings if finding.kind == kind][:SHOWN_PER_KIND]:
            click.echo(f"  {finding.message}", err=True)
