"""What the vision tower gave for a picture, kept while many recipes and questions look at the same pictures.

The tower and the projector give the same for every recipe and every question: recipes act behind them. `remembering(model)` therefore
stands around the model's `get_image_features`. For a picture that it has not seen (its pixels are the key) it runs the tower on that
picture alone, and notes the features and what went through the modules that recipes listen to (q, k and v of the scoring block, the
projector's input, the class token's block). Later calls get these tensors back, and whoever listens (`call_state.Listener`) hears of the
modules as if they had run. A picture's features are bit for bit those of the picture alone, whatever else is in the batch.

A picture that `resize` has made smaller is a picture of its own, remembered where the tower needs no further word for its size (DINOv2).
Not remembered, and run every time: training and gradients, towers that are pruned themselves, several layers of features asked for in
the call, and families whose pictures are cut into tiles (`LVLM.one_row` is False). Hooks of other tools on the tower's modules do not run for a picture that
is known. At most `most` bytes are kept; the picture that was asked for longest ago leaves first.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map

from .call_state import Listener, listen, report, under_way
from .family import LVLM
from .tiles import ImageSite
from .wrapped_method import WrappedMethod, named

MOST = 256 * 2**20
HEARD = ("q", "k", "v", "class_attn", "class_token", "feats")
"""Signals that come from modules of the tower; a site that needs them all listens to every module that any recipe may listen to."""

Heard = tuple[Any, Any, Any]
"""(args, kwargs, output) of a module's call on one picture."""


@dataclass(frozen=True, eq=False)
class Remembered:
    """One picture: kind of the encoder's output, its features [n, D], what the modules that were listened to were given and gave, the bytes
    of all that."""

    kind: Callable[..., Any]
    features: Tensor
    heard: dict[nn.Module, Heard]
    listened: set[nn.Module]
    size: int


@dataclass(eq=False)
class TowerMemo:
    """Stands around `get_image_features` of one model. runs: pictures that went through the tower; replays: those that did not."""

    family: LVLM
    most: int = MOST
    known: OrderedDict[str, Remembered] = field(default_factory=OrderedDict)
    size: int = 0
    runs: int = 0
    replays: int = 0
    hooks: dict[nn.Module, Any] = field(default_factory=dict)

    def __call__(self, run: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """The features of a call's pictures, each from the memo where it is known."""
        call = named(run, args, kwargs)
        if not self.usable(call):
            return run(*args, **kwargs)
        modules = self.modules(call)
        pixels = call["pixel_values"]
        found = [self.of_picture(run, {**call, "pixel_values": pixels[i : i + 1]}, modules) for i in range(len(pixels))]
        for module in modules:
            if all(module in one.heard for one in found):
                report(module, *together([one.heard[module] for one in found]))
        return found[0].kind(pooler_output=[one.features for one in found])

    def usable(self, call: dict[str, Any]) -> bool:
        """Whether the pictures of a call can be taken one by one."""
        pixels, tower = call.get("pixel_values"), self.family.core.vision_tower
        plain = isinstance(pixels, Tensor) and pixels.dim() == 4 and len(pixels) > 0
        others = all(value is None for name, value in call.items() if name not in ("pixel_values", "return_dict"))
        free = not torch.is_grad_enabled() and not self.family.core.training
        return plain and others and free and not any("_sparsight" in module.__dict__ for module in tower.modules())

    def modules(self, call: dict[str, Any]) -> set[nn.Module]:
        """All modules that a recipe may listen to in this call; of earlier blocks those of the recipe at work."""
        usual = (ImageSite("encoder", HEARD, nothing, int, consuming=consuming) for consuming in (False, True))
        pruned = getattr(self.family.model, "_sparsight", self.family)
        sites = (*usual, *(site for site in pruned.sites if site.where != "image"))
        return {module for site in sites for module in self.family.taps("image", call, site).values()}

    def of_picture(self, run: Callable[..., Any], call: dict[str, Any], modules: set[nn.Module]) -> Remembered:
        """One picture: from the memo, or run and noted, again where somebody listens to another module than before."""
        key = fingerprint(call["pixel_values"])
        known = self.known.pop(key, None)
        if known is not None and modules <= known.listened:
            self.known[key] = known
            self.replays += 1
            return known
        if known is not None:
            modules, self.size = modules | known.listened, self.size - known.size
        self.runs += 1
        listen(self.hooks, modules)
        with under_way(Listener(self, dict.fromkeys(modules))) as listener:
            output = run(**{**call, "return_dict": True})
        heard = {module: record for module, record in listener.heard.items() if record is not None}
        features = output.pooler_output[0]
        made = Remembered(type(output), features, heard, modules, size_of([features, *heard.values()]))
        self.known[key] = made
        self.size += made.size
        while self.size > self.most and len(self.known) > 1:
            self.size -= self.known.popitem(last=False)[1].size
        return made

    def forget(self) -> None:
        """Let go of hooks and tensors."""
        for hook in self.hooks.values():
            hook.remove()
        self.hooks, self.size = {}, 0
        self.known.clear()


@contextmanager
def remembering(family: LVLM, most: int = MOST) -> Iterator[TowerMemo | None]:
    """Remember pictures while this lasts; None, and nothing happens, for families whose pictures are cut into tiles. The weights must not change meanwhile."""
    if not family.one_row:
        yield None
        return
    memo = TowerMemo(family, most)
    method = WrappedMethod(family.core, "get_image_features", memo).install()
    try:
        yield memo
    finally:
        method.remove()
        memo.forget()


def nothing(_given: dict[str, Any]) -> Any:
    """The step of a site that only listens."""
    raise NotImplementedError


def fingerprint(pixels: Tensor) -> str:
    """Of a picture's pixels."""
    mark = hashlib.blake2b(f"{pixels.dtype} {list(pixels.shape)} {pixels.device}".encode(), digest_size=16)
    mark.update(pixels.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return mark.hexdigest()


def together(parts: list[Heard]) -> Heard:
    """What a module would have been given and have given for the pictures of a batch; of one picture the very same tensors."""
    if len(parts) == 1:
        return parts[0]
    merged: Heard = tree_map(lambda *some: torch.cat(some) if isinstance(some[0], Tensor) else some[0], *parts)
    return merged


def size_of(tree: Any) -> int:
    """Bytes of all tensors, each storage once."""
    storages = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tree_leaves(tree) if isinstance(t, Tensor)}
    return sum(storages.values())
