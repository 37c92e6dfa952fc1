"""What one forward of a pruned model learns, and where hooks, blocks and handles find it.

Sites, modules and families hold only what was installed. A forward has a `ForwardState` of its own, so that any number of threads, nested
calls and image sizes may be under way at once in one model.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, TypeVar, cast

import torch
from torch import Tensor, nn

from ..latest import last, publish
from ..ops.dense import restore
from ..plan import Plan
from .site import IMAGE, Site

Made = TypeVar("Made")
NODE = "sparsight"
"""Under this name the node of an autograd graph that leads into a block knows the state of its forward."""


@dataclass(eq=False)
class SiteOutcome:
    """What happened at one site in one forward.

    previous: the outcome of the site before it, None for the first. plan: from the tokens that arrived to those that left. size [B, K, 1]:
    patches that each token stands for, None if one for all. score [B, N]: None for methods without one. hiding: tokens were hidden in
    training instead of dropped. place [B, K]: patch of every token that leaves, -1 for fused ones (only where positions follow the tokens).
    """

    site: Site
    previous: SiteOutcome | None
    plan: Plan
    size: Tensor | None
    score: Tensor | None
    hiding: bool = False
    place: Tensor | None = None

    @property
    def valid(self) -> Tensor | None:
        """[B, K]: which tokens are real; None where all are."""
        return self.plan.valid

    @property
    def entered(self) -> int:
        """How many tokens there were before the first site."""
        return self.plan.total if self.previous is None else self.previous.entered

    def weight(self, sized: bool = True) -> Tensor | None:
        """How many patches each token stands for (1 each unless sized), 0 for padding: [B, K, 1]; None if one for all."""
        size = self.size if sized else None
        if self.valid is None:
            return size
        real = self.valid.unsqueeze(-1).to(torch.float32)
        return real if size is None else size * real

    def source(self) -> Plan:
        """The plan from the image's patches to the tokens after this site, all earlier sites included."""
        return self.plan if self.previous is None else self.previous.source().then(self.plan)

    def places(self) -> Tensor:
        """Patch index of every token that leaves, -1 for fused ones: [B, K]."""
        source = self.source()
        return torch.cat([source.keep, torch.full_like(source.keep[:, :1], -1)], 1) if source.fused else source.keep

    def restore(self, x: Tensor, grid: tuple[int, int]) -> Tensor:
        """Tokens that leave here, back on the image's patches: x [B, K, C] -> [B, N, C]."""
        if self.previous is None:
            return restore(self.plan, x, grid)
        if self.plan.mix is not None:
            return self.previous.restore(restore(self.plan, x, grid), grid)
        return restore(self.source(), x, grid)


@dataclass(eq=False)
class ForwardState:
    """One forward of a pruned model.

    through: names of the calls by which it was entered and which have not ended. image: height and width of its images, (0, 0) if it was
    given none; given: the same before a site made them smaller. begun: its images have reached the patch embedding. outcomes: by
    the layer of the site. heard: outputs of modules that sites ask for. trail: q and k of the blocks that a site follows. extra: what a
    family remembers. compiled: it ran inside a compiled graph.
    """

    through: list[str] = field(default_factory=list)
    image: tuple[int, int] = (0, 0)
    given: tuple[int, int] = (0, 0)
    begun: bool = False
    compiled: bool = False
    outcomes: dict[int, SiteOutcome] = field(default_factory=dict)
    heard: dict[str, Any] = field(default_factory=dict)
    trail: dict[int, tuple[Tensor, Tensor]] = field(default_factory=dict)
    extra: dict[str, Any] = field(default_factory=dict)

    def before(self, layer: int) -> SiteOutcome | None:
        """The outcome of the last site in front of block `layer`."""
        found = None
        for at, outcome in self.outcomes.items():
            if IMAGE < at < layer and (found is None or at > found.site.layer):
                found = outcome
        return found

    def forget(self) -> None:
        """Let go of what only later sites of the same forward want."""
        self.heard.clear()
        self.trail.clear()

    @property
    def last(self) -> SiteOutcome | None:
        """The outcome of the last site."""
        return self.before(1 << 30)

    @property
    def size(self) -> Tensor | None:
        """How many patches each token stands for after the last site, 0 for padding: [B, K, 1]; None if one for all."""
        last = self.last
        return None if last is None else last.weight()

    def once(self, name: str, of: tuple[Tensor, ...], make: Callable[[], Made]) -> Made:
        """What blocks between two sites share, made of tensors that they all get; made anew where gradients are followed, since a
        checkpoint may run a block again."""
        if torch.is_grad_enabled() or torch.compiler.is_compiling():
            return make()
        known = self.extra.get(name)
        if known is None or not all(a is b for a, b in zip(known[0], of, strict=True)):
            known = self.extra[name] = of, make()
        found: Made = known[1]
        return found


class Local(threading.local):
    """The forwards of one model that are under way in a thread, innermost last."""

    def __init__(self) -> None:
        self.stack: list[ForwardState] = []


