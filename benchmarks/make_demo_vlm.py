"""Train the demo vision-language model from photos, in one run that can be stopped and started again.

    python benchmarks/make_demo_vlm.py --photos TRAIN --work WORK [--out src/sparsight/demo/vlm] [--test TEST]

A LLaVA: the embedded ViT-S/14 as tower (Dinov2Model, layer -2), a projector, a Llama of 6 layers and 256 channels over about 170 words.

1. pictures   made by `sparsight.data.scenes` from the training photos (one photo of each class is held out for the learning curves); what the
              tower's first nine blocks make of them is kept on disk.
2. tower      the two blocks that follow learn to name what is in the cells of mosaics: for every cell the log-sum-exp of its patches' logits
              has to name the photo, so evidence may stay where the object is. The class token is held where it was (squared error).
3. language   projector and language model, eight questions a picture behind one visual prefix, a random part of the visual tokens at every
              step (all of them at the end). Three helping losses: cells are named by the projected tokens against the word embeddings, each
              token says on which side it is by the words for it, and the
              asked name's own place says whether it is there.
4. weights    int8 with a scale per row where they are matrices, safetensors, processor, configuration; sample pictures from --test.
"""

from __future__ import annotations

import argparse
import copy
import json
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sparsight.data.reading import decode
from sparsight.data.scenes import (
    FORMS,
    NOTHING,
    NUMBERS,
    PLACES,
    SIDE,
    Asked,
    Scene,
    look_alikes,
    make_scenes,
    photos_by_name,
    write_questions,
)
from sparsight.demo import SCALE, demo_weights, quantise
from sparsight.demo.tower import TRAINED, WIDTH, dinov2_config, dinov2_state
from sparsight.runs.store import write_text

PATCHES, CELL = 256, 16
FAST = torch.autocast("cpu", torch.bfloat16)
"""Products in bf16, weights and sums in float32: nearly twice as fast on processors that have it."""
IMAGE, PAD, END, UNKNOWN = "<image>", "<pad>", "</s>", "<unk>"
EXTRA = ["answer", "the", "question", "using", "single", "word", "or", "phrase", "image", "an", "describe", "are", "object", "show"]
TEMPLATE = (
    "{% for message in messages %}{% if message['role'] == 'user' %}user : {% if message['content'] is string %}{{ message['content'] }} "
    "{% else %}{% for part in message['content'] %}{% if part['type'] == 'image' %}<image> {% elif part['type'] == 'text' %}{{ part['text'] }} "
    "{% endif %}{% endfor %}{% endif %}{% else %}assistant : {% if message['content'] is string %}{{ message['content'] }}{% else %}"
    "{{ message['content'][0]['text'] }}{% endif %} </s> {% endif %}{% endfor %}{% if add_generation_prompt %}assistant :{% endif %}"
)


@dataclass(frozen=True)
class Plan:
    """How much of everything."""

    pictures: int = 8_000
    held_out: int = 200
    batch: int = 16
    tower_steps: int = 700
    tower_rate: float = 2e-4
    language_steps: int = 2_400
    language_rate: float = 6e-4
    questions: int = 8
    tokens: tuple[int, ...] = (32, 48, 64, 64, 96, 128)
    all_tokens: float = 0.12
    """Share of the steps, at the end, with all visual tokens."""
    every: int = 150
    """Steps between checkpoints."""
    seed: int = 0
    shares: tuple[float, ...] = (0.2, 0.15, 0.65)
    """Of single and small photos and mosaics."""


SMOKE = Plan(pictures=24, held_out=8, batch=4, tower_steps=3, language_steps=4, every=2)


# ---- words ------------------------------------------------------------------------------------------------------------


