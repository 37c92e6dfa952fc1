"""Data sets made on the spot from the packaged photos: regimes in which pruning pays, and one in which it does not.

"demo:small,size=448,object=126,n=96,seed=0". Every picture is drawn when it is read, from its place and the seed alone; `save` writes them.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from random import Random

from PIL import Image

from ..demo import demo_images
from ..errors import PruneError, shown
from .fingerprint import digest
from .images import Folder, FolderSource, add_note, open_folder
from .reading import ImageRef, decode

DEMO = "demo:"
KINDS = {"centred": (224, 224), "small": (448, 126), "scene": (448, 168), "mosaic": (448, 300)}
"""Sides of the picture and of its object in pixels: the photo as it is; small on plain ground; small in a scene (a corner of another
photo, enlarged); the largest among smaller photos of other classes."""
COUNT = 96
MADE = re.compile(r" #\d+$")
"""What the name of a picture has behind that of its photo."""
LEAST_CROP = 0.8
"""A photo that is used again is cropped at random, down to this share of its short side, and perhaps mirrored."""


@dataclass(frozen=True)
class DemoSet:
    """What to make. photos: their folder, one folder per class, and ground: that of scenes; None for the packaged photos."""

    kind: str
    size: int
    object: int
    n: int = COUNT
    seed: int = 0
    photos: str | None = None
    ground: str | None = None

    def __str__(self) -> str:
        folders = [f"{name}={Path(value).name}" for name, value in (("photos", self.photos), ("ground", self.ground)) if value]
        return ",".join(
            [f"{DEMO}{self.kind}", f"size={self.size}", f"object={self.object}", f"n={self.n}", f"seed={self.seed}", *folders]
        )


@dataclass(frozen=True)
class DemoSource(FolderSource):
    """Pictures of a `DemoSet`, labelled with the class of their object. The folder names the object's photo of every place."""

    made: DemoSet
    ground: list[Path]

    @property
    def size(self) -> int:
        return self.made.size

    def ref(self, place: int) -> ImageRef:
        label = None if self.folder.labels is None else self.folder.labels[place]
        return ImageRef(place, f"{self.folder.name(place)} #{place}", label, partial(self.draw, place))

    def draw(self, place: int) -> Image.Image:
        """The picture at a place, always the same one."""
        made, path, rng = self.made, self.folder.paths[place], Random(f"{self.made.kind} {self.made.seed} {place}")
        first = path not in self.folder.paths[:place]
        photo = square(decode(path), made.object, rng, 1.0 if first else LEAST_CROP)
        others = [other for other in self.folder.paths if other.parent != path.parent] or self.folder.paths
        picture = GROUNDS[made.kind](self, others, rng)
        room = made.size - made.object
        spot = (
            (rng.choice((0, room)), rng.choice((0, room)))
            if made.kind == "mosaic"
            else (rng.randint(0, room), rng.randint(0, room))
        )
        picture.paste(photo, spot)
        return picture

    def fingerprint(self, times: bool = True) -> str:
        return digest(super().fingerprint(times), str(self.made), [path.name for path in self.ground])

    def save(self, folder: str | Path) -> None:
        """Write all pictures as PNG, one folder per class."""
        for place, path in enumerate(self.folder.paths):
            target = Path(folder).expanduser() / path.parent.name / f"{place:05d}.png"
            target.parent.mkdir(parents=True, exist_ok=True)
            self.draw(place).save(target)


def plain(source: DemoSource, _others: list[Path], rng: Random) -> Image.Image:
    """Ground of one quiet colour."""
    size = source.made.size
    return Image.new("RGB", (size, size), tuple(rng.randint(96, 160) for _ in range(3)))


def scene(source: DemoSource, others: list[Path], rng: Random) -> Image.Image:
    """A scene; of the packaged photos, a corner of one of another class."""
    if source.ground:
        return square(decode(rng.choice(source.ground)), source.made.size, rng, LEAST_CROP)
    photo = decode(rng.choice(others))
    half = min(photo.size) // 2
    x, y = rng.choice((0, photo.width - half)), rng.choice((0, photo.height - half))
    return photo.resize((source.made.size,) * 2, Image.Resampling.BICUBIC, (x, y, x + half, y + half))


