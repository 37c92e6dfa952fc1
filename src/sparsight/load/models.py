"""load(name) -> Loaded: a classifier or vision tower with its own preprocessing; open_model: whatever model a tool was given."""

from __future__ import annotations

import copy
import difflib
import importlib
import math
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from ..data.fingerprint import digest
from ..data.reading import Transform
from ..demo import ARCHITECTURE, IMAGE_SIZE, demo_images, demo_weights
from ..errors import PruneError, shown
from ..recipe import Recipe
from . import demo_vlm
from .checkpoint import (
    PICKLED,
    Shapes,
    check_floats,
    check_reach,
    check_shapes,
    complain,
    one_line,
    pickled,
    read_config,
    read_shapes,
    weight_files,
)
from .open_clip import CONFIG, load_open_clip
from .saved import fetch_saved, is_saved, read_saved

HUB = ("hf_hub:", "hf-hub:")
RANDOM = "random:"
"""Before a timm name: its architecture with random weights."""
TOWERS = {"clip": "CLIPVisionModel", "siglip": "SiglipVisionModel"}
"""Model types whose whole model needs text too: the vision tower is what gets loaded."""


@dataclass(frozen=True, eq=False)
class Loaded:
    """A model in eval mode and float32, with the preprocessing of its checkpoint.

    transform: PIL image -> [3, H, W]; classes: names in the order of the logits, None where the checkpoint has none;
    image_size: (H, W) that the transform makes. recipes: under which the model was saved or trained, and is pruned now;
    evidence: what was measured of them.
    """

    name: str
    model: nn.Module = field(repr=False)
    transform: Transform = field(repr=False)
    classes: list[str] | None = field(repr=False)
    image_size: tuple[int, int]
    recipes: tuple[Recipe, ...] = ()
    evidence: dict[str, Any] | None = field(default=None, repr=False)


def twin(model: nn.Module) -> nn.Module:
    """A copy of the model that shares its weights."""
    memo: dict[int, Any] = {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())}
    return copy.deepcopy(model, memo)


def open_model(
    model: str | Loaded | nn.Module,
    transform: Transform | None = None,
    classes: Sequence[str] | None = None,
    device: str = "cpu",
    dtype: torch.dtype = torch.float32,
) -> Loaded:
    """The model of a tool, on the device, in the precision, in eval mode. Somebody's own module is copied and stays as it is.

    model: a name that `load` takes, what `load` returned, or any module that `prune` takes. transform: PIL image -> [3, H, W], by default
    that of the checkpoint (timm's configuration, or the image processor beside transformers' weights). classes: names in the order of
    the logits. Raises PruneError for what cannot be loaded and for a module whose transform is not known.
    """
    if isinstance(model, nn.Module):
        names = list(classes) if classes is not None else own_classes(model)
        like = next(model.parameters())
        same = like.device == torch.device(device) and like.dtype == dtype
        copied = twin(model) if same else copy.deepcopy(model)
        return finish(type(model).__name__, copied.to(device, dtype), transform or own_transform(model), names)
    if not isinstance(model, str | Loaded):
        raise PruneError(f"model must be a name, a module or what sparsight.load returns, got {type(model).__name__}")
    if isinstance(model, str):
        loaded = load(model)
        loaded.model.to(device, dtype)
    else:
        loaded = open_model(model.model, model.transform, model.classes, device, dtype)
        loaded = replace(loaded, name=model.name, classes=model.classes, recipes=model.recipes, evidence=model.evidence)
    if transform is not None or classes is not None:
        names = list(classes) if classes is not None else loaded.classes
        loaded = replace(finish(loaded.name, loaded.model, transform or loaded.transform, names), recipes=loaded.recipes)
    return loaded


def own_transform(model: nn.Module) -> Transform:
    """The preprocessing of somebody's own module, where its checkpoint says it."""
    if getattr(model, "pretrained_cfg", None) and hasattr(model, "default_cfg"):
        return timm_transform(model)
    if getattr(getattr(model, "config", None), "name_or_path", ""):
        from ..data.feed import find_processor

        return processor_transform(find_processor(model))
    raise PruneError(
        f"the preprocessing of {type(model).__name__} is not known; give transform=, which makes [3, H, W] of a PIL image"
    )


