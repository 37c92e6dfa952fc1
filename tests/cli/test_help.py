"""Every verb's help has examples that can be typed, the model has a short way, and old words still work."""

import shlex

import pytest
import typer
from typer.main import get_command

from sparsight.cli.macs import sort_out
from sparsight.cli.main import app
from sparsight.cli.words import one_model

PROGRAM = get_command(app)
VERBS = sorted(PROGRAM.commands)


@pytest.mark.parametrize("verb", VERBS)
def test_help_has_examples_that_parse(sparsight, verb):
    code, text, _ = sparsight(verb, "--help")
    assert code == 0
    lines = [line.strip().removeprefix("Example: ") for line in text.splitlines()]
    examples = [line for line in lines if line.startswith(f"sparsight {verb}")]
    assert examples
    for example in examples:
        words = shlex.split(example)
        PROGRAM.commands[words[1]].make_context(words[1], words[2:])  # complains of words that are not known


def test_the_list_of_verbs_is_whole(sparsight):
    text = sparsight("--help")[1]
    assert "..." not in text.partition("Commands:")[2]
    assert "sparsight compare" in text
    assert all(f"\n  {verb} " in text for verb in VERBS)


def values(verb, *words):
    return PROGRAM.commands[verb].make_context(verb, list(words)).params


@pytest.mark.parametrize(
    "verb",
    [
        "compare",
        "evaluate",
        "robustness",
        "analyse",
        "rank",
        "calibrate",
        "evaluate-vlm",
        "bench",
        "bench-vlm",
        "export",
        "train",
        "tune",
    ],
)
def test_a_model_is_a_word_or_an_option(verb):
    needed = {"calibrate": ["--data", "D"], "evaluate-vlm": ["--tasks", "pope"]}.get(verb, [])
    found = values(verb, "some_model", *needed)
    assert one_model(found["word"], found["model"]) == "some_model"
    found = values(verb, "--model", "some_model", *needed)
    assert one_model(found["word"], found["model"]) == "some_model"


def test_macs_takes_words_and_options():
    for words, model, recipe, wanted in (
        (["m", "r"], None, None, ("m", "r")), (["r"], None, None, ("demo", "r")), (["r"], "m", None, ("m", "r")),
        (["m"], None, "r", ("m", "r")), ([], "m", "r", ("m", "r")),
    ):  # fmt: skip
        assert sort_out(words, model, recipe) == wanted
    for words in ([], ["m", "r", "more"]):
        with pytest.raises(typer.BadParameter):
            sort_out(words, None, None)


def test_two_models_or_none():
    assert one_model(None, None) == "demo"
    with pytest.raises(typer.BadParameter, match="two models are given, a and b"):
        one_model("a", "b")
    with pytest.raises(typer.BadParameter, match="name one with --model"):
        one_model(None, None, None)


@pytest.mark.parametrize("verb", ["rank", "calibrate", "bench", "bench-vlm", "export"])
def test_images_are_data_everywhere_and_the_old_word_works(verb):
    assert values(verb, "--data", "D")["data"] == values(verb, "--images", "D")["data"]


@pytest.mark.parametrize("verb", ["compare", "analyse"])
def test_the_number_of_pictures_has_its_old_word(verb):
    assert values(verb, "--shown", "3")["shown"] == values(verb, "--images", "3")["shown"] == 3


def test_families_are_one_line_each(sparsight):
    import json

    import sparsight as package

    code, text, _ = sparsight("families")
    assert code == 0
    lines = text.splitlines()[1:]
    assert len(lines) == len(package.families())
    assert "<class" not in text
    found = {line["name"]: line for line in json.loads(sparsight("families", "--json")[1])}
    assert found["transformers SigLIP"]["class_token"] == "no"
    assert found["transformers ViT"]["class_token"] == "yes"
    assert "LlavaForConditionalGeneration" in found["transformers LLaVA"]["classes"]
    assert (found["transformers LLaVA"]["inside"], found["transformers ViT"]["inside"]) == ("by decoder", "no")


def test_errors_are_short_and_without_control_characters(sparsight, tmp_path):
    code, _, news = sparsight("compare", "--data", "nowhere\x1b[31m" + "/x" * 5000, "--out", tmp_path)
    assert code == 2
    assert len(news) < 1100
    assert "\x1b" not in news
    assert news.startswith("error: ")


@pytest.mark.parametrize("data", ["x" * 5000, "a\udcffb\x1b[31m"])
def test_names_that_no_file_has_are_one_line(sparsight, tmp_path, data):
    code, text, news = sparsight("compare", "--data", data, "--out", tmp_path / "out")
    assert (code, text) == (2, "")
    assert news.startswith("error: ")
    assert len(news) < 1100
    assert news.isascii()
    assert not (tmp_path / "out").exists()