def make_tokenizer(names: list[str]) -> Any:
    """Words of the questions, and every name as one token."""
    from tokenizers import AddedToken, Tokenizer, models, normalizers, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = [PAD, END, UNKNOWN, "user", "assistant", ":", "?", ",", ".", "a", "yes", "no", NOTHING, *NUMBERS]
    words += " ".join(PLACES).split() + [word for form in FORMS.values() for word in form.split() if "{" not in word] + EXTRA
    words += [name for name in names if " " not in name]
    vocabulary = {word: number for number, word in enumerate(dict.fromkeys(words))}
    made = Tokenizer(models.WordLevel(vocabulary, unk_token=UNKNOWN))
    made.normalizer = normalizers.Lowercase()
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    made.add_tokens([AddedToken(name, single_word=True) for name in names if " " in name])
    return PreTrainedTokenizerFast(
        tokenizer_object=made, unk_token=UNKNOWN, pad_token=PAD, eos_token=END, padding_side="left",
        extra_special_tokens={"image_token": IMAGE},
    )  # fmt: skip


def make_processor(tokenizer: Any) -> Any:
    from transformers import BitImageProcessor, LlavaProcessor

    pictures = BitImageProcessor(
        size={"shortest_edge": SIDE},
        crop_size={"height": SIDE, "width": SIDE},
        image_mean=[0.485, 0.456, 0.406],
        image_std=[0.229, 0.224, 0.225],
    )
    return LlavaProcessor(
        pictures,
        tokenizer,
        patch_size=14,
        vision_feature_select_strategy="default",
        chat_template=TEMPLATE,
        num_additional_image_tokens=1,
    )


def make_model(tokenizer: Any) -> Any:
    """LLaVA over the embedded ViT; projector and language model are random."""
    from transformers import LlamaConfig, LlavaConfig, LlavaForConditionalGeneration

    torch.manual_seed(0)
    text = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=256, intermediate_size=640, num_hidden_layers=6, num_attention_heads=4, num_key_value_heads=4,
        max_position_embeddings=1024, rms_norm_eps=1e-5, tie_word_embeddings=False, rope_parameters={"rope_type": "default", "rope_theta": 1e6},
        pad_token_id=tokenizer.pad_token_id, bos_token_id=None, eos_token_id=tokenizer.eos_token_id,
    )  # fmt: skip
    config = LlavaConfig(
        vision_config=dinov2_config(), text_config=text, image_token_id=tokenizer.convert_tokens_to_ids(IMAGE),
        vision_feature_layer=-2, vision_feature_select_strategy="default", image_seq_length=PATCHES, tie_word_embeddings=False,
    )  # fmt: skip
    model = LlavaForConditionalGeneration(config)
    with (
        torch.no_grad()
    ):  # words and patches begin at the same size, well above what a block adds; tiny ones drown behind the first block
        nn.init.normal_(model.model.language_model.embed_tokens.weight)
        nn.init.normal_(model.model.multi_modal_projector.linear_1.weight, std=WIDTH**-0.5)
        nn.init.normal_(model.model.multi_modal_projector.linear_2.weight, std=2 * 256**-0.5)
    model.model.vision_tower.load_state_dict(dinov2_state(demo_weights()[0]))
    model.generation_config.eos_token_id, model.generation_config.pad_token_id = tokenizer.eos_token_id, tokenizer.pad_token_id
    return model


# ---- pictures ---------------------------------------------------------------------------------------------------------