def own_classes(model: nn.Module) -> list[str] | None:
    """The class names of somebody's own module, where its configuration has them."""
    labels = getattr(getattr(model, "config", None), "id2label", None)
    if isinstance(labels, dict) and labels and hasattr(model, "classifier"):
        return real_names([str(labels[index]) for index in sorted(labels)])
    return timm_classes(model)


def name_of(model: str | Loaded | nn.Module) -> str:
    """What to call the model of a tool."""
    return model if isinstance(model, str) else model.name if isinstance(model, Loaded) else type(model).__name__


def at_size(loaded: Loaded, size: int | None, whole: bool = True) -> Loaded:
    """The model for pictures of size x size pixels; None: as it was. Positions are resampled, the weights stay.

    whole: pictures go in as they are, else the middle of them, as large a part as the loaded transform takes.
    """
    if size is None or (not whole and loaded.image_size == (size, size)):
        return loaded
    model, own = loaded.model, loaded.image_size == (size, size)
    patch = getattr(getattr(model, "patch_embed", None), "patch_size", None)
    if not hasattr(model, "default_cfg") or patch is None or not (own or hasattr(model, "set_input_size")):
        if own:
            return loaded
        raise PruneError(
            f"{loaded.name} takes pictures of {loaded.image_size[0]} pixels, not {size}; give size={loaded.image_size[0]}"
        )
    if size % patch[0] or size % patch[1]:
        raise PruneError(f"size={size} is no multiple of the patches of {loaded.name}, {patch[0]} pixels")
    if not own and not getattr(model, "dynamic_img_size", False):
        model = twin(model)
        model.set_input_size(img_size=size)  # type: ignore[operator]
    crop = 1.0 if whole else crop_of(loaded)
    return replace(
        loaded, model=model, transform=timm_transform(model, input_size=(3, size, size), crop_pct=crop), image_size=(size, size)
    )


def crop_of(loaded: Loaded) -> float:
    """Which part of a picture's short side the transform takes: what it crops to over what it resizes to first; 1 if it does not say."""
    first = next(iter(getattr(loaded.transform, "transforms", ())), None)
    sides = getattr(first, "size", None)
    return min(1.0, loaded.image_size[0] / (min(sides) if isinstance(sides, tuple | list) else sides)) if sides else 1.0


def data_folder(model: str | Loaded | nn.Module, data: str | Path | None) -> str | Path:
    """The images to use; the demo model brings its own."""
    if data is not None:
        return data
    name = name_of(model)
    if name == demo_vlm.NAME:
        demo_vlm.packaged(name)
        return demo_vlm.pictures()
    if name != "demo":
        raise PruneError(f"no data folder for model {name}; give one with --data (only the demo models bring images)")
    return demo_images()


def look_of(loaded: Loaded) -> str:
    """Fingerprint of the preprocessing: what it makes of one picture."""
    ramp = (np.arange(320 * 240 * 3, dtype=np.int64) * 2654435761 % 251).astype(np.uint8).reshape(240, 320, 3)
    return digest(loaded.transform(Image.fromarray(ramp)).double().sum(dim=(1, 2)).tolist())


def load(name: str = "demo") -> Loaded:
    """Load a vision model with its preprocessing and class names, ready to run on the CPU.

    name: "demo" (embedded); "demo-vlm" (the vision tower of the embedded vision-language model; `load_vlm` has the whole); a timm
    name, also with .tag or as hf_hub:REPO; a local folder as written by transformers' `save_pretrained` (model and image processor)
    by timm's `save_for_hf` or by open_clip; what `save_pretrained` or `sparsight train` wrote, pruned as it was then;
    ARCH@FILE.safetensors with a timm architecture; or random:ARCH for a timm architecture with random weights, whose speed is that of
    trained ones.
    Raises PruneError, before any heavy work where the fault shows on disk, for everything that cannot be loaded.
    """
    path = Path(name.removeprefix("local-dir:")).expanduser()
    if name == "demo":
        return load_demo()
    if name == demo_vlm.NAME:
        need("transformers", name, extra="hf")
        tower, processor = demo_vlm.load_tower()
        return finish(name, tower, processor_transform(processor), None)
    if not name.strip():
        raise PruneError("the model's name is empty; sparsight takes timm names, folders, ARCH@FILE.safetensors, and demo")
    if name.lower().endswith(PICKLED):
        raise pickled(name)
    if os.path.isdir(path):
        return load_saved(str(path), path) if is_saved(path) else load_folder(path)
    if name.startswith(HUB):
        need("timm", name)
        fetched = fetch_saved(name[len(HUB[0]) :])
        return load_timm(name) if fetched is None else load_saved(name, fetched)
    if name.startswith(RANDOM):
        return load_random(name.removeprefix(RANDOM))
    architecture, at, file = name.partition("@")
    if at:
        return load_file(architecture, Path(file).expanduser())
    if name.endswith(".safetensors"):
        raise PruneError(f"{name} is a bare checkpoint; say which timm architecture it is for, as in vit_small_patch16_224@{name}")
    if re.search(r"[/\\:]", name) or name.startswith((".", "~")):
        raise PruneError(
            f"no model folder '{shown(name)}'; for a repository of the Hugging Face Hub with timm weights write hf_hub:{shown(name)}"
        )
    return load_timm(name)


