"""Named data sets of zero-shot studies: ImageNet with its variants, and the ten sets of cross-data evaluation.

Templates are those in common use for CLIP (Radford et al. 2021 for ImageNet, one template of CoOp, Zhou et al. 2022, for each other
set). The Col-Ln paper, which evaluates on these sets, does not state its own.
"""

from __future__ import annotations

import importlib
import pkgutil
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from ..errors import PruneError
from ..load.zero_shot import Template
from .labels import synsets

PHOTO = ("a photo of a {}.",)
EUROSAT = {
    "AnnualCrop": "Annual Crop Land",
    "Forest": "Forest",
    "HerbaceousVegetation": "Herbaceous Vegetation Land",
    "Highway": "Highway or Road",
    "Industrial": "Industrial Buildings",
    "Pasture": "Pasture Land",
    "PermanentCrop": "Permanent Crop Land",
    "Residential": "Residential Buildings",
    "River": "River",
    "SeaLake": "Sea or Lake",
}
CALTECH = {"airplanes": "airplane", "Faces": "face", "Leopards": "leopard", "Motorbikes": "motorbike"}


def spaced(name: str) -> str:
    """Underscores as spaces."""
    return name.replace("_", " ").strip()


def caltech(name: str) -> str:
    """Underscores as spaces; the four plural names in the singular."""
    return CALTECH.get(name, spaced(name))


def eurosat(name: str) -> str:
    """The ten folder names written out."""
    return EUROSAT.get(name, spaced(name))


def camel(name: str) -> str:
    """Words that begin with a capital, apart: ApplyEyeMakeup -> Apply Eye Makeup."""
    return spaced(re.sub(r"(?<=[a-z])(?=[A-Z])", " ", name))


def car(name: str) -> str:
    """The year in front, as the cars' set is prompted: Tesla Model S Sedan 2012 -> 2012 Tesla Model S Sedan."""
    return re.sub(r"^(.*) (\d{4})$", r"\2 \1", spaced(name))


def scene(name: str) -> str:
    """Folders from the inside out, without the single letter: a/apartment_building/outdoor -> outdoor apartment building."""
    return " ".join(spaced(part) for part in reversed([part for part in name.split("/") if len(part) > 1]))


@dataclass(frozen=True)
class Preset:
    """A data set by name.

    layout: the folder that is expected; templates: prompts, none for the 80 of ImageNet; rule: folder name -> class name, None
    where a library has the names (`library`); subset: the part of ImageNet-1k's classes that is there; ignore: folders that do not
    count; nested: the class is the whole path of an image below the folder.
    """

    name: str
    title: str
    layout: str
    templates: tuple[str, ...] = ()
    rule: Callable[[str], str] | None = None
    library: str = ""
    subset: str = ""
    ignore: tuple[str, ...] = ()
    nested: bool = False

    def __str__(self) -> str:
        return f"{self.name}: {self.title}; expects {self.layout}"

    def prompts(self) -> Sequence[Template]:
        """Its templates; a PruneError where the library that has them is missing."""
        if self.templates:
            return self.templates
        found: Sequence[Template] = metadata().OPENAI_IMAGENET_TEMPLATES
        return found

    def classes(self, folders: Sequence[str]) -> list[str]:
        """The class names to prompt with, in the order of `keys`."""
        if self.rule is not None:
            return [self.rule(name) for name in folders]
        names = list(metadata().IMAGENET_CLASSNAMES) if self.library == "imagenet" else flowers()
        return [names[index] for index in self.logits()] if self.subset else names

    def keys(self) -> list[str] | None:
        """What the folders are called, in the order of the classes; None where the folders themselves say it."""
        if self.library != "imagenet":
            return flowers() if self.library else None
        order = synsets(1000)
        if order is None:
            raise PruneError(f"preset {self.name} needs timm's tables of ImageNet; pip install 'sparsight[timm]'")
        return [order[index] for index in self.logits()] if self.subset else order

    def logits(self) -> list[int]:
        """Places of the subset's classes among ImageNet-1k's."""
        text = pkgutil.get_data("timm.data", f"_info/{self.subset}_indices.txt")
        if text is None:
            raise PruneError(f"this timm has no list of {self.subset}; pip install -U timm")
        return [int(word) for word in text.decode().split()]


def metadata() -> Any:
    """open_clip's class names and templates of ImageNet."""
    try:
        return importlib.import_module("open_clip.zero_shot_metadata")
    except ImportError:
        raise PruneError(
            "the class names and templates of ImageNet come from open_clip; pip install 'sparsight[open-clip]'"
        ) from None


def flowers() -> list[str]:
    """The 102 names of Oxford Flowers, in the order of its labels."""
    try:
        from torchvision.datasets import Flowers102
    except ImportError:
        raise PruneError("the class names of Oxford Flowers come from torchvision; pip install 'sparsight[timm]'") from None
    if not hasattr(Flowers102, "classes"):
        raise PruneError(
            "the class names of Oxford Flowers come with newer versions of torchvision; pip install --upgrade torch torchvision"
        )
    return list(Flowers102.classes)


SYNSETS = "one folder per synset (n01440764)"
NAMES = "one folder per class, named as the data set names it"
PRESETS = {
    preset.name: preset
    for preset in (
        Preset("imagenet", "ImageNet-1k validation", f"{SYNSETS}, or the flat folder with its list", library="imagenet"),
        Preset("imagenet-v2", "ImageNet-V2", "folders 0 to 999, places among the classes", library="imagenet"),
        Preset("imagenet-a", "ImageNet-A, 200 classes", SYNSETS, library="imagenet", subset="imagenet_a"),
        Preset("imagenet-r", "ImageNet-R, 200 classes", SYNSETS, library="imagenet", subset="imagenet_r"),
        Preset("imagenet-sketch", "ImageNet-Sketch", SYNSETS, library="imagenet"),
        Preset("caltech101", "Caltech-101, 100 classes", NAMES, PHOTO, caltech, ignore=("BACKGROUND_Google", "Faces_easy")),
        Preset("oxford-pets", "Oxford-IIIT Pets", NAMES, ("a photo of a {}, a type of pet.",), spaced),
        Preset("stanford-cars", "Stanford Cars", f"{NAMES} (Tesla Model S Sedan 2012)", PHOTO, car),
        Preset(
            "oxford-flowers", "Oxford Flowers-102", "folders 1 to 102 or the names", ("a photo of a {}, a type of flower.",),
            library="flowers",
        ),
        Preset("food101", "Food-101", NAMES, ("a photo of {}, a type of food.",), spaced),
        Preset("fgvc-aircraft", "FGVC-Aircraft variants", NAMES, ("a photo of a {}, a type of aircraft.",), spaced),
        Preset("sun397", "SUN397", "its own tree (a/abbey, a/apartment_building/outdoor)", PHOTO, scene, nested=True),
        Preset("dtd", "Describable Textures", NAMES, ("{} texture.",), spaced),
        Preset("eurosat", "EuroSAT", f"{NAMES} (AnnualCrop)", ("a centered satellite photo of {}.",), eurosat),
        Preset("ucf101", "UCF101, middle frames", f"{NAMES} (ApplyEyeMakeup)", ("a photo of a person doing {}.",), camel),
    )
}  # fmt: skip


def find_preset(name: str) -> Preset:
    """A preset by name; a PruneError with all names."""
    if name not in PRESETS:
        raise PruneError(f"preset {name!r} is not known; choose one of {', '.join(PRESETS)}")
    return PRESETS[name]
