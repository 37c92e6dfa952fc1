"""Images in whatever form a user has them, as calls of a model's encoder: folders, files, pictures, batches of a processor."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from PIL import Image
from torch import Tensor, nn

from ..errors import PruneError, shown
from ..load.checkpoint import check_reach, one_line
from ..load.demo_vlm import packaged
from .images import is_image, open_folder
from .reading import decode, readable, reason, stacked

Call = Mapping[str, Any]
Encode = Callable[[list[Image.Image]], Call]


@dataclass
class Feed:
    """Iterate over (names of the images, call). `skipped`: (name, reason) of files that cannot be read, after the iteration."""

    images: Any
    encode: Encode
    like: Tensor
    size: int = 8
    skipped: list[tuple[str, str]] = field(default_factory=list)

    def __iter__(self) -> Iterator[tuple[list[str], dict[str, Any]]]:
        self.skipped.clear()
        seen, names, pictures = 0, [], []
        for item in listed(self.images):
            if isinstance(item, (Mapping, Tensor)):
                call = {"pixel_values": item} if isinstance(item, Tensor) else dict(item)
                count = images_in(call)
                yield [f"image {seen + i}" for i in range(count)], self.moved(call)
                seen += count
                continue
            name, picture = self.read(item, seen)
            seen += 1
            if picture is not None:
                names.append(name)
                pictures.append(picture)
            if len(pictures) == self.size:
                yield names, self.moved(self.encode(pictures))
                names, pictures = [], []
        if pictures:
            yield names, self.moved(self.encode(pictures))

    def read(self, item: Any, place: int) -> tuple[str, Image.Image | None]:
        """A picture and its name; None, and a note, for a file that cannot be read."""
        if isinstance(item, Image.Image):
            return f"image {place}", item.convert("RGB")
        try:
            return readable(str(item)), decode(Path(item).expanduser())
        except Exception as error:  # Pillow's decoders raise whatever their format meets
            self.skipped.append((readable(str(item)), reason(error)))
            return readable(str(item)), None

    def moved(self, call: Call) -> dict[str, Any]:
        """The call on the model's device and in its precision."""
        found = {}
        for name, value in call.items():
            if isinstance(value, Tensor):
                value = value.to(self.like.device)
                found[name] = value.to(self.like.dtype) if value.is_floating_point() else value
        return found


def listed(images: Any) -> Iterable[Any]:
    """The single images or batches; a PruneError for what holds none."""
    if isinstance(images, (str, Path)):
        path = Path(images).expanduser()
        return [path] if os.path.isfile(path) and is_image(path) else open_folder(path).paths
    if isinstance(images, (Mapping, Image.Image)) or (isinstance(images, Tensor) and images.dim() == 4):
        images = [images]
    if not isinstance(images, Iterable) or isinstance(images, Tensor):
        raise PruneError(f"images must be a folder, files, pictures or batches of a processor, got {type(images).__name__}")
    found = images if isinstance(images, Iterator) else list(images)
    if isinstance(found, list):
        if not found:
            raise PruneError("the list of images is empty; give at least one")
        for item in found:
            check_item(item)
    return found


def check_item(item: Any) -> None:
    """Raise PruneError for something that is no image."""
    if isinstance(item, (str, Path)):
        if not os.path.lexists(Path(item).expanduser()):
            raise PruneError(f"no image file {shown(str(item))}")
    elif not isinstance(item, (Image.Image, Mapping)) and not (isinstance(item, Tensor) and item.dim() == 4):
        raise PruneError(f"an image must be a path, a PIL image or a batch of a processor, got {type(item).__name__}")


def images_in(call: Call) -> int:
    """Number of images in a batch of a processor."""
    pixels = call.get("pixel_values")
    if pixels is None:
        raise PruneError(f"a batch must have pixel_values, got {', '.join(map(str, call)) or 'nothing'}")
    grid = call.get("image_grid_thw")
    return len(pixels if grid is None else grid)


def encoder(processor: Any) -> Encode:
    """From pictures to a call, by a processor or an image processor of transformers."""
    images = getattr(processor, "image_processor", processor)

    def encode(pictures: list[Image.Image]) -> Call:
        try:
            return dict(images(images=pictures, return_tensors="pt"))
        except Exception as error:  # a processor that does not fit raises whatever it meets
            raise PruneError(f"{type(images).__name__} cannot take the images: {one_line(error)}") from error

    return encode


def by_transform(transform: Callable[[Image.Image], Tensor]) -> Encode:
    """From pictures to a call, by a transform of single pictures."""
    return lambda pictures: {"pixel_values": stacked([transform(picture) for picture in pictures])}


def own_encoder(model: nn.Module, processor: Any = None) -> Encode:
    """The model's own preprocessing: the given processor, or the one from where the model was loaded. Loaded when it is needed."""
    if processor is not None:
        return encoder(processor)
    known: list[Encode] = []

    def encode(pictures: list[Image.Image]) -> Call:
        if not known:
            known.append(encoder(find_processor(model)))
        return known[0](pictures)

    return encode


def find_processor(model: nn.Module) -> Any:
    """The image processor saved beside the model's weights."""
    name = packaged(str(getattr(getattr(model, "config", None), "name_or_path", "") or ""))
    hint = "give processor=AutoProcessor.from_pretrained(...), or batches that it made"
    if not name:
        raise PruneError(
            f"{type(model).__name__} does not say where it was loaded from, so its image processor is not known; {hint}"
        )
    try:
        from transformers import AutoImageProcessor

        local = Path(name).is_dir()
        if not local:
            check_reach(name)
        return AutoImageProcessor.from_pretrained(name, local_files_only=local, trust_remote_code=False)
    except Exception as error:  # whatever the hub client or transformers meets
        raise PruneError(f"the image processor of {name} cannot be loaded ({one_line(error)}); {hint}") from error
