"""Ask a vision-language model questions about images, in batches, and keep every answer on disk as soon as it is there."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import nn

from ..data.questions import Question
from ..data.reading import reason
from ..errors import PruneError

NOT_FINITE = "the logits are NaN or infinite"
LLAVA = "USER: {images}\n{question} ASSISTANT:"
"""LLaVA-1.5's prompt, for its checkpoints without a chat template."""


@dataclass(frozen=True)
class Answer:
    """text: None where an image could not be read or the logits were not finite, then `fault` says so. kept: visual tokens left of each
    image, or of all together where the language model drops them."""

    text: str | None
    kept: list[int] = field(default_factory=list)
    fault: str = ""


class AnswerLog:
    """Answers in a file, one line each, written as they come; a last line that was cut off is dropped."""

    def __init__(self, path: Path | None = None) -> None:
        self.path = path
        self.known: dict[str, Answer] = {}
        if path is None or not path.exists():
            return
        whole = 0
        for line in path.read_bytes().splitlines(keepends=True):
            try:
                data = json.loads(line)
                key = data.pop("key")
                self.known[key] = Answer(**data)
            except (ValueError, KeyError, TypeError, AttributeError):
                break
            if not line.endswith(b"\n"):
                break
            whole += len(line)
        os.truncate(path, whole)

    def add(self, answers: dict[str, Answer]) -> None:
        """Write answers and remember them."""
        self.known |= answers
        if self.path is None:
            return
        try:
            with self.path.open("a", encoding="utf-8") as file:
                file.writelines(json.dumps({"key": key, **asdict(answer)}) + "\n" for key, answer in answers.items())
        except OSError as error:
            raise PruneError(
                f"{self.path} cannot be written ({error.strerror}); make room and give the same command again to go on"
            ) from None

    def close(self) -> None:
        """Take the file away: what it holds is kept elsewhere."""
        if self.path is not None:
            self.path.unlink(missing_ok=True)


