"""Run the commands in FINDINGS.md again, and write what they print below them.

A block of the page begins with a line `<!-- $ COMMAND -->` and ends with `<!-- end -->`; between them is what the
command printed. `make findings` trains everything first.

    python benchmarks/findings.py
    python benchmarks/findings.py --only method_tables
"""

import argparse
import re
import shlex
import subprocess
import sys
import time
from pathlib import Path

from pipeline.errors import UserError
from pipeline.files import replace_text

PAGE = Path("FINDINGS.md")
BLOCK = re.compile(r"^<!-- \$ (?P<command>[^\n]+) -->\n(?P<output>.*?)^<!-- end -->$", re.MULTILINE | re.DOTALL)


def main() -> int:
    """Parse the options, run the commands, write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--page", type=Path, default=PAGE)
    parser.add_argument("--only", default="", metavar="TEXT", help="run the commands that contain TEXT")
    parser.add_argument("--list", action="store_true", help="print the commands")
    options = parser.parse_args()
    text = options.page.read_text(encoding="utf-8")
    commands = [match["command"] for match in BLOCK.finditer(text) if options.only in match["command"]]
    try:
        for command in commands:
            if options.list:
                print(command)
            else:
                text = update(text, command, run_command(command))
                replace_text(options.page, text)
    except UserError as error:
        parser.exit(2, f"{error}\n")
    return 0


def update(text: str, command: str, output: str) -> str:
    """Return the page with `output` in the blocks of a command."""

    def replace(match: re.Match[str]) -> str:
        is_of_command = match["command"] == command
        return f"<!-- $ {command} -->\n{as_markdown(output)}<!-- end -->" if is_of_command else match[0]

    return BLOCK.sub(replace, text)


def as_markdown(output: str) -> str:
    """Return a command's output as Markdown: a table as it is, anything else as preformatted text."""
    body = output.strip("\n")
    return f"\n{body}\n\n" if body.startswith("|") else f"\n```text\n{body}\n```\n\n"


def run_command(command: str) -> str:
    """Return what a command prints; raise `UserError` if it fails."""
    started = time.perf_counter()
    words = [sys.executable if word == "python" else word for word in shlex.split(command)]
    done = subprocess.run(words, stdout=subprocess.PIPE, check=False, encoding="utf-8")
    if done.returncode:
        raise UserError(f"{command} failed: fix its cause, then run this program again")
    print(f"{command}: {time.perf_counter() - started:.0f} s", file=sys.stderr)
    return done.stdout


if __name__ == "__main__":
    sys.exit(main())
