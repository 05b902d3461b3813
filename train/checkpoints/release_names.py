"""The tensor names of each official release, mapped to ours and back.

Source: the state dicts of the released networks: GeWu-Lab/MUSIC-AVQA (AVST, its baseline and its grounding
pre-training), VisualAIKHU/Missing-AVQA (RMM and AVR on AVST), GeWu-Lab/PSTP-Net.
"""

import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatch
from typing import TYPE_CHECKING, Any

from pipeline.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor, nn

Names = tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class TrainingFile:
    """An official training file. Its releases number words and answers by their first appearance in it.

    `paths`: its last folder and name in the official repositories. `git_id`: the id of its content in git.
    """

    paths: tuple[str, ...]
    git_id: str


FIRST_FILE = TrainingFile(("json/avqa-train.json",), "d1da1c6da7ea5a523b93d0dc73444f3b69967528")
UPDATED_FILE = TrainingFile(
    ("json_update/avqa-train.json", "split_que_id/music_avqa_train.json"), "dfb9233f598bb27ce6d2783ca377131a6ae2be2c"
)


@dataclass(frozen=True)
class Release:
    """One official release.

    `settings`: of `train.runs.config.make_config`. `sizes`: of `train.backbones.sizes.ModelSizes`, except the
    vocabulary's. `training_files`: those that number its words and answers; several if it has neither. `prefixes`:
    (official prefix, ours), and `substitutions`: (pattern, replacement) in the rest of the name, which `inverse`
    reverts. `unused`: patterns of official tensors that no forward pass reads; `required`: those of them that
    distinguish the release from another. `incompatible`: patterns of official tensors of other settings, whose networks
    compute different answers. `fresh`: patterns of our tensors that the release does not have. `words`, `answers`: our
    tensors whose rows are words or answers. `read_options`: returns the method's options, read from the tensors.
    `make_unused`: returns those of the unused tensors, of a method and its official tensors, from which an import
    recognises the release and its options.
    """

    source: str
    settings: dict[str, Any]
    sizes: dict[str, Any]
    training_files: tuple[TrainingFile, ...]
    prefixes: Names
    unused: tuple[str, ...]
    fresh: tuple[str, ...]
    words: tuple[str, ...]
    answers: tuple[str, ...]
    substitutions: Names = ()
    inverse: Names = ()
    read_options: Callable[["Mapping[str, Tensor]"], dict[str, Any]] = field(default=lambda official: {})
    make_unused: Callable[["nn.Module", "Mapping[str, Tensor]"], "dict[str, Tensor]"] = field(
        default=lambda method, official: {}
    )
    required: tuple[str, ...] = ()
    incompatible: tuple[str, ...] = ()

    def describes(self, names: Collection[str]) -> bool:
        """Return whether a checkpoint with tensors of these `names` is one of this release: no part more or less."""
        parts = (*(f"{official}*" for official, _ in self.prefixes), *self.required)
        return all(map(self.knows, names)) and all(any(fnmatch(name, part) for name in names) for part in parts)

    def knows(self, name: str) -> bool:
        """Return whether the release has an official tensor of this name, in any of its settings."""
        return self.rename(name) is not None or matches(name, (*self.unused, *self.incompatible))

    def rename(self, name: str) -> str | None:
        """Return our name of the official tensor `name`, or None if it has none."""
        for official, ours in self.prefixes:
            if name.startswith(official):
                rest = name.removeprefix(official)
                for pattern, replacement in self.substitutions:
                    rest = re.sub(pattern, replacement, rest)
                return ours + rest
        return None

    def restore(self, name: str) -> str | None:
        """Return the official name of our tensor `name`, or None if the release has none."""
        for official, ours in self.prefixes:
            if name.startswith(ours):
                rest = name.removeprefix(ours)
                for pattern, replacement in self.inverse:
                    rest = re.sub(pattern, replacement, rest)
                return official + rest
        return None


def matches(name: str, patterns: tuple[str, ...]) -> bool:
    """Return whether the tensor's name matches one of the patterns."""
    return any(fnmatch(name, pattern) for pattern in patterns)


_AUDIO_STEM: Names = (("fc_a1.", "backbone.audio_stem.layers.0."), ("fc_a2.", "backbone.audio_stem.layers.2."))

_GROUNDING: Names = (
    *_AUDIO_STEM,
    ("fc_gl.", "backbone.spatial_grounding.output."),
    *((f"fc{1 + i}.", f"backbone.match_head.layers.{2 * i}.") for i in range(4)),
)

_TEMPORAL: Names = tuple(
    pair
    for modality, first in (("visual", 1), ("audio", 2))
    for pair in (
        (f"attn_{modality[0]}.", f"backbone.temporal_grounding.{modality}.attention."),
        (f"linear{first}1.", f"backbone.temporal_grounding.{modality}.feed_forward.0."),
        (f"linear{first}2.", f"backbone.temporal_grounding.{modality}.feed_forward.3."),
        (f"norm{first}.", f"backbone.temporal_grounding.{modality}.norm."),
    )
)

