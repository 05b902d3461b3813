"""Imported official checkpoints give the logits of the official networks (golden/official.json)."""

import json
import re
from contextlib import chdir, suppress
from dataclasses import replace
from pathlib import Path

import paths
import pytest
import torch
from click.testing import CliRunner
from official_state import official_state, pictures, question_tokens, sound
from result_rows import row

from pipeline.errors import UserError
from pipeline.manifests.manifest import PADDING_TOKEN, Vocabulary
from train.checkpoints import import_official
from train.checkpoints.import_official import (
    find_training_file,
    identify_training_file,
    import_checkpoint,
    official_vocabulary,
    read_official,
)
from train.checkpoints.release_names import FIRST_FILE, RELEASES, UPDATED_FILE
from train.cli.import_ import import_
from train.data.batch import Batch
from train.report.tables import build_blocks
from train.runs.claim import hash_training_data, read_data
from train.runs.config import make_config
from train.runs.folder import build_method, load_run, read_config, read_vocabulary
from train.runs.identity import run_id
from train.runs.results import read_results, save_results
from train.training.initialise import start_from

GOLDEN = json.loads((paths.GOLDEN / "official.json").read_text())
SCENARIOS = {"complete": (), "audio-missing": ("audio",), "visual-missing": ("visual",)}
NOT_FINITE = "not finite floating-point numbers"


def write_training_file(path: Path, words: int = 92, answers: int = 42) -> Path:
    """Write an official training file with numbered words (padding not counted) and answers."""
    texts = [[f"word{number}" for number in range(first, min(first + 8, words))] for first in range(0, words, 8)]
    records = [
        {
            "question_content": f"{' '.join(texts[number % len(texts)])}?",
            "templ_values": "[]",
            "anser": f"answer{number}",
        }
        for number in range(answers)
    ]
    path.write_text(json.dumps(records))
    return path


def write_checkpoint(path: Path, kind: str, prefix: str = "module.", **changes: torch.Tensor) -> Path:
    state = official_state(GOLDEN["shapes"][kind])
    torch.save({prefix + name: values for name, values in {**state, **changes}.items()}, path)
    return path


def official_names(kind: str) -> list[str]:
    """Return the tensor names of a checkpoint; AVST's grounding pre-training has those that it shares with AVST."""
    if kind != "grounding":
        return list(GOLDEN["shapes"][kind])
    kept = re.compile(r"fc_a[12]\.|fc_gl\.|fc[1-4]\.|visual_net\.")
    return [name for name in GOLDEN["shapes"]["avst"] if kept.match(name)]


def write_grounding(path: Path) -> Path:
    state = official_state(GOLDEN["shapes"]["avst"])
    torch.save({f"module.{name}": state[name] for name in official_names("grounding")}, path)
    return path


def pstp_batch() -> Batch:
    from recipe import pstp_batch

    return pstp_batch()


def make_batch(rows: int) -> Batch:
    mask = torch.ones(rows, 10, dtype=torch.bool)
    return Batch(
        question={"tokens": question_tokens(rows)},
        audio={"vggish": sound(rows)},
        visual={"resnet18-map": pictures(rows)},
        audio_mask=mask,
        visual_mask=mask,
        answer=torch.zeros(rows, dtype=torch.long),
        type=("",) * rows,
        question_id=tuple(map(str, range(rows))),
        video_id=tuple(map(str, range(rows))),
    )


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("official")
    write_training_file(folder / "avqa-train.json")
    for kind in GOLDEN["shapes"]:
        write_checkpoint(folder / f"{kind}.pt", kind)
    write_grounding(folder / "grounding.pt")
    return folder


def run_import(files: Path, kind: str, out: Path, vocabulary: Vocabulary | None = None):
    imported = import_checkpoint(kind, files / f"{kind}.pt", files, out, "m", "s", vocabulary)
    return imported, load_run(out)[0]


@torch.no_grad()
def agrees(logits: torch.Tensor, name: str) -> bool:
    expected = torch.tensor(GOLDEN["logits"][name])
    return bool((logits - expected).abs().max() <= 1e-4 * expected.abs().max())


