"""Vision-language models and prompts for them: a checkpoint with its processor, or a shape with random weights."""

from __future__ import annotations

import os
import warnings
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import nn

from ..data.feed import Encode, by_transform, encoder, own_encoder
from ..data.images import open_folder
from ..data.reading import Transform, decode, name_below, reason
from ..errors import PruneError, shown
from ..prune import family_of
from ..recipe import Recipe
from . import demo_vlm
from .checkpoint import check_reach, complain, one_line, read_config, weight_files
from .models import Loaded, need, open_model
from .saved import fetch_saved, is_saved, read_saved
from .shapes import IMAGE, cut, random_model, shape_config, skeleton

Inputs = dict[str, Any]

BEFORE, AFTER = 35, 29
"""Text tokens around the image in a prompt for random weights: LLaVA-1.5's system prompt, and a question."""

QUESTION = "Describe this image in detail."
SIZE = (640, 480)


@dataclass(frozen=True, eq=False)
class Source:
    """A vision-language model that has been looked at but not loaded.

    shell: the model without data; path: where its weights are, None for random ones; processor: None with random weights.
    module: somebody's own model, which is used as and where it is.
    """

    name: str
    config: Any = field(repr=False)
    shell: nn.Module = field(repr=False)
    path: str | None
    processor: Any = field(repr=False)
    module: nn.Module | None = field(default=None, repr=False)

    @property
    def depth(self) -> int:
        """Layers of the language model."""
        return int(self.config.get_text_config().num_hidden_layers)

    def load(self, device: str, dtype: torch.dtype, seed: int) -> nn.Module:
        """The model with its weights, in evaluation mode."""
        if self.module is not None:
            return self.module
        if self.path is None:
            return random_model(self.config, device, dtype, seed)
        model = load_weights(self.path, self.config, device, dtype)
        model.__dict__["_sparsight_processor"] = self.processor  # `vlms.words` asks it for the chat template
        return model


def find_source(model: str | None, config: str | None, layers: int | None) -> Source:
    """Look at a checkpoint (a folder or a repository of the Hugging Face Hub) or at a shape. Raises PruneError for everything that
    no vision-language model can be made of."""
    if model is not None and os.path.isdir(Path(model).expanduser()) and is_saved(Path(model).expanduser()):
        warnings.warn(
            f"{shown(model)} was saved with a recipe; here it is measured unpruned, and pruned by the recipes that are given",
            stacklevel=3,
        )
    return source_of(model, config, layers)


def source_of(model: str | None, config: str | None = None, layers: int | None = None) -> Source:
    """The same, without a word about recipes that a folder was saved with."""
    if (model is None) == (config is None):
        raise PruneError(
            "give either a model (demo-vlm, a folder, a repository of the Hugging Face Hub) or a config (tiny, llava-7b-shape)"
        )
    need("transformers", model or f"config {config}", extra="hf")
    processor, found, path = None, shape_config(config) if config else None, None
    if model is not None:
        path = demo_vlm.packaged(model)
        found, processor = read_checkpoint(path)
    cut(found, layers)
    shell = skeleton(found)
    family_of(shell)
    shell.__dict__["_sparsight_processor"] = processor
    return Source(str(model or config), found, shell, path, processor)


@dataclass(frozen=True, eq=False)
class LoadedVlm:
    """A vision-language model in evaluation mode with its processor. recipes: under which it was saved, and is pruned now; evidence: what was
    measured of them."""

    name: str
    model: nn.Module = field(repr=False)
    processor: Any = field(repr=False)
    recipes: tuple[Recipe, ...] = ()
    evidence: dict[str, Any] | None = field(default=None, repr=False)


def load_vlm(name: str = demo_vlm.NAME, device: str = "cpu", dtype: torch.dtype = torch.float32) -> LoadedVlm:
    """Load a vision-language model with its processor: "demo-vlm" from the package, a folder, or OWNER/NAME on the Hugging Face Hub.
    What `save_pretrained` wrote is pruned as it was then. Raises PruneError for what cannot be loaded."""
    folder = Path(name).expanduser()
    place = fetch_saved(name) if on_hub(name) and not os.path.isdir(folder) else folder if is_saved(folder) else None
    if place is None:
        source = source_of(name)
        return LoadedVlm(name, source.load(device, dtype, 0), source.processor)
    saved = read_saved(place)
    source = source_of(str(saved.model))
    model = source.load(device, dtype, 0)
    saved.put_on(model)
    return LoadedVlm(name, model, source.processor, saved.recipes, saved.evidence)


