"""One call of a vision-language model: the user's arguments, what of the prompt is new, the shortened arguments, and the way back.

Arguments that know places in the prompt are shortened with it: those of `FOLLOW`, and all other integers of the ids' shape [B, L] (types,
marks), unless their names say that they are of something else (`ELSEWHERE`). Those of `generate` that see token ids get the full ones
(`FullPrompt`). Others that have an entry for every token are refused.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ..errors import PruneError
from ..latest import publish
from ..plan import Plan
from .prompt import FILL, PromptMap, Span, between, locate, refuse_packed, shortened, take
from .sequence import lengthened
from .tiles import KeptTokens

FOLLOW = ("labels", "mm_token_type_ids", "moe_mm_token_type_ids", "token_type_ids", "position_ids")
"""Arguments that run along the prompt, besides the ids and the mask."""

KNOWN = (
    "input_ids", "attention_mask", *FOLLOW, "pixel_values", "pixel_values_videos", "image_sizes", "image_grid_thw", "video_grid_thw",
    "second_per_grid_ts", "batch_num_images", "logits_to_keep",
)  # fmt: skip
"""Tensors that follow the prompt, or do not run along it whatever their shape."""

ELSEWHERE = ("pixel", "image", "video", "audio", "feature", "input_features", "tile", "target", "spatial", "qformer")
"""How the names begin of what belongs to images or sounds, whatever its shape."""


@dataclass(frozen=True, eq=False)
class KeptImage:
    """What is left of one image after a call: its plan, its number of tokens, its score [1, n] if there is one, its patch grid."""

    plan: Plan
    count: int
    score: Tensor | None
    grid: tuple[int, int] | None


@dataclass(frozen=True, eq=False)
class PrunedPrompt:
    """What a finished call tells its handle: the images, and which column of the user's prompt each token stands at, [B, L], -1 for
    padding. `width`: columns of the user's prompt."""

    images: tuple[KeptImage, ...]
    index: Tensor
    width: int


