"""Exported runs are official checkpoints: importing them again gives the same tensors and answers."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from official_state import official_state
from test_import_official import (
    GOLDEN,
    make_batch,
    official_names,
    write_checkpoint,
    write_grounding,
    write_training_file,
)

from pipeline.errors import UserError
from pipeline.manifests.manifest import PADDING_TOKEN, Vocabulary
from train.checkpoints.export_official import export_checkpoint
from train.checkpoints.import_official import import_checkpoint, official_vocabulary, read_official
from train.checkpoints.release_names import RELEASES
from train.cli.export_checkpoint import export_checkpoint as command
from train.runs.folder import build_method, load_run, read_config, write_start, write_tensors
from train.runs.identity import CHECKPOINT

SMALL = {"slots": 3, "steps": 5}


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("official")
    write_training_file(folder / "avqa-train.json")
    for kind in ("avst", "baseline", "pstp"):
        write_checkpoint(folder / f"{kind}.pt", kind)
    write_grounding(folder / "grounding.pt")
    shapes = dict(GOLDEN["shapes"]["missing-avqa"])
    for modality, width in (("question", 512), ("audio", 512), ("visual", 100352)):
        shapes[f"memory_network.{modality}_memory"] = [SMALL["slots"], width]
    shapes["diffusion.betas"] = [SMALL["steps"]]
    torch.save(official_state(shapes), folder / "missing-avqa.pt")
    return folder


@pytest.fixture(scope="module")
def reverse(files: Path) -> Vocabulary:
    """The words and answers of the release in another order, as a manifest may have them."""
    order = official_vocabulary(files / "avqa-train.json")
    return Vocabulary((PADDING_TOKEN, *reversed(order.tokens[1:])), tuple(reversed(order.answers)))


def run_import(files: Path, kind: str, checkpoint: Path, out: Path, vocabulary: Vocabulary | None = None) -> Path:
    import_checkpoint(kind, checkpoint, files, out, "m", "s", vocabulary)
    return out


@pytest.mark.parametrize("kind", RELEASES)
def test_every_mapped_name_has_its_way_back(kind):
    names = official_names(kind)
    mapped = {name: RELEASES[kind].rename(name) for name in names}
    assert any(mapped.values())
    for official, ours in mapped.items():
        if ours is not None:
            assert RELEASES[kind].restore(ours) == official


@pytest.mark.parametrize("kind", RELEASES)
def test_an_exported_run_has_the_tensors_of_the_release_and_imports_to_the_same_run(kind, files, reverse, tmp_path):
    run = run_import(files, kind, files / f"{kind}.pt", tmp_path / "run", reverse)
    exported = export_checkpoint(run, files, tmp_path / "out" / "exported.pt")
    before, after = read_official(files / f"{kind}.pt"), read_official(tmp_path / "out" / "exported.pt")
    assert exported.kind == kind
    names = [name for name in before if RELEASES[kind].rename(name) is not None]
    assert exported.mapped == len(names)
    assert after.keys() == {*names, *exported.unused}
    for name in names:
        torch.testing.assert_close(after[name], before[name], rtol=0, atol=0)
    again = run_import(files, kind, tmp_path / "out" / "exported.pt", tmp_path / "again", reverse)
    mine, theirs = load_run(run)[0].state_dict(), load_run(again)[0].state_dict()
    for name in mine.keys() - set(exported.left_out):
        torch.testing.assert_close(theirs[name], mine[name], rtol=0, atol=0)
    assert read_config(again).options == read_config(run).options


def test_answers_are_the_same_after_export_and_import(files, reverse, tmp_path):
    run = run_import(files, "avst", files / "avst.pt", tmp_path / "run", reverse)
    export_checkpoint(run, files, tmp_path / "exported.pt")
    again = run_import(files, "avst", tmp_path / "exported.pt", tmp_path / "again", reverse)
    methods = [load_run(folder)[0] for folder in (run, again)]
    with torch.no_grad():
        for removed in ((), ("audio",), ("visual",)):
            mine, theirs = (method.predict(make_batch(1).without(*removed)) for method in methods)
            assert torch.equal(mine, theirs)


def test_the_file_has_tensors_only_and_is_never_overwritten(files, tmp_path):
    run = run_import(files, "baseline", files / "baseline.pt", tmp_path / "run")
    words = [str(run), "--annotations", str(files), "--out", str(tmp_path / "a.pt")]
    shown = CliRunner().invoke(command, [*words, "--json"])
    assert shown.exit_code == 0, shown.stderr
    document = json.loads(shown.stdout)
    assert (document["kind"], document["mapped"], document["is_official"]) == ("baseline", 35, False)
    state = torch.load(tmp_path / "a.pt", weights_only=True)
    assert all(type(values) is torch.Tensor for values in state.values())
    before = (tmp_path / "a.pt").read_bytes()
    refused = CliRunner().invoke(command, words)
    assert refused.exit_code == 2
    assert "a.pt already exists: pass another --out" in refused.stderr
    assert (tmp_path / "a.pt").read_bytes() == before


def alter(run: Path, out: Path, **changes) -> Path:
    """Write a new run with the configuration of another one, changed, and the initial weights of its network."""
    config = read_config(run)
    sizes = config.sizes.model_copy(update=changes.pop("sizes", {}))
    config = config.model_copy(update={**changes, "sizes": sizes})
    method = build_method(config)
    vocabulary = official_vocabulary(run.parent / "avqa-train.json")
    write_start(out, config, vocabulary, {}, {"vocabulary": vocabulary.to_json()})
    write_tensors(out / CHECKPOINT, method.state_dict())
    return out


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"backbone": "avsd"}, "run of zero-fill on avsd .*, of which there is no release: export one of zero-fill on"),
        ({"method": "modality-dropout"}, "is a run of modality-dropout on avst with the objective 'answer'"),
        ({"whiten": True}, "cannot be exported: whiten is True in the run, False in AVST"),
        ({"options": {"missing_fill": "randn"}}, "options.missing_fill is randn in the run, not set in AVST"),
        ({"sizes": {"heads": 8}}, "heads is 8 in the run, 4 in AVST"),
        ({"sizes": {"time_steps": 20}}, "time_steps is 20 in the run, 10 in AVST"),
        ({"sizes": {"words": 80}}, "differ in 13 words or answers|has other words"),
    ],
)
def test_what_no_release_computes_is_refused(changes, message, files, tmp_path):
    write_training_file(tmp_path / "avqa-train.json")
    run = run_import(files, "avst", files / "avst.pt", tmp_path / "run")
    altered = alter(run, tmp_path / "altered", **changes)
    if "words" in changes.get("sizes", {}):
        write_training_file(tmp_path / "avqa-train.json", words=79)
        files = tmp_path
    with pytest.raises(UserError, match=message):
        export_checkpoint(altered, files, tmp_path / "a.pt")
    assert not (tmp_path / "a.pt").exists()


def test_a_name_without_a_way_back_is_a_bug_and_not_a_wrong_file(files, tmp_path, monkeypatch):
    run = run_import(files, "baseline", files / "baseline.pt", tmp_path / "run")
    release = RELEASES["baseline"]
    monkeypatch.setitem(RELEASES, "baseline", replace(release, inverse=((r"^weight$", "wait"),)))
    with pytest.raises(ValueError, match="is imported as"):
        export_checkpoint(run, files, tmp_path / "a.pt")
