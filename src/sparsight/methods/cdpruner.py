"""CDPruner: keep the tokens whose determinantal point process, conditioned on the question, is most likely. Zhang et al., NeurIPS 2025, arXiv:2506.10967.

Reference: Theia-4869/CDPruner. Greedy MAP inference on the kernel diag(r) S diag(r): S is the cosine of the tokens behind the projector,
r the relevance to the text, in 0 to 1.
`text=clip`, the paper's: `feats` are CLIP's patch embeddings in the joint space, `text` its text embeddings [M, C] or [B, M, C]. In a model they
are given to `prune` (text=), or CLIP is named (tower=, a folder or a repository of the Hugging Face Hub), which reads the question itself.
`text=llm`, not the paper's (openvino.genai has it): the mean embedding of the question's words against the tokens behind the projector. Whether
the two can be compared is thinly proved. `text=none` is r = 1, diversity alone.
`sign=auto` is minus with CLIP, whose patches are LESS similar to the text that describes them, and plus otherwise. `kernel=auto` is `product` with
CLIP, as released, and `exp` otherwise: r becomes exp(r theta / (2 (1 - theta))), as in the paper; `blend` is (1 - theta) S + theta diag(r) S diag(r).
`shared=true` takes minimum and maximum over the whole batch, as the authors' code does: an image then depends on its batch. keep= rounds up.
Deviations: kept tokens are distinct and ascending whatever the input. Norms are at least 1e-12; where all relevances are equal r is 1; where
the tokens' rank is used up, the rest is filled by relevance (the authors' code returns tokens twice).
"""

from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import normalize

from ..errors import PruneError
from ..ops import diversity, reduce, schedule
from ..plan import Plan
from ..recipe import Recipe, Step
from ..registry import method

Text = Literal["clip", "llm", "none"]
Sign = Literal["auto", "minus", "plus"]
Kernel = Literal["auto", "product", "exp", "blend"]

FLOOR = 1e-6
"""Least relevance, and the share of the largest diagonal entry below which nothing new is left to choose."""


def relevance(feats: Tensor, text: Tensor, sign: Sign, shared: bool) -> Tensor:
    """Similarity to CLIP's text, scaled to 0 .. 1 per image or over the batch. feats [B, N, D], text [M, D] or [B, M, D] -> [B, N]."""
    likeness = (normalize(feats, dim=-1) @ normalize(text, dim=-1).transpose(-2, -1)).mean(dim=-1)
    likeness = likeness if sign == "plus" else -likeness
    low, high = likeness.amin(dim=1, keepdim=True), likeness.amax(dim=1, keepdim=True)
    if shared:
        low, high = low.amin(), high.amax()
    span = high - low
    return torch.where(span < 1e-12, 1.0, (likeness - low + FLOOR) / span.clamp(min=1e-12))


def relevance_to_words(x: Tensor, text: Tensor, sign: Sign, shared: bool) -> Tensor:
    """Similarity of tokens x [B, N, C] to the mean of word embeddings [T, C] or [B, T, C], scaled to 0 .. 1 -> [B, N]."""
    x, mean = (value * (value.square().sum(dim=-1, keepdim=True) + FLOOR).rsqrt() for value in (x, text.mean(dim=-2, keepdim=True)))
    likeness = (x * mean).sum(dim=-1)
    likeness = -likeness if sign == "minus" else likeness
    low, high = likeness.amin(dim=1, keepdim=True), likeness.amax(dim=1, keepdim=True)
    if shared:
        low, high = low.amin(), high.amax()
    return (likeness - low) / (high - low + FLOOR)


