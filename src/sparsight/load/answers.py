"""What a model says about images: logits, their highest classes, and pooled features, from its ordinary forward."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from ..errors import PruneError

TOP = 5


class Reader:
    """Runs a model as its user does and returns (logits or None, pooled features [B, C]).

    What enters the classifier is what timm calls pre-logits; models without a classifier give their own pooled output.
    """

    def __init__(self, model: nn.Module, classes: int = 0) -> None:
        """classes: number of class names; where the model has no classifier by name, so many outputs are its logits."""
        self.model = model
        self.head = classifier(model)
        self.classes = classes
        self.entered: list[Tensor] = []

    @property
    def outputs(self) -> int:
        """Number of logits, 0 without a classifier."""
        return int(getattr(self.head, "out_features", 0)) or self.classes

    def __call__(self, images: Tensor) -> tuple[Tensor | None, Tensor]:
        self.entered.clear()
        hook = self.head.register_forward_pre_hook(lambda _m, given: self.entered.append(given[0])) if self.head else None
        try:
            result: Any = self.model(images)
        finally:
            if hook is not None:
                hook.remove()
        logits = None if self.head is None and not self.classes else getattr(result, "logits", result)
        if logits is not None and not (isinstance(logits, Tensor) and logits.dim() == 2):
            raise PruneError(f"{type(self.model).__name__} gives {describe(logits)}; logits [images, classes] are needed")
        pooled = self.entered[0] if self.entered else own_pooling(result)
        return logits, (pooled.mean(dim=1) if pooled.dim() == 3 else pooled).float()


def classifier(model: nn.Module) -> nn.Module | None:
    """The module that makes the logits (the first one if there are two), None if the model ends in features."""
    get = getattr(model, "get_classifier", None)
    found = (
        get() if callable(get) else next((getattr(model, n) for n in ("classifier", "cls_classifier") if hasattr(model, n)), None)
    )
    found = found[0] if isinstance(found, (tuple, list, nn.ModuleList)) else found
    return found if isinstance(found, nn.Module) and not isinstance(found, nn.Identity) else None


def own_pooling(result: Any) -> Tensor:
    """Pooled features of a model without a classifier: what it calls so, else the mean of its tokens."""
    if isinstance(result, Tensor):
        return result
    names = ("image_embeds", "pooler_output", "last_hidden_state")
    for name in names:
        value = getattr(result, name, None)
        if isinstance(value, Tensor):
            return value
    raise PruneError(f"the model gives {describe(result)}; a tensor is needed, or an output with one of {', '.join(names)}")


def finite_rows(result: Any) -> Tensor:
    """Whether all numbers of a model's output are finite, image by image [n]."""
    rows = [leaf.isfinite().flatten(1).all(dim=1) for leaf in tree_leaves(result) if isinstance(leaf, Tensor) and leaf.dim() > 1]
    return torch.stack(rows).all(dim=0)


def check_finite(result: Any, name: str) -> None:
    """Raise PruneError if the output has no image whose numbers are all finite."""
    if not finite_rows(result).any():
        raise PruneError(f"all outputs of {name} are NaN or infinite; check the weights, or take precision fp32 if it is another")


def describe(result: Any) -> str:
    """What a model gave, in a few words."""
    return f"a tensor {list(result.shape)}" if isinstance(result, Tensor) else type(result).__name__


def ranked(logits: Tensor, pairwise: bool = False) -> dict[str, Tensor]:
    """Classes by falling logit, top [n, 5], and the probability [n] of the first: its softmax, or its sigmoid if `pairwise`."""
    logits = logits.float()
    best = logits.topk(min(TOP, logits.shape[-1]))
    chance = (
        torch.where(best.values[:, 0].isfinite(), best.values[:, 0].sigmoid(), torch.nan)
        if pairwise
        else (best.values[:, 0] - logits.logsumexp(dim=-1)).exp()
    )
    return {"top": best.indices.int(), "probability": chance}
