"""Language models whose decoder layers lose visual tokens on the way: Llama, Mistral, Qwen2, Qwen3, and the text models of Qwen-VL.

Read with transformers 5.23. Nothing is replaced: hooks before the layers exchange hidden states, mask and RoPE. All layers share
one mask and one RoPE in the model's own forward; after a site they get those of the tokens that are left. Each layer's cache has its
own length; layer 0 always sees all tokens, so that `generate` counts right. What later forwards must know travels with the cache, what a
forward learns is in its `DecoderForward`.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import PruneError
from ..latest import publish
from ..ops import text
from ..plan import Plan
from .call_state import calls, forgetting, head_forward, listen, of_head, of_owner, under_way
from .decoder_forward import DecoderForward, PromptScope, SiteOutcome
from .language import check_checkpointing, check_images, check_visual, find, in_heads, own_comparison, project, tap, wrapper
from .prompt import refuse_meta
from .request import GenerateCall
from .sequence import Rope, Row, Sequence, add_features, everything, join, lengthened, rebuild, rotate, stack
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
    previous   the site before this one.
    """

    layer: int
    needs: tuple[str, ...]
    reduce: Reduce
    check: Callable[[int, int], None] | None = None
    rows: text.Rows = "last"
    attention: text.Attention = "before"
    renumber: bool = False
    asked: int = 0
    previous: DecoderSite | None = None
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
        self.hooks: list[Any] = []
        self.taps: dict[nn.Module, Any] = {}
        self.wrapped: list[WrappedMethod] = []
        if visual is None and self.outer is None:
            raise PruneError(
                f"{type(model).__name__} is a language model without images, so nobody says which tokens are visual; "
                "pass visual=slice(start, stop), a bool mask [B, L] over the prompt, or the id of the placeholder token"
            )

    @property
    def depth(self) -> int:
        """Number of layers that run."""
        return min(len(self.model.layers), int(self.model.config.num_hidden_layers))

    @property
    def gridded(self) -> bool:
        """Whether position ids have axes (M-RoPE)."""
        return "mrope_section" in (getattr(self.model.config, "rope_parameters", None) or {})

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
        self.sites = sorted([*self.sites, *sites], key=lambda site: site.layer)
        self.install()

    def take_out(self, sites: list[Any]) -> None:
        """Take sites out again; the last one leaves the model as it was."""
        self.sites = [site for site in self.sites if not any(site is gone for gone in sites)]
        self.handles = [handle for handle in self.handles if any(site in self.sites for site in handle.sites)]
        self.install()

    def install(self) -> None:
        """Make hooks and wrapped methods match `self.sites`."""
        for hook in (*self.hooks, *self.taps.values()):
            hook.remove()
        self.hooks, self.taps = [], {}
        for before, site in zip([None, *self.sites], self.sites, strict=False):
            site.previous = before
        if not self.sites:
            for method in self.wrapped:
                method.remove()
            self.wrapped = []
            self.model.__dict__.pop("_sparsight_decoder", None)
            return
        if not self.wrapped:
            self.wrap()
        add = self.hooks.append
        add(self.model.norm.register_forward_pre_hook(self.before_norm))
        add(self.model.layers[0].register_forward_pre_hook(self.see_embeddings, with_kwargs=True))
        for index in range(min(site.layer for site in self.sites), self.depth):
            here = next((site for site in self.sites if site.layer == index), None)
            add(self.model.layers[index].register_forward_pre_hook(partial(self.before_layer, here), with_kwargs=True))
        listen(self.taps, self.tapped())

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

    def tapped(self) -> list[nn.Module]:
        """Modules whose outputs are queries and keys of layers whose attention is asked for, as they are now: LoRA replaces them."""
        before = [self.model.layers[site.layer - 1].self_attn for site in self.sites if site.attention == "before"]
        return [tap(attention, name) for attention in before for name in ("q", "k")]

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
        with under_way(PromptScope(self, visual, ids, of_head(self)[0])):
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
        if forward.visual is not None:
            forward.heard = dict.fromkeys(self.tapped())
            listen(self.taps, forward.heard)
        return forward

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

    def before_layer(self, site: DecoderSite | None, _module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """A layer begins: run its site, and give it mask and positions of the tokens that are left."""
        forward = self.running()
        if forward is None:
            return None
        hidden = args[0] if args else kwargs["hidden_states"]
        if site is not None:
            hidden = self.visit(site, forward, hidden, kwargs)
        now = forward.now
        if now is None or now.own:
            return None
        # position ids serve to detect packed sequences only, and gaps in them would look like that
        changed = {"attention_mask": now.attention, "position_embeddings": now.rope, "position_ids": None}
        return (hidden, *args[1:]), {**{k: v for k, v in kwargs.items() if k != "hidden_states"}, **changed}

    def deepstack(self, run: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Qwen3-VL adds features of the image to its tokens behind the first layers: to those that are left."""
        forward, call = self.running(), named(run, args, kwargs)
        if forward is None or forward.now is None or not forward.pruned:
            return run(*args, **kwargs)
        hidden, marked, features = call["hidden_states"], call["visual_pos_masks"], call["visual_embeds"]
        return add_features(hidden, forward.now.index, marked.to(hidden.device), features.to(hidden))

    def visit(self, site: DecoderSite, forward: DecoderForward, hidden: Tensor, kwargs: dict[str, Any]) -> Tensor:
        """One site: drop visual tokens of this forward, and let masks and positions follow what earlier forwards dropped."""
        left = forward.left_by(kwargs.get("past_key_values"), site.layer)
        if forward.visual is None and left is None:
            return hidden
        arriving = forward.now or forward.start_sequence(hidden, kwargs)
        before = arriving
        if left is not None and site.renumber:
            before = forward.shift(arriving, left, self.model.rotary_emb, hidden)
        after, dropped = before, [0]
        if forward.visual is not None:
            asked = self.asked(site, forward, before, arriving.rope, hidden)
            rows, plans, scores = self.sample_by_sample(site, forward, before, hidden, asked)
            dropped = [plan.total - plan.slots for plan in plans]
            if any(dropped):
                hidden, after = stack(rows, forward.right, before, site.renumber)
                forward.pruned = True
            tokens = after.index.where(after.index < 0, after.index + forward.start)
            forward.outcomes[site] = SiteOutcome(join(plans), scores[0] if len(scores) == 1 else None, tokens)
        forward.now = forward.settle(site.layer, after, left, dropped, hidden, site.renumber, self.model.config)
        return hidden

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

    def asked(self, site: DecoderSite, forward: DecoderForward, before: Sequence, rope_before: Rope, hidden: Tensor) -> Asked:
        """The signals of single samples that the site asks for besides x."""
        score = self.scoring(site, forward, before, rope_before, hidden) if "text_attn" in site.needs else None
        keys = self.keys(site, forward, before, rope_before, hidden) if {"k", "text_k"} & set(site.needs) else None
        states = None
        if {"feats", "text"} & set(site.needs):
            with torch.no_grad():
                states = self.model.norm.forward(hidden)  # without the hook that makes room for losses

        def of_sample(sample: int, real: Tensor, places: Tensor) -> dict[str, Tensor]:
            only, text = slice(sample, sample + 1), forward.behind(before, sample, real, places)
            given = {} if score is None else {"text_attn": score(sample, real, places)}
            if keys is not None:
                given.update(k=keys[only, :, places], text_k=keys[only, :, text])
            if states is not None:
                given.update(feats=states[only, places], text=states[only, text])
            return given

        return of_sample

    @torch.no_grad()
    def keys(self, site: DecoderSite, forward: DecoderForward, before: Sequence, rope_before: Rope, hidden: Tensor) -> Tensor:
        """Keys [B, H, n, D] of this forward's tokens, after RoPE, in the layer before the site or in the one at it."""
        ahead = site.attention == "at"
        layer = self.model.layers[site.layer if ahead else site.layer - 1]
        attention, rope = layer.self_attn, before.rope if ahead else rope_before
        k = project(attention, "k", layer.input_layernorm(hidden)) if ahead else forward.hear(tap(attention, "k"))
        return rotate(in_heads(attention, k), rope)

    def scoring(self, site: DecoderSite, forward: DecoderForward, before: Sequence, rope_before: Rope, hidden: Tensor) -> Score:
        """Attention rows of single samples: (sample, its real places, its visual places) -> [1, T, N], softmax over all keys."""
        ahead = site.attention == "at"
        layer = self.model.layers[site.layer if ahead else site.layer - 1]
        attention, rope = layer.self_attn, before.rope if ahead else rope_before
        earlier = site.layer if ahead else getattr(site.previous, "layer", 0)
        left = forward.left_by(forward.cache, earlier)
        with torch.no_grad():
            normed = layer.input_layernorm(hidden) if ahead else hidden
            new = self.keys(site, forward, before, rope_before, hidden)
            keys = forward.past_keys(attention.layer_idx, new, done=not ahead)

        @torch.no_grad()
        def score(sample: int, real: Tensor, places: Tensor) -> Tensor:
            asked = forward.asked(site.rows, before, sample, real)
            only = slice(sample, sample + 1)
            q = project(attention, "q", normed[only, asked]) if ahead else forward.hear(tap(attention, "q"))[only, asked]
            cos, sin = (part.expand(hidden.shape[0], -1, -1)[only, asked] for part in rope)
            seen, past = forward.seen(left, before, sample, asked, keys.shape[2])
            rows = text.row_attention(rotate(in_heads(attention, q), (cos, sin)), keys[only], attention.scaling, seen)
            return rows[..., past + places]

        return score


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
