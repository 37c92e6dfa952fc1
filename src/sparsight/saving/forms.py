"""How the frameworks write their models: so that `sparsight.load` and `load_vlm`, and the frameworks themselves, read them."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..data.feed import find_processor
from ..errors import PruneError
from ..handle import unprune
from ..load.checkpoint import one_line
from ..load.demo_vlm import packaged
from ..load.models import Loaded
from ..load.open_clip import CONFIG, OPEN_CLIP, WEIGHTS, need_open_clip, open_clip_name

Look = dict[str, Any]
"""mean, std, interpolation and crop_pct of a preprocessing, as timm names them."""
Write = Callable[[nn.Module, Path, list[str] | None], None]


@dataclass(frozen=True, eq=False)
class Form:
    """How a model's folder is written. library, task: as the Hub names them; look: the preprocessing; whole: the folder's configuration
    says everything about the model, so that nobody has to try whether it is the same when it is loaded again."""

    library: str
    task: str
    write: Write
    look: Look = field(default_factory=dict)
    whole: bool = False


def home(model: nn.Module) -> str:
    """The framework that a model's class comes from."""
    return type(model).__module__.partition(".")[0]


def form_of(loaded: Loaded, processor: Any = None) -> Form:
    """How this vision model is saved. processor: of transformers; by default the one beside the weights. Raises PruneError for a model that
    could not be loaded again."""
    model: Any = loaded.model
    if hasattr(model, "default_cfg") and getattr(model, "pretrained_cfg", {}).get("architecture"):
        return timm_form(loaded)
    config = getattr(model, "config", None)
    if home(model) == "transformers" and config is not None and (processor is not None or config.name_or_path):
        return transformers_form(model, find_processor(model) if processor is None else processor)
    raise PruneError(
        f"{loaded.name} ({type(model).__name__}) cannot be saved so that it loads again; take a timm model (timm.create_model), or one of "
        "transformers with processor="
    )


def timm_form(loaded: Loaded) -> Form:
    """A timm model, with the preprocessing that it is used with."""
    from timm.data import resolve_model_data_config
    from timm.models import save_for_hf

    own = resolve_model_data_config(loaded.model)
    seen = {**own, "input_size": (3, *loaded.image_size), **described(loaded)}

    def write(model: nn.Module, folder: Path, classes: list[str] | None) -> None:
        labels = {"label_names": classes} if classes else {}
        given = {key: seen[key] for key in ("input_size", "interpolation", "mean", "std", "crop_pct")}
        save_for_hf(model, str(folder), model_config=labels, safe_serialization=True, data_config=given)

    task = "image-classification" if getattr(loaded.model, "num_classes", 0) else "image-feature-extraction"
    return Form("timm", task, write, seen)


def described(loaded: Loaded) -> Look:
    """Crop, colours and resizing of a transform made of torchvision's parts."""
    found: Look = {}
    resized = None
    for part in getattr(loaded.transform, "transforms", ()):
        name = type(part).__name__
        if name == "Resize":
            resized = part.size if isinstance(part.size, int) else min(part.size)
            found["interpolation"] = part.interpolation.value
        elif name == "Normalize":
            found |= {"mean": tuple(map(float, part.mean)), "std": tuple(map(float, part.std))}
    if resized is not None:
        found["crop_pct"] = min(1.0, min(loaded.image_size) / (resized + 0.5) if resized > min(loaded.image_size) else 1.0)
    return found


def transformers_form(model: Any, processor: Any) -> Form:
    """A vision model of transformers with its processor."""
    images = getattr(processor, "image_processor", processor)
    look = {"mean": tuple(images.image_mean), "std": tuple(images.image_std), "interpolation": "bicubic"}
    kind = type(model).__name__
    task = "image-classification" if "ForImageClassification" in kind else "image-feature-extraction"
    return Form("transformers", task, with_processor(processor), look, whole=True)


