"""Search spaces: what may leave where. A vision model's picture and blocks, a vision-language model's image tokens and decoder."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from torch import nn

from ..errors import PruneError
from ..ops.select import smaller
from ..prune import family_of, plan_sites, prune
from ..recipe import IN_BLOCKS, Recipe, Value
from ..registry import accepted, find, make
from ..registry import methods as all_methods
from .knobs import Check, Searched, Trial, plain, searched

Stack = tuple[Recipe, ...]
"""Recipes at work together, in the order in which `prune` gets them; empty for the unpruned model."""

Place = Callable[[Trial, Searched], dict[str, Value]]
"""Budget and blocks of a method in a trial."""

NONE = "none"
SITES = ("1", "2", "3", "4", "all")
"""Blocks at which tokens leave."""
LEAST_KEEP, MOST_KEEP = 0.3, 0.95
"""Shares kept at one site."""
LEAST_LEFT = 0.1
"""Share of the tokens left behind all blocks, where some leave at every block."""


@dataclass(frozen=True)
class Slot:
    """One place with at most one method. least: budget and blocks of the cheapest recipe, where that can be said."""

    name: str
    methods: tuple[Searched, ...]
    place: Place
    least: Callable[[Searched], dict[str, Value]] | None = None

    def suggest(self, trial: Trial) -> Recipe | None:
        """The trial's recipe at this place. Raises PruneError for parameters that do not go together."""
        chosen = trial.suggest_categorical(self.name, [NONE, *(method.name for method in self.methods)])
        if chosen == NONE:
            return None
        method = next(one for one in self.methods if one.name == chosen)
        return plain(make(chosen, **{**method.given(trial), **self.place(trial, method)}))

    def __str__(self) -> str:
        return f"{self.name}: {', '.join(map(str, self.methods)) or NONE}"


@dataclass(frozen=True)
class Space:
    """What a search chooses from. check: raises PruneError for recipes that the model cannot carry out."""

    slots: tuple[Slot, ...]
    check: Callable[[Stack], object]
    facts: str = ""

    def suggest(self, trial: Trial) -> Stack:
        """The trial's recipes. Raises PruneError for parameters that do not go together, and for none at all."""
        found = tuple(recipe for slot in self.slots if (recipe := slot.suggest(trial)) is not None)
        if not found:
            raise PruneError("nothing is pruned")
        self.check(found)
        return found

    def seeds(self) -> list[dict[str, str]]:
        """Where a search begins: every method once, alone, the rest of its parameters drawn."""
        return [
            {other.name: method.name if other is slot else NONE for other in self.slots}
            for slot in self.slots
            for method in slot.methods
        ]

    def cheapest(self) -> list[Stack]:
        """Stacks of the smallest budgets, one for each method; empty where that cannot be said."""
        small = [[make(one.name, **slot.least(one)) for one in slot.methods] for slot in self.slots if slot.least is not None]
        if len(small) < len(self.slots):
            return []
        head = tuple(recipes[0] for recipes in small[:-1])
        return [stack for recipe in small[-1] if allowed(self.check, stack := (*head, recipe))] + [head] * bool(head)

    def __str__(self) -> str:
        return "; ".join(filter(None, (*map(str, self.slots), self.facts)))


def allowed(check: Callable[[Stack], object], stack: Stack) -> bool:
    """Whether the model can carry it out."""
    try:
        check(stack)
    except PruneError:
        return False
    return True


# ---- vision models ----------------------------------------------------------------------------------------------------


