"""The time axis without files: selection of the frame and the audio of each second."""

import tracemalloc
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.media.timeline import (
    DecodeRequest,
    FrameSelector,
    FrameSize,
    ReleasedSelector,
    WaveformAssembler,
    count_steps,
    fill_lost_frames,
    first_step,
)

HALF = Fraction(1, 2)


def select(frames, *, t0=0, seconds=60, lost=(), per_second=1):
    """Add frames as (start, duration) and return the indices of the selected ones."""
    selector = FrameSelector(Fraction(t0), seconds, per_second)
    for start, duration in lost:
        selector.add_lost(Fraction(start), Fraction(duration))
    for index, (start, duration) in enumerate(frames):
        selector.add(Fraction(start), Fraction(duration), lambda index=index: index)
    return selector.finish()


def select_by_definition(frames, t0, seconds, per_second):
    """Return the selected indices by the definition, with all frames known in advance."""
    end = max(start + duration for start, duration in frames)
    selected = []
    for part in range(count_steps(float(end - t0), seconds) * per_second):
        begin = t0 + Fraction(part, per_second)
        middle = begin + HALF / per_second
        before = [index for index, (start, _) in enumerate(frames) if start <= middle]
        if before:
            selected.append(before[-1])
        else:
            selected.append(0 if frames[0][0] < begin + Fraction(1, per_second) else None)
    return selected


ticks = st.integers(1, 300).map(lambda tick: Fraction(tick, 100))


@given(
    first=st.integers(0, 250).map(lambda tick: Fraction(tick, 100)),
    gaps=st.lists(ticks, max_size=40),
    last=ticks,
    t0=st.sampled_from([Fraction(0), Fraction(8), Fraction(-1, 3)]),
    seconds=st.integers(1, 12),
    per_second=st.sampled_from([1, 2, 7, 16]),
)
def test_one_pass_selects_the_frames_of_the_definition(first, gaps, last, t0, seconds, per_second):
    starts = [t0 + first]
    for gap in gaps:
        starts.append(starts[-1] + gap)
    frames = list(zip(starts, [*gaps, last], strict=True))
    found = select(frames, t0=t0, seconds=seconds, per_second=per_second)
    assert found == select_by_definition(frames, t0, seconds, per_second)


@given(
    frames=st.lists(st.tuples(st.integers(0, 60), st.booleans()), min_size=1, max_size=80, unique_by=lambda f: f[0]),
    seconds=st.integers(1, 5),
    per_second=st.sampled_from([2, 3, 16]),
)
def test_a_second_with_a_frame_at_its_middle_has_all_of_its_frames(frames, seconds, per_second):
    single, several = FrameSelector(Fraction(0), seconds), FrameSelector(Fraction(0), seconds, per_second)
    for tick, is_lost in sorted(frames):
        start, duration = Fraction(tick, 12), Fraction(1, 12)
        for selector in (single, several):
            if is_lost:
                selector.add_lost(start, duration)
            else:
                selector.add(start, duration, lambda tick=tick: tick)
    middles, parts = single.finish(), fill_lost_frames(several.finish(), per_second)
    assert len(parts) == len(middles) * per_second
    for step, middle in enumerate(middles):
        own = parts[step * per_second : (step + 1) * per_second]
        assert (middle is None) or None not in own


def test_a_lost_part_gets_the_nearest_frame_of_its_own_second():
    rows = [None, 1, None, None, None, None, 6, None, None, None, None, None]
    assert fill_lost_frames(rows, 4) == [1, 1, 1, 1, 6, 6, 6, 6, None, None, None, None]
    assert fill_lost_frames([0, None, 2, None, 4, 5], 3) == [0, 0, 2, 4, 4, 5]
    assert fill_lost_frames([0, None, 2], 1) == [0, None, 2]


def test_selected_frames_are_converted_once_and_others_never():
    converted = []
    selector = FrameSelector(Fraction(0), 10)
    for index in range(40):
        selector.add(Fraction(index, 10), Fraction(1, 10), lambda index=index: converted.append(index))
    selector.add(Fraction(4), Fraction(6), lambda: converted.append("last"))
    selector.finish()
    assert converted == [5, 15, 25, 35, "last"]


def test_selection_is_done_when_the_last_step_is_decided():
    selector = FrameSelector(Fraction(0), 2)
    for start in (0, 1, HALF * 3):
        selector.add(Fraction(start), Fraction(1), lambda: 0)
    assert not selector.is_done
    selector.add(Fraction(2), Fraction(1), lambda: 0)
    assert selector.is_done


def test_frame_out_of_order_is_ignored():
    assert select([(0, 1), (2, 1), (1, 1), (3, 1)]) == [0, 0, 1, 3]


def test_lost_frame_leaves_its_step_empty_unless_another_frame_is_inside():
    assert select([(0, 1), (2, 1)], lost=[(1, 1)]) == [0, None, 1]
    assert select([(0, 1), (Fraction(17, 10), 1)], lost=[(1, Fraction(7, 10))]) == [0, 1, 1]


def test_long_lost_end_is_seconds_without_a_frame_and_a_short_one_is_not():
    assert select([(0, 1), (1, 1)], lost=[(2, 1), (3, 1)]) == [0, 1, None, None]
    assert select([(0, 1), (1, 1)], lost=[(2, HALF)]) == [0, 1]


@pytest.mark.parametrize(
    ("duration", "steps"), [(0.001, 1), (1.0, 1), (1.02, 1), (1.03, 2), (59.98, 60), (60.01, 60), (400, 60)]
)
def test_steps_of_a_duration(duration, steps):
    assert count_steps(duration, 60) == steps


def test_padding_released_excludes_several_frames_per_second():
    with pytest.raises(ValueError, match="one frame per second"):
        DecodeRequest(frame_sizes=(FrameSize("stretch", 8, per_second=2),), padding="released")


