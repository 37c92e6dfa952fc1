"""What a model family has to say, and the site code that all families share.

A family wraps the framework's modules. At a site the block is re-composed from its own sub-modules as `attend` (attention and its
residual) and `feed` (MLP and its residual), because no hook can change the residual stream between the two.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ..errors import PruneError
from ..plan import Plan
from ._line import MASKS, Line, Straight
from ._lines import Lines
from ._packed import install, uninstall
from .capture import record, recorded
from .engine import pruned_forward
from .key_bias import key_bias
from .site import Site, asked, check_order


class Family(ABC):
    """A model seen as a row of blocks through which prefix tokens and patches flow.

    Subclasses name the model classes they serve and answer the abstract questions; one object serves one model.
    """

    name: ClassVar[str]
    classes: ClassVar[tuple[str, ...]]
    """Names of the model classes, any of which may appear among the bases of the model's class."""
    positional: bool = False
    """Whether every block gets positions or a bias of all tokens besides x, which have to follow those that are left."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.sites: list[Site] = []
        self.patched: list[nn.Module] = []
        self.tapped: list[nn.Module] = []
        self.hooks: list[Any] = []
        self.packed: list[nn.Module] = []
        self.lines = Lines()
        self.image = (0, 0)

    @property
    @abstractmethod
    def blocks(self) -> list[nn.Module]:
        """The blocks in order."""

    @property
    @abstractmethod
    def prefix(self) -> int:
        """Number of prefix tokens; the first is the class token if there is one."""

    @property
    @abstractmethod
    def grid(self) -> tuple[int, int]:
        """Patch grid (h, w) of the image in `self.image`, or of the model's own image size."""

    @abstractmethod
    def projection(self) -> nn.Module:
        """The module that turns the image [B, 3, H, W] into patch tokens."""

    @abstractmethod
    def attend(self, block: nn.Module, x: Tensor, bias: Tensor | None, kwargs: dict[str, Any]) -> Tensor:
        """x plus the block's attention branch; bias [B, 1, 1, N] is added to the attention logits of the keys."""

    @abstractmethod
    def feed(self, block: nn.Module, x: Tensor) -> Tensor:
        """x plus the block's MLP branch."""

    @abstractmethod
    def taps(self, block: nn.Module) -> dict[str, nn.Module]:
        """Modules whose outputs are q, k, v (after normalisation) of the block."""

    @abstractmethod
    def heads(self, block: nn.Module, tapped: Tensor) -> Tensor:
        """A tapped output as [B, H, P+N, D]."""

    @abstractmethod
    def scale(self, block: nn.Module) -> float:
        """Factor of the attention logits."""

    @abstractmethod
    def features(self, projected: Tensor) -> Tensor:
        """Output of `projection` as [B, N, C], in the order of the patches."""

    @property
    def width(self) -> int:
        """Number of channels of a token."""
        return int(self.model.embed_dim)  # type: ignore[arg-type]

    @property
    def class_token(self) -> bool:
        """Whether the first prefix token is a class token."""
        return self.prefix > 0

    @classmethod
    def serves(cls, model: nn.Module) -> bool:
        """Whether the model is of this family, by the names of its classes."""
        return any(kind.__name__ in cls.classes for kind in type(model).__mro__)

    def check(self) -> None:
        """Raise PruneError if this model has no place to prune. Classes of other libraries may bear the same name."""
        kind = type(self.model)
        try:
            _ = self.blocks, self.prefix, self.grid, self.projection()
        except AttributeError as error:
            raise PruneError(f"{kind.__name__} of {kind.__module__} is not built like {self.name}: {error}") from None

    def straight(self, block: nn.Module) -> Straight | None:
        """The parts of a block that may run as a straight line of operations in inference; None where it runs as it is."""
        return None

    def fused(self, block: nn.Module) -> bool:
        """Whether the block's attention is, at present, nothing but projections and scaled_dot_product_attention."""
        return False

    def weigh_pooling(self) -> None:  # noqa: B027
        """Make the model's average pooling weigh tokens by `last_size`; undone by `unpatch`."""

    def offers(self) -> tuple[str, ...]:
        """Signals that this model can give at a site."""
        plain = ("x", "q", "k", "v", "prefix", "scale", "feats", "size", "position", "grid", "valid", "training", "token_weight")
        return plain + (("class_attn", "attns", "moves") if self.class_token else ())

    def add(self, sites: list[Site]) -> None:
        """Install sites; refuse a place that is taken."""
        taken = {site.layer for site in self.sites}
        for site in sites:
            if site.layer in taken:
                place = "the place before the first block" if site.layer < 0 else f"block {site.layer}"
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
        for before, site in zip([None, *self.sites], self.sites, strict=False):
            site.previous = before
        if not self.sites:
            return
        self.hooks.append(self.projection().register_forward_pre_hook(self.see_image))
        packs = any(site.packs for site in self.sites)
        self.packed = install(self.projection()) if packs else []
        first = next((s for s in self.sites if s.proportional or s.adaptive or s.hides), None)
        for index, block in enumerate(self.blocks):
            here = [site for site in self.sites if site.layer == index or (index == 0 and site.layer < 0)]
            biased = first is not None and index > first.layer
            if packs:
                self.packed += install(block)
            tapped = asked(self.sites, index)
            straight = self.straight(block)
            if straight is not None and straight.known():
                self.lines.of[index] = Line(straight, tapped, biased)
            if here or biased or tapped or index in self.lines.of or (self.positional and index > self.sites[0].layer):
                self.patch_block(block, index, here)
        if any(site.layer < 0 and "feats" in site.needs for site in self.sites):
            self.tap(self.projection())
        self.model._sparsight = self  # type: ignore[assignment]
        self.weigh_pooling()

    def patch_block(self, block: nn.Module, index: int, sites: list[Site]) -> None:
        """Replace the forward of one block object; its class stays."""
        if "forward" in block.__dict__:
            raise PruneError(f"block {index} ({type(block).__name__}) has a forward of its own from another tool; undo that first")
        for name, module in self.taps(block).items():
            if name in asked(self.sites, index):
                self.tap(module)
        block._sparsight = (self, index, {site.where: site for site in sites})  # type: ignore[assignment]
        block.forward = partial(pruned_forward, block)
        self.patched.append(block)

    def tap(self, module: nn.Module) -> None:
        """Record the module's outputs from now on."""
        self.hooks.append(module.register_forward_hook(record))
        self.tapped.append(module)

    def unpatch(self) -> None:
        """Take everything off the model again, also what a forward that broke off has left behind."""
        for block in self.patched:
            del block.forward, block._sparsight
        for hook in self.hooks:
            hook.remove()
        for module in self.tapped:
            module.__dict__.pop("_sparsight_out", None)
        uninstall(self.packed)
        self.patched, self.hooks, self.tapped, self.packed, self.lines = [], [], [], [], Lines()
        self.model.__dict__.pop("_sparsight", None)

    def last_size(self) -> Tensor | None:
        """How many patches each token stands for after the last site, 0 for padding: [B, K, 1]; None if one for all."""
        return self.sites[-1].weight() if self.sites else None

    def see_image(self, _module: nn.Module, args: tuple[Any, ...]) -> None:
        """A forward begins: look at the blocks' lines, and remember the size of the images, for the grid."""
        images = args[0] if args and isinstance(args[0], Tensor) else None
        self.lines.begin(images, self.fused)
        if images is not None and images.dim() == 4:
            self.image = (int(images.shape[-2]), int(images.shape[-1]))

    def hear(self, block: nn.Module, index: int, kwargs: dict[str, Any]) -> dict[str, Tensor]:
        """What sites ask of a block's attention, q, k or v; kwargs are what it got besides x. Later sites that follow the attention
        through all blocks keep theirs."""
        names = asked(self.sites, index)
        heads = self.captured(block, names, kwargs) if names else {}
        self.note(index, heads)
        return heads

    def note(self, index: int, heads: dict[str, Any]) -> None:
        """Keep a block's q and k for later sites that follow the attention through all blocks."""
        for site in self.sites:
            if site.follows(index):
                site.trail[index] = (heads["q"].detach(), heads["k"].detach())

    def attend_early(self, site: Site, block: nn.Module, index: int, x: Tensor, kwargs: Any, line: Line | None) -> Tensor | None:
        """The survivors [B, P+K, C] with their attention branch, where a site can choose before it. line: what runs the block, if any."""
        return None

    def visit(self, site: Site, block: nn.Module, x: Tensor, heads: dict[str, Any]) -> Tensor:
        """Run one site on the whole sequence x [B, P+N, C]: set the prefix aside, reduce, put it back. heads: q, k, v of the block."""
        reduced, plan = self.decide(site, block, x, heads)
        if reduced is None:
            return plan.gather(x, self.prefix)
        return torch.cat([x[:, : self.prefix], reduced], dim=1) if self.prefix else reduced

    def decide(self, site: Site, block: nn.Module, x: Tensor, heads: dict[str, Any]) -> tuple[Tensor | None, Plan]:
        """What a site makes of x [B, P+N, C]: new patch tokens (None: those that the plan keeps, as they are), and the plan."""
        size = site.previous.size if site.previous is not None else None
        site.hiding = site.hides and block.training
        reduced, site.plan, site.size, site.score = site.step(self.signals(site, block, x[:, self.prefix :], size, heads))
        site.place = site.places() if self.positional else None
        return reduced, site.plan

    def signals(self, site: Site, block: nn.Module, x: Tensor, size: Tensor | None, heads: dict[str, Any]) -> dict[str, Any]:
        """What the site's recipe asks for."""
        given: dict[str, Any] = {"x": x, "prefix": self.prefix, "scale": self.scale(block), "entered": site.entered, **heads}
        if size is not None:
            given["size"] = size
        if site.previous is not None and site.previous.valid is not None:
            given["valid"] = site.previous.valid
        if "attns" in site.needs:
            given.update(site.followed(self.sites, given["scale"]))
        if site.layer < 0 and "feats" in site.needs:
            given["feats"] = self.features(recorded(self.projection()))
        if site.learned is not None:
            given["weights"] = dict(site.learned.named_parameters())
        if "training" in site.needs:
            given["training"] = block.training
        if "grid" in site.needs:
            given["grid"] = self.grid
        if "position" in site.needs:
            given["position"] = site.position(x)
        return given

    def captured(self, block: nn.Module, names: list[str], kwargs: dict[str, Any]) -> dict[str, Tensor]:
        """Those of q, k, v [B, H, P+N, D] that are asked for, as the block's attention has just used them."""
        taps = self.taps(block)
        return {name: self.heads(block, recorded(taps[name])) for name in names}

    def refuse_mask(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Masks made for the full sequence do not fit a pruned one; better to stop than to misread them."""
        masks = [*args, *(kwargs.get(name) for name in MASKS)]
        if any(mask is not None and mask is not False for mask in masks):
            raise PruneError(f"{type(self.model).__name__} was called with an attention mask; a pruned model takes none")

    def follow(self, index: int, kwargs: dict[str, Any]) -> dict[str, Any]:
        """What a block gets besides x, for the tokens that are left when it is reached."""
        return kwargs

    def arriving(self, index: int) -> Tensor | None:
        """Patch index of every token that arrives at a block, -1 for one without a place: [B, K]; None while all are there."""
        before = [site for site in self.sites if site.layer < index]
        return before[-1].place if before else None

    def restore(self, x: Tensor, after: int) -> Tensor:
        """Tokens that leave block `after`, back on the patches of the image: x [B, K, C] -> [B, N, C], prefix excluded."""
        before = [site for site in self.sites if site.layer <= after]
        return before[-1].restore(x, self.grid) if before else x

    def bias(self, index: int, x: Tensor) -> Tensor | None:
        """What is added to the attention logits of a block, [B, 1, 1 or P+N, P+N]; None where nothing is."""
        before = [site for site in self.sites if site.layer < index]
        return key_bias(before, self.prefix, x)
