"""All blocks of a pruned model as one program without Python, for images that come one after the other.

At batch 1 with few tokens a call from Python costs as much as a small product, because the product before it has emptied the caches. So
when several forwards in a row had inputs of one shape, and every block ran as a line with packed weights, the operations of all blocks
and sites are written down once; from then on TorchScript's interpreter runs them. The same operations on the same weights give the
same bits. Before every forward the model is asked whether it is as it was; if not, its blocks run one by one.

A container that calls its blocks itself replays in their place. Where a loop of the model calls them, the first block replays, and each
other hands on what the one before gave; only in a forward of the model, because loops of others may look at what is between. The rotary
tables that such a loop gives to all blocks are inputs of the recording.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import TreeSpec, tree_flatten, tree_unflatten

from ..ops.attention_shared import certain
from ..plan import Plan
from ._kernel import FEW
from ._line import FRAMEWORKS, original
from ._lines import quiet
from ._packed import Packed, rows_of
from ._snapshot import Snapshot
from ._tape import script
from .engine import pruned_forward, run_block

if TYPE_CHECKING:
    from .family import Family
    from .site import Site

AFTER, TIMES = 8, 4
"""After how many forwards of one shape in a row they are recorded, which takes as long as a hundred of them gain; and how many times as
many have to come before every further recording, so that shapes in turn do not cost more than they gain."""

PLANNED = ("keep", "merged", "mix", "valid")
"""The tensors of a Plan."""

OWN = {"forward", "forward_features"}
"""Methods of a model between which and its blocks nothing of others may come."""

LEFT = ("size", "score", "place")
"""What a site has left of a forward besides."""

NUMBERS = (int, float, str, bool)
"""What norms and activations keep besides weights."""

WEIGHTS = ("_parameters", "_buffers")
HEARD, NEXT = "_sparsight_out", "_sparsight_next"
Fresh = list[Sequence[Packed | None]]


@dataclass(frozen=True, eq=False)
class Recording:
    """A forward of all blocks, and what the model was at the time.

    program: inputs to the blocks' output, whether all statistics are certain (left out if they always are), and the sites' tensors.
    outcomes: each site's plan and the names of its tensors.
    """

    state: tuple[Any, ...]
    outcomes: list[tuple[Plan, list[str]]]
    program: Any

    def replay(self, sites: Sequence[Site], inputs: Sequence[Tensor]) -> Tensor | None:
        """The blocks' output, and the sites' outcomes where they always are; None where a statistic was not certain."""
        results = self.program(*inputs)
        first = len(results) - sum(len(names) for _, names in self.outcomes)
        if first == 2 and not results[1]:
            return None
        values = iter(results[first:])
        for site, (plan, names) in zip(sites, self.outcomes, strict=True):
            found = {name: next(values) for name in names}
            for name in LEFT:
                setattr(site, name, found.pop(name, None))
            site.plan = replace(plan, **found)
        out: Tensor = results[0]
        return out


class Recorder:
    """Sees the forwards of a container of blocks, and replays them. Copies and pickles of it have seen none.

    loop: the module whose forward calls the blocks, if the container does not.
    """

    def __init__(self, family: Family, container: nn.Module, loop: nn.Module | None = None) -> None:
        self.family, self.container, self.loop = family, container, loop
        self.line = next(iter(family.lines.of.values()))
        self.recording: Recording | None = None
        self.shape: tuple[Any, ...] = ()
        self.streak, self.after = 0, AFTER
        self.around: Snapshot | None = None
        self.weighted: list[tuple[dict[str, Any], str]] = []
        self.numbered: list[tuple[dict[str, Any], str]] = []

    def __getstate__(self) -> dict[str, Any]:
        return vars(Recorder(self.family, self.container, self.loop))

    def skip(self, index: int, x: Tensor, kwargs: dict[str, Any]) -> Tensor | None:
        """What a block in a loop gives for x without running; None if it has to run. kwargs: what it got besides x. That x is the output
        of all blocks is written on x itself, so that calls from several threads do not meet."""
        if index == 0:
            lines = self.family.lines
            alone, lines.inside = lines.inside and self.line.reads(kwargs), False
            out = self.replay(x, kwargs.get(self.line.straight.positions)) if alone else None
        else:
            out = x if vars(x).pop(NEXT, None) == index else None
        if out is not None and index + 1 < len(self.family.lines.of):
            setattr(out, NEXT, index + 1)
        return out

    def replay(self, x: Tensor, positions: Any = None) -> Tensor | None:
        """The container's output for x [B, P+N, C] and what says where its tokens are; None if its blocks have to run."""
        family, fresh = self.family, self.family.lines.complete()
        if fresh is None or type(x) is not Tensor or not quiet() or not 0 < rows_of(x) <= FEW:
            return None
        asked = {"x": x, "positions": positions, "heard": vars(family.projection()).get(HEARD)}
        given = {name: value for name, value in asked.items() if value is not None}
        inputs, form = tree_flatten(given)
        if not all(isinstance(value, Tensor) for value in inputs):
            return None
        shape = (family.image, *given, *((tensor.shape, tensor.stride(), tensor.dtype) for tensor in inputs))
        self.streak, self.shape = (self.streak + 1 if shape == self.shape else 1), shape
        if (self.recording is None and self.streak < self.after) or not self.holds():
            return None
        state = (shape, fresh, self.weights())
        if self.recording is None or self.recording.state != state:
            self.recording = None
            if self.streak < self.after:
                return None
            self.streak, self.after = 0, self.after * TIMES
            self.recording = record(family, inputs, form, state)
        out = None if self.recording is None else self.recording.replay(family.sites, inputs)
        if out is None:
            self.recording = None
        else:
            family.lines.found = {}
            vars(family.projection()).pop(HEARD, None)
        return out

    def holds(self) -> bool:
        """Whether the container and its blocks are as they were when this was asked first, and nobody listens to them."""
        if self.around is None:
            forwards = [vars(block).get("forward") for block in self.family.blocks]
            if not all(isinstance(forward, partial) and forward.func in (pruned_forward, recorded_block) for forward in forwards):
                return False
            self.around = Snapshot.around([self.container])
            lines = [line.straight for line in self.family.lines.of.values()]
            blocks = [(vars(line.block), "_parameters") for line in lines]  # also where they have no scales as yet
            states = [vars(module) for line in lines for module in line.block.modules() if module is not line.block]
            self.weighted = [*blocks, *((state, kind) for kind in WEIGHTS for state in states if state[kind])]
            read = [module for line in lines for module in (*line.all_norms, *line.mlp[1].modules())]
            self.numbered = [(vars(m), name) for m in read for name, value in vars(m).items() if type(value) in NUMBERS]
        return self.around.holds() and (self.loop is None or self.called_by(self.loop))

    def called_by(self, loop: nn.Module) -> bool:
        """Whether a module's own loop still calls the container's blocks, in the model's own forward."""
        return original(loop) and written(self.family.model) and any(child is self.container for child in loop._modules.values())

    def weights(self) -> list[Any]:
        """Which parameters and buffers the blocks have, and the numbers that modules keep beside them."""
        found: list[Any] = [id(weight) for state, kind in self.weighted for weight in state[kind].values()]
        return found + [state.get(name) for state, name in self.numbered]