class ForwardStates:
    """The forwards of one pruned model. Copies and pickles of the model begin without any.

    In eager mode they are kept by thread, and the last one by thread or task. A compiled graph cannot ask for its thread: its forward is in
    plain attributes, which belong to the graph while it runs. newest: what a compiled part of an eager forward reads. traced: a compiled
    forward under way. compiled: the last compiled one that finished, if no eager one has since. unseen: who wants to hear of the next
    eager forward that finishes.
    """

    def __init__(self) -> None:
        self.local = Local()
        self.newest: ForwardState | None = None
        self.traced: ForwardState | None = None
        self.compiled: ForwardState | None = None
        self.unseen: list[Callable[[ForwardState], None]] = []

    def __getstate__(self) -> dict[str, Any]:
        return {}

    def __setstate__(self, _state: dict[str, Any]) -> None:
        self.__init__()  # type: ignore[misc]

    # ---- one forward begins and ends ----------------------------------------------------------------------------------

    def enter(self, through: str) -> None:
        """A call of the model, or of one of its methods, begins. What the model calls of itself before its patch embedding is the same
        forward; everything else is a forward of its own, also inside another one."""
        if torch.compiler.is_compiling():
            if self.traced is None or self.traced.begun or through in self.traced.through:
                self.traced = ForwardState(compiled=True)
            self.traced.through.append(through)
            return
        stack = self.local.stack
        outer = stack[-1] if stack else self.traced  # if it was traced, a compiled graph has been broken here
        if outer is None or outer.begun or through in outer.through:
            outer = self.newest = ForwardState()
        if not stack or stack[-1] is not outer:
            stack.append(outer)
        outer.through.append(through)

    def leave(self, through: str, completed: bool) -> None:
        """A call that `enter` saw ends, and with it what was broken off inside it."""
        if torch.compiler.is_compiling():
            if self.traced is not None and through in self.traced.through:
                self.traced.through.remove(through)
                if not self.traced.through:
                    self.traced.forget()
                    self.compiled, self.traced = self.traced, None
            return
        stack = self.local.stack
        if not any(through in state.through for state in stack):
            return
        while through not in stack[-1].through:
            stack.pop()
        stack[-1].through.remove(through)
        if not stack[-1].through:
            state = stack.pop()
            if not torch.is_grad_enabled():
                state.forget()
            if completed and state.begun:
                self.finish(state)
                told, self.unseen = self.unseen, []
                for tell in told:
                    tell(state)

    def finish(self, state: ForwardState) -> None:
        """Make it the last forward of this thread or task."""
        publish(self, state)
        self.compiled = None

    def begin(self) -> ForwardState:
        """Images reach the patch embedding: the state of their forward. Where the embedding is called by itself, this is the last forward
        from now on."""
        running = self.running()
        if running is None or running.begun:
            through = [] if running is None else running.through
            running = ForwardState(through, compiled=torch.compiler.is_compiling())
            if running.compiled:
                self.traced = self.compiled = running
            elif self.local.stack:
                self.local.stack[-1] = self.newest = running
            else:
                self.newest = running
                self.finish(running)
        running.begun = True
        return running

    # ---- finding one --------------------------------------------------------------------------------------------------

    def running(self) -> ForwardState | None:
        """The forward that is under way; None outside of one."""
        if torch.compiler.is_compiling():
            return self.newest if self.traced is None else self.traced
        return self.local.stack[-1] if self.local.stack else self.traced

    def within(self, through: str) -> bool:
        """Whether the forward under way was entered by this call."""
        running = self.running()
        return running is not None and through in running.through

    def last(self) -> ForwardState | None:
        """The last forward that finished in this thread or task, or the last compiled one."""
        if torch.compiler.is_compiling():
            return self.compiled
        return self.compiled or last(self)

    def current(self) -> ForwardState | None:
        """The forward under way, else the last one."""
        running = self.running()
        return running if running is not None or torch.compiler.is_compiling() else self.last()

    def of_block(self, x: Tensor, weak: bool) -> ForwardState:
        """The forward that a block with input x belongs to. A checkpoint runs a block again when its forward is over: the autograd node in
        front of the block knows which one it was. weak: the state holds tensors with gradients, so the graph must not hold the state."""
        if torch.compiler.is_compiling():
            return self.running() or self.begin()
        node = x.grad_fn
        if torch._C._current_graph_task_id() != -1 and node is not None:
            known = cast(Any, node.metadata).get(NODE, {}).get(self)
            again = known() if isinstance(known, weakref.ref) else known
            if again is not None:
                return again  # type: ignore[no-any-return]
        state = self.current() or self.begin()
        if node is not None:
            known = cast(Any, node.metadata).setdefault(NODE, weakref.WeakKeyDictionary())
            known[self] = weakref.ref(state) if weak else state
        return state

    @contextmanager
    def resumed(self, state: ForwardState) -> Iterator[None]:
        """While a block of a forward runs, also again in a checkpoint, hooks inside it find that forward."""
        self.local.stack.append(state)
        try:
            yield
        finally:
            self.local.stack.pop()


def enter(states: ForwardStates, through: str, _module: nn.Module, _args: Any) -> None:
    """Forward pre-hook of a module that begins a forward."""
    states.enter(through)


def leave(states: ForwardStates, through: str, _module: nn.Module, _args: Any, output: Any) -> None:
    """Forward hook, called also where the forward raised."""
    states.leave(through, output is not None)
