"""Vision-language models: the search by questions of one's own and by a function, with a tiny LLaVA."""

import pytest

pytest.importorskip("transformers")
pytest.importorskip("optuna")

import tiny_vlm

from sparsight import PruneError
from sparsight.tune.language import tune_language, tune_questions, two_sets


@pytest.fixture(scope="module")
def model():
    return tiny_vlm.make_model()


@pytest.fixture(scope="module")
def processor():
    return tiny_vlm.make_processor()


@pytest.fixture(scope="module")
def questions(tmp_path_factory):
    return tiny_vlm.save_questions(tmp_path_factory.mktemp("questions"))


def test_questions(model, processor, questions, tmp_path):
    done = tune_questions(
        model, questions, tmp_path, processor=processor, speedup=1.05, trials=4, methods=["vispruner", "divprune", "fastv"], batch_size=4,
        recipes=["vispruner:tokens=4 + fastv:layer=1,keep=0.5"], strict=False,
    )  # fmt: skip
    assert len(done.trials) == 4
    assert done.images == {"search": 4, "report": 4}
    assert done.rows[0].cost > min(row.cost for row in done.rows)
    assert done.given[0].recipes == ["vispruner:tokens=4", "fastv:keep=0.5,layer=1"]
    again = tune_questions(
        model, questions, tmp_path, processor=processor, speedup=1.05, trials=4, methods=["vispruner", "divprune", "fastv"], batch_size=4,
        strict=False,
    )  # fmt: skip
    assert again.rows == done.rows


def test_the_halves_are_about_other_pictures(questions):
    one, other = two_sets(questions, None, None, 0)
    assert not {item.images for item in one.items} & {item.images for item in other.items}
    with pytest.raises(PruneError, match="would be searched and reported"):
        two_sets(questions, questions, None, 0)
    with pytest.raises(PruneError, match="asks about one picture"):
        two_sets(questions, None, 1, 0)


def test_a_prompt_says_what_a_recipe_costs(model, processor, questions, tmp_path):
    from PIL import Image

    picture = Image.open(questions.parent / "0.jpg")
    call = dict(processor(images=[picture], text=["USER: <image>\nis there a dog ASSISTANT:"], return_tensors="pt"))

    def judge(_model):
        return [1.0, 0.0, 1.0]

    done = tune_language(model, judge, judge, call, tmp_path, methods=["divprune"], loss=0, trials=2)
    assert done.unit == "GMACs"
    assert done.met
    assert done.chosen.speedup > 1
