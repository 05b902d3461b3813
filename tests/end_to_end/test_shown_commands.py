"""Every command and every Python example that the pages show is run, on small stand-ins of the data that they name.

In place of `pretrained` weights, which cannot be downloaded here, are seeded ones; presets have the sizes of the demo's
and one epoch, new stores one second, and extraction runs in this process. What needs other machines, a GPU or hours is
in `NOT_RUN`; its options are checked by `tests/test_pages.py`.
"""

import csv
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterable, Iterator
from contextlib import chdir, contextmanager
from dataclasses import replace
from pathlib import Path

import commands
import pages
import paths
import pytest
from click.testing import CliRunner

import pipeline.arrays.import_arrays
import pipeline.extractors.networks.vggish
import pipeline.extractors.resnet18
import pipeline.run.cluster
import pipeline.run.plan
import train.runs.presets
from pipeline.extractors.weights import WeightsSource, parse_weights
from pipeline.manifests.manifest import Question, load_manifest

pytestmark = pytest.mark.slow

# {pattern: why a command is not run}
NOT_RUN = {
    r"^mavqa(-[a-z]+)? (-h|--help)$|^make (?!extract|train)": "its help, or the set-up of a clone",
    r"s3://|tcp://": "needs another machine",
    r"--device cuda|torchcodec|decord": "needs a GPU, FFmpeg or an optional package",
    r"^mavqa-import |^mavqa-export-check|runs/official": "needs a published checkpoint: tests/training/checkpoints",
    r"mavqa-sweep table|build/": "hours of training, and their results",
    r"^mavqa demo$": "minutes: tests/end_to_end/test_demo.py",
}
# Pages whose Python examples use the data of the quick start; the others have parts of packages.
WITH_EXAMPLES = {"README.md", "python.md"}
# A stand-in of the package wandb: it writes what it receives to `wandb.txt`.
WANDB = """
def init(**settings):
    return Run()


class Run:
    def log(self, values, step):
        with open("wandb.txt", "a") as file:
            print(step, *values, file=file)

    def finish(self):
        self.log(("finished",), "")
"""
# The runs that pages evaluate without training them first.
PREPARED = ("mavqa-train --backbone avst --method rmm-avr", "mavqa-train --backbone avst --method zero-fill")
CHOICES = ["violin", "flute", "drum"]


def split_questions(source: Path) -> dict[str, list[Question]]:
    """Return {split: questions} of the manifest `source`, its videos split again: six train, three val, three test.

    Grounding needs several videos in val, and extraction takes as long as there are videos.
    """
    manifest = load_manifest(source)
    questions = [question for split in manifest.splits for question in manifest.questions[split]]
    order = sorted(video.video_id for video in manifest.videos)
    videos = {"train": order[:6], "val": order[6:9], "test": order[9:]}
    return {split: [q for q in questions if q.video_id in members] for split, members in videos.items()}


