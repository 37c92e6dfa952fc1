"""Answers on images against labels and against the unpruned model's: outcomes per image, shares with intervals, what is not finite."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..data.demo_sets import photos_of
from ..load.answers import TOP
from ..runs.intervals import Interval, paired, share
from ..runs.store import UNPRUNED, Chunk

NAMED = 5
"""Images named in a note; results have all names."""


@dataclass(frozen=True)
class Judgement:
    """1 or 0 for each image: top1 and top5 for those that have a label, None if none has; agree: the unpruned model's first class.

    An answer that is not finite is wrong and agrees with nothing. not_finite: names of these images. photos: what each image was made of,
    and those with labels, where one photo makes several.
    """

    top1: list[int] | None
    top5: list[int] | None
    agree: list[int] | None
    not_finite: list[str]
    photos: tuple[list[str] | None, list[str] | None] = (None, None)

    def intervals(self, reference: Judgement | None) -> dict[str, Interval | None]:
        """The shares with their intervals, and their paired differences to the reference."""
        found: dict[str, Interval | None] = {"agreement": share(self.agree, self.photos[0]) if self.agree is not None else None}
        for name in ("top1", "top5"):
            mine, theirs = getattr(self, name), getattr(reference, name, None)
            found[name] = None if mine is None else share(mine, self.photos[1])
            found[f"{name}_change"] = None if mine is None or theirs is None else paired(mine, theirs, self.photos[1])
        return found


def judge(chunk: Chunk, reference: Chunk) -> Judgement:
    """Outcomes of a recipe's answers; reference: the unpruned model's on the same images."""
    finite, top = chunk.columns["finite"], chunk.columns.get("top")
    bad = [name for name, fine in zip(chunk.names, finite.tolist(), strict=True) if not fine]
    if top is None:
        return Judgement(None, None, None, bad)
    agree = (top[:, 0] == reference.columns["top"][:, 0]) & finite
    known = [place for place, label in enumerate(chunk.labels) if label is not None]
    photos = photos_of(chunk.names)
    if not known:
        return Judgement(None, None, agree.int().tolist(), bad, (photos, None))
    named = None if photos is None else [photos[place] for place in known]
    truth = torch.tensor([chunk.labels[place] for place in known])
    return Judgement(hits(top[known], truth, 1), hits(top[known], truth, TOP), agree.int().tolist(), bad, (photos, named))


def hits(top: Tensor, truth: Tensor, depth: int) -> list[int]:
    """1 where the true class [N] is among the first `depth` of top [N, 5], else 0."""
    right: list[int] = (top[:, :depth] == truth.unsqueeze(1)).any(dim=1).int().tolist()
    return right


def note_of(recipe: str, bad: list[str], images: int) -> str:
    """What the reader has to know about answers that are not finite; empty if all are."""
    if not bad:
        return ""
    names = ", ".join(bad[:NAMED]) + (", ..." if len(bad) > NAMED else "")
    who = "the unpruned model" if recipe == UNPRUNED else recipe
    return f"{len(bad)} of {images} answers of {who} are NaN or infinite and count as wrong: {names}"
