"""A vision-language model in OpenVINO: `generate` with the pictures pruned before the language model."""

from __future__ import annotations

import json
import math
from contextvars import ContextVar
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..errors import PruneError, shown
from ..vlms.prompt import Span, locate, settle, shortened, take
from .engines import as_array, need_module, on_cpu
from .vlm_tracing import Graphs

FACTS = "sparsight.json"
PARTS = ("vision", "embeddings", "language")
"""Files of an exported model, each an .xml with its .bin."""
CLOSED = torch.finfo(torch.float32).min
"""What the mask adds where a token may not look."""


@dataclass(frozen=True)
class Facts:
    """What an exported vision-language model says about itself.

    image_token: id of the placeholder; visual: placeholders of one picture in the prompt before pruning; size: [C, H, W] of the pixels, or
    [D] of a row of patches; ends: ids that end an answer; pad: id that fills up rows which have ended. Where pictures have grids (Qwen-VL),
    grid: (t, h, w) of the patches of every picture; merge: patches along a side of a token; patch: pixels along a side of a patch.
    """

    sparsight: str
    model: str
    recipe: str
    image_token: int
    visual: int
    size: list[int]
    ends: list[int]
    pad: int
    grid: list[int] | None = None
    merge: int = 1
    patch: int = 0


@dataclass(eq=False, repr=False)
class Prompt:
    """A prompt on its way: its request with the states, the mask [B, L] of what is cached, the position [B, 1] of the next token."""

    request: Any
    mask: Tensor
    position: Tensor


