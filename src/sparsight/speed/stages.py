"""Where one `generate` of a vision-language model spends its time, its multiply-accumulates and its memory, stage by stage."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial, wraps
from typing import Any

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from ..errors import PruneError
from ..prune import Handle, family_of, prune
from ..recipe import Recipe
from .timing import Alive, now

Inputs = dict[str, Any]
Number = Callable[[], float]

STAGES = {
    "vision": "vision encoder and projector",
    "selection": "scoring, choosing and taking out visual tokens, wherever that happens",
    "prefill": "the language model's layers on the prompt",
    "other": "embeddings, the head of the first token, preparations of generate",
    "decoding": "everything after the first token",
}


@dataclass(frozen=True)
class Times:
    """Seconds of one `generate`, stage by stage; `tokens` is how many it made for each prompt."""

    vision: float
    selection: float
    prefill: float
    other: float
    decoding: float
    tokens: int

    @property
    def reading(self) -> float:
        """The prompt through the language model, choosing its tokens included."""
        return self.prefill + self.selection

    @property
    def first_token(self) -> float:
        return self.total - self.decoding

    @property
    def per_token(self) -> float:
        """Each token after the first one."""
        return self.decoding / (self.tokens - 1)

    @property
    def total(self) -> float:
        return self.vision + self.selection + self.prefill + self.other + self.decoding

    def __str__(self) -> str:
        first = f"{1e3 * self.vision:.1f} vision, {1e3 * self.selection:.1f} selection, {1e3 * self.prefill:.1f} prefill"
        return f"{first}, {1e3 * self.per_token:.1f} per token, {1e3 * self.total:.1f} ms in all"


@dataclass(frozen=True)
class Macs:
    """Multiply-accumulates until the first token, per prompt. Attention counts whole, as if it were not causal."""

    vision: int
    selection: int
    prefill: int

    @property
    def reading(self) -> int:
        """The prompt through the language model, choosing its tokens included."""
        return self.prefill + self.selection

    def __str__(self) -> str:
        return f"{self.prefill / 1e9:.3f} GMACs prefill, {self.selection / 1e9:.3f} selection, {self.vision / 1e9:.3f} vision"


@dataclass(frozen=True)
class Footprint:
    """Memory of one `generate`, for its whole batch.

    peak           bytes at the highest point, weights included.
    cache          bytes of the keys and values of the prompt, as they lie in the cache.
    lengths        tokens that the cache of each layer of the language model has after the prompt.
    """

    peak: int
    cache: int
    lengths: list[int]

    def __str__(self) -> str:
        return f"peak {self.peak / 1e6:.0f} MB, KV cache {self.cache / 1e6:.2f} MB"


class Meter:
    """Charges what a counter advances to the stage that is running; an inner stage is not charged to the outer one."""

    def __init__(self, read: Number) -> None:
        self.read = read
        self.spent = dict.fromkeys(STAGES, 0.0)
        self.running = ["other"]
        self.last = read()

    def charge(self) -> None:
        now = self.read()
        self.spent[self.running[-1]] += now - self.last
        self.last = now

    @property
    def decoding(self) -> bool:
        return self.running[0] == "decoding"

    def enter(self, stage: str) -> None:
        if not self.decoding:
            self.charge()
            self.running.append(stage)

    def leave(self, *_: Any) -> None:
        if not self.decoding:
            self.charge()
            self.running.pop()

    def first_token(self, *_: Any) -> None:
        """From here on everything is decoding."""
        if not self.decoding:
            self.charge()
            self.running = ["decoding"]


@contextmanager
def metered(model: nn.Module, family: Any, handle: Handle | None, read: Number) -> Iterator[Meter]:
    """Follow the model through one `generate`: wrap the places where stages begin and end, and give them back afterwards."""
    meter = Meter(read)
    core = family.core
    with ExitStack() as stack:
        for name in ("get_image_features", "get_video_features"):
            if hasattr(core, name):
                stack.enter_context(wrapped(core, name, meter, "vision"))
        if handle is not None:
            inside = handle.recipe.where == "decoder"
            stack.enter_context(wrapped(handle.family, "visit" if inside else "prepare", meter, "selection"))
        language = core.language_model
        hooks = [
            language.register_forward_pre_hook(lambda *_: meter.enter("prefill"), prepend=True),
            language.register_forward_hook(meter.leave),
            model.register_forward_hook(meter.first_token),
        ]
        for hook in hooks:
            stack.callback(hook.remove)
        yield meter
        meter.charge()


@contextmanager
def wrapped(owner: Any, name: str, meter: Meter, stage: str) -> Iterator[None]:
    """Let a method of one object tell the meter when it runs."""
    before = owner.__dict__.get(name)
    method = getattr(owner, name)

    @wraps(method)
    def told(*args: Any, **kwargs: Any) -> Any:
        meter.enter(stage)
        try:
            return method(*args, **kwargs)
        finally:
            meter.leave()

    owner.__dict__[name] = told
    try:
        yield
    finally:
        del owner.__dict__[name]
        if before is not None:
            owner.__dict__[name] = before


def generate(model: Any, inputs: Inputs, tokens: int) -> Any:
    """Exactly so many new tokens, greedily; gives the cache, too."""
    return model.generate(
        **inputs, max_new_tokens=tokens, min_new_tokens=tokens, do_sample=False, num_beams=1, use_cache=True,
        return_dict_in_generate=True,
    )  # fmt: skip


def time_stages(model: nn.Module, family: Any, handle: Handle | None, inputs: Inputs, tokens: int) -> Times:
    """One `generate` of at least two tokens on the clock."""
    with metered(model, family, handle, partial(now, inputs["input_ids"].device)) as meter:
        generate(model, inputs, tokens)
    return Times(**meter.spent, tokens=tokens)


def count_macs(model: nn.Module, family: Any, handle: Handle | None, inputs: Inputs) -> tuple[Macs, list[int], int]:
    """Multiply-accumulates of reading the prompt, by torch.utils.flop_counter on the real run; also the cache that the prompt leaves:
    tokens per layer, and bytes."""
    counter = FlopCounterMode(display=False)
    with counter, metered(model, family, handle, lambda: counter.get_total_flops()) as meter:
        cache = generate(model, inputs, 1).past_key_values
    prompts = 2 * inputs["input_ids"].shape[0]
    macs = Macs(*(int(meter.spent[stage]) // prompts for stage in ("vision", "selection", "prefill")))
    layers = [(layer.keys, layer.values) for layer in cache.layers]
    return macs, [int(keys.shape[-2]) for keys, _ in layers], sum(keys.nbytes + values.nbytes for keys, values in layers)


def vision_language(model: nn.Module) -> Any:
    """The model's family. Raises PruneError if it is no vision-language model."""
    family = family_of(model)
    if not family.language:
        raise PruneError(f"{type(model).__name__} is no vision-language model; sparsight.macs and bench are for vision models")
    return family


def prefill_macs(model: nn.Module, inputs: Inputs, recipe: Recipe | str | None = None) -> Macs:
    """Multiply-accumulates per prompt of a vision-language model on what its processor gives. recipe None = as the model is now.

    Runs the model once, because methods look at the data. Raises PruneError as `prune` does.
    """
    family = vision_language(model)
    with nullcontext() if recipe is None else prune(model, recipe) as handle:
        return count_macs(model, family, handle, inputs)[0]


def peak_memory(model: nn.Module, inputs: Inputs, tokens: int) -> int:
    """Bytes at the highest point of one `generate`, as `timing.memory_method` says for the device."""
    device = inputs["input_ids"].device
    given = [value for value in inputs.values() if isinstance(value, torch.Tensor)]
    resting = sum(t.nbytes for t in (*model.parameters(), *model.buffers(), *given))
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        generate(model, inputs, tokens)
        return resting + int(torch.cuda.max_memory_allocated(device)) - before
    alive = Alive()
    with alive:
        generate(model, inputs, tokens)
    return resting + alive.peak
