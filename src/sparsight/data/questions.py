"""Questions of one's own: a JSONL file with image, question and answer, and how their words are checked before anything runs.

Optional keys: `kind` of question, `scene` of the picture, `objects` in it; `scenes.write_questions` writes all of them. Sets whose answers are
yes and no are scored as POPE, sets with kinds kind by kind (`evaluation.question_scores`).
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from ..errors import PruneError, shown
from .fingerprint import digest
from .images import is_image, stat_of
from .reading import decode

FORMAT = '{"image": "photo.jpg", "question": "Is there a dog in the image?", "answer": "no"}'
YES_NO = ("yes", "no")
LIST = "list"
"""Kind of question whose answer is a list of names, joined by commas: a caption that CHAIR reads."""
SCENES = {"single": "simple", "small": "simple", "mosaic": "complex", "simple": "simple", "complex": "complex"}
"""Which pictures are simple and which complex: one object, or several."""
NAMED = 5
"""Faults that an error names; it counts them all."""


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
    """One line of the file. answers: any of them is right; category: a split of the set; kind: of the question; scene: of the picture;
    objects: names of all that is in the picture."""

    key: str
    images: tuple[Path, ...]
    text: str
    answers: tuple[str, ...]
    category: str = ""
    kind: str = ""
    scene: str = ""
    objects: tuple[str, ...] = ()

    @property
    def complexity(self) -> str:
        """simple, complex, or empty where the file does not say."""
        return SCENES.get(self.scene, "")

    def load(self) -> list[Image.Image]:
        """Its images."""
        return [decode(path) for path in self.images]


@dataclass(frozen=True)
class LocalSet:
    """Questions of a file. `binary`: all answers are yes or no; `kinds`: of the questions, in the order of the file."""

    name: str
    path: Path
    items: list[Item]
    most: int

    @property
    def binary(self) -> bool:
        return all(len(item.answers) == 1 and plain(item.answers[0]) in YES_NO for item in self.items)

    @property
    def kinds(self) -> list[str]:
        return list(dict.fromkeys(item.kind for item in self.items if item.kind))

    def fingerprint(self) -> str:
        """Of the questions, and of the images by name, size and time of change."""
        images = dict.fromkeys(path for item in self.items for path in item.images)
        files = [(str(path), (found := stat_of(path)).st_size, found.st_mtime_ns) for path in images]
        asked = [
            (i.key, [str(path) for path in i.images], i.text, i.answers, i.category, i.kind, i.scene, i.objects) for i in self.items
        ]
        return digest(files, asked)

    def content(self) -> str:
        """Of the questions and of what is in the image files, wherever they lie. Reads every file."""
        images = list(dict.fromkeys(path for item in self.items for path in item.images))
        files = [hashlib.blake2b(path.read_bytes() if path.is_file() else b"", digest_size=8).hexdigest() for path in images]
        places = {path: place for place, path in enumerate(images)}
        asked = [
            (i.key, [places[path] for path in i.images], i.text, i.answers, i.category, i.kind, i.scene, i.objects)
            for i in self.items
        ]
        return digest(files, asked)

    def questions(self) -> list[Question]:
        return [self.question(item) for item in self.items]

    def question(self, item: Item) -> Question:
        return Question(item.key, item.load, item.text, self.most)


def read_set(path: str | Path, limit: int | None = None, most: int = 32) -> LocalSet:
    """Read a JSONL file, or the one in a folder, and look that the images are there. The first `limit` questions. Raises one PruneError
    that counts the lines that cannot be used and names the first of them."""
    file = find_file(Path(path).expanduser())
    try:
        lines = file.read_text(encoding="utf-8-sig").splitlines()  # Windows puts a mark in front
    except (OSError, UnicodeDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) else "it is no UTF-8 text"
        raise PruneError(f"{file} cannot be read ({why}); expected lines such as {FORMAT}") from None
    there = [(number, line) for number, line in enumerate(lines, 1) if line.strip()][:limit]
    items: list[Item] = []
    faults: list[str] = []
    known: dict[str, bool] = {}
    for number, line in there:
        try:
            items.append(read_line(file.parent, number, line, known))
        except PruneError as fault:
            faults.append(f"line {number} {fault}")
    if faults:
        raise PruneError(f"{file}: {len(faults)} of {len(there)} lines cannot be used: {some(faults)}; expected {FORMAT}")
    if not items:
        raise PruneError(f"{file} holds no questions; expected lines such as {FORMAT}")
    double = [key for key, times in Counter(item.key for item in items).items() if times > 1]
    if double:
        raise PruneError(f"{file}: several questions have the same id ({some(double)}); give each its own, or leave id out")
    return LocalSet(file.stem, file, items, most)


def find_file(file: Path) -> Path:
    """The file, or the one .jsonl file of a folder."""
    if not os.path.isdir(file):
        return file
    inside = sorted(file.glob("*.jsonl"))
    if len(inside) == 1:
        return inside[0]
    pictures = sum(is_image(path) for path in file.rglob("*")) if not inside else 0
    there = f" but {pictures} pictures" if pictures else ""
    raise PruneError(
        f"folder {file} holds {len(inside)} .jsonl files{there}; it must hold one with questions, lines such as {FORMAT}"
    )


def read_line(folder: Path, number: int, line: str, known: dict[str, bool]) -> Item:
    """One question; a PruneError says what is wrong with it. known: which images are there, by name."""
    try:
        data = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise PruneError(f"is no JSON object ({shown(str(error))})") from None
    if not isinstance(data, dict):
        raise PruneError(f"is no JSON object but {shown(line.strip())}")
    if "question" not in data:
        raise PruneError("has no 'question'")
    if "answer" not in data:
        raise PruneError("has no 'answer'")
    if not data.get("image"):
        raise PruneError("has a question without a picture (no 'image')")
    names = data["image"] if isinstance(data["image"], list) else [data["image"]]
    for name in names:
        if not isinstance(name, str):
            raise PruneError(f"names the image {shown(name)}, which is no text")
        if name not in known:
            known[name] = os.path.lexists(folder / name)
        if not known[name]:
            raise PruneError(f"has no image file {shown(name)}; paths are relative to {folder}")
    given = data["answer"] if isinstance(data["answer"], list) else [data["answer"]]
    for what, value in (("question", data["question"]), *(("answer", one) for one in given)):
        if not isinstance(value, (str, int, float)) or isinstance(value, bool):
            raise PruneError(f"has the {what} {shown(value)}, which is no text")
    answers = tuple(map(str, given))
    if not answers or not str(data["question"]).strip() or not all(one.strip() for one in answers):
        raise PruneError("has an empty question or no answer")
    kind, scene, objects = str(data.get("kind") or ""), str(data.get("scene") or ""), data.get("objects") or []
    if scene and scene not in SCENES:
        raise PruneError(f"has the scene {shown(scene)}; choose {', '.join(SCENES)}")
    if not isinstance(objects, list) or not all(isinstance(one, str) and one.strip() for one in objects):
        raise PruneError(f"has objects {shown(objects)}; give a list of names")
    if kind == LIST and not objects:
        raise PruneError("asks for a list, but has no 'objects' to compare it with")
    if kind == "yes_no" and any(plain(one) not in YES_NO for one in answers):
        raise PruneError(f"has the answer {shown(answers[0])} to a question of yes or no")
    paths = tuple(folder / name for name in names)
    return Item(
        str(data.get("id", number)),
        paths,
        str(data["question"]),
        answers,
        str(data.get("category", "")),
        kind,
        scene,
        tuple(objects),
    )


def some(faults: list[str]) -> str:
    """The first few, and how many more there are."""
    more = len(faults) - NAMED
    return "; ".join(faults[:NAMED]) + (f"; and {more} more" if more > 0 else "")


def plain(text: str) -> str:
    """Lower case, without punctuation and surplus blanks."""
    return " ".join(re.sub(r"[^\w\s]", " ", text.lower()).split())


# ---- words ------------------------------------------------------------------------------------------------------------


def check_words(one: LocalSet, tokenizer: Any) -> None:
    """Raise PruneError for words of questions and answers that a tokenizer of whole words does not know: the model would read them all
    as the same unknown word, and could never answer them. Tokenizers that spell words out know every word."""
    if getattr(tokenizer, "unk_token_id", None) is None:
        return
    said: dict[str, list[str]] = {}
    for item in one.items:
        for what, texts in (("the question", (item.text,)), ("the answer", item.answers)):
            words = [unknown_words(text, tokenizer) for text in texts]
            if all(words):  # one answer that can be given is enough
                for word in words[0]:
                    said.setdefault(word, []).append(f"{what} {shown(item.key)}")
    if said:
        found = [
            f"'{shown(word)}' (in {places[0]}{f' and {len(places) - 1} more' if len(places) > 1 else ''})"
            for word, places in said.items()
        ]
        raise PruneError(
            f"{one.path}: the model's vocabulary has no word {some(found)}; it knows {len(tokenizer)} words: use those, or another model"
        )


def unknown_words(text: str, tokenizer: Any) -> list[str]:
    """Words of a text that become the unknown token."""
    if not getattr(tokenizer, "is_fast", False):
        return [word for word in text.split() if tokenizer.unk_token_id in tokenizer(word, add_special_tokens=False)["input_ids"]]
    coded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    pairs = zip(coded["input_ids"], coded["offset_mapping"], strict=True)
    return [text[start:end] for token, (start, end) in pairs if token == tokenizer.unk_token_id]
