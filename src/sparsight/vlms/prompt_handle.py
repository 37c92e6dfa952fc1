"""What handles of pruned prompts have in common, before the language model and inside it."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ..errors import PruneError
from ..handle import Handle
from ..latest import last
from .prompt import take


class PromptHandle(Handle):
    """Everything is of the last call that finished in this thread or task, and empty where it failed or had no images."""

    @property
    def family(self) -> Any:
        return self.engine

    @property
    def last(self) -> Any:
        """What that call has published; None without one."""
        return last(self.engine)

    def restore(self, tokens: Tensor, after: int | None = None, *, as_map: bool = False) -> Tensor:
        raise PruneError("tokens go back on a grid in vision models only; handle.plans say where those of an image are")

    @property
    def full_length(self) -> bool:
        """Whether logits and last hidden states of a forward have the length of the full prompt. Without it they do in training, with
        `labels` and with places in `logits_to_keep`; else they have the length of the shortened prompt."""
        return bool(self.engine.full_length)

    @full_length.setter
    def full_length(self, value: bool) -> None:
        self.engine.full_length = value

    def shorten(self, values: Tensor, fill: int = -100) -> Tensor:
        """Values along the prompt of that call (labels, weights), [B, U], as its tokens were shortened: [B, L]; `fill` in padding."""
        done = self.last
        if done is None:
            raise PruneError("no prompt has been pruned in this thread or task yet; run the model first")
        return take(values[..., values.shape[-1] - done.width :], done.index, fill)