def record(family: Family, inputs: Sequence[Tensor], form: TreeSpec, state: tuple[Any, ...]) -> Recording | None:
    """The blocks on inputs like these, written down; None where they cannot be."""
    with torch.inference_mode(False), torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # TorchScript is deprecated; without it, blocks run one by one
        try:
            program = script(partial(run, family, state[1], form), [tensor.clone() for tensor in inputs])
        except Exception:  # whatever a torch to come has against it
            return None
        finally:
            hear(family, tree_unflatten(inputs, form))
    outcomes = [(site.plan, list(tensors(site))) for site in family.sites if site.plan is not None]
    return Recording(state, outcomes, program)


def run(family: Family, fresh: Fresh, form: TreeSpec, *inputs: Tensor) -> list[Tensor]:
    """All blocks as lines: their output, whether all statistics are certain (left out if they always are), and the sites' tensors."""
    given = tree_unflatten(inputs, form)
    hear(family, given)
    x: Tensor = given["x"]
    doubts: list[Tensor] = []
    for site in family.sites:
        site.doubts = doubts
    try:
        for (index, line), packed in zip(family.lines.of.items(), fresh, strict=True):
            block, line.fresh = line.straight.block, packed
            besides = {line.straight.positions: given["positions"]} if "positions" in given else {}
            x = run_block(family, block, index, block.__dict__["_sparsight"][2], line, besides, x)
    finally:
        for site in family.sites:
            site.doubts = None
    trusted = [certain(doubts)] if doubts else []
    return [x, *trusted, *(tensor for site in family.sites for tensor in tensors(site).values())]


