"""Scores of questions that say what kind they are: accuracy kind by kind, POPE, MME-style pairs, CHAIR; simple and complex pictures apart.

Everything is counted picture by picture (`Tally`), as a sum over a sum, so that a score of any set of pictures, and its difference to
another recipe's on the same pictures, follow from the counts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ..data.questions import LIST, Item, plain
from ..runs.vlm_counts import MEASURES, Tally, score
from .captions import Vocabulary, words_of
from .metrics import says_no, yes_or_no

SPLITS = ("simple", "complex")


@dataclass(frozen=True)
class Names:
    """What captions may mention: the objects of all pictures, and the answers that name something."""

    known: Vocabulary

    @staticmethod
    def of(items: Sequence[Item]) -> Names:
        """From the annotations of a set."""
        found = {name for item in items for name in item.objects}
        found |= {part for item in items if item.kind == LIST for answer in item.answers for part in parts(answer)}
        return Names(Vocabulary(dict.fromkeys(sorted(found), ())))

    def mentions(self, caption: str) -> tuple[list[str], int]:
        """Objects in the order of mention and the number of words. In a list, a part between commas that is no known name is a mention
        of something that is in no picture of the set."""
        words = words_of(caption.lower())
        said, count = self.known.mentions(words)
        strange = [part for part in parts(caption) if not self.known.mentions(words_of(part))[0]]
        return [*said, *strange], count


def parts(caption: str) -> list[str]:
    """Parts of a list between commas, full stops aside."""
    return [part for part in (plain(part) for part in caption.replace(" and ", ",").split(",")) if part]


def judged(item: Item, answer: str) -> bool | None:
    """Whether an answer is right; None for lists, which are compared with what is there."""
    kind = kind_of(item)
    if kind == LIST:
        return None
    if kind == "yes_no":
        return says_no(answer) == (plain(item.answers[0]) == "no")
    return plain(answer) in {plain(one) for one in item.answers}


def kind_of(item: Item) -> str:
    """The kind of a question: what the file says, else yes_no or word by its answers."""
    return item.kind or ("yes_no" if [plain(one) for one in item.answers] in (["yes"], ["no"]) else "word")


def tally(items: Sequence[Item], answers: Sequence[str | None], names: Names | None = None) -> Tally:
    """Counts of every picture, in the order in which pictures come up. Answers of None do not count."""
    names = names or Names.of(items)
    places: dict[object, int] = {}
    for item in items:
        places.setdefault(item.images, len(places))
    counts = Tally.empty(len(places))
    both: dict[int, list[bool]] = {}
    for item, answer in zip(items, answers, strict=True):
        if answer is None:
            continue
        place, kind, right = places[item.images], kind_of(item), judged(item, answer)
        if kind == LIST:
            add_caption(counts, place, names, item, answer)
            continue
        counts.add(kind, place, bool(right), 1)
        counts.add("accuracy", place, bool(right), 1)
        if kind == "yes_no":
            yes, wanted = not says_no(answer), plain(item.answers[0]) == "yes"
            counts.add("yes", place, yes, 1)
            counts.add("f1", place, 2 * (yes and wanted), yes + wanted)
            strict = yes_or_no(answer) == ("yes" if wanted else "no")
            counts.add("mme_one", place, strict, 1)
            both.setdefault(place, []).append(strict)
    for place, rights in both.items():
        if len(rights) > 1:
            counts.add("mme_all", place, all(rights), 1)
    return counts


def add_caption(counts: Tally, place: int, names: Names, item: Item, answer: str) -> None:
    """A list of names against what is in the picture, as CHAIR counts (`captions.chair`): mentions with repeats, objects once."""
    said, words = names.mentions(answer)
    truth = {names.known.node(name) for name in item.objects}
    wrong = [name for name in said if name not in truth]
    counts.add("chair_s", place, bool(wrong), 1)
    counts.add("chair_i", place, len(wrong), len(said))
    counts.add("recall", place, len(truth & set(said)), len(truth))
    counts.add("length", place, words, 1)


def summary(items: Sequence[Item], answers: Sequence[str | None]) -> dict[str, float]:
    """Scores in percent (length in words, MME out of 200) by name, "yes_no" of all pictures and "simple/yes_no" of the simple ones; those that were asked for only."""
    counts, scenes = tally(items, answers), scenes_of(items)
    found: dict[str, float] = {}
    for split in ("", *SPLITS):
        chosen = [split in ("", scene) for scene in scenes]
        if not any(chosen) or (split and all(chosen)):
            continue
        for name in counts.measures:
            value = score(counts, name, chosen)
            if value is not None:
                found[f"{split}/{name}".strip("/")] = MEASURES[name].scale * value if name in MEASURES else 100 * value
    return found


def scenes_of(items: Sequence[Item]) -> list[str]:
    """simple, complex or nothing for every picture, in the order in which pictures come up."""
    found: dict[object, str] = {}
    for item in items:
        found[item.images] = found.get(item.images) or item.complexity
    return list(found.values())
