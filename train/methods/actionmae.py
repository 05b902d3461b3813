"""ActionMAE: a masked autoencoder over the tokens of a second puts back the step of the modality that is missing.

It sees one second at a time and nothing of the places in a picture.
Source: Woo et al., "Towards Good Practices for Missing Modality Robust Action Recognition", AAAI 2023.
"""

from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pipeline.store.schema import MODALITIES
from train.data.batch import Batch
from train.data.scenarios import OTHER
from train.interfaces import Backbone, Representation
from train.methods.constant_answer import ConstantAnswer, encode_question
from train.methods.imputation import repeat_question, scatter_rows
from train.methods.losses import UNKNOWN_ANSWER, mean_over_parts, weighted_sum

SLOTS = (*MODALITIES, "question")
START_DEVIATION = 0.02


class TokenAutoencoder(nn.Module):
    """Predict the tokens of all slots (audio, visual, question) of a second from those that are there.

    Learned memory tokens go first; kept tokens carry their slot's embedding into the encoder, and stand in their own
    slot again before the decoder, a learned mask token in the others (the released code restores them by position and
    so into wrong slots, and never adds its embeddings).
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
        """Return {slot: [row, channel]} of all slots for `tokens` {slot: [row, channel]} of those that are there."""
        kept = [slot for slot in SLOTS if slot in tokens]
        rows = len(tokens[kept[0]])
        entering = torch.stack([tokens[slot] + self._code("encoder", slot) for slot in kept], dim=1)
        encoded = self.encoder(torch.cat((self.memory.expand(rows, -1, -1), entering), dim=1))
        memory, found = encoded[:, : len(self.memory)], encoded[:, len(self.memory) :]
        in_slot = dict(zip(kept, found.unbind(1), strict=True))
        placed = torch.stack(
            [in_slot.get(slot, self.mask_token.expand(rows, -1)) + self._code("decoder", slot) for slot in SLOTS], dim=1
        )
        decoded = self.output(self.decoder(torch.cat((memory, placed), dim=1))[:, len(self.memory) :])
        return dict(zip(SLOTS, decoded.unbind(1), strict=True))

    def _code(self, part: str, slot: str) -> Tensor:
        return self.slot_codes[part][SLOTS.index(slot)]


class ActionMae(nn.Module):
    """Answer with predicted steps in the place of those of a missing modality.

    Acts on the steps level. Training draws for every complete question one of complete, audio missing, visual missing
    with equal chances, and predicts what it took away: L = cross-entropy with smoothed labels + mean squared error of
    the predicted steps against the real ones, each brought to zero mean and unit variance. A learned gain and shift
    per channel give predictions back the scale of the backbone's steps.

    Source: sections 3.2-3.4. Differs from the released code: a token is a second's step, not a whole clip; the
    question is a token that is always kept; steps that are there are used as they are, where the release replaces
    them too; the backbone answers, not a sum of one answer layer per modality. What AVST gives as the step of a picture
    is grounded by the sound, where there is one. Losses are means over all questions, also those they leave out.
    """

    selection_scenarios = ("audio-missing", "visual-missing")
    sees = "thirds"
    trains_on = "all"

    def __init__(
        self, backbone: Backbone, *, memories: int = 4, layers: int = 2, heads: int = 8, smoothing: float = 0.1
    ) -> None:
        super().__init__()
        channels = backbone.channels
        self.backbone = backbone
        self.autoencoder = TokenAutoencoder(channels, memories=memories, layers=layers, heads=heads)
        self.gain = nn.ParameterDict({m: nn.Parameter(torch.ones(channels)) for m in MODALITIES})
        self.shift = nn.ParameterDict({m: nn.Parameter(torch.zeros(channels)) for m in MODALITIES})
        self.unseen = ConstantAnswer(backbone)
        self.smoothing = smoothing

    def training_loss(self, batch: Batch) -> dict[str, Tensor]:
        """Return "answer", the backbone's losses, "reconstruction", "unseen" and "total" over what the draw took."""
        real = self._real_steps(batch)
        parts = []
        for rows, part in batch.sample_missing():
            taken = {
                m: (values[rows.to(values.device)], batch.mask(m)[rows.to(values.device)])
                for m, values in real.items()
                if m not in part.present
            }
            parts.append((len(part), self._losses(part, taken)))
        return mean_over_parts(parts)

    def predict(self, batch: Batch) -> Tensor:
        """Return logits [batch, answer]; a missing modality is predicted, with none left the constants answer."""
        if not batch.present:
            return self.unseen.logits(self.backbone, encode_question(self.backbone, batch))
        representation = self.backbone.encode(batch)
        for missing in set(MODALITIES) - set(batch.present):
            representation, _ = self._completed(representation, missing)
        return self.backbone.answer(representation).logits

    def _losses(self, batch: Batch, taken: dict[str, tuple[Tensor, Tensor]]) -> dict[str, Tensor]:
        """Return the losses of a part; `taken` {modality: ([batch, time, channel], mask)}: the steps that it lost."""
        representation = self.backbone.encode(batch)
        losses = {"unseen": self.unseen.loss(self.backbone, representation, batch.answer)}
        if batch.present:
            for missing in set(MODALITIES) - set(batch.present):
                representation, predicted = self._completed(representation, missing)
                if missing in taken:
                    losses["reconstruction"] = _reconstruction(
                        predicted, representation.masks[missing], *taken[missing]
                    )
            answer = self.backbone.answer(representation)
            losses |= {"answer": self._smoothed(answer.logits, batch.answer), **answer.losses}
        return losses | {"total": weighted_sum(losses, {})}

    def _completed(self, representation: Representation, missing: str) -> tuple[Representation, Tensor]:
        """Return the representation with steps in the place of `missing`, and those as predicted [row, channel]."""
        available = OTHER[missing]
        mask = representation.masks[available]
        steps = self.backbone.steps(representation)[available][mask]
        tokens = {available: steps, "question": repeat_question(representation.question, mask)}
        predicted = self.autoencoder(tokens)[missing]
        scaled = predicted * self.gain[missing] + self.shift[missing]
        steps_of = {**representation.steps, missing: scatter_rows(scaled, mask)}
        return replace(representation, steps=steps_of, masks={**representation.masks, missing: mask}), predicted

    @torch.no_grad()
    def _real_steps(self, batch: Batch) -> dict[str, Tensor]:
        """Return {modality: [batch, time, channel]} of a complete batch, nothing of another one."""
        if len(batch.present) < len(MODALITIES):
            return {}
        return self.backbone.steps(self.backbone.encode(batch))

    def _smoothed(self, logits: Tensor, answer: Tensor) -> Tensor:
        known = (answer != UNKNOWN_ANSWER).sum().clamp_min(1)
        loss = F.cross_entropy(
            logits, answer, ignore_index=UNKNOWN_ANSWER, reduction="sum", label_smoothing=self.smoothing
        )
        return loss / known


def _reconstruction(predicted: Tensor, where: Tensor, real: Tensor, there: Tensor) -> Tensor:
    """Return the mean squared error (scalar) of `predicted` [row, channel], the steps in `where` [batch, time].

    Only steps that are `there` count; `real` [batch, time, channel] is brought to zero mean and unit variance.
    """
    both = where & there
    if not both.any():
        return predicted.new_zeros(())
    return F.mse_loss(predicted[both[where]], F.layer_norm(real[both], real.shape[-1:]))
