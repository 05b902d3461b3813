"""The embedded dataset: rendered clips of instruments that play, with questions whose answers are known.

It needs no download and has no licence restrictions; it does not replace real recordings.
"""

from pipeline.synthetic.dataset import read_redundancy, synthesize

__all__ = ["read_redundancy", "synthesize"]
