"""What a pruned model of vLLM does with the images of one step: listen to the vision encoder, reduce what came out, compare lengths."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from ..errors import PruneError
from ..vlms.call_state import Listener, listen, under_way
from ..vlms.family import LVLM
from ..vlms.tiles import ImageSite, ImageTokens, KeptTokens, reduced
from .recipes import OFF, ServedRecipes, recipe_text


@dataclass(frozen=True, eq=False)
class EncodedImages:
    """Images as they leave the vision encoder and projector.

    tokens   [n, D] of each, as the language model would get them.    extras  [n, ...] of each that follow them (DeepStack), level by level.
    call     what transformers' model would have been called with: pixel_values, image_sizes, image_grid_thw.
    heard    calls of vLLM's modules by name: (args, kwargs, output).
    """

    tokens: list[Tensor]
    call: dict[str, Any]
    heard: dict[str, Any]
    extras: list[list[Tensor]] = field(default_factory=list)


class Encoder(ABC):
    """A vision encoder of vLLM, as a family of transformers' models would see it."""

    @abstractmethod
    def modules(self, family: LVLM, site: ImageSite) -> dict[str, nn.Module]:
        """The modules that have to be heard, by names of this encoder's own."""

    @abstractmethod
    def images(self, family: LVLM, site: ImageSite, given: EncodedImages) -> list[ImageTokens]:
        """The images with the signals that the site asks for."""


class ImagePruner:
    """The recipes of one model, its vision encoder, and its projector for recipes that choose before it."""

    def __init__(self, recipes: ServedRecipes, encoder: Encoder, project: Callable[[Tensor], Tensor] | None) -> None:
        self.recipes, self.family, self.encoder, self.project = recipes, recipes.family, encoder, project

    def texts(self, rows: Any) -> list[str]:
        """The recipe of every image of a step, from the field that travels with them; [] where none is pruned."""
        texts = [] if rows is None else [recipe_text(row) for row in rows]
        return texts if any(text != OFF for text in texts) else []

    @contextmanager
    def hearing(self, texts: list[str]) -> Iterator[dict[str, Any]]:
        """What these recipes ask for is heard while this lasts: name -> (args, kwargs, output)."""
        modules: dict[str, nn.Module] = {}
        for text in dict.fromkeys(texts):
            if text != OFF:
                modules.update(self.encoder.modules(self.family, self.recipes.find(text).site))
        heard: dict[str, Any] = {}
        hooks: dict[nn.Module, Any] = {}
        listen(hooks, modules.values())
        try:
            with under_way(Listener(self, dict.fromkeys(modules.values()))) as listener:
                yield heard
        finally:
            for hook in hooks.values():
                hook.remove()
        for name, module in modules.items():
            heard[name] = listener.heard[module]
            if heard[name] is None:
                raise PruneError(f"{type(module).__name__} ({name}) was not called where pruning listens to it")

    def prune(self, texts: list[str], images: EncodedImages) -> list[KeptTokens | None]:
        """What is left of every image; None where it is left as it is. Raises PruneError if that is not what the prompt was laid out for."""
        if len(texts) != len(images.tokens):
            raise PruneError(f"{len(images.tokens)} images came with {len(texts)} recipes")
        left: list[KeptTokens | None] = [None] * len(texts)
        for text in dict.fromkeys(texts):
            if text != OFF:
                self.prune_some(text, [i for i, own in enumerate(texts) if own == text], images, left)
        return left

    def prune_some(self, text: str, members: list[int], images: EncodedImages, left: list[KeptTokens | None]) -> None:
        """The images that have this recipe; what is left of them goes to its place in `left`."""
        served = self.recipes.find(text)
        given = self.encoder.images(self.family, served.site, images)
        promised = {i: served.left(given[i]) for i in members}
        members = [i for i in members if promised[i] < images.tokens[i].shape[0]]
        kept = reduced(served.site, [given[i] for i in members], self.project if served.site.where == "encoder" else None)
        for i, one in zip(members, kept, strict=True):
            if one.tokens.shape[0] != promised[i]:
                raise PruneError(
                    f"{served.recipe} left {one.tokens.shape[0]} tokens of an image whose prompt has places for {promised[i]}"
                )
            left[i] = one