def released(count, frames_per_second, seconds):
    selector = ReleasedSelector(Fraction(frames_per_second), seconds)
    for index in range(count):
        if not selector.is_done:
            selector.add(Fraction(0), Fraction(0), lambda index=index: index)
    return selector.finish()


def released_by_formula(count, fps, seconds):
    last = int(count % fps) or int(fps)
    start = count - last
    positions = [round((0.5 + second) * fps) for second in range(seconds)]
    return [(p if p <= count else start + 1 + (p - start - 1) % last) - 1 for p in positions]


@pytest.mark.parametrize("fps", [25, 30, 12, 7])
@pytest.mark.parametrize("count", [1500, 1490, 250, 251, 249, 62])
def test_padding_released_follows_the_formula(fps, count):
    assert released(count, fps, 60) == released_by_formula(count, fps, 60)


def test_padding_released_selects_the_published_frames():
    assert released(1500, 25, 60)[:3] == [11, 37, 61]
    assert released(1500, 25, 60)[-1] == 1487
    assert released(1800, 30, 60)[:2] == [14, 44]
    assert released(1800, 30, 60)[-1] == 1784
    assert len(set(released(250, 25, 60)[10:])) > 1


def assemble(blocks, *, rate=100, seconds=10, lost=(), t0=0):
    assembler = WaveformAssembler(Fraction(t0), seconds, rate)
    for start, duration in lost:
        assembler.add_lost(Fraction(start), Fraction(duration))
    for start, samples in blocks:
        assembler.add(Fraction(start), np.asarray(samples, np.float32))
    return assembler.finish()


def test_gap_is_zeros_and_overlap_is_dropped():
    waveform, steps, coverage = assemble([(0, np.full(50, 0.1)), (1, np.full(60, 0.2)), (Fraction(3, 2), [0.3] * 30)])
    assert steps == 2
    expected = np.zeros(200)
    expected[:50], expected[100:160], expected[160:180] = 0.1, 0.2, 0.3
    assert waveform == pytest.approx(expected)
    assert coverage == pytest.approx(130 / 180)


def test_timestamps_rounded_to_milliseconds_leave_no_gaps():
    tone = np.sin(np.arange(40_960, dtype=np.float32) / 7) / 2
    blocks = [(Fraction(round(at / 44.1), 1000), tone[at : at + 1024]) for at in range(0, len(tone), 1024)]
    waveform, _, coverage = assemble(blocks, rate=44_100)
    assert np.array_equal(waveform[: len(tone)], tone)
    assert coverage == 1


@pytest.mark.parametrize("t0", [0, Fraction(7, 90_000)])
def test_a_block_starts_at_the_nearest_sample_or_the_even_one_of_two(t0):
    for at, sample in [(2.25, 2), (2.5, 2), (3.5, 4), (3.75, 4), (11 / 3, 4)]:
        waveform, _, _ = assemble([(t0 + Fraction(at).limit_denominator(1000) / 10, [1.0])], t0=t0, rate=10)
        assert np.flatnonzero(waveform).tolist() == [sample], at


@pytest.mark.parametrize(("delay", "first"), [(0, 0), (0.97, 0), (0.99, 1), (3.4, 3), (9.99, 9)])
def test_first_step_of_a_modality_that_starts_late(delay, first):
    assert first_step(delay, 10) == first


def test_late_audio_starts_with_zeros_and_has_full_coverage():
    waveform, steps, coverage = assemble([(10, np.ones(100))], t0=8)
    assert (steps, coverage) == (3, 1)
    assert not waveform[:200].any()
    assert waveform[200:].all()


def test_overlapping_audio_is_dropped_and_measured():
    assembler = WaveformAssembler(Fraction(0), 10, 100)
    for start, value in [(0, 0.1), (Fraction(1, 2), 0.2), (Fraction(3, 2), 0.3)]:
        assembler.add(Fraction(start), np.full(100, value, np.float32))
    waveform, _, _ = assembler.finish()
    assert waveform[[99, 100, 149, 150]].tolist() == pytest.approx([0.1, 0.2, 0.2, 0.3])
    assert assembler.overlap_seconds == 0.5


def test_lost_audio_lowers_the_coverage_unless_it_is_before_the_first_sample():
    assert assemble([(second, np.ones(100)) for second in range(1, 6)], lost=[(0, 1)])[1:] == (6, 1)
    for lost in [(1, 1), (5, 1)]:
        blocks = [(second, np.ones(100)) for second in range(6) if second != lost[0]]
        assert assemble(blocks, lost=[lost])[2] == pytest.approx(5 / 6)


def test_samples_that_are_not_finite_become_zero_and_count_as_missing():
    waveform, _, coverage = assemble([(0, [0.5, np.nan, np.inf, 2.0])])
    assert waveform[:4].tolist() == [0.5, 0, 0, 1]
    assert coverage == 0.5


def test_audio_longer_than_requested_is_truncated():
    waveform, steps, coverage = assemble([(second, np.ones(100)) for second in range(5)], seconds=3)
    assert (len(waveform), steps, coverage) == (300, 3, 1)


def test_audio_that_starts_after_the_last_second_is_empty():
    assert assemble([(20, np.ones(100))])[1:] == (0, 0.0)


def test_memory_of_the_waveform_is_that_of_the_file_not_of_the_requested_seconds():
    assembler = WaveformAssembler(Fraction(0), 10_000, 44_100)
    assembler.add(Fraction(0), np.ones(3 * 44_100, np.float32))
    tracemalloc.start()
    waveform, steps, _ = assembler.finish()
    peak_bytes = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert (steps, len(waveform)) == (3, 3 * 44_100)
    assert peak_bytes < 10_000_000
