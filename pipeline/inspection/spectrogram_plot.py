"""A picture of a video's sound, drawn with librosa, above the audio features that a store holds of it."""

from pathlib import Path
from typing import Any

import numpy as np

from pipeline.errors import UserError
from pipeline.extractors.networks.vggish_constants import BANDS, HIGHEST_HZ, LOWEST_HZ
from pipeline.media.decoders.registry import open_decoder
from pipeline.media.timeline import DecodeRequest, Media
from pipeline.store.reader import FeatureStore
from pipeline.store.schema import State

PICTURE_SUFFIXES = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".webp", ".pdf", ".svg")


def plot_spectrogram(video: Path, store: FeatureStore, picture: Path) -> None:
    """Draw the mel spectrogram of `video` and its stored audio features, on one axis of seconds, into `picture`.

    The file's name without its suffix is the id of the video in the store. Raises `UserError` where the store holds no
    such video, the file has no sound that can be decoded, or `picture` is no place or no kind of a picture.
    """
    _check_target(picture)
    if video.stem not in store.rows:
        raise UserError(f"{store.path} holds no video {video.stem!r}: the drawing is of a video of the store")
    media = open_decoder("pyav").decode(video, DecodeRequest(seconds=store.seconds))
    if media.audio.state is not State.COMPLETE:
        why = f" ({media.audio.reason})" if media.audio.reason else ""
        raise UserError(f"{video}: the sound is {media.audio.state.name.lower()}{why}: there is nothing to draw")
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    stored = _stored_features(store, video.stem)
    figure, axes = pyplot.subplots(
        1 + len(stored), 1, figsize=(10, 3 + 2 * len(stored)), sharex=True, layout="constrained"
    )
    first, *others = np.atleast_1d(axes)
    _draw_sound(first, media)
    first.set_title(video.name)
    first.set_xlabel("")
    for axis, (name, values) in zip(others, stored.items(), strict=True):
        axis.imshow(values.T, aspect="auto", origin="lower", extent=(0, len(values), 0, values.shape[1]), cmap="magma")
        axis.set_ylabel(f"{name} (channel)")
    np.atleast_1d(axes)[-1].set_xlabel("seconds")
    figure.savefig(picture, dpi=110)
    pyplot.close(figure)


def _check_target(picture: Path) -> None:
    if not picture.parent.is_dir():
        raise UserError(f"--picture {picture}: the folder {picture.parent} is not there: make it, or name another")
    if picture.suffix.lower() not in PICTURE_SUFFIXES:
        raise UserError(f"--picture {picture}: no such kind is drawn: end its name in {' or '.join(PICTURE_SUFFIXES)}")


def _draw_sound(axis: Any, media: Media) -> None:
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


def _stored_features(store: FeatureStore, video_id: str) -> dict[str, np.ndarray]:
    row = store.rows[video_id]
    names = [name for name in store.feature_names if store.spec(name).modality == "audio"]
    steps = int(store.steps("audio")[row])
    return {name: store.values(name)[row, :steps] for name in names if store.state(name)[row] == State.COMPLETE}
