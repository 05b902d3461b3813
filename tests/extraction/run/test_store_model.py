"""A store against a model of what it must hold, over random orders of what its users do.

Extract, stop at any write, resume, add a feature, add videos, accept, replace a file and retry, flip a bit, verify,
repair, read. Files are texts that a stand-in for the decoder reads, so that a step takes a fraction of a second.
"""

import random
import tempfile
from collections.abc import Collection
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
import run_toys
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

import pipeline.extractors.registry
import pipeline.run.coordinator
import pipeline.run.worker
import pipeline.store.writer as writer
from pipeline.errors import UserError
from pipeline.inspection.repair import make_pending
from pipeline.inspection.verify import verify_store
from pipeline.manifests.manifest import Manifest, Video, Vocabulary
from pipeline.media.timeline import FrameSize, Media, Track, fail_media
from pipeline.run.coordinator import extract
from pipeline.run.request import Request
from pipeline.store.location import has_store, locate
from pipeline.store.reader import open_group, open_store
from pipeline.store.schema import State
from pipeline.store.seal import SEAL

SECONDS, RATE_HZ = 3, 4
SIZE = FrameSize("stretch", 2)
# The version of each extractor, part of its spec: another one needs to be accepted.
VERSIONS = {"seen": 1, "heard": 1}
MODALITIES = {"seen": "visual", "heard": "audio"}


@dataclass(frozen=True)
class Content:
    """What a file holds: the steps of each modality, 0 if it has none, and the value of all its samples."""

    visual: int
    audio: int
    value: int
    is_broken: bool = False

    def state(self, modality: str) -> State:
        if self.is_broken:
            return State.FAILED
        return State.COMPLETE if getattr(self, modality) else State.ABSENT


class StandIn:
    """Reads a `Content` in place of a decoder process."""

    def __init__(self, name: str, limits: Any) -> None:
        pass

    def decode(self, path: Path, request: Any) -> Media:
        content = Content(*map(int, path.read_text().split()))
        if content.is_broken:
            return fail_media("it is broken")
        frames = np.full((content.visual, 2, 2, 3), content.value, np.uint8)
        waveform = np.full(content.audio * RATE_HZ, content.value / 256, np.float32)
        tracks = {name: Track(content.state(name), getattr(content, name)) for name in ("visual", "audio")}
        if not request.frame_sizes and content.visual:
            tracks["visual"] = Track(State.PENDING)
        return Media(frames={SIZE: frames}, waveform=waveform, sample_rate_hz=RATE_HZ, **tracks)


class Seen:
    """The value of a file's frames, times the version: float32 [time, channel 2]."""

    name, modality, dims, shape, dtype, frame_size = "seen", "visual", ("channel",), (2,), "float32", SIZE

    def constants(self) -> dict[str, Any]:
        return {"version": VERSIONS[self.name]}

    def load(self, weights: Any, device: str) -> str:
        return ""

    def extract(self, media: Media) -> np.ndarray:
        return media.frames[SIZE][:, 0, 0, :2].astype(np.float32) * VERSIONS[self.name]


class Heard(Seen):
    """The value of a file's samples, times the version: float32 [time, channel 2]."""

    name, modality, frame_size = "heard", "audio", None

    def extract(self, media: Media) -> np.ndarray:
        return media.waveform.reshape(-1, RATE_HZ)[:, :2] * 256 * VERSIONS[self.name]


class Stopped(BaseException):
    """Raised at a write in place of killing the process."""


contents = st.builds(
    Content, st.integers(0, 3), st.integers(0, 3), st.integers(0, 9), st.sampled_from([False] * 3 + [True])
)
few = st.lists(contents, max_size=9)
features = st.sampled_from([("seen",), ("heard",), ("seen", "heard")])
versions = st.sampled_from([1, 1, 2])


