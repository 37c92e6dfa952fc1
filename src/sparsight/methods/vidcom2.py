"""VidCom2: of a video keep the tokens that are unlike the rest, more of them in frames that stand out. Liu et al., EMNLP 2025, arXiv:2505.14454.

Reference: the authors' repository (944a17d). On the half of the channels that vary least, tokens are compared with the mean of the video
and of their frame by a sum of Gaussians; frames that are unlike the video get more of the budget, by a softmax of temperature 0.01.
`count=exact` corrects the frames' rounded counts where rounding was largest, so that the sum is the budget; `count=authors` leaves it
(85 of 86). A frame is a temporal slice as the language model gets it; a picture is a video of one. keep= rounds down.
Deviations: float32; ties go to the lower index; budgets below one token a frame leave frames without any.
"""

import math
from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import normalize

from ..ops import reduce, schedule, select
from ..ops.portable import stable_order
from ..plan import Plan
from ..recipe import Recipe, Step
from ..registry import method

Count = Literal["exact", "authors"]

TEMPERATURE = 0.01


def calmest(x: Tensor) -> Tensor:
    """The half of the channels with the smallest variance over all tokens x [B, N, C]: [B, C // 2], ascending."""
    return stable_order(x.var(dim=1, correction=0))[:, : max(1, x.shape[2] // 2)].sort(dim=1).values


def nearness(y: Tensor, centre: Tensor) -> Tensor:
    """Sum of five Gaussians of the distance of y [..., C] to a centre -> [...]."""
    apart = (y - centre).square().sum(dim=-1)
    widths = 2.0 ** torch.arange(-3, 2, device=y.device, dtype=y.dtype)
    return torch.exp(-apart.unsqueeze(-1) / (2 * widths)).sum(dim=-1)


def frame_scales(likeness: Tensor, ratio: float) -> Tensor:
    """Share of each frame's tokens that stay, by the frames' mean likeness to the video [B, T] -> [B, T]."""
    lonely = -likeness
    p = ((lonely - lonely.amax(dim=1, keepdim=True)) / TEMPERATURE).softmax(dim=1)
    return (ratio * (1 + p - p.mean(dim=1, keepdim=True))).clamp(max=1)


def frame_counts(wanted: list[float], n: int, count: int, counting: Count) -> list[int]:
    """Tokens of each frame by their wanted number; the sum is `count`, or what rounding gives."""
    counts = [max(1, round(one)) for one in wanted]
    while counting == "exact" and sum(counts) != count:
        step = 1 if sum(counts) < count else -1
        room = [t for t, one in enumerate(counts) if (one < n if step > 0 else one > int(count >= len(counts)))]
        most = max(room, key=lambda t: step * (wanted[t] - counts[t]))
        counts[most] += step
    return counts


def by_frames(x: Tensor, frames: int, count: int, keep: float, counting: Count) -> Plan:
    """Keep the least alike tokens of every frame of x [B, T * n, C]."""
    batch, total, _ = x.shape
    n = total // frames
    if count >= total:
        return select.everything(x)
    y = normalize(x.gather(2, calmest(x).unsqueeze(1).expand(-1, total, -1)), dim=-1).view(batch, frames, n, -1)
    to_video = nearness(y, y.mean(dim=(1, 2), keepdim=True))
    alike = to_video + nearness(y, y.mean(dim=2, keepdim=True))
    ratio = keep if math.floor(keep * total + 1e-9) == count else count / total
    scales = frame_scales(to_video.mean(dim=2), ratio) * n
    counts = torch.tensor([frame_counts(row, n, count, counting) for row in scales.tolist()], device=x.device)
    rank = select.ranks(-alike.flatten(0, 1)).view(batch, frames, n)
    return select.chosen((rank < counts.unsqueeze(-1)).flatten(1))


@method
def vidcom2(keep: float = 0.25, count: Count = "exact") -> Recipe:
    choose = Step(by_frames, keep=keep, counting=count)
    return Recipe(None, choose, reduce.drop, schedule.once(keep=keep, rounding="down"), where="projector")