def vision_space(model: nn.Module, only: Sequence[str] | None = None) -> Space:
    """The space of a vision model: the picture made smaller or not, and a method in its blocks or none, with its score, selector,
    reducer, order, blocks and the share kept at each of them. only: names of the methods. Raises PruneError for a name that is not
    known or that the model cannot carry out."""
    family = family_of(model)
    check: Check = partial(plan_sites, family)
    depth, grid = len(family.blocks), family.grid
    pictures, blocks = [], []
    for method in wanted(only):
        where = kind(method)
        if where == "image" and min(grid) > 1:
            pictures.append(searched(method, check, keep=0.5))
        elif where in IN_BLOCKS:
            fixed: dict[str, Value] = {"layer": depth // 2} if "layer" in accepted(method) else {"layers": (depth // 2,)}
            blocks.append(searched(method, check, keep=0.5, **fixed))
    found = (
        Slot("picture", known(pictures), partial(picture_size, grid), partial(smallest_picture, grid)),
        Slot("method", known(blocks), partial(block_sites, depth), partial(fewest_tokens, depth)),
    )
    refuse_missing(only, found, type(model).__name__)
    slots = tuple(slot for slot in found if slot.methods)
    return Space(slots, partial(check_all, check), f"{depth} blocks, {grid[0]} x {grid[1]} patches")


def check_all(check: Check, stack: Stack) -> None:
    for recipe in stack:
        check(recipe)


def picture_size(grid: tuple[int, int], trial: Trial, method: Searched) -> dict[str, Value]:
    """A picture of whole patches, from half the side to one patch less than the whole."""
    rows = trial.suggest_int("picture.rows", max(1, grid[0] // 2), grid[0] - 1)
    return {"tokens": rows * max(1, round(rows * grid[1] / grid[0]))}


def smallest_picture(grid: tuple[int, int], method: Searched) -> dict[str, Value]:
    rows, columns = smaller(grid, max(1, grid[0] // 2) * max(1, grid[1] // 2))
    return {"tokens": rows * columns}


def block_sites(depth: int, trial: Trial, method: Searched) -> dict[str, Value]:
    """Blocks and the share kept at each: one to four evenly spaced blocks with a share of their own, or all with one share."""
    if "layer" in method.parameters:
        return {"layer": trial.suggest_int("first", 0, depth - 1), "keep": share(trial, 1)}
    sites = trial.suggest_categorical("sites", SITES)
    if sites == "all":
        left = trial.suggest_float("left", LEAST_LEFT, 0.9, step=0.05)
        return {"layers": "all", "keep": round(left ** (1 / depth), 3)}
    first, gap = trial.suggest_int("first", 0, depth - 1), trial.suggest_int("gap", 1, max(1, depth // 3))
    layers = tuple(layer for layer in range(first, first + int(sites) * gap, gap) if layer < depth)
    keep = tuple(share(trial, number) for number in range(1, len(layers) + 1))
    return {"layers": layers, "keep": keep if len(set(keep)) > 1 else keep[0]}


def share(trial: Trial, site: int) -> float:
    """The share kept at the site of that number."""
    return round(trial.suggest_float(f"keep {site}", LEAST_KEEP, MOST_KEEP, step=0.05), 2)


def fewest_tokens(depth: int, method: Searched) -> dict[str, Value]:
    if "layer" in method.parameters:
        return {"layer": 0, "keep": LEAST_KEEP}
    return {"layers": tuple(range(min(4, depth))), "keep": LEAST_KEEP}


# ---- vision-language models -------------------------------------------------------------------------------------------


def language_space(model: nn.Module, only: Sequence[str] | None = None) -> Space:
    """The space of a vision-language model: a smaller picture, a method between vision encoder and language model, or neither, with score,
    ratio and number of tokens, and one inside the language model or none, with its layers and shares. model: with or without data (a model
    on the meta device will do). only: names of the methods. Raises PruneError as `vision_space` does."""
    family = family_of(model)
    if not family.language:
        raise PruneError(f"{type(model).__name__} has no language model; `vision_space` is for vision models")
    depth = int(model.config.get_text_config().num_hidden_layers)  # type: ignore[union-attr,operator]
    patches = family.capacity()
    check: Check = partial(try_out, model)
    before, inside = [], []
    for method in wanted(only):
        where = kind(method)
        budget: dict[str, Value] = {"keep": 0.5} if patches is None else {"tokens": max(1, patches // 2)}
        if where in ("image", "encoder", "projector") or (where in IN_BLOCKS and "layer" not in accepted(method)):
            before.append(searched(method, check, **budget) or searched(method, check))
        elif where == "decoder" and depth > 1:
            inside.append(searched(method, check, **decoder_example(method, depth)))
    found = (
        Slot("before", known(before), partial(image_budget, patches)),
        Slot("inside", known(inside), partial(decoder_layers, depth)),
    )
    refuse_missing(only, found, type(model).__name__)
    slots = tuple(slot for slot in found if slot.methods)
    return Space(slots, partial(try_all, model), f"{depth} layers, {patches or 'any number of'} tokens of an image")


def try_out(model: nn.Module, recipe: Recipe) -> None:
    prune(model, recipe).remove()


def try_all(model: nn.Module, stack: Stack) -> None:
    handles = []
    try:
        for recipe in stack:
            handles.append(prune(model, recipe))
    finally:
        for handle in reversed(handles):
            handle.remove()


def image_budget(patches: int | None, trial: Trial, method: Searched) -> dict[str, Value]:
    """The number of tokens of an image (a share where images differ); nothing for methods that find it themselves."""
    if not method.example.schedule.word:
        return {}
    left = trial.suggest_float("before.left", 0.04, 0.75, log=True)
    return {"keep": float(f"{left:.2g}")} if patches is None else {"tokens": max(2, round(left * patches))}


def decoder_example(method: Any, depth: int) -> dict[str, Value]:
    sites = default_sites(method)
    if sites is None:
        return {"layer": depth // 2}
    return {"layers": spread_layers(1, depth, min(sites, depth - 1))} | falling(method, 0.5, min(sites, depth - 1))


def decoder_layers(depth: int, trial: Trial, method: Searched) -> dict[str, Value]:
    """Layers of the language model, and what is left at each of them."""
    sites = default_sites(method.method)
    left = float(f"{trial.suggest_float('inside.left', 0.05, 0.75, log=True):.2g}")
    if sites is None:
        return {"layer": trial.suggest_int("inside.first", 1, depth - 1), "keep": left}
    first = trial.suggest_int("inside.first", 1, max(1, depth - sites))
    count = min(sites, depth - first)
    return {"layers": spread_layers(first, depth, count)} | falling(method.method, left, count)


def default_sites(method: Any) -> int | None:
    """How many layers a method has by default; None for one with a single `layer`."""
    usual = {parameter.name: parameter.default for parameter in method.parameters}
    layers = usual.get("layers")
    return len(layers) if isinstance(layers, tuple) else None


def spread_layers(first: int, depth: int, count: int) -> tuple[int, ...]:
    """`count` layers from `first` on, evenly over the rest."""
    return tuple(sorted({first + index * (depth - first) // count for index in range(count)}))


def falling(method: Any, left: float, count: int) -> dict[str, Value]:
    """Shares of all image tokens that fall to `left` by equal factors, where a method counts so (its default is such a list); else
    one share."""
    usual = {parameter.name: parameter.default for parameter in method.parameters}
    if isinstance(usual.get("keep"), tuple):
        return {"keep": tuple(float(f"{left ** ((index + 1) / count):.2g}") for index in range(count))}
    return {"keep": left}


# ---- both -------------------------------------------------------------------------------------------------------------


def wanted(only: Sequence[str] | None) -> list[Any]:
    """The methods of these names, or all."""
    return all_methods() if only is None else [find(name.strip()) for name in dict.fromkeys(only)]


def kind(method: Any) -> str:
    """Where tokens leave under a method's defaults; "" if those alone make no recipe."""
    try:
        return make(method.name).where
    except PruneError:
        return ""


def known(found: Sequence[Searched | None]) -> tuple[Searched, ...]:
    return tuple(one for one in found if one is not None)


def refuse_missing(only: Sequence[str] | None, slots: Sequence[Slot], model: str) -> None:
    """Raise PruneError for a method that was asked for and cannot be searched, and for a space without any."""
    there = {method.name for slot in slots for method in slot.methods}
    missing = [name for name in only or () if name.strip() not in there]
    if missing or not there:
        choice = f"; choose from {', '.join(sorted(there))}" if there else ""
        raise PruneError(
            f"{', '.join(missing) or 'no method'} cannot be searched on {model}, which lacks the place, a signal or learned weights "
            f"for it{choice}"
        )
