"""Recipes inside the vision tower of a vision-language model, in front of one between tower and language model.

The tower is pruned as a vision model of its own; the projector reads what is left of its patches, and the recipe behind chooses among them.
Tokens of the prompt, plans and counts are still those of all patches.
"""

from __future__ import annotations

from typing import Any

from torch import nn

from ..apply import needs
from ..errors import PruneError
from ..handle import engines
from ..ops import reduce
from ..ops.schedule import IN_BLOCKS
from ..plan import Plan
from ..recipe import Recipe, as_step
from .family import LVLM

ONE_EACH = (reduce.drop, reduce.merge_sized, reduce.representatives)
"""Reductions whose tokens each stand at one patch."""


def tower_for(family: LVLM, recipe: Recipe) -> nn.Module:
    """The vision tower, if the recipe can prune inside it. Raises PruneError if not."""
    kind = type(family.model).__name__
    if recipe.where not in IN_BLOCKS:
        raise PruneError(
            f"{recipe.name} is not the last of the recipes before the language model, so it would prune inside the vision tower, which "
            f"{recipe.name} does not; give one such recipe, and in front of it those of a vision model (col_ln:keep=0.7,layers=3/6/9)"
        )
    if not family.one_row or family.prefix > 1:
        raise PruneError(
            f"{recipe} would prune inside the vision tower of {kind}, which is known of LLaVA-1.5's kind only (one picture one grid, no registers); leave it out"
        )
    if (
        recipe.adaptive
        or recipe.hides
        or recipe.remembers
        or recipe.weights is not None
        or as_step(recipe.reduce).function not in ONE_EACH
    ):
        raise PruneError(
            f"{recipe} inside a vision tower: its tokens have to stand for one patch each and be as many in every image; take one that drops or merges, such as "
            "col_ln, class_attention, similarity or tome"
        )
    made, depth = family.layer({}, False), len(family.blocks)  # type: ignore[attr-defined]
    last = max(recipe.schedule.resolve(depth))
    if last >= made:
        raise PruneError(
            f"{recipe}: the language model reads what block {made} of the vision tower makes; give layers up to {made - 1}"
        )
    tower: nn.Module = family.core.vision_tower
    return tower


def check_behind(recipe: Recipe) -> None:
    """Raise PruneError for a recipe that cannot choose among the tokens that a pruned tower has left."""
    if recipe.where == "image":
        raise PruneError(f"{recipe.name} makes the image smaller, and its tower is pruned inside as well; take one of the two")
    if earlier := [name for name in needs(recipe) if name.startswith("shallow")]:
        raise PruneError(
            f"{recipe.name} needs {', '.join(earlier)} of an earlier block, which had more tokens than a pruned tower leaves; take another recipe, or leave the tower whole"
        )


def left(family: LVLM, layer: int) -> Plan | None:
    """What the tower's last forward left of every image's patches after block `layer`: one row per image; None if it is not pruned."""
    engine: Any = next(engines(family.core.vision_tower), None)
    state = None if engine is None else engine.states.last()
    outcome = None if state is None else state.before(layer + 1)
    if outcome is None:
        return None
    plan: Plan = outcome.source()
    if plan.fused or plan.led or plan.mix is not None or plan.valid is not None:
        raise PruneError(
            f"the vision tower of {type(family.model).__name__} makes tokens that stand for no patch; prune it by another recipe"
        )
    return plan


def row(plan: Plan, number: int) -> Plan:
    """One image's part of a plan."""
    only = slice(number, number + 1)
    return Plan(plan.keep[only], plan.total, None if plan.merged is None else plan.merged[only])
