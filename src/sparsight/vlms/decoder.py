"""Language models whose decoder layers lose visual tokens on the way: any that `language.check_decoder` lets pass.

Read with transformers 5.23. Nothing is replaced: hooks before the layers exchange hidden states, and whatever a layer is given that has an
entry for every token (RoPE, types, per-layer inputs) follows the tokens that are left; masks are made anew by transformers' own functions
(`masks`). Queries and keys are heard through the attention interface. Each layer's cache has its own length; the first one always sees all
tokens, so that `generate` counts right. What later forwards must know travels with the cache, what a forward learns is in its
`DecoderForward`. What a decoder does that does not fit this is refused in its first forward.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import PruneError
from ..latest import publish
from ..ops import text
from ..ops.schedule import show
from ..plan import Plan
from .attention_listener import Attended, AttentionListener
from .call_state import calls, forgetting, head_forward, of_head, of_owner, under_way
from .decoder_forward import DecoderForward, PromptScope, SiteCache, SiteOutcome
from .language import (
    TRY,
    attentions,
    check_checkpointing,
    check_images,
    check_place,
    check_visual,
    depth_of,
    final_norm,
    find,
    keyless,
    own_comparison,
    parameters,
    wrapper,
)  # fmt: skip
from .layer_input import LayerInput, RotaryCall
from .masks import kind_of
from .prompt import refuse_meta
from .request import GenerateCall
from .sequence import Row, Sequence, add_features, everything, join, lengthened, rebuild, stack
from .wrapped_method import WrappedMethod, named, pruned_repr

Reduce = Callable[[dict[str, Any], int, int], tuple[Tensor | None, Plan, Tensor | None]]
"""Signals of one sample, visual tokens that entered the decoder, images -> (tokens or None, plan, score)."""

Score = Callable[[int, Tensor, Tensor], Tensor]
Asked = Callable[[int, Tensor, Tensor], dict[str, Tensor]]
"""Of a sample, its real places and its visual places: attention rows, or all signals that a site asks for besides x."""


@dataclass(eq=False)
class DecoderSite:
    """A place before one decoder layer.

    reduce     the recipe for one sample.       rows, attention, renumber   see `ops.text.DecoderSchedule`.
    check      raises a PruneError for a prompt with too few visual tokens, where the user asks for that.
    asked      visual tokens per image that the recipe asks for; 0 if it does not say.
    """

    layer: int
    needs: tuple[str, ...]
    reduce: Reduce
    check: Callable[[int, int], None] | None = None
    rows: text.Rows = "last"
    attention: text.Attention = "before"
    renumber: bool = False
    asked: int = 0
    where: str = "decoder"
    learned: None = None


class Decoder:
    """One language model with sites. `visual` says which tokens are visual, see `prune`."""

    def __init__(self, model: nn.Module, visual: Any = None) -> None:
        self.top: Any = model
        self.model: Any = find(model)
        self.outer: Any = wrapper(model, self.model)
        self.visual = visual
        self.sites: list[DecoderSite] = []
        self.handles: list[Any] = []
        self.full_length = False
        self.keyless = keyless(self.model)
        self.hooks: list[Any] = []
        self.listener: AttentionListener | None = None
        self.wrapped: list[WrappedMethod] = []
        if visual is None and self.outer is None:
            raise PruneError(
                f"{type(model).__name__} is a language model without images, so nobody says which tokens are visual; "
                "pass visual=slice(start, stop), a bool mask [B, L] over the prompt, or the id of the placeholder token"
            )

    @property
    def depth(self) -> int:
        """Number of layers that run."""
        return depth_of(self.model)

    @property
    def gridded(self) -> bool:
        """Whether position ids have axes (M-RoPE)."""
        rope = getattr(self.model.config, "rope_parameters", None) or {}
        return any("mrope_section" in one for one in (rope, *rope.values()) if isinstance(one, dict))

    @property
    def placeholders(self) -> list[int]:
        """Ids of the placeholders that the model around the decoder knows."""
        config = getattr(self.outer, "config", None)
        found = (getattr(config, name, None) for name in ("image_token_id", "video_token_id"))
        return [token for token in found if token is not None]

    # ---- installation -------------------------------------------------------------------------------------------------

    def add(self, sites: list[DecoderSite]) -> None:
        """Install sites; refuse a place that is taken."""
        taken = {site.layer for site in self.sites} & {site.layer for site in sites}
        if taken:
            raise PruneError(f"layer {min(taken)} of the language model is pruned already; remove that handle first")
        for site in sites:
            check_place(self.model, site.layer, self.scored(site))
        self.sites = sorted([*self.sites, *sites], key=lambda site: site.layer)
        self.install()

    def take_out(self, sites: list[Any]) -> None:
        """Take sites out again; the last one leaves the model as it was."""
        self.sites = [site for site in self.sites if not any(site is gone for gone in sites)]
        self.handles = [handle for handle in self.handles if any(site in self.sites for site in handle.sites)]
        self.install()

    def install(self) -> None:
        """Make hooks and wrapped methods match `self.sites`."""
        for hook in self.hooks:
            hook.remove()
        self.hooks = []
        if self.listener is not None:
            self.listener.remove()
            self.listener = None
        if not self.sites:
            for method in self.wrapped:
                method.remove()
            self.wrapped = []
            self.model.__dict__.pop("_sparsight_decoder", None)
            return
        if not self.wrapped:
            self.wrap()
        self.listener = AttentionListener(self.listened()).install()
        add = self.hooks.append
        add(final_norm(self.model).register_forward_pre_hook(self.before_norm))
        for part in self.model.children():
            if "position_ids" in parameters(type(part)):
                add(part.register_forward_hook(self.hear_rotary, with_kwargs=True))
        add(self.model.layers[0].register_forward_pre_hook(self.see_embeddings, with_kwargs=True))
        first = min(site.layer for site in self.sites)
        for index in range(first, self.depth):
            here = next((site for site in self.sites if site.layer == index), None)
            add(self.model.layers[index].register_forward_pre_hook(partial(self.before_layer, here, index), with_kwargs=True))
            add(self.model.layers[index].register_forward_hook(self.after_layer))

    def wrap(self) -> None:
        """Put something around the methods in which calls begin."""
        self.model._sparsight_decoder = self
        wrap: list[tuple[Any, str, Any]] = [(self.model, "forward", self.forward)]
        wrap += [(self.model, "extra_repr", partial(pruned_repr, self))]
        wrap += [(self.outer, "forward", self.outer_forward)] if self.outer is not None else []
        wrap += [(self.outer, "get_placeholder_mask", own_comparison)] if hasattr(self.outer, "get_placeholder_mask") else []
        wrap += [(self.model, "_deepstack_process", self.deepstack)] if hasattr(self.model, "_deepstack_process") else []
        wrap += [(self.top, "forward", partial(head_forward, self))] if self.top is not self.model else []
        wrap += [(self.top, "generate", self.generate)] if hasattr(self.top, "generate") else []
        self.wrapped = [WrappedMethod(*one).install() for one in wrap]

    def scored(self, site: DecoderSite) -> int:
        """The layer whose attention scores at a site."""
        return site.layer if site.attention == "at" else site.layer - 1

    def attention(self, site: DecoderSite) -> nn.Module:
        """The attention module of that layer."""
        module: nn.Module = attentions(self.model.layers[self.scored(site)])[0]
        return module

    def listened(self) -> list[nn.Module]:
        """Attention modules whose queries and keys are asked for."""
        return [self.attention(site) for site in self.sites if {"text_attn", "k", "text_k"} & set(site.needs)]

    # ---- one call -----------------------------------------------------------------------------------------------------

    def generate(self, run: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """`generate`, which says how long the prompt is: without a cache it repeats the prompt with what has been generated behind it,
        and the tokens kept must be those that the prompt's own end asked for."""
        given = (*args[:1], *(kwargs.get(name) for name in ("inputs", "input_ids", "inputs_embeds")))
        prompt = next((tokens for tokens in given if isinstance(tokens, Tensor)), None)
        ids = None if prompt is None or prompt.is_floating_point() else prompt
        with forgetting(self):
            draft = bool(getattr(kwargs.get("generation_config"), "is_assistant", False))
            if kwargs.get("past_key_values") is None and prompt is not None and not draft:
                # generate may count positions and encode images before any forward
                check_images(ids, self.placeholders, kwargs)
            call = GenerateCall(self, self.model, prompt=None if prompt is None else int(prompt.shape[1]), ids=ids, draft=draft)
            with under_way(call):
                output = run(*args, **kwargs)
        call.publish()
        return output

    def outer_forward(self, run: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """The forward of the vision-language model right around the decoder: find the placeholders in what it is called with."""
        call = named(run, args, kwargs)
        ids, embeds, known = call.get("input_ids"), call.get("inputs_embeds"), self.placeholders
        visual = None
        refuse_meta(ids if ids is not None else embeds)
        if ids is None or ids.shape[1] > 1:
            generating = self.generating()
            if generating is None or not generating.draft:
                check_images(ids, known, call)
            if ids is not None:
                visual = torch.isin(ids, torch.tensor(known, device=ids.device))
            elif embeds is not None:
                vectors = self.outer.get_input_embeddings()(torch.tensor(known, device=embeds.device))
                visual = (embeds.unsqueeze(-2) == vectors).all(dim=-1).any(dim=-1)
                if self.visual is None and embeds.shape[1] > 1 and not bool(visual.any()):
                    raise PruneError(
                        f"{type(self.outer).__name__} got inputs_embeds without placeholders: nobody knows whether images are merged in, and "
                        "where; call it with input_ids and pixel_values, or prune with visual= (a mask or slice of the visual tokens)"
                    )
        with under_way(PromptScope(self, visual, ids, of_head(self)[0], call.get("attention_mask"))):
            return run(*args, **kwargs)

    def forward(self, run: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """The decoder's own forward."""
        scope = next((one for one in of_owner(self)[:1] if isinstance(one, PromptScope)), None)
        generating = self.generating()
        full = scope.full if scope is not None else of_head(self)[0]
        full = full or ((self.full_length or self.model.training) and generating is None)
        call = named(run, args, kwargs)
        with forgetting(self):
            forward = self.begin(call, scope, generating, full)
            with under_way(forward):
                output = run(**call)
        asked = max(site.asked for site in self.sites)
        if asked and forward.outcomes and not forward.pruned:
            warnings.warn(f"tokens={asked} per image is at least what reaches the language model, so all are kept", stacklevel=2)
        if forward.outcomes or not forward.start:  # a step that goes on from a cache leaves what was said of its prompt
            result = forward.outcome() if forward.outcomes else None
            if generating is None:
                publish(self, result)
            elif generating.results.get(self) is None:
                generating.results[self] = result
        return output

    def generating(self) -> GenerateCall | None:
        """The `generate` that makes the forward which begins now; None for a forward inside another one (a hook that runs the model)."""
        for call in calls():
            if isinstance(call, GenerateCall) and call.language_model is self.model:
                return call
            if isinstance(call, DecoderForward) and call.owner is self:
                return None
        return None

    def begin(
        self, call: dict[str, Any], scope: PromptScope | None, generating: GenerateCall | None, full_length: bool
    ) -> DecoderForward:
        """The state of a forward, everything checked, and what its sites have to hear."""
        forward = DecoderForward.begin(self, call, self.visual, scope, generating, full_length)
        if self.outer is not None and self.visual is None and scope is None and forward.length > 1:
            kind = type(self.outer).__name__
            raise PruneError(f"the language model was called without {kind} around it, so nobody says which tokens are visual")
        if forward.visual is not None:
            check_checkpointing(self.model)
        for entered, images in zip(forward.entered, forward.images, strict=True):
            for site in self.sites if entered else ():
                if site.check is not None:
                    site.check(entered, images)
        if forward.visual is not None or getattr(forward.cache, "_sparsight", None):
            forward.last = self.last_alone(call, forward)
        if forward.visual is not None:
            forward.heard = dict.fromkeys(self.listened())
            position = call.get("position_ids")
            if any(site.renumber for site in self.sites) and isinstance(position, Tensor) and position.dim() > 2:
                raise PruneError("position ids with axes cannot be renumbered; use positions=original")
        return forward

    def last_alone(self, call: dict[str, Any], forward: DecoderForward) -> bool:
        """Whether layers without keys of their own need the last token alone. The decoder would choose it among those of the full prompt, so it
        is told that all are asked for."""
        if self.keyless is None or not isinstance(call.get("logits_to_keep"), int):
            return False
        last = call["logits_to_keep"] == 1 and not forward.full_length
        call["logits_to_keep"] = 0
        sliced: bool = self.model.config._attn_implementation in ("sdpa", "eager")
        return last and sliced and not call.get("output_hidden_states") and not call.get("output_attentions")

    # ---- hooks inside one forward -------------------------------------------------------------------------------------

    def running(self) -> DecoderForward | None:
        """The forward under way in this thread or task; layers may also be run from outside of one."""
        return next((one for one in of_owner(self) if isinstance(one, DecoderForward)), None)

    def see_embeddings(self, _module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """The prompt as it enters the language model: text raters are chosen here."""
        forward = self.running()
        if forward is not None and forward.visual is not None and any(site.rows == "raters" for site in self.sites):
            forward.choose_raters(args[0] if args else kwargs["hidden_states"])

    def before_norm(self, _module: nn.Module, args: tuple[Any, ...]) -> tuple[Tensor, ...] | None:
        """The last hidden states go back to the prompt's length where somebody looks at them by places of the full prompt."""
        forward = self.running()
        if forward is None or forward.now is None or not forward.pruned or not forward.full_length:
            return None
        now = forward.now
        return (lengthened(args[0], now.index, now.visual, forward.length), *args[1:])

    def hear_rotary(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        """RoPE is made: of which position ids."""
        forward = self.running()
        if forward is not None:
            forward.rotary.append(RotaryCall(module, args, kwargs, output))

    def before_layer(
        self, site: DecoderSite | None, index: int, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        """A layer begins: run its site, and give it mask and positions of the tokens that are left."""
        forward = self.running()
        if forward is None:
            return None
        given = LayerInput.read(module, index, args, kwargs)
        self.check_arrival(forward, given)
        if site is not None:
            given = self.visit(site, forward, given)
        now = forward.now
        if index == self.keyless and forward.last:
            now = now or forward.start_sequence(given.hidden)
            forward.now, forward.cut = now, True
            given = replace(given, hidden=given.hidden[:, -1:])
        if now is None or (now.own and not forward.cut):
            return None
        return given.shortened(forward, now).given()

    def after_layer(self, _module: nn.Module, _args: tuple[Any, ...], output: Any) -> None:
        """A layer has ended: what the next one is given has to be this."""
        forward = self.running()
        if forward is not None:
            forward.came = output[0] if isinstance(output, tuple) else output

    def check_arrival(self, forward: DecoderForward, given: LayerInput) -> None:
        """Raise PruneError where something comes between two layers that may know tokens by their places in the full prompt. Hooks of others
        on the layer before may change its output."""
        before = self.model.layers[given.number - 1]
        if (
            forward.pruned
            and given.hidden is not forward.came
            and not same(given.hidden, forward.came)
            and len(before._forward_hooks) == 1
        ):
            raise PruneError(
                f"{type(self.model).__name__} changes the hidden states between layers {given.number - 1} and {given.number}, where tokens have "
                f"left, and pruning does not know by which places; {TRY}"
            )

    def deepstack(self, run: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Qwen3-VL adds features of the image to its tokens behind the first layers: to those that are left."""
        forward, call = self.running(), named(run, args, kwargs)
        if forward is None or forward.now is None or not forward.pruned:
            return run(*args, **kwargs)
        hidden, marked, features = call["hidden_states"], call["visual_pos_masks"], call["visual_embeds"]
        forward.came = add_features(hidden, forward.now.index, marked.to(hidden.device), features.to(hidden))
        return forward.came

    def visit(self, site: DecoderSite, forward: DecoderForward, given: LayerInput) -> LayerInput:
        """One site: drop visual tokens of this forward, and let masks and positions follow what earlier forwards dropped."""
        left = forward.left_by(given.cache, site.layer)
        if forward.visual is None and left is None:
            return given
        before, hidden = forward.now or forward.start_sequence(given.hidden), given.hidden
        if left is not None and site.renumber:
            before = forward.moved(before, left)
        after, dropped = before, [0]
        if forward.visual is not None:
            asked = self.asked(site, forward, before, left, given)
            rows, plans, scores = self.sample_by_sample(site, forward, before, hidden, asked)
            dropped = [plan.total - plan.slots for plan in plans]
            if any(dropped):
                hidden, after = stack(rows, forward.right, before, site.renumber)
                forward.pruned = True
            tokens = after.index.where(after.index < 0, after.index + forward.start)
            forward.outcomes[site] = SiteOutcome(join(plans), scores[0] if len(scores) == 1 else None, tokens)
        forward.now = forward.settle(site.layer, after, left, dropped, site.renumber)
        return replace(given, hidden=hidden)

    def sample_by_sample(
        self, site: DecoderSite, forward: DecoderForward, before: Sequence, hidden: Tensor, asked: Asked
    ) -> tuple[list[Row], list[Plan], list[Tensor | None]]:
        """Score and reduce every sample by itself, so that a batch cannot matter."""
        assert before.visual is not None
        rows, plans, scores = [], [], []
        for sample, visual in enumerate(before.visual):
            real, places = forward.real(before, sample), visual.nonzero().squeeze(1)
            plan, tokens, score = everything(places.shape[0], hidden.device), None, None
            if places.shape[0]:
                signals = {"x": hidden[sample : sample + 1, places], **asked(sample, real, places)}
                tokens, plan, score = site.reduce(signals, forward.entered[sample], forward.images[sample])
            rows.append(rebuild(hidden[sample], real, places, plan, None if tokens is None else tokens[0]))
            plans.append(plan)
            scores.append(score)
        return rows, plans, scores

    def asked(
        self, site: DecoderSite, forward: DecoderForward, before: Sequence, left: SiteCache | None, given: LayerInput
    ) -> Asked:
        """The signals of single samples that the site asks for besides x."""
        heard, states, needs = None, None, set(site.needs)
        with torch.no_grad():
            if {"text_attn", "k", "text_k"} & needs:
                heard = self.heard(site, forward, before, left, given)
            if {"feats", "text"} & needs:
                states = final_norm(self.model).forward(given.hidden)  # without the hook that makes room for losses

        def of_sample(sample: int, real: Tensor, places: Tensor) -> dict[str, Tensor]:
            only, text = slice(sample, sample + 1), forward.behind(before, sample, real, places)
            found = {}
            if heard is not None and "text_attn" in needs:
                found["text_attn"] = rows_of(heard, sample, forward.asked(site.rows, before, sample, real), places)
                if kind_of(self.model.config, self.scored(site)) != "full_attention":
                    self.warn_of_window(site, int((found["text_attn"] == 0).all(dim=1).sum()))
            if heard is not None and {"k", "text_k"} & needs:
                keys = heard.k[only, :, -before.index.shape[1] :]
                found.update(k=keys[:, :, places], text_k=keys[:, :, text])
            if states is not None:
                found.update(feats=states[only, places], text=states[only, text])
            return found

        return of_sample

    def warn_of_window(self, site: DecoderSite, unseen: int) -> None:
        """Where visual tokens lie outside the window of the layer that scores, say so, and before which layers tokens had better leave."""
        if not unseen:
            return
        scored, config = self.scored(site), self.model.config
        ahead = scored == site.layer
        full = [layer + (not ahead) for layer in range(self.depth) if kind_of(config, layer) == "full_attention"]
        places = show(tuple(layer for layer in full if 0 < layer < self.depth))
        warnings.warn(
            f"layer {scored} attends within a window, from which {unseen} visual tokens cannot be seen: they score 0 and leave first; "
            + (f"layers that see all score before layers {places}" if places else "no layer sees all"),
            stacklevel=2,
        )

    def heard(
        self, site: DecoderSite, forward: DecoderForward, before: Sequence, left: SiteCache | None, given: LayerInput
    ) -> Attended:
        """The attention that scores at a site: of the layer before, or of the one at it, which runs ahead for that."""
        module = self.attention(site)
        if site.attention == "at":
            if left is not None or not before.own:
                given = given.shortened(forward, replace(before, keys=forward.keys_after(left, before), own=False))
            given.peek(forward, module)
        one = forward.hear(module, before.index.shape[1])
        forward.heard[module] = None
        if one.others:
            raise PruneError(
                f"{type(module).__name__} changes its attention by {', '.join(one.others)}, which scores here do not know; {TRY}"
            )
        return one


@torch.no_grad()
def rows_of(heard: Attended, sample: int, queries: Tensor, places: Tensor) -> Tensor:
    """Attention rows of a sample's queries [T] to its tokens at `places` [N], softmax over all keys: [1, T, N]."""
    only, past = slice(sample, sample + 1), heard.k.shape[2] - heard.q.shape[2]
    seen = heard.seen(sample, queries).unsqueeze(0)
    rows = text.row_attention(heard.q[only, :, queries], heard.k[only], heard.scale, seen, heard.softcap)
    return rows[..., past + places]


def same(one: Tensor, other: Tensor | None) -> bool:
    """Whether two tensors are the same numbers in memory (a slice of all)."""
    return other is not None and one.shape == other.shape and one.stride() == other.stride() and one.data_ptr() == other.data_ptr()


def decoder_of(model: nn.Module, visual: Any = None) -> Decoder:
    """The Decoder at work in the model, or a new one."""
    if not isinstance(model, nn.Module):
        raise PruneError(f"model must be a torch.nn.Module, got {type(model).__name__}")
    check_visual(visual)
    working = getattr(find(model), "_sparsight_decoder", None)
    if not isinstance(working, Decoder):
        return Decoder(model, visual)
    if visual is not None:
        working.visual = visual
    return working
