"""prune(model, recipe) -> Handle: the only place where methods meet models."""

from __future__ import annotations

import difflib
import importlib
import pkgutil
import warnings
from collections.abc import Sequence
from functools import partial
from typing import Any, get_origin, overload

from torch import nn

from . import registry
from .apply import apply, before_attention, needs
from .errors import PruneError
from .handle import Handle as Handle
from .learned import Given, build
from .models.engine import Engine
from .models.family import Family
from .models.site import IMAGE, Site
from .models.state import ForwardState
from .models.unsupported import reason
from .models.unwrap import unwrap
from .ops.schedule import BUDGET, as_tuple, earlier_block
from .recipe import IN_BLOCKS, Recipe, Weights
from .signals import SHALLOW
from .stack import Stack as Stack
from .stack import stacked
from .vlms.family import LVLM as LVLM

LARGER = 64
"""So many times as many patches as in an image of the model's own size: a budget that removes none of them is taken to remove none ever."""
TRY_INSTEAD = "col_ln, shannon, renyi, similarity, tome or random"


@overload
def prune(
    model: nn.Module,
    recipe: Recipe | str,
    *,
    visual: Any = None,
    noise: Any = None,
    weights: Given | None = None,
    processor: Any = None,
    text_embeds: Any = None,
    **options: Any,
) -> Handle: ...
@overload
def prune(
    model: nn.Module,
    recipe: list[Recipe | str] | list[Recipe] | list[str] | tuple[Recipe | str, ...],
    *,
    processor: Any = None,
    text_embeds: Any = None,
) -> Stack: ...
def prune(
    model: nn.Module,
    recipe: Recipe | str | Sequence[Recipe | str],
    *,
    visual: Any = None,
    noise: Any = None,
    weights: Given | None = None,
    processor: Any = None,
    text_embeds: Any = None,
    **options: Any,
) -> Handle | Stack:
    """Prune the model's visual tokens from now on, until `Handle.remove()`.

    recipe: "name:key=value,..." or a Recipe; options override its parameters, as in `prune(model, "evit", keep=0.5)`. A list of recipes
    goes to work one after the other, and what comes back is a `Stack` of their handles. In a vision-language model the last one that is
    not inside the language model chooses the tokens that the language model reads; those in front of it prune inside the vision tower.
    visual: for a bare language model (LlamaModel ...), which tokens of the prompt are visual: slice(start, stop), a bool mask [L] or
    [B, L], or the placeholder's token id. noise: one tensor per site that breaks ties in clustering (SparseVLM).
    weights: for learned methods (SiT ...): a mapping of tensors for all sites, a list with one mapping per site, a .safetensors file, or
    "random" to train from scratch; afterwards they are in `Handle.learned`.
    processor: of a vision-language model, for methods that read the question (cdpruner): it tells the question from the chat template. Models
    of `load_vlm` know theirs. text_embeds [M, D]: CLIP's text embeddings of the questions to come, for `cdpruner:text=clip`.
    The model keeps its class, its weights and its call. Raises PruneError before anything is changed.
    """
    if isinstance(recipe, Sequence) and not isinstance(recipe, str):
        if options or visual is not None or noise is not None or weights is not None:
            raise PruneError(
                "options, visual=, noise= and weights= are for one recipe; write the numbers into the recipes of a list"
            )
        return prune_all(model, recipe, processor, text_embeds)
    recipe = resolve(recipe, options)
    check_arguments(model, recipe, visual, noise, weights, text_embeds)
    made = installed(model, recipe, visual, noise, weights, processor, text_embeds)
    made.given.model = model
    return made


def installed(
    model: nn.Module, recipe: Recipe, visual: Any, noise: Any, weights: Given | None, processor: Any, text_embeds: Any
) -> Handle:
    """Put the recipe's sites where they belong."""
    if recipe.where == "decoder":
        from .vlms.in_llm import prune_decoder

        return prune_decoder(model, recipe, visual, noise)
    family = family_of(model)
    if family.language:
        from .vlms.before_llm import prune_images
        from .vlms.words import processor_of

        if recipe.where == "image":
            check_other_sizes(family, recipe)
        return prune_images(family, recipe, processor_of(model, processor), text_embeds)
    sites = plan_sites(family, recipe)
    if recipe.weights is not None:
        learn(recipe, recipe.weights, family, sites, recipe.file or None if weights is None else weights)
    engine = engine_of(family)
    engine.add(sites)
    report_idle(recipe, engine, sites)
    return Handle(recipe, engine, sites)


