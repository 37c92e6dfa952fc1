"""Weights of learned methods: given as mappings, lists, files or "random", held by the handle, trained beside the model."""

import copy

import pytest
import timm
import torch
from safetensors.torch import save_file

import sparsight
from sparsight import PruneError

RECIPE = "patch_merger:keep=0.6,layers=1/2"


def make(**options):
    torch.manual_seed(0)
    sizes = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 3, "num_heads": 2, "num_classes": 5}
    return timm.models.VisionTransformer(**{**sizes, **options}).eval()


X = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def test_weights_belong_to_the_handle():
    model = make()
    keys = list(model.state_dict())
    parameters = sum(1 for _ in model.parameters())
    with sparsight.prune(model, RECIPE, weights="random") as handle:
        assert list(model.state_dict()) == keys
        assert sum(1 for _ in model.parameters()) == parameters
        shapes = {key: tuple(value.shape) for key, value in handle.learned.state_dict().items()}
    assert shapes == {
        f"{site}.{name}": shape
        for site, count in enumerate((9, 5))
        for name, shape in (("queries", (count, 32)), ("norm.weight", (32,)), ("norm.bias", (32,)))
    }
    assert sparsight.prune(model, "col_ln:layers=1").learned is None


@pytest.mark.parametrize(
    "recipe", [RECIPE, "sit:keep=0.6,layers=1/2", "sinkhorn:keep=0.6,layers=1/2", "dpc_knn:layers=1,weigh=learned"]
)
def test_training_changes_them_and_the_output(recipe):
    model = make().train()
    handle = sparsight.prune(model, recipe, weights="random")
    before = {key: value.clone() for key, value in handle.learned.state_dict().items()}
    optimizer = torch.optim.SGD(handle.learned.parameters(), lr=1.0)
    first = model(X)
    loss = first.square().sum()
    loss.backward()
    optimizer.step()
    assert all(p.grad is not None for p in handle.learned.parameters())
    moved = [not torch.equal(value, before[key]) for key, value in handle.learned.state_dict().items()]
    assert sum(moved) >= len(moved) - 2  # a bias under a softmax over the tokens has no effect
    assert not torch.equal(model(X), first)


@torch.no_grad()
def test_saved_and_given_again(tmp_path):
    model = make()
    handle = sparsight.prune(model, RECIPE, weights="random")
    for parameter in handle.learned.parameters():
        parameter.add_(0.1)
    state = handle.learned.state_dict()
    expected = model(X)
    handle.remove()
    save_file(state, tmp_path / "w.safetensors")
    per_site = [{key[2:]: value for key, value in state.items() if key[0] == site} for site in "01"]
    for given in (state, per_site, tmp_path / "w.safetensors", str(tmp_path / "w.safetensors")):
        with sparsight.prune(model, RECIPE, weights=given):
            assert torch.equal(model(X), expected)
    with sparsight.prune(
        model, "patch_merger:tokens=4,layers=1/2", weights={**per_site[0], "queries": state["0.queries"][:4]}
    ) as same:
        assert torch.equal(same.learned[0].queries, same.learned[1].queries)
        same.learned[0].queries.zero_()
        assert not torch.equal(same.learned[0].queries, same.learned[1].queries)


@torch.no_grad()
@torch.no_grad()
def test_file_in_the_recipe_string(tmp_path):
    model, file = make(), tmp_path / "weights.safetensors"
    with sparsight.prune(model, RECIPE, weights="random") as handle:
        wanted = model(X)
        handle.learned[0].queries.mul_(2)
        changed = model(X)
        save_file(handle.learned.state_dict(), file)
    text = f"{RECIPE},weights={file}"
    with sparsight.prune(model, text) as handle:
        assert str(handle.recipe) == text
        assert sparsight.Recipe.from_json(handle.recipe.to_json()) == handle.recipe
        assert torch.equal(model(X), changed)
    with sparsight.prune(model, text, weights="random"):
        assert torch.equal(model(X), wanted)
        assert not torch.allclose(wanted, changed)
    with pytest.raises(PruneError, match="no learned weights"):
        sparsight.parse("evit:weights=random")


def test_random_is_the_same_every_time():
    one, two = (sparsight.prune(make(), RECIPE, weights="random").learned.state_dict() for _ in range(2))
    assert all(torch.equal(one[key], two[key]) for key in one)


def test_copies_have_their_own():
    model = make()
    handle = sparsight.prune(model, RECIPE, weights="random")
    model(X).sum().backward()
    twin, twin_handle = copy.deepcopy((model, handle))
    assert torch.equal(twin(X), model(X))
    with torch.no_grad():
        twin_handle.learned[0].queries.normal_()
    assert not torch.equal(twin(X), model(X))


@torch.no_grad()
def test_half_precision_model_and_macs():
    model = make().to(torch.bfloat16)
    with sparsight.prune(model, RECIPE, weights="random") as handle:
        assert {p.dtype for p in handle.learned.parameters()} == {torch.bfloat16}
        assert model(X.to(torch.bfloat16)).dtype == torch.bfloat16
    pruned = sparsight.macs(make(), RECIPE, 32)
    with sparsight.prune(whole := make(), RECIPE, weights="random"):
        assert sparsight.macs(whole, None, 32) == pruned < sparsight.macs(make(), None, 32)


@torch.no_grad()
def test_compiled_in_one_graph():
    model = make()
    with sparsight.prune(model, RECIPE, weights="random"):
        torch._dynamo.reset()
        compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
        torch.testing.assert_close(compiled(X), model(X))
    torch._dynamo.reset()


GOOD = {"queries": torch.zeros(9, 32), "norm.weight": torch.ones(32), "norm.bias": torch.zeros(32)}
BAD = [
    (RECIPE, None, r"learned method: give weights= \{queries: \[9, 32\]"),
    (RECIPE, GOOD, r"weight queries must be a tensor \[5, 32\], got \(9, 32\)"),
    (RECIPE, [GOOD], "has 1 sites and the recipe 2"),
    (RECIPE, {"queries": torch.zeros(9, 32)}, "needs weights .* got queries"),
    (RECIPE, {**GOOD, "queries": "x"}, "must be a tensor"),
    (RECIPE, 3, "must be a mapping, a list of mappings"),
    (RECIPE, "nothing.safetensors", "cannot be read as a .safetensors file"),
    ("col_ln:layers=1", GOOD, "col_ln has no weights"),
]


@pytest.mark.parametrize(("recipe", "weights", "message"), BAD)
def test_bad_weights(recipe, weights, message):
    model = make()
    before = model(X)
    with pytest.raises(PruneError, match=message):
        sparsight.prune(model, recipe, weights=weights)
    assert torch.equal(model(X), before)


def test_raw_tensors_need_them_too():
    x = torch.randn(1, 16, 32)
    with pytest.raises(PruneError, match="needs weights"):
        sparsight.reduce("patch_merger:tokens=9", x=x)
    with pytest.raises(PruneError, match="got none"):
        sparsight.reduce("patch_merger:tokens=9", x=x, weights={})
    assert sparsight.reduce("patch_merger:tokens=9", x=x, weights=GOOD).x.shape == (1, 9, 32)
