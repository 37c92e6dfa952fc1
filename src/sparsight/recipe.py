"""Recipe: score + select + reduce + schedule + where, with their numbers. Printable, hashable, without tensors."""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal

import torch

from . import registry
from .errors import PruneError, shown
from .ops.schedule import IN_BLOCKS as IN_BLOCKS
from .ops.schedule import PLACES, Schedule, show, spell
from .ops.score import Importance, check_order, class_attention, column_mean, column_norm

Attention = Literal["making", "consuming"]
Value = int | float | bool | str | tuple[Any, ...] | None


@dataclass(frozen=True)
class Weight:
    """A learned tensor that a method needs at every site: its shape, and the normal distribution that it starts from."""

    shape: tuple[int, ...]
    std: float = 0.02
    mean: float = 0.0


Weights = Callable[[int, int], dict[str, Weight]]
"""Width of the tokens, count of tokens left at the site -> learned tensors by name."""


@dataclass(frozen=True, init=False)
class Step:
    """A function of signals with its numbers filled in; what is left of its parameters are the signals it needs."""

    function: Callable[..., Any]
    numbers: tuple[tuple[str, Value], ...]

    def __init__(self, function: Callable[..., Any], **numbers: Value) -> None:
        object.__setattr__(self, "function", function)
        object.__setattr__(self, "numbers", tuple(sorted(numbers.items())))
        _ = self.fixed, self.spelt, self.needs  # made here, where no compiler sees the numbers themselves

    @cached_property
    def bound(self) -> dict[str, Value]:
        """The numbers by name."""
        return dict(self.numbers)

    @cached_property
    def fixed(self) -> dict[str, Value]:
        """The numbers by name, without floats."""
        return {name: value for name, value in self.numbers if not isinstance(value, float)}

    @cached_property
    def spelt(self) -> dict[str, str]:
        """Floats by name, as text (see `ops.schedule.spell`)."""
        return {name: spell(value) for name, value in self.numbers if isinstance(value, float)}

    @cached_property
    def needs(self) -> tuple[str, ...]:
        """Names of the signals, in the order of the function's signature."""
        return tuple(name for name in inspect.signature(self.function).parameters if name not in self.bound)

    def run(self, signals: Mapping[str, Any]) -> Any:
        """Call the function with the signals that it needs; there may be others among them."""
        given = {name: signals[name] for name in self.needs}
        if torch.compiler.is_compiling():
            return self.function(**given, **self.fixed, **{name: float(text) for name, text in self.spelt.items()})
        return self.function(**given, **self.bound)


def attention_score(kind: Importance, order: float = 2.0) -> Step:
    """The score by attention of that name; order: that of Col-Ln."""
    if kind != "col_ln":
        return Step(class_attention if kind == "class" else column_mean)
    return Step(column_norm, order=check_order(order), heads="mean", rows="patches", diagonal=True, stride=1)


def as_step(step: Step | Callable[..., Any]) -> Step:
    """A bare function counts as a Step without numbers."""
    return step if isinstance(step, Step) else Step(step)


