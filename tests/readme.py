"""The generated parts of the README: `python tests/readme.py` writes them anew, `test_readme.py` holds them true."""

import ast
import re
import subprocess
import sys
import tomllib

import paths

README = paths.ROOT / "README.md"
PACKAGES = ("pipeline", "train")


def project() -> dict:
    return tomllib.loads((paths.ROOT / "pyproject.toml").read_text())


def commands() -> list[list[str]]:
    """Return every command, groups' subcommands included, as words."""
    found = []
    for name, entry in project()["project"]["scripts"].items():
        found += subcommands([name], load(entry))
    return found


def load(entry: str) -> object:
    module, _, attribute = entry.partition(":")
    return getattr(__import__(module, fromlist=[attribute]), attribute)


def subcommands(words: list[str], command: object) -> list[list[str]]:
    children = getattr(command, "commands", None)
    if not children:
        return [words]
    return [found for name, child in children.items() for found in subcommands([*words, name], child)]


def help_of(words: list[str]) -> str:
    """Return `--help` of a command as a terminal of 100 columns shows it."""
    from click.testing import CliRunner

    command = load(project()["project"]["scripts"][words[0]])
    result = CliRunner().invoke(command, [*words[1:], "--help"], prog_name=words[0], terminal_width=100)
    assert result.exit_code == 0, result.output
    return result.output.rstrip()


def render_help() -> str:
    blocks = [
        f"<details><summary><code>{' '.join(w)}</code></summary>\n\n```\n{help_of(w)}\n```\n\n</details>"
        for w in commands()
    ]
    return "\n".join(blocks)


def render_tree() -> str:
    lines = ["| file | what it is |", "|---|---|"]
    for package in PACKAGES:
        for path in sorted((paths.ROOT / package).rglob("*.py")):
            docstring = ast.get_docstring(ast.parse(path.read_text()))
            assert docstring, f"{path} has no docstring"
            summary = re.split(r"(?<=[.:])\s", " ".join(docstring.split("\n\n")[0].split()))[0].rstrip(":")
            lines.append(f"| `{path.relative_to(paths.ROOT)}` | {summary} |")
    return "\n".join(lines)


def render_floors() -> str:
    contracts = project()["tool"]["importlinter"]["contracts"]
    floors = [c for c in contracts if c["type"] == "layers"]
    return "\n".join(f"- `{c['containers'][0]}`: {' > '.join(c['layers'])}" for c in floors)


RENDER = {"help": render_help, "tree": render_tree, "floors": render_floors}


def rewritten() -> str:
    """Return the README with its generated parts as they should be."""

    def replace(match: re.Match[str]) -> str:
        return f"<!-- generated: {match[1]} -->\n{RENDER[match[1]]()}\n<!-- end -->"

    return re.sub(r"<!-- generated: (\w+) -->.*?<!-- end -->", replace, README.read_text(), flags=re.DOTALL)


if __name__ == "__main__":
    sys.path.insert(0, str(paths.ROOT))
    README.write_text(rewritten())
    subprocess.run(["git", "-C", str(paths.ROOT), "diff", "--stat", "README.md"], check=False)
