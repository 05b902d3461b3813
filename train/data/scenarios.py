"""Which modalities are missing from which questions: scenarios, and masks that are saved as files.

Masks map question ids to hidden modalities, which the dataset then never reads.
Source: Fig. 5 of the ECCV 2024 missing-modality paper (rates); nesting and hashing are ours.
"""

import hashlib
import json
import reprlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol, get_args

from pipeline.errors import UserError, unknown_name
from pipeline.files import replace_text
from pipeline.manifests.manifest import Question, parse_json
from pipeline.store.schema import MODALITIES

# How the scenarios of sampled masks begin.
MASKED = "masked-"
OTHER = {"audio": "visual", "visual": "audio"}
# The states of a training question whose missing modality is sampled each step: complete, audio or visual missing.
SAMPLED_MISSING: tuple[tuple[str, ...], ...] = ((), ("audio",), ("visual",))
MASK_FORMAT = 1
SCENARIOS: dict[str, tuple[str, ...]] = {
    "complete": (),
    "audio-missing": ("audio",),
    "visual-missing": ("visual",),
    "both-missing": ("audio", "visual"),
}
SCENARIO_OF = {hidden: name for name, hidden in SCENARIOS.items()}
NATURAL = "natural"
ALL_SCENARIOS = (*SCENARIOS, NATURAL)

# The two quantities of a user's text such as "audio=0.3", in error messages.
RATE = "missing rate (share of the questions)"
PART = "missing part (share of the seconds)"

Unit = Literal["video", "question"]
Rates = dict[str, float]


@dataclass(frozen=True)
class Masks:
    """The questions that lose a modality: `absent` {question id: hidden modalities}.

    `sample_masks` hides at most one modality per question; a mask file may hide both.
    """

    seed: int
    unit: Unit
    rates: Rates
    absent: dict[str, tuple[str, ...]]

    @property
    def name(self) -> str:
        """The name of the scenario, such as `masked-audio=0.3`, with `-video` and a seed other than 0 appended."""
        rates = ",".join(f"{modality}={rate:g}" for modality, rate in sorted(self.rates.items()))
        unit = "-video" if self.unit == "video" else ""
        return f"{MASKED}{rates}{unit}" + (f"-seed{self.seed}" if self.seed else "")

    @property
    def sha256(self) -> str:
        """The hash of what is hidden."""
        hidden = {question: list(modalities) for question, modalities in self.absent.items()}
        return hashlib.sha256(json.dumps(hidden, sort_keys=True).encode()).hexdigest()

    def name_for(self, questions: Iterable[Question]) -> str:
        """Return `name` if the masks are those sampled at their rates from `questions`, else `masks-<hash>`."""
        is_sampled = self.absent == sample_masks(questions, self.rates, self.seed, self.unit).absent
        return self.name if is_sampled else f"masks-{self.sha256[:8]}"


def hidden_in(scenario: str) -> tuple[str, ...]:
    """Return the modalities that `scenario` hides from every question; `natural` hides none.

    Raises `UserError` if the scenario is unknown.
    """
    if scenario == NATURAL:
        return ()
    if scenario not in SCENARIOS:
        raise unknown_name("scenario", scenario, ALL_SCENARIOS)
    return SCENARIOS[scenario]


def parse_rates(text: str) -> Rates:
    """Parse missing rates such as "audio=0.3,visual=0.2"; return {modality: share of the questions in [0, 1]}.

    Raises `UserError` if the text is invalid or the rates sum to more than 1.
    """
    return check_rates(_parse(text, RATE))


def parse_parts(text: str | None) -> Rates | None:
    """Parse missing parts such as "audio=0.5"; return {modality: share of its seconds in [0, 1]}, None for None.

    Unlike rates, the shares may sum to more than 1. Raises `UserError` if the text is invalid.
    """
    if text is None:
        return None
    parts = _parse(text, PART)
    for modality, share in parts.items():
        _check_share(modality, share, PART)
    return parts


def _parse(text: str, quantity: str) -> Rates:
    """Return {modality: number} of a text such as "audio=0.3,visual=0.2"; errors name the `quantity`."""
    shares: Rates = {}
    for part in [part for part in map(str.strip, text.split(",")) if part] or [""]:
        modality, _, value = part.partition("=")
        if modality not in MODALITIES or modality in shares:
            raise UserError(f"{quantity} {part!r}: pass audio=SHARE, visual=SHARE or both, each once")
        try:
            shares[modality] = float(value)
        except ValueError:
            raise UserError(f"{quantity} {part!r}: {value!r} is not a number between 0 and 1") from None
    return shares


