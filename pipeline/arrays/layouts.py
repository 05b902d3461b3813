"""How published releases name and shape the arrays of each feature: one entry a feature, read and written alike.

Source: the data loaders and feature scripts of GeWu-Lab/MUSIC-AVQA and GeWu-Lab/PSTP-Net. Arrays of other networks,
such as the ViT-L/14 features of TSPM and QA-TIGER, have other shapes and are refused.
"""

import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pipeline.arrays.npy_files import ArrayError, open_array
from pipeline.errors import UserError, unknown_name
from pipeline.store.schema import FeatureSpec

# The data type of every published array.
PUBLISHED_DTYPE = "float32"


@dataclass(frozen=True)
class Layout:
    """The arrays of one feature in one release.

    `feature`, `modality`, `dims`, `shape`, `dtype`: as in the store. `folders`: the names of the folder in releases, of
    which an export takes the first. A file is `<video id>.npy` [time, *shape], or for a question feature
    `<question id>.npy` [1, *shape], in float32.
    """

    feature: str
    modality: str
    dims: tuple[str, ...]
    shape: tuple[int, ...]
    dtype: str
    folders: tuple[str, ...]

    @property
    def is_of_questions(self) -> bool:
        """Whether there is one array per question, not per video."""
        return self.modality == "question"

    def spec(self, constants: dict[str, object]) -> FeatureSpec:
        """Return the spec of the feature in a store, with these constants."""
        return FeatureSpec(self.feature, self.modality, self.dims, self.shape, self.dtype, constants)

    def open(self, path: Path) -> np.ndarray:
        """Return the memory-mapped array at `path`: [time, *shape], or [1, *shape] for a question.

        Raises `ArrayError` if it cannot be read, or is not of this layout.
        """
        array = open_array(path, kinds="f")
        if not self.fits(array.shape):
            others = ", ".join(layout.feature for layout in LAYOUTS.values() if layout.fits(array.shape))
            hint = f" (that of {others})" if others else ""
            raise ArrayError(f"has shape {list(array.shape)}{hint}, expected {self.describe_shape()}")
        return array

    def fits(self, shape: tuple[int, ...]) -> bool:
        """Return whether a file's `shape` is of this layout."""
        return shape[1:] == self.shape and (shape[0] == 1 if self.is_of_questions else shape[0] > 0)

    def describe_shape(self) -> str:
        """Return the shape of a file for messages, such as "[time, 128]"."""
        return f"[{', '.join(['1' if self.is_of_questions else 'time', *map(str, self.shape)])}]"


LAYOUTS = {
    layout.feature: layout
    for layout in (
        # GeWu-Lab/MUSIC-AVQA, 60 steps each: audio_dir and video_res14x14_dir of its loaders, and two unused features.
        Layout("vggish", "audio", ("channel",), (128,), "float32", ("vggish",)),
        Layout(
            "resnet18-map",
            "visual",
            ("channel", "height", "width"),
            (512, 14, 14),
            "float16",
            ("res18_14x14", "visual_14x14"),
        ),
        Layout("resnet18-pooled", "visual", ("channel",), (512,), "float32", ("res18",)),
        Layout("r2plus1d", "visual", ("channel",), (512,), "float32", ("r2plus1d",)),
        # GeWu-Lab/PSTP-Net: the class token and 49 patches of each second, and the text of each question.
        Layout("clip-vit-b32", "visual", ("token", "channel"), (50, 512), "float16", ("clip_patch-level_vit_b32",)),
        Layout("clip-vit-b32-sentence", "question", ("channel",), (512,), "float32", ("clip_qst",)),
        Layout("clip-vit-b32-words", "question", ("token", "channel"), (77, 512), "float16", ("clip_word",)),
    )
}


def find_layout(name: str) -> Layout:
    """Return the layout of the feature or of the release's folder `name`. Raises `UserError` if there is none."""
    for layout in LAYOUTS.values():
        if name == layout.feature or name in layout.folders:
            return layout
    raise unknown_name("feature", name, LAYOUTS)


def parse_source(text: str) -> tuple[str, Path]:
    """Return (feature, folder) of `FEATURE=DIR`, or of `DIR` if it has the folder's name in a release.

    Raises `UserError` if it names no feature that has a layout.
    """
    name, separator, folder = text.partition("=")
    if separator and re.fullmatch(r"[\w.-]+", name):
        return find_layout(name).feature, Path(folder)
    folder = Path(text).absolute().name
    if not any(folder in layout.folders for layout in LAYOUTS.values()):
        raise UserError(f"--from {text}: no release names a folder {folder!r}: pass --from FEATURE={text}")
    return find_layout(folder).feature, Path(text)
