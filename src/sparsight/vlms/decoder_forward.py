"""One forward of a pruned decoder: which of its tokens are visual, what masks its layers need, and what the cache must remember."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import PruneError
from ..ops.text import Rows, raters
from ..plan import Plan
from .prompt import refuse_packed
from .request import GenerateCall
from .sequence import Sequence


@dataclass(frozen=True, eq=False)
class SiteCache:
    """What a site has left in a cache: valid [B, L] (None: all real) and length L of the caches after it, at the time when layer 0
    had `seen` tokens; shift [B]: how far later position ids move back because of this site (None: not at all)."""

    valid: Tensor | None
    length: int
    seen: int
    shift: Tensor | None


@dataclass(frozen=True, eq=False)
class SiteOutcome:
    """What happened at a site: the plan over the visual tokens that arrived, the score (single samples only), and which tokens of the
    prompt are left [B, n] (clusters by their centres), -1 for padding."""

    plan: Plan
    score: Tensor | None
    left: Tensor


@dataclass(frozen=True, eq=False)
class PrunedForward:
    """What a finished forward tells the handles: outcomes by site, the place [B, n] of each token that is left at the end (-1: padding),
    and which tokens [B, length] were visual."""

    sites: dict[Any, SiteOutcome]
    index: Tensor
    visual: Tensor

    @property
    def width(self) -> int:
        return int(self.visual.shape[1])

    def kept_per_image(self) -> list[int]:
        """Tokens left of every image, sample by sample; adjacent images count as one, and a cluster is its centre's."""
        number = starts(self.visual).long().cumsum(dim=1).where(self.visual, 0)
        left = torch.nn.functional.pad(number, (1, 0)).gather(1, self.index + 1)
        return [
            int((row == image).sum())
            for row, images in zip(left, number.amax(dim=1).tolist(), strict=True)
            for image in range(1, images + 1)
        ]


@dataclass(eq=False)
class PromptScope:
    """A forward of the vision-language model around a decoder. visual [B, length]: its visual tokens, None in single steps; full: somebody
    looks at its last hidden states by places of the full prompt."""

    owner: Any
    visual: Tensor | None
    ids: Tensor | None
    full: bool


