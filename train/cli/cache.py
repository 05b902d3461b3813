"""`mavqa-cache`: list and remove the files of a store's training cache."""

import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from pipeline.cli.command import Command, Group, folder_option, json_option, plain_console, show_json
from pipeline.errors import UserError

if TYPE_CHECKING:
    from train.data.cache_files import CachedFeature

cache_dir_option = folder_option("--cache-dir", "Folder in which STORE.cache is.  [default: beside the store]")


@click.group(cls=Group, short_help="List or remove decoded features on disk.")
def cache() -> None:
    """List or remove the training cache of a store: decoded features on disk, which runs share."""


@cache.command(cls=Command, name="list", short_help="Show the files, their sizes and last use.")
@click.argument("store")
@cache_dir_option
@json_option
def list_(store: str, cache_dir: Path | None, as_json: bool) -> None:
    """Show the files of the training cache of STORE.

    A file is current, outdated (the store has other videos or values now), or incomplete (its builder is at work or was
    killed).

    \b
    Examples:
      mavqa-cache list stores/music-avqa.zarr
      mavqa-cache list stores/music-avqa.zarr --json
    """
    folder, files = _open(store, cache_dir)
    if as_json:
        show_json(_describe(folder, files))
        return
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    table = Table(box=SIMPLE_HEAD)
    for heading in ("feature", "steps", "maps", "GB", "last use", "state"):
        table.add_column(heading, justify="left" if heading in ("feature", "state") else "right")
    for file in files:
        maps = "" if file.map_size is None else f"{file.map_size}x{file.map_size}"
        used = time.strftime("%Y-%m-%d", time.localtime(file.used))
        table.add_row(file.feature, str(file.time_steps), maps, f"{file.nbytes / 1e9:.2f}", used, file.state)
    if files:
        plain_console().print(table)
    total = sum(file.nbytes for file in files)
    click.echo(f"{folder}: {len(files)} files, {total / 1e9:.2f} GB", err=True)


@cache.command(cls=Command, short_help="Remove files, and say what that frees.")
@click.argument("store")
@cache_dir_option
@click.option("--all", "all_", is_flag=True, help="Also remove the files that are current.")
@json_option
def remove(store: str, cache_dir: Path | None, all_: bool, as_json: bool) -> None:
    """Remove the files of the training cache of STORE that are outdated or incomplete.

    A run that has opened a file goes on with it; its space is freed when the run ends.

    \b
    Examples:
      mavqa-cache remove stores/music-avqa.zarr
      mavqa-cache remove stores/music-avqa.zarr --all
    """
    from train.data.cache_files import remove_cached

    folder, files = _open(store, cache_dir)
    chosen = [file for file in files if all_ or file.state != "current"]
    freed = remove_cached(chosen, folder)
    if as_json:
        show_json({**_describe(folder, chosen), "freed_bytes": freed})
        return
    kept = len(files) - len(chosen)
    click.echo(
        f"{folder}: removed {len(chosen)} files, freed {freed / 1e9:.2f} GB"
        + (f"; {kept} current files were kept (--all removes them)" if kept else ""),
        err=True,
    )


def _open(store: str, cache_dir: Path | None) -> "tuple[Path, list[CachedFeature]]":
    from pipeline.store.location import has_store, locate
    from pipeline.store.reader import open_store
    from train.data.cache_files import cache_folder, list_cached

    place = locate(store)
    if not has_store(place):
        raise UserError(f"feature store {store} is missing: pass the store that the cache is of")
    opened = open_store(place.address)
    folder = cache_folder(opened.path, cache_dir)
    return folder, list_cached(opened, folder)


def _describe(folder: Path, files: "Sequence[CachedFeature]") -> dict[str, Any]:
    return {"format": 1, "folder": str(folder), "files": [{**asdict(file), "path": str(file.path)} for file in files]}
