"""Plot the mel spectrogram of a video's audio, with librosa, above its stored audio features."""

import os
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.errors import UserError
from pipeline.extractors.networks.vggish_constants import BANDS, HIGHEST_HZ, LOWEST_HZ
from pipeline.manifests.media_files import hash_files
from pipeline.manifests.media_names import split_suffix
from pipeline.media.decoders.registry import open_decoder
from pipeline.media.timeline import DecodeRequest, Media
from pipeline.store.reader import FeatureStore
from pipeline.store.schema import State

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".webp", ".pdf", ".svg")


def plot_spectrogram(video: Path, store: FeatureStore, image: Path) -> None:
    """Write a plot of `video`'s mel spectrogram and stored audio features, on a common axis of seconds, to `image`.

    Raises `UserError` if the store does not contain the video, its audio cannot be decoded, or the folder or format of
    `image` is invalid.
    """
    if not image.parent.is_dir():
        raise UserError(f"image {image}: folder {image.parent} does not exist: create it, or name another")
    if image.suffix.lower() not in IMAGE_SUFFIXES:
        raise UserError(f"image {image}: unknown image format: end the name in {' or '.join(IMAGE_SUFFIXES)}")
    video_id = _find_id(video, store)
    media = open_decoder("pyav").decode(video, DecodeRequest(seconds=store.seconds))
    if media.audio.state is not State.COMPLETE:
        why = f" ({media.audio.reason})" if media.audio.reason else ""
        raise UserError(f"{video}: audio is {media.audio.state.name.lower()}{why}: choose a video with audio")
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    stored = _read_features(store, video_id)
    figure, axes = pyplot.subplots(
        1 + len(stored), 1, figsize=(10, 3 + 2 * len(stored)), sharex=True, layout="constrained"
    )
    first, *others = np.atleast_1d(axes)
    _plot_mel(first, media)
    first.set_title(video.name)
    first.set_xlabel("")
    for axis, (name, values) in zip(others, stored.items(), strict=True):
        axis.imshow(values.T, aspect="auto", origin="lower", extent=(0, len(values), 0, values.shape[1]), cmap="magma")
        axis.set_ylabel(f"{name} (channel)")
    np.atleast_1d(axes)[-1].set_xlabel("seconds")
    figure.savefig(image, dpi=110)
    pyplot.close(figure)


def _find_id(video: Path, store: FeatureStore) -> str:
    """Return the id of a video in the store: as manifests name its path, relative to one of the folders above it.

    If several ids fit, it is the one of the same SHA-256. Raises `UserError` if no id fits.
    """
    parts = Path(os.path.abspath(video)).parts
    names = ["__".join(parts[start:]) for start in range(1, len(parts))]
    found = [name for full in names for name in (split_suffix(full)[0], full) if name in store.rows]
    if not found:
        raise UserError(f"store {store.path} does not contain video {video.stem!r}: choose a video of the store")
    if len(found) > 1:
        digests, _ = hash_files(video.parent, [video.name])
        sources = store.source_sha256()
        found = [name for name in found if sources[store.rows[name]] == digests.get(video.name)] or found
    return found[0]


def _plot_mel(axis: Any, media: Media) -> None:
    from librosa import power_to_db
    from librosa.display import specshow
    from librosa.feature import melspectrogram

    power = melspectrogram(y=media.waveform, sr=media.sample_rate_hz, n_mels=BANDS, fmin=LOWEST_HZ, fmax=HIGHEST_HZ)
    decibels = power_to_db(power, ref=np.max)
    specshow(
        decibels,
        sr=media.sample_rate_hz,
        x_axis="time",
        y_axis="mel",
        fmin=LOWEST_HZ,
        fmax=HIGHEST_HZ,
        ax=axis,
    )


def _read_features(store: FeatureStore, video_id: str) -> dict[str, np.ndarray]:
    row = store.rows[video_id]
    names = [name for name in store.feature_names if store.spec(name).modality == "audio"]
    steps = int(store.steps("audio")[row])
    return {name: store.values(name)[row, :steps] for name in names if store.state(name)[row] == State.COMPLETE}
