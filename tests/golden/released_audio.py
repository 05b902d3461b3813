"""Writes released_audio.json: samples of the WAV files that moviepy 1.0.1 writes of the clips in released_clips.py.

    python tests/golden/released_audio.py PYTHON FFMPEG

PYTHON: an interpreter with `moviepy==1.0.1` and `numpy<2` (on Python 3.11). FFMPEG: the ffmpeg program that moviepy
starts; that of `imageio-ffmpeg==0.4.2` is FFmpeg 4.2.2, which moviepy used when the official features were computed.
"""

import json
import os
import subprocess
import sys
import tempfile
import wave
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "extraction"))

from released_clips import CLIPS

# As MUSIC-AVQA's extract_audio.py.
SCRIPT = """
import sys
from moviepy.editor import VideoFileClip
VideoFileClip(sys.argv[1]).audio.write_audiofile(sys.argv[2], fps=16000, logger=None)
"""
STRIDE = 199


def main(python: str, ffmpeg: str) -> None:
    """Write the JSON file beside this program."""
    version = subprocess.run([ffmpeg, "-version"], capture_output=True, text=True, check=True).stdout.split()[2]
    golden = {
        "provenance": "moviepy 1.0.1, write_audiofile(fps=16000) as in MUSIC-AVQA's extract_audio.py, by "
        "tests/golden/released_audio.py; the number of samples, and every stride-th sum of both channels",
        "ffmpeg": version,
        "stride": STRIDE,
        "clips": {},
    }
    with tempfile.TemporaryDirectory() as folder:
        for name, clip in CLIPS.items():
            path, wav = clip.write(Path(folder), name), Path(folder, f"{name}.wav")
            environment = os.environ | {"FFMPEG_BINARY": ffmpeg}
            subprocess.run([python, "-W", "ignore", "-c", SCRIPT, str(path), str(wav)], env=environment, check=True)
            with wave.open(str(wav)) as file:
                samples = np.frombuffer(file.readframes(file.getnframes()), "<i2").reshape(-1, 2)
            sums = samples.sum(axis=1, dtype=int)[::STRIDE].tolist()
            golden["clips"][name] = {"samples": len(samples), "sums": sums}
    Path(__file__).with_suffix(".json").write_text(json.dumps(golden) + "\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
