"""Multiply-accumulates: the published tables, the closed formula, and bad input.

Published numbers are reproduced in the convention of their tables (`convention="published"`): matrix products and 5 per normalised
element, the score free, tokens leaving between attention and MLP, block indices from 0. The numbers are in reproduction/tables.
"""

import functools

import pytest
import timm
import torch

import sparsight
from reproduction.published import entries, entry, names, read
from reproduction.published_macs import count, count_row
from sparsight.speed.macs import NORM_COST, macs, vit_macs, walk

NAMES = {"S": "vit_small_patch16_224", "B": "vit_base_patch16_224"}


def shape(row):
    """What the cost of a row depends on: rows of one table that differ in the score alone cost the same, the score being free."""
    recipe = row.parsed()
    return (row.model, recipe and (recipe.schedule, recipe.where, recipe.reduce, recipe.score is None))


@functools.cache
def published_rows():
    """One row of each shape and printed number, over all tables that have GFLOPs."""
    found = {}
    for item in entries().values():
        measure = item.measure("gmacs")
        for row in item.rows if measure else ():
            if "gmacs" in row.numbers and not row.pending and not item.oddity(row, "gmacs"):
                found.setdefault((shape(row), row.numbers["gmacs"]), (item, row))
    return list(found.values())


@functools.cache
def empty(size: str) -> torch.nn.Module:
    with torch.device("meta"):
        return timm.create_model(NAMES[size])


@pytest.mark.parametrize("name", [name for name in sorted(names()) if "gmacs" in read(name)["columns"]])
def test_published(name):
    """Every shape within the printed rounding (3e-4 more for values that were rounded twice)."""
    counts = [count_row(item, row, item.measure("gmacs").decimals) for item, row in published_rows() if item.id == name]
    assert [str(count) for count in counts if not count.within] == []


def test_enough_is_counted():
    """No table has dropped out: each that prints GFLOPs has a row that is counted or known to differ."""
    assert len(published_rows()) > 60
    counted = {item.id for item, _ in published_rows()}
    assert {
        "colln_table02",
        "colln_table03",
        "colln_table04",
        "colln_table09",
        "colln_table10",
        "colln_table11",
        "entropy_table03",
    } <= counted


@pytest.mark.parametrize(("name", "only", "counted"), [
    ("colln_table02", "class_attention:remove=24,layers=early", (2.02, 7.73, 21.67)),
    ("colln_table15", "[CLS]", (11.62, 8.81, 13.34, 11.26, 15.41, 14.29)),
    ("similarity_table01", "similarity:", (12.29, 8.72, 7.04)),
])  # fmt: skip
def test_known_oddities(name, only, counted):
    """What the papers print otherwise is counted, too, and said to be known."""
    found = list(count([entry(name)], only))
    assert [item.counted for item in found] == pytest.approx(counted, abs=0.0051)
    assert {item.verdict for item in found} <= {"agrees", "known to differ"}
    assert not found[-1].within
    assert found[-1].reason


@pytest.mark.parametrize(("recipe", "rule"), [
    ("class_attention:keep=0.7", lambda layer, n: -(-7 * n // 10) if layer in (3, 6, 9) else n),
    ("random:remove=12,layers=all,where=block", lambda layer, n: max(1, n - 12)),
    ("similarity:tokens=50,layers=input", None),
])  # fmt: skip
def test_formula(recipe, rule):
    """The counter and the closed formula agree to the last multiplication (published convention: the score is free)."""
    where = "block" if "where=block" in recipe else "attn"
    if rule is None:
        attended, processed, final = [51] * 12, [51] * 12, 51
    else:
        attended, processed, final = walk(12, 196, 1, rule, where)
    expected = vit_macs(384, attended, processed, patches=196, norm_cost=NORM_COST, final=final)
    measured = macs(empty("S"), recipe, convention="published")
    row = 3 * 197 * 384 if "class" in recipe else 0  # reading the class token's row is below the tables' rounding
    assert expected <= measured <= expected + row


def test_score_counts_by_default():
    """Everything that runs is counted unless the papers' convention is asked for."""
    model = empty("S")
    plain, scored = macs(model, "class_attention:keep=0.7"), macs(model, "col_ln:keep=0.7")
    extra = sum(n * (n - 1) * 384 for n in (197, 139, 98))
    row = sum(n * 384 for n in (197, 139, 98))
    assert scored - plain == extra - row


def test_attention_of_those_that_leave_does_not_run():
    """What is chosen by q and k alone saves the rows of the attention and its projection that nobody needs."""
    model = empty("S")
    late, early = macs(model, "random:keep=0.7"), macs(model, "class_attention:keep=0.7")
    kept = [(197, 139), (139, 98), (98, 69)]
    saved = sum((n - m) * (2 * n * 384 + 384 * 384) for n, m in kept)
    row = sum(n * 384 for n, _ in kept)
    assert late - early == saved - row


def test_model_is_not_touched_and_stays_pruned():
    model = timm.create_model("vit_tiny_patch16_224", depth=3).eval()
    before = macs(model)
    assert macs(model, "random:keep=0.5,layers=0") < before == macs(model)
    assert next(model.parameters()).device.type == "cpu"
    with sparsight.prune(model, "random:keep=0.5,layers=0"):
        assert macs(model) == macs(timm.create_model("vit_tiny_patch16_224", depth=3), "random:keep=0.5,layers=0")


def test_image_size():
    model = timm.create_model("vit_tiny_patch16_224", depth=2, dynamic_img_size=True)
    assert macs(model, None, 448) > 4 * macs(model, None, 224)
    with pytest.raises(sparsight.PruneError, match="100 x 100"):
        macs(empty("S"), None, 100)


def test_bad_input():
    with pytest.raises(sparsight.PruneError, match="did you mean 'evit'"):
        macs(empty("S"), "evvit")
    with pytest.raises(sparsight.PruneError, match="out of range"):
        macs(empty("S"), "evit:layers=3/12")
    with pytest.raises(sparsight.PruneError, match="convention"):
        macs(empty("S"), None, convention="fvcore")


def test_names():
    """Names need no weights; image sizes change the architecture's position table."""
    assert macs("vit_small_patch16_224", "evit") == macs(empty("S"), "evit")
    assert macs("vit_small_patch16_224", None, 384) > 2.8 * macs("vit_small_patch16_224")
    assert macs("demo") == pytest.approx(5.6e9, rel=0.1)
    with pytest.raises(sparsight.PruneError, match="did you mean vit_small_patch16_224"):
        macs("vit_smal_patch16_224")


def test_counts_that_depend_on_the_image():
    """The mean of what each site left in real images is what is counted; without it there is nothing to count."""
    recipe = "similarity:threshold=adaptive,layers=3/6"
    with pytest.raises(sparsight.PruneError, match=r"counts=handle\.counts"):
        macs(empty("S"), recipe)
    same = macs(empty("S"), "similarity:tokens=120/60,layers=3/6")
    assert macs(empty("S"), recipe, counts=[[110, 130], [60, 60]]) == same
    assert macs(empty("S"), recipe, counts=[120, [50, 70]]) == same