@dataclass(eq=False)
class GenerateCall:
    """A `generate` under way. prompt: length of its prompt as it runs; results: what its first forward with visual tokens has to publish,
    by owner; draft: the model drafts for another one (assisted decoding), which gives it no pixels."""

    owner: Any
    language_model: Any
    request: VlmRequest | None = None
    prompt: int | None = None
    ids: Tensor | None = None
    draft: bool = False
    results: dict[Any, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.request is not None:
            self.ids = self.request.call["input_ids"]
            self.prompt = int(self.ids.shape[1])

    def publish(self) -> None:
        """It has finished."""
        for owner, result in self.results.items():
            publish(owner, result)

    def makes(self, call: dict[str, Any]) -> bool:
        """Whether a forward is one of this `generate`'s own steps, whose prompt is shortened already, and not another one that somebody
        runs in between (a logits processor that asks the model)."""
        cache = call.get("past_key_values")
        mine = None if self.request is None else self.request.user.get("past_key_values")
        pixels = call.get("pixel_values") is not None or call.get("pixel_values_videos") is not None
        return not pixels and (cache is mine or getattr(cache, "_sparsight_prompt", None) is None)


@dataclass(eq=False)
class VlmRequest:
    """State of one call.

    user     the user's arguments.                                 call  arguments for the model, shortened step by step.
    ids      [B, U] the user's.                                    generating  `generate` was called, not the model itself.
    known    what the cache had of earlier prompts.                cached  tokens in the cache.
    past     columns of the user's conversation in the cache.      start   the first new column of ids: 0 if ids are new altogether.
    index    [B, L] new columns that stay, counted from `start`.   before  [B, cached] mask of the cached tokens, None if all real.
    kept     what is left of each image.                           left  what the cache will have to remember.
    smaller  what the encoder was given in place of the user's arguments, where images were made smaller.
    """

    user: dict[str, Any]
    call: dict[str, Any]
    ids: Tensor
    generating: bool
    known: PromptMap | None
    cached: int
    past: int
    start: int
    mask: Tensor | None
    encoded: dict[str, Any] = field(default_factory=dict)
    smaller: dict[str, Any] = field(default_factory=dict)
    found: dict[str, list[tuple[int, Tensor]]] = field(default_factory=dict)
    fresh: dict[str, list[int]] = field(default_factory=dict)
    spans: list[Span] = field(default_factory=list)
    kept: list[KeptTokens] = field(default_factory=list)
    index: Tensor = field(default_factory=lambda: torch.empty(0))
    before: Tensor | None = None
    own: Tensor | None = None
    left: PromptMap | None = None

    @staticmethod
    def read(call: dict[str, Any], generating: bool) -> VlmRequest | None:
        """The call's prompt; None if it has no ids."""
        ids, mask, cache = call.get("input_ids"), call.get("attention_mask"), call.get("past_key_values")
        if not isinstance(ids, Tensor):
            return None
        cached = 0 if cache is None else int(cache.get_seq_length())
        known: PromptMap | None = getattr(cache, "_sparsight_prompt", None) if cached else None
        if known is not None:
            known = known.repeated(ids.shape[0])
            if cached < known.length:
                raise PruneError(
                    f"the cache has {cached} tokens, fewer than the {known.length} of its pruned prompt; it has been cropped into the prompt"
                )
        past = cached if known is None else known.width + cached - known.length
        # as transformers reads it: with a mask as long as the ids (or none) in generate, the ids are the whole conversation
        whole = generating and cached > 0 and (mask is None or mask.shape[-1] == ids.shape[1])
        if whole and ids.shape[1] <= past:
            raise PruneError(f"all {ids.shape[1]} tokens of the prompt are in the cache already ({past}); add the new ones")
        return VlmRequest(call, dict(call), ids, generating, known, cached, past, past if whole else 0, mask)

    @property
    def batch(self) -> int:
        return int(self.ids.shape[0])

    @property
    def new(self) -> Tensor:
        """The new part of the user's ids, [B, W]."""
        return self.ids[:, self.start :]

    def along(self, values: Tensor) -> Tensor:
        """The new part of something that runs along the prompt or along the whole conversation."""
        return values[..., values.shape[-1] - self.new.shape[1] :]

    def has_new(self, token: int | None) -> bool:
        """Whether placeholders are among the new tokens. One token alone is an answer's, and asking would wait for the device."""
        return token is not None and self.new.shape[1] > 1 and bool((self.new == token).any())

    # ---- images -------------------------------------------------------------------------------------------------------

    def places(self, kind: str, token: int | None, sizes: list[int]) -> list[tuple[int, Tensor]]:
        """Row and columns of every image's placeholders; those of a cached part may be given again."""
        marked = self.ids.eq(-1 if token is None else token)
        if self.start and int(marked.sum()) == sum(sizes):
            return locate(marked, sizes, kind)
        return [(row, columns + self.start) for row, columns in locate(marked[:, self.start :], sizes, kind)]

    def find(self, kind: str, token: int | None, sizes: list[int]) -> list[int]:
        """Which of the images have their placeholders among the new tokens."""
        places = self.places(kind, token, sizes)
        fresh = [i for i, (_, columns) in enumerate(places) if int(columns[0]) >= self.start]
        self.found[kind] = [(places[i][0], places[i][1] - self.start) for i in fresh]
        return fresh

    def settle(self, kind: str, fresh: list[int], kept: list[KeptTokens], separators: bool = True) -> None:
        """Note which placeholders of each image stay, and whether text among them does."""
        self.fresh[kind] = fresh
        self.kept += kept
        for (row, columns), one in zip(self.found[kind], kept, strict=True):
            drop = not separators and kind == "image" and one.anchors.shape[0] < columns.shape[0]
            self.spans.append(Span(row, columns, one.anchors.to(columns.device), between(columns) if drop else None))

    def chosen(self, kind: str, values: Tensor | None) -> Tensor | None:
        """Of something that has one entry per image, the entries of the new ones."""
        return None if values is None or kind not in self.fresh else values[self.fresh[kind]]

    def drop(self, names: list[str]) -> None:
        for name in names:
            self.call.pop(name, None)

    # ---- shortening ---------------------------------------------------------------------------------------------------

    def check(self) -> None:
        """Refuse what speaks about places in the full prompt and cannot be shortened."""
        if self.mask is not None and self.mask.dim() != 2:
            raise PruneError(f"a pruned prompt needs the 2-D attention_mask [B, length], got {list(self.mask.shape)}")
        refuse_packed(self.call)
        for name, value in self.call.items():
            along = isinstance(value, Tensor) and (value.shape[:2] == self.ids.shape or value.shape == self.ids.shape[1:])
            if along and name not in KNOWN and not self.runs_along(name):
                raise PruneError(
                    f"{name} {list(value.shape)} has an entry for every token of the prompt, and pruning does not know how to shorten it; "
                    f"leave it out (known: {', '.join(KNOWN)})"
                )

    def runs_along(self, name: str) -> bool:
        """Whether an argument is shortened with the prompt, by its name or by its shape."""
        value = self.call.get(name)
        if name in KNOWN or not isinstance(value, Tensor):
            return name in FOLLOW and isinstance(value, Tensor)
        return value.shape == self.ids.shape and not value.is_floating_point() and not name.startswith(ELSEWHERE)

    def shorten(self, pad: int) -> None:
        """Take the placeholders that left out of all arguments."""
        width, mask = self.new.shape[1], None if self.mask is None else self.along(self.mask)
        self.index = shortened(self.batch, width, self.spans, mask, self.ids.device)
        padded = bool(self.spans) and bool((self.index < 0).any())
        # without a mask, gaps in position ids would read as borders between packed samples
        gaps = self.call.get("position_ids") is not None and not self.cached
        if mask is not None or padded or gaps:
            self.own = take(torch.ones_like(self.new) if mask is None else mask, self.index).to(self.index.dtype)
        self.recall()
        for name in [name for name in self.call if self.runs_along(name)]:
            self.call[name] = self.follow(self.call[name], FILL.get(name, 0))
        self.call["input_ids"] = self.follow(self.ids, pad)
        if self.own is not None or self.before is not None:
            self.call["attention_mask"] = self.full_mask().to(torch.long if self.mask is None else self.mask.dtype)
        if self.encoded:
            self.call["mm_encoder_outputs"] = self.encoded
        self.remember()

    def recall(self) -> None:
        """The mask of what is cached, as far as anything in it is padding."""
        if not self.cached:
            return
        old = self.known
        given = None if self.mask is None or self.mask.shape[1] < self.past + self.new.shape[1] else self.mask[:, : self.past]
        if old is None:
            self.before = given
        elif given is not None:
            self.before = torch.cat([take(given[:, : old.width], old.index), given[:, old.width :]], dim=1)
        elif old.padded:
            self.before = torch.nn.functional.pad(old.mask, (0, self.cached - old.length), value=1)

    def full_mask(self) -> Tensor:
        """Mask of cached and new tokens, [B, cached + L]."""
        own = torch.ones_like(self.index) if self.own is None else self.own
        if not self.cached:
            return own
        before = own.new_ones(self.batch, self.cached) if self.before is None else self.before.to(own)
        return torch.cat([before, own], dim=1)

    def follow(self, values: Tensor, fill: int) -> Tensor:
        """Values along the user's ids, shortened as they are."""
        new = take(self.along(values), self.index, fill)
        if not self.start or values.shape[-1] != self.ids.shape[1]:
            return new
        old = values[..., : self.start]
        if self.known is not None:
            width = self.known.width
            old = torch.cat([take(old[..., :width], self.known.index, fill), old[..., width:]], dim=-1)
        return torch.cat([old, new], dim=-1)

    # ---- afterwards ---------------------------------------------------------------------------------------------------

    def remember(self) -> None:
        """Make the map that the cache will carry."""
        index = self.index.where(self.index < 0, self.index + self.past)
        if self.cached:
            length, width = (0, 0) if self.known is None else (self.known.length, self.known.width)
            since = torch.arange(width, width + self.cached - length, device=index.device).expand(self.batch, -1)
            index = torch.cat([*([] if self.known is None else [self.known.index]), since, index], dim=1)
        padded = self.own is not None or self.before is not None
        self.left = PromptMap(index, self.full_mask(), padded, self.past + self.new.shape[1])

    def leave(self, output: Any) -> None:
        """Let the cache of this call know what it has had, whether the output is a ModelOutput or a tuple."""
        parts = output if isinstance(output, tuple) else (getattr(output, "past_key_values", None),)
        caches = (part for part in (*parts, self.user.get("past_key_values")) if hasattr(part, "get_seq_length"))
        cache = next(caches, None)
        if cache is not None:
            cache._sparsight_prompt = self.left

    def outcome(self) -> PrunedPrompt:
        """What handles show of this call."""
        images = (KeptImage(one.plan, int(one.anchors.shape[0]), one.score, one.grid) for one in self.kept)
        return PrunedPrompt(tuple(images), self.index, int(self.new.shape[1]))

    def lengthen(self, output: Any) -> Any:
        """Give the last hidden states the length of the user's prompt again."""
        visual = torch.zeros_like(self.new, dtype=torch.bool)
        for span in self.spans:
            visual[span.row, span.columns] = True
        hidden = output[0] if isinstance(output, tuple) else output.last_hidden_state
        hidden = lengthened(hidden, self.index, take(visual, self.index, 0), int(self.new.shape[1]))
        if isinstance(output, tuple):
            return (hidden, *output[1:])
        output.last_hidden_state = hidden
        return output

    # ---- generate -----------------------------------------------------------------------------------------------------

    def prepare_generate(self, default: Any) -> None:
        """Arguments of `generate` that count or see the user's prompt, which is longer than the one that runs. default: the model's
        generation_config."""
        self.limit_length(default)
        for name, wrap in (("logits_processor", FullPrompt), ("stopping_criteria", FullPromptStop)):
            if self.call.get(name):
                self.call[name] = type(self.call[name])([wrap(one, self) for one in self.call[name]])
        if self.call.get("prefix_allowed_tokens_fn") is not None:
            self.call["prefix_allowed_tokens_fn"] = FullPromptAllowed(self.call["prefix_allowed_tokens_fn"], self)
        if self.call.get("streamer") is not None:
            self.call["streamer"] = PromptStreamer(self.call["streamer"], self.ids)

    def limit_length(self, default: Any) -> None:
        """max_length and min_length count the user's prompt."""
        config = self.call.get("generation_config")
        removed = self.ids.shape[1] - self.call["input_ids"].shape[1]
        for name, instead in (("max_length", "max_new_tokens"), ("min_length", "min_new_tokens")):
            value = self.call.get(name) or getattr(config, name, None) or getattr(default, name, None)
            counted = self.call.get(instead) or getattr(config, instead, None)
            if value and removed and not counted:
                self.call[name] = max(1, value - removed)

    def full_ids(self, ids: Tensor, rows: Tensor | None = None) -> Tensor:
        """Ids of a running `generate`, the user's own prompt in front: [R, ...] -> [R, ...]. rows: of the user's batch, if not all."""
        prompt = self.ids.to(ids.device)
        prompt = prompt.repeat_interleave(ids.shape[0] // self.batch, dim=0) if rows is None else prompt[rows]
        return torch.cat([prompt, ids[:, self.call["input_ids"].shape[1] :]], dim=1)

    def restore(self, output: Any) -> Any:
        """Put the user's own prompt in front of what was generated."""
        if isinstance(output, Tensor):
            return self.full_ids(output)
        output.sequences = self.full_ids(output.sequences)
        return output


class FullPrompt:
    """A logits processor that sees the user's own prompt instead of the shortened one."""

    def __init__(self, inner: Callable[..., Any], request: VlmRequest) -> None:
        self.inner, self.request = inner, request

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Any:
        return self.inner(self.request.full_ids(input_ids), scores)


class FullPromptStop(FullPrompt):
    """A stopping criterion that sees the user's own prompt."""

    def __call__(self, input_ids: Tensor, scores: Tensor, **kwargs: Any) -> Any:
        return self.inner(self.request.full_ids(input_ids), scores, **kwargs)


class FullPromptAllowed(FullPrompt):
    """A `prefix_allowed_tokens_fn` that sees the user's own prompt."""

    def __call__(self, row: int, input_ids: Tensor) -> Any:  # type: ignore[override]
        short = self.request.call["input_ids"]
        same = (short == input_ids[: short.shape[1]].to(short.device)).all(dim=1)
        return self.inner(row, self.request.full_ids(input_ids.unsqueeze(0), same.nonzero()[0])[0])


class PromptStreamer:
    """A streamer that sees the user's own prompt instead of the shortened one."""

    def __init__(self, inner: Any, ids: Tensor) -> None:
        self.inner, self.ids, self.first = inner, ids, True

    def put(self, value: Tensor) -> None:
        self.inner.put(self.ids.cpu() if self.first else value)
        self.first = False

    def end(self) -> None:
        self.inner.end()
