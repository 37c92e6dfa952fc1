"""Pictures with questions, made from photos."""

import json
from random import Random

import pytest
from PIL import Image

from sparsight.data.scenes import ASKED, NOTHING, PLACES, look_alikes, make_scenes, named, photos_by_name, write_questions
from sparsight.demo import demo_images, demo_weights
from sparsight.errors import PruneError


@pytest.fixture(scope="module")
def photos():
    return photos_by_name(demo_images())


def test_scenes_follow_from_the_seed(photos):
    first, again, other = (list(make_scenes(photos, 12, seed)) for seed in (0, 0, 1))
    assert first == again != other
    assert first[0].draw().tobytes() == again[0].draw().tobytes()
    assert {scene.kind for scene in make_scenes(photos, 60, 0)} == set(ASKED)


def test_a_mosaic_has_its_photos_where_the_answers_say(photos):
    names = sorted(photos)
    for scene in make_scenes(photos, 40, 0, (0, 0, 1)):
        assert 2 <= len(scene.names) == len(set(scene.names)) <= 4
        for one in scene.placed:
            left, top, side = one.box
            assert PLACES[one.place] == f"{('top', 'bottom')[top >= 112]} {('left', 'right')[left >= 112]}"
            assert side == 112
        rng = Random(0)
        for _ in range(8):
            asked = scene.ask("place", rng, names, {})
            there = [one.name for one in scene.placed if PLACES[one.place] in asked.question]
            assert asked.answer == (there[0] if there else NOTHING)
        assert scene.ask("no", rng, names, {}).name not in scene.names
        assert scene.ask("yes", rng, names, {}).name in scene.names
        assert scene.ask("list", rng, names, {}).answer.split(" , ") == scene.names


def test_half_of_the_absent_names_are_look_alikes(photos):
    scene = next(make_scenes(photos, 1, 0, (1, 0, 0)))
    alike = {scene.names[0]: ["look-alike"]}
    rng = Random(0)
    asked = [scene.ask("no", rng, sorted(photos), alike).name for _ in range(400)]
    assert 150 < asked.count("look-alike") < 250


def test_look_alikes_are_other_names():
    found = look_alikes()
    assert set(found) == {named(name) for name in demo_weights()[1]}
    assert all(name not in near and len(near) == len(set(near)) for name, near in found.items())
    assert "grand piano" in found


def test_written_questions(tmp_path, photos):
    count = write_questions(tmp_path / "set", demo_images(), 6, 0)
    lines = [json.loads(line) for line in (tmp_path / "set/questions.jsonl").read_text().splitlines()]
    assert len(lines) == count == len({line["id"] for line in lines})
    for line in lines:
        assert Image.open(tmp_path / "set" / line["image"]).size == (224, 224)
        if line["kind"] == "yes_no":
            asked = line["question"].removeprefix("is there a ").removesuffix(" in the picture ?")
            assert line["answer"] == ("yes" if asked in line["objects"] else "no")
    with pytest.raises(PruneError, match="already"):
        write_questions(tmp_path / "set", demo_images(), 6, 0)


def test_photos_without_classes(tmp_path):
    Image.new("RGB", (8, 8)).save(tmp_path / "one.png")
    with pytest.raises(PruneError, match="classes"):
        photos_by_name(tmp_path)