_ANSWER: Names = (
    *_TEMPORAL,
    ("question_encoder.word2vec.", "backbone.question_encoder.embedding."),
    ("question_encoder.lstm.", "backbone.question_encoder.lstm."),
    ("question_encoder.fc.", "backbone.question_encoder.output."),
    ("fc_fusion.", "backbone.fusion."),
    ("fc_ans.", "backbone.classifier."),
)

_AVST: Names = (*_GROUNDING, *_ANSWER)

_ANSWERING = ("question_encoder", "temporal_grounding", "fusion", "classifier")
_BASELINE_UNUSED = ("visual_net.*", "fc_v.*", "fc_st.*", "fc.*", "fc_aq.*", "fc_vq.*", "norm3.*")
_PURE = ("fc_a1_pure.*", "fc_a2_pure.*")
_AVST_UNUSED = (*_BASELINE_UNUSED, *_PURE)
_AVST_SIZES = {"input_shapes": {"vggish": (128,), "resnet18-map": (512, 14, 14)}}
_AVST_WORDS = ("backbone.question_encoder.embedding.weight",)
_ANSWERS = ("backbone.classifier.weight", "backbone.classifier.bias")
_FRESH = ("backbone.input_whitening.*", "filling.*")

_UNET: Names = (
    ("unet.init_conv.", "refiner.diffusion.network.stem."),
    ("unet.time_mlp.", "refiner.diffusion.network.embed_step."),
    ("unet.downs.", "refiner.diffusion.network.down."),
    ("unet.ups.", "refiner.diffusion.network.up."),
    ("unet.mid_block1.", "refiner.diffusion.network.middle_before."),
    ("unet.mid_attn.", "refiner.diffusion.network.middle_attention."),
    ("unet.mid_block2.", "refiner.diffusion.network.middle_after."),
    ("unet.final_res_block.", "refiner.diffusion.network.last_block."),
    ("unet.final_conv.", "refiner.diffusion.network.head."),
)

# Within a level of the U-Net, 0 and 1 are blocks, 2 is the attention, 3 the change of resolution.
_UNET_SUBSTITUTIONS: Names = (
    *((rf"^(\d)\.{i}\.", rf"\1.{part}.") for i, part in enumerate(("block1", "block2", "attention", "change"))),
    (r"block(\d)\.proj\.", r"conv\1."),
    (r"block(\d)\.norm\.", r"norm\1."),
    (r"mlp\.", "modulation."),
    (r"res_conv\.", "shortcut."),
    (r"mem_kv$", "memory"),
    (r"to_qkv\.", "qkv."),
    (r"to_out\.", "out."),
    (r"\.g$", ".gain"),
)

_UNET_INVERSE: Names = (
    *((rf"^(\d)\.{part}\.", rf"\1.{i}.") for i, part in enumerate(("block1", "block2", "attention", "change"))),
    (r"\bconv(\d)\.", r"block\1.proj."),
    (r"\bnorm(\d)\.", r"block\1.norm."),
    (r"\bmodulation\.", "mlp."),
    (r"\bshortcut\.", "res_conv."),
    (r"\bmemory$", "mem_kv"),
    (r"\bqkv\.", "to_qkv."),
    (r"\bout\.", "to_out."),
    (r"\.gain$", ".g"),
)


def _make_pure(method: "nn.Module", official: "Mapping[str, Tensor]") -> "dict[str, Tensor]":
    """Return AVST's second audio stem, which it never reads, as a copy of the first."""
    stem = {name: values for name, values in official.items() if name.startswith(("fc_a1.", "fc_a2."))}
    return {name.replace(".", "_pure.", 1): values.clone() for name, values in stem.items()}


def _make_schedule(method: "nn.Module", official: "Mapping[str, Tensor]") -> "dict[str, Tensor]":
    """Return the diffusion schedule, whose length is the number of steps."""
    return {"diffusion.betas": method.get_buffer("refiner.diffusion.betas").clone()}


def _read_missing_avqa(official: "Mapping[str, Tensor]") -> dict[str, Any]:
    names = {"slots": "memory_network.question_memory", "steps": "diffusion.betas"}
    tensors = {option: (name, official[name]) for option, name in names.items() if name in official}
    for name, values in tensors.values():
        if not values.ndim or not len(values):
            raise UserError(f"checkpoint tensor {name} has shape {list(values.shape)}: at least one row expected")
    return {option: len(values) for option, (_, values) in tensors.items()}


