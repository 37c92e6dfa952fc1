"""Installing sites in a model, and running a block that has some."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import PruneError
from ..ops import select
from ..ops.picture import shrunk
from ..ops.rollout import LazyAttention
from ..plan import Plan
from . import state as states
from .class_cache import forget, lengthened
from .family import Family
from .key_bias import key_bias
from .remade import Remade
from .select_first import select_first
from .site import IMAGE, Site, asked, check_order
from .state import ForwardState, ForwardStates, SiteOutcome

FEATURES = "features"
"""Where a forward keeps the output of its patch embedding."""

PLACES = {IMAGE: "the image", -1: "the place before the first block"}
"""What sites that are in no block are called."""


class Engine:
    """One model at work with sites.

    sites: in the order of the blocks. handles: what `prune` has returned for them. states: its forwards. The model knows it as `_sparsight`.
    """

    def __init__(self, family: Family) -> None:
        self.family = family
        self.sites: list[Site] = []
        self.handles: list[Any] = []
        self.states = ForwardStates()
        self.patched: list[nn.Module] = []
        self.hooks: list[Any] = []
        self.replaced: list[tuple[nn.Module, str, list[Any]]] = []

    @property
    def model(self) -> nn.Module:
        return self.family.model

    # ---- installation -------------------------------------------------------------------------------------------------

    def add(self, sites: list[Site]) -> None:
        """Install sites; refuse a place that is taken."""
        self.family.check_sites(sites)
        taken = {site.layer for site in self.sites}
        for site in sites:
            if site.layer in taken:
                place = PLACES.get(site.layer, f"block {site.layer}")
                raise PruneError(f"{place} is pruned already; remove that handle first, or choose other layers")
        before, self.sites = self.sites, sorted([*self.sites, *sites], key=lambda site: site.layer)
        try:
            check_order(self.sites)
            self.patch()
        except PruneError:
            self.sites = before
            self.patch()
            raise

    def take_out(self, sites: list[Site]) -> None:
        """Take sites out again; the last one leaves the model as it was."""
        self.sites = [site for site in self.sites if not any(site is gone for gone in sites)]
        self.patch()

    def patch(self) -> None:
        """Make the model's blocks match `self.sites`, starting from the untouched model."""
        self.unpatch()
        if not self.sites:
            return
        family, sites = self.family, self.sites
        for through, module in family.entrances().items():
            self.hook(module.register_forward_pre_hook(partial(states.enter, self.states, through)))
        self.hook(family.embedding().register_forward_pre_hook(self.see_images, with_kwargs=True))
        if sites[0].layer == IMAGE:
            family.replace_images(self, partial(self.shrink, sites[0]))
            sites = sites[1:]
        first = next((site for site in sites if site.proportional or site.adaptive or site.hides), None)
        for index, block in enumerate(family.blocks):
            here = [site for site in sites if site.layer == index or (index == 0 and site.layer < 0)]
            biased = first is not None and index > first.layer
            if here or biased or asked(sites, index) or (family.positional and sites and index > sites[0].layer):
                self.patch_block(block, index, here)
        if any(site.layer < 0 and "feats" in site.needs for site in sites):
            self.hook(family.tap(family.projection(), partial(self.record, FEATURES)))
        self.model._sparsight = self  # type: ignore[assignment]
        self.replace(self.model, "extra_repr", partial(pruned_repr, self.model))
        for name in family.methods:
            if hasattr(self.model, name):
                self.replace(self.model, name, partial(entered, self.model, name))
        family.install(self)
        for through, module in family.entrances().items():
            self.hook(module.register_forward_hook(partial(states.leave, self.states, through), always_call=True))

    def patch_block(self, block: nn.Module, index: int, sites: list[Site]) -> None:
        """Replace the forward of one block object; its class stays."""
        if "forward" in block.__dict__:
            raise PruneError(f"block {index} ({type(block).__name__}) has a forward of its own from another tool; undo that first")
        names = asked(self.sites, index)
        for name, module in self.family.taps(block).items():
            if name in names:
                self.hook(self.family.tap(module, partial(self.record, name)))
        proportional = any(site.proportional for site in self.sites if site.layer < index)
        here = {site.where: site for site in sites}
        block._sparsight = PatchedBlock(self, block, index, here, names, proportional)  # type: ignore[assignment]
        block.forward = partial(pruned_forward, block)
        self.patched.append(block)

    def hook(self, handle: Any) -> None:
        """Keep a hook's handle, to remove it with the sites."""
        self.hooks.append(handle)

    def replace(self, module: nn.Module, name: str, value: Any) -> None:
        """Put a method or a setting over one of this one module, until the sites go."""
        self.replaced.append((module, name, [module.__dict__[name]] if name in module.__dict__ else []))
        module.__dict__[name] = value

    def unpatch(self) -> None:
        """Take everything off the model again."""
        for block in self.patched:
            del block.forward, block._sparsight
        for hook in self.hooks:
            hook.remove()
        for module, name, before in reversed(self.replaced):
            module.__dict__.pop(name, None)
            if before:
                module.__dict__[name] = before[0]
        self.patched, self.hooks, self.replaced = [], [], []
        self.model.__dict__.pop("_sparsight", None)

    # ---- hooks --------------------------------------------------------------------------------------------------------

    def see_images(self, _module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Images reach the patch embedding."""
        self.family.see_images(self.states.begin(), args, kwargs)

    def shrink(self, site: Site, images: Tensor) -> Tensor:
        """Images [B, 3, H, W] of a forward, so much smaller that the patches which the site's budget asks for are left, or a few less."""
        state, family = self.states.current(), self.family
        if state is None:
            return images
        state.given = state.image = (int(images.shape[-2]), int(images.shape[-1]))
        rows, columns = grid = family.grid_of(state)
        plan = select.cells(images.new_empty(len(images), rows * columns, 0), grid, site.count(rows * columns, 0))
        state.outcomes[IMAGE] = SiteOutcome(site, None, plan, None, None)
        side = select.smaller(grid, site.count(rows * columns, 0))
        if side == grid:
            return images
        state.image = (side[0] * family.patch[0], side[1] * family.patch[1])
        return shrunk(images, state.image)

    def record(self, name: str, _module: nn.Module, _args: Any, output: Tensor) -> None:
        """Keep a module's output for the site that asks for it."""
        running = self.states.running()
        if running is not None:
            running.heard[name] = output

    # ---- one site -----------------------------------------------------------------------------------------------------

    def visit(
        self, state: ForwardState, site: Site, block: nn.Module, x: Tensor, given: dict[str, Any]
    ) -> tuple[Tensor | None, Plan]:
        """Run one site on the tokens x [B, N, C], prefix excluded; given: the signals of the block's attention. -> new tokens [B, K, C]
        (None: those that the plan keeps, as they are), and the plan."""
        if site.adaptive and x.is_meta:
            raise PruneError("every image finds its own count here, which tensors on the meta device cannot tell; give a budget")
        before = state.before(site.layer)
        given = {"x": x, "prefix": self.family.prefix, **self.signals(state, site, block, before), **given}
        entered = 0 if before is None else before.entered
        reduced, plan, size, score = site.run(lambda n: site.count(n, entered), given)
        outcome = SiteOutcome(site, before, plan, size, score, hiding=site.hides and block.training)
        outcome.place = outcome.places() if self.family.positional else None
        state.outcomes[site.layer] = outcome
        return reduced, plan

    def signals(self, state: ForwardState, site: Site, block: nn.Module, before: SiteOutcome | None) -> dict[str, Any]:
        """What a recipe may ask for besides x and the block's attention."""
        family = self.family
        given: dict[str, Any] = {"scale": family.scale(block)}
        if before is not None and before.size is not None:
            given["size"] = before.size
        if before is not None and before.valid is not None:
            given["valid"] = before.valid
        if site.shallow is not None:
            given["shallow_q"], given["shallow_k"] = state.trail[site.shallow]
        if "depth" in site.needs:
            given["depth"] = max(0, site.layer) / len(family.blocks)
        if "attns" in site.needs:
            given.update(self.followed(state, site, given["scale"]))
        if site.layer < 0 and "feats" in site.needs:
            given["feats"] = family.features(taken(state, FEATURES, family.projection(), keep=torch.is_grad_enabled()))
        if site.learned is not None:
            given["weights"] = dict(site.learned.named_parameters())
        if "training" in site.needs:
            given["training"] = block.training
        if "grid" in site.needs:
            given["grid"] = family.grid_of(state)
        if "position" in site.needs and before is not None:
            given["position"] = before.places()
        return {**given, **family.signals(state, site)}

    def followed(self, state: ForwardState, site: Site, scale: float) -> dict[str, Any]:
        """The attention of all blocks up to a site, and what left between them."""
        blocks = [state.trail[layer] for layer in range(site.layer + 1)]
        plans = [state.outcomes[layer].plan if layer in state.outcomes else None for layer in range(site.layer)]
        return {"attns": LazyAttention(tuple(q for q, _ in blocks), tuple(k for _, k in blocks), scale), "moves": tuple(plans)}

    def note(self, state: ForwardState, index: int, heads: dict[str, Tensor]) -> None:
        """Keep a block's q and k for later sites that follow the attention through all blocks."""
        if any(site.follows(index) for site in self.sites):
            state.trail[index] = (heads["q"].detach(), heads["k"].detach())

    def restore(self, state: ForwardState, x: Tensor, after: int) -> Tensor:
        """Tokens that leave block `after`, back on the patches of the image: x [B, K, C] -> [B, N, C], prefix excluded."""
        before = state.before(after + 1)
        return x if before is None else before.restore(x, self.family.grid_of(state))


@dataclass(frozen=True, eq=False)
class PatchedBlock:
    """A block whose forward is replaced. sites: by their place in it. names: which of q, k, v sites ask of its attention. proportional:
    whether a site in front of it merges tokens by their sizes."""

    engine: Engine
    block: nn.Module
    index: int
    sites: dict[str, Site]
    names: list[str]
    proportional: bool


def entered(model: nn.Module, name: str, *args: Any, **kwargs: Any) -> Any:
    """A method of the model that begins a forward, such as timm's `forward_features`."""
    running, method = model._sparsight.states, getattr(type(model), name)  # type: ignore[union-attr]
    if torch.compiler.is_compiling():
        return method(model, *args, **kwargs)
    done = False
    running.enter(name)  # type: ignore[operator, union-attr]
    try:
        output = method(model, *args, **kwargs)
        done = True
    finally:
        running.leave(name, done)  # type: ignore[operator, union-attr]
    return output


def pruned_repr(model: Any) -> str:
    """The model's own `extra_repr`, and that it is pruned."""
    recipes = ", ".join(str(handle.recipe) for handle in model._sparsight.handles)
    return ", ".join(filter(None, (type(model).extra_repr(model), f"pruned by {recipes}")))


def pruned_forward(self: nn.Module, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    """The forward of a patched block. transformers' layers checkpoint inside the forward that this one replaces."""
    patched: PatchedBlock = self.__dict__["_sparsight"]
    engine = patched.engine
    if args or kwargs:
        engine.family.refuse_mask(args, kwargs)
    weak = torch.is_grad_enabled() and any(site.hides or site.learned is not None for site in engine.sites)
    state = engine.states.of_block(x, weak)
    if self.training and getattr(self, "gradient_checkpointing", False):
        checkpoint: Callable[..., Tensor] = self.__dict__["_gradient_checkpointing_func"]
        return checkpoint(partial(again, patched, state, kwargs), x)
    if torch.compiler.is_compiling() or state is engine.states.running():
        return run_block(patched, state, kwargs, x)
    return again(patched, state, kwargs, x)


def again(patched: PatchedBlock, state: ForwardState, kwargs: dict[str, Any], x: Tensor) -> Tensor:
    """A block whose forward is not under way, or may be over when a checkpoint runs it once more."""
    with patched.engine.states.resumed(state):
        return run_block(patched, state, kwargs, x)


def run_block(patched: PatchedBlock, state: ForwardState, kwargs: dict[str, Any], x: Tensor) -> Tensor:
    """The block's own arithmetic, with tokens leaving before it, in the middle or at the end."""
    engine, block, sites = patched.engine, patched.block, patched.sites
    family = engine.family
    if "input" in sites:
        x = leave_tokens(engine, state, sites["input"], block, x, {})
    before = state.before(patched.index)
    kwargs = family.follow(patched.index, kwargs, None if before is None else before.place, state)
    bias = key_bias(before, patched.proportional, family.prefix, x)
    site = sites.get("attn") or sites.get("block")
    early = select_first(patched, state, site, x, bias, kwargs) if site is not None and site.early else None
    if early is not None:
        return family.feed(block, early)
    x, heads = attend(patched, state, site, x, bias, kwargs)
    engine.note(state, patched.index, heads)
    if "attn" in sites:
        x = leave_tokens(engine, state, sites["attn"], block, x, heads)
    x = family.feed(block, x)
    if "block" in sites:
        x = leave_tokens(engine, state, sites["block"], block, x, heads)
    return x


def leave_tokens(engine: Engine, state: ForwardState, site: Site, block: nn.Module, x: Tensor, heads: dict[str, Tensor]) -> Tensor:
    """Run one site on the whole sequence x [B, P+N, C]: set the prefix aside, reduce, put it back. heads: q, k, v of the block."""
    prefix = engine.family.prefix
    reduced, plan = engine.visit(state, site, block, x[:, prefix:], heads)
    if reduced is None:
        return plan.gather(x, prefix)
    return torch.cat([x[:, :prefix], reduced], dim=1) if prefix else reduced


def attend(
    patched: PatchedBlock, state: ForwardState, site: Site | None, x: Tensor, bias: Tensor | None, kwargs: dict[str, Any]
) -> tuple[Tensor, dict[str, Tensor]]:
    """x plus the block's attention branch, and those of its q, k and v that are asked for."""
    family = patched.engine.family
    cached = None if site is None else site.class_cache(x)
    if cached is None:
        return heard(patched, state, x, bias, kwargs)
    longer = torch.cat([cached.to(x.dtype), x], dim=1)
    if bias is not None:
        bias = torch.nn.functional.pad(bias, (1, 0, int(bias.shape[2] > 1), 0))
    x, heads = heard(patched, state, longer, bias, lengthened(kwargs))
    return x[:, 1:], forget(heads, family.prefix, family.scale(patched.block))


def heard(
    patched: PatchedBlock, state: ForwardState, x: Tensor, bias: Tensor | None, kwargs: dict[str, Any]
) -> tuple[Tensor, dict[str, Tensor]]:
    """The attention as its family runs it."""
    family, block, names = patched.engine.family, patched.block, patched.names
    if isinstance(family, Remade):
        x, heads = family.attend_openly(block, x, bias, kwargs)
        return x, {name: heads[name] for name in names}
    x = family.attend(block, x, bias, kwargs)
    taps = family.taps(block) if names else {}
    return x, family.heard(block, {name: taken(state, name, taps[name]) for name in names}, kwargs)


def taken(state: ForwardState, name: str, module: nn.Module, keep: bool = False) -> Tensor:
    """What a hook has kept of a module's output; a PruneError if the hook did not fire."""
    output = state.heard.get(name) if keep else state.heard.pop(name, None)
    if output is None:
        raise PruneError(
            f"{type(module).__name__} was not called where pruning listens to it; this model runs its attention elsewhere"
        )
    assert isinstance(output, Tensor)
    return output
