"""Questions of one's own: a JSONL file with image, question and answer, scored as POPE where the answers are yes and no."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from ..errors import PruneError
from ..evaluation import metrics
from ..evaluation.asking import Answer, Question
from ..runs.store import digest

FORMAT = '{"image": "photo.jpg", "question": "Is there a dog in the image?", "answer": "no"}'
YES_NO = ("yes", "no")


@dataclass(frozen=True)
class Item:
    """One line of the file. answers: any of them is right; category: a split of the set."""

    key: str
    images: tuple[Path, ...]
    text: str
    answers: tuple[str, ...]
    category: str = ""

    def load(self) -> list[Image.Image]:
        found = []
        for path in self.images:
            with Image.open(path) as image:
                found.append(image.convert("RGB"))
        return found

    def right(self, answer: str, binary: bool) -> bool:
        """Whether an answer is right: POPE's reading of yes and no, else the same words."""
        if binary:
            return metrics.says_no(answer) == (plain(self.answers[0]) == "no")
        return plain(answer) in {plain(one) for one in self.answers}


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
        files = [(str(path), path.stat().st_size, path.stat().st_mtime_ns) for item in self.items for path in item.images]
        return digest(files, [(item.key, item.text, item.answers, item.category) for item in self.items])

    def questions(self) -> list[Question]:
        return [Question(item.key, item.load, item.text, self.most) for item in self.items]

    def score(self, answers: Sequence[Answer]) -> tuple[dict[str, float], list[float | None]]:
        """Scores in percent, the one that counts first, and for each question 1 or 0 (None where it could not be asked)."""
        asked = [(item, answer.text) for item, answer in zip(self.items, answers, strict=True) if answer.text is not None]
        hits = [
            None if a.text is None else float(item.right(a.text, self.binary)) for item, a in zip(self.items, answers, strict=True)
        ]
        if not asked:
            raise PruneError(f"{self.path}: no image could be read; {self.items[0].images[0]}: {answers[0].fault}")
        accuracy = {"accuracy": 100 * sum(hit for hit in hits if hit is not None) / len(asked)}
        if not self.binary:
            return accuracy, hits
        splits: dict[str, list[tuple[Item, str]]] = {}
        for item, text in asked:
            splits.setdefault(item.category, []).append((item, text))
        found = {
            name: metrics.pope([text for _, text in part], [item.answers[0] for item, _ in part]) for name, part in splits.items()
        }
        whole = metrics.pope([text for _, text in asked], [item.answers[0] for item, _ in asked])
        rest = {"precision": 100 * whole.precision, "recall": 100 * whole.recall, "yes_ratio": 100 * whole.yes_ratio}
        return {"f1": 100 * metrics.mean_f1(found), **accuracy, **rest}, hits


def read_set(path: str | Path, limit: int | None = None, most: int = 32) -> LocalSet:
    """Read a JSONL file, or the one in a folder, and look that the images are there. The first `limit` questions. Raises PruneError
    with the line of a fault."""
    file = Path(path).expanduser()
    if file.is_dir():
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
    paths = tuple(file.parent / name for name in (images if isinstance(images, list) else [images]))
    missing = [path for path in paths if not path.is_file()]
    if missing or not paths:
        raise PruneError(f"{place}: no image file {missing[0] if missing else ''}; paths are relative to {file.parent}")
    answers = tuple(map(str, answer)) if isinstance(answer, list) else (str(answer),)
    if not answers or not str(question).strip():
        raise PruneError(f"{place} has an empty question or no answer; expected {FORMAT}")
    return Item(str(data.get("id", number)), paths, str(question), answers, str(data.get("category", "")))


def plain(text: str) -> str:
    """Lower case, without punctuation and surplus blanks."""
    return " ".join(re.sub(r"[^\w\s]", " ", text.lower()).split())
