"""Weights of learned methods (SiT, DynamicViT ...): where they come from and what holds them beside the model."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from .errors import PruneError
from .ops.schedule import Schedule, as_tuple
from .recipe import Recipe, Weight

Given = str | PathLike[str] | Mapping[str, Any] | Sequence[Mapping[str, Any]]

SEED = 0


def build(name: str, given: Given | None, wanted: list[dict[str, Weight]], place: Tensor) -> nn.ModuleList:
    """One module of parameters per site, on the device and with the floating point type of `place`.

    given: "random" (normal numbers from a fixed seed, to train from), a .safetensors file, one mapping for all sites, one per site,
    or what `handle.learned.state_dict()` gives ("0.queries" is the first site's). Raises PruneError where names or shapes differ.
    """
    if given is None:
        raise PruneError(
            f"{name} is a learned method: give weights= {described(wanted[0])} (one mapping, or a list with one per site), a "
            ".safetensors file with them (in a recipe string too), or 'random' to train from scratch"
        )
    generator = torch.Generator().manual_seed(SEED)
    if isinstance(given, str) and given == "random":
        sites = [{key: start(weight, generator, place.device) for key, weight in site.items()} for site in wanted]
    else:
        sites = per_site(name, given, wanted)
        for found, site in zip(sites, wanted, strict=True):
            check_weights(name, found, site)
    return nn.ModuleList(holder({key: value.detach().to(place, copy=True) for key, value in site.items()}) for site in sites)


def holder(tensors: dict[str, Tensor]) -> nn.Module:
    """A module whose parameters bear the tensors' names, dots included, so that `named_parameters` gives them back."""
    root = nn.Module()
    for name, tensor in tensors.items():
        *path, leaf = name.split(".")
        node = root
        for part in path:
            if part not in node._modules:
                node.add_module(part, nn.Module())
            node = node.get_submodule(part)
        node.register_parameter(leaf, nn.Parameter(tensor))
    return root


def start(weight: Weight, generator: torch.Generator, device: torch.device) -> Tensor:
    """A tensor to train from; without content on the meta device."""
    if device.type == "meta":
        return torch.empty(weight.shape, device=device)
    return torch.randn(weight.shape, generator=generator) * weight.std + weight.mean


def per_site(name: str, given: Given, wanted: list[dict[str, Weight]]) -> list[dict[str, Any]]:
    """What was given as one mapping per site."""
    if isinstance(given, (str, PathLike)):
        given = read(Path(given))
    if isinstance(given, Mapping) and given and all(key.partition(".")[0].isdigit() for key in given):
        pieces: dict[int, dict[str, Any]] = {}
        for key, value in given.items():
            site, _, rest = key.partition(".")
            pieces.setdefault(int(site), {})[rest] = value
        given = [pieces[site] for site in sorted(pieces)]
    if isinstance(given, Mapping):
        return [dict(given) for _ in wanted]
    if isinstance(given, str) or not isinstance(given, Sequence) or not all(isinstance(one, Mapping) for one in given):
        raise PruneError(
            f"weights= must be a mapping, a list of mappings, a .safetensors file or 'random', got {type(given).__name__}"
        )
    if len(given) != len(wanted):
        raise PruneError(f"{name}: weights= has {len(given)} sites and the recipe {len(wanted)}; give one mapping for each site")
    return [dict(one) for one in given if isinstance(one, Mapping)]


def read(path: Path) -> dict[str, Tensor]:
    """The tensors of a .safetensors file."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        tensors: dict[str, Tensor] = load_file(path)
    except (OSError, SafetensorError) as error:
        raise PruneError(
            f"weights={str(path)!r} cannot be read as a .safetensors file ({error}); write it with "
            "safetensors.torch.save_file(handle.learned.state_dict(), FILE)"
        ) from None
    return tensors


def check_weights(name: str, found: Any, wanted: dict[str, Weight]) -> None:
    """Raise PruneError unless the tensors are those that are wanted, by name and shape."""
    if not isinstance(found, Mapping):
        raise PruneError(f"weights must be {described(wanted)}, got {type(found).__name__}")
    if found.keys() != wanted.keys():
        raise PruneError(f"{name} needs weights {described(wanted)}; got {', '.join(map(str, found)) or 'none'}")
    for key, weight in wanted.items():
        shape = tuple(found[key].shape) if isinstance(found[key], Tensor) else type(found[key]).__name__
        if shape != weight.shape:
            raise PruneError(f"{name}: weight {key} must be a tensor {list(weight.shape)}, got {shape}")


def ratio_loss(recipe: Recipe, outcomes: Sequence[Any], sites: int) -> Tensor:
    """Mean over sites and images of (share kept - share of the budget)^2, of the last training forward. Raises PruneError if there was
    none. DynamicViT, arXiv:2106.02034."""
    if not recipe.hides:
        raise PruneError(f"ratio_loss is for methods that draw their tokens in training, such as dynamicvit, not for {recipe.name}")
    if len(outcomes) < sites or not all(outcome.hiding and outcome.size is not None for outcome in outcomes):
        raise PruneError("ratio_loss needs a forward in training mode: call model.train(), then the model")
    losses = []
    for index, outcome in enumerate(outcomes):
        n = outcome.size.shape[1]
        target = budget(recipe.schedule, n, index, sites)
        losses.append((outcome.size.mean(dim=(1, 2)) - target).square().mean())
    return torch.stack(losses).mean()


def budget(schedule: Schedule, n: int, site: int, sites: int) -> float:
    """The share of n tokens that is to be left after a site, without rounding where the budget is a fraction."""
    if schedule.keep is None or not schedule.compound:
        left = n
        for earlier in range(site + 1):
            left = schedule.count(left, earlier, sites, n)
        return left / n
    amounts = as_tuple(schedule.keep)
    return math.prod(amounts[: site + 1]) if len(amounts) > 1 else amounts[0] ** (site + 1)


def described(wanted: dict[str, Weight]) -> str:
    return "{" + ", ".join(f"{key}: {list(weight.shape)}" for key, weight in wanted.items()) + "}"
