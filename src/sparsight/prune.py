"""prune(model, recipe) -> Handle: the only place where methods meet models."""

from __future__ import annotations

import importlib
import pkgutil
from dataclasses import dataclass
from functools import partial
from types import TracebackType
from typing import Any

from torch import Tensor, nn

from . import registry
from .apply import before_attention, needs, settle
from .dense import restore
from .errors import PruneError
from .learned import Given, build, ratio_loss
from .models._packed import held
from .models.family import Family
from .models.site import Outcome, Site
from .models.unsupported import reason
from .models.unwrap import inside
from .ops.schedule import BUDGET, as_tuple
from .plan import Plan
from .recipe import IN_BLOCKS, Recipe, Weights
from .vlms.family import LVLM as LVLM

TRY_INSTEAD = "col_ln, shannon, renyi, similarity, tome or random"


@dataclass(eq=False, repr=False)
class Handle:
    """What `prune` returns: the outcome of the last forward, and the way back. Also a context manager.

    plans   one Plan per site, in the order of the blocks.
    counts  visual tokens after each site: an int, or a list with one for each image where they differ.
    grid    patch grid (h, w) of the last forward.
    learned the weights of a learned method, one module per site; None for the other methods. They belong to the handle and not
            to the model: train `handle.learned.parameters()`, save `handle.learned.state_dict()`.
    """

    recipe: Recipe
    family: Family
    sites: list[Site]

    def __repr__(self) -> str:
        left = f"{self.counts} tokens left" if self.plans else "no forward yet"
        return f"<{type(self).__name__} of {self.recipe}: {left}>"

    @property
    def learned(self) -> nn.ModuleList | None:
        found = [site.learned for site in self.sites if site.learned is not None]
        return nn.ModuleList(found) if found else None

    @property
    def plans(self) -> list[Plan]:
        return [site.plan for site in self.sites if site.plan is not None]

    @property
    def counts(self) -> list[Any]:
        return [plan.slots if plan.valid is None else plan.counts for plan in self.plans]

    @property
    def scores(self) -> list[Tensor | None]:
        """The score s [B, N] at each site, None for methods without one."""
        return [site.score for site in self.sites if site.plan is not None]

    @property
    def layers(self) -> list[int]:
        """Block of each site, as the recipe counts them; -1 is the place before the first block."""
        return [site.layer + (self.recipe.where == "before") for site in self.sites]

    @property
    def grid(self) -> tuple[int, int]:
        return self.family.grid

    @property
    def packed(self) -> int:
        """Bytes of packed weights that the model's layers keep (docs/families.md)."""
        return held(self.family.model)

    def sources(self) -> list[Plan]:
        """For each site one Plan over the image's patches, all earlier sites included."""
        return [site.source() for site in self.sites if site.plan is not None]

    def restore(self, tokens: Tensor, after: int | None = None, *, as_map: bool = False) -> Tensor:
        """Tokens of the last forward, back on the full grid, for segmentation, depth or feature maps.

        tokens [B, P+K, C] or [B, K, C] as they leave the model, or block `after`; the answer is [B, P+N, C] or [B, N, C], the P
        prefix tokens unchanged, or with as_map=True [B, C, h, w] without them. A merged or fused token gives its value to all that it
        stands for; a dropped one takes its nearest survivor's (ties to the lower index). All handles of the model count.
        """
        return restore(self.family, tokens, after, as_map)

    def ratio_loss(self) -> Tensor:
        """For training a method that draws its tokens (DynamicViT): how far the shares kept in the last forward are from the budget,
        a scalar with a gradient. Add it to the task's loss (the authors' weight is 2)."""
        return ratio_loss(self.recipe, self.sites)

    def remove(self) -> None:
        """Give the model back as it was before this handle; other handles stay. Doing it twice does no harm."""
        self.family.take_out(self.sites)

    def __enter__(self) -> Handle:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.remove()


