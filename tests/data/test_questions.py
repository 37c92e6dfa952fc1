"""Questions in a file: kinds, scenes and objects, faults counted and named, words that a model does not know."""

import json
import shutil

import pytest

pytest.importorskip("transformers")

from tiny_demo import make_tokenizer, save_scenes

from sparsight import PruneError
from sparsight.data.questions import check_words, read_set


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save_scenes(tmp_path_factory.mktemp("scenes") / "set", 3)


def rewritten(folder, tmp_path, change):
    """A copy of the set whose lines were changed."""
    copy = shutil.copytree(folder, tmp_path / "set")
    lines = [json.loads(line) for line in (copy / "questions.jsonl").read_text().splitlines()]
    (copy / "questions.jsonl").write_text("\n".join(line if isinstance(line, str) else json.dumps(line) for line in change(lines)))
    return copy


def test_what_scenes_wrote(folder):
    one = read_set(folder)
    assert set(one.kinds) >= {"list", "yes_no", "count"}
    assert {item.complexity for item in one.items} <= {"simple", "complex"}
    assert all(item.objects for item in one.items)
    check_words(one, make_tokenizer())


def test_every_fault_is_counted_and_named(folder, tmp_path):
    def spoil(lines):
        lines[0] = "{"
        lines[1].pop("image")
        lines[2]["image"] = []
        lines[3]["scene"] = "collage"
        lines[4]["objects"] = "emu"
        lines[5]["image"] = "gone.jpg"
        lines[6]["answer"] = ""
        return lines

    with pytest.raises(PruneError) as found:
        read_set(rewritten(folder, tmp_path, spoil))
    text = str(found.value)
    assert "7 of " in text
    for part in ("line 1 is no JSON", "line 2 has a question without a picture", "line 3 has a question without", "line 4 has the scene collage",
                 "line 5 has objects", "and 2 more"):  # fmt: skip
        assert part in text, part


@pytest.mark.parametrize(
    ("kind", "answer", "objects", "says"),
    [("list", "emu", [], "no 'objects'"), ("yes_no", "perhaps", ["emu"], "answer perhaps to a question of yes or no")],
)
def test_kinds_need_their_answers(folder, tmp_path, kind, answer, objects, says):
    change = {"kind": kind, "answer": answer, "objects": objects}
    with pytest.raises(PruneError, match=says):
        read_set(rewritten(folder, tmp_path, lambda lines: [{**lines[0], **change}]))


def test_unknown_words_are_named(folder, tmp_path):
    def strange(lines):
        lines[0]["question"] = "is there an Axolotl in the picture ?"
        lines[1] |= {"answer": "ytterbium", "kind": "name"}
        lines[2]["question"] = "is there a grand piano in the picture ?"
        return lines

    one = read_set(rewritten(folder, tmp_path, strange))
    with pytest.raises(PruneError) as found:
        check_words(one, make_tokenizer())
    text = str(found.value)
    assert "'Axolotl' (in the question 0000-0)" in text
    assert "'an'" in text
    assert "'ytterbium' (in the answer 0000-1)" in text
    assert "grand" not in text


def test_one_answer_that_can_be_given_is_enough(folder, tmp_path):
    check_words(
        read_set(rewritten(folder, tmp_path, lambda lines: [{**lines[0], "answer": ["ytterbium", "emu"]}])), make_tokenizer()
    )


def test_a_folder_of_pictures(folder, tmp_path):
    shutil.copytree(folder / "pictures", tmp_path / "pictures")
    with pytest.raises(PruneError, match=r"holds 0 .jsonl files but 3 pictures; it must hold one with questions"):
        read_set(tmp_path)
