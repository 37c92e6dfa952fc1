"""Vision-language models whose language model gets fewer visual tokens. What all families share.

Read with transformers 5.23. The outer model's `forward` and `generate` are wrapped on the one object: images are encoded and reduced
first, the placeholders of what left are taken out of the prompt, and the model runs as if the prompt had been that short. Its encoder
outputs go in by transformers' own argument `mm_encoder_outputs`. `generate` gives back the user's prompt in front of its answer.
"""

from __future__ import annotations

import inspect
import types
from abc import abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import partial, wraps
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import PruneError
from ..models.family import Family
from ..models.site import Site
from .request import Prompt
from .tiles import ImageSite, Kept, Picture, reduced

PIXELS = {"image": "pixel_values", "video": "pixel_values_videos"}

_inside: ContextVar[tuple[int, ...]] = ContextVar("inside", default=())
"""Models whose wrapped call is running: what they call of themselves is to run as it is."""


class LVLM(Family):
    """A vision-language model: `core` holds encoder, projector and language model, the outer model adds the head.

    After a forward: `kept` per image, for `Handle`.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__(model)
        self.kept: list[Kept] = []
        self.wrapped: dict[str, tuple[Any, Any]] = {}

    # ---- what a family says -------------------------------------------------------------------------------------------

    @property
    def core(self) -> Any:
        """The model that holds vision encoder and language model."""
        return self.model.model

    @property
    def config(self) -> Any:
        return self.model.config

    @abstractmethod
    def pictures(self, kind: str, output: Any, call: dict[str, Any], heard: dict[str, Any], site: ImageSite) -> list[Picture]:
        """The images ("image") or videos of a call with their signals, from what get_*_features gave and from what was heard."""

    @abstractmethod
    def listen(self, kind: str, call: dict[str, Any], site: ImageSite) -> dict[str, nn.Module]:
        """Modules by name whose calls `pictures` needs to know."""

    def project(self) -> Callable[[Tensor], Tensor] | None:
        """From encoder features to tokens of the language model; None where tokens can only leave behind the projector."""
        return None

    def capacity(self) -> int | None:
        """Tokens of every image, if that is fixed."""
        return None

    def token_id(self, kind: str) -> int | None:
        """Id of the placeholder of images or videos."""
        found: int | None = getattr(self.config, f"{kind}_token_id", None)
        return found

    def place(self, prompt: Prompt) -> None:
        """Give the shortened prompt its position ids, where the language model could not count them by itself."""

    def offers(self) -> tuple[str, ...]:
        return super().offers() + (("class_token",) if self.class_token else ())

    # ---- never asked: blocks of the encoder stay whole ----------------------------------------------------------------

    def attend(self, block: nn.Module, x: Tensor, bias: Tensor | None, kwargs: dict[str, Any]) -> Tensor:
        raise NotImplementedError

    def feed(self, block: nn.Module, x: Tensor) -> Tensor:
        raise NotImplementedError

    def features(self, projected: Tensor) -> Tensor:
        raise NotImplementedError

    # ---- installation -------------------------------------------------------------------------------------------------

    def add(self, sites: list[Site]) -> None:
        if self.sites:
            raise PruneError("the images of this model are pruned already; remove that handle first")
        self.sites = list(sites)
        self.patch()

    def patch(self) -> None:
        self.unpatch()
        if self.sites:
            self.model._sparsight = self  # type: ignore[assignment]
            self.wrap("forward", pruned_forward)
            self.wrap("generate", pruned_generate)

    def wrap(self, name: str, wrapper: Callable[..., Any]) -> None:
        """Put the wrapper over a method of this one object: around what another tool has put there (accelerate's hooks), but below the
        `generate` of a handle inside the language model, which has to see the whole call."""
        if not hasattr(self.model, name):
            return
        function = getattr(type(self.model), name)

        present = self.model.__dict__.get(name)
        handled = name == "generate" and isinstance(present, partial)

        @wraps(function)
        def inner(model: nn.Module, *args: Any, **kwargs: Any) -> Any:
            return function(model, *args, **kwargs) if present is None or handled else present(*args, **kwargs)

        @wraps(function)
        def method(model: nn.Module, *args: Any, **kwargs: Any) -> Any:
            return wrapper(model, inner, *args, **kwargs)

        bound = types.MethodType(method, self.model)
        self.model.__dict__[name] = partial(present.func, bound, *present.args[1:]) if present is not None and handled else bound
        self.wrapped[name] = (bound, None if handled else present)

    def unpatch(self) -> None:
        for name, (bound, before) in self.wrapped.items():
            present = self.model.__dict__.get(name)
            if isinstance(present, partial) and present.args[:1] == (bound,):
                own = types.MethodType(getattr(type(self.model), name), self.model) if before is None else before
                self.model.__dict__[name] = partial(present.func, own, *present.args[1:])
            elif present == bound:
                del self.model.__dict__[name]
                if before is not None:
                    self.model.__dict__[name] = before
        self.wrapped, self.kept = {}, []
        self.model.__dict__.pop("_sparsight", None)

    # ---- one call -----------------------------------------------------------------------------------------------------

    def prepare(self, call: dict[str, Any], generating: bool) -> Prompt | None:
        """Encode, reduce and shorten; None if there is nothing to prune in this call."""
        kinds = [kind for kind, name in PIXELS.items() if call.get(name) is not None]
        prompt = Prompt.read(call, generating)
        if prompt is None:
            if kinds:
                raise PruneError("pruning finds the images' places in input_ids; call the model with input_ids, not inputs_embeds")
            return None
        if call.get("mm_encoder_outputs"):
            raise PruneError("encoded images (mm_encoder_outputs) have no scores to prune by; pass pixel_values")
        for kind in ("image", "video"):
            if kind not in kinds and prompt.has_new(self.token_id(kind)):
                raise PruneError(f"the prompt has placeholders for {kind}s, but {PIXELS[kind]} are not given")
        if not kinds and prompt.trace is None:
            self.kept = [] if not prompt.cached else self.kept
            return None
        if kinds:
            self.kept = []
        for kind in kinds:
            self.encode(kind, prompt)
        self.check_follows(call)
        prompt.shorten(self.pad())
        self.place(prompt)
        return prompt

    def look(self, kind: str, call: dict[str, Any], site: ImageSite) -> tuple[Any, list[Picture], list[str]]:
        """Run the model's own encoder on a call's images: its output, the images, and the names of the arguments it took."""
        if len(call[PIXELS[kind]]) == 0:
            raise PruneError(f"{PIXELS[kind]} is empty: an empty list of {kind}s; leave it out for a prompt of text alone")
        encoder = getattr(self.core, f"get_{kind}_features")
        takes = [name for name in inspect.signature(encoder).parameters if name != "kwargs" and name in call]
        with hearing(self.listen(kind, call, site)) as heard:
            output = encoder(**{name: call[name] for name in takes}, return_dict=True)
        return output, self.pictures(kind, output, call, heard, site), takes

    def encode(self, kind: str, prompt: Prompt) -> None:
        """Look at the images, reduce them, and note what is left."""
        site = self.sites[0]
        assert isinstance(site, ImageSite)
        output, pictures, takes = self.look(kind, prompt.call, site)
        fresh = prompt.find(kind, self.token_id(kind), [picture.tokens.shape[0] for picture in pictures])
        kept = reduced(site, [pictures[i] for i in fresh], self.project() if site.where == "encoder" else None)
        prompt.settle(kind, fresh, [one.anchors for one in kept])
        self.kept += kept
        if kept:
            prompt.encoded[kind] = self.output(output, kept)
        prompt.drop(takes)

    def output(self, output: Any, kept: list[Kept]) -> Any:
        """The encoder's output with what is left of each image."""
        return type(output)(pooler_output=[one.tokens for one in kept])

    def check_follows(self, call: dict[str, Any]) -> None:
        """Refuse arguments that speak about places in the full prompt and cannot be shortened."""
        if isinstance(call.get("logits_to_keep"), Tensor):
            raise PruneError("logits_to_keep as a tensor of places is for the full prompt; pass a number, counted from the end")

    def pad(self) -> int:
        """Id that fills rows of different length."""
        for config in (getattr(self.model, "generation_config", None), self.config, self.config.get_text_config()):
            found = getattr(config, "pad_token_id", None)
            if isinstance(found, int) and found >= 0:
                return found
        return 0


def pruned_forward(model: nn.Module, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """The outer model's forward on a shortened prompt."""
    family = model.__dict__.get("_sparsight")
    if family is None or id(model) in _inside.get():
        return function(model, *args, **kwargs)
    names = list(inspect.signature(function).parameters)[1:]
    call = {**dict(zip(names, args, strict=False)), **kwargs}
    with inside(model):
        prompt = family.prepare(call, generating=False)
        output = function(model, **(call if prompt is None else prompt.call))
    if prompt is not None:
        prompt.leave(getattr(output, "past_key_values", None))
    return output


def pruned_generate(
    model: nn.Module, function: Callable[..., Any], inputs: Tensor | None = None, config: Any = None, *args: Any, **kwargs: Any
) -> Any:
    """The outer model's generate on a shortened prompt; what it returns begins with the user's own."""
    family = model.__dict__.get("_sparsight")
    config = kwargs.pop("generation_config", config)
    inputs = kwargs.pop("inputs", inputs)
    if family is None or id(model) in _inside.get():
        return function(model, inputs, config, *args, **kwargs)
    if inputs is not None and inputs.dim() == 2:
        kwargs, inputs = {**kwargs, "input_ids": inputs}, None
    with inside(model), torch.no_grad():
        prompt = family.prepare(kwargs, generating=True)
        if prompt is None:
            return function(model, inputs, config, *args, **kwargs)
        prompt.limit_length(config, model.generation_config)
        decoder = getattr(getattr(family.core, "language_model", None), "_sparsight_decoder", None)
        if decoder is not None:
            decoder.prompt = prompt.call["input_ids"].shape[1]
        output = function(model, inputs, config, *args, **prompt.call)
    prompt.leave(getattr(output, "past_key_values", None) or kwargs.get("past_key_values"))
    return prompt.restore(output)


@contextmanager
def inside(model: nn.Module) -> Iterator[None]:
    """What the model calls of itself in here is not to be pruned again."""
    token = _inside.set((*_inside.get(), id(model)))
    try:
        yield
    finally:
        _inside.reset(token)


@contextmanager
def hearing(taps: dict[str, nn.Module]) -> Iterator[dict[str, Any]]:
    """Calls of the named modules while this lasts: name -> (args, kwargs, output). A PruneError if one was not called."""
    heard: dict[str, Any] = {}

    def hook(name: str, _module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        heard[name] = (args, kwargs, output)

    hooks = [module.register_forward_hook(partial(hook, name), with_kwargs=True) for name, module in taps.items()]
    try:
        yield heard
    finally:
        for one in hooks:
            one.remove()
    for name in taps:
        if name not in heard:
            raise PruneError(
                f"{type(taps[name]).__name__} ({name}) was not called where pruning listens to it; images are encoded elsewhere"
            )
