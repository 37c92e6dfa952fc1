"""The model card: README.md with the header that the Hugging Face Hub reads, how to load the model, and what was measured."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ..load.vlms import on_hub
from ..recipe import Recipe
from ..registry import find

TAGS = ["sparsight", "token-pruning", "efficient-inference"]


def card(facts: Mapping[str, Any], recipes: Sequence[Recipe]) -> str:
    """The card's text. facts: what sparsight.json says."""
    model, vlm = facts["model"], facts["model"]["task"] == "image-text-to-text"
    name = " + ".join(map(str, recipes)) or "unpruned"
    methods = [find(recipe.name) for recipe in recipes]
    lines = [
        header(model),
        f"# {plain(model['name'])}, pruned by {plain(name)}",
        "",
        f"A {model['class']} of {model['library']} that drops or merges visual tokens while it runs, by a recipe of Sparsight.",
        "",
        *(f"* `{recipe}`: {method.summary}. {method.source}" for recipe, method in zip(recipes, methods, strict=True)),
        "",
        "```python",
        "import sparsight",
        "",
        f'loaded = sparsight.{"load_vlm" if vlm else "load"}("PATH")    # this folder, or {"" if vlm else "hf_hub:"}OWNER/NAME; pruned already',
        f"loaded.model, loaded.{'processor' if vlm else 'transform'}{', sparsight.handles(loaded.model)' if recipes else ''}",
        "```",
        "",
        f"`sparsight.unprune(loaded.model)` gives the unpruned model; {model['library']} alone loads it unpruned too. Nothing in here is code.",
        "",
        *measured(facts["evidence"]),
        f"Written with {', '.join(f'{key} {value}' for key, value in facts['versions'].items() if isinstance(value, str))}.",
        "",
    ]
    return "\n".join(lines)


def header(model: Mapping[str, Any]) -> str:
    """The YAML block."""
    from huggingface_hub import ModelCardData

    base = str(model["name"])
    data = ModelCardData(
        base_model=base if on_hub(base) else None,
        library_name=model["library"],
        pipeline_tag=model["task"],
        tags=[*TAGS, model["library"]],
    )
    return f"---\n{data.to_yaml()}\n---\n"


def measured(evidence: Mapping[str, Any] | None) -> list[str]:
    """The table, the recipe's own row in bold, and what it depends on."""
    if evidence is None:
        return ["Nothing was measured when this was saved.", ""]
    heads, rows = evidence["columns"], evidence["rows"]
    lines = ["## Measured", "", f"| {' | '.join(map(cell, heads))} |", f"|{' --- |' * len(heads)}"]
    for number, row in enumerate(rows):
        written = [cell(text) for text in row]
        lines.append(f"| {' | '.join(f'**{one}**' if one and number == evidence['row'] else one for one in written)} |")
    facts = {
        key: evidence[key]
        for key in ("data", "images", "questions", "device", "precision", "batch_size", "seed", "date")
        if key in evidence
    }
    said = "; ".join(f"{key.replace('_', ' ')}: {plain(value)}" for key, value in facts.items())
    return [*lines, "", *([f"{said[0].upper()}{said[1:]}.", ""] if said else []), *method_of(evidence)]


def method_of(evidence: Mapping[str, Any]) -> list[str]:
    """How its intervals are made."""
    return [str(evidence["interval_method"]), ""] if evidence.get("interval_method") else []


def cell(text: object) -> str:
    """Text that does not end a cell."""
    return plain(text).replace("|", "\\|")


def plain(value: object) -> str:
    """A value as one line of text; a mapping as its entries."""
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {plain(one)}" for key, one in value.items())
    return " ".join(str(value).split()).replace("<", "&lt;")