@dataclass(eq=False)
class DecoderForward:
    """State of one forward. start: tokens in layer 0's cache before it; length: tokens given to it; mask [B, start + length];
    full_length: the last hidden states have to fit the full prompt; prompt: length of the prompt where `generate` runs, so that tokens
    generated since ask for nothing; now: the sequence at the layer that runs."""

    owner: Any
    start: int
    length: int
    mask: Tensor | None
    foreign: bool
    full_length: bool
    cache: Any = None
    prompt: int | None = None
    visual: Tensor | None = None
    now: Sequence | None = None
    pruned: bool = False
    right: bool = False
    raters: Tensor | None = None
    entered: list[int] = field(default_factory=list)
    images: list[int] = field(default_factory=list)
    heard: dict[nn.Module, Any] = field(default_factory=dict)
    outcomes: dict[Any, SiteOutcome] = field(default_factory=dict)
    unpadded: bool | None = None

    @staticmethod
    def begin(
        owner: Any, call: dict[str, Any], visual: Any, scope: PromptScope | None, generating: GenerateCall | None, full: bool
    ) -> DecoderForward:
        """Read the arguments of the decoder's forward."""
        ids, mask, past = call.get("input_ids"), call.get("attention_mask"), call.get("past_key_values")
        tokens = ids if ids is not None else call["inputs_embeds"]
        start, length = 0 if past is None else int(past.get_seq_length()), int(tokens.shape[1])
        plain = mask.bool() if isinstance(mask, Tensor) and mask.dim() == 2 else None
        forward = DecoderForward(owner, start, length, plain, mask is not None and plain is None, full, past)
        forward.prompt = forward.prompt_of(generating, ids if ids is not None or scope is None else scope.ids)
        found = scope.visual if scope is not None and visual is None else forward.declared(visual, ids, tokens)
        if found is None or (length == 1 and start):
            return forward
        if found.shape != tokens.shape[:2]:
            raise PruneError(
                f"visual tokens are marked for {list(found.shape)} tokens, but the decoder got {list(tokens.shape[:2])}"
            )
        found = found.to(tokens.device) & True if forward.mask is None else found & forward.mask[:, start:]
        if bool(found.any()):
            forward.take(found)
            refuse_packed(call)
        return forward

    def prompt_of(self, generating: GenerateCall | None, ids: Tensor | None) -> int | None:
        """Length of the prompt of the `generate` that makes this forward. Another one may be run in between (by a logits processor): it
        matters only if it is longer, and then its ids tell."""
        if generating is None or generating.prompt is None or self.start or self.length <= generating.prompt:
            return None if generating is None else generating.prompt
        if ids is None or generating.ids is None:
            return generating.prompt
        first, known = ids[:, : generating.prompt], generating.ids.to(ids.device)
        rows = ids.shape[0] // max(1, known.shape[0])
        same = rows > 0 and torch.equal(first, known.repeat_interleave(rows, dim=0))
        return generating.prompt if same else None

    def outcome(self) -> PrunedForward:
        """What handles show of this forward."""
        assert self.visual is not None
        index = torch.arange(self.length, device=self.visual.device).expand(self.visual.shape[0], -1)
        return PrunedForward(self.outcomes, index if self.now is None else self.now.index, self.visual)

    def take(self, visual: Tensor) -> None:
        """There are visual tokens: count them, and images as runs of adjacent ones."""
        self.visual = visual
        self.entered = visual.sum(dim=1).tolist()
        self.images = starts(visual).sum(dim=1).tolist()
        self.right = self.mask is not None and not bool(self.mask[:, -1].all())

    def declared(self, visual: Any, ids: Tensor | None, tokens: Tensor) -> Tensor | None:
        """The part of the user's `visual` that falls into this forward: [B, length]; None if nothing does."""
        batch, stop = tokens.shape[0], self.start + self.length
        if visual is None:
            return None
        if isinstance(visual, int):
            if ids is None:
                raise PruneError("visual is a token id, but the model was called with inputs_embeds; pass a slice or a mask")
            marked: Tensor = ids == visual
            return marked
        if isinstance(visual, slice):
            first, last = visual.start or 0, visual.stop
            if last <= self.start or first >= stop:
                return None
            place = torch.arange(self.start, stop, device=tokens.device)
            inside: Tensor = (place >= first) & (place < last)
            return inside.expand(batch, -1)
        mask = visual if visual.dim() == 2 else visual.unsqueeze(0)
        if mask.shape[1] <= self.start:
            return None
        mask = torch.nn.functional.pad(mask[:, self.start : stop], (0, max(0, stop - mask.shape[1])))
        return for_batch(mask.to(tokens.device), batch) if mask.shape[0] != 1 else mask.expand(batch, -1)

    # ---- what the cache knows -----------------------------------------------------------------------------------------

    def left_by(self, cache: Any, layer: int) -> SiteCache | None:
        """What earlier forwards left in the cache at a site."""
        self.cache = cache
        if cache is None or not self.start:
            return None
        left: SiteCache | None = getattr(cache, "_sparsight", {}).get(layer)
        if left is None or self.start >= left.seen:
            return left
        # the cache has been cropped since
        length = left.length - (left.seen - self.start)
        return replace(left, valid=None if left.valid is None else left.valid[:, :length], length=length, seen=self.start)

    def past_valid(self, left: SiteCache | None, batch: int) -> Tensor | None:
        """Which cached keys of a layer are real, before this forward: [B, P]; None if all are."""
        seen = 0 if left is None else left.seen
        since = None if self.mask is None else self.mask[:, seen : self.start]
        if left is None or left.valid is None:
            if since is None or bool(since.all()):
                return None
            known = torch.ones(batch, 0 if left is None else left.length, dtype=torch.bool, device=since.device)
            return torch.cat([known, since], dim=1)
        valid = for_batch(left.valid, batch)
        return torch.cat([valid, valid.new_ones(batch, self.start - seen) if since is None else since], dim=1)

    @property
    def full(self) -> bool:
        """Whether no token so far is padding; asked once per forward, since it waits for the device."""
        if self.unpadded is None:
            self.unpadded = self.mask is None or bool(self.mask.all())
        return self.unpadded

    def all_real(self, left: SiteCache | None, after: Sequence) -> bool:
        """Whether no key of the layers after a site is padding."""
        if after.valid is not None or (left is not None and left.valid is not None):
            return False
        seen = 0 if left is None else left.seen
        return self.full or self.mask is None or bool(self.mask[:, seen : self.start].all())

    # ---- the sequence -------------------------------------------------------------------------------------------------

    def start_sequence(self, hidden: Tensor, kwargs: dict[str, Any]) -> Sequence:
        """All tokens of this forward, under the model's own mask and positions."""
        if self.foreign:
            raise PruneError(
                "a pruned decoder needs the 2-D attention mask; got a ready-made one (static cache or packed sequences?)"
            )
        valid = None if self.full or self.mask is None else self.mask[:, self.start :]
        if valid is not None and bool(valid.all()):
            valid = None
        index = torch.arange(self.length, device=hidden.device).expand(hidden.shape[0], -1)
        mask, position = kwargs.get("attention_mask"), kwargs.get("position_ids")
        return Sequence(index, valid, self.visual, kwargs["position_embeddings"], position, mask, own=True)

    def shift(self, before: Sequence, left: SiteCache, rotary: Any, hidden: Tensor) -> Sequence:
        """Move the position ids back by what the site has taken out of the cache."""
        if left.shift is None or before.position is None:
            return before
        position = before.position - for_batch(left.shift, hidden.shape[0]).unsqueeze(1)
        return replace(before, position=position, rope=rotary(hidden, position_ids=position), own=False)

    def settle(
        self, layer: int, after: Sequence, left: SiteCache | None, dropped: list[int], hidden: Tensor, renumber: bool, config: Any
    ) -> Sequence:
        """Give the layers after a site their mask, and let the cache remember what the site has left."""
        if left is None and after.own:
            return after
        batch, count = hidden.shape[:2]
        real = self.all_real(left, after)
        if real and count == 1 and self.visual is None and after.own and after.attention is None:
            return after  # decoding: one query that sees every key of whichever cache needs nothing
        valid = None
        if not real:
            past = self.past_valid(left, batch)
            length = self.start if left is None else left.length + self.start - left.seen
            past = torch.ones(batch, length, dtype=torch.bool, device=hidden.device) if past is None else past
            new = torch.ones(batch, count, dtype=torch.bool, device=hidden.device) if after.valid is None else after.valid
            valid = torch.cat([past, new], dim=1)
        if self.visual is not None and self.cache is not None:
            shift = torch.tensor(dropped, device=hidden.device) if renumber and any(dropped) else None
            if left is not None and left.shift is not None:
                old = for_batch(left.shift, batch)
                shift = old if shift is None else shift + old
            length = count + (self.start if left is None else left.length + self.start - left.seen)
            self.cache.__dict__.setdefault("_sparsight", {})[layer] = SiteCache(valid, length, self.start + self.length, shift)
        attention = None if real and count == 1 else causal_mask(config, hidden, valid, self.cache, layer)
        return replace(after, attention=attention, own=False)

    # ---- scoring ------------------------------------------------------------------------------------------------------

    @property
    def end(self) -> int:
        """Where the prompt ends among the tokens of this forward."""
        return self.length if self.prompt is None or self.prompt <= self.start else self.prompt - self.start

    def choose_raters(self, hidden: Tensor) -> None:
        """Text raters of every sample, from the embeddings that enter the decoder: bool [B, length]."""
        assert self.visual is not None
        real = torch.ones_like(self.visual) if self.mask is None else self.mask[:, self.start :]
        place = torch.arange(self.length, device=hidden.device)
        last = place.where(self.visual, -1).amax(dim=1, keepdim=True)
        text, after = real & ~self.visual & (place < self.end), place > last
        text = text & (after | ~(text & after).any(dim=1, keepdim=True))
        self.raters = torch.zeros_like(text)
        for sample, chosen in enumerate(self.raters):
            if self.entered[sample] and bool(text[sample].any()):
                with torch.no_grad():
                    stand_out = raters(hidden[sample : sample + 1, self.visual[sample]], hidden[sample : sample + 1, text[sample]])
                chosen[text[sample]] = stand_out[0]

    def real(self, before: Sequence, sample: int) -> Tensor:
        """Places of a sample's real tokens."""
        if before.valid is None:
            return torch.arange(before.index.shape[1], device=before.index.device)
        return before.valid[sample].nonzero().squeeze(1)

    def asked(self, rows: Rows, before: Sequence, sample: int, real: Tensor) -> Tensor:
        """Places of the queries whose attention counts."""
        real = real[before.index[sample, real] < self.end]
        if rows == "last" or self.raters is None or before.visual is None:
            return real[-1:]
        text = real[~before.visual[sample, real]]
        chosen = text[self.raters[sample, before.index[sample, text]]]
        return chosen if chosen.shape[0] else real[-1:]

    def behind(self, before: Sequence, sample: int, real: Tensor, places: Tensor) -> Tensor:
        """Places of a sample's text behind its last visual token; of all its text where there is none."""
        assert before.visual is not None
        text = real[(before.index[sample, real] < self.end) & ~before.visual[sample, real]]
        after = text[text > places[-1]]
        return after if after.shape[0] else text

    def hear(self, module: nn.Module) -> Tensor:
        """What a module gave in this forward; a PruneError if its hook did not fire."""
        if self.heard.get(module) is None:
            raise PruneError(f"{type(module).__name__} was not called where pruning listens to it; this attention runs elsewhere")
        output: Tensor = self.heard[module][2]
        return output

    def past_keys(self, layer: int, new: Tensor, done: bool) -> Tensor:
        """Keys of a layer, cached ones first; `done` if the layer has added this forward's to its cache already."""
        if not self.start or self.cache is None:
            return new
        cached = self.cache.layers[layer].keys
        past = cached[:, :, : max(0, cached.shape[2] - new.shape[2])] if done else cached
        return torch.cat([past.to(new), new], dim=2)

    def seen(self, left: SiteCache | None, before: Sequence, sample: int, asked: Tensor, keys: int) -> tuple[Tensor, int]:
        """What each query may look at, [1, T, keys], and how many of the keys are cached ones."""
        batch, count = before.index.shape
        past = keys - count
        place = torch.arange(count, device=asked.device)
        causal = place <= asked.unsqueeze(1)
        if before.valid is not None:
            causal = causal & before.valid[sample]
        cached = torch.ones(asked.shape[0], past, dtype=torch.bool, device=asked.device)
        valid = self.past_valid(left, batch) if past else None
        if valid is not None:
            cached = cached & valid[sample, valid.shape[1] - past :]
        return torch.cat([cached, causal], dim=1).unsqueeze(0), past


def starts(visual: Tensor) -> Tensor:
    """Where runs of visual tokens begin: [B, N] bool -> [B, N] bool."""
    return visual & ~torch.nn.functional.pad(visual[:, :-1], (1, 0))


def for_batch(values: Tensor, batch: int) -> Tensor:
    """Rows of the batch that values were made for, repeated where each sample has been expanded (beams)."""
    if values.shape[0] == batch:
        return values
    if batch % values.shape[0]:
        raise PruneError(f"the cache or the visual mask was made for a batch of {values.shape[0]}, this one has {batch}")
    return values.repeat_interleave(batch // values.shape[0], dim=0)


def causal_mask(config: Any, hidden: Tensor, valid: Tensor | None, cache: Any, layer: int) -> Any:
    """The mask that transformers makes for this attention implementation, at the length of this layer's cache."""
    from transformers.masking_utils import create_causal_mask, create_sliding_window_causal_mask

    make = create_sliding_window_causal_mask if getattr(config, "sliding_window", None) else create_causal_mask
    return make(config, inputs_embeds=hidden, attention_mask=valid, past_key_values=cache, layer_idx=layer)
