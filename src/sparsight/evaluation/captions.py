"""CHAIR: objects that captions mention although they are not in the image. Public through `sparsight.evaluation.metrics`."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..errors import PruneError

COCO = """person, bicycle, car, motorcycle, airplane, bus, train, truck, boat, traffic light, fire hydrant, stop sign, parking meter,
bench, bird, cat, dog, horse, sheep, cow, elephant, bear, zebra, giraffe, backpack, umbrella, handbag, tie, suitcase, frisbee, skis,
snowboard, sports ball, kite, baseball bat, baseball glove, skateboard, surfboard, tennis racket, bottle, wine glass, cup, fork, knife,
spoon, bowl, banana, apple, sandwich, orange, broccoli, carrot, hot dog, pizza, donut, cake, chair, couch, potted plant, bed, dining table,
toilet, tv, laptop, mouse, remote, keyboard, cell phone, microwave, oven, toaster, sink, refrigerator, book, clock, vase, scissors,
teddy bear, hair drier, toothbrush""".replace("\n", " ").split(", ")
"""The 80 classes of COCO."""

PLURALS = {
    "person": "people",
    "man": "men",
    "woman": "women",
    "child": "children",
    "mouse": "mice",
    "knife": "knives",
    "calf": "calves",
}
SAME = ("sheep", "skis", "scissors", "broccoli")


@dataclass(frozen=True)
class Chair:
    """Object hallucination in captions.

    chair_s  captions with an object that is not in the image / captions.   chair_i  such mentions / all mentions of objects.
    recall   objects of the images that are mentioned / objects of the images.   length  mean number of words, punctuation included.
    hallucinated  for each caption, in order, the mentions that are not in the image.
    """

    chair_s: float
    chair_i: float
    recall: float
    length: float
    hallucinated: tuple[tuple[str, ...], ...] = field(repr=False)

    def __str__(self) -> str:
        shares = ", ".join(f"{name} {100 * getattr(self, name):.2f}" for name in ("chair_s", "chair_i", "recall"))
        return f"{shares}, length {self.length:.2f} ({len(self.hallucinated)} captions)"


def chair(
    captions: Iterable[tuple[Any, str]] | Mapping[Any, str],
    objects: Mapping[Any, Iterable[str]],
    references: Mapping[Any, Iterable[str]] | None = None,
    synonyms: Mapping[str, Iterable[str]] | str | Path | None = None,
    tokenize: Callable[[str], list[str]] | None = None,
) -> Chair:
    """CHAIR of captions (image, text), against the images' annotated objects and, if given, reference captions.

    synonyms: per object its other names, or a file with one object per line, "person, girl, boy"; without it the 80 COCO names.
    tokenize: lower-case text -> words; the default splits like NLTK on ordinary captions. Deviations from the published
    scripts: plurals are matched by rule, blanks around synonyms are ignored, an image without annotation is an error.
    Rohrbach et al., EMNLP 2018, arXiv:1809.02156.
    """
    table = Vocabulary(synonyms)
    split = tokenize or words_of
    pairs = list(captions.items() if isinstance(captions, Mapping) else captions)
    if not pairs:
        raise PruneError("chair got no captions")
    wrong, mentions, found, there, length = [], 0, 0, 0, 0
    for image, caption in pairs:
        if image not in objects and image not in (references or {}):
            raise PruneError(f"chair: image {image!r} has no annotation; give its objects, an empty list if it has none")
        truth = {table.node(name) for name in objects.get(image, ())}
        for reference in (references or {}).get(image, ()):
            truth.update(table.mentions(split(reference.lower()))[0])
        said, count = table.mentions(split(caption.lower()))
        wrong.append(tuple(node for node in said if node not in truth))
        mentions, found = mentions + len(said), found + len(truth & set(said))
        there, length = there + len(truth), length + count
    every = sum(map(len, wrong))
    bad = sum(map(bool, wrong))
    return Chair(bad / len(pairs), every / max(1, mentions), found / max(1, there), length / len(pairs), tuple(wrong))


class Vocabulary:
    """Names of objects, singular and plural, of one word or several, and the object (node) that each one means."""

    def __init__(self, synonyms: Mapping[str, Iterable[str]] | str | Path | None) -> None:
        if isinstance(synonyms, str | Path):
            lines = Path(synonyms).read_text(encoding="utf-8").splitlines()
            rows = [[" ".join(name.split()) for name in line.split(",")] for line in lines]
            synonyms = {row[0]: row for row in rows if row[0]}
        names = {name: {name} for name in COCO} if synonyms is None else {key: {key, *value} for key, value in synonyms.items()}
        self.nodes: dict[tuple[str, ...], str] = {}
        for node, others in names.items():
            for parts in (name.lower().split() for name in others if name.strip()):
                for last in (parts[-1], plural(parts[-1])):
                    self.nodes.setdefault((*parts[:-1], last), node.lower())
        self.longest = max(map(len, self.nodes), default=1)

    def node(self, name: str) -> str:
        """The object that an annotation means; an unknown one stands for itself."""
        return self.nodes.get(tuple(name.lower().split()), name.lower())

    def mentions(self, words: list[str]) -> tuple[list[str], int]:
        """Objects in the order of mention, repeats included, and the number of words with names of several words as one."""
        found, place, count = [], 0, 0
        seat_of_toilet = "toilet" in words or "toilets" in words
        while place < len(words):
            size = next((n for n in range(self.longest, 0, -1) if tuple(words[place : place + n]) in self.nodes), 0)
            if size and not (seat_of_toilet and words[place : place + size] in (["seat"], ["seats"])):
                found.append(self.nodes[tuple(words[place : place + size])])
            place, count = place + max(1, size), count + 1
        return found, count


def plural(word: str) -> str:
    """The plural of an English noun by rule."""
    if word in SAME:
        return word
    if word in PLURALS:
        return PLURALS[word]
    if word.endswith("man") and not word.endswith("human"):
        return word[:-3] + "men"
    if re.search(r"[^aeiou]y$", word):
        return word[:-1] + "ies"
    return word + ("es" if re.search(r"(s|x|z|ch|sh)$", word) else "s")


def words_of(text: str) -> list[str]:
    """Words and punctuation marks; don't is do n't and dog's is dog 's, as the Penn Treebank has it."""
    return re.findall(r"\w+(?=n't)|n't|'(?:s|re|ve|ll|d|m)\b|\w+(?:-\w+)*|\.{2,}|[^\w\s]", text)
