"""Recipes that nobody would write: as text and as JSON they are read, and print back, or are refused by a PruneError that can be shown."""

import json

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import sparsight
from sparsight import PruneError, Recipe, registry

ENTRIES = {method.name: method for method in sparsight.methods()}

ODD = [
    "-inf", "inf", "nan", "-0.0", "0", "-1", "1e400", "1e-400", "9" * 400, "9" * 5000, "1/2/", "3-6", "6-3", "0-99999999", "3-6/9", "-", "--1",
    "0.5/0.5", "true", "null", "early", "all", "input", "\x00", "\x1b[31m", "\ud800", "½", "٣", "a" * 3000, " ", "1_0", "0x10", "[]", "{}",
]  # fmt: skip
NUMBERS = st.integers() | st.floats() | st.sampled_from([10**400, -(10**400), 2**63, 1e308, 5e-324, float("inf"), float("-inf")])
USUAL = st.floats(0, 1) | st.integers(0, 12) | st.lists(st.integers(0, 12), max_size=3)
PLAIN = st.none() | st.booleans() | NUMBERS | st.sampled_from(ODD) | st.text(max_size=12)
JSON = st.recursive(
    PLAIN, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=3), max_leaves=6
)


@st.composite
def requests(draw):
    """A method and values for some of its parameters: most of the usual kind, some not."""
    entry = ENTRIES[draw(st.sampled_from(sorted(ENTRIES)))]
    choices = {p.name: p.choices for p in entry.parameters}
    params = {}
    for key in draw(st.lists(st.sampled_from(sorted(registry.accepted(entry))), max_size=4, unique=True)):
        usual = st.sampled_from(choices[key]) if choices.get(key) else USUAL
        params[key] = draw(st.one_of(usual, usual, usual, JSON))
    return {"method": entry.name, "params": params}


def as_text(request) -> str:
    def value(given) -> str:
        return "/".join(map(value, given)) if isinstance(given, list) else str(given)

    return f"{request['method']}:" + ",".join(f"{key}={value(given)}" for key, given in request["params"].items())


TEXTS = (
    requests().map(as_text)
    | st.builds("{}:{}={}".format, st.sampled_from(sorted(ENTRIES)) | st.text(), st.text(), PLAIN)
    | st.text()
)
OBJECTS = requests() | JSON | st.fixed_dictionaries({"method": JSON, "params": JSON})

N, WIDTH = 12, 8


def tensors() -> dict[str, torch.Tensor]:
    rng = torch.Generator().manual_seed(0)
    q, k, v = torch.randn(3, 1, 2, N + 1, 4, generator=rng)
    rows = torch.rand(1, 3, N, generator=rng)
    return {
        "x": torch.randn(1, N, WIDTH, generator=rng), "q": q, "k": k, "v": v, "class_token": torch.randn(1, 1, WIDTH, generator=rng),
        "attns": [(q @ k.transpose(-2, -1)).softmax(-1)], "text_attn": rows, "text": torch.randn(1, 3, WIDTH, generator=rng), "grid": (3, 4),
    }  # fmt: skip


SIGNALS = tensors()


def examine(read, text) -> None:
    """What `read` makes of the text prints back and runs on tensors; whatever is refused says so in a line."""
    try:
        recipe = read(text)
        assert sparsight.parse(str(recipe)) == recipe
        assert Recipe.from_json(recipe.to_json()) == recipe
        assert hash(recipe) == hash(sparsight.parse(str(recipe)))
        sparsight.reduce(recipe, **SIGNALS)
    except PruneError as error:
        message = str(error)
        assert message
        assert len(message) < 2000
        assert message.isprintable()


def often(count: int):
    return settings(max_examples=count, deadline=None, suppress_health_check=list(HealthCheck), derandomize=count < 1000)


@often(300)
@given(TEXTS)
def test_texts(text):
    examine(sparsight.parse, text)


@often(300)
@given(OBJECTS)
def test_json(value):
    examine(Recipe.from_json, json.dumps(value))


@pytest.mark.product
@often(10_000)
@given(TEXTS)
def test_many_texts(text):
    examine(sparsight.parse, text)


@pytest.mark.product
@often(10_000)
@given(OBJECTS)
def test_many_json(value):
    examine(Recipe.from_json, json.dumps(value))


@often(100)
@given(st.text(max_size=60) | st.binary(max_size=60))
def test_junk_instead_of_json(text):
    examine(Recipe.from_json, text)
