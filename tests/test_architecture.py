"""The house rules that can be checked: light help, tables that resolve, sizes of functions, docstrings."""

import ast
import importlib
import subprocess
import sys
from pathlib import Path

import commands
import paths
import pytest

SOURCES = [path for package in ("mavqa", "pipeline", "train") for path in sorted((paths.ROOT / package).rglob("*.py"))]
TABLES = {
    "pipeline.extractors.registry": ("EXTRACTORS", "QUESTION_EXTRACTORS"),
    "pipeline.media.decoders.registry": ("DECODERS",),
    "pipeline.manifests.sources.registry": ("SOURCES",),
    "train.backbones.registry": ("BACKBONES",),
    "train.methods.registry": ("METHODS",),
    "train.training.tracking": ("TRACKERS",),
}
HEAVY = (
    *("torch", "torchvision", "torchaudio", "open_clip", "dask", "distributed", "av", "librosa", "matplotlib", "zarr"),
)
LONGEST_FUNCTION = 60


def name(path: Path) -> str:
    return str(path.relative_to(paths.ROOT))


@pytest.mark.parametrize("words", commands.all_commands(), ids=" ".join)
def test_help_has_examples_and_loads_nothing_heavy(words: list[str]) -> None:
    program = (
        "import sys; from mavqa.__main__ import main\n"
        f"sys.argv = {[*words, '--help']!r}\n"
        "try: main()\n"
        f"except SystemExit: print('HEAVY', *(m for m in {HEAVY!r} if m in sys.modules))"
    )
    shown = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=paths.ROOT)
    assert shown.stdout.rstrip().endswith("HEAVY"), shown.stdout.splitlines()[-1]
    assert "Example" in shown.stdout


@pytest.mark.parametrize(("package", "table"), [(p, t) for p, tables in TABLES.items() for t in tables])
def test_every_entry_of_every_table_resolves(package: str, table: str) -> None:
    entries = getattr(importlib.import_module(package), table)
    assert entries
    for entry in entries.values():
        module, _, attribute = entry.partition(":")
        assert getattr(importlib.import_module(module), attribute).__doc__, entry


def test_describing_features_loads_no_network_library() -> None:
    program = (
        "import sys; from pipeline.extractors.registry import *; from pipeline.manifests.manifest import Vocabulary\n"
        "made = [*map(make_extractor, EXTRACTORS)]\n"
        "made += [make_question_extractor(name, Vocabulary(('a',), ('b',), 3)) for name in QUESTION_EXTRACTORS]\n"
        "print(len([one.constants() for one in made]), *({'torch', 'torchvision', 'open_clip'} & set(sys.modules)))"
    )
    shown = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=paths.ROOT)
    tables = [
        importlib.import_module("pipeline.extractors.registry").__dict__[name]
        for name in TABLES["pipeline.extractors.registry"]
    ]
    assert shown.stdout.split() == [str(sum(map(len, tables)))]


@pytest.mark.parametrize("path", SOURCES, ids=name)
def test_a_file_opens_with_a_docstring_and_functions_stay_short(path: Path) -> None:
    text = path.read_text()
    tree = ast.parse(text)
    assert ast.get_docstring(tree), f"{path} opens without a docstring"
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef):
            length = (node.end_lineno or 0) - node.lineno + 1
            assert length <= LONGEST_FUNCTION, f"{path}:{node.lineno} {node.name} has {length} lines"


@pytest.mark.parametrize("path", SOURCES, ids=name)
def test_every_public_function_and_class_has_a_docstring_and_types(path: Path) -> None:
    for node in ast.parse(path.read_text()).body:
        if not isinstance(node, ast.FunctionDef | ast.ClassDef) or node.name.startswith("_"):
            continue
        assert ast.get_docstring(node), f"{path}:{node.lineno} {node.name} has no docstring"
        if isinstance(node, ast.FunctionDef):
            assert node.returns is not None, f"{path}:{node.lineno} {node.name} has no return type"
