"""The sample pictures of the page, from the package."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from pathlib import Path

from ..data.questions import read_set
from ..demo import demo_images
from ..load import demo_vlm

SCENES = {"single": 4, "small": 4, "mosaic": 10}
"""Sample pictures for questions, of each kind of scene: a photo, a small photo on plain ground, several photos."""
FIRST_SCENE = "0017"
"""The page begins with it: two objects, both of which the model names with all tokens, as it does in two of five such pictures."""


@dataclass(frozen=True)
class Ask:
    """A question about a sample and its right answer."""

    text: str
    answer: str


@dataclass(frozen=True)
class Sample:
    """name: in the address; label: what is in it; questions: those that the package has about it."""

    name: str
    label: str
    path: Path
    questions: tuple[Ask, ...] = ()


@cache
def photos() -> dict[str, Sample]:
    """The demo model's photos, by name."""
    found = sorted(demo_images().rglob("*.jpg"), key=lambda path: path.parent.name.lower())
    return {path.parent.name.lower(): Sample(path.parent.name.lower(), path.parent.name.lower(), path) for path in found}


@cache
def scenes() -> dict[str, Sample]:
    """Some of the demo language model's pictures with all questions about them, by name; those with several objects first."""
    folder = demo_vlm.packaged(demo_vlm.NAME)
    about: dict[Path, list[tuple[str, Ask]]] = {}
    objects: dict[Path, str] = {}
    for item in read_set(Path(folder) / demo_vlm.questions().name).items:
        about.setdefault(item.images[0], []).append((item.scene, Ask(item.text, item.answers[0])))
        objects[item.images[0]] = ", ".join(item.objects)
    found = []
    for scene, most in reversed(SCENES.items()):
        chosen = [path for path, asked in about.items() if asked[0][0] == scene][:most]
        found += [Sample(path.stem, objects[path], path, tuple(ask for _, ask in about[path])) for path in chosen]
    return {sample.name: sample for sample in found}
