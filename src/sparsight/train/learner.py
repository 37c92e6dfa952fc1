"""Learner: the pruned model and the weights that its method learns, as the one module that is trained, averaged, wrapped and saved."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F

from ..errors import PruneError
from ..handle import handles
from ..load.answers import Reader
from ..prune import Handle, family_of


class Learner(nn.Module):
    """images [B, 3, H, W] -> logits [B, classes]; `pooled` [B, C], what enters the classifier; where tokens is true the final patch
    `tokens` [B, N, C]; of a method that draws its tokens, in training, the `decision` [B, N, 1] which of them stay, and the `ratio` loss.

    The model is pruned before it is put in here; pruning it anew later is allowed.
    """

    def __init__(self, model: nn.Module, handle: Handle | None, tokens: bool = False) -> None:
        super().__init__()
        self.model = model
        self.learned = (None if handle is None else handle.learned) or nn.ModuleList()
        self.draws = handle is not None and handle.recipe.hides
        self.reader = Reader(model)
        self.tokens = tokens

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        found = answers(self.reader, images, self.tokens)
        if self.draws and self.training:
            handle = handles(self.model)[0]
            found["ratio"] = handle.ratio_loss()
            found["decision"] = handle.outcomes[-1].size
        return found


class Teacher(nn.Module):
    """The unpruned model, which stays as it is: the same outputs."""

    def __init__(self, model: nn.Module, tokens: bool = False) -> None:
        super().__init__()
        self.model = model.eval().requires_grad_(False)
        self.reader = Reader(model)
        self.tokens = tokens

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        return answers(self.reader, images, self.tokens)


def answers(reader: Reader, images: Tensor, tokens: bool) -> dict[str, Tensor]:
    """Logits and pooled features of a model, and on request its final patch tokens."""
    heard: list[Any] = []
    family = family_of(reader.model) if tokens else None
    hook = None if family is None else last_module(family).register_forward_hook(lambda _m, _a, output: heard.append(output))
    try:
        logits, pooled = reader(images)
    finally:
        reader.entered.clear()
        if hook is not None:
            hook.remove()
    if logits is None:
        raise PruneError(f"{type(reader.model).__name__} has no classifier")
    found = {"logits": logits, "pooled": pooled}
    return found if family is None else {**found, "tokens": patches(family, heard[-1])}


def norm_of(model: nn.Module) -> nn.LayerNorm | None:
    """timm's norm behind the last block, where there is one."""
    found = getattr(model, "norm", None)
    return found if isinstance(found, nn.LayerNorm) else None


def last_module(family: Any) -> nn.Module:
    """The module that makes the final tokens."""
    last: nn.Module = norm_of(family.model) or list(family.blocks)[-1]
    return last


def patches(family: Any, output: Any) -> Tensor:
    """The patch tokens of that module's output, normalised where it is no norm."""
    tokens: Tensor = (output[0] if isinstance(output, tuple) else output)[:, family.prefix :]
    return tokens if norm_of(family.model) is not None else F.layer_norm(tokens, tokens.shape[-1:])