def kernel_of(x: Tensor, relevance: Tensor, kernel: Kernel, theta: float) -> Tensor:
    """The kernel [B, N, N] of tokens x [B, N, C] and their relevance [B, N]."""
    alike = diversity.cosine(x)
    itself = alike.diagonal(dim1=-2, dim2=-1)
    itself.copy_(itself > 0)  # 1, whose rounding must not choose where all relevances are equal
    weight = (relevance * (theta / (2 * (1 - theta)))).exp() if kernel == "exp" else relevance
    if kernel == "blend":
        return alike.mul_(1 - theta + theta * weight.unsqueeze(-1) * weight.unsqueeze(-2))
    return alike.mul_(weight.unsqueeze(-1)).mul_(weight.unsqueeze(-2))


def likeliest(kernel: Tensor, relevance: Tensor, count: int) -> Tensor:
    """Greedy MAP inference (Chen et al., 2018) on the kernel [B, N, N], filled up by relevance [B, N] -> [B, count], in the order of choice."""
    gain = kernel.diagonal(dim1=-2, dim2=-1).clone()
    least = FLOOR * gain.amax(dim=1, keepdim=True)
    rows = torch.arange(kernel.shape[0], device=kernel.device).unsqueeze(-1)
    taken = torch.zeros_like(gain, dtype=torch.bool)
    parts: list[Tensor] = []
    picks: list[Tensor] = []
    for _ in range(count):
        new = gain.masked_fill(taken, float("-inf"))
        left = new.amax(dim=1, keepdim=True) > least
        pick = torch.where(left, new, relevance.masked_fill(taken, float("-inf"))).argmax(dim=1, keepdim=True)
        row = kernel[rows, pick].squeeze(1)
        if parts:
            before = torch.stack(parts, dim=1)
            row = row - (before.gather(2, pick.unsqueeze(1).expand(-1, len(parts), -1)) * before).sum(dim=1)
        part = row / gain.gather(1, pick).clamp(min=torch.finfo(gain.dtype).tiny).sqrt()
        parts.append(part.where(left, 0))
        gain = gain - parts[-1].square()
        taken = taken.scatter(1, pick, True)
        picks.append(pick)
    return torch.cat(picks, dim=1)


def by_relevance(x: Tensor, relevance: Tensor, count: int, kernel: Kernel, theta: float) -> Plan:
    return Plan(likeliest(kernel_of(x, relevance, kernel, theta), relevance, count).sort(dim=1).values, x.shape[1])


def by_text(x: Tensor, feats: Tensor, text: Tensor, count: int, sign: Sign, shared: bool, kernel: Kernel, theta: float) -> Plan:
    return by_relevance(x, relevance(feats, text, sign, shared), count, "product" if kernel == "auto" else kernel, theta)


def by_words(x: Tensor, text: Tensor, count: int, sign: Sign, shared: bool, kernel: Kernel, theta: float) -> Plan:
    found = relevance_to_words(x, text, sign, shared) + (FLOOR if kernel == "product" else 0)
    return by_relevance(x, found, count, "exp" if kernel == "auto" else kernel, theta)


def by_diversity(x: Tensor, count: int) -> Plan:
    return by_relevance(x, torch.ones_like(x[..., 0]), count, "product", 0)


@method
def cdpruner(
    tokens: int = 64,
    text: Text = "clip",
    sign: Sign = "auto",
    kernel: Kernel = "auto",
    theta: float = 0.5,
    tower: str = "none",
    shared: bool = False,
) -> Recipe:
    if not 0 <= theta < 1:
        raise PruneError(f"theta={theta:g} must be 0 (diversity alone) or more, and below 1")
    if tower != "none" and text != "clip":
        raise PruneError(f"tower={tower} names a CLIP, which text={text} does not ask; leave one of the two out")
    numbers = {"sign": sign, "shared": shared, "kernel": kernel, "theta": theta}
    choose = {"clip": Step(by_text, **numbers), "llm": Step(by_words, **numbers), "none": Step(by_diversity)}[text]
    source = {"clip": "clip" if tower == "none" else f"clip:{tower}", "llm": "llm", "none": ""}[text]
    return Recipe(None, choose, reduce.drop, schedule.once(tokens), where="projector", text=source)
