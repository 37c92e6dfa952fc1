"""Plan: which tokens survive one pruning site, and where each of the others goes."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Plan:
    """The outcome of one selection, as data. B images, N tokens in, K survivors.

    keep    [B, K] int64, in the order of the slots: indices (into the N tokens present) of the tokens that keep a slot. Ascending,
            except where a method's next step depends on another order (ToMe) or its authors' output has one (PruMerge).
    total   N, the number of tokens before the site.
    merged  [B, N] int64 or None: the slot every token ends in, -1 if dropped; None when tokens are only dropped.
    fused   True if one more slot follows the survivors' (EViT's token made of the rest): the last real one of each image.
    led     True if one more slot precedes the survivors': the class token, which stands for no patch (VisionZip). All slots move up.
    mix     [B, slots, N] or None: weights of a soft pooler, whose slots are mixtures of all tokens.
    tail    the last `tail` entries of keep are centres of clusters, whose slots follow the survivors' (SparseVLM); 0 for none.
    valid   [B, slots] bool or None: which slots are real where counts differ between images; padding comes last, with keep -1.
    """

    keep: Tensor
    total: int
    merged: Tensor | None = None
    fused: bool = False
    mix: Tensor | None = None
    valid: Tensor | None = None
    led: bool = False
    tail: int = 0

    @property
    def counts(self) -> list[int]:
        """Number of real slots of every image."""
        return [self.slots] * self.keep.shape[0] if self.valid is None else [int(c) for c in self.valid.sum(dim=1)]

    @property
    def slots(self) -> int:
        """Number of tokens after the site."""
        return int(self.led) + int(self.keep.shape[1]) + int(self.fused)

    @property
    def owner(self) -> Tensor:
        """[B, N]: the slot that each token ends in, -1 for a dropped one (made on demand for drop-only plans)."""
        if self.merged is not None:
            return self.merged
        owner = torch.full((self.keep.shape[0], self.total), -1, dtype=torch.int64, device=self.keep.device)
        if self.fused:
            owner = owner + (self.slots if self.valid is None else self.valid.sum(dim=1, keepdim=True))
        slot = (torch.arange(self.keep.shape[1], device=self.keep.device) + int(self.led)).expand_as(self.keep)
        if self.valid is None:
            return owner.scatter(1, self.keep, slot)
        spare = torch.nn.functional.pad(owner, (0, 1))
        return spare.scatter(1, self.keep.where(self.keep >= 0, self.total), slot)[:, : self.total]

    def gather(self, x: Tensor, prefix: int = 0, index: Tensor | None = None) -> Tensor:
        """Rows of the survivors: x [B, N, C] -> [B, K, C]; zeros in padding. With a prefix, x is [B, P+N, C] and its first P
        tokens stay in front: [B, P+K, C]. index: what `index` gives, for those who gather several tensors."""
        batch, length, width = x.shape
        index = self.index(length, prefix) if index is None else index
        # whole rows by one index_select: several times faster than gather, which moves single elements
        out = x.reshape(-1, width).index_select(0, index).view(batch, -1, width)
        if self.valid is None:
            return out
        return out.masked_fill(torch.nn.functional.pad(self.keep < 0, (prefix, 0)).unsqueeze(-1), 0)

    def index(self, length: int, prefix: int = 0) -> Tensor:
        """Rows of the prefix and the survivors among all rows of all images, one after the other: [B * (P+K)]."""
        keep = self.keep if self.valid is None else self.keep.clamp(min=0)
        batch = keep.shape[0]
        if prefix:
            keep = torch.cat([torch.arange(prefix, device=keep.device).expand(batch, -1), keep + prefix], dim=1)
        if batch != 1:
            keep = keep + torch.arange(0, batch * length, length, device=keep.device).unsqueeze(1)
        return keep.flatten()

    def dropped(self) -> Tensor:
        """Indices of the tokens that lost their own slot, ascending: [B, N - K]. Not for plans with padding."""
        index = torch.arange(self.total, device=self.keep.device).expand(self.keep.shape[0], -1)
        return index.scatter(1, self.keep, self.total).sort(dim=1).values[:, : self.total - self.keep.shape[1]]

    def rows(self) -> Tensor:
        """Row of every token's slot among the 1 + slots of all images one after the other: [B * N]. The first of each image is a spare
        one that dropped tokens share, so that -1 needs no special case."""
        batch, step = self.keep.shape[0], 1 + self.slots
        rows = self.owner + (1 if batch == 1 else torch.arange(1, batch * step, step, device=self.keep.device).unsqueeze(1))
        return rows.flatten()

    def fold(self, x: Tensor, rows: Tensor | None = None) -> Tensor:
        """Sum of the tokens in every slot, dropped ones left out: x [B, N, C] -> [B, slots, C]. rows: what `rows` gives, for those who
        fold several tensors."""
        batch, _, width = x.shape
        rows = self.rows() if rows is None else rows
        # rows of a matrix under an expanded index are added whole: several times faster than with the batch as a dimension of its own
        out = x.new_zeros(batch * (1 + self.slots), width)
        out = out.scatter_add_(0, rows.unsqueeze(1).expand(-1, width), x.reshape(-1, width))
        return out.view(batch, -1, width)[:, 1:]

    def spread(self, x: Tensor, fill: float = 0.0) -> Tensor:
        """Give every original token its slot's value: x [B, slots, C] -> [B, N, C]; dropped tokens get `fill`."""
        owner = self.owner
        rows = x.gather(1, owner.clamp(min=0).unsqueeze(-1).expand(-1, -1, x.shape[-1]))
        return rows.masked_fill((owner < 0).unsqueeze(-1), fill)

    def then(self, later: Plan) -> Plan:
        """This plan followed by `later` as one plan over this plan's tokens. Survivors are tokens that keep a slot
        of their own in both; a fused slot that survives counts as the place of all tokens fused into it. Padding stays padding."""
        first, second = self.owner, later.owner
        merged = torch.where(first < 0, -1, second.gather(1, first.clamp(min=0)))
        none = self.keep.new_full((self.keep.shape[0], 1), -1)
        source = torch.cat([none] * self.led + [self.keep] + [none] * self.fused, dim=1)
        if later.valid is None:
            return Plan(source.gather(1, later.keep), self.total, merged, later.fused)
        keep = source.gather(1, later.keep.clamp(min=0)).masked_fill(later.keep < 0, -1)
        return Plan(keep, self.total, merged, later.fused, valid=later.valid)
