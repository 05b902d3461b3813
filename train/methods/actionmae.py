"""ActionMAE: a masked autoencoder over the tokens of a time step predicts the step of the missing modality.

It processes one step at a time, and its visual token has no spatial dimensions.
Source: Woo et al., "Towards Good Practices for Missing Modality Robust Action Recognition", AAAI 2023.
"""

from dataclasses import replace
from typing import Annotated

import torch
import torch.nn.functional as F
from pydantic import Field, PositiveInt
from torch import Tensor, nn

from pipeline.store.schema import MODALITIES
from train.data.batch import Batch
from train.data.scenarios import OTHER
from train.interfaces import Backbone, Representation
from train.methods.both_missing import ConstantAnswer
from train.methods.exposure import Exposure, conditions, mean_answer_losses
from train.methods.imputation import AvailableSteps
from train.methods.losses import UNKNOWN_ANSWER

SLOTS = (*MODALITIES, "question")
START_DEVIATION = 0.02


class TokenAutoencoder(nn.Module):
    """Predict the tokens of all slots (audio, visual, question) of a time step from the available ones.

    The encoder reads learned memory tokens and the available tokens, each with the embedding of its slot. The decoder
    reads the encoded tokens in their own slots and a learned mask token in the other slots (the released code restores
    tokens by position, which puts them into wrong slots, and never adds its embeddings).
    """

    def __init__(self, channels: int, *, memories: int = 4, layers: int = 2, heads: int = 8) -> None:
        super().__init__()
        self.memory = nn.Parameter(START_DEVIATION * torch.randn(memories, channels))
        self.mask_token = nn.Parameter(START_DEVIATION * torch.randn(channels))
        self.slot_codes = nn.ParameterDict(
            {part: nn.Parameter(START_DEVIATION * torch.randn(len(SLOTS), channels)) for part in ("encoder", "decoder")}
        )
        self.encoder, self.decoder = (
            nn.TransformerEncoder(
                nn.TransformerEncoderLayer(
                    channels, heads, 4 * channels, dropout=0.0, activation="gelu", batch_first=True, norm_first=True
                ),
                layers,
                norm=nn.LayerNorm(channels),
                enable_nested_tensor=False,
            )
            for _ in range(2)
        )
        self.output = nn.Linear(channels, channels)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)

    def forward(self, tokens: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return {slot: [row, channel]} for all slots, predicted from the available `tokens` {slot: [row, channel]}."""
        available = [slot for slot in SLOTS if slot in tokens]
        rows = len(tokens[available[0]])
        inputs = torch.stack([tokens[slot] + self._code("encoder", slot) for slot in available], dim=1)
        encoded = self.encoder(torch.cat((self.memory.expand(rows, -1, -1), inputs), dim=1))
        memory, encoded_tokens = encoded[:, : len(self.memory)], encoded[:, len(self.memory) :]
        token_of = dict(zip(available, encoded_tokens.unbind(1), strict=True))
        all_slots = torch.stack(
            [token_of.get(slot, self.mask_token.expand(rows, -1)) + self._code("decoder", slot) for slot in SLOTS],
            dim=1,
        )
        decoded = self.output(self.decoder(torch.cat((memory, all_slots), dim=1))[:, len(self.memory) :])
        return dict(zip(SLOTS, decoded.unbind(1), strict=True))

    def _code(self, part: str, slot: str) -> Tensor:
        return self.slot_codes[part][SLOTS.index(slot)]


class ActionMae(nn.Module):
    """Impute the steps of a missing modality from the other modality and the question with a masked autoencoder.

    Acts on the steps level; the backbone answers. Training answers each complete question under the conditions of
    `exposure` and predicts the steps that were removed: L = cross-entropy with smoothed labels ("answer") + the
    backbone's own losses + mean squared error of the predicted steps against the real ones, which are normalised to
    zero mean and unit variance ("reconstruction", the mean over answers with removed steps) + "unseen", which trains
    the constants that answer if both modalities are missing. A learned gain and shift per channel map predictions to
    the scale of the backbone's steps.

    Source: sections 3.2-3.4. Differs from the released code: a token is one time step, not a whole clip; the question
    is a token that is never masked; available steps are used as they are, while the release replaces them too; the
    backbone answers, not a sum of one answer layer per modality. AVST's visual steps are grounded by the audio if it is
    available.
    """

    selection_scenarios = ("audio-missing", "visual-missing")
    trains_on = "all"

    def __init__(
        self,
        backbone: Backbone,
        *,
        memories: PositiveInt = 4,
        layers: PositiveInt = 2,
        heads: PositiveInt = 8,
        smoothing: Annotated[float, Field(ge=0, lt=1)] = 0.1,
        exposure: Exposure = "sampled",
    ) -> None:
        super().__init__()
        channels = backbone.channels
        self.backbone, self.sees = backbone, exposure
        self.autoencoder = TokenAutoencoder(channels, memories=memories, layers=layers, heads=heads)
        self.gain = nn.ParameterDict({m: nn.Parameter(torch.ones(channels)) for m in MODALITIES})
        self.shift = nn.ParameterDict({m: nn.Parameter(torch.zeros(channels)) for m in MODALITIES})
        self.unseen = ConstantAnswer(backbone)
        self.smoothing = smoothing

    def training_loss(self, batch: Batch) -> dict[str, Tensor]:
        """Return "answer", the backbone's own losses, "reconstruction", "unseen" and "total"."""
        real = self._real_steps(batch)
        parts = []
        for rows, part in conditions(batch, self.sees):
            removed = {
                m: (values[rows.to(values.device)], batch.mask(m)[rows.to(values.device)])
                for m, values in real.items()
                if m not in part.available
            }
            parts.append((len(part), self._losses(part, removed)))
        return mean_answer_losses(parts, len(batch), conditional=("reconstruction",))

    def predict(self, batch: Batch) -> Tensor:
        """Return logits [batch, answer]; a missing modality is imputed; with both missing, the constants answer."""
        if not batch.available:
            return self.unseen.predict(self.backbone, batch)
        representation = self.backbone.encode(batch)
        for missing in set(MODALITIES) - set(batch.available):
            representation, _ = self._completed(representation, missing)
        return self.backbone.answer(representation).logits

    def _losses(self, batch: Batch, removed: dict[str, tuple[Tensor, Tensor]]) -> dict[str, Tensor]:
        """Return the losses of a part; `removed`: {modality: (real steps [batch, time, channel], their mask)}."""
        representation = self.backbone.encode(batch)
        losses = {"unseen": self.unseen.loss(self.backbone, representation, batch.answer)}
        if batch.available:
            for missing in set(MODALITIES) - set(batch.available):
                representation, predicted = self._completed(representation, missing)
                if missing in removed:
                    losses["reconstruction"] = _reconstruction_loss(
                        predicted, removed[missing][0], representation.masks[missing] & removed[missing][1]
                    )
            answer = self.backbone.answer(representation)
            losses |= {"answer": self._smoothed_cross_entropy(answer.logits, batch.answer), **answer.losses}
        return losses

    def _completed(self, representation: Representation, missing: str) -> tuple[Representation, Tensor]:
        """Return the representation with imputed steps of `missing`, and their unscaled predictions, [batch, ...]."""
        available = OTHER[missing]
        mask = representation.masks[available]
        rows = AvailableSteps(mask)
        steps = rows.take(self.backbone.steps(representation)[available])
        tokens = {available: steps, "question": rows.repeat(representation.question)}
        predicted = self.autoencoder(tokens)[missing]
        scaled = predicted * self.gain[missing] + self.shift[missing]
        steps_of = {**representation.steps, missing: rows.put(scaled)}
        masks = {**representation.masks, missing: mask}
        return replace(representation, steps=steps_of, masks=masks), rows.put(predicted)

    @torch.no_grad()
    def _real_steps(self, batch: Batch) -> dict[str, Tensor]:
        """Return the backbone's steps {modality: [batch, time, channel]} of a complete batch, {} of any other."""
        if len(batch.available) < len(MODALITIES):
            return {}
        return self.backbone.steps(self.backbone.encode(batch))

    def _smoothed_cross_entropy(self, logits: Tensor, answer: Tensor) -> Tensor:
        known = (answer != UNKNOWN_ANSWER).sum().clamp_min(1)
        loss = F.cross_entropy(
            logits, answer, ignore_index=UNKNOWN_ANSWER, reduction="sum", label_smoothing=self.smoothing
        )
        return loss / known


def _reconstruction_loss(predicted: Tensor, real: Tensor, mask: Tensor) -> Tensor:
    """Return the mean squared error (scalar) where `mask` [batch, time] is True.

    `predicted` and `real` are [batch, time, channel]; `real` is normalised to zero mean and unit variance.
    """
    steps = AvailableSteps(mask)
    if not len(steps):
        return predicted.new_zeros(())
    return F.mse_loss(steps.take(predicted), F.layer_norm(steps.take(real), real.shape[-1:]))