@dataclass(eq=False, repr=False)
class OpenVinoVlm:
    """A compiled vision-language model. Threads may share it.

    kept: of every picture of the last call in this thread or task, the patches that were kept, ascending; places: the places [K] of its
    tokens among those of the picture in the prompt.
    """

    facts: Facts
    vision: Any
    embeddings: Any
    language: Any
    processor: Any = None
    last: ContextVar[list[tuple[Tensor, Tensor]]] = field(default_factory=lambda: ContextVar("pictures", default=[]))  # noqa: B039

    @staticmethod
    def compile(graphs: Graphs, facts: Facts, threads: int = 0, processor: Any = None) -> OpenVinoVlm:
        """The graphs, ready to run on the CPU in float32."""
        vision, embeddings, language = (on_cpu(getattr(graphs, part), threads=threads) for part in PARTS)
        return OpenVinoVlm(facts, vision, embeddings, language, processor)

    def __repr__(self) -> str:
        return f"<{self.facts.model} in OpenVINO, {self.facts.recipe}>"

    @property
    def kept(self) -> list[Tensor]:
        return [kept.sort().values for _, kept in self.last.get()]

    @property
    def places(self) -> list[Tensor]:
        return [places for places, _ in self.last.get()]

    def generate(
        self,
        input_ids: Tensor,
        pixel_values: Tensor | None = None,
        attention_mask: Tensor | None = None,
        image_grid_thw: Tensor | None = None,
        mm_token_type_ids: Tensor | None = None,
        max_new_tokens: int = 20,
        min_new_tokens: int = 0,
        **others: Any,
    ) -> Tensor:
        """Answers, the most likely token each time: ids [B, U + new] that begin with the user's own input_ids [B, U], as a pruned model of
        transformers gives them.

        pixel_values [pictures, C, H, W] in the order of their placeholders, or [pictures * h * w, D] with image_grid_thw [pictures, 3] and
        mm_token_type_ids [B, U], as the processor gives them; attention_mask [B, U] 0 at padding. Rows that have ended are filled up. Raises PruneError for a prompt that does not fit, and for arguments that it does not know.
        """
        check(self.facts, input_ids, pixel_values, attention_mask, max_new_tokens, others)
        check_grids(self.facts, pixel_values, image_grid_thw, mm_token_type_ids)
        logits, prompt = self.read(input_ids, pixel_values, attention_mask)
        made = self.decode(logits, prompt, max_new_tokens, min_new_tokens)
        return torch.cat([input_ids, made], dim=1)

    def read(self, input_ids: Tensor, pixel_values: Tensor | None, attention_mask: Tensor | None) -> tuple[Tensor, Prompt]:
        """The prompt, its pictures pruned, through the language model: logits [B, V] of the first token, and what is to go on with."""
        pictures = [] if pixel_values is None else self.look(pixel_values)
        self.last.set([(places, kept) for _, places, kept in pictures])
        whole = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        index = self.left(input_ids, whole, [places for _, places, _ in pictures])
        ids, mask = take(input_ids, index, self.facts.pad), take(whole, index)
        embeddings = self.embed(ids)
        if pictures:
            embeddings[ids == self.facts.image_token] = torch.cat([tokens for tokens, _, _ in pictures])
        return self.prefill(embeddings, mask, *self.positions(input_ids, whole, index, mask))

    def look(self, pixels: Tensor) -> list[tuple[Tensor, Tensor, Tensor]]:
        """Of each picture the tokens that are left [K, D], their places in the prompt [K], and the kept patches."""
        found = []
        for picture in torch.split(pixels, 1 if self.facts.grid is None else math.prod(self.facts.grid)):
            tokens, places, kept = infer(self.vision.create_infer_request(), [picture.float()])
            found.append((tokens[0], settle(places, self.facts.visual), kept))
        return found

    def left(self, ids: Tensor, mask: Tensor, places: list[Tensor]) -> Tensor:
        """The user's columns [B, L] that stay: all but the placeholders of what left."""
        marked = ids == self.facts.image_token
        if not places:
            if marked.any():
                raise PruneError("the prompt has placeholders of pictures, but pixel_values are not given")
            return torch.arange(ids.shape[1]).expand(ids.shape[0], -1)
        found = locate(marked, [self.facts.visual] * len(places), "image")
        spans = [Span(row, columns, kept) for (row, columns), kept in zip(found, places, strict=True)]
        return shortened(ids.shape[0], ids.shape[1], spans, mask, ids.device)

    def positions(self, ids: Tensor, whole: Tensor, index: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """Positions of the shortened prompt, and the one [B, 1] after it. They are counted anew [B, L]; with grids every token keeps those of
        the whole prompt [3, B, L]."""
        if self.facts.grid is None:
            counted = (mask.long().cumsum(dim=1) - 1).clamp(min=0)
            return counted, counted.amax(dim=1, keepdim=True) + 1
        _, h, w = self.facts.grid
        full = axes(ids == self.facts.image_token, whole, h // self.facts.merge, w // self.facts.merge)
        return take(full, index), full.amax(dim=(0, 2)).unsqueeze(1) + 1

    def embed(self, ids: Tensor) -> Tensor:
        """Ids [B, L] to embeddings [B, L, D]."""
        return infer(self.embeddings.create_infer_request(), [ids])[0]

    def prefill(self, embeddings: Tensor, mask: Tensor, positions: Tensor, after: Tensor) -> tuple[Tensor, Prompt]:
        """The whole prompt through the language model; after: the position [B, 1] that comes next."""
        request = self.language.create_infer_request()
        empty(request, embeddings.shape[0])
        length = mask.shape[1]
        seen = mask.bool()[:, None, None] & torch.ones(length, length, dtype=torch.bool).tril()
        seen = seen | torch.eye(length, dtype=torch.bool)  # padding looks at itself, so that no row of a softmax is empty
        (logits,) = infer(request, [embeddings, positions, torch.where(seen, 0.0, CLOSED)])
        return logits[:, -1], Prompt(request, mask, after)

    def step(self, prompt: Prompt, token: Tensor) -> Tensor:
        """One token [B, 1] more: logits [B, V] of the one after it."""
        prompt.mask = torch.cat([prompt.mask, torch.ones_like(token)], dim=1)
        seen = torch.where(prompt.mask.bool()[:, None, None], 0.0, CLOSED)
        position = prompt.position if self.facts.grid is None else prompt.position.repeat(3, 1, 1)
        (logits,) = infer(prompt.request, [self.embed(token), position, seen])
        prompt.position = prompt.position + 1
        return logits[:, -1]

    def decode(self, logits: Tensor, prompt: Prompt, most: int, least: int) -> Tensor:
        """The most likely tokens one after the other, [B, new]."""
        ends = torch.tensor(self.facts.ends, dtype=torch.int64)
        done = torch.zeros(logits.shape[0], dtype=torch.bool)
        made: list[Tensor] = []
        while True:
            if len(made) < least:
                logits[:, ends] = float("-inf")
            token = torch.where(done, self.facts.pad, logits.argmax(dim=-1))
            made.append(token)
            done = done | torch.isin(token, ends)
            if len(made) == most or bool(done.all()):
                return torch.stack(made, dim=1)
            logits = self.step(prompt, token.unsqueeze(1))


def axes(marked: Tensor, mask: Tensor, h: int, w: int) -> Tensor:
    """Positions [3, B, U] of a prompt whose pictures have h x w tokens each (marked [B, U]): text counts on along all three axes, a picture's
    tokens stand at one time, in rows and columns, and the text behind goes on after the longer side. 0 at padding."""
    number = (marked.long().cumsum(dim=1) - 1) % (h * w)
    step = torch.where(marked, torch.where(number == h * w - 1, max(h, w), 0), 1) * (mask != 0)
    start = step.cumsum(dim=1) - step
    ahead = torch.stack([torch.zeros_like(number), number // w, number % w])
    return torch.where(marked & (mask != 0), start + ahead, start).masked_fill(mask == 0, 0)


def infer(request: Any, given: list[Tensor]) -> list[Tensor]:
    """Outputs of one run, as tensors of their own."""
    found = request.infer([as_array(value) for value in given], share_inputs=True, share_outputs=False)
    return [torch.from_numpy(found[number]) for number in range(len(found))]


def empty(request: Any, batch: int) -> None:
    """Make the request's keys and values those of no token, for so many rows."""
    import numpy as np
    import openvino

    for state in request.query_state():
        heads, width = state.state.shape[1], state.state.shape[3]
        state.state = openvino.Tensor(np.zeros((batch, heads, 0, width), np.float32))


def check(facts: Facts, ids: Any, pixels: Any, mask: Any, most: int, others: dict[str, Any]) -> None:
    """Raise PruneError for a call that cannot be answered."""
    if others:
        raise PruneError(
            f"{', '.join(others)}: this generate takes input_ids, pixel_values, attention_mask, image_grid_thw, mm_token_type_ids, max_new_tokens and "
            "min_new_tokens alone, and is always greedy; use the model in PyTorch for the rest"
        )
    if not isinstance(ids, Tensor) or ids.dim() != 2 or ids.is_floating_point() or not ids.numel():
        found = list(ids.shape) if isinstance(ids, Tensor) else type(ids).__name__
        raise PruneError(f"input_ids must be ids [B, length], got {found}")
    if mask is not None and (not isinstance(mask, Tensor) or mask.shape != ids.shape):
        found = list(mask.shape) if isinstance(mask, Tensor) else type(mask).__name__
        raise PruneError(f"attention_mask must be as large as input_ids {list(ids.shape)}, got {found}")
    rows = 1 if facts.grid is None else math.prod(facts.grid)
    if pixels is not None and (
        not isinstance(pixels, Tensor) or list(pixels.shape[1:]) != facts.size or not len(pixels) or len(pixels) % rows
    ):
        found = list(pixels.shape) if isinstance(pixels, Tensor) else type(pixels).__name__
        first = "pictures" if facts.grid is None else f"pictures * {rows}"
        raise PruneError(
            f"pixel_values must be [{first}, {', '.join(map(str, facts.size))}], the size that {facts.model} was exported for, got {found}"
            + pixel_size(facts)
        )
    if most < 1:
        raise PruneError(f"max_new_tokens={most} must be at least 1")


def check_grids(facts: Facts, pixels: Any, grids: Any, types: Any) -> None:
    """Raise PruneError for pictures whose grids are not given, or are others than the one that there is a graph for."""
    if facts.grid is None or pixels is None:
        return
    missing = [name for name, value in (("image_grid_thw", grids), ("mm_token_type_ids", types)) if value is None]
    if missing:
        raise PruneError(f"{' and '.join(missing)} missing: pass everything that the processor gives")
    if any(grid != facts.grid for grid in grids.tolist()):
        raise PruneError(f"image_grid_thw={grids.tolist()}, but {facts.model} was exported for {facts.grid}{pixel_size(facts)}")


def pixel_size(facts: Facts) -> str:
    """What to do about pictures of other grids."""
    if facts.grid is None:
        return ""
    height, width = (facts.patch * side for side in facts.grid[1:])
    return f"; resize pictures to {width} x {height} pixels before the processor, or export with pictures of their size"


def open_vlm(folder: str | Path, threads: int = 0) -> OpenVinoVlm:
    """What `sparsight export` wrote of a vision-language model, with its processor. threads 0 = as many as torch uses. Raises PruneError."""
    need_module("openvino")
    import openvino
    from transformers import AutoProcessor

    path = Path(folder).expanduser()
    missing = [name for name in (FACTS, *(f"{part}.xml" for part in PARTS)) if not (path / name).is_file()]
    if missing:
        raise PruneError(
            f"{shown(path)} is no exported vision-language model ({', '.join(missing)} missing); make one with sparsight export --format openvino"
        )
    core = openvino.Core()
    try:
        facts = Facts(**json.loads((path / FACTS).read_text(encoding="utf-8")))
        graphs = Graphs(*(core.read_model(path / f"{part}.xml") for part in PARTS))
        processor = AutoProcessor.from_pretrained(path, local_files_only=True)
    except Exception as error:  # whatever OpenVINO, transformers or JSON meet in a damaged file
        raise PruneError(f"{shown(path)} cannot be read: {str(error).strip().splitlines()[-1]}") from None
    return OpenVinoVlm.compile(graphs, facts, threads, processor)


def write_facts(facts: Facts, folder: Path) -> None:
    """As `open_vlm` reads them."""
    (folder / FACTS).write_text(json.dumps(asdict(facts), indent=1) + "\n", encoding="utf-8")
