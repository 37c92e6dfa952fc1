"""One forward of a pruned decoder: which of its tokens are visual, what masks its layers need, and what the cache must remember."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import PruneError
from ..ops.text import Rows, raters
from ..plan import Plan
from .attention_listener import Attended
from .layer_input import Peeked, RotaryCall
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
    looks at its last hidden states by places of the full prompt; mask: the attention mask that it was given."""

    owner: Any
    visual: Tensor | None
    ids: Tensor | None
    full: bool
    mask: Any = None


@dataclass(eq=False)
class DecoderForward:
    """State of one forward. start: tokens in layer 0's cache before it; length: tokens given to it; mask [B, start + length];
    full_length: the last hidden states have to fit the full prompt; prompt: length of the prompt where `generate` runs, so that tokens
    generated since ask for nothing; now: the sequence at the layer that runs; heard: attention modules that are listened to; peeking: the one
    that runs ahead; rotary: calls of the modules that make RoPE; came: the output of the layer before; overlays: what tokens see besides
    causality, by the kind of the mask; last: nobody asks for more than the last token of layers that have no keys of their own; cut: it is all
    that they are given."""

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
    heard: dict[nn.Module, Attended | None] = field(default_factory=dict)
    peeking: nn.Module | None = None
    rotary: list[RotaryCall] = field(default_factory=list)
    came: Tensor | None = None
    overlays: dict[str, Tensor | None] = field(default_factory=dict)
    last: bool = False
    cut: bool = False
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
        if scope is not None and not (isinstance(mask, Tensor) and mask.dim() == 2):
            mask = scope.mask  # the model around the decoder has made its own of it
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

    def start_sequence(self, hidden: Tensor) -> Sequence:
        """All tokens of this forward, under the model's own mask and positions."""
        if self.foreign:
            raise PruneError(
                "a pruned decoder needs the 2-D attention mask; got a ready-made one (static cache or packed sequences?)"
            )
        if hidden.dim() != 3 or hidden.shape[1] != self.length:
            raise PruneError(
                f"the layers of {type(self.owner.model).__name__} are given hidden states {list(hidden.shape)} for {self.length} tokens, and pruning "
                "does not know which are whose"
            )
        valid = None if self.full or self.mask is None else self.mask[:, self.start :]
        if valid is not None and bool(valid.all()):
            valid = None
        index = torch.arange(self.length, device=hidden.device).expand(hidden.shape[0], -1)
        return Sequence(index, valid, self.visual, own=True)

    def moved(self, before: Sequence, left: SiteCache) -> Sequence:
        """Move positions back by what a site has taken out of the cache."""
        if left.shift is None:
            return before
        shift = for_batch(left.shift, before.index.shape[0])
        return replace(before, shift=shift if before.shift is None else before.shift + shift, own=False)

    def settle(self, layer: int, after: Sequence, left: SiteCache | None, dropped: list[int], renumber: bool) -> Sequence:
        """Let the layers after a site know their keys, and let the cache remember what the site has left."""
        if left is None and after.own:
            return after
        batch, count = after.index.shape
        keys = self.keys_after(left, after)
        if self.visual is not None and self.cache is not None:
            shift = torch.tensor(dropped, device=after.index.device) if renumber and any(dropped) else None
            if left is not None and left.shift is not None:
                old = for_batch(left.shift, batch)
                shift = old if shift is None else shift + old
            length = count + (self.start if left is None else left.length + self.start - left.seen)
            self.cache.__dict__.setdefault("_sparsight", {})[layer] = SiteCache(keys, length, self.start + self.length, shift)
        plain = keys is None and count == 1 and self.visual is None and after.shift is None
        return replace(after, keys=keys, own=False, plain=plain)

    def keys_after(self, left: SiteCache | None, after: Sequence) -> Tensor | None:
        """Which keys of the layers after a site are real, cached ones in front: [B, L]; None if all are."""
        if self.all_real(left, after):
            return None
        batch, count = after.index.shape
        past = self.past_valid(left, batch)
        length = self.start if left is None else left.length + self.start - left.seen
        device = after.index.device
        past = torch.ones(batch, length, dtype=torch.bool, device=device) if past is None else past
        new = torch.ones(batch, count, dtype=torch.bool, device=device) if after.valid is None else after.valid
        return torch.cat([past, new], dim=1)

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

    def note(self, module: nn.Module, one: Attended) -> None:
        """An attention module that is listened to has been called."""
        self.heard[module] = one
        if self.peeking is module:
            raise Peeked

    def hear(self, module: nn.Module, count: int) -> Attended:
        """The attention of a module in this forward, to `count` tokens; a PruneError if it was not heard."""
        one = self.heard.get(module)
        if one is None or one.q.shape[2] != count:
            raise PruneError(f"{type(module).__name__} was not called where pruning listens to it; this attention runs elsewhere")
        return one


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