def test_avst_gives_the_logits_of_the_official_network(files, tmp_path):
    imported, method = run_import(files, "avst", tmp_path / "run")
    with torch.no_grad():
        assert agrees(method.predict(make_batch(2)), "avst")
    assert imported.mapped == 45
    assert "visual_net.conv1.weight" in imported.unused
    assert imported.unknown == ()
    assert all(name.startswith(("backbone.input_whitening.", "filling.")) for name in imported.fresh)


def test_the_baseline_gives_the_logits_of_the_official_network(files, tmp_path):
    imported, method = run_import(files, "baseline", tmp_path / "run")
    with torch.no_grad():
        assert agrees(method.predict(make_batch(2)), "baseline")
    assert imported.mapped == 35
    assert {"fc_gl.weight", "fc1.weight", "fc4.bias"} < set(imported.unused)


@pytest.mark.parametrize("kind", RELEASES)
@pytest.mark.parametrize("contains", RELEASES)
def test_a_checkpoint_of_another_kind_is_refused_with_its_kind(kind, contains, files, tmp_path):
    assert [name for name, release in RELEASES.items() if release.describes(official_names(contains))] == [contains]
    if kind != contains:
        torch.save({name: torch.zeros(1) for name in official_names(contains)}, tmp_path / "file.pt")
        message = rf"file.pt is not a checkpoint of .*: it has the tensors of .*; import it as '{contains}'$"
        with pytest.raises(UserError, match=message):
            import_checkpoint(kind, tmp_path / "file.pt", files, tmp_path / "run", "m", "s")
    assert not (tmp_path / "run").exists()


def test_tensors_of_another_release_are_an_error_next_to_unknown_ones(files, tmp_path):
    names = [*official_names("grounding"), "novelty", "kr.0.weight"]
    torch.save({name: torch.zeros(1) for name in names}, tmp_path / "file.pt")
    with pytest.raises(UserError, match=r"of another release: kr\.0\.weight; wrong shape"):
        import_checkpoint("grounding", tmp_path / "file.pt", files, tmp_path / "run", "m", "s")


def test_pstp_gives_the_logits_of_the_official_network(files, tmp_path):
    imported, method = run_import(files, "pstp", tmp_path / "run")
    with torch.no_grad():
        assert agrees(method.predict(pstp_batch()), "pstp")
    assert imported.unknown == ()


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_missing_avqa_gives_the_logits_of_its_official_parts(files, tmp_path, scenario):
    _, method = run_import(files, "missing-avqa", tmp_path / "run")
    with torch.no_grad():
        assert agrees(method.predict(make_batch(1).without(*SCENARIOS[scenario])), scenario)


def test_every_kind_of_checkpoint_is_tested(files):
    assert {path.stem for path in files.glob("*.pt")} == set(RELEASES)


def test_a_run_can_start_from_a_grounding_checkpoint(files, tmp_path):
    imported, pretrained = run_import(files, "grounding", tmp_path / "grounding")
    assert imported.mapped == 14
    assert imported.unknown == ()
    _, official = run_import(files, "avst", tmp_path / "avst")
    started = build_method(make_config("avst").model_copy(update={"sizes": read_config(tmp_path / "avst").sizes}))
    question_encoder = [values.clone() for values in started.backbone.question_encoder.parameters()]
    loaded = start_from(started, tmp_path / "grounding", whiten=False)
    assert len(loaded) == 14
    assert all(map(torch.equal, started.backbone.question_encoder.parameters(), question_encoder))
    for part in ("audio_stem", "spatial_grounding", "match_head"):
        expected = getattr(official.backbone, part).state_dict()
        assert expected.keys() == getattr(started.backbone, part).state_dict().keys()
        for name, values in getattr(started.backbone, part).state_dict().items():
            torch.testing.assert_close(values, expected[name], rtol=0, atol=0)
    _, again = run_import(files, "grounding", tmp_path / "again")
    for name, values in again.state_dict().items():
        torch.testing.assert_close(values, pretrained.state_dict()[name], rtol=0, atol=0)