def write_annotations(source: Path, folder: Path) -> None:
    """Write stand-ins of the published annotations for the videos of the manifest `source`."""
    files = {"train": "avqa-train.json", "val": "avqa-val.json", "test": "avqa-test.json"}
    balanced = {"train": "balance_train.json", "val": "balance_valid.json", "test": "balance_test.json"}
    splits = split_questions(source)
    for first, (split, questions) in enumerate(splits.items()):
        records = [
            {
                "video_id": question.video_id,
                "question_id": 10_000 * first + number,
                "type": json.dumps(["Audio", "Counting"]),
                "question_content": "Is there a <Object> sound?",
                "templ_values": json.dumps(["flute"]),
                "question_deleted": 0,
                "anser": "yes" if number % 2 else "no",
            }
            for number, question in enumerate(questions)
        ]
        _write(folder / "MUSIC-AVQA" / "data" / "json_update" / files[split], records)
        _write(folder / "MUSIC-AVQA-v2.0" / balanced[split], records)
    for split, name in (("train", "train_qa.json"), ("val", "val_qa.json")):
        records = [
            {
                "id": f"{split}-{number}",
                "video_name": question.video_id,
                "video_id": number,
                "question_text": "What is heard?",
                "multi_choice": CHOICES,
                "answer": number % 3,
                "question_relation": "Both",
                "question_type": "Which",
            }
            for number, question in enumerate(splits[split])
        ]
        _write(folder / "AVQA" / name, records)
    with (folder / "questions.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["video", "question", "answer", "split"])
        for split, questions in splits.items():
            writer.writerows([f"{q.video_id}.mp4", q.text, q.answer, split] for q in questions)


def _rename_a_video(manifest: Path, name: str) -> None:
    """Give the first video of the manifest the name of a video of MUSIC-AVQA that the pages use."""
    first = next(iter(load_manifest(manifest).videos)).video_id
    for file in (manifest / "videos.csv", *manifest.glob("questions-*.jsonl")):
        file.write_text(file.read_text().replace(first, name))
    (manifest / "videos" / f"{first}.mp4").rename(manifest / "videos" / f"{name}.mp4")


def _write(path: Path, records: list[dict]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(records))


def run(line: str) -> None:
    """Run a command line of mavqa in this process, `make extract` and `make train` as the commands that they run."""
    command, _, file = line.partition("#")[0].partition(" > ")
    words = shlex.split(command)
    if words[0] == "make":
        environment = {
            name: value for name, value in os.environ.items() if name not in ("MAKEFLAGS", "ARGS")
        }  # of an outer make
        words[:1] = ["make", "-n", "-C", str(paths.ROOT)]
        shown = subprocess.run(words, capture_output=True, text=True, check=True, env=environment)
        (line,) = [line for line in shown.stdout.splitlines() if line.startswith(".venv/bin/mavqa-")]
        words = shlex.split(line.removeprefix(".venv/bin/"))
    ended = CliRunner().invoke(commands.scripts()[words[0]], [word for word in words[1:] if word])
    assert ended.exit_code in {0, 3}, f"{line}\n{ended.output}\n{ended.exception!r}"
    if file:
        Path(file.strip()).write_text(ended.stdout)


@contextmanager
def stand_ins() -> Iterator[None]:
    """Replace what would take hours or a network."""
    with pytest.MonkeyPatch.context() as patch:

        def parse_offline(text: str, cache: Path) -> WeightsSource:
            return parse_weights("seeded" if text == "pretrained" else text, cache)

        def local_cluster(workers: int):
            from distributed import LocalCluster

            return LocalCluster(1, threads_per_worker=1, processes=False, dashboard_address=None, memory_limit=0)

        patch.setattr(pipeline.run.plan, "parse_weights", parse_offline)
        patch.setattr(pipeline.run.plan, "DEFAULT_SECONDS", 1)
        patch.setattr(pipeline.arrays.import_arrays, "DEFAULT_SECONDS", 1)
        patch.setattr(pipeline.run.cluster, "_local_cluster", local_cluster)
        # A batch is padded to its size, which is most of the time for clips of one second.
        patch.setattr(pipeline.extractors.resnet18, "FRAMES_PER_BATCH", 1)
        patch.setattr(pipeline.extractors.networks.vggish, "EXAMPLES_PER_BATCH", 1)
        patch.setattr(pipeline.extractors.networks.vggish, "ROWS_PER_EMBEDDING", 1)
        presets = train.runs.presets.PRESETS
        demo = presets["demo"]
        for name, preset in presets.items():
            small = replace(demo, settings={**preset.settings, **demo.settings, "epochs": 1, "time_steps": 2})
            patch.setitem(presets, name, small)
        yield


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the annotations, videos, manifests, stores and runs that the pages name."""
    folder = tmp_path_factory.mktemp("prepared")
    with chdir(folder), stand_ins():
        run("mavqa-manifest synthesize --out clips-source --videos 12 --seconds 1 --workers 1")
        _rename_a_video(folder / "clips-source", "00000093")
        write_annotations(folder / "clips-source", folder)
        shutil.copytree("clips-source/videos", "clips")
        for dataset in ("music-avqa", "music-avqa-v2", "avqa", "mine", "clips"):
            shutil.copytree("clips", f"data/videos/{dataset}")
        run("mavqa-manifest build music-avqa --annotations MUSIC-AVQA/data --out data_manifests/music-avqa")
        run("mavqa-extract --dataset music-avqa")
        run("mavqa-extract --dataset music-avqa --features clip-vit-b32,clip-vit-b32-sentence,clip-vit-b32-words")
        run("mavqa-export stores/music-avqa.zarr --out feats --manifest data_manifests/music-avqa")
        for line in PREPARED:
            run(line)
        shutil.copytree(paths.ROOT / "train" / "grids", "train/grids")
    return folder


# Pages that are read one after the other; every other page begins with the folder `prepared`.
TOGETHER = [pages.page("quickstart.md"), pages.page("python.md")]


READ = [TOGETHER, *([page] for page in pages.PAGES if page not in (*TOGETHER, pages.page("extending.md")))]


@pytest.mark.parametrize("read", READ, ids=lambda read: pages.name(read[0]))
def test_the_commands_and_examples_of_pages_run(read: list[Path], prepared: Path, tmp_path: Path) -> None:
    shutil.copytree(prepared, tmp_path / "place")
    with chdir(tmp_path / "place"):
        if any(line.startswith("mavqa-train") for page in read for line in pages.block_commands(page)):
            shutil.rmtree("runs")
        run_pages(read)


def test_the_package_of_the_page_on_extending_runs(prepared: Path, tmp_path: Path) -> None:
    page = pages.page("extending.md")
    shutil.copytree(prepared, tmp_path / "place")
    package = tmp_path / "package"
    information = package / "mavqa_lab-1.0.dist-info"
    information.mkdir(parents=True)
    (information / "METADATA").write_text("Metadata-Version: 2.1\nName: mavqa-lab\nVersion: 1.0\n")
    for language, text in pages.blocks(page):
        if named := re.match(r"# (lab_\w+\.py|grid\.toml)\n", text):
            (tmp_path / "place" if language == "toml" else package).joinpath(named[1]).write_text(text)
        elif "entry-points" in text:
            groups = tomllib.loads(text)["project"]["entry-points"]
            lines = [
                f"[{group}]\n" + "".join(f"{k} = {v}\n" for k, v in table.items()) for group, table in groups.items()
            ]
            (information / "entry_points.txt").write_text("".join(lines))
    (package / "wandb.py").write_text(WANDB)
    splits = {
        split: [{"video": q.video_id, "question": q.text, "answer": q.answer} for q in members]
        for split, members in split_questions(prepared / "clips-source").items()
    }
    _write(tmp_path / "place" / "questions.json", splits)
    # A process of its own: the registries read the entry points when they are imported. -P: not from the working
    # directory, whose folder train has the grids.
    tests = Path(__file__).parent
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, (package, tests, tests.parent)))}
    program = "import pages, test_shown_commands as t; t.run_pages([pages.page('extending.md')])"
    ended = subprocess.run(
        [sys.executable, "-P", "-c", program], cwd=tmp_path / "place", env=environment, capture_output=True, text=True
    )
    assert ended.returncode == 0, ended.stderr[-2000:]
    first, *_, last = (tmp_path / "place" / "wandb.txt").read_text().splitlines()
    assert first.startswith("1 epoch learning_rate gradient_norm loss/")
    assert last.strip() == "finished"


def run_pages(read: Iterable[Path]) -> None:
    """Run the commands and Python examples of pages in the working directory, one after the other."""
    with stand_ins():
        for page in read:
            for language, text in pages.blocks(page):
                if language == "python" and page.name in WITH_EXAMPLES:
                    exec(compile(text, page.name, "exec"), {"__name__": "__main__"})
                for line in pages.commands_in(text) if not language else ():
                    if not any(re.search(pattern, line) for pattern in NOT_RUN):
                        run(line)
