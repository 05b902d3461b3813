"""`mavqa-export`: features of a store as folders of arrays. The work is in `pipeline.arrays.export_arrays`."""

import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from pipeline.cli.command import FAILURES_RECORDED, Command, folder_option, json_option, show_json
from pipeline.cli.progress import show_task

if TYPE_CHECKING:
    from pipeline.arrays.export_arrays import ExportSummary

MISSING_SHOWN = 10

EXAMPLES = """\b
Examples:
  mavqa-export stores/music-avqa.zarr --out feats
  mavqa-export stores/music-avqa.zarr --out feats --features vggish,resnet18-map
  mavqa-export stores/music-avqa.zarr --out feats --manifest data_manifests/music-avqa --features clip-vit-b32-words
"""


@click.command(
    cls=Command,
    short_help="Write features as arrays that the official codes read.",
    epilog=EXAMPLES,
    on_interrupt="finished arrays are kept, run the same command again to resume",
)
@click.argument("store")
@folder_option("--out", "Folder to write: one folder per feature, with its name in the release.", required=True)
@click.option("--features", metavar="NAMES", help="Comma-separated names.  [default: all that a release has arrays of]")
@folder_option(
    "--manifest", "Export the videos of this manifest only, and the features of its questions, named by question id."
)
@click.option(
    "--padding",
    type=click.Choice(["repeat", "none"]),
    default="repeat",
    show_default=True,
    help="How to fill steps after the end of a short video: repeat its last step, as official code needs all steps, or "
    "none, for mavqa-import-features.",
)
@json_option
def export(store: str, out: Path, features: str | None, manifest: Path | None, padding: Any, as_json: bool) -> None:
    """Write the features of STORE as arrays, one float32 .npy per video or question, in the layout of their release.

    A run can be stopped at any time; the next run writes only what is not finished. export.json in the folder lists the
    videos that are absent or failed, and those that are shorter than the store.
    Exit codes: 0 all written or absent, 2 invalid usage or input, 3 finished, but videos are failed or pending.
    """
    from pipeline.arrays.export_arrays import carry_out, plan_export
    from pipeline.manifests.manifest import load_manifest
    from pipeline.store.reader import open_store

    names = None if features is None else [name.strip() for name in features.split(",") if name.strip()]
    loaded = None if manifest is None else load_manifest(manifest)
    plan = plan_export(open_store(store), out, names, loaded, padding)
    arrays = sum(map(len, plan.arrays.values()))
    click.echo(
        f"{arrays} arrays to write, {plan.n_bytes / 1e9:.3f} GB; {out} has {plan.free_bytes / 1e9:.1f} GB free",
        err=True,
    )
    with show_task("export", "arrays") as progress:
        summary = carry_out(plan, progress)
    if as_json:
        show_json({"format": 1, **asdict(summary)})
    else:
        _show(summary)
    if not summary.is_complete:
        sys.exit(FAILURES_RECORDED)


def _show(summary: "ExportSummary") -> None:
    for name, folder in summary.folders.items():
        missing = [entry for entry in summary.missing if entry["feature"] == name]
        absent = sum(entry["state"] == "absent" for entry in missing)
        short = sum(entry["feature"] == name for entry in summary.short)
        click.echo(
            f"{name} -> {Path(summary.out) / folder}: {summary.written[name]} written, "
            f"{summary.finished[name]} written before, {absent} absent, {len(missing) - absent} "
            f"failed or pending, {short} short",
            err=True,
        )
    failed = [entry for entry in summary.missing if entry["state"] != "absent"]
    for entry in failed[:MISSING_SHOWN]:
        name = entry.get("video_id") or f"question {entry['question_id']}"
        click.echo(f"not exported: {name} ({entry['feature']}): {entry['state']} {entry['reason']}".rstrip(), err=True)
    if len(failed) > MISSING_SHOWN:
        click.echo(f"... and {len(failed) - MISSING_SHOWN} more: see {Path(summary.out) / 'export.json'}", err=True)