def test_the_number_of_slots_and_steps_is_read_from_the_file(files, tmp_path):
    shapes = dict(GOLDEN["shapes"]["missing-avqa"])
    for modality, width in (("question", 512), ("audio", 512), ("visual", 100352)):
        shapes[f"memory_network.{modality}_memory"] = [25, width]
    shapes["diffusion.betas"] = [5]
    torch.save(official_state(shapes), tmp_path / "small.pt")
    import_checkpoint("missing-avqa", tmp_path / "small.pt", files, tmp_path / "run", "m", "s")
    method, config = load_run(tmp_path / "run", "auto")
    assert config.options == {"slots": 25, "steps": 5}
    with pytest.raises(UserError, match="device 'gpu' is unknown"):
        load_run(tmp_path / "run", "gpu")
    assert method.refiner.diffusion.steps == 5


def test_words_and_answers_are_reordered_to_the_manifests_vocabulary(files, tmp_path):
    official_order = official_vocabulary(files / "avqa-train.json")
    assert (len(official_order.tokens), len(official_order.answers)) == (93, 42)
    _, official = run_import(files, "avst", tmp_path / "official")
    reverse = Vocabulary((PADDING_TOKEN, *reversed(official_order.tokens[1:])), tuple(reversed(official_order.answers)))
    _, reordered = run_import(files, "avst", tmp_path / "reordered", reverse)
    assert read_vocabulary(tmp_path / "reordered") == reverse
    batch = make_batch(2)
    tokens = batch.question["tokens"]
    renumbered = replace(batch, question={"tokens": torch.where(tokens > 0, 93 - tokens, 0)})
    with torch.no_grad():
        torch.testing.assert_close(reordered.predict(renumbered), official.predict(batch).flip(1))
    other = replace(reverse, answers=("an unknown answer", *reverse.answers[1:]))
    with pytest.raises(UserError, match="differ in 2 words or answers"):
        run_import(files, "avst", tmp_path / "other", other)
    assert not (tmp_path / "other").exists()


def test_imports_of_two_checkpoints_are_two_runs_and_two_lines_of_a_report(files, tmp_path):
    name, values = next(iter(official_state(GOLDEN["shapes"]["baseline"]).items()))
    write_checkpoint(tmp_path / "other.pt", "baseline", **{name: 2 * values})
    rows = []
    for checkpoint, out in ((files / "baseline.pt", tmp_path / "a"), (tmp_path / "other.pt", tmp_path / "b")):
        import_checkpoint("baseline", checkpoint, files, out, "m", "s")
        trained_on = hash_training_data(read_data(out))
        rows.append(row(run=out.name, run_id=run_id(out), trained_on_sha256=trained_on, seed=1))
        save_results(tmp_path / "evaluations", rows[-1:])
    assert read_results(tmp_path / "evaluations") == rows
    (block,) = build_blocks(rows)
    assert [line.label for line in block.lines] == ["zero-fill [a]", "zero-fill [b]"]


def test_a_training_that_starts_from_an_import_has_its_vocabulary_unless_it_numbers_nothing(files, tmp_path):
    for kind, is_numbered in (("baseline", True), ("grounding", False)):
        run_import(files, kind, tmp_path / kind)
        assert ("vocabulary" in read_data(tmp_path / kind)) == is_numbered


def test_files_that_do_not_fit_are_errors_before_anything_is_written(files, tmp_path):
    def fails(match: str, checkpoint: Path, annotations: Path = files) -> None:
        with pytest.raises(UserError, match=match):
            import_checkpoint("avst", checkpoint, annotations, tmp_path / "run", "m", "s")
        assert not (tmp_path / "run").exists()

    fails("does not exist", tmp_path / "nowhere.pt")
    (tmp_path / "text.pt").write_text("hi, no checkpoint")
    fails("text.pt cannot be read: it is incomplete or corrupt; download it again", tmp_path / "text.pt")
    (tmp_path / "nothing.pt").touch()
    fails("nothing.pt cannot be read: it is empty", tmp_path / "nothing.pt")
    torch.save({"epoch": 3}, tmp_path / "odd.pt")
    fails("not a state dict", tmp_path / "odd.pt")
    torch.save({"fc_ans.bias": torch.zeros(42)}, tmp_path / "part.pt")
    fails(r"missing: fc_a1_pure.\*, .*backbone", tmp_path / "part.pt")
    write_training_file(tmp_path / "short.json", words=80, answers=41)
    fails("wrong shape: .*classifier", files / "avst.pt", tmp_path / "short.json")
    (tmp_path / "empty").mkdir()
    fails("contains no official training file", files / "avst.pt", tmp_path / "empty")