def mosaic(source: DemoSource, others: list[Path], rng: Random) -> Image.Image:
    """Photos of other classes, as large as the object leaves room for."""
    size, cell = source.made.size, source.made.size - source.made.object
    picture = Image.new("RGB", (size, size))
    for y in range(0, size, cell):
        for x in range(0, size, cell):
            picture.paste(square(decode(rng.choice(others)), cell, rng, LEAST_CROP), (x, y))
    return picture


GROUNDS: dict[str, Callable[[DemoSource, list[Path], Random], Image.Image]] = {
    "centred": plain, "small": plain, "scene": scene, "mosaic": mosaic,
}  # fmt: skip


def square(photo: Image.Image, side: int, rng: Random, least: float) -> Image.Image:
    """A square part of a photo, of the share `least` of its short side or more, at this size; below 1 it may be mirrored, too."""
    part = round(min(photo.size) * rng.uniform(least, 1))
    x, y = ((rng.randint(0, n - part) if least < 1 else (n - part) // 2) for n in photo.size)
    made = photo.resize((side, side), Image.Resampling.BICUBIC, (x, y, x + part, y + part))
    return made.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if least < 1 and rng.random() < 0.5 else made


def open_demo(text: str, limit: int | None = None) -> DemoSource:
    """The data set of a text such as demo:small,object=98. Raises PruneError for a kind, a word or a number that cannot be."""
    made = read(text)
    made = replace(made, n=min(made.n, limit or made.n))
    photos = labelled(open_folder(made.photos or demo_images(), made.n), text)
    paths = [photos.paths[place % len(photos)] for place in range(made.n)]
    labels = [photos.labels[place % len(photos)] for place in range(made.n)] if photos.labels is not None else None
    again = f", used {made.n / len(photos):.3g} times each on average; intervals go by photo" * (made.n > len(photos))
    folder = add_note(replace(photos, paths=paths, labels=labels), f"made of {len(photos)} photos{again}")
    return DemoSource(folder, str(made), made, open_folder(made.ground).paths if made.ground else [])


def photos_of(names: Sequence[str]) -> list[str] | None:
    """The photo that each picture was made of, by the pictures' names; None if no photo was used twice."""
    photos = [MADE.sub("", name) for name in names]
    return photos if photos != list(names) and len(set(photos)) < len(names) else None


def labelled(folder: Folder, text: str) -> Folder:
    """The folder, if it has classes."""
    if folder.labels is None:
        raise PruneError(f"{text}: the photos in {folder.path} have no classes; expected one folder per class")
    return folder


def read(text: str) -> DemoSet:
    """The parameters of a text, the kind's own where it is silent."""
    kind, *words = text.removeprefix(DEMO).split(",")
    if kind not in KINDS:
        raise PruneError(f"no data set '{shown(text)}'; choose {', '.join(DEMO + name for name in KINDS)}")
    given: dict[str, str] = {}
    for word in filter(None, words):
        name, _, value = word.partition("=")
        if name not in ("size", "object", "n", "seed", "photos", "ground") or not value or (name == "ground" and kind != "scene"):
            raise PruneError(
                f"{shown(text)}: cannot use '{shown(word)}'; give size=, object=, n=, seed=, photos= (ground= for scenes)"
            )
        given[name] = value
    numbers = {name: value for name, value in given.items() if name in ("size", "object", "n", "seed")}
    if not all(value.isascii() and value.isdigit() and len(value) < 7 for value in numbers.values()):
        raise PruneError(f"{shown(text)}: {', '.join(numbers)} must be whole numbers")
    size = int(numbers.pop("size", KINDS[kind][0]))
    made = DemoSet(kind, size, int(numbers.pop("object", min(size, KINDS[kind][1] * size // KINDS[kind][0]))),
                   **{name: int(value) for name, value in numbers.items()},
                   photos=given.get("photos"), ground=given.get("ground"))  # fmt: skip
    if not 0 < made.object <= size - (kind == "mosaic") or size > 4096 or made.n < 1:
        raise PruneError(f"{shown(text)}: an object of {made.object} pixels in a picture of {size}, {made.n} times, cannot be made")
    return made
