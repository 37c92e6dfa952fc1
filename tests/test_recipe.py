"""Recipe strings, JSON, and every way of writing one wrongly."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

import sparsight
from sparsight import registry
from sparsight.errors import PruneError

STRINGS = [
    "evit", "evit:keep=0.7,layers=3/6/9", "col_ln:order=4,heads=joint,rows=all,diagonal=false", "col_ln:order=inf",
    "tome:remove=16,inflect=-1,proportional=false", "similarity:metric=l2,diversity=1.5,layers=3/6", "random:seed=7,tokens=50",
    "renyi:layers=early,remove=4", "shannon:layers=all,where=block", "col_ln_rescue:budget=removed,rescue=0.25",
    "class_attention:keep=0.9/0.8/0.7", "tome:keep=0.7,layers=3/6/9",
]  # fmt: skip


@pytest.mark.parametrize("text", STRINGS)
def test_round_trips(text):
    recipe = sparsight.parse(text)
    assert sparsight.parse(str(recipe)) == recipe
    assert str(sparsight.parse(str(recipe))) == str(recipe)
    assert sparsight.Recipe.from_json(recipe.to_json()) == recipe
    assert hash(recipe) == hash(sparsight.parse(text))


@given(
    keep=st.floats(min_value=1e-3, max_value=1.0),
    layers=st.sets(st.integers(0, 40), min_size=1, max_size=8),
    order=st.floats(min_value=0.01, max_value=64) | st.just(float("inf")),
)
def test_any_numbers_round_trip(keep, layers, order):
    recipe = sparsight.parse(f"col_ln:keep={keep!r},layers={'/'.join(map(str, sorted(layers)))},order={order!r}")
    assert sparsight.parse(str(recipe)) == recipe
    assert sparsight.Recipe.from_json(recipe.to_json()) == recipe


def test_defaults_written_out_are_the_same_recipe():
    assert sparsight.parse("evit") == sparsight.parse("evit:keep=0.7,layers=3/6/9,where=attn")
    assert sparsight.parse("evit") != sparsight.parse("evit:keep=0.6")
    assert sparsight.parse("evit:tokens=50") != sparsight.parse("evit")


def test_string_shows_budget_layers_and_what_was_changed():
    assert str(sparsight.parse("evit")) == "evit:keep=0.7,layers=3/6/9"
    assert str(sparsight.parse("col_ln:tokens=50,order=4")) == "col_ln:tokens=50,layers=3/6/9,order=4"
    assert str(sparsight.parse("random:where=block,layers=3")) == "random:keep=0.7,layers=3,where=block"


BAD = {
    "evitt": "did you mean 'evit'",
    "nothing_like_it": "known: .*evit",
    "evit:kep=0.5": "did you mean 'keep'",
    "evit:keep=0": r"outside \(0, 1\]",
    "evit:keep=1.2": r"outside \(0, 1\]",
    "evit:keep=-0.1": r"outside \(0, 1\]",
    "evit:keep=nan": "outside",
    "evit:keep=much": "keep=much cannot be used",
    "evit:keep=0.5,tokens=20": "keep and tokens are both given",
    "tome:remove=8,keep=0.5": "conflict",
    "tome:keep=0.7,inflect=-1": "inflect",
    "evit:tokens=0": "at least 1",
    "evit:tokens=2.5": "whole number",
    "evit:remove=-1": "0 or more",
    "evit:layers=6/3": "ascending",
    "evit:layers=3/3": "once",
    "evit:layers=most": "early, all, input",
    "evit:layers=6-3": "first-last",
    "evit:layers=3-": "cannot be used",
    "evit:layers=0-99999999999": "at most 4096 blocks",
    "evit:remove=-inf": "whole number",
    "evit:tokens=inf": "whole number",
    "evit:tokens=" + "9" * 400: "whole number",
    "evit:layers=" + "9" * 400: "cannot be used",
    "random:seed=" + "9" * 400: "seed=9+.*cannot be used",
    "agile:erank_avg=nan": "erank_avg=nan cannot be used",
    "sparsevlm:remove=3": "tokens= or keep=",
    "sparsevlm:tokens=192/64/32": "single number",
    "sparsevlm:count=rank,scale=inf": "finite",
    "evit:layers=": "cannot read",
    "evit:keep": "cannot read 'keep'",
    "evit:keep=0.5,keep=0.6": "twice",
    "evit:where=mlp": "attn or block",
    "col_ln:order=0": "above 0",
    "col_ln:order=-2": "above 0",
    "renyi:order=0": "above 0",
    "col_ln:heads=max": "mean or joint or average",
    "col_ln:diagonal=maybe": "true or false",
    "col_ln_rescue:rescue=1.5": r"outside \[0, 1\]",
    "similarity:diversity=-1": "negative",
    "tome:inflect=2": r"outside \[-1, 1\]",
    "random:seed=x": "seed=x cannot be used",
    "": "no method",
}


@pytest.mark.parametrize(("text", "message"), BAD.items(), ids=lambda v: v[:30] or "empty")
def test_bad_strings(text, message):
    with pytest.raises(PruneError, match=message):
        sparsight.parse(text)


@pytest.mark.parametrize(
    "text", ["", "{}", "[1]", '{"method": "evit"}', '{"method": "evit", "params": 3}', "[" * 20_000, '{"method": {}, "params": {}}']
)
def test_bad_json(text):
    with pytest.raises(PruneError, match="JSON"):
        sparsight.Recipe.from_json(text)


@pytest.mark.parametrize("value", ["[]", "Infinity", "NaN", "1" + "0" * 400, "true", "{}", "[[1]]", '"1/"'])
@pytest.mark.parametrize("key", ["keep", "tokens", "remove", "layers", "where"])
def test_bad_values_in_json(key, value):
    with pytest.raises(PruneError, match=key):
        sparsight.Recipe.from_json(f'{{"method": "ats", "params": {{"{key}": {value}}}}}')


@pytest.mark.parametrize("value", ["a,b", "", " a", "a\n", ["a"]])
def test_text_that_a_recipe_string_cannot_hold(value):
    with pytest.raises(PruneError, match="weights"):
        registry.make("sit", weights=value)


def test_messages_quote_foreign_text_in_one_short_line():
    for text in ("x" * 2000, "evit\x1b[31m:keep=1", "evit:" + "k" * 2000 + "=1", "evit:keep=" + "\x00" * 500, "evit:keep=\n\ud800"):
        with pytest.raises(PruneError) as caught:
            sparsight.parse(text)
        assert str(caught.value).isprintable()
        assert len(str(caught.value)) < 800


def test_ranges_of_layers():
    assert str(sparsight.parse("evit:layers=3-6")) == "evit:keep=0.7,layers=3/4/5/6"
    assert sparsight.parse("evit:layers=0-2/5/8-8") == sparsight.parse("evit:layers=0/1/2/5/8")


def test_a_shared_word_at_its_default_is_left_out():
    assert sparsight.parse("ats:per_tile=false") == sparsight.parse("ats")


def test_methods_are_listed_with_parameters():
    listed = {method.name: method for method in sparsight.methods()}
    first = ("class_attention", "col_ln", "col_ln_rescue", "evit", "random", "renyi", "shannon", "similarity", "tome")
    assert set(first) <= set(listed)
    for name in first:
        assert listed[name].summary
        assert listed[name].parameters[0].name in ("keep", "remove")
        assert sparsight.parse(name).name == name
    assert "order=2" in str(listed["col_ln"])


def test_families_are_listed():
    assert any("VisionTransformer" in family.classes for family in sparsight.families())