def load_demo() -> Loaded:
    """The embedded ViT-S/14 for the 101 classes of Caltech-101."""
    timm = need("timm", "the demo model")
    state, classes = demo_weights()
    model = timm.create_model(ARCHITECTURE, img_size=IMAGE_SIZE, num_classes=len(classes), dynamic_img_size=True)
    model.load_state_dict(state)
    return finish("demo", model, timm_transform(model, crop_pct=0.875), classes)


def load_timm(name: str) -> Loaded:
    """A timm model with pretrained weights from the network or its cache."""
    timm = need("timm", name)
    source = name[len(HUB[0]) :] if name.startswith(HUB) else check_timm_name(timm, name, pretrained=True)
    try:
        check_reach(source)
        model = timm.create_model(name, pretrained=True)
    except Exception as error:  # whatever the hub client, the network or the registry meets
        raise PruneError(
            f"the weights of {name} ({source}) cannot be loaded ({one_line(error)}); "
            "without network give a local folder, or ARCH@FILE.safetensors, or for its speed alone random:ARCH"
        ) from error
    return finish(name, model, timm_transform(model), timm_classes(model))


def load_random(name: str) -> Loaded:
    """A timm architecture with random weights, the same every time."""
    timm = need("timm", name)
    check_timm_name(timm, name, pretrained=False)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = timm.create_model(name, pretrained=False)
    return finish(f"{RANDOM}{name}", model, timm_transform(model), None)


def check_timm_name(timm: Any, name: str, pretrained: bool) -> str:
    """The repository or address that the name's weights come from; a PruneError with the nearest names where timm does not know it."""
    base, dot, tag = name.partition(".")
    if not timm.is_model(base):
        near = nearest(base, timm.list_models())
        hint = f"did you mean {' or '.join(near)}?" if near else "sparsight takes timm names, folders, and ARCH@FILE.safetensors"
        raise PruneError(f"timm has no model '{shown(base)}'; {hint}")
    tags = [known.partition(".")[2] for known in timm.list_models(f"{base}.*", pretrained=True)]
    if dot and tag not in tags:
        known = f"known tags: {', '.join(tags)}" if tags else "it has no pretrained weights"
        raise PruneError(f"timm's {base} has no tag {tag!r}; {known}")
    if pretrained and not tags:
        raise PruneError(f"timm has no pretrained weights of {base}; give your own as {base}@FILE.safetensors")
    config = timm.get_pretrained_cfg(name)
    return str(getattr(config, "hf_hub_id", None) or getattr(config, "url", None) or name)


def nearest(name: str, known: Sequence[str]) -> list[str]:
    """The known names most like a mistaken one: its spelling first, then those that begin with the same word (vit_nope: vit_...)."""
    close = difflib.get_close_matches(name[:100], known, n=3, cutoff=0.8)
    word = name.split("_")[0]
    family = [other for other in known if other.split("_")[0] == word]
    usual = [other for size in ("tiny", "small", "base") for other in family if other.startswith(f"{word}_{size}_patch16_224")]
    others = difflib.get_close_matches(name[:100], family or known, n=3, cutoff=0.5)
    return list(dict.fromkeys([*close, *usual, *others]))[:3]


