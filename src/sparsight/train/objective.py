"""Objective: the loss of one forward, part by part: labels, the unpruned model's answers, the share of tokens kept."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from .settings import TrainSettings

Outputs = dict[str, Tensor]


@dataclass(frozen=True, eq=False)
class Objective:
    """hard: the loss on labels, which are classes [B], or shares of classes [B, classes] where images are mixed."""

    settings: TrainSettings
    hard: Any

    @staticmethod
    def of(settings: TrainSettings) -> Objective:
        """timm's losses for these settings."""
        from timm.loss import LabelSmoothingCrossEntropy, SoftTargetCrossEntropy

        if settings.mixes:  # labels are smoothed when they are mixed
            return Objective(settings, SoftTargetCrossEntropy())
        return Objective(settings, LabelSmoothingCrossEntropy(settings.smoothing) if settings.smoothing else F.cross_entropy)

    def __call__(self, found: Outputs, taught: Outputs | None, target: Tensor) -> dict[str, Tensor]:
        """Parts by name, already weighted, and their sum as `loss`."""
        known = self.settings
        parts = {"labels": known.hard * self.hard(found["logits"].float(), target)}
        if taught is not None and known.distill_logits:
            parts["distill_logits"] = known.distill_logits * divergence(found["logits"], taught["logits"], known.temperature)
        if taught is not None and known.distill_features:
            parts["distill_features"] = known.distill_features * F.mse_loss(found["pooled"].float(), taught["pooled"].float())
        if taught is not None and known.distill_tokens and "tokens" in found:
            parts["distill_tokens"] = known.distill_tokens * token_distance(
                found["tokens"], taught["tokens"], found.get("decision")
            )
        if known.ratio and "ratio" in found:
            parts["ratio"] = known.ratio * found["ratio"]
        return {"loss": torch.stack(list(parts.values())).sum(), **parts}


def divergence(logits: Tensor, taught: Tensor, temperature: float) -> Tensor:
    """Kullback-Leibler divergence from the teacher's classes, times the temperature squared: logits, taught [B, classes] -> scalar.
    Hinton et al., arXiv:1503.02531."""
    log, wanted = ((found.float() / temperature).log_softmax(dim=-1) for found in (logits, taught))
    return temperature**2 * F.kl_div(log, wanted, reduction="batchmean", log_target=True)


def token_distance(tokens: Tensor, taught: Tensor, decision: Tensor | None) -> Tensor:
    """Mean squared distance of the tokens that stay: tokens, taught [B, N, C], decision [B, N, 1] (None: all stay) -> scalar.
    DynamicViT, arXiv:2106.02034, equation 13."""
    distance = (tokens.float() - taught.float()).square().mean(dim=-1, keepdim=True)
    if decision is None:
        return distance.mean()
    stay = decision.detach()
    return (distance * stay).sum() / stay.sum().clamp(min=1)
