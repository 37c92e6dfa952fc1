"""What a model family has to say: where tokens, prefix, attention and positions live in an architecture.

A family wraps the framework's modules. At a site the block is re-composed from its own sub-modules as `attend` (attention and its
residual) and `feed` (MLP and its residual), because no hook can change the residual stream between the two. `engine` installs sites and
runs them.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, ClassVar

from torch import Tensor, nn

from ..errors import PruneError
from .site import Site
from .state import ForwardState

if TYPE_CHECKING:
    from .engine import Engine

MASKS = ("attn_mask", "attention_mask", "is_causal")
"""Names under which frameworks hand masks to their blocks."""


class Family(ABC):
    """A model seen as a row of blocks through which prefix tokens and patches flow.

    Subclasses name the model classes they serve and answer the abstract questions; one object serves one model. It holds no state of a
    forward: what depends on one gets its `ForwardState`.
    """

    name: ClassVar[str]
    classes: ClassVar[tuple[str, ...]]
    """Names of the model classes, any of which may appear among the bases of the model's class."""
    language: ClassVar[bool] = False
    """Whether a language model reads the tokens."""
    methods: ClassVar[tuple[str, ...]] = ()
    """Methods of the model, besides its forward, with which people begin a forward."""
    positional: bool = False
    """Whether every block gets positions or a bias of all tokens besides x, which have to follow those that are left."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model

    # ---- where things are ---------------------------------------------------------------------------------------------

    @property
    @abstractmethod
    def blocks(self) -> list[nn.Module]:
        """The blocks in order."""

    @property
    @abstractmethod
    def prefix(self) -> int:
        """Number of prefix tokens; the first is the class token if there is one."""

    @abstractmethod
    def grid_of(self, state: ForwardState | None) -> tuple[int, int]:
        """Patch grid (h, w) of the images of a forward; None: of the model's own image size."""

    @property
    def grid(self) -> tuple[int, int]:
        """Patch grid (h, w) of the model's own image size."""
        return self.grid_of(None)

    @abstractmethod
    def projection(self) -> nn.Module:
        """The module that turns the image [B, 3, H, W] into patch tokens."""

    def embedding(self) -> nn.Module:
        """The module that images reach first."""
        return self.projection()

    def see_images(self, state: ForwardState, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Note what `embedding` is called with: the size of the images, for the grid."""
        images = args[0] if args else None
        if isinstance(images, Tensor) and images.dim() == 4:
            state.image = (int(images.shape[-2]), int(images.shape[-1]))

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

    def entrances(self) -> dict[str, nn.Module]:
        """Modules by name whose call is a forward; the outermost one that runs counts."""
        return {"model": self.model}

    # ---- a block ------------------------------------------------------------------------------------------------------

    @abstractmethod
    def attend(self, block: nn.Module, x: Tensor, bias: Tensor | None, kwargs: dict[str, Any]) -> Tensor:
        """x plus the block's attention branch; bias [B, 1, 1, N] is added to the attention logits of the keys."""

    @abstractmethod
    def feed(self, block: nn.Module, x: Tensor) -> Tensor:
        """x plus the block's MLP branch."""

    @abstractmethod
    def taps(self, block: nn.Module) -> dict[str, nn.Module]:
        """Modules whose outputs are q, k, v (after normalisation) of the block."""

    def tap(self, module: nn.Module, record: Callable[[nn.Module, Any, Tensor], None]) -> Any:
        """Let `record` hear what a tapped module, or `projection`, makes. -> the hook's handle."""
        return module.register_forward_hook(record)

    @abstractmethod
    def heads(self, block: nn.Module, tapped: Tensor) -> Tensor:
        """A tapped output as [B, H, P+N, D]."""

    @abstractmethod
    def scale(self, block: nn.Module) -> float:
        """Factor of the attention logits."""

    def heard(self, block: nn.Module, tapped: dict[str, Tensor], kwargs: dict[str, Any]) -> dict[str, Tensor]:
        """Those of q, k, v [B, H, P+N, D] that were tapped, as the block's attention uses them; kwargs: what it got besides x."""
        return {name: self.heads(block, output) for name, output in tapped.items()}

    def follow(self, index: int, kwargs: dict[str, Any], place: Tensor | None, state: ForwardState) -> dict[str, Any]:
        """What a block gets besides x, for the tokens that are left when it is reached: those of the patches place [B, K], -1 for a token
        without one; None while all are there."""
        return kwargs

    def refuse_mask(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Masks made for the full sequence do not fit a pruned one; better to stop than to misread them."""
        masks = [*args, *(kwargs.get(name) for name in MASKS)]
        if any(mask is not None and mask is not False for mask in masks):
            raise PruneError(f"{type(self.model).__name__} was called with an attention mask; a pruned model takes none")

    # ---- what it can do -----------------------------------------------------------------------------------------------

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

    @property
    def other_sizes(self) -> bool:
        """Whether the model, as it was built, takes images of other sizes than its own."""
        return False

    @property
    def patch(self) -> tuple[int, int]:
        """Height and width of a patch in pixels."""
        h, w = self.projection().patch_size  # type: ignore[misc]
        return int(h), int(w)

    def replace_images(self, engine: Engine, smaller: Callable[[Tensor], Tensor]) -> None:  # noqa: B027
        """Hand `smaller(images)` to the model in place of its images, with positions for their size (where there are `other_sizes`)."""

    def adopt(self, other: Family) -> None:  # noqa: B027
        """Learn what another object for the same model knows of what is around it."""

    def check_sites(self, sites: list[Site]) -> None:  # noqa: B027
        """Raise PruneError for sites that this model cannot have."""

    def offers(self) -> tuple[str, ...]:
        """Signals that this model can give at a site."""
        plain = (
            "x", "q", "k", "v", "prefix", "scale", "feats", "size", "position", "grid", "valid", "training", "token_weight",
            "shallow_q", "shallow_k", "shallow_token_weight", "depth",
        )  # fmt: skip
        return plain + (("class_attn", "shallow_class_attn", "attns", "moves") if self.class_token else ())

    def install(self, engine: Engine) -> None:  # noqa: B027
        """Put hooks (`engine.hook`) and methods (`engine.replace`) on the model that only this family needs, such as a pooling that weighs
        tokens by the patches they stand for. They go when the sites go."""

    def signals(self, state: ForwardState, site: Site) -> dict[str, Any]:
        """More signals for a site, or others in place of those of the engine."""
        return {}
