"""Search on one part of the images, report on another: halves with equal classes, in an order of which every beginning is even."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from random import Random

from ..data.fingerprint import digest
from ..data.reading import ImageRef, Source, Wanted
from ..errors import PruneError

RUNGS = (0.125, 0.25, 0.5, 1.0)
"""Shares of the search images after which a trial may be stopped."""
LEAST_RUNG = 16
"""Images of the first rung."""


@dataclass(frozen=True)
class Part(Source):
    """Some images of a source, in an order of their own."""

    whole: Source
    places: tuple[int, ...]
    title: str
    classes: list[str] | None = field(init=False)
    note: str = field(init=False)
    total: int | None = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "classes", self.whole.classes)
        object.__setattr__(self, "note", self.whole.note)
        object.__setattr__(self, "total", len(self.places))

    @property
    def size(self) -> int | None:
        return self.whole.size

    def ref(self, place: int) -> ImageRef:
        return replace(self.whole.ref(self.places[place]), place=place)

    def refs(self, wanted: Wanted) -> Iterator[ImageRef]:
        return (self.ref(place) for place in range(len(self.places)) if wanted(place))

    def aligned(self, classes: Sequence[str] | None, outputs: int) -> Source:
        raise PruneError(f"{self.title} is a part of images whose labels are matched already")

    def fingerprint(self, times: bool = True) -> str:
        return digest(self.whole.fingerprint(times), self.places)


def labels_of(source: Source) -> list[int | None]:
    """The label of every image. Raises PruneError for a stream, which can be read once only."""
    if source.total is None:
        raise PruneError(f"tune reads its images again and again, and {source.title} is a stream; save it and give the folder")
    return [ref.label for ref in source.refs(lambda _place: True)]


def ordered(labels: Sequence[int | None], seed: int) -> list[int]:
    """All places, shuffled, so that every beginning has the same number of each label as far as there are any."""
    draw = Random(seed)
    groups: dict[int | None, int] = {}
    places = list(range(len(labels)))
    draw.shuffle(places)
    turns = []
    for place in places:
        turn = groups[labels[place]] = groups.get(labels[place], -1) + 1
        turns.append((turn, place))
    return [place for _, place in sorted(turns, key=lambda pair: pair[0])]


def halves(source: Source, seed: int) -> tuple[Part, Part]:
    """Two parts of a source without a common image, each with half of every class. Raises PruneError for fewer than two images."""
    labels = labels_of(source)
    if len(labels) < 2:
        raise PruneError(f"{source.title} has {len(labels)} image; tune needs images to search on and others to report on")
    taken: dict[int | None, int] = {}
    groups: tuple[list[int], list[int]] = ([], [])
    odd = 0
    for place in ordered(labels, seed):
        label = labels[place]
        if label not in taken:
            taken[label], odd = odd, 1 - odd  # of classes with an odd number, every other one gives its last image to the report
        groups[taken[label] % 2].append(place)
        taken[label] += 1
    return Part(source, tuple(groups[0]), f"{source.title} (half)"), Part(source, tuple(groups[1]), f"{source.title} (other half)")


def whole(source: Source, seed: int) -> Part:
    """All of a source, in an even order."""
    return Part(source, tuple(ordered(labels_of(source), seed)), source.title)


def rungs(part: Part) -> list[Part]:
    """The part cut into pieces, whose ends are where a trial may be stopped."""
    total = len(part.places)
    ends = sorted({total, *(round(share * total) for share in RUNGS if round(share * total) >= LEAST_RUNG)})
    return [Part(part.whole, part.places[start:end], f"{part.title}, {start} to {end}") for start, end in zip([0, *ends], ends)]
