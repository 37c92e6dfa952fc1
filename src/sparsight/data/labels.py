"""Which logit a class name stands for: exact names, near ones, ImageNet's synsets, numbers."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from ..errors import PruneError

SYNSET = re.compile(r"n\d{8}")


@dataclass(frozen=True)
class Matching:
    """Place among the logits of every name that has one; the classes in the order of the logits; what the reader should know."""

    places: dict[str, int]
    classes: list[str]
    note: str = ""


def correspond(
    names: Sequence[str], classes: Sequence[str] | None, outputs: int, owner: str, folders: bool = True
) -> Matching | str:
    """Match the data's class names with a checkpoint's; a text says why there is no telling.

    classes: the checkpoint's class names, or None; outputs: number of its logits. Names match as they are, then without regard
    to case, "_", "-" and synonyms after a comma; ImageNet synsets (n01440764) match by timm's tables; numbers are places among
    the logits, from 0 or (where the last one asks for it) from 1. Without names, as many names as logits are taken in order.
    Raises PruneError, which names the data as `owner`, if no name matches.
    """
    if not outputs:
        return "no top-1: the model has no classifier"
    kind, whole = ("folders", "folder") if folders else ("labels", "data set")
    found = match(names, classes or [])
    if not found and all(SYNSET.fullmatch(name) for name in names):
        classes = synsets(outputs) or classes
        found = match(names, classes or [])
    if not found and (places := numbered(names, outputs)):
        ordered = list(classes or [str(index) for index in range(outputs)])
        return Matching(places, ordered, f"the {kind} are numbers and count as places among the checkpoint's classes")
    if not classes:
        if len(names) != outputs:
            return f"no top-1: the checkpoint has {outputs} classes without names, the {whole} {len(names)}"
        order = f"{'sorted ' * folders}{kind} are taken in the order of its logits"
        return Matching(
            {name: index for index, name in enumerate(names)}, list(names), f"the checkpoint has no class names; {order}"
        )
    if not found:
        raise PruneError(
            f"no {owner} is a class of the checkpoint: {kind} {sample(names)}, classes {sample(classes)}; "
            "rename them or choose another checkpoint"
        )
    return Matching(found, list(classes))


def match(names: Sequence[str], classes: Sequence[str]) -> dict[str, int]:
    """Index among the classes of every name that has one."""
    exact = {name: index for index, name in enumerate(classes)}
    loose: dict[str, set[int]] = {}
    for index, name in enumerate(classes):
        for word in {plain(name), *map(plain, name.split(","))}:
            loose.setdefault(word, set()).add(index)
    found = {}
    for name in names:
        places = loose.get(plain(name), set())
        if name in exact:
            found[name] = exact[name]
        elif len(places) == 1:
            found[name] = next(iter(places))
    return found


def plain(name: str) -> str:
    """The name without case and separators."""
    return " ".join(re.split(r"[\s_\-]+", name.casefold().strip()))


def numbered(names: Sequence[str], outputs: int) -> dict[str, int]:
    """Places of names that are all whole numbers and fit the logits, from 0 or from 1; nothing otherwise."""
    if not names or not all(name.isascii() and name.isdigit() for name in names):
        return {}
    first = int(min(map(int, names)) > 0 and max(map(int, names)) == outputs)
    return {name: int(name) - first for name in names} if max(map(int, names)) - first < outputs else {}


def synsets(outputs: int) -> list[str] | None:
    """ImageNet synset ids in the order of a classifier with so many outputs, or None if that is no known ImageNet."""
    try:
        from timm.data import ImageNetInfo, infer_imagenet_subset
    except ImportError:
        return None
    subset = infer_imagenet_subset({"num_classes": outputs})
    return list(ImageNetInfo(subset).label_names()) if subset else None


def sample(names: Sequence[str]) -> str:
    """The first few names."""
    return ", ".join(names[:4]) + (f", ... ({len(names)})" if len(names) > 4 else "")
