"""compose: parts put together are the methods they come from; combinations that cannot work say so."""

import itertools
import typing

import pytest
import torch

import sparsight
from sparsight import PruneError
from sparsight.methods import compose
from sparsight.ops import score as scores

X = torch.randn(2, 30, 16, generator=torch.Generator().manual_seed(0))
Q, K = torch.randn(2, 2, 3, 31, 8, generator=torch.Generator().manual_seed(1))
ATTNS = [(Q @ K.transpose(-2, -1)).softmax(-1)]


def reduced(recipe: str) -> sparsight.Reduced:
    return sparsight.reduce(recipe, x=X, q=Q, k=K, feats=X, attns=ATTNS)


SAME = [
    ("compose:score=class_attention,select=topk,reduce=fuse_rest,keep=0.6", "evit:keep=0.6"),
    ("compose:score=class_attention,keep=0.6", "class_attention:keep=0.6"),
    ("compose:score=col_ln,order=3,keep=0.6", "col_ln:keep=0.6,order=3"),
    ("compose:score=renyi,order=3,keep=0.6", "renyi:keep=0.6,order=3"),
    ("compose:score=shannon,order=3,keep=0.6", "shannon:keep=0.6"),
    ("compose:score=rollout,keep=0.6", "rollout:keep=0.6"),
    ("compose:score=random,seed=3,keep=0.6", "random:keep=0.6,seed=3"),
    ("compose:score=none,select=bipartite,reduce=merge,remove=8", "tome:remove=8"),
    ("compose:score=none,select=diverse,tokens=8", "divprune:tokens=8"),
    ("compose:select=rescue,share=0.8,keep=0.6", "col_ln_rescue:keep=0.6,rescue=0.8"),
    ("compose:select=thinned,tokens=8", "vispruner:tokens=8"),
]


@pytest.mark.parametrize(("parts", "whole"), SAME)
def test_parts_make_the_method(parts, whole):
    a, b = reduced(parts), reduced(whole)
    assert torch.equal(a.plan.keep, b.plan.keep)
    assert torch.equal(a.plan.owner, b.plan.owner)
    torch.testing.assert_close(a.x, b.x)


@pytest.mark.parametrize("select", compose.SELECTORS)
@pytest.mark.parametrize("reduce", compose.REDUCERS)
def test_every_score_with_every_selector_and_reducer(select, reduce):
    for score in (*scores.SCORES, "none"):
        text = f"compose:keep=0.6,score={score},select={select},reduce={reduce}"
        if score == "none" and select not in ("diverse", "bipartite"):
            with pytest.raises(
                PruneError, match=f"select={select} needs a score; choose one of class_attention, .* diverse, bipartite"
            ):
                sparsight.parse(text)
            continue
        done = reduced(text)
        assert done.plan.slots == 18 + (reduce == "fuse_rest"), score
        assert done.x.isfinite().all()
        if reduce != "drop":
            torch.testing.assert_close(done.size.sum(dim=1), torch.full((2, 1), 30.0))


def test_merge_joins_the_survivor_most_alike():
    done = reduced("compose:score=col_ln,reduce=merge,tokens=5")
    unit = torch.nn.functional.normalize(X, dim=-1)
    alike = unit @ unit.transpose(-2, -1)
    for image, token in itertools.product(range(2), range(30)):
        keep = done.plan.keep[image]
        expected = keep.tolist().index(token) if token in keep else int(alike[image, token, keep].argmax())
        assert done.plan.owner[image, token] == expected


def test_pairs_by_score_merge_away_the_lower_half_alone():
    done = reduced("compose:score=col_ln,select=bipartite,reduce=merge,remove=10")
    lower = done.score.argsort(dim=1)[:, :15]
    gone = done.plan.dropped()
    assert all(set(g.tolist()) <= set(low.tolist()) for g, low in zip(gone, lower, strict=True))


def test_fused_rest_of_another_score_is_the_mean():
    done = reduced("compose:score=col_ln,reduce=fuse_rest,keep=0.6")
    rest = done.plan.dropped()
    mean = X.gather(1, rest.unsqueeze(-1).expand(-1, -1, 16)).mean(dim=1)
    torch.testing.assert_close(done.x[:, -1], mean)


def test_tables_hold_what_the_types_name():
    listed = {p.name: p.choices for p in sparsight.registry.find("compose").parameters}
    assert listed["score"] == (*sorted(scores.SCORES), "none")
    assert listed["other"] == tuple(sorted(scores.SCORES))
    assert list(compose.SELECTORS) == list(typing.get_args(compose.Select))
    assert list(compose.REDUCERS) == list(typing.get_args(compose.Reduce))


def test_a_registered_score_is_there_by_its_name(monkeypatch):
    """Its signals are found by their names, `order` comes from the recipe, other numbers from the name or the function."""
    monkeypatch.setattr(scores, "SCORES", dict(scores.SCORES))

    @sparsight.register_score("key_length", factor=-1.0)
    def key_length(k: torch.Tensor, prefix: int, order: float = 2.0, factor: float = 1.0) -> torch.Tensor:
        return factor * k[:, :, prefix:].norm(p=order, dim=-1).mean(dim=1)

    done = reduced("compose:score=key_length,order=3,tokens=7")
    lengths = K[:, :, 1:].norm(p=3, dim=-1).mean(dim=1)
    assert torch.equal(done.plan.keep, lengths.topk(7, largest=False).indices.sort().values)
    assert reduced("compose:select=rescue,other=key_length,keep=0.6").plan.slots == 18
    assert "key_length" in str(sparsight.registry.find("compose"))
    sparsight.register_score("key_length")(key_length)
    for name in ("two words", "none", "a,b", ""):
        with pytest.raises(PruneError, match="one word"):
            sparsight.register_score(name)
    with pytest.raises(PruneError, match=r"already registered by sparsight\.ops\.score"):
        sparsight.register_score("col_ln")(key_length)


def test_a_recipe_equals_itself_and_is_written_as_it_was_read():
    text = "compose:keep=0.7,layers=3/6/9,score=col_ln,select=diverse,reduce=fuse_rest"
    assert str(sparsight.parse(text)) == text
    assert len({sparsight.parse(text), sparsight.parse(text)}) == 1


@pytest.mark.parametrize(
    ("recipe", "message"),
    [
        ("compose:score=colln", "choose class_attention or col_ln"),
        ("compose:select=all", "choose topk or rescue or diverse"),
        ("compose:reduce=fuse", "choose drop or fuse_rest or merge"),
        ("compose:share=2", "share=2 is outside"),
        ("compose:order=0", "order=0 must be above 0"),
    ],
)
def test_bad_words(recipe, message):
    with pytest.raises(PruneError, match=message):
        sparsight.parse(recipe)
