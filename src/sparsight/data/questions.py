"""Questions of one's own: a JSONL file with image, question and answer, scored as POPE where the answers are yes and no."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from ..errors import PruneError, shown
from .fingerprint import digest
from .images import stat_of
from .reading import decode

FORMAT = '{"image": "photo.jpg", "question": "Is there a dog in the image?", "answer": "no"}'
YES_NO = ("yes", "no")


@dataclass(frozen=True)
class Question:
    """key: its name in the log of answers; pictures: loads its images; most: new tokens at most; until: texts that end the answer."""

    key: str
    pictures: Callable[[], list[Image.Image]]
    text: str
    most: int = 32
    until: tuple[str, ...] = ()


@dataclass(frozen=True)
class Item:
    """One line of the file. answers: any of them is right; category: a split of the set."""

    key: str
    images: tuple[Path, ...]
    text: str
    answers: tuple[str, ...]
    category: str = ""

    def load(self) -> list[Image.Image]:
        """Its images."""
        return [decode(path) for path in self.images]


@dataclass(frozen=True)
class LocalSet:
    """Questions of a file. `binary`: all answers are yes or no."""

    name: str
    path: Path
    items: list[Item]
    most: int

    @property
    def binary(self) -> bool:
        return all(len(item.answers) == 1 and plain(item.answers[0]) in YES_NO for item in self.items)

    def fingerprint(self) -> str:
        """Of the questions, and of the images by name, size and time of change."""
        files = [(str(path), stat_of(path).st_size, stat_of(path).st_mtime_ns) for item in self.items for path in item.images]
        return digest(files, [(item.key, item.text, item.answers, item.category) for item in self.items])

    def questions(self) -> list[Question]:
        return [Question(item.key, item.load, item.text, self.most) for item in self.items]


def read_set(path: str | Path, limit: int | None = None, most: int = 32) -> LocalSet:
    """Read a JSONL file, or the one in a folder, and look that the images are there. The first `limit` questions. Raises PruneError
    with the line of a fault."""
    file = Path(path).expanduser()
    if os.path.isdir(file):
        inside = sorted(file.glob("*.jsonl"))
        if len(inside) != 1:
            raise PruneError(f"folder {file} holds {len(inside)} .jsonl files; it must hold one, with lines such as {FORMAT}")
        file = inside[0]
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise PruneError(f"{file} cannot be read ({error}); expected lines such as {FORMAT}") from None
    items = [read_line(file, number, line) for number, line in enumerate(lines, 1) if line.strip()][:limit]
    if not items:
        raise PruneError(f"{file} holds no questions; expected lines such as {FORMAT}")
    if len({item.key for item in items}) < len(items):
        raise PruneError(f"{file}: several questions have the same id; give each its own, or leave id out")
    return LocalSet(file.stem, file, items, most)


def read_line(file: Path, number: int, line: str) -> Item:
    """One question."""
    place = f"{file}, line {number}"
    try:
        data: dict[str, Any] = json.loads(line)
        images, question, answer = data["image"], data["question"], data["answer"]
    except (ValueError, TypeError) as error:
        raise PruneError(f"{place} is no JSON object ({error}); expected {FORMAT}") from None
    except KeyError as error:
        raise PruneError(f"{place} has no {error}; expected {FORMAT}") from None
    names = images if isinstance(images, list) else [images]
    missing = [name for name in names if not isinstance(name, str) or not os.path.lexists(file.parent / name)]
    if missing or not names:
        raise PruneError(f"{place}: no image file {shown(missing[0]) if missing else ''}; paths are relative to {file.parent}")
    paths = tuple(file.parent / name for name in names)
    answers = tuple(map(str, answer)) if isinstance(answer, list) else (str(answer),)
    if not answers or not str(question).strip():
        raise PruneError(f"{place} has an empty question or no answer; expected {FORMAT}")
    return Item(str(data.get("id", number)), paths, str(question), answers, str(data.get("category", "")))


def plain(text: str) -> str:
    """Lower case, without punctuation and surplus blanks."""
    return " ".join(re.sub(r"[^\w\s]", " ", text.lower()).split())