def load_file(architecture: str, path: Path) -> Loaded:
    """A safetensors checkpoint of a timm architecture; classes and image size are read off its shapes."""
    if path.name.lower().endswith(PICKLED):
        raise pickled(str(path))
    if not os.path.isfile(path):
        raise PruneError(f"no checkpoint file {shown(str(path))}; expected {architecture or 'ARCH'}@FILE.safetensors")
    shapes = read_shapes(path)
    check_floats(path)
    timm = need("timm", f"{architecture}@{path}")
    check_timm_name(timm, architecture, pretrained=False)
    return load_timm_weights(f"{architecture}@{path}", architecture, path, shapes, fit_arguments(timm, architecture, shapes))


def fit_arguments(timm: Any, architecture: str, shapes: Shapes) -> dict[str, Any]:
    """num_classes, and img_size where the position table asks for another one than the architecture's."""
    with torch.device("meta"):
        shell = timm.create_model(architecture)
    head = shapes.get(f"{shell.pretrained_cfg.get('classifier') or 'head'}.weight")
    arguments: dict[str, Any] = {"num_classes": head[0] if head else 0}
    table: Any = getattr(shell, "pos_embed", None)
    patches: Any = getattr(shell, "patch_embed", None)
    found = shapes.get("pos_embed", ())
    if isinstance(table, Tensor) and len(found) == 3 and found != tuple(table.shape) and hasattr(patches, "num_patches"):
        count = found[1] - (table.shape[1] - patches.num_patches)
        side = math.isqrt(max(count, 0))
        if side and side * side == count:
            arguments["img_size"] = side * patches.patch_size[0]
    return arguments


def load_timm_weights(name: str, architecture: str, path: Path, shapes: Shapes, arguments: dict[str, Any]) -> Loaded:
    """Build the timm model, after its skeleton has been compared with the checkpoint, and fill it."""
    timm = need("timm", name)
    from safetensors.torch import load_file as read

    try:
        with torch.device("meta"):
            shell = timm.create_model(architecture, **arguments)
    except (RuntimeError, ValueError, TypeError, KeyError, AssertionError, AttributeError) as error:
        raise PruneError(f"timm cannot build {name}: {one_line(error)}; check the architecture and its arguments") from error
    check_shapes(name, {key: tuple(value.shape) for key, value in shell.state_dict().items()}, shapes)
    model = timm.create_model(architecture, **arguments)
    model.load_state_dict(read(path))
    return finish(name, model, timm_transform(model), timm_classes(model))


def load_folder(folder: Path) -> Loaded:
    """A folder saved by open_clip, timm or transformers; which of the two, its config.json says."""
    if (folder / CONFIG).is_file():
        model, transform = load_open_clip(str(folder))
        return finish(str(folder), model, transform, None)
    config = read_config(folder)
    if not ("architecture" in config or "model_type" in config):
        raise PruneError(f"{folder / 'config.json'} is neither timm's (architecture) nor transformers' (model_type)")
    files = weight_files(folder)
    headers = [read_shapes(file) for file in files]
    if "quantization_config" not in config:
        for file in files:
            check_floats(file)
    if "model_type" in config:
        return load_transformers(folder, config)
    need("timm", str(folder))
    if len(files) > 1:
        raise PruneError(f"model folder {folder} has {len(files)} safetensors files; timm needs one, named model.safetensors")
    arguments = {"num_classes": config["num_classes"]} if "num_classes" in config else {}
    return load_timm_weights(str(folder), f"local-dir:{folder}", files[0], headers[0], arguments)


def load_saved(name: str, place: Path) -> Loaded:
    """A model that was saved with its recipes, pruned as it was then."""
    saved = read_saved(place)
    loaded = load_folder(saved.model)
    saved.put_on(loaded.model)
    return replace(loaded, name=name, classes=saved.classes or loaded.classes, recipes=saved.recipes, evidence=saved.evidence)


