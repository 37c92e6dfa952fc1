"""The fifteen common corruptions of images, from the library imagecorruptions (its maintained release, imagecorruptions-imaug)."""

from __future__ import annotations

import importlib.util
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
from PIL import Image

from ..errors import PruneError
from .fingerprint import digest
from .reading import ImageRef, Source, Wanted

SEEDED = ("glass_blur", "impulse_noise")
"""These draw from a generator of their own, the others from NumPy's global one."""
LOCK = threading.Lock()
SEVERITIES = (1, 2, 3, 4, 5)


def corruption_names() -> list[str]:
    """Names of the fifteen, in the library's order."""
    return [str(name) for name in need().get_corruption_names("common")]


def corrupt(image: Image.Image, name: str, severity: int, seed: int) -> Image.Image:
    """The image with a corruption of severity 1 to 5. The same seed gives the same pixels, whatever ran before.

    Hendrycks & Dietterich, ICLR 2019, arXiv:1903.12261, in the form for any image size (Michaelis et al. 2019, arXiv:1907.07484).
    Raises ValueError for images under 32 pixels.
    """
    library = need()
    if min(image.size) < 32:
        raise ValueError(f"{image.size[0]} x {image.size[1]} pixels are too few to corrupt; 32 are needed")
    own = {"seed": seed} if name in SEEDED else {}
    with LOCK:
        state = np.random.get_state()
        try:
            np.random.seed(seed)
            pixels = library.corrupt(np.asarray(image.convert("RGB")), severity=severity, corruption_name=name, **own)
        finally:
            np.random.set_state(state)
    return Image.fromarray(pixels)


@dataclass(frozen=True)
class Corrupted(Source):
    """The images of another source, corrupted before the checkpoint's preprocessing; the seed follows from the image's name."""

    source: Source
    name: str
    severity: int
    seed: int
    title: str = field(init=False)
    classes: list[str] | None = field(init=False)
    note: str = field(init=False)
    total: int | None = field(init=False)

    def __post_init__(self) -> None:
        for word in ("title", "classes", "note", "total"):
            object.__setattr__(self, word, getattr(self.source, word))

    def ref(self, place: int) -> ImageRef:
        whole: Any = self.source
        return self.spoil(whole.ref(place))

    def refs(self, wanted: Wanted) -> Iterator[ImageRef]:
        return map(self.spoil, self.source.refs(wanted))

    def spoil(self, ref: ImageRef) -> ImageRef:
        """The ref whose image comes out corrupted."""
        seed = int(digest(ref.name, self.name, self.severity, self.seed), 16) % 2**32
        return ImageRef(ref.place, ref.name, ref.label, partial(self.read, ref, seed))

    def read(self, ref: ImageRef, seed: int) -> Image.Image:
        return corrupt(ref.read(), self.name, self.severity, seed)

    def aligned(self, classes: Sequence[str] | None, outputs: int) -> Source:
        return Corrupted(self.source.aligned(classes, outputs), self.name, self.severity, self.seed)

    def fingerprint(self, times: bool = True) -> str:
        return digest(self.source.fingerprint(times), self.name, self.severity, self.seed)


def check_names(names: Sequence[str], severities: Sequence[int]) -> list[tuple[str, int]]:
    """Every corruption at every severity; a PruneError for what there is not."""
    known = corruption_names()
    wanted = known if list(names) == ["all"] else list(dict.fromkeys(names))
    for name in wanted:
        if name not in known:
            raise PruneError(f"corruption {name!r} is not known; choose all or some of {', '.join(known)}")
    for severity in severities:
        if severity not in SEVERITIES:
            raise PruneError(f"severity={severity} is not one of 1 to 5")
    if not wanted or not severities:
        raise PruneError("nothing to do: give at least one corruption and one severity")
    if importlib.util.find_spec("matplotlib") is None:
        raise PruneError("the figure needs matplotlib; pip install 'sparsight[robustness]'")
    return [(name, severity) for severity in dict.fromkeys(severities) for name in wanted]


def need() -> Any:
    """The library; a PruneError that names the extra to install where it is missing."""
    try:
        return importlib.import_module("imagecorruptions")
    except ImportError as error:
        raise PruneError(f"corruptions need imagecorruptions ({one(error)}); pip install 'sparsight[robustness]'") from None


def one(error: ImportError) -> str:
    """What is missing, in a line."""
    return str(error).splitlines()[0]
