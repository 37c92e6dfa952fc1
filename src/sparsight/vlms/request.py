"""One call of a vision-language model: the user's arguments, what of the prompt is new, and the shortened arguments."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ..errors import PruneError
from .prompt import FILL, Span, Trace, locate, shortened, take

FOLLOW = ("labels", "mm_token_type_ids", "token_type_ids", "position_ids")
"""Arguments that run along the prompt, besides the ids and the mask."""


@dataclass(eq=False)
class Prompt:
    """State of one call.

    user     the user's arguments.                                 call  arguments for the model, shortened step by step.
    ids      [B, U] the user's.                                    generating  `generate` was called, not the model itself.
    trace    what the cache had of earlier prompts.                cached  tokens in the cache.
    past     columns of the user's conversation in the cache.      start   the first new column of ids: 0 if ids are new altogether.
    index    [B, L] new columns that stay, counted from `start`.   before  [B, cached] mask of the cached tokens, None if all real.
    """

    user: dict[str, Any]
    call: dict[str, Any]
    ids: Tensor
    generating: bool
    trace: Trace | None
    cached: int
    past: int
    start: int
    mask: Tensor | None
    encoded: dict[str, Any] = field(default_factory=dict)
    found: dict[str, list[tuple[int, Tensor]]] = field(default_factory=dict)
    fresh: dict[str, list[int]] = field(default_factory=dict)
    spans: list[Span] = field(default_factory=list)
    index: Tensor = field(default_factory=lambda: torch.empty(0))
    before: Tensor | None = None
    own: Tensor | None = None
    left: Trace | None = None

    @staticmethod
    def read(call: dict[str, Any], generating: bool) -> Prompt | None:
        """The call's prompt; None if it has no ids."""
        ids, mask, cache = call.get("input_ids"), call.get("attention_mask"), call.get("past_key_values")
        if not isinstance(ids, Tensor):
            return None
        cached = 0 if cache is None else int(cache.get_seq_length())
        trace: Trace | None = getattr(cache, "_sparsight_prompt", None) if cached else None
        if trace is not None:
            trace = trace.known(ids.shape[0])
            if cached < trace.length:
                raise PruneError(
                    f"the cache has {cached} tokens, fewer than the {trace.length} of its pruned prompt; it has been cropped into the prompt"
                )
        past = cached if trace is None else trace.width + cached - trace.length
        # as transformers reads it: with a mask as long as the ids (or none) in generate, the ids are the whole conversation
        whole = generating and cached > 0 and (mask is None or mask.shape[-1] == ids.shape[1])
        if whole and ids.shape[1] <= past:
            raise PruneError(f"all {ids.shape[1]} tokens of the prompt are in the cache already ({past}); add the new ones")
        return Prompt(call, dict(call), ids, generating, trace, cached, past, past if whole else 0, mask)

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

    def find(self, kind: str, token: int | None, sizes: list[int]) -> list[int]:
        """Which of the images have their placeholders among the new tokens; those of a cached part may be given again."""
        marked = self.ids.eq(-1 if token is None else token)
        if self.start and int(marked.sum()) == sum(sizes):
            places = locate(marked, sizes, kind)
            fresh = [i for i, (_, columns) in enumerate(places) if int(columns[0]) >= self.start]
            self.found[kind] = [(places[i][0], places[i][1] - self.start) for i in fresh]
            return fresh
        self.found[kind] = locate(marked[:, self.start :], sizes, kind)
        return list(range(len(sizes)))

    def settle(self, kind: str, fresh: list[int], anchors: list[Tensor]) -> None:
        """Note which placeholders of each image stay."""
        self.fresh[kind] = fresh
        places = zip(self.found[kind], anchors, strict=True)
        self.spans += [Span(row, columns, chosen.to(columns.device)) for (row, columns), chosen in places]

    def chosen(self, kind: str, values: Tensor | None) -> Tensor | None:
        """Of something that has one entry per image, the entries of the new ones."""
        return None if values is None or kind not in self.fresh else values[self.fresh[kind]]

    def drop(self, names: list[str]) -> None:
        for name in names:
            self.call.pop(name, None)

    # ---- shortening ---------------------------------------------------------------------------------------------------

    def shorten(self, pad: int) -> None:
        """Take the placeholders that left out of all arguments."""
        if self.mask is not None and self.mask.dim() != 2:
            raise PruneError(f"a pruned prompt needs the 2-D attention_mask [B, length], got {list(self.mask.shape)}")
        width, mask = self.new.shape[1], None if self.mask is None else self.along(self.mask)
        self.index = shortened(self.batch, width, self.spans, mask, self.ids.device)
        padded = bool(self.spans) and bool((self.index < 0).any())
        if mask is not None or padded:
            self.own = take(torch.ones_like(self.new) if mask is None else mask, self.index).to(self.index.dtype)
        self.recall()
        for name in FOLLOW:
            values = self.call.get(name)
            if isinstance(values, Tensor):
                self.call[name] = self.follow(values, FILL.get(name, 0))
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
        old = self.trace
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
        if self.trace is not None:
            width = self.trace.width
            old = torch.cat([take(old[..., :width], self.trace.index, fill), old[..., width:]], dim=-1)
        return torch.cat([old, new], dim=-1)

    # ---- afterwards ---------------------------------------------------------------------------------------------------

    def remember(self) -> None:
        """Make the trace that the cache will carry."""
        index = self.index.where(self.index < 0, self.index + self.past)
        if self.cached:
            known, width = (0, 0) if self.trace is None else (self.trace.length, self.trace.width)
            since = torch.arange(width, width + self.cached - known, device=index.device).expand(self.batch, -1)
            index = torch.cat([*([] if self.trace is None else [self.trace.index]), since, index], dim=1)
        padded = self.own is not None or self.before is not None
        self.left = Trace(index, self.full_mask(), padded, self.past + self.new.shape[1])

    def leave(self, cache: Any) -> None:
        """Let the cache know what it has had."""
        if cache is not None and self.left is not None:
            cache._sparsight_prompt = self.left

    def limit_length(self, config: Any, default: Any) -> None:
        """max_length and min_length count the user's prompt, which is longer than the one that runs."""
        removed = self.ids.shape[1] - self.call["input_ids"].shape[1]
        for name, instead in (("max_length", "max_new_tokens"), ("min_length", "min_new_tokens")):
            value = self.call.get(name) or getattr(config, name, None) or getattr(default, name, None)
            counted = self.call.get(instead) or getattr(config, instead, None)
            if value and removed and not counted:
                self.call[name] = max(1, value - removed)
        if self.call.get("streamer") is not None:
            self.call["streamer"] = PromptStreamer(self.call["streamer"], self.ids)

    def restore(self, output: Any) -> Any:
        """Put the user's own prompt in front of what was generated."""
        sequences = output if isinstance(output, Tensor) else output.sequences
        answers = sequences[:, self.call["input_ids"].shape[1] :]
        prompt = self.ids.to(answers.device).repeat_interleave(answers.shape[0] // self.batch, dim=0)
        sequences = torch.cat([prompt, answers], dim=1)
        if isinstance(output, Tensor):
            return sequences
        output.sequences = sequences
        return output


class PromptStreamer:
    """A streamer that sees the user's own prompt instead of the shortened one."""

    def __init__(self, inner: Any, ids: Tensor) -> None:
        self.inner, self.ids, self.first = inner, ids, True

    def put(self, value: Tensor) -> None:
        self.inner.put(self.ids.cpu() if self.first else value)
        self.first = False

    def end(self) -> None:
        self.inner.end()