def prune_all(model: nn.Module, recipes: Sequence[Recipe | str], processor: Any, text_embeds: Any) -> Stack:
    """Several recipes: all of them, or none where one is refused."""

    def with_text(place: nn.Module, recipe: Recipe) -> partial[Any]:
        """`prune`, which hands the text to the recipe that asks for it; where none does, it is refused."""
        asks = recipe.where != "decoder" and "text" in needs(recipe)
        given = text_embeds if asks or not any("text" in needs(one) for one in wanted) else None
        return partial(prune, place, recipe, processor=processor, text_embeds=given)

    wanted = [resolve(recipe, {}) for recipe in recipes]
    if not wanted:
        raise PruneError("an empty list of recipes prunes nothing; give at least one")
    inside = [recipe for recipe in wanted if recipe.where == "decoder"]
    vision = [recipe for recipe in wanted if recipe.where != "decoder"]
    family = family_of(model) if vision else None
    if family is None or not family.language or len(vision) < 2:
        return stacked([with_text(model, recipe) for recipe in wanted])
    from .vlms.in_tower import check_behind, tower_for

    places = [(tower_for(family, recipe), recipe) for recipe in vision[:-1]]
    check_behind(vision[-1])
    return stacked([with_text(place, recipe) for place, recipe in (*places, *((model, one) for one in (vision[-1], *inside)))])


def report_idle(recipe: Recipe, engine: Engine, sites: list[Site]) -> None:
    """Warn of a budget under which no token leaves an image: now where that holds for images of any size, else after the first forward,
    which shows how large they are."""
    family = engine.family
    entered = family.grid[0] * family.grid[1]
    if recipe.adaptive or not recipe.params or planned(entered, sites)[-1] < entered:
        return
    larger = LARGER * entered
    if planned(larger, sites)[-1] == larger:
        warn_idle(recipe, family, entered, stacklevel=5)
    else:
        engine.states.unseen.append(partial(report_seen, recipe, family, sites))


def report_seen(recipe: Recipe, family: Family, sites: list[Site], state: ForwardState) -> None:
    """Warn if no token has left the images of a forward, which the budgets say."""
    first = state.outcomes.get(sites[0].layer)
    if first is not None and first.site is sites[0] and planned(first.plan.total, sites)[-1] == first.plan.total:
        warn_idle(recipe, family, first.plan.total)


def warn_idle(recipe: Recipe, family: Family, entered: int, stacklevel: int = 2) -> None:
    warnings.warn(f"{recipe} removes none of the {entered} patches of {type(family.model).__name__}", stacklevel=stacklevel)


def planned(entered: int, sites: list[Site]) -> list[int]:
    """Tokens left after each site of an image of `entered` patches, by the budgets."""
    counts: list[int] = []
    for site in sites:
        counts.append(site.count(counts[-1] if counts else entered, entered))
    return counts


def check_arguments(
    model: nn.Module, recipe: Recipe, visual: Any, noise: Any, weights: Given | None, text_embeds: Any = None
) -> None:
    """Raise PruneError for an argument of `prune` that is for other methods or models."""
    if recipe.per_tile and (recipe.where == "decoder" or not family_of(model).language):
        raise PruneError("per_tile= is for the images of a vision-language model, pruned before its language model; leave it out")
    if recipe.fewer != "keep" and recipe.where != "decoder" and not family_of(model).language:
        raise PruneError("fewer= is for the images of a vision-language model; leave it out")
    if recipe.separators != "keep" and (recipe.where == "decoder" or not family_of(model).language):
        raise PruneError("separators= is for the images of a vision-language model, pruned before its language model; leave it out")
    if text_embeds is not None and (recipe.where == "decoder" or "text" not in needs(recipe)):
        raise PruneError(
            f"text_embeds= is for methods that compare images with CLIP's text, and {recipe.name} does not; leave it out"
        )
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
    if recipe.where == "image":
        check_other_sizes(family, recipe)
        return [Site(IMAGE, "image", (), partial(apply, recipe), recipe.schedule)]
    if recipe.where not in IN_BLOCKS:
        raise PruneError(
            f"{recipe.name} chooses the image tokens that a language model reads, and {type(family.model).__name__} has no language "
            f"model; inside a vision model try class_attention, {TRY_INSTEAD}"
        )
    wanted = needs(recipe)
    if {"class_attn", "shallow_class_attn", "attns"} & set(wanted) and not family.class_token:
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
    shallow = None
    if recipe.shallow is not None and any(name.startswith(SHALLOW) for name in wanted):
        shallow = earlier_block(recipe.shallow, len(family.blocks))
        if layers[0] <= shallow:
            raise PruneError(
                f"{recipe.name} looks back at block {shallow}, and its first site is at block {layers[0]}; give later layers"
            )
    return [make_site(recipe, layer, index, len(layers), wanted, shallow) for index, layer in enumerate(layers)]


