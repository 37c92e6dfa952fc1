"""PruneSID: group tokens by their principal components, thin out each group, and share the tokens out among groups. ICLR 2026.

Reference: the authors' repository (4ef17d9). tokens / 4 groups, by the component that a token has the largest part in; in each group
tokens by descending class attention, without those whose cosine with a taken one is above tokens / 32 * the mean cosine of the image; quotas by how
many are left. `tokens` is everything that leaves the encoder: the class token, then tokens - 1 patches, as the authors count. `order=authors`
puts them out group by group instead of in spatial order. keep= rounds up. `score=column_mean` or `col_ln` (with `norm`) is for
encoders without class token: none is put out, and all tokens are patches.
Deviations: exact components instead of the authors' random projection, with which 40 to 80 % of the tokens are the same, as between two
draws of theirs; at most min(C, N) groups; ties to the lower index.
"""

import math
from typing import Literal

import torch
from torch import Tensor

from ..ops import diversity, rank, reduce, schedule, select
from ..ops.score import Importance
from ..plan import Plan
from ..recipe import Recipe, Step, attention_score
from ..registry import method

Order = Literal["spatial", "authors"]


def components(x: Tensor, groups: int) -> Tensor:
    """Assign each token x [B, N, C] to the principal component with its largest loading: [B, N], 0 to groups - 1."""
    z = rank.wide(x).sigmoid()
    z = z - z.mean(dim=-1, keepdim=True)
    vectors = torch.linalg.eigh(z @ z.transpose(-2, -1)).eigenvectors.flip(-1)
    largest: Tensor = vectors[..., :groups].abs().to(torch.float32).argmax(dim=-1)
    return largest


def thinned(s: Tensor, likeness: Tensor, group: Tensor, threshold: Tensor) -> Tensor:
    """Mask [B, N] of the tokens taken when, group by group and by descending s [B, N], each one rules out those more alike than
    threshold [B] in its group. Waits for the device."""
    n, place = s.shape[1], select.ranks(s)
    near = (likeness > threshold[:, None, None]) & (group.unsqueeze(1) == group.unsqueeze(2))
    alive, taken = torch.ones_like(s, dtype=torch.bool), torch.zeros_like(s, dtype=torch.bool)
    while bool(alive.any()):
        first = torch.full_like(place, n).scatter_reduce(1, group, place.masked_fill(~alive, n), "amin")
        now = alive & (place == first.gather(1, group))
        taken = taken | now
        alive = alive & ~now & ~(near & now.unsqueeze(1)).any(dim=2)
    return taken


def quotas(sizes: list[int], kept: list[int], count: int, led: bool) -> list[int]:
    """Allocate tokens to groups by size and by how many survived thinning; the sum is count, or count - 1 if `led`."""
    low = [min(1, size) for size in sizes]
    most = [min(5 * math.ceil(count / 64), size, left) for size, left in zip(sizes, kept, strict=True)]
    while sum(most) < min(count, sum(sizes)):
        most = [min(up + 1, size) for up, size in zip(most, sizes, strict=True)]
    rest = max(0, count - sum(low) - int(led))
    steps = (
        (torch.tensor(kept, dtype=torch.float32) / sum(kept)).cumsum(0).mul(rest).round().long().diff(prepend=torch.zeros(1).long())
    )
    quota = [min(step + down, up) for step, down, up in zip(steps.tolist(), low, most, strict=True)]
    missing = rest + sum(low) - sum(quota)
    for g in sorted(range(len(sizes)), key=lambda g: -kept[g]):
        more = min(most[g] - quota[g], max(0, missing))
        quota[g], missing = quota[g] + more, missing - more
    return quota


def threshold_of(likeness: Tensor, count: int) -> Tensor:
    """count / 32 times the mean cosine of all pairs of an image: [B, N, N] -> [B]."""
    n = likeness.shape[-1]
    pairs = likeness.sum(dim=(1, 2)) - likeness.diagonal(dim1=1, dim2=2).sum(dim=1)
    return count / 32 * pairs / max(1, n * (n - 1))


def by_groups(s: Tensor, x: Tensor, group: Tensor, count: int, led: bool, order: Order) -> Plan:
    """The plan for the groups of tokens, group [B, N]. s [B, N], x [B, N, C]."""
    n = s.shape[1]
    likeness = diversity.cosine(x)
    taken = thinned(s, likeness, group, threshold_of(likeness, count))
    place = select.ranks(s) + n * (~taken).long()
    keeps = []
    for image in range(s.shape[0]):
        sizes = group[image].bincount()
        kept = group[image, taken[image]].bincount(minlength=len(sizes))
        quota = quotas(sizes.tolist(), kept.tolist(), count, led)
        members = (place[image] + 2 * n * group[image]).argsort()
        keeps.append(torch.cat([some[:most] for some, most in zip(torch.split(members, sizes.tolist()), quota, strict=True)]))
    keep = torch.stack(keeps)
    return Plan(keep if order == "authors" else keep.sort(dim=1).values, n, led=led)


def split(s: Tensor, x: Tensor, count: int, led: bool, order: Order) -> Plan:
    """Groups by principal components, and the plan for them. s [B, N], x [B, N, C]."""
    if count >= s.shape[1]:
        return select.everything(s)
    groups = max(1, min(count // 4, *x.shape[1:]))
    return by_groups(s, x, components(x, groups), count, led, order)


@method
def prunesid(tokens: int = 64, order: Order = "spatial", score: Importance = "class", norm: float = 2.0) -> Recipe:
    led = score == "class"
    choose = Step(split, led=led, order=order)
    reducer = reduce.with_class_token if led else reduce.drop
    return Recipe(attention_score(score, norm), choose, reducer, schedule.once(tokens, least=2 if led else 1), where="encoder")