RELEASES = {
    "avst": Release(
        source="AVST (GeWu-Lab/MUSIC-AVQA, net_grd_avst)",
        settings={"preset": "avst"},
        sizes=_AVST_SIZES,
        training_files=(FIRST_FILE,),
        prefixes=_AVST,
        unused=_AVST_UNUSED,
        make_unused=_make_pure,
        required=_PURE,
        fresh=_FRESH,
        words=_AVST_WORDS,
        answers=_ANSWERS,
    ),
    "baseline": Release(
        source="AVST's baseline without spatial grounding (GeWu-Lab/MUSIC-AVQA, net_grd_baseline)",
        settings={"preset": "baseline"},
        sizes=_AVST_SIZES,
        training_files=(FIRST_FILE,),
        prefixes=(*_AUDIO_STEM, *_ANSWER),
        # It has AVST's grounding and match head, which its forward pass does not read.
        unused=(*_BASELINE_UNUSED, "fc_gl.*", "fc[1-4].*"),
        fresh=_FRESH,
        words=_AVST_WORDS,
        answers=_ANSWERS,
    ),
    "grounding": Release(
        source="the grounding pre-training of AVST (GeWu-Lab/MUSIC-AVQA, grounding_gen)",
        settings={"preset": "grounding"},
        sizes=_AVST_SIZES,
        training_files=(FIRST_FILE, UPDATED_FILE),
        prefixes=_GROUNDING,
        unused=("visual_net.*",),
        # The pre-trained network has no question and answer layers.
        fresh=(*_FRESH, *(f"backbone.{part}.*" for part in _ANSWERING)),
        words=(),
        answers=(),
    ),
    "missing-avqa": Release(
        source="Missing-AVQA (VisualAIKHU/Missing-AVQA)",
        settings={"preset": "released", "backbone": "avst", "method": "rmm-avr", "variant": "released"},
        sizes=_AVST_SIZES,
        training_files=(FIRST_FILE,),
        prefixes=(
            *_AVST,
            *_UNET,
            ("kr.", "refiner.join."),
            ("kr2.", "refiner.read."),
            ("memory_network.question_memory", "memory.slots.question"),
            ("memory_network.audio_memory", "memory.slots.audio"),
            ("memory_network.visual_memory", "memory.slots.visual"),
        ),
        # The diffusion contains a second copy of the U-Net, and a schedule that we compute.
        unused=(*_AVST_UNUSED, "conv_sm.*", "diffusion.*"),
        fresh=(*_FRESH, "unseen.*", "memory.moments.*", "memory.placed", "refiner.moments.*"),
        words=_AVST_WORDS,
        answers=_ANSWERS,
        substitutions=_UNET_SUBSTITUTIONS,
        inverse=_UNET_INVERSE,
        read_options=_read_missing_avqa,
        make_unused=_make_schedule,
    ),
    "pstp": Release(
        source="PSTP-Net (GeWu-Lab/PSTP-Net)",
        settings={"preset": "pstp", "variant": "released"},
        sizes={
            "input_shapes": {"vggish": (128,), "clip-vit-b32": (50, 512)},
            "question_shapes": {"clip-vit-b32-sentence": (512,), "clip-vit-b32-words": (77, 512)},
            "time_steps": 60,
        },
        training_files=(UPDATED_FILE,),
        prefixes=(
            ("fc_a.", "backbone.audio_stem."),
            ("fc_v.", "backbone.visual_stem."),
            ("fc_q.", "backbone.question_stem."),
            ("fc_word.", "backbone.word_stem."),
            ("GlobalSelf_Module.layers.0.self_attn.", "backbone.fusion.0.self_attention."),
            ("GlobalSelf_Module.layers.0.linear1.", "backbone.fusion.0.feed_forward.0."),
            ("GlobalSelf_Module.layers.0.linear2.", "backbone.fusion.0.feed_forward.3."),
            ("GlobalSelf_Module.layers.0.norm1.", "backbone.fusion.0.attention_norm."),
            ("GlobalSelf_Module.layers.0.norm2.", "backbone.fusion.0.output_norm."),
            ("fc_answer_pred.", "backbone.classifier."),
        ),
        # The release discards the outputs of its selection and perception modules, so they were never trained.
        unused=(
            "TempSegsSelect_Module.*",
            "SpatRegsSelect_Module.*",
            "AudioGuidedVisualAttn.*",
            "GlobalLocal_Module.*",
            "GlobalSelf_Module.layers.0.cm_attn.*",
            "GlobalSelf_Module.norm2.*",
            "SM_fusion.*",
            "audio_fusion.*",
            "visual_fusion.*",
            "fc_*",
            "question_encoder.*",
        ),
        fresh=_FRESH,
        words=(),
        answers=_ANSWERS,
        # An option of the release stacks several layers, the last of which answers.
        incompatible=("GlobalSelf_Module.layers.[1-9]*",),
    ),
}
