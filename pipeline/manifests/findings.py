"""Findings: what a check or a listing reports about one subject."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Finding:
    """One problem: its `kind`, the `subject` (an id, a word, a file) and a message."""

    kind: str
    subject: str
    message: str