@dataclass(eq=False)
class Asker:
    """A model with its processor. prompt: a text with {images} and {question}, by default the checkpoint's chat template.

    square: pad images to squares with the processor's mean colour first, as LLaVA-1.5's authors do. handle: that of the recipe at work.
    """

    model: nn.Module
    processor: Any
    size: int = 1
    prompt: str | None = None
    square: bool = False
    handle: Any = None

    def __post_init__(self) -> None:
        if self.size < 1:
            raise PruneError(f"batch_size={self.size} must be 1 or more")
        if self.prompt is not None and not all(word in self.prompt for word in ("{images}", "{question}")):
            raise PruneError(f"prompt {self.prompt!r} must hold {{images}} and {{question}}")
        self.written("", 1)

    def written(self, question: str, images: int) -> str:
        """The prompt of a question about so many images."""
        form, token = self.prompt, getattr(self.processor, "image_token", None) or "<image>"
        if form is None and getattr(self.processor, "chat_template", None):
            said = [{"type": "image"}] * images + [{"type": "text", "text": question}]
            text: str = self.processor.apply_chat_template([{"role": "user", "content": said}], add_generation_prompt=True)
            return text
        if form is None and getattr(getattr(self.model, "config", None), "model_type", "") != "llava":
            raise PruneError(
                f"the processor of {type(self.model).__name__} has no chat template; say how prompts look, as in --prompt '{LLAVA}'"
            )
        return (form or LLAVA).replace("{images}", "\n".join([token] * images)).replace("{question}", question)

    def ask(self, questions: Sequence[Question], log: AnswerLog, step: Callable[[int], object] = lambda _: None) -> list[Answer]:
        """Answers in the order of the questions; those in the log are not asked again. `step` hears how many are done."""
        todo = [question for question in questions if question.key not in log.known]
        step(len(questions) - len(todo))
        for group in batched(todo, self.size):
            log.add(self.batch(group))
            step(len(group))
        return [log.known[question.key] for question in questions]

    def batch(self, group: list[Question]) -> dict[str, Answer]:
        """Answers of one batch, whose questions have the same limits."""
        answers, able, images = {}, [], []
        for question in group:
            try:
                found = [self.prepared(picture) for picture in question.pictures()]
            except Exception as error:  # Pillow's decoders raise whatever their format meets
                answers[question.key] = Answer(None, fault=reason(error))
                continue
            able.append(question)
            images.append(found)
        if able:
            answers |= {q.key: a for q, a in zip(able, self.generate(able, images), strict=True)}
        return answers

    def prepared(self, picture: Image.Image) -> Image.Image:
        """The picture in RGB, square if wanted."""
        picture = picture.convert("RGB")
        side = max(picture.size)
        if not self.square or min(picture.size) == side:
            return picture
        mean = getattr(getattr(self.processor, "image_processor", None), "image_mean", (0.5, 0.5, 0.5))
        canvas = Image.new("RGB", (side, side), tuple(int(255 * part) for part in mean))
        canvas.paste(picture, ((side - picture.width) // 2, (side - picture.height) // 2))
        return canvas

    def generate(self, group: list[Question], images: list[list[Image.Image]]) -> list[Answer]:
        """The user's own call: processor, generate, decode. Greedy, as in the papers."""
        return self.reply(self.prompted(group, images))

    def prompted(self, group: list[Question], images: list[list[Image.Image]]) -> Prompted:
        """A batch of questions as the processor writes them, on the model's device; the same for every recipe."""
        texts = [self.written(question.text, len(found)) for question, found in zip(group, images, strict=True)]
        self.processor.tokenizer.padding_side = "left"
        given = {"images": images} if any(images) else {}
        like = next(self.model.parameters())
        call = self.processor(text=texts, padding=True, return_tensors="pt", **given).to(like.device)
        inputs = {name: value.to(like.dtype) if value.is_floating_point() else value for name, value in call.items()}
        return Prompted(group, inputs, [len(found) for found in images])

    @torch.no_grad()
    def reply(self, asked: Prompted) -> list[Answer]:
        """The model's answers, in the order of the questions."""
        model: Any = self.model
        with finite_rows(model, len(asked.questions)) as fine:
            made = model.generate(**asked.inputs, max_new_tokens=asked.questions[0].most, do_sample=False)
        replies = self.processor.tokenizer.batch_decode(made[:, asked.inputs["input_ids"].shape[1] :], skip_special_tokens=True)
        kept = kept_of(self.handle, asked.images)
        return [
            Answer(cut(text, q.until), left) if good else Answer(None, left, NOT_FINITE)
            for text, q, left, good in zip(replies, asked.questions, kept, fine, strict=True)
        ]


@dataclass(frozen=True, eq=False)
class Prompted:
    """A batch ready for `generate`: its questions, the processor's output, and how many images each question has."""

    questions: list[Question]
    inputs: dict[str, Any]
    images: list[int]


@contextmanager
def finite_rows(model: Any, rows: int) -> Iterator[list[bool]]:
    """Within this context the list says of every row of the batch whether all logits that chose a token were finite."""
    fine = [True] * rows

    def look(_module: nn.Module, _given: Any, logits: torch.Tensor) -> None:
        for row, good in enumerate(logits[:, -1].isfinite().all(dim=-1).tolist()):
            fine[row] = fine[row] and good

    hook = model.get_output_embeddings().register_forward_hook(look)
    try:
        yield fine
    finally:
        hook.remove()


def kept_of(handle: Any, images: list[int]) -> list[list[int]]:
    """Visual tokens left for each sample: of each of its images, or of all its images together where the language model drops them."""
    if handle is None:
        return [[] for _ in images]
    counts = list(handle.kept_per_image())
    if len(counts) != sum(images):
        return [[count] if number else [] for count, number in zip(counts, images, strict=True)]
    ends = [sum(images[: i + 1]) for i in range(len(images))]
    return [counts[end - n : end] for end, n in zip(ends, images, strict=True)]


def cut(text: str, until: Iterable[str]) -> str:
    """The answer up to the first text that ends it."""
    for end in until:
        text = text.partition(end)[0] if end else text
    return text.strip()


def batched(questions: list[Question], size: int) -> Iterable[list[Question]]:
    """Runs of at most `size` questions with the same limits."""
    group: list[Question] = []
    for question in questions:
        if group and (len(group) == size or (question.most, question.until) != (group[0].most, group[0].until)):
            yield group
            group = []
        group.append(question)
    if group:
        yield group
