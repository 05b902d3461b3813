"""Measure how well the synthetic dataset is predicted by guessing and by linear probes on frozen seeded features.

No question-answering model is trained. A dataset is written, `resnet18-map` and `vggish` are extracted with seeded
weights and averaged over space and time; a linear probe is fitted on train and val videos and compared with the
majority on test videos. Criterion: each modality must predict the other, by 10 points more than the majority.
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
from pipeline.synthetic.dataset import SceneSettings, sample_scenes
from pipeline.synthetic.scene import INSTRUMENTS, Scene

PENALTY = 0.05
PROBE_STEPS = 60

Label = Callable[[Scene], int]
COUNTS: dict[str, Label] = {
    "visible instruments": lambda scene: len(scene.visible),
    "audible instruments": lambda scene: len(scene.audible),
    "visible types": lambda scene: len({p.instrument for p in scene.visible}),
    "audible types": lambda scene: len({p.instrument for p in scene.audible}),
    "visible but silent ones": lambda scene: sum(not p.is_audible for p in scene.visible),
}


def main() -> None:
    """Parse the options, write the dataset, print both tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--videos", type=int, default=500)
    parser.add_argument("--seconds", type=int, default=3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int, default=2)
    options = parser.parse_args()
    splits = sample_scenes(options.videos, SceneSettings(options.seconds, options.seed))
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder)
        manifest = synthesize(out, options.videos, options.seconds, options.seed, workers=options.workers)
        features = extract_features(out / "videos", [s for split in splits.values() for s in split], options.seconds)
    print_majorities(manifest)
    print_probes(splits, features)


def extract_features(folder: Path, scenes: Sequence[Scene], seconds: int) -> dict[str, dict[str, np.ndarray]]:
    """Return {"visual" or "audio": {video id: [channel]}} for the clips whose modality is complete."""
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
    """Return [channel]: the mean over time (and space); for audio also the maximum over time."""
    steps = values.astype(np.float32).reshape(len(values), extractor.shape[0], -1).mean(2)
    return steps.mean(0) if extractor.modality == "visual" else np.concatenate([steps.mean(0), steps.max(0)])


def print_majorities(manifest: Manifest) -> None:
    """Print the accuracy on test of the most frequent training answer, per template and per filled question."""
    print(f"{'majority answers, test':<44}{'questions':>10}{'template':>10}{'filled':>10}")
    types = sorted({q.type for q in manifest.questions["test"]})
    is_right = {key: guess_answers(manifest, key) for key in ("template", "text")}
    for name, members in [*((name, {name}) for name in types), ("all", set(types))]:
        rows = [index for index, q in enumerate(manifest.questions["test"]) if q.type in members]
        scores = [100 * float(np.mean([is_right[key][index] for index in rows])) for key in ("template", "text")]
        print(f"{name:<44}{len(rows):>10}{scores[0]:>10.1f}{scores[1]:>10.1f}")


def guess_answers(manifest: Manifest, key: str) -> list[bool]:
    """Return for each test question whether the most frequent train answer of its `key` (or template) is right."""
    counts: dict[str, Counter[str]] = defaultdict(Counter)
    for q in manifest.questions["train"]:
        for name in {q.template, getattr(q, key)}:
            counts[name][q.answer] += 1
    is_right = []
    for q in manifest.questions["test"]:
        answers = counts.get(getattr(q, key)) or counts.get(q.template) or Counter({"": 1})
        is_right.append(answers.most_common(1)[0][0] == q.answer)
    return is_right


def print_probes(splits: dict[str, list[Scene]], features: dict[str, dict[str, np.ndarray]]) -> None:
    """Print majority and probe accuracy per modality: presence of each instrument (their mean), then counts."""
    print(f"\n{'linear probe, test videos':<44}{'majority':>10}{'probe':>10}{'gain':>10}")
    for modality, pooled in features.items():
        for presence in ("visible", "audible"):
            scores = [score_probe(splits, pooled, label_presence(name, presence)) for name in INSTRUMENTS]
            print_row(f"{modality} -> which instrument is {presence}", *np.mean(scores, axis=0))
        for name, label in COUNTS.items():
            print_row(f"{modality} -> number of {name}", *score_probe(splits, pooled, label))


def print_row(name: str, majority: float, probe: float) -> None:
    """Print one line of the table of probes."""
    print(f"{name:<44}{majority:>10.1f}{probe:>10.1f}{probe - majority:>+10.1f}")


def label_presence(instrument: str, presence: str) -> Label:
    """Return the label that is 1 if `instrument` is `visible` (or `audible`) in a scene, else 0."""
    return lambda scene: int(any(p.instrument == instrument for p in getattr(scene, presence)))


def score_probe(splits: dict[str, list[Scene]], pooled: dict[str, np.ndarray], label: Label) -> tuple[float, float]:
    """Return the accuracies of the majority and of the probe on test videos, in percent."""
    train = [scene for scene in splits["train"] + splits["val"] if scene.video_id in pooled]
    test = [scene for scene in splits["test"] if scene.video_id in pooled]
    inputs = [torch.from_numpy(np.stack([pooled[scene.video_id] for scene in part])) for part in (train, test)]
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