def own_source(model: nn.Module, processor: Any) -> Source:
    """Somebody's own model with its processor. Raises PruneError if it is no vision-language model, or if there is no processor."""
    family_of(model)
    if processor is None or getattr(processor, "tokenizer", None) is None:
        raise PruneError(f"{type(model).__name__} needs its processor, with image processor and tokenizer; give processor=")
    return Source(type(model).__name__, getattr(model, "config", None), model, None, processor, model)


def read_checkpoint(name: str) -> tuple[Any, Any]:
    """Configuration and processor of a checkpoint."""
    import transformers

    folder = Path(name).expanduser()
    local = {"local_files_only": os.path.isdir(folder), "trust_remote_code": False}
    if os.path.isdir(folder):
        check_folder(folder)
    elif name.startswith((".", "/", "~")) or name.count("/") != 1:
        raise PruneError(f"no model folder '{shown(name)}'; for a repository of the Hugging Face Hub write OWNER/NAME")
    try:
        if not os.path.isdir(folder):
            check_reach(name)
        config = transformers.AutoConfig.from_pretrained(str(folder if os.path.isdir(folder) else name), **local)
        if type(config) not in transformers.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING:
            kind = ", ".join(config.architectures or [type(config).__name__])
            raise PruneError(
                f"{shown(name)} holds a {kind}, which is no vision-language model of transformers; sparsight takes LLaVA, Qwen, Gemma, InternVL and others"
            )
        return config, transformers.AutoProcessor.from_pretrained(str(folder if os.path.isdir(folder) else name), **local)
    except PruneError:
        raise
    except Exception as error:  # whatever the hub client or transformers meets
        raise PruneError(
            f"config and processor of {shown(name)} cannot be loaded ({one_line(error)}); without network give a local folder with both, "
            "or measure random weights with --config"
        ) from error


def check_folder(folder: Path) -> None:
    """Raise PruneError for a folder that transformers has not written."""
    if "model_type" not in read_config(folder):
        raise PruneError(f"{folder / 'config.json'} is not transformers' (it has no model_type)")


def load_weights(path: str, config: Any, device: str, dtype: torch.dtype) -> nn.Module:
    """The checkpoint's weights in the configuration's model; layers that were cut off are left out."""
    from transformers import AutoModelForImageTextToText

    folder = Path(path).expanduser()
    if folder.is_dir():
        weight_files(folder)
    if folder.is_dir() and demo_vlm.is_compact(folder):
        return demo_vlm.load_compact(folder, config, device, dtype)
    try:
        model, info = AutoModelForImageTextToText.from_pretrained(
            str(folder) if folder.is_dir() else path,
            config=config, dtype=dtype, use_safetensors=True, trust_remote_code=False, output_loading_info=True,
        )  # fmt: skip
        made: nn.Module = model.to(device).eval()
    except Exception as error:  # whatever the hub client, transformers or the device meets
        raise PruneError(f"transformers cannot load {path}: {one_line(error)}") from error
    complain(path, sorted(info["missing_keys"]), [], [key for key, *_ in info.get("mismatched_keys", [])])
    return made


def open_encoder(
    model: str | Loaded | nn.Module, processor: Any = None, transform: Transform | None = None, device: str = "cpu"
) -> tuple[str, nn.Module, Encode]:
    """Name, module and preprocessing of a vision or a vision-language model, whichever a tool was given.

    A module of one's own is used as it is. processor: of transformers; transform: of single pictures; by default those of the checkpoint.
    """
    given = encoder(processor) if processor is not None else by_transform(transform) if transform is not None else None
    if isinstance(model, nn.Module):
        return type(model).__name__, model, given or own_encoder(model)
    if isinstance(model, str) and speaks(model):
        source = find_source(model, None, None)
        return model, source.load(device, torch.float32, 0), given or encoder(source.processor)
    loaded = open_model(model, device=device)
    return loaded.name, loaded.model, given or by_transform(loaded.transform)


def speaks(name: str) -> bool:
    """Whether a name is that of a vision-language model: demo-vlm, a folder whose config.json says so, or OWNER/NAME on the Hub."""
    folder = Path(name).expanduser()
    if name == demo_vlm.NAME:
        return True
    if not os.path.isdir(folder):
        return on_hub(name)
    try:
        return any("ForConditionalGeneration" in str(kind) for kind in read_config(folder).get("architectures") or [])
    except PruneError:  # said by who loads it
        return False


def on_hub(name: str) -> bool:
    """Whether a name is OWNER/NAME."""
    return name.count("/") == 1 and ":" not in name and "@" not in name and not name.startswith((".", "/", "~"))


