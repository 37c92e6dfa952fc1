"""Pictures with questions about them, made from a folder of photos: what small vision-language models are trained and tested on.

Three kinds: a photo as it is ("single"), a small photo on plain ground ("small"), and two to four photos in the cells of a 2 x 2 mosaic.
The first two are simple pictures, mosaics are complex ones. Everything follows from the seed.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random

from PIL import Image

from ..demo import demo_weights
from ..errors import PruneError
from .images import open_folder
from .reading import decode

SIDE, QUALITY = 224, 92
"""Pixels of a picture's side, and JPEG quality of written ones."""
KINDS = ("single", "small", "mosaic")
SHARES = (0.25, 0.25, 0.5)
"""Share of each kind in a set of pictures."""
SMALL = (84, 112)
"""Smallest and largest side of a small photo in pixels."""
PLACES = ("top left", "top right", "bottom left", "bottom right")
NUMBERS = ("zero", "one", "two", "three", "four")
NOTHING = "nothing"
RENAMED = {
    "Faces": "face", "Faces_easy": "face", "Leopards": "leopard", "Motorbikes": "motorbike", "airplanes": "airplane",
    "car_side": "car", "water_lilly": "water lily",
}  # fmt: skip
"""Names of Caltech-101's folders that are not words of a sentence."""
FORMS = {
    "list": "what is in the picture ?",
    "name": "what is this ?",
    "count": "how many objects are there ?",
    "place": "what is at the {place} ?",
    "where": "where is the {name} ?",
    "yes_no": "is there a {name} in the picture ?",
    "left_of": "is the {name} left of the {other} ?",
}

Alike = Mapping[str, Sequence[str]]
"""Names that are easily taken for a name, most alike first."""


@dataclass(frozen=True)
class Placed:
    """A photo in a picture. place: index of `PLACES`, None for a photo that fills the picture; box: left, top, side in pixels."""

    name: str
    photo: Path
    place: int | None
    box: tuple[int, int, int]


@dataclass(frozen=True)
class Asked:
    """A question about a picture with its answer."""

    kind: str
    question: str
    answer: str
    name: str = ""


@dataclass(frozen=True)
class Scene:
    """A picture to be: its photos in reading order, and the seed of crops and ground."""

    kind: str
    placed: tuple[Placed, ...]
    seed: str

    @property
    def names(self) -> list[str]:
        return [one.name for one in self.placed]

    def draw(self, load: Callable[[Path], Image.Image] = decode, least: float = 1.0) -> Image.Image:
        """The picture [224 x 224]. least: photos are cropped at random down to this share of their short side, and mirrored if below 1."""
        rng = Random(self.seed)
        picture = Image.new("RGB", (SIDE, SIDE), tuple(rng.randint(96, 160) for _ in range(3)))
        for one in self.placed:
            left, top, side = one.box
            picture.paste(squared(load(one.photo), side, rng, least), (left, top))
        return picture

    def ask(self, kind: str, rng: Random, names: Sequence[str], alike: Alike) -> Asked:
        """A question of a kind that this picture allows; "yes" and "no" are yes/no questions with that answer. Half of the absent names
        are look-alikes of a present one."""
        if kind in ("yes", "no"):
            name = rng.choice(self.names) if kind == "yes" else self.absent(rng, names, alike)
            return Asked("yes_no", FORMS["yes_no"].format(name=name), kind, name)
        if kind == "place":
            place = rng.randrange(4)
            there = next((one.name for one in self.placed if one.place == place), NOTHING)
            return Asked(kind, FORMS[kind].format(place=PLACES[place]), there)
        if kind == "where":
            one = rng.choice(self.placed)
            assert one.place is not None
            return Asked(kind, FORMS[kind].format(name=one.name), PLACES[one.place], one.name)
        if kind == "left_of":
            first, second = rng.sample([one for one in self.placed if one.place is not None], 2)
            assert first.place is not None
            assert second.place is not None
            answer = "yes" if first.place % 2 < second.place % 2 else "no"
            return Asked(kind, FORMS[kind].format(name=first.name, other=second.name), answer, first.name)
        answers = {"list": " , ".join(self.names), "name": self.names[0], "count": NUMBERS[len(self.placed)]}
        return Asked(kind, FORMS[kind], answers[kind])

    def absent(self, rng: Random, names: Sequence[str], alike: Alike) -> str:
        """A name that is not in the picture."""
        near = [name for name in alike.get(rng.choice(self.names), ()) if name not in self.names]
        return rng.choice(near if near and rng.random() < 0.5 else [name for name in names if name not in self.names])


ASKED = {
    "single": ("list", "yes", "no", "yes", "no", "count"),
    "small": ("list", "yes", "no", "yes", "no", "count", "place", "where"),
    "mosaic": ("list", "yes", "no", "yes", "no", "count", "place", "place", "where"),
}
"""Questions of each picture of a test set; a question that turns out to be the same twice is asked once."""


