"""CDPruner against Theia-4869/CDPruner 9541616, and where their code returns tokens twice."""

import pytest
import torch

import sparsight
from sparsight.methods import cdpruner


def given(d):
    return {"x": d["x"].float(), "feats": d["image_embeds"].float(), "text": d["text_embeds"].float()}


@pytest.mark.parametrize("name", ["N100_K32_seed0", "N100_K20_B2_M3_seed0", "N576_K64_seed0"])
def test_kept_set(newer, name):
    d = newer(f"cdpruner_{name}")
    shared = len(d["x"]) > 1
    signals, count = given(d), int(d["K"])
    relevance = cdpruner.relevance(signals["feats"], signals["text"], "minus", shared)
    torch.testing.assert_close(relevance.double(), d["relevance"], rtol=1e-5, atol=1e-5)
    assert torch.equal(cdpruner.likeliest(signals["x"], relevance, count), d["selected_order"])
    out = sparsight.reduce(f"cdpruner:tokens={count},shared={str(shared).lower()}", **signals)
    assert torch.equal(out.plan.keep, d["kept_sorted"])


def test_the_sign_turns_the_choice(newer):
    signals = given(newer("cdpruner_N100_K32_seed0"))
    minus, plus = (
        set(sparsight.reduce(f"cdpruner:tokens=8,sign={sign}", **signals).plan.keep[0].tolist()) for sign in ("minus", "plus")
    )
    assert len(minus & plus) < 4


def test_an_image_does_not_depend_on_its_batch(newer):
    signals = given(newer("cdpruner_N100_K20_B2_M3_seed0"))
    both = sparsight.reduce("cdpruner:tokens=20", **signals).plan.keep
    for image in range(2):
        alone = {key: value if key == "text" else value[image : image + 1] for key, value in signals.items()}
        assert torch.equal(sparsight.reduce("cdpruner:tokens=20", **alone).plan.keep[0], both[image])


@pytest.mark.parametrize("kind", ["equal", "zero", "rank", "one zero"])
def test_distinct_tokens_whatever_the_input(rng, kind):
    x = {
        "equal": torch.ones(2, 40, 8),
        "zero": torch.zeros(2, 40, 8),
        "rank": torch.randn(2, 40, 4, generator=rng),
        "one zero": torch.cat([torch.zeros(2, 1, 8), torch.randn(2, 39, 8, generator=rng)], dim=1),
    }[kind]
    text = torch.randn(1, x.shape[2], generator=rng)
    for recipe in ("cdpruner:tokens=20", "cdpruner:tokens=20,text=none"):
        keep = sparsight.reduce(recipe, x=x, feats=x, text=text).plan.keep
        assert all(len(set(row)) == 20 and row == sorted(row) for row in keep.tolist())


def test_text_is_asked_for():
    with pytest.raises(sparsight.PruneError, match="cdpruner needs text"):
        sparsight.reduce("cdpruner", x=torch.randn(1, 80, 4))