# ---- prompts ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Prompts:
    """What goes into `generate`, on the CPU: one image and one text for each prompt, padded on the left.

    images: names of the files, "synthetic" for noise; visual: visual tokens of all prompts; notes: what was skipped or repeated.
    """

    inputs: Inputs = field(repr=False)
    images: list[str]
    visual: int
    notes: list[str]

    @property
    def length(self) -> int:
        return int(self.inputs["input_ids"].shape[1])

    def to(self, device: str, dtype: torch.dtype) -> Inputs:
        """The inputs on the device, pixels in the model's precision."""
        return {
            name: value.to(device, dtype) if value.is_floating_point() else value.to(device)
            for name, value in self.inputs.items()
            if isinstance(value, torch.Tensor)
        }


def make_prompts(source: Source, images: str | Path | None, text: str | None, batch: int, seed: int) -> Prompts:
    """Prompts for the model: from files and a text, or synthetic ones; the demo model brings its own. Raises PruneError for a folder
    without readable images."""
    if source.name == demo_vlm.NAME:
        images, text = demo_vlm.pictures() if images is None else images, text or demo_vlm.QUESTION
    if text is not None and source.processor is None:
        raise PruneError(f"a prompt needs a tokenizer, and config {source.name} has none; leave --prompt out or give a --model")
    pictures, names, notes = read_pictures(images, batch) if images is not None else ([], [], [])
    if source.processor is None:
        inputs = random_prompts(source.config, pictures, batch, seed)
    else:
        inputs = processed(source, pictures or synthetic(batch, seed), text or QUESTION)
    tokens = [getattr(source.config, f"{kind}_token_id", None) for kind in ("image", "video")]
    visual = int(sum((inputs["input_ids"] == token).sum() for token in tokens if token is not None))
    return Prompts(inputs, names or ["synthetic"], visual, notes)


def read_pictures(folder: str | Path, count: int) -> tuple[list[Image.Image], list[str], list[str]]:
    """The first readable images of a folder, repeated if there are too few: pictures, their names, notes."""
    listed = open_folder(folder)
    found: list[Image.Image] = []
    names: list[str] = []
    faults: list[str] = []
    for path in listed.paths:
        if len(found) == count:
            break
        try:
            found.append(decode(path))
            names.append(name_below(path, listed.path))
        except Exception as error:  # Pillow's decoders raise whatever their format meets
            faults.append(f"{name_below(path, listed.path)} was skipped: {reason(error)}")
    if not found:
        raise PruneError(f"none of the {len(listed)} images in {listed.path} can be read; {faults[0]}")
    if len(found) < count:
        faults.append(f"{len(found)} images are repeated to fill a batch of {count}")
    return [found[i % len(found)] for i in range(count)], names, faults


def synthetic(count: int, seed: int) -> list[Image.Image]:
    """Pictures of noise."""
    draw = np.random.default_rng(seed)
    return [Image.fromarray(draw.integers(0, 256, (SIZE[1], SIZE[0], 3), dtype=np.uint8)) for _ in range(count)]


def processed(source: Source, pictures: list[Image.Image], text: str) -> Inputs:
    """What the checkpoint's processor makes of pictures and the text."""
    processor = source.processor
    token = getattr(processor, "image_token", None) or "<image>"
    prompt = f"USER: {token} \n{text} ASSISTANT:"
    try:
        if getattr(processor, "chat_template", None):
            said = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": text}]}]
            prompt = processor.apply_chat_template(said, add_generation_prompt=True)
        processor.tokenizer.padding_side = "left"
        return dict(processor(images=pictures, text=[prompt] * len(pictures), padding=True, return_tensors="pt"))
    except Exception as error:  # a processor that does not fit its model raises whatever it meets
        raise PruneError(
            f"the processor of {source.name} cannot make a prompt of an image and a text: {one_line(error)}"
        ) from error


def random_prompts(config: Any, pictures: list[Image.Image], batch: int, seed: int) -> Inputs:
    """Prompts for random weights: text, the placeholders of one image, text; pixels of the pictures, or noise."""
    draw = torch.Generator().manual_seed(seed)
    vision = config.vision_config
    side, count = vision.image_size, (vision.image_size // vision.patch_size) ** 2
    words = torch.randint(1, IMAGE, (batch, BEFORE + AFTER), generator=draw)
    ids = torch.cat([words[:, :BEFORE], torch.full((batch, count), IMAGE), words[:, BEFORE:]], dim=1)
    pixels = torch.randn(batch, 3, side, side, generator=draw)
    if pictures:
        from transformers import CLIPImageProcessor

        prepare = CLIPImageProcessor(size={"shortest_edge": side}, crop_size={"height": side, "width": side})
        pixels = prepare(images=pictures, return_tensors="pt")["pixel_values"]
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "pixel_values": pixels}