@pytest.mark.parametrize(
    ("kind", "changes", "match"),
    [
        # Options of the releases whose networks compute different answers.
        (
            "pstp",
            {"GlobalSelf_Module.layers.1.norm2.bias": torch.zeros(512)},
            "other settings: GlobalSelf_Module.layers.1",
        ),
        ("pstp", {"fc_q.word2vec.weight": torch.zeros(93, 512)}, "other settings: fc_q.word2vec"),
        ("avst", {"fc1.extra": torch.zeros(1)}, "other settings: fc1.extra"),
        ("avst", {"fc_ans.bias": torch.full((42,), torch.nan)}, f"{NOT_FINITE}: backbone.classifier.bias"),
        ("avst", {"fc_ans.bias": torch.zeros(42, dtype=torch.complex64)}, f"{NOT_FINITE}: backbone.class"),
        ("avst", {"fc_ans.bias": torch.zeros(42, dtype=torch.int64)}, f"{NOT_FINITE}: backbone.class"),
        ("avst", {"fc_ans.bias": torch.zeros(42).to_sparse()}, f"{NOT_FINITE}: backbone.class"),
        ("missing-avqa", {"diffusion.betas": torch.tensor(0.5)}, r"diffusion.betas has shape \[\]: at least one row"),
        ("missing-avqa", {"diffusion.betas": torch.zeros(0)}, r"diffusion.betas has shape \[0\]: at least one row"),
    ],
)
def test_a_checkpoint_that_would_give_other_answers_is_an_error(kind, changes, match, files, tmp_path):
    write_checkpoint(tmp_path / "other.pt", kind, **changes)
    with pytest.raises(UserError, match=match):
        import_checkpoint(kind, tmp_path / "other.pt", files, tmp_path / "run", "m", "s")
    assert not (tmp_path / "run").exists()