def photos_by_name(folder: str | Path) -> dict[str, list[Path]]:
    """Photos of a folder with one folder per class, by the name of what they show. Raises PruneError for a folder without classes."""
    listed = open_folder(folder)
    if listed.labels is None:
        raise PruneError(f"the photos in {listed.path} have no classes; expected one folder per class")
    found: dict[str, list[Path]] = {}
    for path in listed.paths:
        found.setdefault(named(path.parent.name), []).append(path)
    if len(found) < len(PLACES) + 1:
        raise PruneError(f"{listed.path} has {len(found)} classes; pictures of up to four and questions for a fifth need 5")
    return found


def named(folder: str) -> str:
    """The name of a class in a sentence."""
    return RENAMED.get(folder, folder.replace("_", " ").lower())


def make_scenes(photos: Mapping[str, Sequence[Path]], count: int, seed: int, shares: Sequence[float] = SHARES) -> Iterator[Scene]:
    """So many pictures, of each kind its share, mixed."""
    names = sorted(photos)
    for place in range(count):
        rng = Random(f"scene {seed} {place}")
        kind = rng.choices(KINDS, shares)[0]
        yield make_scene(kind, photos, names, rng, f"{seed} {place}")


def make_scene(kind: str, photos: Mapping[str, Sequence[Path]], names: Sequence[str], rng: Random, seed: str) -> Scene:
    """One picture of a kind."""
    shown = rng.sample(names, rng.randint(2, 4) if kind == "mosaic" else 1)
    places = sorted(rng.sample(range(4), len(shown)))
    placed = []
    for name, place in zip(shown, places, strict=True):
        half, photo = SIDE // 2, rng.choice(photos[name])
        left, top = half * (place % 2), half * (place // 2)
        if kind == "single":
            placed.append(Placed(name, photo, None, (0, 0, SIDE)))
        elif kind == "small":
            side = rng.randint(*SMALL)
            placed.append(Placed(name, photo, place, (left + rng.randint(0, half - side), top + rng.randint(0, half - side), side)))
        else:
            placed.append(Placed(name, photo, place, (left, top, half)))
    return Scene(kind, tuple(placed), seed)


def squared(photo: Image.Image, side: int, rng: Random, least: float) -> Image.Image:
    """The middle of a photo as a square, or below `least` 1 a random square part of it, perhaps mirrored."""
    part = min(photo.size) * rng.uniform(least, 1)
    share = (rng.random(), rng.random()) if least < 1 else (0.5, 0.5)
    left, top = ((n - part) * s for n, s in zip(photo.size, share, strict=True))
    made = photo.resize((side, side), Image.Resampling.BICUBIC, (left, top, left + part, top + part))
    return made.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if least < 1 and rng.random() < 0.5 else made


def look_alikes(most: int = 8) -> dict[str, list[str]]:
    """For every name of the embedded ViT's classes the names whose rows of the classifier are nearest (cosine), nearest first."""
    from torch.nn.functional import normalize  # the rest of this file needs no tensors

    state, classes = demo_weights()
    names, rows = [named(name) for name in classes], normalize(state["head.weight"], dim=1)
    near = (rows @ rows.T).argsort(dim=1, descending=True).tolist()
    return {name: list(dict.fromkeys(names[j] for j in near[i] if names[j] != name))[:most] for i, name in enumerate(names)}


def write_questions(folder: str | Path, photos: str | Path, count: int, seed: int, shares: Sequence[float] = SHARES) -> int:
    """So many pictures from a folder of photos, and `questions.jsonl` with the questions of `ASKED`; returns how many questions.

    The same photos, count and seed give the same files. Raises PruneError for photos without classes, and if there is something already.
    """
    target, found = Path(folder).expanduser(), photos_by_name(photos)
    if (target / "questions.jsonl").exists() or (target / "pictures").exists():
        raise PruneError(f"{target} has pictures and questions already; give a new folder")
    (target / "pictures").mkdir(parents=True)
    names, alike, lines = sorted(found), look_alikes(), []
    for number, scene in enumerate(make_scenes(found, count, seed, shares)):
        file, rng = f"pictures/{number:04d}.jpg", Random(f"questions {seed} {number}")
        scene.draw().save(target / file, quality=QUALITY)
        asked = dict.fromkeys(scene.ask(kind, rng, names, alike) for kind in ASKED[scene.kind])
        for place, one in enumerate(asked):
            facts = {"kind": one.kind, "question": one.question, "answer": one.answer, "scene": scene.kind, "objects": scene.names}
            lines.append(json.dumps({"id": f"{number:04d}-{place}", "image": file, **facts}) + "\n")
    (target / "questions.jsonl").write_text("".join(lines), encoding="utf-8")
    return len(lines)
