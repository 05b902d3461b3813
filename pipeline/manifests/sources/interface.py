"""The interface of manifest sources: a build function and its command-line options."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

from pipeline.manifests.findings import Finding
from pipeline.manifests.manifest import Manifest


@dataclass(frozen=True)
class Built:
    """A manifest with messages for the user: `counts` of irregular records, and `notes`, one sentence each.

    `skipped`: the files of the videos folder that are left out.
    """

    manifest: Manifest
    counts: dict[str, int] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    skipped: tuple[Finding, ...] = ()


@dataclass(frozen=True)
class Option:
    """One input of a source: `--NAME` on the command line, and a keyword of its `build` function with `_` for `-`.

    `kind`: "folder", "file", "text", "integer", or the values to choose from. `default`: the value if it is not
    passed. The value of a repeatable option is a tuple.
    """

    name: str
    help: str
    kind: Literal["folder", "file", "text", "integer"] | tuple[str, ...] = "file"
    default: str | int | tuple[str, ...] | None = None
    is_required: bool = False
    is_repeatable: bool = False


@dataclass(frozen=True)
class Source:
    """A dataset release, or the user's own files, from which a manifest is built.

    `build(name, progress=..., **options)` returns a `Built`; it reads the source's files as published and writes
    nothing. `name`: that of the dataset. `progress`: a function of (files hashed, files in all). The other keywords are
    the `options`; one that was not passed has its default, else None (an empty tuple if repeatable).
    `help`: the help text of the command, first a summary line.
    """

    build: Callable[..., Built]
    options: tuple[Option, ...]
    help: str
