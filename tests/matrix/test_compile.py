"""A pruned model is one graph: torch.compile(fullgraph=True) equals the eager model and does not compile again."""

import copy

import pytest
import torch
from zoo import RECIPES, fixed, images, made, outputs, prune

pytestmark = pytest.mark.slow


@pytest.fixture(autouse=True)
def fresh():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@torch.no_grad()
@pytest.mark.parametrize(
    ("name", "recipe"),
    [
        ("timm-token-avg", "col_ln:keep=0.6,layers=1"),
        ("timm-token-avg", "tome:remove=3,layers=1/2"),
        ("vit", "evit:keep=0.6,layers=1"),
        ("dinov2", "tome:remove=3,layers=1/2"),
        ("vit", "sinkhorn:keep=0.6,layers=1/2"),
        ("dinov2", "k_medoids:keep=0.6,layers=1/2"),
        ("vit", "rollout:keep=0.6,layers=1/2"),
        ("timm-token-avg", "tca:keep=0.8,layers=1,cache=3"),
        ("vit", "compose:keep=0.6,layers=1,score=col_ln,select=diverse,reduce=fuse_rest"),
    ],
)
def test_fullgraph(name, recipe):
    model, x = copy.deepcopy(made(name)), images(name)
    with prune(model, recipe) as handle:
        eager, plans = fixed(name, model, x), handle.plans
        compiled = torch.compile(model, fullgraph=True, backend="aot_eager", dynamic=False)
        for _ in range(2):
            with torch._dynamo.config.patch(error_on_recompile=True):
                found = fixed(name, compiled, x)
        assert all(torch.equal(a.keep, b.keep) for a, b in zip(handle.plans, plans, strict=True))
    for key in eager:
        torch.testing.assert_close(found[key], eager[key], rtol=1e-6, atol=1e-6)  # transformers resamples positions in float32
    torch.testing.assert_close(outputs(name, model, x), outputs(name, made(name), x), rtol=0, atol=1e-12)


OFTEN = {
    ("timm-token-avg", "col_ln"),
    ("timm-token-avg", "tome"),
    ("timm-token-avg", "evit"),
    ("vit", "tca"),
    ("timm-token-avg", "rollout"),
}
DYNAMIC = [
    pytest.param(model, name, id=f"{model}-{name}", marks=() if (model, name) in OFTEN else pytest.mark.product)
    for model, name in [
        *(("timm-token-avg", name) for name in RECIPES),
        *(("vit", name) for name in ("col_ln", "evit", "tome", "dpc_knn", "tca")),
    ]
]


@torch.no_grad()
@pytest.mark.parametrize(("name", "method"), DYNAMIC)
def test_one_graph_for_every_batch_size(name, method):
    """Every method with a fixed budget, whole graph and free batch: one compilation serves them all."""
    model = copy.deepcopy(made(name))
    with prune(model, RECIPES[method]) as handle:
        compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
        for batch in (2, 3, 5):
            x = images(name, batch)
            torch._dynamo.mark_dynamic(x, 0)
            with torch._dynamo.config.patch(error_on_recompile=batch > 2):
                found = outputs(name, compiled, x)
            kept = [plan.keep for plan in handle.plans]
            for key, value in outputs(name, model, x).items():
                torch.testing.assert_close(found[key], value, rtol=1e-6, atol=1e-6)
            assert all(torch.equal(keep, plan.keep) for keep, plan in zip(kept, handle.plans, strict=True))


@torch.no_grad()
@pytest.mark.parametrize(
    "recipes",
    [
        ["col_ln:keep=0.7,layers=0/1/2", "col_ln:keep=0.5,layers=0/1/2", "col_ln:keep=0.6,layers=all"],
        ["tome:remove=3,layers=0/1", "tome:remove=2,inflect=-0.5,layers=0/1"],
        ["dpc_knn:keep=0.8,layers=0/1", "dpc_knn:keep=0.6,layers=0/1"],
        ["renyi:keep=0.7,order=2.5,layers=1", "renyi:keep=0.7,order=1.5,layers=1"],
    ],
    ids=lambda recipes: recipes[0].partition(":")[0],
)
def test_budgets_are_constants_of_every_graph(recipes):
    """A second model with another budget: torch.compile makes variables of numbers that have changed since, and shapes must not depend on any."""
    given = []

    def watch(graph, inputs):
        given.append([x for x in inputs if not isinstance(x, torch.Tensor) or x.dim() == 0])
        return graph.forward

    x = images("timm-token-avg")
    for recipe in recipes:
        model = copy.deepcopy(made("timm-token-avg"))
        with prune(model, recipe) as handle:
            torch.compile(model, fullgraph=True, backend=watch)(x)
            kept = [plan.keep for plan in handle.plans]
            model(x)
            assert all(torch.equal(keep, plan.keep) for keep, plan in zip(kept, handle.plans, strict=True))
    assert given == [[]] * len(recipes)


@torch.no_grad()
@pytest.mark.parametrize("way", ["blocks", "broken graph", "features"])
def test_parts_of_a_forward_that_are_compiled(way):
    """Blocks compiled one by one in an eager model, a graph that breaks between two sites, timm's `forward_features`: the forward's state
    goes on, and an eager forward afterwards is the last one."""
    name = "timm-token-avg"
    model, x = copy.deepcopy(made(name)), images(name)
    with prune(model, RECIPES["tome"]) as handle:
        expected = model(x)
        kept = [plan.keep for plan in handle.plans]
        if way == "blocks":
            for block in model.blocks:
                block.compile(backend="aot_eager")
            found = model(x)
        elif way == "broken graph":
            model.blocks[1].mlp.register_forward_hook(lambda *_: torch._dynamo.graph_break())
            found = torch.compile(model, backend="aot_eager")(x)
        else:
            found = model.forward_head(torch.compile(model.forward_features, backend="aot_eager")(x))
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)
        assert all(torch.equal(keep, plan.keep) for keep, plan in zip(kept, handle.plans, strict=True))
        model(x[:1])
        assert [len(plan.keep) for plan in handle.plans] == [1, 1]