def hear(family: Family, given: dict[str, Any]) -> None:
    """Let the patch embedding have said what it said, if a site listens to it."""
    if "heard" in given:
        vars(family.projection())[HEARD] = given["heard"]


def tensors(site: Site) -> dict[str, Tensor]:
    """The tensors of a site's outcome by their names."""
    values = {**{name: getattr(site.plan, name) for name in PLANNED}, **{name: getattr(site, name) for name in LEFT}}
    return {name: value for name, value in values.items() if value is not None}


def written(model: nn.Module) -> bool:
    """Whether a model's forward is a framework's, and no other tool has put its own over it."""
    own: Any = type(model).forward
    return own.__module__.partition(".")[0] in FRAMEWORKS and not OWN & vars(model).keys()


def records(family: Family) -> bool:
    """Whether all blocks have lines, and all that the sites do is the same operations for every image."""
    fixed = all(site.packs and not (site.adaptive or site.hides or site.learned) for site in family.sites)
    return fixed and bool(family.sites) and len(family.lines.of) == len(family.blocks)


def install(family: Family, container: nn.Module) -> None:
    """Let a container that calls all blocks replay its forwards."""
    if type(container) is nn.Sequential and "forward" not in container.__dict__ and records(family):
        container._sparsight = Recorder(family, container)  # type: ignore[assignment]
        container.forward = partial(recorded_forward, container)  # type: ignore[method-assign]


def install_in_loop(family: Family, container: nn.Module | None, loop: nn.Module, announced: bool = False) -> None:
    """Let the first block of a container replay all of them, which the forward of the module `loop` calls one by one. announced: the
    family itself says when a forward of the model begins of which only the result is asked for."""
    if type(container) is nn.ModuleList and records(family):
        recorder = Recorder(family, container, loop)
        for index, block in enumerate(family.blocks):
            block.forward = partial(recorded_block, recorder, index, block)
        if not announced:
            family.hooks.append(family.model.register_forward_pre_hook(partial(begins, family), with_kwargs=True))


def begins(family: Family, _module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """A forward of the model begins: with arguments besides the images more than its result may be asked for."""
    if not torch.compiler.is_compiling():
        family.lines.called = len(args) < 2 and not kwargs


def uninstall(container: nn.Module) -> None:
    """Take off what `install` has put on a container; blocks lose their forward with the rest."""
    if container.__dict__.pop("_sparsight", None) is not None:
        container.__dict__.pop("forward", None)


def recorded_forward(self: nn.Sequential, x: Tensor) -> Tensor:
    """The forward of a container of pruned blocks."""
    out = None if torch.compiler.is_compiling() else self.__dict__["_sparsight"].replay(x)
    return nn.Sequential.forward(self, x) if out is None else out  # type: ignore[no-any-return, no-untyped-call]


def recorded_block(recorder: Recorder, index: int, self: nn.Module, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    """The forward of a pruned block that a loop calls. args: the mask that transformers makes for its layers, which blocks leave unread."""
    out = None if torch.compiler.is_compiling() else recorder.skip(index, x, kwargs)
    return pruned_forward(self, x, *args, **kwargs) if out is None else out
