"""`mavqa-ask`: questions about a new video, answered by a trained run. The work is in `train.asking.answerer`."""

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from pipeline.cli.command import Command, json_option, plain_console, show_json
from pipeline.cli.progress import show_progress
from pipeline.store.schema import MODALITIES
from train.cli.options import features_options, open_answerer, require_run

if TYPE_CHECKING:
    from rich.console import Console

    from train.asking.reply import AnsweredQuestion, ModalityReport, Reply

# How the states of a modality are named to the user.
_STATES = {
    "available": "available",
    "dropped": "missing, dropped on request",
    "absent": "missing, the file has none",
    "failed": "missing, it cannot be decoded",
    "unread": "missing, at none of the seconds that the model reads",
}


@click.command(cls=Command, short_help="Answer questions about a new video with a trained run.")
@click.argument("run", type=click.Path(path_type=Path))
@click.argument("video", type=click.Path(path_type=Path))
@click.argument("questions", nargs=-1, required=True, metavar="QUESTION...")
@click.option(
    "--choice", "choices", multiple=True, metavar="ANSWER", help="Choose only from these answers. Repeatable."
)
@click.option(
    "--drop",
    multiple=True,
    type=click.Choice(MODALITIES),
    help="Treat this modality as missing, to see what the run answers without it. Repeatable.",
)
@click.option("--top", type=click.IntRange(1), default=3, show_default=True, help="Number of answers to print.")
@features_options
@json_option
def ask(
    run: Path,
    video: Path,
    questions: tuple[str, ...],
    choices: tuple[str, ...],
    drop: tuple[str, ...],
    top: int,
    as_json: bool,
    **of_features: Any,
) -> None:
    """Answer one or more questions about a media file that no manifest lists.

    The file's features are computed as for the training of RUN; a missing modality is found, and treated as the run's
    method does. RUN is not changed.

    \b
    Examples:
      mavqa-ask runs/avst-rmm-avr-1 clip.mp4 "How many instruments are sounding in the video?"
      mavqa-ask runs/avst-rmm-avr-1 clip.mp4 "Is the flute always playing?" --drop audio --top 5
      mavqa-ask runs/avst-rmm-avr-1 clip.mp4 "What is the first instrument?" --choice flute --choice violin --json
    """
    require_run(run)
    with show_progress() as shown, open_answerer(run, shown, **of_features) as answerer:
        shown.update(f"ask {run.name}", 0, None, "videos", "computing features")
        reply = answerer.ask(video, questions, choices=choices or None, drop=drop)
    if as_json:
        show_json(reply.to_document(top))
    else:
        _show(run, reply, top)


def _show(run: Path, reply: "Reply", top: int) -> None:
    console = plain_console(stderr=True)
    say = partial(console.print, soft_wrap=True)
    say(f"{reply.video}, of which the run reads the first {reply.seconds} seconds")
    for name, report in reply.modalities.items():
        say(f"  {name}: {_describe(report)}")
    if reply.handling:
        say(f"  {reply.handling}")
    for note in reply.notes:
        say(f"  the features may be rounded otherwise than those of the training: {note}")
    if reply.temperature is None:
        say(f"  probabilities are not calibrated: mavqa-evaluate {run}")
    for answered in reply.questions:
        _show_question(console, answered, top)


def _describe(report: "ModalityReport") -> str:
    parts = [_STATES[report.state]]
    if report.state in ("available", "unread"):
        parts.append(f"seconds {report.first_second} to {report.stop_second}")
    if report.hint:
        parts.append(f"but it is {report.hint}")
    return ", ".join(parts) + (f" ({report.reason})" if report.reason else "")


def _show_question(console: "Console", answered: "AnsweredQuestion", top: int) -> None:
    from train.asking.track_record import Accuracy

    say = partial(console.print, soft_wrap=True)
    say(f"\n{answered.question}")
    for ranked in answered.answers[:top]:
        say(f"  {100 * ranked.probability:5.1f} %  {ranked.answer}")
    for note in answered.notes:
        say(f"  {note}")
    record = answered.track_record
    if not isinstance(record, Accuracy):
        say(f"  whether the run exceeds its floor on such questions is not known: {record}")
        return
    measured = (
        f"{record.type}, {record.scenario}: {record.accuracy:.1f} % of {record.questions} questions of {record.split}, "
        f"floor {record.floor:.1f} % ({record.floor_name})"
    )
    if record.exceeds_floor:
        say(f"  {measured}")
    else:
        say(f"  the run does not exceed its floor on such questions, which uses no video: {measured}")
