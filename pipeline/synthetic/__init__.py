"""The embedded dataset: drawn clips of instruments that play, with questions whose answers are known.

It needs no download and no licence; it is no substitute for real recordings.
"""

from pipeline.synthetic.dataset import synthesize

__all__ = ["synthesize"]
