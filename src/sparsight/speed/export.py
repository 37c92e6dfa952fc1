"""export(model, recipe, out): a pruned model as an ONNX, OpenVINO or torch.export file, checked on real images."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn

from .. import __version__
from ..data.images import open_folder
from ..data.reading import Transform
from ..demo import demo_images
from ..errors import PruneError
from ..load.answers import check_finite
from ..load.models import Loaded, name_of, open_model
from ..prune import Handle, prune, resolve
from ..recipe import Recipe
from ..runs.comparison import UNPRUNED
from ..runs.settings import versions_in_use
from .engines import Runner, need_module, open_exported
from .exported import Result, check_difference, check_place, percent, scratch
from .tracing import Format, quantise, save, strip

ENDINGS = {"onnx": ".onnx", "openvino": ".xml", "torch-export": ".pt2"}
NEEDED = {"onnx": ("onnx", "onnxscript", "onnxruntime"), "openvino": ("openvino",), "torch-export": ()}


@dataclass(frozen=True)
class Exported(Result):
    """A file that was written and what the check on `images` images said.

    difference: largest absolute difference of an output from PyTorch's, over images whose kept tokens are the same; scale: largest
    absolute output; same_kept: share of images whose kept tokens are the same at every site; overlap: share of the tokens kept at the
    last site that are the same; same_top1: share of images with the same largest output. With int8 they say what quantisation changes.
    """

    file: str
    format: str
    model: str
    recipe: str
    image_size: tuple[int, int]
    int8: bool
    bytes: int
    outputs: list[str]
    images: int
    difference: float
    scale: float
    same_kept: float
    overlap: float
    same_top1: float
    versions: dict[str, str]

    def __str__(self) -> str:
        top = f"top-1 in {percent(self.same_top1)}"
        return (
            f"{self.file}: {self.recipe}, {self.format}{', int8' if self.int8 else ''}, {self.bytes / 1e6:.1f} MB, outputs "
            f"{', '.join(self.outputs)}; {self.agreement(f'{self.images} images', top, self.overlap)}"
        )


def export(
    model: str | Loaded | nn.Module = "demo",
    recipe: str | Recipe | None = None,
    out: str | Path | None = None,
    *,
    transform: Transform | None = None,
    classes: Sequence[str] | None = None,
    format: Format = "onnx",
    data: str | Path | None = None,
    limit: int = 16,
    int8: bool = False,
    kept: bool = False,
    listen: Callable[[str], object] | None = None,
) -> Exported:
    """Write the pruned model (recipe None: the unpruned one) as a file that takes images [B, 3, H, W] float32 of any batch size.

    model, transform, classes: see `open_model`. out: the file, by default MODEL.onnx, MODEL.xml (OpenVINO, with the weights in MODEL.bin) or
    MODEL.pt2. data: folder of images for the check, by default the embedded ones, at most `limit`. int8: weights of the matrix products quantised (ONNX only; onnxruntime's dynamic quantisation). kept: one more output
    per site, int64 [B, K], the kept patches as indices into the image's grid. The file appears only after it has passed the check:
    the same outputs as PyTorch within 1e-4 at batch sizes 1 and more. It carries recipe, model, classes, image size, mean and std of the
    preprocessing and the version of Sparsight (`open_exported(file).metadata`). listen: called with a word on what takes long, once the
    arguments have been checked. Raises PruneError.
    """
    check_format(format, int8)
    recipe = None if recipe is None else fixed(resolve(recipe, {}))
    target = check_target(out, name_of(model), format)
    folder = open_folder(demo_images() if data is None else data, limit)
    loaded = open_model(model, transform, classes)
    images = read_images(loaded, folder.paths)
    with taken_apart(loaded, recipe) as (wrapper, sites), scratch(target) as room:
        if listen is not None:
            listen(f"tracing {loaded.name}, half a minute or more ...")
        names = ["logits", *(f"kept_{site}" for site in sites)]
        save(wrapper, images[:2], names, room / target.name, format, metadata(loaded, recipe))
        found, names = finish(wrapper, room / target.name, images, names, int8, kept)
        size = sum(part.stat().st_size for part in room.iterdir())
        for part in sorted(room.iterdir(), key=lambda part: part.name == target.name):
            os.replace(part, target.with_name(part.name))
    versions = versions_in_use(loaded.model) | runtime_versions(format)
    name = UNPRUNED if recipe is None else str(recipe)
    return Exported(str(target), format, loaded.name, name, loaded.image_size, int8, size, names, len(images), *found, versions)


def finish(
    wrapper: WithKept, file: Path, images: Tensor, names: list[str], int8: bool, kept: bool
) -> tuple[tuple[float, float, float, float, float], list[str]]:
    """Quantise if wanted, check, and take the kept tokens out again if they are not wanted: what the check said, and the outputs."""
    if int8:
        quantise(file)
    found = check(wrapper, open_exported(file), images, loose=int8)
    if kept or len(names) == 1 or file.suffix == ENDINGS["torch-export"]:
        return found, names
    strip(file)
    return found, names[:1]


def fixed(recipe: Recipe) -> Recipe:
    """The recipe, if its token counts are known before the image is."""
    if recipe.adaptive:
        raise PruneError(
            f"{recipe} keeps another number of tokens in every image, which no static graph can hold; give a fixed budget"
        )
    return recipe


def check_format(format: str, int8: bool) -> None:
    """Raise a PruneError for a format that is not known or lacks a package."""
    if format not in ENDINGS:
        raise PruneError(f"format={format!r} is not known; choose {', '.join(ENDINGS)}")
    if int8 and format != "onnx":
        other = {"openvino": "an OpenVINO file with nncf", "torch-export": "a torch.export file with torchao"}[format]
        raise PruneError(f"int8 is for format onnx; quantise {other} instead")
    for name in NEEDED[format]:
        need_module(name)


def metadata(loaded: Loaded, recipe: Recipe | None) -> dict[str, Any]:
    """What a file says about itself; mean and std of the preprocessing only where it has some (of pixels from 0 to 1, channel by channel)."""
    mean, std = normalisation(loaded)
    return {
        "sparsight": __version__,
        "model": loaded.name,
        "recipe": UNPRUNED if recipe is None else str(recipe),
        "image_size": list(loaded.image_size),
        "mean": mean,
        "std": std,
        "classes": loaded.classes,
    }


def normalisation(loaded: Loaded) -> tuple[list[float] | None, list[float] | None]:
    """Mean and std of the preprocessing, read off what it makes of black, grey and white; None where it is not (pixel - mean) / std."""
    black, grey, white = (loaded.transform(Image.new("RGB", loaded.image_size[::-1], (level,) * 3)) for level in (0, 51, 255))
    slope = (white - black)[:, 0, 0]
    straight = torch.allclose(grey, black + 0.2 * (white - black), atol=1e-3)
    flat = all(torch.allclose(image, image[:, :1, :1].expand_as(image), atol=1e-3) for image in (black, white))
    if not (straight and flat and bool((slope > 0).all())):
        return None, None
    return [[round(float(value), 6) for value in found] for found in (-black[:, 0, 0] / slope, 1 / slope)]  # type: ignore[return-value]


class WithKept(nn.Module):
    """The model's logits (or features), then the kept patches of every site."""

    def __init__(self, model: nn.Module, handle: Handle | None) -> None:
        super().__init__()
        self.model = model
        self.handle = [handle]  # in a list: a handle is no module

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        result = self.model(images)
        handle = self.handle[0]
        return (output_of(result), *(() if handle is None else (plan.keep for plan in handle.sources())))


def output_of(result: Any) -> Tensor:
    """The logits; for models without a classifier the pooled features, else the tokens."""
    if isinstance(result, Tensor):
        return result
    names = ("logits", "image_embeds", "pooler_output", "last_hidden_state")
    found: Tensor = next(value for name in names if isinstance(value := getattr(result, name, None), Tensor))
    return found


def check_target(out: str | Path | None, model: str, format: Format) -> Path:
    """The file to write, its folder made sure of."""
    ending = ENDINGS[format]
    target = Path(out).expanduser() if out is not None else Path(Path(model).name.replace(":", "_") + ending)
    if target.suffix != ending:
        raise PruneError(f"out={target} must end in {ending} for format {format}")
    if target.is_dir():
        raise PruneError(f"{target} cannot be written: it is a folder; give a file with --out")
    check_place(target, "file")
    return target


def read_images(loaded: Loaded, paths: list[Path]) -> Tensor:
    """The images [B, 3, H, W] as the checkpoint's transform makes them; unreadable ones are left out."""
    from ..data.images import Folder, batches

    files = batches(Folder(paths[0].parent, paths), loaded.transform, len(paths))
    found = [images for images, _ in files]
    if not found or len(found[0]) < 2:
        raise PruneError(f"fewer than 2 images beside {paths[0]} can be read; the check needs at least 2")
    return torch.cat(found)


@contextmanager
def taken_apart(loaded: Loaded, recipe: Recipe | None) -> Iterator[tuple[WithKept, list[int]]]:
    """The model wrapped and pruned, and its sites; as it was afterwards."""
    model = loaded.model.eval()
    if recipe is None:
        yield WithKept(model, None), []
        return
    with prune(model, recipe) as handle:
        if not isinstance(handle, Handle) or handle.recipe.where == "decoder":
            raise PruneError(f"{recipe.name} works in a language model; export takes image models")
        yield WithKept(model, handle), handle.layers


def check(wrapper: WithKept, runner: Runner, images: Tensor, loose: bool) -> tuple[float, float, float, float, float]:
    """The five numbers of `Exported` from difference to same_top1; PruneError if the file is too far off."""
    with torch.no_grad():
        wanted = wrapper(images)
        check_finite(wanted[0], "the model")
        got = [torch.cat(parts) for parts in zip(runner(images[:1]), runner(images[1:]), strict=True)]
    same, shared = torch.ones(len(images), dtype=torch.bool), torch.ones(len(images))
    for ours, theirs in zip(wanted[1:], got[1:], strict=True):
        shared = (ours.unsqueeze(2) == theirs.unsqueeze(1)).any(dim=2).float().mean(dim=1)
        same &= shared == 1
    apart = (wanted[0] - got[0]).abs().flatten(1).amax(dim=1)
    scale = float(wanted[0].abs().max())
    difference = float(apart[same].max()) if same.any() else float(apart.max())
    if not loose:
        check_difference(difference, scale)
    top = (wanted[0].flatten(1).argmax(dim=1) == got[0].flatten(1).argmax(dim=1)).float().mean()
    return difference, scale, float(same.float().mean()), float(shared.mean()), float(top)


def runtime_versions(format: Format) -> dict[str, str]:
    """Versions of what made the file, beside the model's."""
    from importlib.metadata import version

    return {name: version(name) for name in NEEDED[format]}