def test_corrupt_files_are_user_errors_whatever_the_reader_raises(files, tmp_path):
    torch.save({3: torch.zeros(1)}, tmp_path / "numbers.pt")
    with pytest.raises(UserError, match="not a state dict"):
        read_official(tmp_path / "numbers.pt")
    torch.save({"fc_ans.bias": torch.zeros(42)}, tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    data = (tmp_path / "old.pt").read_bytes()
    for offset in range(0, len(data), 7):
        (tmp_path / "bad.pt").write_bytes(data[:offset] + bytes([data[offset] ^ 0x55]) + data[offset + 1 :])
        with suppress(UserError):
            read_official(tmp_path / "bad.pt")


@pytest.mark.parametrize(
    ("kind", "folder", "expected"),
    [
        ("avst", "data", "data/json/avqa-train.json"),
        ("baseline", ".", "data/json/avqa-train.json"),
        ("missing-avqa", "data/json", "data/json/avqa-train.json"),
        ("pstp", "data", "data/json_update/avqa-train.json"),
        ("pstp", "data/json_update", "data/json_update/avqa-train.json"),
        ("pstp", "dataset", "dataset/split_que_id/music_avqa_train.json"),
        ("pstp", "data/json_update/avqa-train.json", "data/json_update/avqa-train.json"),
        ("grounding", "data/json_update", "data/json_update/avqa-train.json"),
        ("pstp", "copies", "copies/avqa-train.json"),
    ],
)
def test_each_release_numbers_answers_by_its_own_training_file(tmp_path, kind, folder, expected):
    _write_official_tree(tmp_path)
    found = find_training_file(tmp_path / folder, RELEASES[kind])
    assert found == tmp_path / expected
    assert (identify_training_file(found) in RELEASES[kind].training_files) == (folder != "copies")


@pytest.mark.parametrize(
    ("kind", "annotations", "message"),
    [
        ("pstp", "data/json", "avqa-train.json is json/.* but PSTP-Net .* numbers words and answers by json_update/"),
        ("pstp", "data/json/avqa-train.json", "is json/avqa-train.json of MUSIC-AVQA, but PSTP-Net"),
        ("avst", "data/json_update", "is json_update/avqa-train.json of MUSIC-AVQA, but AVST .* by json/"),
        ("baseline", "dataset/split_que_id", "contains no official training file of AVST's baseline"),
        ("missing-avqa", "dataset/split_que_id/music_avqa_train.json", "is json_update/.* but Missing-AVQA"),
        ("pstp", "first", "first contains no official training file of PSTP-Net .*: searched for json_update/avqa"),
        ("pstp", "unknown/renamed.json", "is json/avqa-train.json of MUSIC-AVQA"),
    ],
)
def test_the_training_file_of_another_release_is_refused(tmp_path, monkeypatch, kind, annotations, message):
    _write_official_tree(tmp_path)
    # The id that git gives to the content of the renamed file.
    first = replace(FIRST_FILE, git_id="ce013625030ba8dba906f756967f9e9ca394464a")
    monkeypatch.setattr(import_official, "FIRST_FILE", first)
    (tmp_path / "unknown").mkdir()
    (tmp_path / "unknown" / "renamed.json").write_text("hello\n")
    with pytest.raises(UserError, match=message):
        find_training_file(tmp_path / annotations, RELEASES[kind])


def _write_official_tree(root: Path) -> None:
    paths = [f"data/{FIRST_FILE.paths[0]}", f"data/{UPDATED_FILE.paths[0]}", f"dataset/{UPDATED_FILE.paths[1]}"]
    for path in (*paths, "first/json/avqa-train.json", "copies/avqa-train.json"):
        (root / path).parent.mkdir(parents=True)
        write_training_file(root / path)


RECORD = {"question_content": "Is it <X>?", "templ_values": '["loud"]', "anser": "yes"}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[" * 100_000, r"train.json is not an official training file: it is not JSON \(nested too deeply\)"),
        ("{}", "train.json is not an official training file: it is not a list of records"),
        ([RECORD, 3], "train.json, record 2 has no text 'question_content': pass an official"),
        ([{**RECORD, "question_content": 3}], "train.json, record 1 has no text 'question_content'"),
        ([{**RECORD, "anser": None}], "train.json, record 1 has no text 'anser'"),
        ([{**RECORD, "templ_values": "3"}], "train.json, record 1: templ_values '3' cannot be read: .* list of texts"),
        ([{**RECORD, "templ_values": "x"}], "train.json, record 1: templ_values 'x' cannot be read: Expecting value"),
        ([{**RECORD, "templ_values": "[]"}], "train.json, record 1: template 'Is it <X>\\?' has 1 slots but 0 values"),
    ],
)
def test_the_error_for_an_invalid_training_file_has_its_record_and_field(tmp_path, content, message):
    (tmp_path / "train.json").write_text(content if isinstance(content, str) else json.dumps(content))
    with pytest.raises(UserError, match=message):
        official_vocabulary(tmp_path / "train.json")


def test_unknown_tensors_are_reported_and_pickled_code_is_never_run(files, tmp_path):
    write_checkpoint(tmp_path / "more.pt", "avst", novelty=torch.zeros(1))
    imported = import_checkpoint("avst", tmp_path / "more.pt", files, tmp_path / "run", "m", "s")
    assert imported.unknown == ("novelty",)
    torch.save({"fc_ans.bias": Path("/")}, tmp_path / "code.pt")
    with pytest.raises(UserError, match=r"cannot be read: it contains pathlib\.\w+, not only tensors"):
        read_official(tmp_path / "code.pt")


def test_the_command_reports_the_import_and_does_not_overwrite_a_run(files, tmp_path):
    arguments = ["avst", str(files / "avst.pt"), "--annotations", str(files), "--out", str(tmp_path / "run"), "--json"]
    arguments += ["--manifest", str(tmp_path / "no manifest")]
    with chdir(tmp_path):
        done = CliRunner().invoke(import_, [*arguments, "--store", "stores/a.zarr"])
    assert done.exit_code == 0
    assert json.loads(done.stdout)["mapped"] == 45
    assert json.loads(done.stdout)["is_official"] is False
    assert read_config(tmp_path / "run").store == str(tmp_path / "stores" / "a.zarr")
    again = CliRunner().invoke(import_, arguments)
    assert again.exit_code == 2
    assert "already contains a run" in again.stderr
