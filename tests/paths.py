"""Where things are in a checkout: its root, the golden values, the drivers that tests start as programs."""

from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
GOLDEN = ROOT / "tests" / "golden"
EXTRACTION = ROOT / "tests" / "extraction"
TRAINING = ROOT / "tests" / "training"
