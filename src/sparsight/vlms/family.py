"""What a vision-language model has to say of itself, and how its calls run while its images are pruned.

Read with transformers 5.23. Images are encoded and reduced in front of the model that holds vision encoder and language model, the
placeholders of what left are taken out of the prompt, and that model runs as if the prompt had been that short. Its encoder outputs go in
by transformers' own argument `mm_encoder_outputs`. `generate` is shortened as a whole and gives back the user's prompt in front of its
answer. Everything that a call learns is in its `VlmRequest`.
"""

from __future__ import annotations

import inspect
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ..errors import PruneError
from ..latest import publish
from .call_state import Listener, forgetting, head_forward, listen, of_head, of_owner, under_way
from .prompt import refuse_meta
from .request import GenerateCall, VlmRequest
from .smaller import SmallerImages
from .tiles import ImageSite, ImageTokens, KeptTokens, reduced
from .wrapped_method import WrappedMethod, named, pruned_repr

PIXELS = {"image": "pixel_values", "video": "pixel_values_videos"}


@dataclass(eq=False)
class CoreForward:
    """A forward of the model that holds vision encoder and language model, its prompt shortened."""

    owner: LVLM


class LVLM(ABC):
    """A vision-language model: `core` holds encoder, projector and language model, the outer model adds the head.

    One object serves one model. `sites` holds the one site that is installed, `handles` whoever installed it.
    """

    name: ClassVar[str]
    language: ClassVar[bool] = True
    """Whether a language model reads the tokens."""
    fallback: ClassVar[bool] = False
    """Whether other families are asked first."""
    one_row: ClassVar[bool] = False
    """Whether each row of pixel_values is one image, whole (`tower_memo`)."""
    classes: ClassVar[tuple[str, ...]]
    """Names of the model classes, any of which may appear among the bases of the model's class."""

    def __init__(self, model: nn.Module) -> None:
        self.model: Any = model
        self.sites: list[ImageSite] = []
        self.handles: list[Any] = []
        self.full_length = False
        self.wrapped: list[WrappedMethod] = []
        self.hooks: dict[nn.Module, Any] = {}
        self.guarding: Any = None

    # ---- what a family says -------------------------------------------------------------------------------------------

    @classmethod
    def serves(cls, model: nn.Module) -> bool:
        """Whether the model is of this family, by the names of its classes."""
        return any(kind.__name__ in cls.classes for kind in type(model).__mro__)

    @property
    def core(self) -> Any:
        """The model that holds vision encoder and language model."""
        return self.model.model

    @property
    def language_model(self) -> Any:
        """The language model inside."""
        return self.core.language_model

    @property
    def config(self) -> Any:
        return self.model.config

    @property
    @abstractmethod
    def blocks(self) -> list[nn.Module]:
        """Blocks of the vision encoder in order."""

    @property
    @abstractmethod
    def prefix(self) -> int:
        """Number of the encoder's prefix tokens; the first is the class token if there is one."""

    @property
    def class_token(self) -> bool:
        """Whether the encoder has a class token."""
        return self.prefix > 0

    @property
    def grid(self) -> tuple[int, int]:
        """Patch grid (h, w) of an image or tile, if that is fixed."""
        raise PruneError(f"images of {type(self.model).__name__} have grids of their own; run the model first")

    @abstractmethod
    def images(self, kind: str, output: Any, call: dict[str, Any], heard: dict[str, Any], site: ImageSite) -> list[ImageTokens]:
        """The images ("image") or videos of a call with their signals, from what get_*_features gave and from what was heard."""

    @abstractmethod
    def taps(self, kind: str, call: dict[str, Any], site: ImageSite) -> dict[str, nn.Module]:
        """Modules by name whose calls `images` needs to know."""

    def views(self, kind: str, call: dict[str, Any]) -> list[list[Tensor]]:
        """Where the tokens of the images ("image") or videos of a call lie. Of each its views (the whole, its tiles together, the frames of
        a video), and of each view the grid [h, w] of places among the image's tokens, -1 where there is none. No views: it is not known."""
        return [[]]

    def project(self) -> Callable[[Tensor], Tensor] | None:
        """From encoder features to tokens of the language model; None where tokens can only leave behind the projector."""
        return None

    def capacity(self) -> int | None:
        """Tokens of every image, if that is fixed."""
        return None

    @property
    def other_sizes(self) -> bool:
        """Whether images can be made smaller before the vision encoder (`smaller`)."""
        return False

    @property
    def one_size(self) -> str:
        """Why they cannot."""
        return "it takes images or tiles of one size"

    @property
    def cuts_tiles(self) -> bool:
        """Whether what can be made smaller may be tiles of one image."""
        return False

    def smaller(self, kind: str, call: dict[str, Any], budget: Callable[[int], int]) -> SmallerImages:
        """The images ("image") or videos of a call, so much smaller that of each as many tokens are left as the budget says of those it
        has, or a few less (where there are `other_sizes`)."""
        raise NotImplementedError

    def token_id(self, kind: str) -> int | None:
        """Id of the placeholder of images or videos."""
        found: int | None = getattr(self.config, f"{kind}_token_id", None)
        return found

    def set_positions(self, request: VlmRequest) -> None:  # noqa: B027
        """Give the shortened prompt its position ids, where the language model could not count them by itself."""

    def offers(self) -> tuple[str, ...]:
        """Signals that recipes find between vision encoder and language model."""
        plain = (
            "x", "q", "k", "v", "prefix", "scale", "feats", "size", "position", "grid", "valid", "training", "token_weight",
            "shallow_q", "shallow_k", "shallow_token_weight", "depth", "text",
        )  # fmt: skip
        return plain + (("class_attn", "shallow_class_attn", "class_token") if self.class_token else ())

    @property
    def lacks(self) -> str:
        """Why attention is not among these signals; empty if it is."""
        return ""

    def check(self) -> None:
        """Raise PruneError if this model is not built as expected. Classes of other libraries may bear the same name."""
        kind = type(self.model)
        try:
            _ = self.language_model, self.blocks, self.prefix
        except AttributeError as error:
            raise PruneError(f"{kind.__name__} of {kind.__module__} is not built like {self.name}: {error}") from None

    # ---- installation -------------------------------------------------------------------------------------------------

    def add(self, sites: list[ImageSite]) -> None:
        """Install the site; refuse a second one."""
        if self.sites:
            raise PruneError("the images of this model are pruned already; remove that handle first")
        taps = self.taps("image", {}, sites[0])
        self.sites = list(sites)
        self.model._sparsight = self
        wrap: list[tuple[Any, str, Any]] = [(self.core, "forward", self.core_forward)]
        wrap += [(self.model, "extra_repr", partial(pruned_repr, self))]
        wrap += [(self.model, "forward", partial(head_forward, self))] if self.model is not self.core else []
        wrap += [(self.model, "generate", self.generate)] if hasattr(self.model, "generate") else []
        self.wrapped = [WrappedMethod(module, name, around, outermost=True).install() for module, name, around in wrap]
        self.guarding = self.language_model.register_forward_pre_hook(self.guard, with_kwargs=True)
        listen(self.hooks, taps.values())

    def take_out(self, sites: list[Any]) -> None:
        """Take the site out again and leave the model as it was."""
        if not any(site is gone for gone in sites for site in self.sites):
            return
        for method in self.wrapped:
            method.remove()
        self.unhook()
        self.guarding.remove()
        self.sites, self.wrapped, self.handles = [], [], []
        self.model.__dict__.pop("_sparsight", None)

    def unhook(self) -> None:
        for hook in self.hooks.values():
            hook.remove()
        self.hooks = {}

    # ---- one call -----------------------------------------------------------------------------------------------------

    def core_forward(self, run: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """The forward of `core` on a shortened prompt."""
        call = named(run, args, kwargs)
        full, around = of_head(self)
        if around and isinstance(around[0], GenerateCall) and around[0].makes(call):
            return self.step(run, call)
        with forgetting(self):
            request = self.prepare(call, generating=False)
            with under_way(CoreForward(self)):
                output = run(**(call if request is None else request.call))
        if request is None:
            return output
        request.leave(output)
        self.tell(request)
        return request.lengthen(output) if full or self.full_length or self.core.training else output

    def tell(self, request: VlmRequest) -> None:
        """Let the handle know; a step that goes on from a cache without new images leaves what was said of its prompt."""
        if request.kept or not request.cached:
            publish(self, request.outcome())

    def step(self, run: Callable[..., Any], call: dict[str, Any]) -> Any:
        """A forward of a `generate` whose prompt is shortened already."""
        position, ids = call.get("position_ids"), call.get("input_ids")
        if position is not None and ids is not None and call.get("attention_mask") is None and call.get("past_key_values") is None:
            call["attention_mask"] = torch.ones_like(ids)  # else gaps in position ids read as borders between packed samples
        with under_way(CoreForward(self)):
            return run(**call)

    def generate(self, run: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """The outer model's generate on a shortened prompt; what it returns begins with the user's own."""
        call = named(run, args, kwargs)
        inputs = call.get("inputs")
        if isinstance(inputs, Tensor) and inputs.dim() == 2:
            call["input_ids"] = call.pop("inputs")
        if getattr(call.get("generation_config"), "is_assistant", False):
            warnings.warn(
                "a draft of assisted decoding is given no pixels, so it runs unpruned; prune the main model", stacklevel=3
            )
            with under_way(GenerateCall(self, self.language_model, draft=True)):
                return run(**call)
        with torch.no_grad(), forgetting(self):
            request = self.prepare(call, generating=True)
            if request is not None:
                request.prepare_generate(self.model.generation_config)
            with under_way(GenerateCall(self, self.language_model, request)) as generating:
                output = run(**(call if request is None else request.call))
        generating.publish()
        if request is None:
            return output
        request.leave(output)
        self.tell(request)
        return request.restore(output)

    def guard(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Embeddings reach the language model: refuse them unless they come through `core_forward`, which has seen the images."""
        call = named(module.forward, args, kwargs)
        if call.get("inputs_embeds") is not None and not any(isinstance(call, CoreForward) for call in of_owner(self)):
            raise PruneError(
                f"{type(module).__name__} got embeddings that did not come through {type(self.core).__name__}.forward, so nobody knows "
                "the images among them; call the whole model with input_ids and pixel_values, or remove the handle for this call"
            )

    def prepare(self, call: dict[str, Any], generating: bool) -> VlmRequest | None:
        """Encode, reduce and shorten; None if there is nothing to prune in this call."""
        kinds = [kind for kind, name in PIXELS.items() if call.get(name) is not None]
        if call.get("inputs_embeds") is not None:
            raise PruneError("pruning finds the images' places in input_ids; call the model with input_ids, not inputs_embeds")
        if call.get("mm_encoder_outputs"):
            raise PruneError("encoded images (mm_encoder_outputs) have no scores to prune by; pass pixel_values")
        request = VlmRequest.read(call, generating)
        if request is None:
            if kinds:
                raise PruneError("pruning finds the images' places in input_ids; call the model with input_ids")
            return None
        refuse_meta(request.ids)
        given = {self.token_id(kind) for kind in kinds}
        for kind, name in PIXELS.items():
            if self.token_id(kind) not in given and request.has_new(self.token_id(kind)):
                raise PruneError(f"the prompt has placeholders for {kind}s, but {name} are not given")
        if not kinds and request.known is None:
            if not request.cached:
                publish(self, None)
            return None
        request.check()
        for kind in kinds:
            self.encode(kind, request)
        if kinds and self.sites[0].asked and all(one.plan.total == one.anchors.shape[0] for one in request.kept):
            warnings.warn(
                f"tokens={self.sites[0].asked} is at least what every image of this call has, so all are kept", stacklevel=2
            )
        request.shorten(self.pad())
        self.set_positions(request)
        return request

    def check_images(self, kind: str, call: dict[str, Any]) -> None:
        """Raise PruneError for images that the encoder could not take."""
        if len(call[PIXELS[kind]]) == 0:
            raise PruneError(f"{PIXELS[kind]} is empty: an empty list of {kind}s; leave it out for a prompt of text alone")

    def look(self, kind: str, call: dict[str, Any], site: ImageSite, **options: Any) -> tuple[Any, list[ImageTokens], list[str]]:
        """Run the model's own encoder on a call's images: its output, the images, and the names of the arguments it took. options: more
        arguments for it."""
        self.check_images(kind, call)
        encoder = getattr(self.core, f"get_{kind}_features")
        takes = [name for name in inspect.signature(encoder).parameters if name != "kwargs" and name in call]
        with self.hearing(self.taps(kind, call, site)) as heard:
            output = encoder(**{name: call[name] for name in takes}, **options, return_dict=True)
        return output, self.images(kind, output, call, heard, site), takes

    @contextmanager
    def hearing(self, taps: dict[str, nn.Module]) -> Iterator[dict[str, Any]]:
        """Calls of the named modules while this lasts: name -> (args, kwargs, output). A PruneError if one was not called."""
        heard: dict[str, Any] = {}
        listen(self.hooks, taps.values())
        try:
            with under_way(Listener(self, dict.fromkeys(taps.values()))) as listener:
                yield heard
        finally:
            if not self.sites:
                self.unhook()
        for name, module in taps.items():
            heard[name] = listener.heard[module]
            if heard[name] is None:
                raise PruneError(
                    f"{type(module).__name__} ({name}) was not called where pruning listens to it; images are encoded elsewhere"
                )

    def encode(self, kind: str, request: VlmRequest) -> None:
        """Look at the images, reduce them, and note what is left."""
        site = self.sites[0]
        if site.where == "image":
            self.encode_smaller(kind, request)
            return
        output, images, takes = self.look(kind, request.call, site)
        while site.once:
            site.once.pop()(images)
        images = self.joined(kind, request, images)
        fresh = request.find(kind, self.token_id(kind), [image.total for image in images])
        chosen = [images[i] for i in fresh]
        if site.words is not None:
            chosen = site.words.joined(chosen, [row for row, _ in request.found[kind]], request)
        kept = reduced(site, chosen, self.project() if site.where == "encoder" else None)
        kept = [one.of(images[i].survivors) for i, one in zip(fresh, kept, strict=True)]
        request.settle(kind, fresh, kept, site.separators)
        if kept:
            request.encoded[kind] = self.output(output, kept)
        request.drop(takes)

    def encode_smaller(self, kind: str, request: VlmRequest) -> None:
        """Make the images smaller and look at them: their tokens stand in the prompt where those of the given ones would."""
        site = self.sites[0]
        self.check_images(kind, request.call)
        smaller = self.smaller(kind, request.call, site.budget)
        fresh = request.find(kind, self.token_id(kind), [plan.total for plan in smaller.plans])
        output, images, takes = self.look(kind, {**request.call, **smaller.arguments}, site, **smaller.options)
        if [image.total for image in images] != [plan.slots for plan in smaller.plans]:
            raise PruneError(
                f"{type(self.model).__name__} makes {[image.total for image in images]} tokens of pictures that should have given "
                f"{[plan.slots for plan in smaller.plans]}; take pool, or another method"
            )
        kept = [smaller.kept(i, images[i]) for i in fresh]
        request.settle(kind, fresh, kept)
        if kept:
            request.encoded[kind] = self.output(output, kept)
        request.smaller.update(smaller.arguments)
        request.drop(takes)

    def joined(self, kind: str, request: VlmRequest, images: list[ImageTokens]) -> list[ImageTokens]:
        """What the encoder took for images of their own, joined where the prompt says that they are tiles of one."""
        return images

    def output(self, output: Any, kept: list[KeptTokens]) -> Any:
        """The encoder's output with what is left of each image."""
        return type(output)(pooler_output=[one.tokens for one in kept])

    def pad(self) -> int:
        """Id that fills rows of different length."""
        for config in (getattr(self.model, "generation_config", None), self.config, self.config.get_text_config()):
            found = getattr(config, "pad_token_id", None)
            if isinstance(found, int) and found >= 0:
                return found
        return 0
