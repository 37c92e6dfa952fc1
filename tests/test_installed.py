"""Methods, scores and families of other packages: really installed, in a folder that a fresh interpreter has on its path."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import sparsight
from sparsight import PruneError

METHOD = '''"""Key norm: keep the patches whose keys are longest. Somebody, 2026."""

from sparsight import register_score
from sparsight.ops import reduce, schedule, select
from sparsight.ops.schedule import Layers
from sparsight.recipe import Recipe
from sparsight.registry import method

@register_score("key_length")
def key_length(k, prefix):
    return k[:, :, prefix:].norm(dim=-1).mean(dim=1)

@method
def key_norm(keep: float = 0.7, layers: Layers = (3, 6, 9)) -> Recipe:
    return Recipe(key_length, select.topk, reduce.drop, schedule.staged(keep, layers))

def longest(tokens: int = 5) -> Recipe:
    """Longest: keep the longest keys. Somebody, 2026."""
    return Recipe(key_length, select.topk, reduce.drop, schedule.once(tokens))
'''

FAMILY = """from torch import nn
from sparsight.models.timm_vit import TimmViT

class Eyes(nn.Module):
    pass

class EyesFamily(TimmViT):
    name = "eyes"
    classes = ("Eyes",)
"""


@pytest.fixture
def python(tmp_path):
    """Install a package of those entry points and run code in a new interpreter; its output, and what it warned of."""

    def run(code: str, **groups: dict[str, str]) -> tuple[str, str]:
        package = tmp_path / "eyes"
        package.mkdir(exist_ok=True)
        files = {"__init__": "", "method": METHOD, "family": FAMILY, "broken": "import nothing_of_this_name", "loud": "1 / 0"}
        for name, text in files.items():
            (package / f"{name}.py").write_text(text)
        info = tmp_path / "eyes-1.2.dist-info"
        info.mkdir(exist_ok=True)
        (info / "METADATA").write_text("Metadata-Version: 2.1\nName: eyes\nVersion: 1.2\n")
        lines = [
            line
            for group, names in groups.items()
            for line in (f"[sparsight.{group}]", *map("{0[0]} = {0[1]}".format, names.items()))
        ]
        (info / "entry_points.txt").write_text("\n".join(lines) + "\n")
        path = os.pathsep.join([str(tmp_path), *map(str, sys.path)])
        done = subprocess.run(
            [sys.executable, "-c", code],
            env={**os.environ, "PYTHONPATH": path},
            capture_output=True,
            text=True,
            check=True,
            cwd=tmp_path,
        )
        return done.stdout, done.stderr

    return run


def test_methods_and_scores(python):
    """A module registers by its decorators, a function by being named; a recipe finds both."""
    code = """
import json, sparsight, torch
names = ["key_norm:keep=0.5", "longest", "compose:score=key_length,tokens=5"]
x, k = torch.randn(1, 10, 4), torch.randn(1, 2, 11, 4)
print(json.dumps([sparsight.reduce(name, x=x, k=k, prefix=1, v=k, q=k).plan.keep.tolist() for name in names]))
print([entry.summary for entry in sparsight.methods() if entry.name in ("key_norm", "longest")])
"""
    out, err = python(code, methods={"anything": "eyes.method", "longest": "eyes.method:longest"})
    plans, summaries = out.splitlines()
    first, *others = json.loads(plans)
    assert all(plan == first for plan in others)
    assert len(first[0]) == 5
    assert summaries == "['keep the patches whose keys are longest', 'keep the longest keys']"
    assert err == ""


def test_a_broken_package_stops_nobody_else(python):
    """What it offers is a PruneError that names the package; everything else works, with a warning once."""
    code = """
import sparsight
print(sparsight.parse("evit"))
for name in ("bad", "worse", "bed"):
    try:
        sparsight.parse(name)
    except sparsight.PruneError as error:
        print(error)
print(len(sparsight.methods()) > 20, len(sparsight.methods()) > 20)
"""
    groups = {"methods": {"bad": "eyes.broken", "worse": "eyes.loud", "key_norm": "eyes.method", "evit": "eyes.method:nothing"}}
    out, err = python(code, **groups)
    evit, bad, worse, bed, listed = out.splitlines()
    assert evit == "evit:keep=0.7,layers=3/6/9"
    assert bad.startswith(
        "method 'bad': entry point eyes.broken of eyes 1.2 cannot be used: ModuleNotFoundError: No module named 'nothing"
    )
    assert "ZeroDivisionError" in worse
    assert bed.endswith("not loaded: bad, worse, evit")
    assert listed == "True True"
    assert err.count("sparsight goes on without 'bad'") == 1


def test_families(python):
    code = """
import sparsight, eyes.family
print(sparsight.families()[0] is eyes.family.EyesFamily, sparsight.prune.__module__)
"""
    for target in ("eyes.family:EyesFamily", "eyes.family"):
        text = (
            FAMILY
            if ":" in target
            else FAMILY.replace("class EyesF", "import sparsight\n\n@sparsight.register_family\nclass EyesF")
        )
        code_of = f"import pathlib; pathlib.Path('eyes/family.py').write_text({text!r})\n" + code
        assert python(code_of, families={"eyes": target})[0].split()[0] == "True"


def test_a_family_that_is_none_is_refused():
    for wrong in (Path, object(), "Eyes", 5):
        with pytest.raises(PruneError, match="register_family takes a subclass"):
            sparsight.register_family(wrong)


def test_prune_asks_registered_families_first(monkeypatch):
    timm = pytest.importorskip("timm")
    from sparsight import registry
    from sparsight.models.timm_vit import TimmViT

    monkeypatch.setattr(registry, "_families", [])

    @sparsight.register_family
    class Eyes(TimmViT):
        name = "eyes"
        classes = ("VisionTransformer",)

    model = timm.models.VisionTransformer(img_size=16, patch_size=4, embed_dim=8, depth=2, num_heads=2, num_classes=3).eval()
    with sparsight.prune(model, "random:tokens=5,layers=1") as handle:
        model(torch.zeros(1, 3, 16, 16))
        assert isinstance(handle.family, Eyes)
        assert handle.counts == [5]
