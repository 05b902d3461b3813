"""The README cannot lie: its commands, tree and floors are generated, and its two commands exist."""

import re
import subprocess

import paths
import readme


def test_the_generated_parts_are_current() -> None:
    assert readme.rewritten() == readme.README.read_text(), "run: python tests/readme.py"


def test_the_make_targets_that_the_readme_names_exist() -> None:
    named = set(re.findall(r"\bmake ([a-z]+)\b", readme.README.read_text()))
    shown = subprocess.run(["make", "-s", "help"], cwd=paths.ROOT, capture_output=True, text=True, check=True).stdout
    assert named <= set(re.findall(r"make ([a-z-]+)", shown))
