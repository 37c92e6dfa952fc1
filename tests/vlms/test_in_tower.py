"""Several recipes in one call: inside the vision tower, before the language model and inside it, against the same done by hand."""

import pytest
import torch
from lvlms import IMAGE, Size, answer, build, inputs

import sparsight
from sparsight import PruneError

TOWER, BEHIND, INSIDE = "random:keep=0.5,layers=0/1", "fps:tokens=3", "fastv:keep=0.5,layer=1"
PICTURES = [Size(16, 16, seed) for seed in range(2)]
PROMPTS = [[3, PICTURES[0], 4], [2, PICTURES[1], 6]]


@pytest.fixture(params=["llava", "llava-dinov2"])
def model(request):
    return build(request.param)


@pytest.fixture
def given(model, request):
    return inputs(request.node.callspec.params["model"], model, PROMPTS)


@torch.no_grad()
@pytest.mark.parametrize(
    "behind", [BEHIND, "fastervlm:tokens=3", "visionzip:tokens=3,contextual=1", "agile:tokens=3", "random:keep=1"]
)
def test_by_hand(model, given, behind):
    core = model.model
    with sparsight.prune(core.vision_tower, TOWER) as handle:
        states = core.vision_tower(given["pixel_values"], output_hidden_states=True).hidden_states[-2]
        places = handle.sources()[-1].keep
    tokens = core.multi_modal_projector(states[:, 1:])
    with sparsight.prune(model, [TOWER, behind]) as stack:
        got = model(**given).logits
        counts, plans = stack.counts, stack.plans
    assert counts == [[8, 4], [3 if "tokens=3" in behind else 4] * 2]
    for row, (plan, prompt) in enumerate(zip(plans[1], given["input_ids"], strict=True)):
        at = plan.keep[0]
        assert set(at.tolist()) <= set(places[row].tolist())
        assert plan.total == 16
        if plan.led or plan.merged is not None:
            continue
        chosen = tokens[row][torch.stack([(places[row] == place).nonzero()[0, 0] for place in at])]
        mask = given["attention_mask"][row].bool()
        ids = prompt[mask]
        images = (ids == IMAGE).nonzero().squeeze(1)
        drop = images[len(at) :]
        short = torch.cat([ids[: drop[0]], ids[drop[-1] + 1 :]])[None]
        embedded = core.get_input_embeddings()(short).masked_scatter((short == IMAGE)[..., None], chosen)
        alone = model.lm_head(core.language_model(inputs_embeds=embedded).last_hidden_state)
        torch.testing.assert_close(got[row, -1], alone[0, -1])


@torch.no_grad()
def test_three_places_and_back(model, given):
    before, answered = model(**given).logits, answer(model, given)
    with sparsight.prune(model, [TOWER, BEHIND, INSIDE]) as stack:
        assert str(stack) == f"{TOWER} + {BEHIND} + {INSIDE}"
        answer(model, given)
        assert stack.counts[0] == [8, 4]
        assert stack.counts[1] == [3, 3]
        assert stack.counts[2] != []
        batch = model(**given).logits[:, -1]
        for row, prompt in enumerate(PROMPTS):
            alone = model(**inputs("llava", model, [prompt])).logits[0, -1]
            torch.testing.assert_close(alone, batch[row], rtol=1e-5, atol=1e-5)  # positions of the padded row are rounded otherwise
    stack.remove()
    assert torch.equal(model(**given).logits, before)
    assert torch.equal(answer(model, given), answered)
    assert sparsight.handles(model) == []


def test_every_token_kept_is_the_untouched_model(model, given):
    with torch.no_grad():
        before = model(**given).logits
        with pytest.warns(UserWarning, match="removes none"), sparsight.prune(model, ["random:keep=1,layers=0", "random:keep=1"]):
            torch.testing.assert_close(model(**given).logits, before)


@pytest.mark.parametrize(
    ("recipes", "says"),
    [
        ([], "empty list"),
        ([BEHIND, "divprune:tokens=2"], "fps is not the last"),
        (["evit:keep=0.5,layers=0", BEHIND], "stand for one patch each"),
        (["col_ln:keep=0.5,layers=2", BEHIND], "give layers up to 1"),
        ([TOWER, "resize:tokens=4"], "take one of the two"),
        ([TOWER, BEHIND, "fastv:layer=9"], "out of range"),
        ([TOWER, "hiprune:tokens=3"], "earlier block"),
    ],
    ids=lambda value: value if isinstance(value, str) else "+".join(value),
)
def test_refused_as_a_whole(recipes, says):
    model = build("llava")
    with pytest.raises(PruneError, match=says):
        sparsight.prune(model, recipes)
    assert sparsight.handles(model) == []


def test_refused_on_tiles_and_with_options():
    with pytest.raises(PruneError, match=r"LLaVA-1\.5's kind only"):
        sparsight.prune(build("llava-next"), [TOWER, BEHIND])
    with pytest.raises(PruneError, match="are for one recipe"):
        sparsight.prune(build("llava"), [TOWER, BEHIND], keep=0.5)