class StoreModel(RuleBasedStateMachine):
    """The videos and the contents that their files have had; the store must follow from them."""

    @initialize()
    def begin(self) -> None:
        self.folder = tempfile.TemporaryDirectory(prefix="mavqa-model-")
        self.videos = Path(self.folder.name) / "videos"
        self.videos.mkdir()
        self.path = Path(self.folder.name) / "store.zarr"
        # {video id: its contents in the order in which its file had them}.
        self.history: dict[str, list[Content]] = {}
        self.version = 1
        self.add_videos([Content(2, 2, 1), Content(0, 3, 2), Content(1, 0, 3), Content(1, 1, 4, is_broken=True)])

    def teardown(self) -> None:
        if hasattr(self, "folder"):
            self.folder.cleanup()

    @property
    def has_store(self) -> bool:
        return hasattr(self, "path") and has_store(locate(self.path))

    def write(self, video_id: str, content: Content) -> None:
        numbers = (content.visual, content.audio, content.value, int(content.is_broken))
        (self.videos / f"{video_id}.txt").write_text(" ".join(map(str, numbers)))
        self.history.setdefault(video_id, []).append(content)

    def run(self, names: Collection[str], accept: Collection[str] = (), retry: bool = False, stop_at: int = 0) -> None:
        """Extract `names` of all videos; raise `Stopped` at the write `stop_at` of an index or of values."""
        videos = tuple(Video(video_id, f"{video_id}.txt", "") for video_id in self.history)
        manifest = Manifest("model", "1", "none", videos, {}, Vocabulary((), ()))
        request = Request(
            features=tuple(names), weights="seeded", device="cpu", seconds=SECONDS, accept=accept, retry_failed=retry
        )
        calls = 0

        def counted(original: Any) -> Any:
            def call(*arguments: Any, **keywords: Any) -> Any:
                nonlocal calls
                calls += 1
                if calls == stop_at:
                    raise Stopped
                return original(*arguments, **keywords)

            return call

        pipeline.run.worker._tools.cache_clear()
        table = {kind.name: f"{__name__}:{kind.__name__}" for kind in (Seen, Heard)}
        with (
            patch.dict(pipeline.extractors.registry.EXTRACTORS, table, clear=True),
            patch.dict(VERSIONS, dict.fromkeys(VERSIONS, self.version)),
            patch.object(pipeline.run.worker, "DecoderProcess", StandIn),
            patch.multiple(
                pipeline.run.coordinator,
                connect=run_toys.connect, query_workers=run_toys.query_workers, stream=run_toys.stream,
            ),
            patch.object(writer, "_scatter", counted(writer._scatter)),
            patch.object(writer, "_resize", counted(writer._resize)),
            patch.object(pipeline.run.worker, "write_rows", counted(pipeline.run.worker.write_rows)),
        ):  # fmt: skip
            extract(manifest, self.videos, str(self.path), request)

    def stored_versions(self, name: str) -> set[int]:
        if not self.has_store or name not in open_store(self.path).feature_names:
            return set()
        return {spec.constants["extractor"]["version"] for spec in open_store(self.path).specs(name)}

    def add_videos(self, new: list[Content]) -> None:
        for content in new:
            self.write(f"v{len(self.history)}", content)

    @rule(names=features, new=few, version=versions, accept=st.booleans(), retry=st.booleans())
    def extract(self, names: tuple[str, ...], new: list[Content], version: int, accept: bool, retry: bool) -> None:
        self.add_videos(new)
        self.version = version
        is_refused = not accept and any(v and self.version not in v for v in map(self.stored_versions, names))
        if is_refused:
            before = run_toys.contents(self.path)
            with pytest.raises(UserError, match="was computed with other settings"):
                self.run(names, retry=retry)
            assert run_toys.contents(self.path) == before
            return
        self.run(names, names if accept else (), retry)
        store = open_store(self.path)
        assert SEAL in open_group(self.path, mode="r").attrs
        for name in names:
            for video_id, history in self.history.items():
                possible = history[-1:] if retry else history
                state = store.state(name)[store.rows[video_id]]
                assert state in {content.state(MODALITIES[name]) for content in possible}, (name, video_id)

    @rule(names=features, new=few, version=versions, stop_at=st.sampled_from(range(1, 50)))
    def extract_until_stopped(self, names: tuple[str, ...], new: list[Content], version: int, stop_at: int) -> None:
        self.add_videos(new)
        self.version = version
        with suppress(Stopped):
            self.run(names, names, stop_at=stop_at)

    @precondition(lambda self: any(history[-1].is_broken for history in getattr(self, "history", {}).values()))
    @rule(content=contents)
    def replace_a_broken_file(self, content: Content) -> None:
        broken = next(video_id for video_id, history in self.history.items() if history[-1].is_broken)
        self.write(broken, content)

    @precondition(lambda self: self.has_store and SEAL in open_group(self.path, mode="r").attrs)
    @rule(seed=st.integers(0, 2**32))
    def flip_a_bit(self, seed: int) -> None:
        generator = random.Random(seed)
        file = generator.choice(sorted(path for path in self.path.rglob("*") if path.is_file()))
        data = file.read_bytes()
        at, bit = generator.randrange(len(data)), generator.randrange(8)
        file.write_bytes(data[:at] + bytes([data[at] ^ 1 << bit]) + data[at + 1 :])
        try:
            problems = verify_store(open_store(self.path))
        except UserError as error:
            problems = [error]
        assert problems, f"bit {bit} of byte {at} of {file}"
        file.write_bytes(data)

    @precondition(lambda self: self.has_store and SEAL in open_group(self.path, mode="r").attrs)
    @rule(seed=st.integers(0, 2**32))
    def repair_a_flipped_chunk(self, seed: int) -> None:
        generator = random.Random(seed)
        chunks = sorted(self.path.glob("features/*/values/c.*"))
        if not chunks:
            return
        file = generator.choice(chunks)
        data = bytearray(file.read_bytes())
        data[generator.randrange(len(data))] ^= 1 << generator.randrange(8)
        file.write_bytes(data)
        store = open_store(self.path)
        problems = verify_store(store)
        rows, _ = make_pending(store, problems)
        assert rows
        names = tuple({problem.feature for problem in problems})
        self.run(names, accept=names)

    @invariant()
    def what_is_complete_is_right(self) -> None:
        if not self.has_store:
            return
        store = open_store(self.path)
        assert verify_store(store) == []
        for name in store.feature_names:
            versions = [spec.constants["extractor"]["version"] for spec in store.specs(name)]
            for row in np.flatnonzero(store.state(name) == State.COMPLETE):
                video_id = store.video_ids[row]
                found = store.read(name, video_id)
                modality = MODALITIES[name]
                expected = [
                    np.full((getattr(content, modality), 2), content.value * versions[store.made_by(name)[row]])
                    for content in self.history[video_id]
                    if not content.is_broken
                ]
                assert any(np.array_equal(found, values) for values in expected), (name, video_id, found)


def test_random_orders_of_use_leave_what_the_model_predicts() -> None:
    """The short form; `make nightly` runs the long one."""
    check(examples=4, steps=8)


@pytest.mark.nightly
def test_many_random_orders_of_use_leave_what_the_model_predicts() -> None:
    check(examples=150, steps=25)


def check(examples: int, steps: int) -> None:
    unhurried = [HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.filter_too_much]
    chosen = settings(max_examples=examples, stateful_step_count=steps, deadline=None, suppress_health_check=unhurried)
    run_state_machine_as_test(StoreModel, settings=chosen)
