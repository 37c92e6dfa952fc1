"""Every method, and methods at several places at once, on one model of each kind: saved, loaded in a new process, the same answers to the bit."""

import os
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import pytest
import saved_models
import torch
from saved_models import KINDS

import sparsight

BUDGET = {
    "pyramiddrop": "keep=0.5",
    "sparsevlm": "tokens=8",
    "agile": "tokens=8",
    "ats": "keep=0.6,layers=1/2",
    "tca": "keep=0.8,layers=1/2",
}
INSIDE = {
    "cdpruner": "tokens=8,text=llm",
    "fastv": "keep=0.6,layer=1",
    "pyramiddrop": "keep=0.5,layers=1/2",
    "sparsevlm": "count=rank,layers=0/1",
    "tome": "keep=0.6,proportional=false",
}
STACKS = {
    "tower_and_before": ["col_ln:keep=0.5,layers=0", "divprune:tokens=4"],
    "tower_before_inside": ["col_ln:keep=0.5,layers=0", "divprune:tokens=4", "fastv:keep=0.5,layer=1"],
    "before_and_inside": ["divprune:tokens=8", "fastv:keep=0.5,layer=1"],
}
SPEAKING = ("lvlm", "generic")
REFUSED = ("images of its own size only", "makes the image smaller", "class token", "would prune inside the vision tower")
"""Why a method may not suit a model, besides a signal that it does not offer."""
FEW = {
    "timm": ("tome", "sit"), "transformers": ("evit", "similarity"), "open_clip": ("col_ln",), "lvlm": ("divprune", "fastv"),
    "generic": ("before_and_inside",),
}  # fmt: skip

WHOLE = (("generic", "evs"), ("generic", "sparsevlm"))
"""They keep all: EVS of a single picture, and so many tokens as the rank of that model's attention asks for."""


def text_of(kind: str, name: str) -> str | list[str]:
    if name in STACKS:
        return STACKS[name]
    recipe = sparsight.parse(name)
    own = {**BUDGET, "ats": "", "tca": "", **INSIDE} if kind in SPEAKING else BUDGET
    if own.get(name):
        return f"{name}:{own[name]}"
    layers = ",layers=1/2" if "layers" in dict(recipe.params) and kind not in SPEAKING else ""
    return name if recipe.adaptive or recipe.schedule.word == "" else f"{name}:keep=0.6{layers}"


def cases() -> list[Any]:
    names = [method.name for method in sparsight.methods()]
    return [
        pytest.param(kind, name, marks=() if name in FEW[kind] else pytest.mark.product, id=f"{kind}-{name}")
        for kind in KINDS
        for name in [*names, *(STACKS if kind in SPEAKING else ())]
        if kind in SPEAKING or sparsight.parse(name).where in ("attn", "block", "before", "image")
    ]


@pytest.fixture(scope="module")
def answered(request, tmp_path_factory) -> dict[tuple[str, str], Any]:
    """(kind, method) -> answers before and after, or why the method does not fit. Loaded in one process for all that are asked here."""
    wanted = {tuple(item.callspec.params.values()) for item in request.node.session.items if item.fspath == request.node.fspath}
    root, found = tmp_path_factory.mktemp("saved"), {}
    folders: dict[tuple[str, str], str] = {}
    for kind in sorted({kind for kind, _ in wanted}):
        pytest.importorskip("transformers" if kind in SPEAKING else kind)
        model, options = saved_models.made(kind, root)
        for name in sorted(name for one, name in wanted if one == kind):
            text = text_of(kind, name)
            try:
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")
                    learned = name not in STACKS and sparsight.parse(name).weights
                    handle = sparsight.prune(model, text, weights="random" if learned else None)
            except sparsight.PruneError as error:
                found[kind, name] = str(error)
                continue
            with handle:
                before = saved_models.answers(kind, model)
                folders[kind, name] = str(sparsight.save_pretrained(model, root / kind / name, **options))
            found[kind, name] = (before, saved_models.answers(kind, model))
    arguments = [f"{kind}={folder}" for (kind, _), folder in folders.items()]
    path = os.pathsep.join([*sys.path])
    done = subprocess.run(
        [sys.executable, str(Path(saved_models.__file__)), str(root / "answers.pt"), *arguments],
        env={**os.environ, "PYTHONPATH": path, "HF_HUB_OFFLINE": "1"}, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    after = torch.load(root / "answers.pt", weights_only=True)
    return {key: (*value, after[f"{key[0]}={folders[key]}"]) if key in folders else value for key, value in found.items()}


@pytest.mark.parametrize(("kind", "name"), cases())
def test_saved_and_loaded_in_a_new_process(answered, kind, name):
    found = answered[kind, name]
    if isinstance(found, str):
        assert any(word in found for word in (f"{name} needs", *REFUSED)), found
        pytest.skip(found)
    before, unpruned, after = found
    assert torch.equal(before, after)
    assert torch.equal(unpruned, after) == ((kind, name) in WHOLE)
