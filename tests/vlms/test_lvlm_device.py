"""Vision-language models on a GPU: the answers are those on the CPU, nothing of the pruning is left there."""

import pytest
import torch
from lvlms import BUILD, CLASS_TOKEN, Size, answer, build, inputs, product
from pretended import gpu, moved, to_cpu, to_gpu

import sparsight

SAMPLES = [[3, Size(32, 16), 4], [9], [2, Size(16, 32, 1), 2, Size(16, 16, 2), 6]]
ANY = ["col_ln:tokens=3", "divprune:keep=0.3", "fps:tokens=3", "prumerge:score=column_mean"]
BY_CLASS = ["vispruner:tokens=4", "prumerge_plus", "agile:tokens=4", "mix:tokens=4,by=entropy", "visionzip:tokens=4,contextual=1"]
INSIDE = ["fastv:layer=1,keep=0.5", "pyramiddrop:layers=1/2,keep=0.5/0.25"]
CASES = [(name, text) for name in BUILD for text in ANY + BY_CLASS * (name in CLASS_TOKEN) + INSIDE]
CASES += [(name, "resize:tokens=4") for name in BUILD if name not in ("llava-next", "onevision")]
CASES.remove(("llava-next", "visionzip:tokens=4,contextual=1"))


@torch.no_grad()
@pytest.mark.parametrize(
    ("name", "text"),
    product(CASES, lambda name, text: name == "llava" or (name in ("qwen2.5", "qwen3") and (text in INSIDE or "resize" in text))),
)
def test_the_same_answers(name, text):
    model = build(name)
    given = inputs(name, model, SAMPLES)
    with sparsight.prune(model, text) as handle:
        want, counts = answer(model, given), handle.counts
    with gpu():
        there = moved(build(name))
        with sparsight.prune(there, text) as handle:
            assert torch.equal(to_cpu(answer(there, to_gpu(given))), want)
            assert handle.counts == counts
