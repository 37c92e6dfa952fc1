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
    kernel = cdpruner.kernel_of(signals["x"], relevance, "product", 0)
    assert torch.equal(cdpruner.likeliest(kernel, relevance, count), d["selected_order"])
    out = sparsight.reduce(f"cdpruner:tokens={count},shared={str(shared).lower()}", **signals)
    assert torch.equal(out.plan.keep, d["kept_sorted"])


@pytest.mark.parametrize("name", ["N100_K32_seed0", "N576_K64_seed0"])
def test_words_of_the_language_model(newer, name):
    """Numbers of openvino.genai's formulas, all three kernels; the order of choice, and what `reduce` keeps."""
    d = newer(f"NONOFFICIAL_cdpruner_llmtext_{name}")
    x, text, count = d["x"].double().unsqueeze(0), d["text"].double(), int(d["K"])
    relevance = cdpruner.relevance_to_words(x, text, "auto", False)
    torch.testing.assert_close(relevance[0], d["relevance"], rtol=1e-5, atol=1e-5)
    for kernel in ("exp", "blend", "product"):
        used = relevance + (kernel == "product") * cdpruner.FLOOR
        order = cdpruner.likeliest(cdpruner.kernel_of(x, used, kernel, float(d["theta"])), used, count)
        assert torch.equal(order[0], d[f"order_{kernel}"]), kernel
        out = sparsight.reduce(
            f"cdpruner:tokens={count},text=llm,kernel={kernel},theta={float(d['theta'])}", x=x.float(), text=text.float()
        )
        assert torch.equal(out.plan.keep[0], order[0].sort().values), kernel
    assert torch.equal(
        sparsight.reduce(f"cdpruner:tokens={count},text=llm", x=x, text=text).plan.keep[0], d["order_exp"].sort().values
    )


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
    for more in (
        "",
        ",text=none",
        ",text=llm",
        ",text=llm,kernel=blend",
        ",text=llm,kernel=product,sign=minus",
        ",kernel=exp,theta=0.9",
    ):
        recipe = f"cdpruner:tokens=20{more}"
        keep = sparsight.reduce(recipe, x=x, feats=x, text=text).plan.keep
        assert all(len(set(row)) == 20 and row == sorted(row) for row in keep.tolist())


def test_bad_numbers():
    for recipe, words in (("theta=1", "theta=1"), ("text=llm,tower=some/clip", "tower=some/clip"), ("text=given", "choose clip")):
        with pytest.raises(sparsight.PruneError, match=words):
            sparsight.parse(f"cdpruner:{recipe}")


def test_text_is_asked_for():
    with pytest.raises(sparsight.PruneError, match="cdpruner needs text"):
        sparsight.reduce("cdpruner", x=torch.randn(1, 80, 4))
