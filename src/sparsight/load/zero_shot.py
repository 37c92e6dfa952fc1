"""Image-text models as classifiers without training: class names in prompt templates become the rows of a classifier."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import PruneError, shown
from .answers import ranked
from .checkpoint import one_line, read_config
from .models import Loaded, finish, need
from .open_clip import CONFIG, OPEN_CLIP, load_open_clip, open_clip_tokenizer
from .saved import is_saved, read_saved

Template = str | Callable[[str], str]
TEXTS_AT_ONCE = 256


@dataclass(frozen=True, eq=False)
class Dual:
    """A model of images and texts.

    loaded.model: the whole model, which `prune` takes. image: the model and pixels [n, 3, H, W] -> [n, D]; text: sentences -> [n, D]. scale and
    bias: of the logits; pairwise: SigLIP's, whose probabilities are of each class by itself.
    """

    loaded: Loaded
    image: Callable[[Any, Tensor], Tensor] = field(repr=False)
    text: Callable[[list[str]], Tensor] = field(repr=False)
    scale: float = 1.0
    bias: float = 0.0
    pairwise: bool = False

    def classifier(self, classes: Sequence[str], templates: Sequence[Template]) -> Tensor:
        """Rows [K, D] of the classifier of the class names, one after the other."""
        with torch.no_grad():
            return text_classifier(self.text, classes, templates)

    def answer(self, images: Tensor, rows: Tensor) -> Mapping[str, Tensor]:
        """Ranked classes of a batch."""
        features = nn.functional.normalize(self.image(self.loaded.model, images).float(), dim=-1)
        return ranked(self.scale * features @ rows.to(features).T + self.bias, pairwise=self.pairwise)


def text_classifier(encode: Callable[[list[str]], Tensor], classes: Sequence[str], templates: Sequence[Template]) -> Tensor:
    """Unit rows [K, D], float32: the mean of the unit embeddings of a class name in every template, as in CLIP.

    encode: sentences -> [n, D]. A template is a text with {} for the name, or a function. Radford et al., ICML 2021,
    arXiv:2103.00020, section 3.1.4. Raises PruneError for no classes, no templates and a template without a place for the name.
    """
    if not classes or not templates:
        raise PruneError(f"a classifier from texts needs classes and templates; got {len(classes)} and {len(templates)}")
    for template in templates:
        if isinstance(template, str) and "{}" not in template:
            raise PruneError(f"template {template!r} has no {{}} for the class name; write it as 'a photo of a {{}}.'")
    # open_clip.build_zero_shot_classifier does the same, but only for its own models; transformers' go without open_clip
    texts = [t.format(name) if isinstance(t, str) else t(name) for name in classes for t in templates]
    parts = [encode(texts[start : start + TEXTS_AT_ONCE]).float() for start in range(0, len(texts), TEXTS_AT_ONCE)]
    embedded = nn.functional.normalize(torch.cat(parts), dim=-1).view(len(classes), len(templates), -1)
    return nn.functional.normalize(embedded.mean(dim=1), dim=-1)


def load_dual(name: str) -> Dual:
    """An image-text model by name: a folder of transformers' CLIP or SigLIP (model, tokenizer, image processor), a folder of
    open_clip (open_clip_config.json), or open_clip:ARCH@FILE.safetensors, open_clip:ARCH:TAG, open_clip:hf-hub:REPO.

    What `save_pretrained` wrote is pruned as it was then. Raises PruneError for everything that cannot be loaded.
    """
    path = Path(name).expanduser()
    if not name.startswith(OPEN_CLIP) and is_saved(path):
        saved = read_saved(path)
        dual = plain_dual(str(saved.model), saved.model)
        saved.put_on(dual.loaded.model)
        return replace(dual, loaded=replace(dual.loaded, name=name, recipes=saved.recipes, evidence=saved.evidence))
    return plain_dual(name, path)


def plain_dual(name: str, path: Path) -> Dual:
    """The model without recipes."""
    if name.startswith(OPEN_CLIP) or os.path.isfile(path / CONFIG):
        return open_clip_dual(name)
    if not os.path.isfile(path / "config.json"):
        raise PruneError(
            f"zero-shot needs a model of images and texts, and '{shown(name)}' is no folder of one; give a folder of transformers' CLIP or "
            "SigLIP, or open_clip:ARCH@FILE.safetensors"
        )
    return load_transformers(path)


def load_transformers(folder: Path) -> Dual:
    """CLIP and SigLIP of transformers."""
    transformers = need("transformers", "zero-shot", "hf")
    kind = read_config(folder).get("model_type")
    if kind not in ("clip", "siglip"):
        raise PruneError(f"{folder} holds a {kind}; zero-shot takes transformers' clip and siglip, whole, with tokenizer")
    local = {"local_files_only": True, "trust_remote_code": False}
    try:
        tokenizer = transformers.AutoTokenizer.from_pretrained(folder, **local)
        processor = transformers.AutoImageProcessor.from_pretrained(folder, **local)
        model = transformers.AutoModel.from_pretrained(folder, use_safetensors=True, dtype=torch.float32, **local)
    except Exception as error:  # whatever transformers meets in a folder that it cannot use
        raise PruneError(f"transformers cannot load {folder}, model, tokenizer and image processor ({one_line(error)})") from error
    length = model.config.text_config.max_position_embeddings

    def image(model: Any, pixels: Tensor) -> Tensor:
        return tensor_of(model.get_image_features(pixel_values=pixels))

    def text(sentences: list[str]) -> Tensor:
        padding = "max_length" if kind == "siglip" else True
        words = tokenizer(sentences, padding=padding, truncation=True, max_length=length, return_tensors="pt")
        device = next(model.parameters()).device
        given = {name: words[name].to(device) for name in ("input_ids", "attention_mask") if name in words}
        return tensor_of(model.get_text_features(**given if kind == "clip" else {"input_ids": given["input_ids"]}))

    loaded = finish(str(folder), model, lambda picture: processor(images=picture, return_tensors="pt")["pixel_values"][0], None)
    bias = float(model.logit_bias) if kind == "siglip" else 0.0
    return Dual(loaded, image, text, float(model.logit_scale.detach().exp()), bias, kind == "siglip")


def tensor_of(result: Any) -> Tensor:
    """The features, bare or in a named output."""
    found: Tensor = result if isinstance(result, Tensor) else result.pooler_output
    return found


def open_clip_dual(name: str) -> Dual:
    """A model of open_clip."""
    model, transform = load_open_clip(name)
    tokenizer = open_clip_tokenizer(name)

    def text(sentences: list[str]) -> Tensor:
        features: Tensor = model.encode_text(tokenizer(sentences).to(next(model.parameters()).device))  # type: ignore[operator]
        return features

    bias: Any = getattr(model, "logit_bias", None)
    loaded = finish(name, model, transform, None)
    scale = float(model.logit_scale.detach().exp())  # type: ignore[operator]
    return Dual(loaded, encode_image, text, scale, 0.0 if bias is None else float(bias), bias is not None)


def encode_image(model: Any, pixels: Tensor) -> Tensor:
    """Features of a model of open_clip."""
    features: Tensor = model.encode_image(pixels)
    return features