@dataclass(eq=False)
class Data:
    """Scenes with what the tower makes of them. features: [N, 257, 384] fp16 on disk; targets [N, 384]: the class token as it was."""

    scenes: list[Scene]
    names: list[str]
    alike: dict[str, list[str]]
    features: np.ndarray[Any, Any]
    targets: np.ndarray[Any, Any]
    held_out: int

    @property
    def trained(self) -> int:
        return len(self.scenes) - self.held_out

    @cached_property
    def cells(self) -> Tensor:
        """Number of each patch's cell in a mosaic [256]."""
        side = torch.arange(CELL)
        return ((side[:, None] >= CELL // 2) * 2 + (side[None] >= CELL // 2)).flatten()

    def inside(self, scene: Scene) -> tuple[Tensor, list[int]]:
        """Which patches show each photo [n, 256], and the photos' names as numbers."""
        side = torch.arange(CELL) * 14 + 7
        found = []
        for one in scene.placed:
            left, top, size = one.box
            x, y = (side > left) & (side < left + size), (side > top) & (side < top + size)
            found.append((y[:, None] & x[None]).flatten())
        return torch.stack(found), [self.names.index(name) for name in scene.names]


def prepare(plan: Plan, photos: Path, work: Path, tower: Any, say: Callable[[str], None]) -> Data:
    """Scenes of training and held-out photos, and their features behind block 8; goes on where it was stopped."""
    everything = photos_by_name(photos)
    train = {name: paths[1:] or paths for name, paths in everything.items()}
    held = {name: paths[:1] for name, paths in everything.items()}
    scenes = [*make_scenes(train, plan.pictures, plan.seed, plan.shares), *make_scenes(held, plan.held_out, plan.seed + 1)]
    count, first = len(scenes), work / "features.npy"
    mode = "r+" if first.exists() else "w+"
    features = np.lib.format.open_memmap(first, mode, np.float16, (count, PATCHES + 1, WIDTH))
    targets = np.lib.format.open_memmap(work / "targets.npy", mode, np.float16, (count, WIDTH))
    done = Count(work / "pictures.json")
    photo = cached(decode)
    blocks = tower.encoder.layer
    with torch.inference_mode(), FAST:
        for start in progress(range(done.value, count, 32), count, "pictures", say):
            mine = scenes[start : start + 32]
            pixels = [np.asarray(one.draw(photo, 0.65 if start + i < plan.pictures else 1.0)) for i, one in enumerate(mine)]
            x = tower.embeddings(normalised(pixels))
            for block in blocks[: TRAINED[0]]:
                x = block(x)
            features[start : start + 32] = x.half().numpy()
            for block in blocks[TRAINED[0] : TRAINED[-1] + 1]:
                x = block(x)
            targets[start : start + 32] = x[:, 0].half().numpy()
            if start % 640 == 0 or start + 32 >= count:
                features.flush()
                targets.flush()
                done.set(min(start + 32, count))
    return Data(scenes, sorted(everything), look_alikes(), features, targets, plan.held_out)


def normalised(pixels: list[np.ndarray[Any, Any]]) -> Tensor:
    x = torch.from_numpy(np.stack(pixels)).permute(0, 3, 1, 2).float() / 255
    return (x - torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1)) / torch.tensor([0.229, 0.224, 0.225]).view(3, 1, 1)


def cached(load: Callable[[Path], Any]) -> Callable[[Path], Any]:
    known: dict[Path, Any] = {}

    def get(path: Path) -> Any:
        if path not in known:
            known[path] = load(path).convert("RGB")
        return known[path]

    return get


class Count:
    """A number on disk."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @property
    def value(self) -> int:
        return int(json.loads(self.path.read_text())) if self.path.exists() else 0

    def set(self, value: int) -> None:
        write_text(self.path, json.dumps(value))


def progress(steps: range, total: int, name: str, say: Callable[[str], None]) -> Iterator[int]:
    """The steps, with a line every ten seconds."""
    began = last = time.monotonic()
    for step in steps:
        yield step
        now = time.monotonic()
        if now - last > 10:
            share = (step + steps.step - steps.start) / max(1, total - steps.start)
            say(f"{name} {step + steps.step}/{total}, {(now - began) * (1 / share - 1) / 60:.0f} min left")
            last = now


# ---- learning ---------------------------------------------------------------------------------------------------------


@dataclass(eq=False)
class Run:
    """Parameters that learn, with a checkpoint and a log; a step's data follow from its number alone."""

    name: str
    work: Path
    modules: dict[str, nn.Module]
    groups: list[dict[str, Any]]
    steps: int
    every: int
    say: Callable[[str], None]

    def go(self, loss: Callable[[int], tuple[Tensor, dict[str, float]]], check: Callable[[], dict[str, float]]) -> None:
        """All steps from the last checkpoint on."""
        optimiser = torch.optim.AdamW(self.groups, betas=(0.9, 0.98), weight_decay=0.05)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda step: warm_cosine(step, self.steps))
        file = self.work / f"{self.name}.pt"
        start = 0
        if file.exists():
            state = torch.load(file, weights_only=True)
            for name, module in self.modules.items():
                module.load_state_dict(state[name])
            if (start := state["step"]) < self.steps:
                optimiser.load_state_dict(state["optimiser"])
                schedule.load_state_dict(state["schedule"])
        parameters = [p for group in self.groups for p in group["params"]]
        sums: dict[str, float] = {}
        since = start
        for step in progress(range(start, self.steps), self.steps, self.name, self.say):
            value, parts = loss(step)
            optimiser.zero_grad()
            value.backward()
            torch.nn.utils.clip_grad_norm_(parameters, 1.0)
            optimiser.step()
            schedule.step()
            for key, number in parts.items():
                sums[key] = sums.get(key, 0.0) + number
            if (step + 1) % self.every == 0 or step + 1 == self.steps:
                if not math.isfinite(value.item()):
                    raise SystemExit(f"{self.name}: the loss is {value.item()} at step {step + 1}; the last checkpoint is kept")
                line = {key: round(number / (step + 1 - since), 4) for key, number in sums.items()} | check()
                sums, since = {}, step + 1
                self.say(f"{self.name} {step + 1}: {json.dumps(line)}")
                with (self.work / "log.jsonl").open("a") as log:
                    log.write(json.dumps({"stage": self.name, "step": step + 1, **line}) + "\n")
                states = {name: module.state_dict() for name, module in self.modules.items()}
                fresh = file.with_suffix(".new")
                torch.save(
                    {**states, "optimiser": optimiser.state_dict(), "schedule": schedule.state_dict(), "step": step + 1}, fresh
                )
                fresh.replace(file)


