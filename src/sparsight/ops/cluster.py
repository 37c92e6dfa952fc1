"""Density-peak clustering of tokens (DPC-kNN): centres are dense and far from anything denser. x [B, M, C]."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..plan import Plan
from . import diversity
from .portable import stable_order
from .select import everything, rows


@dataclass(frozen=True, eq=False)
class Clusters:
    """centres [B, c] in falling order of density * apart; member [B, M] cluster of every token; density [B, M]; apart [B, M]: distance
    to the nearest denser token."""

    centres: Tensor
    member: Tensor
    density: Tensor
    apart: Tensor


def density_peaks(x: Tensor, clusters: int, noise: Tensor | None = None, neighbours: int = 0) -> Clusters:
    """Cluster tokens around density peaks; ties go to the lower index. x [B, M, C], noise [B, M] or None.

    Distance is L2 / sqrt(C), density exp(-mean square distance to the nearest `neighbours`, oneself included; 0: as many as there are
    clusters, as SparseVLM has it); centres have the largest products of density and distance to the nearest denser token. The authors add 1e-6 * uniform noise to the density
    to break ties: pass theirs to repeat a run of theirs; without it the result is deterministic. SparseVLM, arXiv:2410.04417.
    """
    distance = diversity.distance(x) / x.shape[-1] ** 0.5
    near = distance.topk(min(neighbours or clusters, x.shape[1]), dim=-1, largest=False).values
    density = (-near.square().mean(dim=-1)).exp()
    if noise is not None:
        density = density + noise.to(density) * 1e-6
    denser = density.unsqueeze(1) > density.unsqueeze(2)
    farthest = distance.flatten(1).amax(dim=1)[:, None, None]
    apart = distance.where(denser, farthest).amin(dim=-1)
    centres = stable_order(apart * density, descending=True)[:, :clusters]
    to_centres = rows(distance, centres)
    own = torch.arange(centres.shape[1], device=x.device).expand_as(centres)
    return Clusters(centres, to_centres.argmin(dim=1).scatter(1, centres, own), density, apart)


def in_order(centres: Tensor, member: Tensor) -> tuple[Tensor, Tensor]:
    """Renumber clusters by ascending centre index [B, c]; member [B, N] follows."""
    keep, order = centres.sort(dim=1)
    return keep, order.argsort(dim=1).gather(1, member)


def shares(member: Tensor, clusters: int, weight: Tensor, floor: float) -> Tensor:
    """Averaging weights per cluster: weight / (sum of the cluster's weights + floor), 0 elsewhere.
    member, weight [B, N], weight > 0 -> [B, c, N]."""
    own = member.unsqueeze(1) == torch.arange(clusters, device=member.device).unsqueeze(-1)
    weighed = weight.unsqueeze(1).where(own, 0)
    return weighed / (weighed.sum(dim=-1, keepdim=True) + floor)


def medoids(x: Tensor, first: Tensor, weight: Tensor, rounds: int) -> tuple[Tensor, Tensor]:
    """Run k-medoids from the tokens `first` [B, K]: medoids [B, K], and the cluster of every token [B, N].

    Each round gives every token to its nearest medoid, and each cluster the member with the least weight * (sum of distances to ALL
    tokens), token 0 if it has no member. x [B, N, C], weight [B, N]. Token Reduction benchmark, arXiv:2308.04657.
    """
    distance = diversity.distance(x)
    cost = (distance * weight.unsqueeze(-1)).sum(dim=-1)
    chosen = first
    cluster = torch.arange(first.shape[1], device=x.device).unsqueeze(-1)
    for _ in range(rounds):
        outside = nearest_of(distance, chosen).unsqueeze(1) != cluster
        chosen = cost.unsqueeze(1).masked_fill(outside, float("inf")).argmin(dim=2)
    return chosen, nearest_of(distance, chosen)


def coreset(x: Tensor, first: Tensor, centres: int) -> tuple[Tensor, Tensor, Tensor]:
    """Pick centres by farthest-point sampling and weight the tokens around them. x [B, N, C], first [B] -> centres [B, c], the cluster of each
    token [B, N], and its weight there [B, N].

    From `first` on, always the token farthest from its nearest centre, and none twice. A centre is in its own cluster. Weights are 1 / distance to the centre (1 at distance 0),
    divided by their sum in the cluster. TCA, arXiv:2410.14729.
    """
    chosen = first.unsqueeze(-1)
    distances = [apart(x, chosen)]
    nearest = distances[0]
    for _ in range(1, centres):
        pick = nearest.scatter(1, chosen, -1).argmax(dim=1, keepdim=True)
        chosen = torch.cat([chosen, pick], dim=1)
        distances.append(apart(x, pick))
        nearest = torch.minimum(nearest, distances[-1])
    own = torch.arange(centres, device=x.device).expand_as(chosen)
    member = torch.stack(distances, dim=1).argmin(dim=1).scatter(1, chosen, own)
    weight = torch.where(nearest == 0, 1.0, 1 / nearest.where(nearest > 0, 1.0))
    total = torch.zeros_like(chosen, dtype=weight.dtype).scatter_add(1, member, weight)
    return chosen, member, weight / total.gather(1, member)


def apart(x: Tensor, index: Tensor) -> Tensor:
    """Distance of every token to the one at index [B, 1]; exactly 0 to itself. x [B, N, C] -> [B, N]."""
    offset = x - rows(x, index)
    distance: Tensor = torch.linalg.vector_norm(offset, dim=-1)
    return distance


def nearest_of(distance: Tensor, chosen: Tensor) -> Tensor:
    """Index of the nearest chosen token [B, K] for every token, by distance [B, N, N]: [B, N]."""
    return rows(distance, chosen).argmin(dim=1)


def keep_and_recycle(s: Tensor, x: Tensor, count: int, noise: Tensor) -> Plan:
    """Keep the `count` highest scores; merge the best 30 % of the rest into a tenth as many clusters. s [B, N], x [B, N, C].

    The survivors' slots come first, ascending, then one slot per cluster, named by its centre. Noise [B, >= members of clusters].
    """
    n, gone = s.shape[1], s.shape[1] - count
    if gone <= 0:
        return everything(s)
    members = int(gone * 0.3) + 1
    order = stable_order(s, descending=True)
    keep, rest = order[:, :count].sort(dim=1).values, order[:, count : count + members]
    found = density_peaks(rows(x, rest), members // 10 + 1, noise[:, :members])
    slot = torch.arange(count, device=s.device).expand_as(keep)
    owner = torch.full((s.shape[0], n), -1, dtype=torch.int64, device=s.device)
    owner = owner.scatter(1, keep, slot).scatter(1, rest, count + found.member)
    return Plan(torch.cat([keep, rest.gather(1, found.centres)], dim=1), n, owner, tail=found.centres.shape[1])
