"""Language models whose decoder layers lose visual tokens on the way: Llama, Mistral, Qwen2, Qwen3, and the text models of Qwen2-VL.

Read with transformers 5.23. Nothing is replaced: hooks before the layers exchange hidden states, mask and RoPE. All layers share
one mask and one RoPE in the model's own forward; after a site they get those of the tokens that are left. Each layer's cache has its
own length; layer 0 always sees all tokens, so that `generate` counts right. What later forwards must know travels with the cache.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import PruneError
from ..models.site import Site
from ..ops import text
from ..plan import Plan
from .decoder_forward import Turn
from .language import check_images, check_visual, find, in_heads, project, tap, watch_placeholders, wrapper
from .sequence import Rope, Row, Sequence, everything, fill_up, join, rebuild, rotate, stack

Reduce = Callable[[dict[str, Any], int, int], tuple[Tensor | None, Plan, Tensor | None]]
"""Signals of one sample, visual tokens that entered the decoder, images -> (tokens or None, plan, score)."""

Score = Callable[[int, Tensor, Tensor], Tensor]


@dataclass(eq=False)
class DecoderSite(Site):
    """A place before one decoder layer.

    reduce     the recipe for one sample.       check, rows, attention, renumber   see `ops.text.DecoderSchedule`.
    left       [B, n] after a forward: which tokens of the prompt are left after the site (clusters by their centres), -1 padding.
    """

    reduce: Reduce = field(default=lambda *_: (None, everything(0, torch.device("cpu")), None))
    check: Callable[[int, int], None] = field(default=lambda *_: None)
    rows: text.Rows = "last"
    attention: text.Attention = "before"
    renumber: bool = False
    left: Tensor | None = None


class Decoder:
    """One language model at work with sites. `visual` says which tokens are visual, see `prune`."""

    def __init__(self, model: nn.Module, visual: Any = None) -> None:
        self.top = model
        self.model: Any = find(model)
        self.outer = wrapper(model, self.model)
        self.visual = visual
        self.given: Tensor | None = None
        self.sites: list[DecoderSite] = []
        self.hooks: list[Any] = []
        self.turn: Turn | None = None
        self.labels = False
        self.prompt: int | None = None
        if visual is None and self.outer is None:
            raise PruneError(
                f"{type(model).__name__} is a language model without images, so nobody says which tokens are visual; "
                "pass visual=slice(start, stop), a bool mask [B, L] over the prompt, or the id of the placeholder token"
            )

    @property
    def depth(self) -> int:
        return len(self.model.layers)

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

    def add(self, sites: list[DecoderSite]) -> None:
        """Install sites; refuse a place that is taken."""
        taken = {site.layer for site in self.sites} & {site.layer for site in sites}
        if taken:
            raise PruneError(f"layer {min(taken)} of the language model is pruned already; remove that handle first")
        self.sites = sorted([*self.sites, *sites], key=lambda site: site.layer)
        self.patch()

    def take_out(self, sites: list[Any]) -> None:
        """Take sites out again; the last one leaves the model as it was."""
        self.sites = [site for site in self.sites if not any(site is gone for gone in sites)]
        self.patch()

    def patch(self) -> None:
        """Make the hooks match `self.sites`."""
        for hook in self.hooks:
            hook.remove()
        self.hooks, self.turn = [], None
        self.model.__dict__.pop("_sparsight_decoder", None)
        watch_placeholders(self.outer, bool(self.sites))
        for before, site in zip([None, *self.sites], self.sites, strict=False):
            site.previous = before
        self.patch_generate()
        if not self.sites:
            return
        self.model._sparsight_decoder = self
        add = self.hooks.append
        add(self.top.register_forward_pre_hook(self.see_labels, with_kwargs=True))
        if self.outer is not None:
            add(self.outer.register_forward_pre_hook(self.see_prompt, with_kwargs=True))
        add(self.model.register_forward_pre_hook(self.begin, with_kwargs=True))
        add(self.model.register_forward_hook(self.end, always_call=True))
        add(self.model.norm.register_forward_pre_hook(self.before_norm))
        add(self.model.layers[0].register_forward_pre_hook(self.see_embeddings, with_kwargs=True))
        for index in range(min(site.layer for site in self.sites), self.depth):
            here = next((site for site in self.sites if site.layer == index), None)
            add(self.model.layers[index].register_forward_pre_hook(partial(self.before_layer, here), with_kwargs=True))
        for site in self.sites:
            if site.attention == "before":
                self.listen(self.model.layers[site.layer - 1].self_attn)

    def listen(self, attention: Any) -> None:
        """Keep queries and keys of a layer whose attention is asked for."""
        for name in ("q", "k"):
            self.hooks.append(tap(attention, name).register_forward_hook(self.keep_output))

    def keep_output(self, module: nn.Module, _args: Any, output: Tensor) -> None:
        if self.turn is not None and self.turn.visual is not None:
            self.turn.heard[id(module)] = output

    def patch_generate(self) -> None:
        """Let `generate` say how long the prompt is: without a cache it repeats the prompt with what has been generated behind it,
        and the tokens kept must be those that the prompt's own end asked for."""
        mine = getattr(self.top.__dict__.get("generate"), "func", None) == self.generate
        if self.sites and not mine and hasattr(self.top, "generate"):
            top: Any = self.top
            top.generate = partial(self.generate, top.generate)
        elif not self.sites and mine:
            inner = self.top.__dict__.pop("generate").args[0]
            if getattr(inner, "__func__", None) is not type(self.top).generate:  # type: ignore[attr-defined]
                self.top.generate = inner

    def generate(self, inner: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        given = (*args[:1], *(kwargs.get(name) for name in ("inputs", "input_ids", "inputs_embeds")))
        prompt = next((tokens for tokens in given if isinstance(tokens, Tensor)), None)
        self.prompt = None if prompt is None else int(prompt.shape[1])
        if kwargs.get("past_key_values") is None and prompt is not None:
            # generate may count positions and encode images before any forward
            check_images(None if prompt.is_floating_point() else prompt, self.placeholders, kwargs)
        try:
            return inner(*args, **kwargs)
        finally:
            self.prompt = None

    # ---- one forward --------------------------------------------------------------------------------------------------

    def see_labels(self, _module: nn.Module, _args: Any, kwargs: dict[str, Any]) -> None:
        self.labels = kwargs.get("labels") is not None

    def see_prompt(self, module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Find the placeholders in what a vision-language model is called with."""
        ids = args[0] if args else kwargs.get("input_ids")
        embeds = kwargs.get("inputs_embeds")
        known = self.placeholders
        if ids is not None and ids.shape[1] == 1:
            return
        check_images(ids, known, kwargs)
        if ids is not None:
            self.given = torch.isin(ids, torch.tensor(known, device=ids.device))
        elif embeds is not None:
            vectors = module.get_input_embeddings()(torch.tensor(known, device=embeds.device))
            self.given = (embeds.unsqueeze(-2) == vectors).all(dim=-1).any(dim=-1)

    def begin(self, _module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Start of the decoder's forward. `given` [B, length], this forward's visual tokens, comes from the model around the decoder
        (or from whoever runs the decoder in its place, and sets it before each forward)."""
        self.turn = Turn.begin(self.model, args, kwargs, self.visual, self.given, self.prompt)
        if self.outer is not None and self.visual is None and self.given is None and self.turn.length > 1:
            kind = type(self.outer).__name__
            raise PruneError(f"the language model was called without {kind} around it, so nobody says which tokens are visual")
        self.given = None
        for entered, images in zip(self.turn.entered, self.turn.images, strict=True):
            for site in self.sites if entered else ():
                site.check(entered, images)

    def end(self, *_: Any) -> None:
        self.turn, self.labels = None, False

    def see_embeddings(self, _module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """The prompt as it enters the language model: text raters are chosen here."""
        turn = self.turn
        if turn is not None and turn.visual is not None and any(site.rows == "raters" for site in self.sites):
            turn.choose_raters(args[0] if args else kwargs["hidden_states"])

    def before_norm(self, _module: nn.Module, args: tuple[Any, ...]) -> tuple[Tensor, ...] | None:
        """With labels, the last hidden states go back to the labels' length."""
        if self.turn is None or self.turn.now is None or not self.turn.pruned or not self.labels:
            return None
        return (fill_up(args[0], self.turn.now, self.turn.length), *args[1:])

    def before_layer(self, site: DecoderSite | None, _module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        turn = self.turn
        if turn is None:
            return None
        hidden = args[0] if args else kwargs["hidden_states"]
        if site is not None:
            hidden = self.visit(site, turn, hidden, kwargs)
        now = turn.now
        if now is None or now.own:
            return None
        # position ids serve to detect packed sequences only, and gaps in them would look like that
        changed = {"attention_mask": now.attention, "position_embeddings": now.rope, "position_ids": None}
        return (hidden, *args[1:]), {**{k: v for k, v in kwargs.items() if k != "hidden_states"}, **changed}

    def visit(self, site: DecoderSite, turn: Turn, hidden: Tensor, kwargs: dict[str, Any]) -> Tensor:
        """One site: drop visual tokens of this forward, and let masks and positions follow what earlier forwards dropped."""
        trail = turn.trail(kwargs.get("past_key_values"), site.layer)
        if turn.visual is None and trail is None:
            return hidden
        arriving = turn.now or turn.start_sequence(hidden, kwargs)
        before = arriving
        if trail is not None and site.renumber:
            before = turn.shift(arriving, trail, self.model.rotary_emb, hidden)
        after, dropped = before, [0]
        if turn.visual is not None:
            score = self.scoring(site, turn, before, arriving.rope, hidden)
            rows, plans = self.sample_by_sample(site, turn, before, hidden, score)
            dropped = [plan.total - plan.slots for plan in plans]
            if any(dropped):
                hidden, after = stack(rows, turn.right, before, site.renumber)
                turn.pruned = True
            site.plan, site.left = join(plans), after.index.where(after.index < 0, after.index + turn.start)
        turn.now = turn.settle(site.layer, after, trail, dropped, hidden, site.renumber, self.model.config)
        return hidden

    def sample_by_sample(
        self, site: DecoderSite, turn: Turn, before: Sequence, hidden: Tensor, attention: Score
    ) -> tuple[list[Row], list[Plan]]:
        """Score and reduce every sample by itself, so that a batch cannot matter."""
        assert before.visual is not None
        rows, plans, scores = [], [], []
        for sample, visual in enumerate(before.visual):
            real, places = turn.real(before, sample), visual.nonzero().squeeze(1)
            plan, tokens, score = everything(places.shape[0], hidden.device), None, None
            if places.shape[0]:
                signals = {"x": hidden[sample : sample + 1, places], "text_attn": attention(sample, real, places)}
                tokens, plan, score = site.reduce(signals, turn.entered[sample], turn.images[sample])
            rows.append(rebuild(hidden[sample], real, places, plan, None if tokens is None else tokens[0]))
            plans.append(plan)
            scores.append(score)
        site.score = scores[0] if len(scores) == 1 else None
        return rows, plans

    def scoring(self, site: DecoderSite, turn: Turn, before: Sequence, rope_before: Rope, hidden: Tensor) -> Score:
        """Attention rows of single samples: (sample, its real places, its visual places) -> [1, T, N], softmax over all keys."""
        ahead = site.attention == "at"
        layer = self.model.layers[site.layer if ahead else site.layer - 1]
        attention, rope = layer.self_attn, before.rope if ahead else rope_before
        earlier = site.layer if ahead else getattr(site.previous, "layer", 0)
        trail = turn.trail(turn.cache, earlier)
        with torch.no_grad():
            normed = layer.input_layernorm(hidden) if ahead else hidden
            k = project(attention, "k", normed) if ahead else turn.hear(tap(attention, "k"))
            keys = turn.past_keys(attention.layer_idx, rotate(in_heads(attention, k), rope), done=not ahead)

        @torch.no_grad()
        def score(sample: int, real: Tensor, places: Tensor) -> Tensor:
            asked = turn.asked(site.rows, before, sample, real)
            only = slice(sample, sample + 1)
            q = project(attention, "q", normed[only, asked]) if ahead else turn.hear(tap(attention, "q"))[only, asked]
            cos, sin = (part.expand(hidden.shape[0], -1, -1)[only, asked] for part in rope)
            seen, past = turn.seen(trail, before, sample, asked, keys.shape[2])
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