def check_other_sizes(family: Family | LVLM, recipe: Recipe) -> None:
    """Raise PruneError for a model that takes images of its own size only, or tiles of them."""
    if isinstance(family, LVLM) and not family.other_sizes:
        raise PruneError(
            f"{recipe.name} makes the image smaller before the vision encoder, but of {type(family.model).__name__} it cannot: {family.one_size}; "
            "ask its processor for fewer tiles or pixels (processor.image_processor, such as image_grid_pinpoints), or compare with pool"
        )
    if isinstance(family, LVLM) and family.cuts_tiles and not recipe.per_tile and recipe.schedule.tokens:
        raise PruneError(
            f"{type(family.model).__name__} cuts images into tiles, and {recipe.name} makes each of them smaller; give keep=, or per_tile=true with "
            "the tokens of a tile"
        )
    if not family.other_sizes:
        raise PruneError(
            f"{recipe.name} gives the model a smaller image, but {type(family.model).__name__} takes images of its own size only; "
            "build it for the smaller size (timm: img_size= or dynamic_img_size=True), or compare with pool"
        )


def make_site(recipe: Recipe, layer: int, number: int, sites: int, wanted: tuple[str, ...], shallow: int | None = None) -> Site:
    """One site that runs the recipe on whatever arrives. The place before a block is the one after the block in front of it."""
    if recipe.where == "before" and layer >= 0:
        layer -= 1
    return Site(
        layer=layer,
        where="input" if layer < 0 else "block" if recipe.where == "before" else recipe.where,
        needs=wanted,
        run=partial(apply, recipe),
        schedule=recipe.schedule,
        number=number,
        sites=sites,
        proportional=recipe.proportional,
        adaptive=recipe.adaptive,
        hides=recipe.hides,
        early=before_attention(recipe),
        shares="attended" in recipe.needs,
        shallow=shallow,
    )


def learn(recipe: Recipe, declared: Weights, family: Family, sites: list[Site], given: Given | None) -> None:
    """Give every site its weights. Their shapes are those for the model's own image size."""
    counts = planned(family.grid[0] * family.grid[1], sites)
    place = next(family.model.parameters())
    learned = build(recipe.name, given, [declared(family.width, count) for count in counts], place)
    for site, weights in zip(sites, learned, strict=True):
        site.learned = weights


def family_of(model: nn.Module) -> Any:
    """The family of a model, which has passed the family's checks."""
    if not isinstance(model, nn.Module):
        raise PruneError(f"model must be a torch.nn.Module, got {type(model).__name__}")
    names = [kind.__name__ for kind in type(model).__mro__]
    for wrapper, inner in (("OptimizedModule", "_orig_mod"), ("DataParallel", "module"), ("DistributedDataParallel", "module")):
        if wrapper in names:
            raise PruneError(f"{wrapper} wraps the model; prune model.{inner} first and wrap it again")
    model = unwrap(model)
    kind = known(model)
    if kind is None:
        raise PruneError(f"tokens cannot leave {type(model).__name__}: {reason(model)}" if reason(model) else unknown(model))
    found = kind(model)
    working = found.model.__dict__.get("_sparsight")
    if isinstance(working, LVLM):
        return working
    if isinstance(working, Engine):
        working.family.adopt(found)
        return working.family
    found.check()
    return found


def known(model: nn.Module) -> type[Any] | None:
    """The family that a model is of; None if it is of none."""
    return next((family for family in families() if family.serves(model)), None)


def unknown(model: nn.Module) -> str:
    """Why a model cannot be pruned: it is of no family, but may hold a model that is."""
    name = type(model).__name__
    for path, part in model.named_modules():
        if path and known(part) is not None:
            return f"{name} is no known family, but it holds a {type(part).__name__}: prune that, as in sparsight.prune(model.get_submodule({path!r}), ...)"
    near = difflib.get_close_matches(name, [kind for family in families() for kind in family.classes], n=3, cutoff=0.5)
    hint = f" ({', '.join(near)})" if near else ""
    return f"{name} is no known family; supported: {', '.join(family.name for family in families())}{hint}"


def fits(model: nn.Module) -> dict[str, str]:
    """For every method why it cannot prune this model, by its defaults; "" where it can. The model must not be pruned already.

    What only images can tell is not known here: a vision encoder may still refuse a method in a call, with its reason.
    """
    handles = (getattr(part, "_sparsight", None) or getattr(part, "_sparsight_decoder", None) for part in model.modules())
    if any(handle is not None for handle in handles):
        raise PruneError("the model is pruned already, so nothing else fits beside that; remove the handle first")
    return {method.name: against(model, registry.make(method.name)) for method in registry.methods()}


def against(model: nn.Module, recipe: Recipe) -> str:
    """Why `prune` refuses a recipe; "" if it does not."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            prune(model, recipe, weights=None if recipe.weights is None else "random").remove()
        except PruneError as error:
            return str(error)
    return ""


def engine_of(family: Family) -> Engine:
    """The engine at work in the family's model, or a new one."""
    working = family.model.__dict__.get("_sparsight")
    return working if isinstance(working, Engine) else Engine(family)


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
                and get_origin(kind) is None  # a list[int] is a type in Python 3.10
                and issubclass(kind, (Family, LVLM))
                and kind.__module__ == content.__name__
                and hasattr(kind, "name")
            ]
    return [*registry.families(), *sorted(found, key=lambda kind: (getattr(kind, "fallback", False), kind.name))]
