"""What the demo vision-language model answers about a picture, unpruned and under a recipe, and which image tokens are left."""

from __future__ import annotations

import re
import time
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from PIL import Image

from ..data.questions import Question
from ..errors import PruneError, shown
from ..evaluation.asking import Asker
from ..evaluation.vlm_entries import BASELINES, complete, grid_made, spelled, usual
from ..load.vlms import LoadedVlm
from ..look.prompt_patches import model_picture, prompt_looks
from ..ops.schedule import BUDGET
from ..pages.page import picture_uri
from ..prune import family_of, prune
from ..recipe import Recipe
from ..registry import find, parse
from ..runs.sweep import pruned
from .controls import Card, card, read_recipe
from .vision import Site, site

TOKENS = 64
"""Image tokens that recipes keep to begin with, of the demo model's 256."""
MOST_WORDS = 16
"""New tokens of an answer at most."""
NO_QUESTION = "the question is empty; ask something such as: what is in the picture ?"
LONGEST = 200
"""Characters of a question at most."""
FIRST = [f"divprune:tokens={TOKENS}", f"fastervlm:tokens={TOKENS}"]
ATTENTION, DIVERSITY, BOTH = "by attention", "by diversity", "by attention and diversity"
PROMPT, INSIDE, BASELINE = "by the question", "inside the language model", "baselines"
GROUPS = (ATTENTION, DIVERSITY, BOTH, PROMPT, INSIDE, BASELINE)


@dataclass(frozen=True)
class Reply:
    """An answer and the milliseconds that it took; or the error alone. site: what is left of the picture, None for the unpruned model;
    tokens: image tokens that are left."""

    recipe: str
    text: str = ""
    milliseconds: float = 0.0
    tokens: int = 0
    site: Site | None = None
    python: str = ""
    command: str = ""
    error: str = ""


@dataclass(frozen=True)
class Talk:
    """unknown: words of the question that the model has never seen."""

    picture: str
    grid: tuple[int, int]
    question: str
    unknown: list[str] = field(default_factory=list)
    replies: list[Reply] = field(default_factory=list)


class Language:
    """The vision-language model of the page. Call it from one thread at a time; between calls it is unpruned."""

    def __init__(self, loaded: LoadedVlm) -> None:
        self.name, self.model, self.processor = loaded.name, loaded.model, loaded.processor
        self.asker = Asker(loaded.model, loaded.processor)
        self.family = family_of(loaded.model)
        self.grid = grid_made(self.family, self.processor)
        self.depth = int(loaded.model.config.get_text_config().num_hidden_layers)  # type: ignore[union-attr,operator]

    def cards(self) -> list[Card]:
        """Cards of the methods that choose image tokens, in the order of their groups."""
        found = []
        for name in dict.fromkeys((*usual(), *BASELINES)):
            recipe = complete(name, TOKENS, self.depth)
            without = () if recipe.where == "decoder" else ("layer", "layers", "where")
            found.append(card(find(name), recipe, group_of(recipe), self.refuse(recipe), without))
        return sorted(found, key=lambda one: GROUPS.index(one.group))

    def refuse(self, recipe: Recipe) -> str:
        try:
            with prune(self.model, recipe):
                return ""
        except PruneError as error:
            return str(error)

    def words(self) -> list[str]:
        """All words that the model knows, in the alphabet's order."""
        tokenizer = self.processor.tokenizer
        special = set(tokenizer.all_special_tokens) | {self.processor.image_token}
        return sorted(word for word in tokenizer.get_vocab() if word not in special and word[0].isalpha())

    def check(self, question: str) -> tuple[str, list[str]]:
        """The question as the model was taught to read it, and the words that it does not know. Raises PruneError for no question."""
        text = " ".join(re.sub(r"([?,.:])", r" \1 ", question.lower()).split())
        if not text:
            raise PruneError(NO_QUESTION)
        if len(text) > LONGEST:
            raise PruneError(f"the question has {len(text)} characters; ask one of at most {LONGEST}")
        tokenizer = self.processor.tokenizer
        read = tokenizer(text, return_offsets_mapping=True, add_special_tokens=False)
        pieces = zip(read["input_ids"], read["offset_mapping"], strict=True)
        unknown = []
        for number, (start, end) in pieces:
            if number == tokenizer.unk_token_id:
                unknown.append(text[start:end])
            elif number in tokenizer.all_special_ids or text[start:end] == self.processor.image_token:
                raise PruneError(f"the question holds {shown(text[start:end])}, which marks the picture; leave it out")
        return text, list(dict.fromkeys(unknown))

    def ask(self, picture: Image.Image, question: str, recipes: Sequence[str]) -> Talk:
        """The answers unpruned and under each recipe. Raises PruneError for a question that cannot be asked."""
        text, unknown = self.check(question)
        image = self.asker.prepared(picture)
        asked = self.asker.prompted([Question("page", lambda: [image], text, MOST_WORDS)], [[image]])
        height, width = self.family.grid_of(asked.inputs)
        replies = [self.reply(asked, None, (height, width)), *(self.under(asked, recipe, (height, width)) for recipe in recipes)]
        shown_picture = picture_uri(model_picture(self.processor, image), "jpeg")
        return Talk(shown_picture, (height, width), text, unknown, replies)

    def under(self, asked: Any, text: str, grid: tuple[int, int]) -> Reply:
        try:
            return self.reply(asked, completed(text, self.depth), grid)
        except PruneError as error:
            return Reply(text, error=str(error))

    def reply(self, asked: Any, recipe: Recipe | None, grid: tuple[int, int]) -> Reply:
        with warnings.catch_warnings(), torch.no_grad(), pruned(self.model, recipe) as handle:
            warnings.simplefilter("ignore")
            start = time.perf_counter()
            answer = self.asker.reply(asked)[0]
            took = 1000 * (time.perf_counter() - start)
            sites = [] if handle is None else prompt_looks(handle, self.family.views("image", asked.inputs)[0])
            left, kept = grid[0] * grid[1], None
            if sites:
                last = sites[-1][0]
                left, kept = last.tokens, site(replace(last, layer=-2 if last.smaller else 0, score=None))
        if answer.text is None:
            raise PruneError(f"{self.name} gives no answer here: {answer.fault}")
        if recipe is None:
            return Reply("", answer.text, took, left)
        name = spelled(recipe)
        return Reply(name, answer.text, took, left, kept, python_line(self.name, name), command_line(self.name, name))


def group_of(recipe: Recipe) -> str:
    """How a method chooses, by what it asks of the model."""
    needs = set(recipe.needs)
    if recipe.name in BASELINES:
        return BASELINE
    if recipe.where == "decoder":
        return INSIDE
    if "text" in needs:
        return PROMPT
    attends = bool(needs & {"class_attn", "q", "k", "attns"})
    return BOTH if attends and "feats" in needs else ATTENTION if attends else DIVERSITY


def completed(text: str, depth: int) -> Recipe:
    """The recipe of the page with layers that the language model has."""
    read_recipe(text)
    words = {part.partition("=")[0].strip() for part in text.partition(":")[2].split(",")}
    return complete(text, None if words & set(BUDGET) or not parse(text).schedule.word else TOKENS, depth)


def python_line(model: str, recipe: str) -> str:
    return f'import sparsight\nloaded = sparsight.load_vlm({model!r})\nhandle = sparsight.prune(loaded.model, "{recipe}")'


def command_line(model: str, recipe: str) -> str:
    return f"sparsight compare --model {model} --methods '{recipe}'"
