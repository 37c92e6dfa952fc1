"""What holds for every method between vision encoder and language model."""

from typing import Any

import pytest
import torch

import sparsight
from sparsight.errors import PruneError

RECIPES = [
    "fastervlm:tokens=12",
    "fastervlm:tokens=12,score=column_mean",
    "visionzip:tokens=12,contextual=3",
    "visionzip:tokens=12,contextual=3,score=col_ln",
    "vispruner:tokens=12,ratio=0.5",
    "vispruner:tokens=13,ratio=0.5,rescue=0.8",
    "divprune:tokens=12",
    "fps:tokens=12",
    "fps:tokens=12,start=attention,space=features",
    "prumerge",
    "prumerge:tokens=12",
    "prumerge:tokens=12,score=col_ln",
    "prumerge_plus",
    "prumerge_plus:tokens=12",
    "bat:tokens=12,ratio=0.5",
    "agile:tokens=12,by=erank,count=fixed",
    "agile:tokens=12,by=entropy,count=adaptive",
    "mix:tokens=12,attention=fastervlm,diversity=divprune,by=erank",
    "mix:tokens=12,attention=col_ln,diversity=vispruner,by=entropy",
    "mix:tokens=12,diversity=bat,inverse=true",
    "cdpruner:tokens=12",
    "cdpruner:tokens=12,text=none",
    "scope:tokens=12,alpha=0.5",
    "holov:tokens=12,crops=5",
    "holov:tokens=12,crops=7,overflow=authors,order=authors",
    "prunesid:tokens=12",
    "prunesid:tokens=12,score=column_mean,order=authors",
    "hiprune:tokens=12",
    "vscan:tokens=12",
    "vscan:tokens=12,score=column_mean,merge=false",
]
FIRST = [
    pytest.param(
        recipe, marks=pytest.mark.product if any(other.startswith(recipe.partition(":")[0]) for other in RECIPES[:i]) else ()
    )
    for i, recipe in enumerate(RECIPES)
]
"""One of each method; the others belong to the full product."""


def signals(rng, batch: int = 3, n: int = 50, dtype: torch.dtype = torch.float32) -> dict[str, Any]:
    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=rng).to(dtype)

    d = {"x": draw(batch, n, 24), "feats": draw(batch, n, 16), "class_token": draw(batch, 1, 24), "text": draw(batch, 3, 16)}
    early = {"shallow_q": 2 * draw(batch, 4, n + 1, 8), "shallow_k": draw(batch, 4, n + 1, 8), "grid": (5, n // 5)}
    return {**d, "q": 2 * draw(batch, 4, n + 1, 8), "k": draw(batch, 4, n + 1, 8), **early}


@pytest.mark.parametrize("recipe", RECIPES)
def test_image_of_a_batch_equals_the_image_alone(rng, recipe):
    d = signals(rng)
    out = sparsight.reduce(recipe, **d)
    for image, count in enumerate(out.plan.counts):
        alone = sparsight.reduce(recipe, **{key: value if key == "grid" else value[image : image + 1] for key, value in d.items()})
        assert alone.plan.counts == [count]
        assert torch.equal(out.plan.owner[image], alone.plan.owner[0])
        assert torch.allclose(out.x[image, :count], alone.x[0], atol=1e-5)
        assert out.x[image, count:].eq(0).all()


@pytest.mark.parametrize("recipe", FIRST)
def test_plan_tells_the_truth(rng, recipe):
    d = signals(rng)
    out = sparsight.reduce(recipe, **d)
    assert out.x.shape == (3, out.plan.slots, 24)
    if not any(word in recipe for word in ("prumerge", "adaptive", "overflow=authors")):
        assert out.plan.counts == [13 if "tokens=13" in recipe else 12] * 3
    owner, keep = out.plan.owner, out.plan.keep
    for image in range(3):
        real = keep[image][keep[image] >= 0]
        slot = torch.arange(len(real)) + int(out.plan.led)
        assert torch.equal(owner[image, real], slot)
        assert owner[image].max() < out.plan.counts[image]
    assert torch.equal(out.plan.fold(torch.ones(3, 50, 1)), out.size) or (owner < 0).any()


@pytest.mark.parametrize("recipe", FIRST)
def test_half_precision_is_scored_in_float32(rng, recipe):
    for dtype in (torch.float16, torch.bfloat16):
        d = signals(rng, dtype=dtype)
        out = sparsight.reduce(recipe, **d)
        exact = sparsight.reduce(recipe, **{key: value if key == "grid" else value.float() for key, value in d.items()})
        assert out.x.dtype == dtype
        assert torch.equal(out.plan.keep, exact.plan.keep)
        assert torch.allclose(out.x.float(), exact.x, atol=0.05, rtol=0.02)


@pytest.mark.parametrize("recipe", FIRST)
def test_keep_all_is_the_identity(rng, recipe):
    d = signals(rng)
    body = ",".join(part for part in recipe.partition(":")[2].split(",") if part and not part.startswith(("tokens", "count")))
    name = f"{recipe.partition(':')[0]}:keep=1" + (f",{body}" if body else "")
    assert torch.equal(sparsight.reduce(name, **d).x, d["x"])


@pytest.mark.parametrize("recipe", FIRST)
def test_inputs_stay_and_gradients_flow(rng, recipe):
    d = signals(rng, batch=1)
    before = {key: value.clone() for key, value in d.items() if key != "grid"}
    d["x"].requires_grad_()
    sparsight.reduce(recipe, **d).x.sum().backward()
    assert d["x"].grad is not None
    assert d["x"].grad.abs().sum() > 0
    assert all(torch.equal(before[key], d[key].detach()) for key in before)


def test_recipes_survive_their_text_and_json():
    for recipe in RECIPES:
        made = sparsight.parse(recipe)
        assert made.schedule.layers == ()
        assert made.where in ("encoder", "projector")
        assert sparsight.parse(str(made)) == made
        assert sparsight.Recipe.from_json(made.to_json()) == made


def test_more_tokens_than_there_are(rng):
    for name in dict.fromkeys(recipe.partition(":")[0] for recipe in RECIPES):
        with pytest.raises(PruneError, match="more than the 50"):
            sparsight.reduce(f"{name}:tokens=51", **signals(rng))
        with pytest.raises(PruneError, match="tokens"):
            sparsight.parse(f"{name}:tokens=0")
