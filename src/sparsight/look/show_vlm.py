"""What a vision-language model answers before and after, and where in the picture the tokens lie that are left."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ..data.demo_sets import DEMO, open_demo
from ..data.images import even
from ..data.questions import Question
from ..data.reading import decode, formats, reason
from ..errors import PruneError
from ..evaluation.asking import Asker, Prompted
from ..load.demo_vlm import NAME, QUESTION
from ..load.vlms import LoadedVlm, load_vlm
from ..prune import family_of, prune
from ..recipe import Recipe
from .prompt_patches import model_picture, prompt_looks
from .sheets import Cell, View
from .shown import Given, name_of

PLAIN = "What is in the picture?"
WORDS = 24
"""New tokens of an answer at most."""
FRAMES = 8
"""Of a picture that moves."""


def answered(
    given: Sequence[Given], model: str | LoadedVlm, recipes: Sequence[Recipe], question: str | None
) -> tuple[str, list[list[Cell]]]:
    """Name and cells of a vision-language model."""
    opened = [open_frames(one) for one in given]
    loaded = load_vlm(model) if isinstance(model, str) else model
    for recipe in recipes:
        prune(loaded.model, recipe).remove()
    asker = Asker(loaded.model, loaded.processor)
    text = question or (QUESTION if loaded.name == NAME else PLAIN)
    rows = [row_of(asker, name_of(one), frames, recipes, text) for one, frames in zip(given, opened, strict=True)]
    return f"{loaded.name}, asked: {text}", rows


def open_frames(one: Given) -> list[Image.Image]:
    """A picture in RGB; of one that moves at most so many frames, evenly spaced."""
    if isinstance(one, Image.Image):
        return [one.convert("RGB")]
    if str(one).startswith(DEMO):
        return [open_demo(str(one), 1).ref(0).read()]
    try:
        first = decode(Path(one).expanduser())
        with Image.open(Path(one).expanduser(), formats=formats()) as file:
            count = int(getattr(file, "n_frames", 1))
            frames = [first] if count == 1 else [at(file, place) for place in even(range(count), min(count, FRAMES))]
    except Exception as error:  # Pillow's decoders raise whatever their format meets
        raise PruneError(f"image {one} cannot be read: {reason(error)}") from None
    return frames


def at(file: Image.Image, place: int) -> Image.Image:
    """A frame in RGB."""
    file.seek(place)
    return file.convert("RGB")


def prompted(asker: Asker, family: Any, question: Question, frames: list[Image.Image]) -> tuple[str, Prompted]:
    """What the model is asked, and whether about an "image" or a "video": frames are one where the model takes videos."""
    processor = asker.processor
    videos = getattr(processor, "video_processor", None) is not None and family.token_id("video") is not None
    if len(frames) == 1 or not videos:
        return "image", asker.prompted([question], [frames[:1]])
    said = [{"type": "video"}, {"type": "text", "text": question.text}]
    text = processor.apply_chat_template([{"role": "user", "content": said}], add_generation_prompt=True)
    moving = np.stack([np.asarray(frame) for frame in frames])
    like = next(asker.model.parameters())
    call = processor(text=[text], videos=[moving], do_sample_frames=False, return_tensors="pt").to(like.device)
    inputs = {name: value.to(like.dtype) if value.is_floating_point() else value for name, value in call.items()}
    return "video", Prompted([question], inputs, [1])


def row_of(asker: Asker, name: str, frames: list[Image.Image], recipes: Sequence[Recipe], text: str) -> list[Cell]:
    """One image, or video, under every recipe."""
    family = family_of(asker.model)
    kind, asked = prompted(asker, family, Question(name, lambda: frames, text, WORDS), frames)
    views = family.views(kind, asked.inputs)[0]
    if not views:
        raise PruneError(f"where the tokens of {name} lie in the picture is not known for {type(asker.model).__name__}")
    if kind == "image":
        drawn = [model_picture(asker.processor, frames[0])] * len(views)
        parts = ": overview and tiles" if len(views) > 1 else ""
    else:
        drawn, parts = even(frames, len(views)), f": {len(views)} frames"
    before, cells = asker.reply(asked)[0], []
    for recipe in recipes:
        with prune(asker.model, recipe) as handle:
            after = asker.reply(asked)[0]
            sites = prompt_looks(handle, views)
        fault = before.fault or after.fault
        if fault:
            raise PruneError(f"{name} under {recipe}: {fault}; check the weights")
        shown = tuple(View(picture, looks) for picture, looks in zip(drawn, zip(*sites, strict=True), strict=True))
        layers, tokens = tuple(looks[0].layer for looks in sites), tuple(looks[0].tokens for looks in sites)
        total = sum(int((view >= 0).sum()) for view in views)
        cells.append(Cell(name, str(recipe), total, layers, tokens, before.text or "", after.text or "", shown, parts))
    return cells
