"""What a source of manifests is: a builder, and the options that a command line offers for it."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

from pipeline.manifests.manifest import Manifest


@dataclass(frozen=True)
class Built:
    """A manifest and what its user should know: `counts` of odd records, and `notes`, one sentence each."""

    manifest: Manifest
    counts: dict[str, int] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Option:
    """One input of a source: a keyword of its `build`, and `--NAME` on the command line.

    `kind`: a "folder", a "file", or the values to choose from. A repeatable option gives a tuple.
    """

    name: str
    help: str
    kind: Literal["folder", "file"] | tuple[str, ...] = "file"
    default: str | None = None
    is_required: bool = False
    is_repeatable: bool = False


@dataclass(frozen=True)
class Source:
    """A dataset release, or files of one's own, from which a manifest is built.

    `build(name, progress=..., **options)` returns a `Built`; it reads the source's own files as they are published
    and writes nothing. `name` is the dataset's, `progress` a function of (files hashed, files in all), and every other
    keyword one of `options`, None (or an empty tuple) where it is not given. `help`: the text of the command, its first
    line a summary.
    """

    build: Callable[..., Built]
    options: tuple[Option, ...]
    help: str
