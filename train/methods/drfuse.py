"""DrFuse: attention over a shared and a distinct vector of each available modality.

Nothing is imputed: with a missing modality the attention has fewer vectors.
Source: Yao et al., "DrFuse: Learning Disentangled Representation for Clinical Multi-Modal Fusion with Missing Modality
and Modal Inconsistency", AAAI 2024.
"""

from itertools import combinations, pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pipeline.store.schema import MODALITIES
from train.data.batch import Batch
from train.interfaces import Backbone, Representation
from train.methods.both_missing import encode_question
from train.methods.exposure import Exposure, exposed_losses
from train.methods.losses import UNKNOWN_ANSWER, cross_entropy

SHARED = "shared"
# Losses of one modality, or of both, are averaged over the answers that have them.
CONDITIONAL = ("aligned", *(f"{m}_{loss}" for m in MODALITIES for loss in ("answer", "disentangled")))
SMALLEST_PROBABILITY = 1e-6


class DrFuse(nn.Module):
    """Answer from the attention-weighted mean of each available modality's distinct vector and a shared vector.

    Acts on the pooled level; its own answer layer replaces the backbone's. The shared vectors of both modalities are
    fused to the logit of their mean probability; the query is the question. Training answers each complete question
    under the conditions of `exposure`: L = cross-entropy of the answer ("answer") and of one head per vector
    ("<vector>_answer") + Jensen-Shannon divergence of the two shared vectors ("aligned") + |cosine| of the shared and
    the distinct vector of each modality ("<modality>_disentangled") + a ranking loss, by which the vector with the
    smaller head error should have the larger attention weight ("ranking") + "unseen", which trains the vector that
    answers if both modalities are missing. All weights are 1; losses that need a missing modality are left out.

    Source: sections 3.2-3.4. Differs from the released code: either modality may be missing, not only the second;
    answers are mutually exclusive, so a single query, computed from the question, replaces one query per class, and the
    heads read the question too; no dropout.
    """

    selection_scenarios = ("audio-missing", "visual-missing")
    trains_on = "all"
    uses_negatives = False

    def __init__(self, backbone: Backbone, *, exposure: Exposure = "sampled") -> None:
        super().__init__()
        channels = backbone.channels
        self.backbone, self.sees = backbone, exposure
        self.shared = nn.ModuleDict({m: _mlp(channels, channels, channels) for m in MODALITIES})
        self.distinct = nn.ModuleDict({m: _mlp(channels, channels, channels) for m in MODALITIES})
        self.projection = _mlp(channels, 2 * channels, channels, channels)
        self.query, self.key, self.value = (nn.Linear(channels, channels) for _ in range(3))
        self.answer_layer = nn.Linear(channels, backbone.answers)
        self.heads = nn.ModuleDict({name: nn.Linear(channels, backbone.answers) for name in (*MODALITIES, SHARED)})
        self.unseen = nn.Parameter(torch.zeros(channels))

    def training_loss(self, batch: Batch) -> dict[str, Tensor]:
        """Return the scalar losses by name, and "total"."""
        return exposed_losses(batch, self.sees, self._losses, conditional=CONDITIONAL)

    def predict(self, batch: Batch) -> Tensor:
        """Return logits [batch, answer]; if both modalities are missing, a learned vector replaces the fused one."""
        if not batch.available:
            return self._unseen_logits(encode_question(self.backbone, batch).question)
        representation = self.backbone.encode(batch)
        vectors, _ = self._vectors(representation)
        logits, _ = self._answer(representation.question, vectors)
        return logits

    def _losses(self, batch: Batch) -> dict[str, Tensor]:
        representation = self.backbone.encode(batch)
        question, answer = representation.question, batch.answer
        losses = {"unseen": cross_entropy(self._unseen_logits(question), answer)}
        if batch.available:
            vectors, shared = self._vectors(representation)
            logits, weights = self._answer(question, vectors)
            heads = {name: self.heads[name](torch.tanh(vector * question)) for name, vector in vectors.items()}
            losses["answer"] = cross_entropy(logits, answer)
            losses |= {f"{name}_answer": cross_entropy(head_logits, answer) for name, head_logits in heads.items()}
            for modality, of_modality in shared.items():
                cosine = F.cosine_similarity(of_modality, vectors[modality], dim=-1)
                losses[f"{modality}_disentangled"] = cosine.abs().mean()
            losses["ranking"] = _ranking_loss(weights, heads, answer)
            if len(shared) == len(MODALITIES):
                losses["aligned"] = _divergence(*shared.values())
        return losses

    def _vectors(self, representation: Representation) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Return the vectors to attend to and the shared vectors before fusion.

        Both are [batch, channel] tensors, by modality or "shared", and by modality.
        """
        pooled = self.backbone.pool(representation)
        vectors = {m: self.distinct[m](values) for m, values in pooled.items()}
        shared = {m: self.projection(self.shared[m](values)) for m, values in pooled.items()}
        return vectors | {SHARED: _mean_probability(list(shared.values()))}, shared

    def _answer(self, question: Tensor, vectors: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        """Return logits [batch, answer] and the weight [batch] of each vector."""
        stacked = torch.stack(list(vectors.values()), dim=1)
        scores = torch.einsum("bc,bvc->bv", self.query(question), self.key(stacked)) / stacked.shape[-1] ** 0.5
        weights = scores.softmax(dim=-1)
        fused = torch.einsum("bv,bvc->bc", weights, self.value(stacked))
        return self.answer_layer(torch.tanh(fused * question)), dict(zip(vectors, weights.unbind(1), strict=True))

    def _unseen_logits(self, question: Tensor) -> Tensor:
        """Return logits [batch, answer] that give a gradient to the learned vector only."""
        fused = torch.tanh(self.unseen * question.detach())
        assert self.answer_layer.bias is not None
        return F.linear(fused, self.answer_layer.weight.detach(), self.answer_layer.bias.detach())


def _mean_probability(logits: list[Tensor]) -> Tensor:
    """Return the logit of the mean of the sigmoids of one or two tensors, per element."""
    if len(logits) == 1:
        return logits[0]
    first, second = logits
    total, zero = first + second, torch.zeros_like(first)
    over = torch.logsumexp(torch.stack((total, total, first, second)), dim=0)
    return over - torch.logsumexp(torch.stack((zero, zero, first, second)), dim=0)


def _divergence(first: Tensor, second: Tensor) -> Tensor:
    """Return the mean Jensen-Shannon divergence (scalar, nats) of the Bernoulli variables with these logits."""
    probabilities = torch.stack((first.sigmoid(), second.sigmoid()))
    return (_entropy(probabilities.mean(0)) - _entropy(probabilities).mean(0)).mean()


def _entropy(probability: Tensor) -> Tensor:
    probability = probability.clamp(SMALLEST_PROBABILITY, 1 - SMALLEST_PROBABILITY)  # at 0 the gradient is infinite
    other = 1 - probability
    return -torch.xlogy(probability, probability) - torch.xlogy(other, other)


def _ranking_loss(weights: dict[str, Tensor], heads: dict[str, Tensor], answer: Tensor) -> Tensor:
    """Return the mean (scalar) over pairs of vectors of the excess weight of the vector with the larger head error.

    Rows whose answer is outside the vocabulary do not count.
    """
    if len(weights) == 1:
        return answer.new_zeros((), dtype=torch.float32)
    known = (answer != UNKNOWN_ANSWER).sum().clamp_min(1)
    errors = {
        name: F.cross_entropy(logits, answer, ignore_index=UNKNOWN_ANSWER, reduction="none").detach()
        for name, logits in heads.items()
    }  # 0 for such rows, whose difference then has no sign
    excess = [
        F.relu(-(errors[two] - errors[one]).sign() * (weights[one] - weights[two])).sum() / known
        for one, two in combinations(weights, 2)
    ]
    return torch.stack(excess).mean()


def _mlp(*widths: int) -> nn.Sequential:
    layers = [layer for pair in pairwise(widths) for layer in (nn.Linear(*pair), nn.ReLU())]
    return nn.Sequential(*layers[:-1])
