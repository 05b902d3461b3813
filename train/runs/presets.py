"""The hyper-parameters of each paper and release, and those of the demo.

A preset names a set of `train.runs.config.TrainConfig` settings, with exceptions per backbone and options per method.
Settings passed by the user take precedence over all of them.
"""

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Preset:
    """Settings for all backbones, {backbone: exceptions} and {method: options}; `source`: where they were published."""

    source: str
    settings: dict[str, Any]
    backbones: dict[str, dict[str, Any]] = field(default_factory=dict)
    options: dict[str, dict[str, Any]] = field(default_factory=dict)


# AVST's release divides the learning rate by ten every eight epochs; of its 80 epochs, those after the 24th no longer
# change the weights (its best epoch was the 20th).
_AVST = {
    "seed": 1,
    "batch_size": 64,
    "learning_rate": 1e-4,
    "decay_epochs": 8,
    "decay_factor": 0.1,
    "training": "joint",
    "method": "zero-fill",
}

# PSTP-Net reads all sixty seconds, in segments of five.
_EVERY_SECOND = {"pstp": {"time_steps": 60}}

_DEMO_DIFFUSION = {"steps": 4, "dim": 16, "mults": [1], "stem_kernel": 3, "width": 64, "gradient_steps": 1}

PRESETS = {
    "paper": Preset(
        source="batch size, optimiser and learning rate of the ECCV 2024 paper; epochs, schedule and stages, which it "
        "does not state, follow AVST's release (step 8, effective end near epoch 20), backbone first on complete data",
        settings={
            "epochs": 20,
            "batch_size": 4,
            "learning_rate": 1e-4,
            "decay_epochs": 8,
            "decay_factor": 0.1,
            "training": "staged",
        },
        backbones=_EVERY_SECOND,
    ),
    "released": Preset(
        source="the training script of the ECCV 2024 paper's release: one stage, 50 epochs, step 20",
        settings={
            "epochs": 50,
            "batch_size": 4,
            "learning_rate": 1e-4,
            "decay_epochs": 20,
            "decay_factor": 0.1,
            "training": "joint",
        },
        backbones=_EVERY_SECOND,
    ),
    "avst": Preset(
        source="AVST's release (Li et al., CVPR 2022): batch size 64, learning rate 1e-4, step 8",
        settings={**_AVST, "backbone": "avst", "epochs": 24},
    ),
    "grounding": Preset(
        source="the grounding pre-training of AVST's release: 30 epochs, about 64 matching and 64 mismatching pairs "
        "per batch (here 6 videos of ten steps)",
        settings={**_AVST, "backbone": "avst", "epochs": 30, "batch_size": 6, "objective": "grounding"},
    ),
    "baseline": Preset(
        source="the baseline without spatial grounding in AVST's release: 20 epochs, no match loss",
        settings={**_AVST, "backbone": "baseline", "epochs": 20},
    ),
    "avsd": Preset(
        source="architecture of Schwartz et al., CVPR 2019; optimiser and schedule of AVST, because none are published "
        "for AVSD on MUSIC-AVQA",
        settings={**_AVST, "backbone": "avsd", "epochs": 24},
    ),
    "pano": Preset(
        source="architecture of Yun et al., ICCV 2021, at a third of its depth; optimiser and schedule of AVST, "
        "because none are published for Pano-AVQA on MUSIC-AVQA",
        settings={**_AVST, "backbone": "pano", "epochs": 24},
    ),
    "pano-faithful": Preset(
        source="depth and width of Yun et al., ICCV 2021 (9, 5, 5 and 5 layers of 768), its AdamW, warm-up and batches "
        "of 4 x 32, without its linear decay and BERT weights",
        settings={
            **_AVST,
            "backbone": "pano",
            "seed": 1234,
            "epochs": 10,
            "batch_size": 32,
            "accumulate": 4,
            "learning_rate": 5e-5,
            "warmup_epochs": 1.0,
            "weight_decay": 0.01,
            "backbone_options": {"hidden": 768, "heads": 12, "layers": [9, 5, 5, 5]},
        },
    ),
    "pstp": Preset(
        source="PSTP-Net's release (Li et al., ACM MM 2023): batch size 64, 30 epochs, learning rate 1e-4, step 8, "
        "every second",
        settings={**_AVST, "backbone": "pstp", "epochs": 30, "time_steps": 60},
    ),
    "demo": Preset(
        source="sized to train in minutes on two cores: pooled maps, few slots and diffusion steps",
        settings={
            "epochs": 12,
            "batch_size": 64,
            "learning_rate": 1e-3,
            "decay_epochs": 9,
            "decay_factor": 0.3,
            "training": "joint",
            "time_steps": 3,
            "whiten": True,
            "map_size": 2,
        },
        backbones={
            "avst": {"dropout": 0.3},
            "avsd": {"channels": 256},
            "pano": {"channels": 128, "backbone_options": {"layers": [1, 1, 1, 2]}},
            "pstp": {"channels": 128, "backbone_options": {"segments": 3, "top_segments": 2, "top_patches": 16}},
        },
        options={
            "rmm": {"slots": 16},
            "avr": _DEMO_DIFFUSION,
            "rmm-avr": {"slots": 16, **_DEMO_DIFFUSION},
        },
    ),
}