def prune(
    model: nn.Module,
    recipe: Recipe | str,
    *,
    visual: Any = None,
    noise: Any = None,
    weights: Given | None = None,
    pack: bool = True,
    **options: Any,
) -> Handle:
    """Prune the model's visual tokens from now on, until `Handle.remove()`.

    recipe: "name:key=value,..." or a Recipe; options override its parameters, as in `prune(model, "evit", keep=0.5)`.
    visual: for a bare language model (LlamaModel ...), which tokens of the prompt are visual: slice(start, stop), a bool mask [L] or
    [B, L], or the placeholder's token id. noise: one tensor per site that breaks ties in clustering (SparseVLM).
    weights: for learned methods (SiT ...): a mapping of tensors for all sites, a list with one mapping per site, a .safetensors file, or
    "random" to train from scratch; afterwards they are in `Handle.learned`.
    pack: whether the blocks' linear layers and the patch embedding may keep a second, packed copy of their weights for inference in
    float32 on a CPU, and the blocks be recorded for single images or few (docs/families.md); False saves that memory.
    The model keeps its class, its weights and its call. Raises PruneError before anything is changed.
    """
    recipe = resolve(recipe, options)
    check_arguments(model, recipe, visual, noise, weights)
    if recipe.where == "decoder":
        from .vlms.in_llm import prune_decoder

        return prune_decoder(model, recipe, visual, noise)
    family = family_of(model)
    if isinstance(family, LVLM):
        from .vlms.before_llm import prune_images

        return prune_images(family, recipe)
    sites = plan_sites(family, recipe)
    if recipe.weights is not None:
        learn(recipe, recipe.weights, family, sites, recipe.file or None if weights is None else weights)
    for site in sites:
        site.packs = pack
    family.add(sites)
    return Handle(recipe, family, sites)


def check_arguments(model: nn.Module, recipe: Recipe, visual: Any, noise: Any, weights: Given | None) -> None:
    """Raise PruneError for an argument of `prune` that is for other methods or models."""
    if recipe.per_tile and (recipe.where == "decoder" or not isinstance(family_of(model), LVLM)):
        raise PruneError("per_tile= is for the images of a vision-language model, pruned before its language model; leave it out")
    if recipe.fewer != "keep" and recipe.where != "decoder" and not isinstance(family_of(model), LVLM):
        raise PruneError("fewer= is for the images of a vision-language model; leave it out")
    if weights is not None and recipe.weights is None:
        raise PruneError(f"weights= is for learned methods, and {recipe.name} has no weights; leave it out")
    if recipe.where != "decoder" and (visual is not None or noise is not None):
        raise PruneError(f"visual= and noise= are for methods inside a language model; {recipe.name} is none")


def resolve(recipe: Recipe | str, options: dict[str, Any]) -> Recipe:
    """The recipe with the options put over its parameters."""
    if isinstance(recipe, str):
        recipe = registry.parse(recipe)
    if not isinstance(recipe, Recipe):
        raise PruneError(f"recipe must be a string such as 'evit:keep=0.7' or a Recipe, got {type(recipe).__name__}")
    if not options:
        return recipe
    if recipe.name == "custom":
        raise PruneError(f"options {', '.join(options)} need a named recipe; set them where the recipe is built")
    params = dict(recipe.params)
    usual = {p.name: p.default for p in registry.find(recipe.name).parameters}
    replaced = any(word in options for word in BUDGET)  # a budget of the user's, or one that an option may rule out
    params = {key: value for key, value in params.items() if key not in BUDGET or not (replaced or value == usual.get(key))}
    return registry.make(recipe.name, **{**params, **options})


def plan_sites(family: Family, recipe: Recipe) -> list[Site]:
    """The recipe's sites in this model, everything checked."""
    if recipe.where not in IN_BLOCKS:
        raise PruneError(
            f"{recipe.name} chooses the image tokens that a language model reads, and {type(family.model).__name__} has no language "
            f"model; inside a vision model try class_attention, {TRY_INSTEAD}"
        )
    wanted = needs(recipe)
    if {"class_attn", "attns"} & set(wanted) and not family.class_token:
        raise PruneError(
            f"{recipe.name} scores by class attention, but {type(family.model).__name__} has no class token here; try {TRY_INSTEAD}"
        )
    missing = [name for name in wanted if name not in (*family.offers(), "weights", "noise", "first")]
    if missing:
        raise PruneError(f"{recipe.name} needs {', '.join(missing)}; {family.name} offers {', '.join(family.offers())}")
    if recipe.remembers and family.positional:
        raise PruneError(
            f"cache= puts a token without a place into attention, which {family.name} has no position for; leave it out"
        )
    layers = recipe.schedule.resolve(len(family.blocks))
    inner = [name for name in wanted if name in ("q", "k", "v", "class_attn", "token_weight", "attns")]
    if inner and (layers[0] < 0 or (layers[0] == 0 and recipe.where == "before")):
        raise PruneError(
            f"{recipe.name} needs {', '.join(inner)} of a block, but {'layers=input' if layers[0] < 0 else 'the place before block 0'} "
            "is before the first; give block numbers"
        )
    patches = family.grid[0] * family.grid[1]
    tokens = max(as_tuple(recipe.schedule.tokens), default=0)
    if tokens > patches:
        raise PruneError(f"tokens={int(tokens)} is more than the {patches} patches that {type(family.model).__name__} has")
    return [make_site(recipe, layer, index, len(layers), wanted) for index, layer in enumerate(layers)]


