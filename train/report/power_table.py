"""What it takes to find a difference between two methods, from the variance of those that are evaluated."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.errors import UserError
from train.evaluation.power import POWER, SIGNIFICANCE, seeds_needed, videos_needed
from train.evaluation.two_way import (
    FEWEST_SEEDS,
    FEWEST_VIDEOS,
    VarianceParts,
    covers_seeds,
    mean_squares,
    sum_by_video,
    variance_parts,
)
from train.report.gains import Pair, find_pairs
from train.report.tables import Block, build_blocks, table_blocks
from train.runs.results import RESULTS_FILE, read_results

# In percentage points.
DIFFERENCES = (1.0, 3.0)
# The numbers of seeds for which the questions are computed.
SEEDS = (3, 5, 10)


@dataclass(frozen=True)
class Comparison:
    """A paired difference, its variance parts, and the numbers of seeds and questions that they are from."""

    block: Block
    over: str
    method: str
    points: float
    parts: VarianceParts
    seeds: int
    videos: int
    questions: int

    def seeds_for(self, difference: float) -> int | None:
        """Return the seeds that a difference needs on these questions; None if no number is enough."""
        return seeds_needed(self.parts, difference, self.videos)

    def questions_for(self, difference: float, seeds: int) -> int | None:
        """Return the questions that a difference needs with so many seeds; None if no number is enough.

        There are as many questions per video as in these.
        """
        videos = videos_needed(self.parts, difference, seeds)
        return None if videos is None else round(videos * self.questions / self.videos)


def find_comparisons(runs: Sequence[Path]) -> list[Comparison]:
    """Return the comparisons of the report of `runs` that have at least `FEWEST_SEEDS` common seeds and vary.

    Raises `UserError` if there are none, or as `build_blocks`.
    """
    folders = {row.key: run for run in runs for row in read_results(run / RESULTS_FILE)}
    rows = {row.key: row for run in runs for row in read_results(run / RESULTS_FILE)}
    comparisons = list(_comparisons(table_blocks(build_blocks(rows.values(), folders))))
    if not comparisons:
        raise UserError(
            f"no method can be compared with a baseline over {FEWEST_SEEDS} common seeds and {FEWEST_VIDEOS} videos: "
            "train more seeds with 'mavqa-sweep GRID --seeds 5', and keep the predictions beside the results"
        )
    return comparisons


def to_document(comparisons: Iterable[Comparison]) -> dict[str, Any]:
    """Return the document of `mavqa-report --power --json`; a number that is not enough is None.

    `deviations`: standard deviations in percentage points, of the effects of a seed and of a video, and of the
    residual of one seed on one video.
    """
    return {
        "format": 1,
        "power": POWER,
        "significance": SIGNIFICANCE,
        "comparisons": [_record(comparison) for comparison in comparisons],
    }


def _comparisons(blocks: Iterable[Block]) -> Iterator[Comparison]:
    for block in blocks:
        for pair in find_pairs(block):
            found = _compare(block, pair) if covers_seeds(len(pair.seeds)) else None
            if found is not None:
                yield found


def _compare(block: Block, pair: Pair) -> Comparison | None:
    """Return the comparison; None if there are too few videos or nothing varies."""
    differences = 100 * pair.differences
    sums, sizes = sum_by_video(differences, pair.videos)
    if len(sizes) < FEWEST_VIDEOS or differences.std() == 0:
        return None
    squares = mean_squares(sums, sizes)
    counts = (squares.seeds, squares.videos, int(sizes.sum()))
    labels = (pair.baseline.label, pair.method.label)
    return Comparison(block, *labels, float(squares.estimate), variance_parts(squares), *counts)


def _record(comparison: Comparison) -> dict[str, Any]:
    block, parts = comparison.block, comparison.parts
    return {
        **{name: getattr(block, name) for name in ("dataset", "release", "split", "scenario")},
        **{name: getattr(comparison, name) for name in ("over", "method", "points", "seeds", "videos", "questions")},
        "deviations": {
            "seeds": parts.of_seeds**0.5,
            "videos": parts.of_videos**0.5,
            "residual": parts.of_residual**0.5,
        },
        "needs": [
            {
                "points": difference,
                "seeds_on_these_questions": comparison.seeds_for(difference),
                "questions_by_seeds": {str(seeds): comparison.questions_for(difference, seeds) for seeds in SEEDS},
            }
            for difference in DIFFERENCES
        ],
    }
