"""Measure what the synthetic dataset gives away: to guessing, and to linear probes on seeded frozen features.

It trains no answering model. It writes a dataset, extracts `resnet18-map` and `vggish` with seeded weights, averages
them over space and time, fits a linear probe on train and val videos and scores it on test videos, beside the
majority. Source of the criterion: one modality must tell of the other, by 10 points over the majority.
"""

import argparse
import tempfile
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from torch.nn import functional

from pipeline.extractors.interface import FeatureExtractor
from pipeline.extractors.registry import make_extractor
from pipeline.extractors.weights import WeightsSource
from pipeline.manifests.manifest import Manifest
from pipeline.media.decoders.registry import open_decoder
from pipeline.media.timeline import DecodeRequest
from pipeline.store.schema import State
from pipeline.synthetic import synthesize
from pipeline.synthetic.dataset import draw_scenes
from pipeline.synthetic.scene import INSTRUMENTS, Scene

PENALTY = 0.05
PROBE_STEPS = 60

Label = Callable[[Scene], int]
COUNTS: dict[str, Label] = {
    "instruments seen": lambda scene: len(scene.seen),
    "instruments heard": lambda scene: len(scene.heard),
    "types seen": lambda scene: len({p.instrument for p in scene.seen}),
    "types heard": lambda scene: len({p.instrument for p in scene.heard}),
    "seen but silent": lambda scene: sum(not p.is_heard for p in scene.seen),
}


def main() -> None:
    """Parse the options, make the dataset, print both tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--videos", type=int, default=500)
    parser.add_argument("--seconds", type=int, default=3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int, default=2)
    options = parser.parse_args()
    splits = draw_scenes(options.videos, options.seconds, options.seed)
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder)
        manifest = synthesize(out, options.videos, options.seconds, options.seed, workers=options.workers)
        features = extract_features(out / "videos", [s for split in splits.values() for s in split], options.seconds)
    print_floors(manifest)
    print_probes(splits, features)


def extract_features(folder: Path, scenes: Sequence[Scene], seconds: int) -> dict[str, dict[str, np.ndarray]]:
    """Return {"visual" or "audio": {video id: [channel]}} of the clips whose modality is complete."""
    visual, audio = make_extractor("resnet18-map"), make_extractor("vggish")
    for extractor in (visual, audio):
        extractor.load(WeightsSource("seeded"), "cpu")
    assert visual.frame_size is not None
    request = DecodeRequest(seconds=seconds, frame_sizes=(visual.frame_size,))
    features: dict[str, dict[str, np.ndarray]] = {"visual": {}, "audio": {}}
    decoder = open_decoder("pyav")
    for scene in scenes:
        media = decoder.decode(folder / f"{scene.video_id}.mp4", request)
        if media.visual.state == State.COMPLETE:
            features["visual"][scene.video_id] = pool_steps(visual, visual.extract(media))
        if media.audio.state == State.COMPLETE:
            features["audio"][scene.video_id] = pool_steps(audio, audio.extract(media))
    return features


def pool_steps(extractor: FeatureExtractor, values: np.ndarray) -> np.ndarray:
    """Return [channel]: the mean over time (and space), and for sound the largest value over time beside it."""
    steps = values.astype(np.float32).reshape(len(values), extractor.shape[0], -1).mean(2)
    return steps.mean(0) if extractor.modality == "visual" else np.concatenate([steps.mean(0), steps.max(0)])


def print_floors(manifest: Manifest) -> None:
    """Print how often guessing from the question alone is right on test, learnt on train."""
    print(f"{'guess floors, test':<44}{'questions':>10}{'template':>10}{'filled':>10}")
    types = sorted({q.type for q in manifest.questions["test"]})
    guesses = {key: guess_answers(manifest, key) for key in ("template", "text")}
    for name, members in [*((name, {name}) for name in types), ("all", set(types))]:
        rows = [index for index, q in enumerate(manifest.questions["test"]) if q.type in members]
        scores = [100 * float(np.mean([guesses[key][index] for index in rows])) for key in ("template", "text")]
        print(f"{name:<44}{len(rows):>10}{scores[0]:>10.1f}{scores[1]:>10.1f}")


def guess_answers(manifest: Manifest, key: str) -> list[bool]:
    """Return for each test question whether the most frequent train answer of its `key` (else template) is right."""
    counts: dict[str, Counter[str]] = defaultdict(Counter)
    for q in manifest.questions["train"]:
        for name in {q.template, getattr(q, key)}:
            counts[name][q.answer] += 1
    guessed = []
    for q in manifest.questions["test"]:
        known = counts.get(getattr(q, key)) or counts.get(q.template) or Counter({"": 1})
        guessed.append(known.most_common(1)[0][0] == q.answer)
    return guessed


def print_probes(splits: dict[str, list[Scene]], features: dict[str, dict[str, np.ndarray]]) -> None:
    """Print majority and probe accuracy per modality: presence (mean over instruments), then counts."""
    print(f"\n{'linear probe, test videos':<44}{'majority':>10}{'probe':>10}{'gain':>10}")
    for modality, found in features.items():
        for sense in ("seen", "heard"):
            scores = [score_probe(splits, found, is_there(name, sense)) for name in INSTRUMENTS]
            print_row(f"{modality} -> which instrument is {sense}", *np.mean(scores, axis=0))
        for name, label in COUNTS.items():
            print_row(f"{modality} -> number of {name}", *score_probe(splits, found, label))


def print_row(name: str, majority: float, probe: float) -> None:
    """Print one line of the probes' table."""
    print(f"{name:<44}{majority:>10.1f}{probe:>10.1f}{probe - majority:>+10.1f}")


def is_there(instrument: str, sense: str) -> Label:
    """Return the label 1 where `instrument` is `seen` (or `heard`) in a scene, else 0."""
    return lambda scene: int(any(p.instrument == instrument for p in getattr(scene, sense)))


def score_probe(splits: dict[str, list[Scene]], found: dict[str, np.ndarray], label: Label) -> tuple[float, float]:
    """Return the accuracy of the majority and of the probe on test videos, in percent."""
    train = [scene for scene in splits["train"] + splits["val"] if scene.video_id in found]
    test = [scene for scene in splits["test"] if scene.video_id in found]
    inputs = [torch.from_numpy(np.stack([found[scene.video_id] for scene in part])) for part in (train, test)]
    labels = [torch.tensor([label(scene) for scene in part]) for part in (train, test)]
    mean, std = inputs[0].mean(0), inputs[0].std(0).clamp(min=1e-6)
    weights = fit_probe((inputs[0] - mean) / std, labels[0])
    predicted = predict((inputs[1] - mean) / std, weights).argmax(1)
    majority = labels[0].mode().values
    return 100 * float((labels[1] == majority).float().mean()), 100 * float((labels[1] == predicted).float().mean())


def fit_probe(inputs: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Return the weights [channel + 1, class] of a multinomial logistic regression with an L2 penalty."""
    weights = torch.zeros(inputs.shape[1] + 1, int(labels.max()) + 1, requires_grad=True)
    optimiser = torch.optim.LBFGS([weights], max_iter=PROBE_STEPS, line_search_fn="strong_wolfe")

    def closure() -> torch.Tensor:
        optimiser.zero_grad()
        loss = functional.cross_entropy(predict(inputs, weights), labels) + PENALTY * weights[:-1].square().sum()
        loss.backward()
        return loss

    optimiser.step(closure)
    return weights.detach()


def predict(inputs: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """Return logits [video, class] of inputs [video, channel]."""
    return inputs @ weights[:-1] + weights[-1]


if __name__ == "__main__":
    main()
