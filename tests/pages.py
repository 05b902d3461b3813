"""The pages for users: README, CONTRIBUTING and docs, and what their code blocks show."""

import re
from pathlib import Path

import paths

PAGES = [paths.ROOT / "README.md", paths.ROOT / "CONTRIBUTING.md", *sorted((paths.ROOT / "docs").glob("*.md"))]


def name(page: Path) -> str:
    """Return the path of the page in the repository."""
    return str(page.relative_to(paths.ROOT))


def blocks(page: Path, language: str = "") -> list[str]:
    """Return the code blocks of a page in `language`, "" for commands and their output."""
    return re.findall(rf"^```{language}\n(.*?)^```", page.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)


def block_commands(page: Path) -> list[str]:
    """Return the commands of mavqa and make in the code blocks of a page, without comments."""
    lines = (re.sub(r"\s+# .*", "", line).strip() for block in blocks(page) for line in block.splitlines())
    return [line for line in lines if re.match(r"(mavqa(-[a-z]+)?|make [a-z]+)( |$)", line)]


def inline_commands(page: Path) -> list[str]:
    """Return the commands of mavqa in the running text of a page."""
    text = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    return re.findall(r"`(mavqa-[a-z]+ [^`]+)`", re.sub(r"\s+", " ", text))
