"""Which modality is taken away from which question: scenarios and saved mask files. It touches no tensor.

A mask says, per question id, which modalities are hidden; the dataset then never reads them.
Source: the ECCV 2024 missing-modality paper's Fig. 5 (rates); nesting and hashing are this project's.
"""

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pipeline.errors import UserError
from pipeline.files import replace_text
from pipeline.manifests.manifest import Question
from pipeline.store.schema import MODALITIES

OTHER = {"audio": "visual", "visual": "audio"}
# What a training question may lack where missing modalities are sampled each step: nothing, audio, visual.
SAMPLED_MISSING: tuple[tuple[str, ...], ...] = ((), ("audio",), ("visual",))
MASK_FORMAT = 1
SCENARIOS: dict[str, tuple[str, ...]] = {
    "complete": (),
    "audio-missing": ("audio",),
    "visual-missing": ("visual",),
    "both-missing": ("audio", "visual"),
}
NATURAL = "natural"
ALL_SCENARIOS = (*SCENARIOS, NATURAL)

Unit = Literal["video", "question"]
Rates = dict[str, float]


@dataclass(frozen=True)
class Masks:
    """One draw of missing modalities: `absent` maps question ids to what is hidden of them (at most one)."""

    seed: int
    unit: Unit
    rates: Rates
    absent: dict[str, tuple[str, ...]]

    @property
    def name(self) -> str:
        """The scenario's name, such as `masked-audio=0.3`; the unit video and a seed other than 0 follow."""
        rates = ",".join(f"{modality}={rate:g}" for modality, rate in sorted(self.rates.items()))
        unit = "-video" if self.unit == "video" else ""
        return f"masked-{rates}{unit}" + (f"-seed{self.seed}" if self.seed else "")


def hidden_in(scenario: str) -> tuple[str, ...]:
    """Return the modalities that `scenario` hides from every question; `natural` hides none.

    Raises `UserError` naming the known scenarios.
    """
    if scenario == NATURAL:
        return ()
    if scenario not in SCENARIOS:
        raise UserError(f"scenario {scenario!r} is unknown: choose one of {', '.join(ALL_SCENARIOS)}")
    return SCENARIOS[scenario]


def parse_rates(text: str) -> Rates:
    """Return {modality: share in [0, 1]} of a text such as "audio=0.3,visual=0.2".

    Raises `UserError` where the text is something else or the shares sum to more than one.
    """
    return check_rates(_parse(text))


def parse_parts(text: str | None) -> Rates | None:
    """Return {modality: share of its seconds in [0, 1]} of a text such as "audio=0.5", None of None.

    Unlike rates, the shares may sum to more than one. Raises `UserError` where the text is something else.
    """
    if text is None:
        return None
    parts = _parse(text)
    for modality, share in parts.items():
        check_rates({modality: share})
    return parts


def _parse(text: str) -> Rates:
    rates: Rates = {}
    for part in filter(None, (piece.strip() for piece in text.split(","))):
        modality, _, value = part.partition("=")
        if modality not in MODALITIES or modality in rates:
            raise UserError(f"missing rate {part!r}: give audio=RATE, visual=RATE or both, each once")
        try:
            rates[modality] = float(value)
        except ValueError:
            raise UserError(f"missing rate {part!r}: {value!r} is not a number between 0 and 1") from None
    return rates


def check_rates(rates: Rates) -> Rates:
    """Return `rates`, or raise `UserError` where one leaves [0, 1] or they sum to more than one."""
    for modality, rate in rates.items():
        if not 0 <= rate <= 1:
            raise UserError(f"missing rate {modality}={rate}: it must lie between 0 and 1")
    if sum(rates.values()) > 1:
        raise UserError(f"missing rates {rates} sum to more than 1: at most one modality of a question is hidden")
    return rates


def draw_masks(questions: Iterable[Question], rates: Rates, seed: int, unit: Unit = "question") -> Masks:
    """Draw which questions lose a modality, each by a hash of the seed and its (or its video's) id.

    Audio takes the hashes from below and visual those from above: what is hidden at one rate stays hidden at
    every higher rate, and no question loses both.
    """
    check_rates(rates)
    absent: dict[str, tuple[str, ...]] = {}
    for question in questions:
        place = _hash(seed, question.question_id if unit == "question" else question.video_id)
        if place < rates.get("audio", 0.0):
            absent[question.question_id] = ("audio",)
        elif place >= 1 - rates.get("visual", 0.0):
            absent[question.question_id] = ("visual",)
    return Masks(seed, unit, dict(rates), absent)


def missing_stretch(steps: int, share: float, seed: int, key: str) -> range:
    """Return which of `steps` are gone: one stretch of `share` of them (rounded), its place by a hash of `key`."""
    length = round(share * steps)
    first = int(_hash(seed, key) * (steps - length + 1))
    return range(first, first + length)


def save_masks(masks: Masks, path: Path) -> None:
    """Write `masks` as JSON, beside its name and renamed last."""
    record = {
        "format": MASK_FORMAT,
        "seed": masks.seed,
        "unit": masks.unit,
        "rates": masks.rates,
        "absent": {question: list(modalities) for question, modalities in masks.absent.items()},
    }
    replace_text(path, json.dumps(record, indent=1, sort_keys=True) + "\n")


def load_masks(path: Path) -> Masks:
    """Read a mask file.

    Raises `UserError` where it is missing, malformed, of another format, or hides what is no modality.
    """
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        absent = {question: tuple(modalities) for question, modalities in record["absent"].items()}
        masks = Masks(int(record["seed"]), record["unit"], check_rates(record["rates"]), absent)
        known = record["format"] == MASK_FORMAT and masks.unit in ("video", "question")
    except FileNotFoundError:
        raise UserError(f"mask file {path} is missing: training with --missing-rate saves one") from None
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"mask file {path} is malformed: {error}") from None
    if not known or any(modalities not in SCENARIOS.values() for modalities in absent.values()):
        raise UserError(f"mask file {path}: format, unit or a modality is not known to this program")
    return masks


def _hash(seed: int, name: str) -> float:
    digest = hashlib.sha256(f"{seed}:{name}".encode()).digest()
    return int.from_bytes(digest[:6], "big") / 2**48