def language_form(model: Any, processor: Any = None) -> Form:
    """A vision-language model with its processor, by default the one beside its weights. Raises PruneError where there is none."""
    found = own_processor(model) if processor is None else processor
    if home(model) != "transformers" or getattr(found, "tokenizer", None) is None:
        raise PruneError(
            f"{type(model).__name__} cannot be saved so that it loads again: it takes a model of transformers and a processor with image "
            f"processor and tokenizer, got {type(found).__name__}; give processor="
        )
    return Form("transformers", "image-text-to-text", with_processor(found), whole=True)


def own_processor(model: Any) -> Any:
    """The processor from where a model of transformers was loaded."""
    from transformers import AutoProcessor

    name = packaged(str(getattr(getattr(model, "config", None), "name_or_path", "") or ""))
    if not name:
        raise PruneError(
            f"{type(model).__name__} does not say where it was loaded from; give processor=AutoProcessor.from_pretrained(...)"
        )
    try:
        return AutoProcessor.from_pretrained(name, local_files_only=Path(name).is_dir(), trust_remote_code=False)
    except Exception as error:  # whatever the hub client or transformers meets
        raise PruneError(f"the processor of {name} cannot be loaded ({one_line(error)}); give processor=") from error


def with_processor(processor: Any) -> Write:
    """Write model and processor as transformers does."""

    def write(model: nn.Module, folder: Path, classes: list[str] | None) -> None:
        model.save_pretrained(folder)  # type: ignore[operator]
        processor.save_pretrained(folder)

    return write


def open_clip_form(model: Any, architecture: str | None, processor: Any) -> Form:
    """A model of open_clip. architecture: its name, which the model itself does not know; processor: a tokenizer of its own, if it has one.
    Raises PruneError without a name that open_clip knows."""
    open_clip = need_open_clip(type(model).__name__)
    config = open_clip_config(open_clip, architecture)
    own = config.get("text_cfg", {}).get("hf_tokenizer_name")
    tokenizer = getattr(processor, "tokenizer", processor)
    if own and not callable(getattr(tokenizer, "save_pretrained", None)):
        raise PruneError(f"{architecture} reads texts by {own}; give processor=open_clip.get_tokenizer({architecture!r})")

    def write(model: nn.Module, folder: Path, classes: list[str] | None) -> None:
        from open_clip.push_to_hf_hub import save_config_for_hf
        from safetensors.torch import save_file

        save_file({name: value.contiguous() for name, value in model.state_dict().items()}, folder / WEIGHTS)
        save_config_for_hf(model, folder / CONFIG, model_config=copy.deepcopy(config))
        if own:
            tokenizer.save_pretrained(folder)

    return Form("open_clip", "zero-shot-image-classification", write)


def open_clip_config(open_clip: Any, architecture: str | None) -> dict[str, Any]:
    """The configuration of an architecture, or of a model that came from a folder."""
    name = (architecture or "").removeprefix(OPEN_CLIP).partition("@")[0].partition(":")[0]
    folder = Path(architecture or "").expanduser()
    if architecture and (folder / CONFIG).is_file():
        open_clip_name(architecture)
        config = json.loads((folder / CONFIG).read_text(encoding="utf-8")).get("model_cfg")
    else:
        config = open_clip.get_model_config(name) if name else None
    if not isinstance(config, dict):
        raise PruneError(
            f"a model of open_clip does not know the name of its architecture, and {name or 'none'} is not known; give architecture="
            "'ViT-B-32' or another of open_clip.list_models()"
        )
    return config


def bare(model: nn.Module) -> nn.Module:
    """A copy on the CPU without pruning."""
    copied = copy.deepcopy(model).cpu().eval()
    unprune(copied)
    return copied


def packed(tensors: Any, note: dict[str, str]) -> bytes:
    """A safetensors file. Tensors that share their memory get a copy each."""
    from safetensors.torch import save

    made: bytes = save({name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}, metadata=note)
    return made


def answers(model: Any, images: torch.Tensor) -> torch.Tensor:
    """What a model makes of images, whatever it calls it."""
    found = model.encode_image(images) if callable(getattr(model, "encode_image", None)) else model(images)
    result: torch.Tensor = getattr(found, "logits", found)
    return result