def check_rates(rates: Rates) -> Rates:
    """Return `rates`; raise `UserError` if one is outside [0, 1], of no modality, or they sum to more than 1."""
    for modality, rate in rates.items():
        _check_share(modality, rate, RATE)
    if sum(rates.values()) > 1:
        listed = ",".join(f"{modality}={rate}" for modality, rate in rates.items())
        raise UserError(f"{RATE} {listed}: they sum to more than 1, but at most one modality per question is hidden")
    return rates


def _check_share(modality: str, share: object, quantity: str) -> None:
    if modality not in MODALITIES:
        raise UserError(f"{quantity} {modality}={share}: {modality!r} is no modality, use {' or '.join(MODALITIES)}")
    if isinstance(share, bool) or not isinstance(share, (int, float)) or not 0 <= share <= 1:
        raise UserError(f"{quantity} {modality}={share}: it must be a number between 0 and 1")


class Identified(Protocol):
    """What sampling needs of a question."""

    @property
    def question_id(self) -> str:
        """The id of the question."""

    @property
    def video_id(self) -> str:
        """The id of its video."""


def sample_masks(questions: Iterable[Identified], rates: Rates, seed: int, unit: Unit = "question") -> Masks:
    """Sample the questions that lose a modality, by a hash of `seed` and the question id (or video id, by `unit`).

    `rates` {modality: share of the units in [0, 1]}; a modality without a rate is never hidden. Hashes are uniform in
    [0, 1): audio is hidden below its rate, visual from 1 - its rate on. What is hidden at one rate is therefore hidden
    at every higher rate of the same seed and unit, and no question loses both modalities.
    Raises `UserError` if a rate is outside [0, 1] or the rates sum to more than 1.
    Source: Fig. 5 of the ECCV 2024 missing-modality paper (rates); the nested sampling is ours.
    """
    check_rates(rates)
    absent: dict[str, tuple[str, ...]] = {}
    for question in questions:
        position = _hash(seed, question.question_id if unit == "question" else question.video_id)
        if position < rates.get("audio", 0.0):
            absent[question.question_id] = ("audio",)
        elif position >= 1 - rates.get("visual", 0.0):
            absent[question.question_id] = ("visual",)
    return Masks(seed, unit, dict(rates), absent)


def missing_span(steps: int, share: float, seed: int, key: str) -> range:
    """Return the positions of missing steps: one span of `share` of `steps` (rounded), placed by a hash of `key`."""
    length = round(share * steps)
    first = int(_hash(seed, key) * (steps - length + 1))
    return range(first, first + length)


def save_masks(masks: Masks, path: Path) -> None:
    """Write `masks` to `path` as JSON, atomically."""
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

    Raises `UserError` with the field, and with the question if it is about one, if the file does not exist or is
    invalid, has another format, or hides an unknown modality.
    """
    try:
        record = parse_json(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"mask file {path} does not exist: training with --missing-rate writes one") from None
    except ValueError as error:
        raise UserError(f"mask file {path} is not JSON: {error}") from None
    if not isinstance(record, dict):
        raise UserError(f"mask file {path} is not a JSON object with format, seed, unit, rates and absent")
    try:
        return _read_masks(record)
    except UserError as error:
        raise UserError(f"mask file {path}: {error}") from None


def _read_masks(record: dict[str, Any]) -> Masks:
    fields: dict[str, tuple[type, str, Sequence[object]]] = {
        "format": (int, str(MASK_FORMAT), (MASK_FORMAT,)),
        "seed": (int, "a whole number", ()),
        "unit": (str, " or ".join(map(repr, get_args(Unit))), get_args(Unit)),
        "rates": (dict, "{modality: share of the questions}", ()),
        "absent": (dict, "{question id: list of modalities}", ()),
    }
    for name, (kind, expected, values) in fields.items():
        if name not in record:
            raise UserError(f"{name!r} is missing: it must be {expected}")
        if not isinstance(record[name], kind) or (values and record[name] not in values):
            raise UserError(f"{name!r} is {reprlib.repr(record[name])}: it must be {expected}")
    for number, (question, modalities) in enumerate(record["absent"].items(), start=1):
        if not isinstance(modalities, list) or tuple(modalities) not in SCENARIOS.values():
            accepted = " or ".join(str(list(hidden)) for hidden in SCENARIOS.values())
            found = reprlib.repr(modalities)
            raise UserError(f"'absent', record {number}, question {question!r} is {found}: it must be {accepted}")
    absent = {question: tuple(modalities) for question, modalities in record["absent"].items()}
    return Masks(record["seed"], record["unit"], check_rates(record["rates"]), absent)


def _hash(seed: int, name: str) -> float:
    """Return a hash of the arguments, uniform in [0, 1)."""
    digest = hashlib.sha256(f"{seed}:{name}".encode()).digest()
    return int.from_bytes(digest[:6], "big") / 2**48