def warm_cosine(step: int, steps: int, warm: int = 60) -> float:
    return min(1.0, (step + 1) / warm) * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * min(1.0, step / steps))))


def picked(data: Data, plan: Plan, step: int) -> list[int]:
    """Pictures of a step: every epoch in an order of its own."""
    per = data.trained // plan.batch
    order = np.random.default_rng([plan.seed, step // per]).permutation(data.trained)
    return [int(i) for i in order[(step % per) * plan.batch :][: plan.batch]]


def cell_loss(logits: Tensor, data: Data, scenes: list[Scene], columns: Tensor | None = None) -> tuple[Tensor, float]:
    """Names of the photos from their patches' logits [B, K, names], by log-sum-exp; loss and share of right ones."""
    pooled, wanted = [], []
    for row, scene in enumerate(scenes):
        inside, names = data.inside(scene)
        inside = inside if columns is None else inside[:, columns[row]]
        for mask, name in zip(inside, names, strict=True):
            if mask.any():
                pooled.append(logits[row][mask].logsumexp(dim=0))
                wanted.append(name)
    found, right = torch.stack(pooled), torch.tensor(wanted)
    return F.cross_entropy(found, right, label_smoothing=0.05), float((found.argmax(dim=1) == right).float().mean())


def train_tower(data: Data, plan: Plan, work: Path, tower: Any, say: Callable[[str], None]) -> None:
    """Blocks 9 and 10 learn to name cells; the class token stays."""
    blocks = nn.ModuleList(tower.encoder.layer[i] for i in TRAINED)
    torch.manual_seed(plan.seed)
    head = nn.Sequential(nn.LayerNorm(WIDTH), nn.Linear(WIDTH, len(data.names)))
    groups = [{"params": list(blocks.parameters()), "lr": plan.tower_rate}, {"params": list(head.parameters()), "lr": 2e-3}]

    def forward(places: list[int]) -> tuple[Tensor, Tensor]:
        x = torch.from_numpy(data.features[places].astype(np.float32))
        with FAST:
            for block in blocks:
                x = block(x)
            return x[:, 0].float(), head(x[:, 1:]).float()

    def loss(step: int) -> tuple[Tensor, dict[str, float]]:
        places = picked(data, plan, step)
        token, logits = forward(places)
        was = torch.from_numpy(data.targets[places].astype(np.float32))
        named_, right = cell_loss(logits, data, [data.scenes[i] for i in places])
        moved = (token - was).square().mean() / was.square().mean()
        return named_ + moved, {"cells": named_.item(), "class_token": moved.item(), "right": right}

    @torch.inference_mode()
    def check() -> dict[str, float]:
        right: dict[str, list[float]] = {}
        for start in range(data.trained, len(data.scenes), 32):
            places = list(range(start, min(start + 32, len(data.scenes))))
            _, logits = forward(places)
            for row, place in enumerate(places):
                scene = data.scenes[place]
                right.setdefault(f"held_{scene.kind}", []).append(cell_loss(logits[row : row + 1], data, [scene])[1])
        return {kind: round(sum(all_) / len(all_), 4) for kind, all_ in right.items()}

    Run("tower", work, {"blocks": blocks, "head": head}, groups, plan.tower_steps, plan.every, say).go(loss, check)


@torch.inference_mode()
def finish_features(data: Data, work: Path, tower: Any, say: Callable[[str], None]) -> None:
    """Put the features behind the trained blocks (int8, as they will ship) in the place of those before them."""
    quantised(tower, [f"encoder.layer.{i}." for i in TRAINED])
    done = Count(work / "finished.json")
    for start in progress(range(done.value, len(data.scenes), 32), len(data.scenes), "features", say):
        x = torch.from_numpy(data.features[start : start + 32].astype(np.float32))
        for i in TRAINED:
            x = tower.encoder.layer[i](x)
        data.features[start : start + 32] = x.half().numpy()
        data.features.flush()  # type: ignore[attr-defined]
        done.set(min(start + 32, len(data.scenes)))


# ---- language ---------------------------------------------------------------------------------------------------------

LIKELY = {
    "single": {"list": 2, "yes": 2, "no": 2, "count": 1, "name": 1},
    "small": {"list": 2, "yes": 1, "no": 1, "count": 1, "name": 1, "place": 1, "where": 1},
    "mosaic": {"list": 2, "yes": 2, "no": 2, "count": 1, "place": 3, "where": 1, "left_of": 1},
}


@dataclass(frozen=True)
class Batch:
    """ids [B, T] of questions and answers; part [B, T]: number of the question, 0 for padding; offset [B, T] within it;
    answer [B, T]: what has to follow, -100 elsewhere; name, there [B, T]: places of asked names, and whether they are in the picture."""

    ids: Tensor
    part: Tensor
    offset: Tensor
    answer: Tensor
    asked: Tensor
    there: Tensor
    questions: list[list[Asked]]


def tokens_of(words: Any, text: str) -> list[int]:
    found: list[int] = words(text, add_special_tokens=False)["input_ids"]
    return found


def batch_of(data: Data, scenes: list[Scene], asked: list[list[Asked]], words: Any) -> Batch:
    """Questions of pictures as one row each."""
    rows: list[list[tuple[int, int, int, int, bool, bool]]] = []
    for _, questions in zip(scenes, asked, strict=True):
        row = []
        for number, one in enumerate(questions, 1):
            ask = tokens_of(words, f"{one.question} assistant :")
            reply = [*tokens_of(words, one.answer), words.eos_token_id]
            name = tokens_of(words, one.name)[0] if one.kind == "yes_no" else None
            ids, follow = ask + reply, [-100] * (len(ask) - 1) + reply + [-100]
            for place, (token, after) in enumerate(zip(ids, follow, strict=True)):
                row.append((token, number, place, after, token == name and place < len(ask), one.answer == "yes"))
        rows.append(row)
    longest = max(map(len, rows))
    filler = (words.pad_token_id, 0, 0, -100, False, False)
    table = torch.tensor([[list(map(int, item)) for item in row + [filler] * (longest - len(row))] for row in rows])
    ids, part, offset, answer, place, there = table.unbind(dim=2)
    return Batch(ids, part, offset, answer, place.bool(), there.float(), asked)


def run_language(model: Any, visual: Tensor, batch: Batch, words: Any) -> Tensor:
    """Hidden states [B, T, C] of the questions behind their pictures' tokens [B, K, C]; questions do not see each other."""
    language = model.model.language_model
    start = torch.tensor(tokens_of(words, "user :"))
    prefix = torch.cat([language.embed_tokens(start).expand(len(visual), -1, -1), visual], dim=1)
    n, (rows, t) = prefix.shape[1], batch.ids.shape
    part = torch.cat([batch.part.new_zeros(rows, n), torch.where(batch.part == 0, -1, batch.part)], dim=1)
    position = torch.cat([torch.arange(n).expand(rows, n), n + batch.offset], dim=1)
    order = torch.arange(n + t)
    mask = (order[:, None] >= order[None]) & ((part[:, None, :] == 0) | (part[:, None, :] == part[:, :, None]))
    hidden = language(
        inputs_embeds=torch.cat([prefix, language.embed_tokens(batch.ids)], dim=1),
        attention_mask=mask[:, None],
        position_ids=position,
    )
    found: Tensor = hidden.last_hidden_state[:, n:]
    return found


def train_language(data: Data, plan: Plan, work: Path, model: Any, words: Any, say: Callable[[str], None]) -> None:
    """Projector and language model."""
    model.model.vision_tower.requires_grad_(False)
    language, projector = model.model.language_model, model.model.multi_modal_projector
    torch.manual_seed(plan.seed)
    presence = nn.Linear(256, 1)
    norm = nn.LayerNorm(256)
    learning = nn.ModuleList([language, projector, model.lm_head, presence, norm])
    name_ids = torch.tensor([tokens_of(words, name)[0] for name in data.names])
    matrices = [p for p in learning.parameters() if p.dim() > 1]
    groups = [
        {"params": matrices, "lr": plan.language_rate},
        {"params": [p for p in learning.parameters() if p.dim() < 2], "lr": plan.language_rate, "weight_decay": 0.0},
    ]
    sides = torch.tensor([[tokens_of(words, word)[0] for word in pair] for pair in (("top", "bottom"), ("left", "right"))])

    def place_loss(visual: Tensor, columns: Tensor) -> Tensor:
        """Each patch says by the words for it on which side of the picture it is: without this, left and right are hardly learned."""
        directions = language.embed_tokens.weight[sides[:, 1]] - language.embed_tokens.weight[sides[:, 0]]
        behind = torch.stack([columns // CELL >= CELL // 2, columns % CELL >= CELL // 2], dim=-1).float()
        return F.binary_cross_entropy_with_logits(visual @ directions.T / 16, behind)

    full_from = int(plan.language_steps * (1 - plan.all_tokens))

    def features(places: list[int]) -> Tensor:
        return torch.from_numpy(data.features[places][:, 1:].astype(np.float32))

    def loss(step: int) -> tuple[Tensor, dict[str, float]]:
        places, rng = picked(data, plan, step), Random(f"language {plan.seed} {step}")
        scenes = [data.scenes[i] for i in places]
        asked = [[ask(data, scene, rng) for _ in range(plan.questions)] for scene in scenes]
        count = PATCHES if step >= full_from and step % 2 else rng.choice(plan.tokens)
        draw = torch.Generator().manual_seed(plan.seed * 1_000_003 + step)
        columns = torch.stack([torch.randperm(PATCHES, generator=draw)[:count].sort().values for _ in places])
        batch = batch_of(data, scenes, asked, words)
        with FAST:
            visual = projector(features(places).gather(1, columns[:, :, None].expand(-1, -1, WIDTH))).float()
            hidden = run_language(model, visual, batch, words).float()
        logits = model.lm_head(hidden)
        answers = F.cross_entropy(logits.flatten(0, 1), batch.answer.flatten(), ignore_index=-100)
        there = F.binary_cross_entropy_with_logits(presence(hidden[batch.asked])[:, 0], batch.there[batch.asked])
        cells, right = cell_loss(norm(visual) @ language.embed_tokens.weight[name_ids].T / 16, data, scenes, columns)
        spots = place_loss(norm(visual), columns)
        parts = {
            "answers": answers.item(),
            "there": there.item(),
            "cells": cells.item(),
            "places": spots.item(),
            "cells_right": right,
        }
        return answers + 0.5 * there + 0.3 * cells + 0.3 * spots, parts

    @torch.inference_mode()
    def check() -> dict[str, float]:
        return {key: round(value, 4) for key, value in held_out(data, model, words, features).items()}

    Run("language", work, {"learning": learning}, groups, plan.language_steps, plan.every, say).go(loss, check)


def ask(data: Data, scene: Scene, rng: Random) -> Asked:
    """A training question, with the field's other words now and then."""
    kinds = LIKELY[scene.kind]
    one = scene.ask(rng.choices(list(kinds), list(kinds.values()))[0], rng, data.names, data.alike)
    text = one.question
    if rng.random() < 0.3:
        text = text.replace("picture", "image")
    if rng.random() < 0.15:
        text += " answer the question using a single word or phrase ."
    return Asked(one.kind, text, one.answer, one.name)


def held_out(data: Data, model: Any, words: Any, features: Callable[[list[int]], Tensor], count: int = PATCHES) -> dict[str, float]:
    """Share of questions on held-out photos whose whole answer is right, by kind, all visual tokens."""
    right: dict[str, list[float]] = {}
    for start in range(data.trained, len(data.scenes), 16):
        places = list(range(start, min(start + 16, len(data.scenes))))
        rng = Random(f"held {start}")
        scenes = [data.scenes[i] for i in places]
        asked = [
            [
                scene.ask(kind, rng, data.names, data.alike)
                for kind in (["list", "yes", "no", "count"] + ["place", "where"] * (scene.kind != "single"))
            ]
            for scene in scenes
        ]
        batch = batch_of(data, scenes, asked, words)
        hidden = run_language(model, model.model.multi_modal_projector(features(places)), batch, words)
        hit = (model.lm_head(hidden).argmax(dim=-1) == batch.answer) | (batch.answer == -100)
        for row, scene in enumerate(scenes):
            for number, one in enumerate(asked[row], 1):
                kind = "simple" if scene.kind != "mosaic" else "complex"
                right.setdefault(f"{kind}_{one.kind}", []).append(float(hit[row][batch.part[row] == number].all()))
    return {key: sum(values) / len(values) for key, values in sorted(right.items())}


# ---- files ------------------------------------------------------------------------------------------------------------


def quantised(module: nn.Module, starts: list[str]) -> dict[str, Tensor]:
    """Matrices to int8 and everything else to fp16, in place; returns what a file holds."""
    stored: dict[str, Tensor] = {}
    for name, value in module.state_dict().items():
        if not name.startswith(tuple(starts)):
            continue
        if value.dim() == 2 and value.shape[0] > 1:
            stored[name], stored[name + SCALE] = quantise(value.float())
            value.copy_(stored[name].float() * stored[name + SCALE].float()[:, None])
        else:
            stored[name] = value.half()
            value.copy_(stored[name].float())
    return stored


def save(model: Any, processor: Any, out: Path) -> None:
    """The package's folder. Weights of the tower that are the embedded ViT's are not stored again."""
    from safetensors.torch import save_file

    out.mkdir(parents=True, exist_ok=True)
    starts = [f"model.vision_tower.encoder.layer.{i}." for i in TRAINED] + [
        "model.multi_modal_projector.",
        "model.language_model.",
        "lm_head.",
    ]
    with torch.no_grad():
        save_file({name: value.contiguous() for name, value in quantised(model, starts).items()}, out / "model.safetensors")
    model.config.save_pretrained(out)
    model.generation_config.save_pretrained(out)
    processor.save_pretrained(out)


@torch.inference_mode()
def same_answers(model: Any, processor: Any, before: Any, photos: Path, data: Data, count: int = 500) -> dict[str, float]:
    """Share of questions on test photos to which the int8 model and the one before quantisation, in fp16, give the same answer."""
    asked, same = 0, 0
    before = before.half().float().eval()
    for number, scene in enumerate(make_scenes(photos_by_name(photos), count, 7)):
        rng = Random(f"same {number}")
        kinds = ["list", "yes", "no", "count"] + ["place", "where"] * (scene.kind != "single")
        texts = [scene.ask(kind, rng, data.names, data.alike).question for kind in kinds][: count - asked]
        prompts = [f"user : {IMAGE} {text} assistant :" for text in texts]
        inputs = processor(images=[scene.draw()] * len(texts), text=prompts, padding=True, return_tensors="pt")
        both = [
            one.generate(**inputs, max_new_tokens=10, do_sample=False)[:, inputs["input_ids"].shape[1] :] for one in (model, before)
        ]
        first, second = (processor.batch_decode(one, skip_special_tokens=True) for one in both)
        same += sum(a == b for a, b in zip(first, second, strict=True))
        asked += len(texts)
        if asked >= count:
            break
    return {"questions": asked, "same": same, "share": same / asked}


def report(plan: Plan, work: Path, same: dict[str, float] | None) -> None:
    """Learning curves as a picture, and what was trained as text, beside the work."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    lines = [json.loads(line) for line in (work / "log.jsonl").read_text().splitlines()]
    figure, axes = plt.subplots(1, 3, figsize=(13, 4), layout="constrained")
    tower, language = ([line for line in lines if line["stage"] == stage] for stage in ("tower", "language"))
    for axis, stage, keys in (
        (axes[0], tower, [key for key in tower[-1] if key.startswith(("held", "right"))]),
        (axes[1], language, ["answers", "there", "cells"]),
        (axes[2], language, [key for key in language[-1] if key.startswith(("simple", "complex"))]),
    ):
        for key in keys:
            known = [(line["step"], line[key]) for line in stage if key in line]
            axis.plot(*zip(*known, strict=True), label=key.replace("_", " "))
        axis.set_xlabel("step")
        axis.grid(alpha=0.3)
        axis.legend(fontsize=7)
    axes[0].set_title("tower: cells named right")
    axes[1].set_title("language: losses")
    axes[2].set_title("held-out photos: whole answer right")
    figure.savefig(work / "curves.png", dpi=110)
    last = {key: value for key, value in language[-1].items() if key.startswith(("simple", "complex"))}
    rows = "".join(f"| {key.replace('_', ' ', 1).replace('_', ' ')} | {100 * value:.1f} |\n" for key, value in last.items())
    found = (
        ""
        if same is None
        else f"\nThe int8 model answers {same['same']} of {same['questions']} questions as the fp16 model does.\n"
    )
    write_text(
        work / "report.md", f"{plan}\n\n| held-out photos, all tokens | whole answer right, % |\n| --- | --- |\n{rows}{found}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--photos", type=Path, required=True, help="training photos, one folder per class of the embedded ViT")
    parser.add_argument("--test", type=Path, help="photos that were never trained on, for the sample pictures")
    parser.add_argument("--work", type=Path, required=True, help="features, checkpoints, log.jsonl; start again to go on")
    parser.add_argument("--out", type=Path, default=Path("src/sparsight/demo/vlm"))
    parser.add_argument("--pictures", type=int, help="pictures to train on")
    parser.add_argument("--smoke", action="store_true", help="a few pictures and steps: does it run")
    given = parser.parse_args()
    plan = SMOKE if given.smoke else Plan()
    if given.pictures:
        plan = Plan(pictures=given.pictures)
    given.work.mkdir(parents=True, exist_ok=True)
    began = time.monotonic()

    def say(text: str) -> None:
        print(f"[{(time.monotonic() - began) / 60:5.1f} min] {text}", flush=True)

    words = make_tokenizer(sorted(photos_by_name(given.photos)))
    model = make_model(words)
    tower = model.model.vision_tower
    data = prepare(plan, given.photos, given.work, tower, say)
    train_tower(data, plan, given.work, tower, say)
    finish_features(data, given.work, tower, say)
    train_language(data, plan, given.work, model, words, say)
    before = copy.deepcopy(model)
    save(model, make_processor(words), given.out)
    if given.test is not None and not (given.out / "pictures").exists():
        say(f"{write_questions(given.out, given.test, 48, plan.seed)} questions about 48 sample pictures")
    same = None
    if given.test is not None:
        same = same_answers(model.eval(), make_processor(words), before, given.test, data, 12 if given.smoke else 500)
    report(plan, given.work, same)
    say(f"saved in {given.out}; learning curves in {given.work}")


if __name__ == "__main__":
    main()
