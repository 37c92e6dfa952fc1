"""No method but rollout makes the attention matrix [B, H, N, N]: the highest point of memory of each at 4,097 tokens with six heads."""

import subprocess
import sys

import pytest
import torch

import sparsight
from sparsight.apply import needs
from sparsight.registry import methods
from sparsight.speed.timing import Alive

SIDE, HEADS, WIDTH = 64, 6, 64
"""Patches along a side, heads, numbers per head: ViT-S on 1024 x 1024 pixels. A copy of x or q takes 0.09 of an [N, N] matrix."""

LIMITS = {
    "agile": 1.2,
    "bat": 2.5,
    "cdpruner": 2.1,
    "compose:score=class_attention,reduce=merge": 3.1,
    "compose:score=class_attention,select=diverse": 1.2,
    "compose:score=class_attention,select=thinned": 3.1,
    "divprune": 2.4,
    "dpc_knn": 2.4,
    "dynamicvit": 0.4,
    "fps": 2.3,
    "k_medoids": 2.1,
    "k_medoids:weigh=equal": 2.1,
    "mix": 2.4,
    "mix:diversity=bat": 2.5,
    "mix:diversity=fps": 2.3,
    "patch_merger": 1.7,
    "pitome": 3.3,
    "prumerge": 0.5,
    "prumerge:score=col_ln": 0.5,
    "prumerge_plus": 1.2,
    "prumerge_plus:keep=0.25,spacing=training": 1.7,
    "prunesid": 4.5,
    "scope": 2.2,
    "similarity:diversity=1.5": 0.5,
    "sinkhorn": 3.0,
    "sit": 1.6,
    "tca": 1.0,
    "vispruner": 3.1,
    "vidcom2": 0.5,
    "vscan": 2.3,
}
"""What methods that compare patches or mix them may take beside their signals, in [N, N] matrices of float32: the attention
matrix of six heads is 6. Similarities are one for all heads; soft poolers make [K, N] with K up to 0.7 N."""

STATISTIC = 0.3
"""For all others: 5 % of the attention matrix, for a block of its rows and copies of the tokens."""

OPTIONS = (
    "ats:version=tr",
    "col_ln:heads=average",
    "col_ln:stride=4",
    "compose:score=renyi,select=bipartite,reduce=merge",
    "evit:score=col_ln",
    "similarity:metric=l2",
    "similarity:threshold=0.01,cells=8",
)
"""Options that look at other things than the method's defaults."""

FEW_PATCHES = {
    "vispruner": 32,
    "k_medoids:weigh=equal": 24,
    "prunesid": 24,
    "scope": 32,
    "compose:score=class_attention,select=thinned": 32,
}
"""Patches along a side where the method goes on in steps, so that 4,096 patches would take 15 to 45 seconds. Widths shrink alike, so that
all shares of the matrix stay."""

SITES = sorted({*(entry.name for entry in methods() if entry.name not in ("rollout", "resize")), *OPTIONS, *LIMITS})

MEASURED = ("col_ln", "prumerge_plus", "dpc_knn")
"""Methods whose process is watched as well, because scratch space inside an operation is not a tensor."""

PROCESS = """
import resource, sys
from test_memory import offered, sparsight, torch
torch.set_num_threads(1)
text, side = sys.argv[1], int(sys.argv[2])
with torch.no_grad():
    sparsight.reduce(text, **offered(text, 12))
    given = offered(text, side)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    sparsight.reduce(text, **given)
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


def offered(text, side):
    """Signals of every kind for one image of side x side patches behind a class token."""
    recipe = sparsight.parse(text)
    rng = torch.Generator().manual_seed(0)
    n, depth = side * side, max(2, WIDTH * side**2 // SIDE**2)

    def tensor(*shape):
        return torch.randn(1, *shape, generator=rng)

    inside = recipe.where == "decoder"
    given = {name: tensor(HEADS, n + (not inside), depth) for name in "qkv"} | {"grid": (side, side)}
    given |= {f"shallow_{name}": tensor(HEADS, n + 1, depth) for name in "qk"} if recipe.shallow else {}
    given |= {"text_k": tensor(HEADS, 3, depth)} if "text_k" in needs(recipe) else {}
    given |= {"x": tensor(n, HEADS * depth), "feats": tensor(n, HEADS * depth), "class_token": tensor(1, HEADS * depth)}
    if "text" in needs(recipe):
        given["text"] = tensor(3, HEADS * depth)
    if "text_attn" in needs(recipe):
        given["text_attn"] = tensor(8, n).softmax(-1)
    if recipe.weights is not None:
        wanted = recipe.weights(HEADS * depth, recipe.schedule.count(n, 0, 1))
        given["weights"] = {name: 0.02 * tensor(*weight.shape)[0] for name, weight in wanted.items()}
    return given


def test_only_rollout_asks_for_the_matrix():
    assert {entry.name for entry in methods() if {"attn", "attns"} & set(needs(sparsight.parse(entry.name)))} == {"rollout"}


@torch.no_grad()
@pytest.mark.parametrize("text", SITES)
def test_tensors(text):
    side = FEW_PATCHES.get(text, SIDE)
    given = offered(text, side)
    with Alive() as alive:
        sparsight.reduce(text, **given)
    assert alive.peak <= LIMITS.get(text, STATISTIC) * 4 * side**4


@pytest.mark.skipif(sys.platform != "linux", reason="counts kilobytes as Linux does")
@pytest.mark.parametrize("text", MEASURED)
def test_process(text, request):
    """Beside what the tensors may take: half a matrix for scratch space, and for what malloc keeps."""
    command = [sys.executable, "-c", PROCESS, text, str(SIDE)]
    done = subprocess.run(command, cwd=request.path.parent, capture_output=True, text=True, check=True)
    assert 1024 * int(done.stdout) <= (LIMITS.get(text, STATISTIC) + 0.5) * 4 * SIDE**4
