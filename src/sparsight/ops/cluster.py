"""Density-peak clustering of tokens (DPC-kNN): centres are dense and far from anything denser. x [B, M, C]."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..plan import Plan


@dataclass(frozen=True, eq=False)
class Clusters:
    """centres [B, c] in falling order of density * apart; member [B, M] cluster of every token; density [B, M]; apart [B, M]: distance
    to the nearest denser token."""

    centres: Tensor
    member: Tensor
    density: Tensor
    apart: Tensor


def density_peaks(x: Tensor, clusters: int, noise: Tensor | None = None) -> Clusters:
    """Cluster tokens around density peaks; ties go to the lower index. x [B, M, C], noise [B, M] or None.

    Distance is L2 / sqrt(C), density exp(-mean square distance to the `clusters` nearest, oneself included); centres have
    the largest products of density and distance to the nearest denser token. The authors add 1e-6 * uniform noise to the density
    to break ties: pass theirs to repeat a run of theirs; without it the result is deterministic. SparseVLM, arXiv:2410.04417.
    """
    distance = torch.cdist(x, x) / x.shape[-1] ** 0.5
    near = distance.topk(min(clusters, x.shape[1]), dim=-1, largest=False).values
    density = (-near.square().mean(dim=-1)).exp()
    if noise is not None:
        density = density + noise.to(density) * 1e-6
    denser = density.unsqueeze(1) > density.unsqueeze(2)
    farthest = distance.flatten(1).amax(dim=1)[:, None, None]
    apart = distance.where(denser, farthest).amin(dim=-1)
    centres = (apart * density).sort(dim=1, descending=True, stable=True).indices[:, :clusters]
    to_centres = distance.gather(1, centres.unsqueeze(-1).expand(-1, -1, x.shape[1]))
    own = torch.arange(centres.shape[1], device=x.device).expand_as(centres)
    return Clusters(centres, to_centres.argmin(dim=1).scatter(1, centres, own), density, apart)


def keep_and_recycle(s: Tensor, x: Tensor, count: int, noise: Tensor) -> Plan:
    """Keep the `count` highest scores; merge the best 30 % of the rest into a tenth as many clusters. s [B, N], x [B, N, C].

    The survivors' slots come first, ascending, then one slot per cluster, named by its centre. Noise [B, >= members of clusters].
    """
    n, gone = s.shape[1], s.shape[1] - count
    if gone <= 0:
        return Plan(torch.arange(n, device=s.device).expand_as(s), n)
    members = int(gone * 0.3) + 1
    order = s.sort(dim=1, descending=True, stable=True).indices
    keep, rest = order[:, :count].sort(dim=1).values, order[:, count : count + members]
    tokens = x.gather(1, rest.unsqueeze(-1).expand(-1, -1, x.shape[-1]))
    found = density_peaks(tokens, members // 10 + 1, noise[:, :members])
    slot = torch.arange(count, device=s.device).expand_as(keep)
    owner = torch.full((s.shape[0], n), -1, dtype=torch.int64, device=s.device)
    owner = owner.scatter(1, keep, slot).scatter(1, rest, count + found.member)
    return Plan(torch.cat([keep, rest.gather(1, found.centres)], dim=1), n, owner, tail=found.centres.shape[1])
