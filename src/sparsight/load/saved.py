"""The folder of a pruned model: an ordinary model folder with sparsight.json, which has the recipes, and learned.safetensors with weights of theirs.

The output of a training has the model in a folder of its own, `model`, beside the same files.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from ..data.fingerprint import digest
from ..errors import PruneError, shown
from ..prune import prune
from ..recipe import Recipe
from ..stack import stacked
from .checkpoint import check_reach, read_shapes

FILE, LEARNED, INNER, OLDER = "sparsight.json", "learned.safetensors", "model", "trained.json"
"""Names in a folder: what is said about the pruning; weights of learned methods ("RECIPE.SITE.NAME"); the model, where it has a folder of
its own; what training wrote before there was a format."""

FORMAT = 1
"""Version of sparsight.json; raised when an older version of the library could misread it."""

TRAVELS = ("*.json", "*.jsonl", "*.safetensors", "*.txt", "*.model", "*.jinja", "README.md")
"""What is fetched of a repository: never code, never a pickle."""

FIELDS: dict[str, Any] = {
    "recipes": list, "learned": list, "model": dict, "classes": list | None, "versions": dict, "evidence": dict | None, "about": dict,
}  # fmt: skip
"""What the file must have beside its format."""

AGAIN = "save the model again with sparsight.save_pretrained"


@dataclass(frozen=True)
class Saved:
    """What a folder says. recipes: in the order in which `prune` takes them; weights: of each one's learned method, or None; classes: in
    the order of the logits; evidence: a measured table and what it depends on; about: what else whoever saved it had to say."""

    folder: Path
    recipes: tuple[Recipe, ...]
    weights: tuple[dict[str, Tensor] | None, ...] = field(repr=False)
    classes: list[str] | None = field(repr=False)
    versions: dict[str, str]
    evidence: dict[str, Any] | None = field(repr=False)
    about: dict[str, Any] = field(repr=False)

    @property
    def model(self) -> Path:
        """The ordinary model folder."""
        return self.folder / INNER if (self.folder / INNER).is_dir() else self.folder

    def put_on(self, model: nn.Module) -> None:
        """Prune the model as it was pruned. Raises PruneError, and leaves the model unpruned, if a recipe does not fit."""
        try:
            if any(self.weights):
                both = zip(self.recipes, self.weights, strict=True)
                stacked([partial(prune, model, recipe, weights=weights) for recipe, weights in both])
            else:
                prune(model, list(self.recipes))
        except PruneError as error:
            raise PruneError(f"{self.folder / FILE} does not fit its model: {error}") from error


def is_saved(folder: Path) -> bool:
    """Whether a folder is that of a pruned model. Raises PruneError for what was written before there was a format."""
    if (folder / OLDER).is_file() and not (folder / FILE).is_file():
        raise PruneError(
            f"{folder / OLDER} is older than the files that this version reads; train again, or load {folder / INNER} and prune it by the "
            "recipe there"
        )
    return (folder / FILE).is_file()


def fetch_saved(repository: str) -> Path | None:
    """The folder of a repository of the Hugging Face Hub that has sparsight.json, fetched or from the cache; None for any other, and
    for one out of reach. Files that could run anything stay where they are."""
    from huggingface_hub import hf_hub_download, snapshot_download, try_to_load_from_cache

    name, _, revision = repository.partition("@")
    at = revision or None
    try:
        if not isinstance(try_to_load_from_cache(name, FILE, revision=at), str):
            check_reach(repository)
            hf_hub_download(name, FILE, revision=at, etag_timeout=5)
        return Path(snapshot_download(name, revision=at, allow_patterns=list(TRAVELS), etag_timeout=5))
    except Exception:  # whatever the hub client or the network meets: the loader of ordinary repositories says it
        return None


def read_saved(folder: Path) -> Saved:
    """Read sparsight.json and the learned weights beside it. Raises PruneError for a file that is damaged, edited, newer or older, and for
    methods and parameters that are not here."""
    file = folder / FILE
    facts = read_facts(file)
    writers = written_by(facts["versions"])
    try:
        recipes = tuple(Recipe.from_json(json.dumps(recipe)) for recipe in facts["recipes"])
    except PruneError as error:
        raise PruneError(f"{file}, saved by {writers}, cannot be used here: {error}") from None
    weights = read_learned(folder, recipes, facts["learned"])
    return Saved(folder, recipes, weights, facts["classes"], facts["versions"], facts["evidence"], facts["about"])


def read_facts(file: Path) -> dict[str, Any]:
    """The file's content as `sealed` was given it."""
    try:
        facts: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise PruneError(f"{file} cannot be read ({shown(str(error))}); {AGAIN}") from None
    version = facts.get("format") if isinstance(facts, dict) else None
    if not isinstance(version, int) or isinstance(version, bool):
        raise PruneError(f"{file} has no format number, so it is none of sparsight's; {AGAIN}")
    if version > FORMAT:
        raise PruneError(
            f"{file} has format {version}, written by {written_by(facts.get('versions'))}; this version reads format {FORMAT}: "
            "pip install -U sparsight"
        )
    if version < FORMAT:
        raise PruneError(f"{file} has format {version}, which is older than what this version reads ({FORMAT}); {AGAIN}")
    seal = facts.pop("seal", None)
    if seal != digest(facts):
        raise PruneError(
            f"{file} was edited after it was written (its seal does not match), so its numbers may be of another recipe; to prune in "
            f"another way load it, call sparsight.unprune and sparsight.prune, and {AGAIN}"
        )
    lacking = [name for name, kind in FIELDS.items() if not isinstance(facts.get(name), kind)]
    if lacking:
        raise PruneError(f"{file} has no usable {', '.join(lacking)}; {AGAIN}")
    return facts


def sealed(facts: Mapping[str, Any]) -> str:
    """The text of sparsight.json."""
    return json.dumps({**facts, "seal": digest(dict(facts))}, indent=1) + "\n"


def written_by(versions: object) -> str:
    """Whose file it is, in words: this library, and packages whose methods it uses."""
    known = versions if isinstance(versions, dict) else {}
    named = {"sparsight": known.get("sparsight", "of unknown version"), **known.get("methods", {})}
    return " and ".join(f"{name} {shown(version)}" for name, version in named.items())


def read_learned(folder: Path, recipes: tuple[Recipe, ...], names: list[str]) -> tuple[dict[str, Tensor] | None, ...]:
    """For each recipe its learned weights, as `prune` takes them. names: of all tensors that were saved."""
    from safetensors.torch import load_file

    file = folder / LEARNED
    if not names:
        return (None,) * len(recipes)
    if not file.is_file():
        raise PruneError(
            f"{file} is missing: the learned weights of {recipes[int(names[0].partition('.')[0])]}; fetch it, or {AGAIN}"
        )
    found = read_shapes(file)
    lost = [name for name in names if name not in found]
    if lost:
        raise PruneError(f"{file} has lost {len(lost)} of {len(names)} tensors ({', '.join(lost[:3])}); fetch it, or {AGAIN}")
    tensors: dict[str, Tensor] = load_file(file)
    own = [{n.removeprefix(f"{i}."): t for n, t in tensors.items() if n.startswith(f"{i}.")} for i in range(len(recipes))]
    return tuple(one or None for one in own)
