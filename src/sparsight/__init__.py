"""Sparsight keeps only the visual tokens that matter: every token-reduction method on every Vision Transformer, one verb.

>>> handle = sparsight.prune(model, "col_ln:keep=0.7,layers=0/3/6")
>>> logits = model(images)
>>> handle.remove()
"""

import sys
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .apply import Reduced, reduce
    from .errors import PruneError
    from .handle import Handle, handle, handles, unprune
    from .load.models import Loaded, load
    from .load.vlms import load_vlm
    from .look.calibrate import calibrate
    from .look.show import show
    from .ops.score import register_score
    from .plan import Plan
    from .prune import families, fits, prune
    from .recipe import Recipe
    from .registry import methods, parse, register_family
    from .saving.hub import push_to_hub
    from .saving.save import save_pretrained
    from .speed.compile import compile
    from .speed.macs import macs
    from .stack import Stack
    from .train.train import train
    from .tune.tune import tune

__version__ = "0.1.0"

_HOMES = {
    "Handle": "handle",
    "Loaded": "load.models",
    "Plan": "plan",
    "PruneError": "errors",
    "Recipe": "recipe",
    "Reduced": "apply",
    "Stack": "stack",
    "calibrate": "look.calibrate",
    "compile": "speed.compile",
    "families": "prune",
    "fits": "prune",
    "handle": "handle",
    "handles": "handle",
    "load": "load.models",
    "load_vlm": "load.vlms",
    "macs": "speed.macs",
    "methods": "registry",
    "parse": "registry",
    "prune": "prune",
    "push_to_hub": "saving.hub",
    "reduce": "apply",
    "register_family": "registry",
    "register_score": "ops.score",
    "save_pretrained": "saving.save",
    "show": "look.show",
    "train": "train.train",
    "tune": "tune.tune",
    "unprune": "handle",
}

__all__ = [
    "Handle", "Loaded", "Plan", "PruneError", "Recipe", "Reduced", "Stack", "calibrate", "compile", "families", "fits", "handle", "handles",
    "load", "load_vlm", "macs", "methods", "parse", "prune", "push_to_hub", "reduce", "register_family", "register_score",
    "save_pretrained", "show", "train", "tune", "unprune",
]  # fmt: skip


def __getattr__(name: str) -> object:
    """Public names are loaded on first use, so that `sparsight --help` does not wait for torch."""
    if name not in _HOMES:
        raise AttributeError(f"module 'sparsight' has no attribute {name!r}")
    value: object = getattr(import_module(f".{_HOMES[name]}", __name__), name)
    globals()[name] = value
    return value


class _Package(ModuleType):
    """`prune` and `methods` are public functions that live in submodules of the same name; importing those must not hide them."""

    def __setattr__(self, name: str, value: object) -> None:
        if not (name in _HOMES and isinstance(value, ModuleType)):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package


def __dir__() -> list[str]:
    return sorted([*__all__, "__version__"])
