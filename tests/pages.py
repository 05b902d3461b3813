"""The pages for users: README, CONTRIBUTING and docs, and what their code blocks show."""

import re
from pathlib import Path

import paths

PAGES = [paths.ROOT / "README.md", paths.ROOT / "CONTRIBUTING.md", *sorted((paths.ROOT / "docs").glob("*.md"))]


def page(file: str) -> Path:
    """Return the page of the documentation with this file name."""
    return paths.ROOT / "docs" / file


def name(page: Path) -> str:
    """Return the path of the page in the repository."""
    return str(page.relative_to(paths.ROOT))


def blocks(page: Path) -> list[tuple[str, str]]:
    """Return (language, text) of the code blocks of a page; "" is the language of commands and their output."""
    return re.findall(r"^```([a-z]*)\n(.*?)^```", page.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)


def commands_in(block: str) -> list[str]:
    """Return the commands of mavqa and make in a code block, without comments."""
    lines = (re.sub(r"\s+# .*", "", line).strip() for line in re.sub(r"\\\n\s*", "", block).splitlines())
    return [line for line in lines if re.match(r"(mavqa(-[a-z-]+)?|make [a-z]+)( |$)", line)]


def inline_commands(page: Path) -> list[str]:
    """Return the commands of mavqa in the running text of a page."""
    text = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    return re.findall(r"`(mavqa-[a-z-]+ [^`]+)`", re.sub(r"\s+", " ", text))


def block_commands(page: Path) -> list[str]:
    """Return the commands in the code blocks of a page."""
    return [line for language, text in blocks(page) if not language for line in commands_in(text)]