@dataclass(frozen=True)
class Recipe:
    """A complete way of reducing tokens.

    score        signals -> s [B, N], higher = keep; None when `select` works from the signals directly.
    select       signals, s, count -> Plan.
    reduce       x, plan, size, ... -> (x', size').
    schedule     which blocks, how many tokens.
    where        one of `PLACES`.
    text         what the signal `text` is in a vision-language model, before its language model: "llm" the embeddings of the question's words,
                 "clip" CLIP's text embeddings that `prune` is given, "clip:NAME" those that this CLIP makes of the question ("": "llm").
    shallow      which earlier block the signals `shallow_q`, `shallow_k` and their kin are of: (8, 24) block 8 of 24, scaled to the encoder's
                 depth, (8, 0) block 8 itself; None for recipes that ask for none of them.
    proportional later attention adds log(size) to the keys of merged tokens.
    attention    in a vision-language model, of which encoder layer: "making" the features that the projector gets, or "consuming" them.
    per_tile     in a vision-language model, the budget is that of each tile or frame instead of the whole image's.
    fewer        in a vision-language model, an image with fewer tokens than `tokens` asks for: "keep" them all, or an "error".
    separators   in a vision-language model, text inside an image's span (row breaks, tile marks): "keep" it, or "drop" it as soon as a
                 token of the image leaves.
    adaptive     inside a vision model: images of a batch may keep different numbers of tokens (a Plan with `valid`).
    remembers    the weights hold a `cache` of class tokens; each site puts the one most like the image's into its block's attention.
    hides        in training no token leaves: `size` says 1 or 0, and later attention sees a token with 0 only from itself.
    weights      of a learned method: what its steps find in the signal `weights`. The tensors themselves belong to the Handle.
    file         where `prune` finds them if it is given none: a .safetensors file, or "random".
    name, params stamped by the registry: with them the recipe has a string and a JSON form.
    """

    score: Step | Callable[..., Any] | None
    select: Step | Callable[..., Any]
    reduce: Step | Callable[..., Any]
    schedule: Schedule
    where: str = "attn"
    text: str = ""
    shallow: tuple[int, int] | None = None
    proportional: bool = False
    attention: Attention = "making"
    per_tile: bool = False
    fewer: Literal["keep", "error"] = "keep"
    separators: Literal["keep", "drop"] = "keep"
    adaptive: bool = False
    hides: bool = False
    remembers: bool = False
    weights: Weights | None = None
    file: str = ""
    name: str = "custom"
    params: tuple[tuple[str, Value], ...] = ()
    shown: tuple[str, ...] = field(default=(), compare=False, repr=False)
    steps: tuple[Step, ...] = field(init=False, compare=False, repr=False)
    """The steps that are there, in the order in which they run."""

    def __post_init__(self) -> None:
        for part in ("score", "select", "reduce"):
            if getattr(self, part) is not None:
                object.__setattr__(self, part, as_step(getattr(self, part)))
        steps = (as_step(step) for step in (self.score, self.select, self.reduce) if step is not None)
        object.__setattr__(self, "steps", tuple(steps))
        if self.where not in PLACES:
            raise PruneError(f"where={shown(self.where)} is not known; choose one of {', '.join(PLACES)}")
        asked = [name for name in self.needs if name.startswith("shallow_")]
        if asked and self.shallow is None:
            raise PruneError(f"a recipe that asks for {', '.join(asked)} says of which block: Recipe(..., shallow=(8, 24))")

    @cached_property
    def needs(self) -> tuple[str, ...]:
        """What the steps' functions ask for, without numbers: signals and what one step hands to the next."""
        return tuple(dict.fromkeys(name for step in self.steps for name in step.needs))

    def __str__(self) -> str:
        values = dict(self.params)
        body = ",".join(f"{name}={show(values[name])}" for name in self.shown)
        return f"{self.name}:{body}" if body else self.name

    def to_json(self) -> str:
        """The method's name and all its parameters as JSON text; `from_json` is the inverse."""
        if self.name == "custom":
            raise PruneError("a recipe built by hand has no JSON form; register it with @sparsight.registry.method")
        values = {name: show(value) if isinstance(value, float) else value for name, value in self.params}
        return json.dumps({"method": self.name, "params": values})

    @staticmethod
    def from_json(text: str) -> Recipe:
        """Read what `to_json` wrote. Raises PruneError for anything else."""
        form = "expected {'method': ..., 'params': {...}}"
        try:
            data = json.loads(text)
        except (ValueError, TypeError, RecursionError) as error:
            raise PruneError(f"not a recipe in JSON: {shown(str(error))}; {form}") from None
        if not isinstance(data, dict) or not isinstance(data.get("method"), str) or not isinstance(data.get("params"), dict):
            raise PruneError(f"not a recipe in JSON: {shown(data)}; {form}")
        return registry.make(data["method"], **data["params"])
