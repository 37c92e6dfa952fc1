"""What the text says about visual tokens inside a language model: rows of attention, raters, and the schedule of such sites."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from ..errors import PruneError
from .attention_torch import exact
from .schedule import Schedule, as_tuple, show

Rows = Literal["last", "raters"]
Positions = Literal["original", "renumbered"]
Attention = Literal["before", "at"]


@dataclass(frozen=True)
class DecoderSchedule(Schedule):
    """Sites between the layers of a language model: a site at `layer` takes tokens out before that layer runs.

    Fractions are of the visual tokens that entered the language model, whatever earlier sites removed; `tokens` is per image.
    after      layers are given as the last one that sees all tokens (SparseVLM) instead of the first one that does not.
    rows       whose attention scores: the "last" real token of the prompt, or the text "raters".
    attention  of which layer: the one "before" the site, or the one "at" it, computed ahead for the needed rows.
    positions  "original": survivors keep their position ids. "renumbered": ids are contiguous again after each site.
    """

    after: bool = False
    rows: Rows = "last"
    attention: Attention = "before"
    positions: Positions = "original"

    def resolve(self, depth: int) -> tuple[int, ...]:
        """Layers before which tokens leave, for a language model of `depth` layers."""
        given = () if isinstance(self.layers, str) else self.layers
        low, high = (0, depth - 2) if self.after else (1, depth - 1)
        if not given or min(given) < low or max(given) > high:
            raise PruneError(
                f"layer {show(self.layers)} is out of range: the language model has {depth} layers and tokens can leave "
                + (f"after layers {low} to {high}" if self.after else f"before layers {low} to {high} (layer 0 sees all tokens)")
            )
        super().resolve(depth)
        return tuple(int(layer) + int(self.after) for layer in given)

    def stay(self, original: int, present: int, site: int, sites: int, images: int = 1) -> int:
        """Visual tokens that stay at a site, of `present` ones; `original` entered the language model, for that many images."""
        count = super().count(original, site, sites)
        return max(1, min(present, count * images if self.tokens is not None else count))

    def check(self, entered: int, images: int = 1) -> None:
        """Raise PruneError if a prompt has fewer visual tokens than `tokens` asks for: `entered` of them, in that many images."""
        asked = int(max(as_tuple(self.tokens), default=0))
        if asked * images > entered:
            here = f"{entered} visual tokens" + (f" in {images} images" if images > 1 else "")
            raise PruneError(
                f"tokens={asked}{' per image' if images > 1 else ''} is more than there are: {here} reach the language model; "
                "ask for fewer, or use keep="
            )

    def count(self, n: int, site: int, sites: int, entered: int = 0) -> int:
        return self.stay(n, n, site, sites)


def mean_row(text_attn: Tensor) -> Tensor:
    """Mean attention that the chosen text queries pay to each visual token. text_attn [B, T, N] -> [B, N]."""
    return text_attn.mean(dim=1)


def row_attention(q: Tensor, k: Tensor, scale: float, seen: Tensor, softcap: float | None = None) -> Tensor:
    """Softmax rows in float32 or better, mean over heads, of T queries over L keys. q [B, H, T, D], k [B, G, L, D], H a multiple of G
    (grouped queries), seen [B, T, L] what each query may look at, softcap a bound that logits come near by tanh -> [B, T, L]."""
    batch, heads, rows, width = q.shape
    groups, length = k.shape[1], k.shape[2]
    grouped = exact(q).reshape(batch, groups, heads // groups * rows, width)
    logits = (grouped @ exact(k).transpose(-2, -1) * scale).view(batch, heads, rows, length)
    if softcap is not None:
        logits = (logits / softcap).tanh() * softcap
    return logits.masked_fill(~seen.unsqueeze(1), float("-inf")).softmax(dim=-1).mean(dim=1)


def raters(vision: Tensor, text: Tensor) -> Tensor:
    """Select the text tokens whose mean share of softmax(V T^T) over visual tokens is above average.
    All of them if none stands out. vision [B, N, C], text [B, T, C] -> bool [B, T]. SparseVLM eq. 4, arXiv:2410.04417."""
    share = rater_score(vision, text)
    chosen = share > share.mean(dim=1, keepdim=True)
    return chosen | ~chosen.any(dim=1, keepdim=True)


def rater_score(vision: Tensor, text: Tensor) -> Tensor:
    """Mean attention of visual tokens to each text token: [B, T]."""
    return (exact(vision) @ exact(text).transpose(-2, -1)).softmax(dim=-1).mean(dim=1)


def rank_count(text_attn: Tensor, scale: float, bias: float) -> int:
    """Tokens to keep by the rank of the attention of the raters: int(rank * scale + bias), at most all but one, at least one;
    all of them where the rank is full. text_attn [1, T, N]."""
    n = text_attn.shape[2]
    rank = int(torch.linalg.matrix_rank(exact(text_attn[0])))
    return n if rank == n else max(1, min(int(rank * scale + bias), n - 1))
