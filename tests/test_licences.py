"""The page of licences against what is installed: all packages that mavqa asks for, and all that are not permissive."""

import re
from importlib.metadata import PackageNotFoundError, distribution

import commands
import paths
from packaging.requirements import Requirement

PAGE = (paths.ROOT / "docs" / "licences.md").read_text()
PERMISSIVE_PART, OTHER_PART = PAGE.split("## With other than permissive licences")
USER_EXTRAS = ("s3", "torchcodec", "decord", "pandas", "tensorboard")
NOT_PERMISSIVE = re.compile(r"GPL|MPL|Mozilla|Proprietary|^$", re.IGNORECASE)


def rows(part: str) -> dict[str, str]:
    """Return {first cell, without what is in brackets: last cell} of the part's table."""
    lines = [[cell.strip() for cell in line.strip("|").split("|")] for line in part.splitlines() if line[:1] == "|"]
    return {re.sub(r" \(.*", "", cells[0]): cells[-1] for cells in lines[2:]}


def licence(name: str) -> str:
    facts = distribution(name).metadata
    classifiers = [text for text in facts.get_all("Classifier", []) if text.startswith("License ::")]
    return facts.get("License-Expression") or "; ".join(classifiers) or (facts.get("License") or "").split("\n")[0]


def installed(name: str, extra: str = "") -> set[str]:
    """Return the names of the packages that an installation of `name` brings, `name` itself included."""
    found, pending = {name}, [(name, extra)]
    while pending:
        parent, of_extra = pending.pop()
        for line in distribution(parent).requires or ():
            needed = Requirement(line)
            if needed.marker is not None and not needed.marker.evaluate({"extra": of_extra}):
                continue
            if needed.name in found:
                continue
            try:
                distribution(needed.name)
            except PackageNotFoundError:
                continue
            found.add(needed.name)
            pending.append((needed.name, ""))
    return found


def test_every_package_that_mavqa_asks_for_is_listed_with_its_licence() -> None:
    project = commands.project()["project"]
    asked = [
        *project["dependencies"],
        *(line for extra in USER_EXTRAS for line in project["optional-dependencies"][extra]),
    ]
    names = {Requirement(line).name for line in asked}
    assert set(rows(PERMISSIVE_PART)) == names
    for name, listed in rows(PERMISSIVE_PART).items():
        family = re.split(r"[- ]", listed)[0].lower()
        assert family in licence(name).lower() or not licence(name), (name, listed, licence(name))


def test_every_package_without_a_permissive_licence_is_listed() -> None:
    found = {name for name in installed("mavqa") - {"mavqa"} if NOT_PERMISSIVE.search(licence(name))}
    assert found, "no package was found"
    unlisted = {name for name in found if not name.startswith("nvidia-") and name not in OTHER_PART}
    assert not unlisted, {name: licence(name) for name in unlisted}


def test_the_licence_of_the_ffmpeg_in_pyav_is_the_listed_one() -> None:
    from av._core import library_meta

    assert library_meta["libavcodec"]["license"] in rows(OTHER_PART)[next(n for n in rows(OTHER_PART) if "FFmpeg" in n)]
