"""Look at safetensors checkpoints before anything heavy: readable, fitting, and never pickled."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from ..errors import PruneError, shown

WEIGHTS = ("weight", "bias", "pos_embed", "cls_token")
PICKLED = (".pt", ".pth", ".bin", ".ckpt", ".pkl", ".pickle", ".tar")
HUB_FILES = ("config.json", "model.safetensors", "pytorch_model.bin", "open_clip_model.safetensors", "open_clip_pytorch_model.bin")
Shapes = dict[str, tuple[int, ...]]
"""Shape of every tensor of a checkpoint or model, by name."""


def read_shapes(path: Path) -> Shapes:
    """Names and shapes of the tensors in a safetensors file; a PruneError if it is damaged."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            return {key: tuple(file.get_slice(key).get_shape()) for key in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise PruneError(f"{path} is no readable safetensors file ({one_line(error)}); fetch or save it again") from None


def check_floats(path: Path) -> None:
    """Raise PruneError if the weights in a safetensors file are whole numbers: filled into a model, they would be nonsense."""
    from safetensors import safe_open

    with safe_open(path, framework="pt") as file:
        kinds = {key: str(file.get_slice(key).get_dtype()) for key in file.keys() if key.endswith(WEIGHTS)}  # noqa: SIM118
    whole = [key for key, kind in kinds.items() if not kind.startswith(("F", "BF"))]
    if whole:
        raise PruneError(
            f"{path} holds {kinds[whole[0]]} in {len(whole)} weights ({', '.join(whole[:3])}{', ...' if len(whole) > 3 else ''}); "
            "floating point is needed: save the weights before they were quantised"
        )


def read_config(folder: Path) -> dict[str, Any]:
    """A model folder's config.json. Raises PruneError for what is none."""
    file = folder / "config.json"
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise PruneError(
            f"model folder {folder} has no config.json; save a model there with save_pretrained, or name a file as ARCH@FILE.safetensors"
        ) from None
    except (OSError, ValueError, RecursionError) as error:
        raise PruneError(f"{file} cannot be read: {one_line(error)}") from None
    if not isinstance(config, dict):
        raise PruneError(f"{file} is neither timm's (architecture) nor transformers' (model_type), but a {type(config).__name__}")
    kinds = {"model_type": str, "architecture": str, "architectures": list, "num_classes": int}
    for name, kind in kinds.items():
        if config.get(name) is not None and not isinstance(config[name], kind):
            raise PruneError(f"{file} has {name}={shown(config[name])}, which is no {kind.__name__}; save the model again")
    if not all(isinstance(name, str) for name in config.get("architectures") or []):
        raise PruneError(f"{file} has architectures={shown(config['architectures'])}; a list of names is needed")
    return config


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files that hold the folder's weights; a PruneError where there are none, or only pickled ones."""
    whole = folder / "model.safetensors"
    files = [whole] if whole.is_file() else sorted(folder.glob("*.safetensors"))
    if files:
        return files
    for file in sorted(folder.iterdir()):
        if file.name.lower().endswith(PICKLED):
            raise pickled(str(file))
    raise PruneError(f"model folder {folder} has no model.safetensors; save the weights there with save_pretrained")


def check_reach(source: str, kind: str = "model", seconds: float = 5) -> None:
    """Raise huggingface_hub's own error at once, not after minutes of retries, if a repository is neither in the cache nor within reach.

    source: OWNER/NAME, with @REVISION; addresses of single files, and offline mode, are left to who downloads.
    """
    from huggingface_hub import HfApi, constants, try_to_load_from_cache

    repository, _, revision = source.partition("@")
    if "://" in source or constants.HF_HUB_OFFLINE:
        return
    cached = (try_to_load_from_cache(repository, name, revision=revision or None, repo_type=kind) for name in HUB_FILES)
    if not any(isinstance(file, str) for file in cached):
        HfApi().repo_info(repository, repo_type=kind, revision=revision or None, timeout=seconds)


def in_cache(repository: str) -> bool:
    """Whether weights of a Hub repository lie on this machine already."""
    try:
        from huggingface_hub import try_to_load_from_cache
    except ImportError:
        return False
    return any(
        isinstance(try_to_load_from_cache(repository, name), str) for name in (*HUB_FILES[1:], "model.safetensors.index.json")
    )


def check_shapes(name: str, wanted: Shapes, found: Shapes) -> None:
    """Raise PruneError if a checkpoint does not fit a model, with a few of the tensors that differ."""
    missing = [key for key in wanted if key not in found]
    unexpected = [key for key in found if key not in wanted]
    differ = [
        f"{key} {list(found[key])} instead of {list(wanted[key])}" for key in wanted if found.get(key, wanted[key]) != wanted[key]
    ]
    complain(name, missing, unexpected, differ)


def complain(name: str, missing: Iterable[str], unexpected: Iterable[str], differ: Iterable[str]) -> None:
    """Raise PruneError if one of the lists is not empty."""
    named = (("missing", list(missing)), ("unexpected", list(unexpected)), ("of another shape", list(differ)))
    faults = [
        f"{len(keys)} tensors {what} ({', '.join(keys[:3])}{', ...' if len(keys) > 3 else ''})" for what, keys in named if keys
    ]
    if faults:
        raise PruneError(f"checkpoint does not match {name}: {'; '.join(faults)}; check the architecture")


def pickled(path: str) -> PruneError:
    """The refusal of a pickled checkpoint."""
    return PruneError(
        f"{path} is a pickled checkpoint, and reading one can run any code in it; convert it where you trust it: "
        "safetensors.torch.save_file(torch.load(PATH, weights_only=True), 'model.safetensors')"
    )


def one_line(error: Exception) -> str:
    """The kind of the error and the first line of its text."""
    return shown(f"{type(error).__name__}: {(str(error).strip() or 'no text').splitlines()[0]}", 300)