def make_site(recipe: Recipe, layer: int, index: int, sites: int, wanted: tuple[str, ...]) -> Site:
    """One site that runs the recipe on whatever arrives. The place before a block is the one after the block in front of it."""
    step = partial(run_site, recipe, index, sites)
    if recipe.where == "before" and layer >= 0:
        layer -= 1
    place = "input" if layer < 0 else "block" if recipe.where == "before" else recipe.where
    site = Site(layer, place, wanted, step, recipe.proportional, adaptive=recipe.adaptive, hides=recipe.hides)
    site.early, site.shares = before_attention(recipe), "attended" in recipe.needs
    return site


def run_site(recipe: Recipe, index: int, sites: int, given: dict[str, Any]) -> Outcome:
    """The recipe on the signals of its site number `index`. A function of the module, so that pruned models can be pickled."""
    entered = given.pop("entered")
    return settle(recipe, lambda n: recipe.schedule.count(n, index, sites, entered), given)


def learn(recipe: Recipe, declared: Weights, family: Family, sites: list[Site], given: Given | None) -> None:
    """Give every site its weights. Their shapes are those for the model's own image size."""
    entered = family.grid[0] * family.grid[1]
    counts: list[int] = []
    for index in range(len(sites)):
        counts.append(recipe.schedule.count(counts[-1] if counts else entered, index, len(sites), entered))
    place = next(family.model.parameters())
    learned = build(recipe.name, given, [declared(family.width, count) for count in counts], place)
    for site, weights in zip(sites, learned, strict=True):
        site.learned = weights


def family_of(model: nn.Module) -> Any:
    """The family object of the model: the one already at work in it, or a new one that has passed its checks."""
    if not isinstance(model, nn.Module):
        raise PruneError(f"model must be a torch.nn.Module, got {type(model).__name__}")
    names = [kind.__name__ for kind in type(model).__mro__]
    for wrapper, inner in (("OptimizedModule", "_orig_mod"), ("DataParallel", "module"), ("DistributedDataParallel", "module")):
        if wrapper in names:
            raise PruneError(f"{wrapper} wraps the model; prune model.{inner} first and wrap it again")
    model = inside(model)
    for family in families():
        if family.serves(model):
            found = family(model)
            working = getattr(found.model, "_sparsight", None)
            if isinstance(working, (Family, LVLM)):
                return working
            found.check()
            return found
    why = reason(model)
    if why is not None:
        raise PruneError(f"tokens cannot leave {type(model).__name__}: {why}")
    supported = "; ".join(f"{family.name} ({', '.join(family.classes)})" for family in families())
    raise PruneError(f"{type(model).__name__} is no known family; supported: {supported}")


def families() -> list[Any]:
    """All model families: those that other packages have registered, then those of the folders models and vlms."""
    found = []
    for folder in ("models", "vlms"):
        package = importlib.import_module(f"{__package__}.{folder}")
        for module in pkgutil.iter_modules(package.__path__):
            content = importlib.import_module(f"{package.__name__}.{module.name}")
            found += [
                kind
                for kind in vars(content).values()
                if isinstance(kind, type)
                and issubclass(kind, (Family, LVLM))
                and kind.__module__ == content.__name__
                and hasattr(kind, "name")
            ]
    return [*registry.families(), *sorted(found, key=lambda kind: kind.name)]