def load_transformers(folder: Path, config: dict[str, Any]) -> Loaded:
    """A classifier, a bare encoder or the vision tower of CLIP and SigLIP from a folder that transformers saved."""
    transformers = need("transformers", str(folder), extra="hf")
    kind = ", ".join(config.get("architectures") or []) or config["model_type"]
    classifier, tower = "ForImageClassification" in kind, TOWERS.get(config["model_type"])
    if "image_size" not in config and not (classifier or tower):
        raise PruneError(f"{folder} holds a {shown(kind)}; this tool loads image classifiers and vision towers only")
    if not any((folder / name).is_file() for name in ("preprocessor_config.json", "processor_config.json")):
        raise PruneError(f"{folder} has no preprocessor_config.json; save the model's image processor there with save_pretrained")
    auto = getattr(transformers, tower or "AutoModel") if not classifier else transformers.AutoModelForImageClassification
    local = {"local_files_only": True, "trust_remote_code": False}
    weights = {
        **local,
        "use_safetensors": True,
        "dtype": torch.float32,
        "ignore_mismatched_sizes": True,
        "output_loading_info": True,
    }
    try:
        processor = transformers.AutoImageProcessor.from_pretrained(folder, **local)
        model, info = auto.from_pretrained(folder, **weights)
        if info["missing_keys"] and all("pooler." in key for key in info["missing_keys"]):
            model, info = auto.from_pretrained(folder, add_pooling_layer=False, **weights)
    except Exception as error:  # whatever transformers meets in a config that it cannot use
        raise PruneError(f"transformers cannot load {folder} ({shown(kind)}): {one_line(error)}") from error
    differ = [f"{key} {list(found)} instead of {list(want)}" for key, found, want in sorted(info["mismatched_keys"])]
    complain(f"{folder} ({shown(kind)})", sorted(info["missing_keys"]), [], differ)

    labels = model.config.id2label if classifier else {}
    return finish(str(folder), model, processor_transform(processor), real_names([str(labels[index]) for index in sorted(labels)]))


def processor_transform(processor: Any) -> Transform:
    """The preprocessing of an image processor of transformers."""

    def transform(image: Image.Image) -> Tensor:
        pixels: Tensor = processor(images=image, return_tensors="pt")["pixel_values"][0]
        return pixels

    return transform


def timm_transform(model: nn.Module, **changes: Any) -> Transform:
    """The evaluation transform of a timm model's checkpoint, at the size that the model was built for."""
    from timm.data import create_transform, resolve_model_data_config

    size = getattr(getattr(model, "patch_embed", None), "img_size", None)
    arguments = {"input_size": (3, *size)} if size else {}
    try:
        transform: Transform = create_transform(
            **{**resolve_model_data_config(model, args=arguments), **changes}, is_training=False
        )
    except Exception as error:  # whatever timm meets in a configuration that it cannot use
        raise PruneError(f"the preprocessing of {type(model).__name__} cannot be made: {one_line(error)}") from error
    return transform


def timm_classes(model: nn.Module) -> list[str] | None:
    """The class names in a timm checkpoint's config, one per logit, if it has them."""
    names = getattr(model, "pretrained_cfg", {}).get("label_names")
    return real_names(list(map(str, names))) if names and len(names) == getattr(model, "num_classes", 0) else None


def real_names(names: list[str]) -> list[str] | None:
    """The names, or None if there are none or only the placeholders LABEL_0, LABEL_1, ..."""
    return names if any(not re.fullmatch(r"LABEL_\d+", name) for name in names) else None


def finish(name: str, model: nn.Module, transform: Transform, classes: list[str] | None) -> Loaded:
    """Put the parts together; image_size is what the transform makes of a picture. Raises PruneError for a transform of several sizes
    or of numbers that are not finite."""
    try:
        made = [transform(Image.new("RGB", size, "gray")) for size in ((320, 240), (240, 320))]
    except Exception as error:  # whatever a processor meets in a configuration that it cannot use
        raise PruneError(f"the preprocessing of {name} fails: {one_line(error)}; look at its configuration") from error
    if not all(isinstance(image, Tensor) for image in made):
        raise PruneError(f"the preprocessing of {name} makes {type(made[0]).__name__} of a picture; a tensor [3, H, W] is needed")
    if not all(image.isfinite().all() for image in made):
        raise PruneError(f"the preprocessing of {name} makes NaN or infinite pixels; look at its mean and std (a std of 0?)")
    sizes = {tuple(image.shape) for image in made}
    shape = min(sizes)
    if len(sizes) > 1 or len(shape) != 3:
        raise PruneError(f"the preprocessing of {name} makes {sorted(sizes)} of different pictures; one size [3, H, W] is needed")
    return Loaded(name, model.eval(), transform, classes, (shape[1], shape[2]))


def need(module: str, what: str, extra: str | None = None) -> Any:
    """Import a framework; a PruneError that names the extra to install where it is missing."""
    try:
        found = importlib.import_module(module)
        importlib.import_module("torchvision")
    except ImportError as error:
        raise PruneError(f"{what} needs {error.name or module}; pip install 'sparsight[{extra or module}]'") from None
    return found
