"""Plot the mel spectrogram of a video's audio, with librosa, above its stored audio features."""

from pathlib import Path
from typing import Any

import numpy as np

from pipeline.errors import UserError
from pipeline.extractors.networks.vggish_constants import BANDS, HIGHEST_HZ, LOWEST_HZ
from pipeline.media.decoders.registry import open_decoder
from pipeline.media.timeline import DecodeRequest, Media
from pipeline.store.reader import FeatureStore
from pipeline.store.schema import State

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".webp", ".pdf", ".svg")


def plot_spectrogram(video: Path, store: FeatureStore, image: Path) -> None:
    """Write a plot of `video`'s mel spectrogram and stored audio features, on a common axis of seconds, to `image`.

    The name of the file without its suffix is the video id in the store. Raises `UserError` if the store does not
    contain the video, its audio cannot be decoded, or the folder or format of `image` is invalid.
    """
    if not image.parent.is_dir():
        raise UserError(f"image {image}: folder {image.parent} does not exist: create it, or name another")
    if image.suffix.lower() not in IMAGE_SUFFIXES:
        raise UserError(f"image {image}: unknown image format: end the name in {' or '.join(IMAGE_SUFFIXES)}")
    if video.stem not in store.rows:
        raise UserError(f"store {store.path} does not contain video {video.stem!r}: choose a video of the store")
    media = open_decoder("pyav").decode(video, DecodeRequest(seconds=store.seconds))
    if media.audio.state is not State.COMPLETE:
        why = f" ({media.audio.reason})" if media.audio.reason else ""
        raise UserError(f"{video}: audio is {media.audio.state.name.lower()}{why}: choose a video with audio")
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    stored = _read_features(store, video.stem)
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
