"""sparsight reproduce: what is missing without weights and data, and a table run on the demo model with real images."""

import json

import pytest
import tiny_vlm

import sparsight
from reproduction.published import entries, entry, index
from reproduction.reproduce import Line, assign, relate, reproduce
from reproduction.reproduce_runs import runner
from sparsight.demo import demo_images


@pytest.fixture
def no_cache(monkeypatch, tmp_path):
    """A machine without downloaded weights and without network."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)


def test_nothing_at_hand(no_cache, tmp_path):
    """Nothing runs, nothing is written, and the answer says what to bring and from where."""
    done = reproduce("colln_table02", out=tmp_path / "out")
    assert not done.measured
    assert not (tmp_path / "out").exists()
    said = "\n".join(done.missing)
    for part in (
        "data imagenet: ImageNet-1k, validation, from image-net.org", "--data imagenet=DIR",
        "weights ViT-L/16: timm/vit_large_patch16_224.augreg_in21k_ft_in1k from the Hugging Face Hub, not on this machine",
        "--model 'ViT-L/16=ARCH@FILE.safetensors'",
    ):  # fmt: skip
        assert part in said
    assert len(done.missing) == 4
    assert done.lines[1].row.numbers == {"top1": 80.98, "gmacs": 4.2}


def test_every_entry_says_what_it_needs(no_cache):
    for name, item in entries().items():
        done = reproduce(name)
        assert done.missing, name
        if item.command not in ("none", "train"):
            assert all(any(key in text for text in done.missing) for key in (*item.models, *item.data)), name
        assert runner(item.command) or any("the command is" in text or "nothing to run" in text for text in done.missing), name


def test_a_table_on_a_stand_in(tmp_path):
    """The demo model and its own images in place of ViT-S on ImageNet: it runs, and says in what it differs."""
    done = reproduce("colln_table02", "demo", demo_images(), tmp_path, only="class_attention:remove=24", limit=4, batch_size=4)
    assert [line.row.model for line in done.lines] == ["ViT-S/16", "ViT-B/16", "ViT-L/16"]
    assert len({str(line.measured) for line in done.lines}) == 1
    for line in done.lines:
        assert 0 <= line.measured["top1"] <= 100
        assert line.measured["top1"] * 4 / 100 == pytest.approx(round(line.measured["top1"] * 4 / 100))
        assert line.difference("top1") == line.measured["top1"] - line.row.numbers["top1"]
        assert 2.0 < line.measured["gmacs"] < 6.12
    said = "\n".join(done.differs)
    assert "model ViT-S/16: demo instead of vit_small_patch16_224.augreg_in21k_ft_in1k" in said
    assert "4 images" in said
    assert "instead of the 50000 of ImageNet-1k, validation" in said
    assert not done.missing
    kept = json.loads((tmp_path / "reproduction.json").read_text())
    assert kept["lines"][0]["difference"]["top1"] == done.lines[0].difference("top1")
    assert kept["entry"]["paper"]["source"] == "arXiv:2603.27900"
    assert kept["differs"] == done.differs


def test_pictures_of_a_figure(tmp_path):
    done = reproduce("colln_figure01", "demo", demo_images(), tmp_path, limit=1)
    assert len(done.files) == 2
    assert all((tmp_path / file.rpartition("/")[2]).read_bytes().startswith(b"\x89PNG") for file in done.files)


def test_blocks_of_a_figure(tmp_path):
    done = reproduce("entropy_figure03", "demo", demo_images(), tmp_path, limit=1)
    folder = tmp_path / "demo"
    assert {file.rpartition("/")[2] for file in done.files} == {
        "distance.png",
        "entropy.png",
        "rank.png",
        "report.html",
        "scores0.png",
    }
    assert all(str(folder / file.rpartition("/")[2]) == file for file in done.files)
    assert any("images: 1 of" in text for text in done.differs)
    assert not done.missing


def test_questions_on_a_stand_in(tmp_path, monkeypatch):
    """A tiny LLaVA of 100 image tokens and two questions in place of LLaVA-1.5 and POPE: the row that asks for 128 tokens says so."""
    monkeypatch.setattr(tiny_vlm, "SIDE", 40)
    model, questions = tiny_vlm.save_tiny(tmp_path / "model"), tiny_vlm.save_questions(tmp_path / "questions", 2)
    done = reproduce("agile_table06", str(model), f"pope={questions}", tmp_path / "out", only="divprune:", batch_size=2)
    many, few = done.lines
    assert (many.row.recipe, few.row.recipe) == ("divprune:tokens=128", "divprune:tokens=64")
    assert not many.measured
    assert "128" in many.note
    assert set(few.measured) == {"pope"}
    assert few.difference("pope") == few.measured["pope"] - 85.5
    assert f"data pope: the questions of {questions} instead of POPE" in done.differs
    assert [text.partition(":")[0] for text in done.missing] == ["data gqa", "data sqa", "data mme"]


def test_relative_scores_are_taken_by_the_entry_s_rule():
    """All sets measured as printed: the relative scores are then the printed ones, by either rule."""
    for name, label in (("colln_table12", "VisPruner"), ("agile_table06", "DivPrune")):
        item = entry(name)
        parts = [measure.key for measure in item.measures if measure.data]
        lines = [Line(row, {key: row.numbers[key] for key in (*parts, "average") if key in row.numbers}) for row in item.rows]
        found = next(line for line in relate(item, lines) if line.row.label == label)
        assert found.measured["relative"] == pytest.approx(found.row.numbers["relative"], abs=0.06)


def test_complexity_of_a_folder(tmp_path):
    """Figure 7's rows are mean, median and quartiles of the images' numbers."""
    done = reproduce("agile_figure07", "demo", demo_images(), tmp_path, limit=4)
    kept = [row["erank"] for row in json.loads((tmp_path / "rank.json").read_text())["rows"]]
    found = {line.row.label: line.measured for line in done.lines}
    assert found["mean"]["erank"] == pytest.approx(sum(kept) / 4)
    assert found["median"]["erank"] == pytest.approx(sum(sorted(kept)[1:3]) / 2)
    assert found["lower quartile"]["erank"] < found["median"]["erank"] < found["upper quartile"]["erank"]
    assert set(found["mean"]) == {"erank", "attention_entropy"}


def test_own_weights_fail_loudly(tmp_path):
    """A model that was named has to load; the paper's own is only missing."""
    with pytest.raises(sparsight.PruneError, match="no checkpoint file"):
        reproduce("colln_table09", "vit_small_patch16_224@nowhere.safetensors", demo_images(), tmp_path)


def test_weights_out_of_reach(no_cache, tmp_path):
    done = reproduce("colln_table09", data=demo_images(), out=tmp_path, only="layers=0/3/6")
    assert any("cannot be loaded" in text for text in done.missing)
    assert not done.measured


def test_assign():
    assert assign("data", ["a", "b"], None) == {"a": "", "b": ""}
    assert assign("data", ["a", "b"], ["all", "b=only=this"]) == {"a": "all", "b": "only=this"}
    assert assign("data", ["a"], "c=d") == {"a": "c=d"}
    assert assign("data", ["a"], {"a": "x"}) == {"a": "x"}
    with pytest.raises(sparsight.PruneError, match="model 'c' is not used here; there are a"):
        assign("model", ["a"], {"c": "x"})


def test_only():
    with pytest.raises(sparsight.PruneError, match="no row of colln_table02 contains 'ViT-G'"):
        reproduce("colln_table02", only="ViT-G")
    assert len(entry("colln_table02").select("vit-l")) == 7


def test_index_has_nothing_unused():
    used = entries().values()
    assert set(index().models) == {key for item in used for key in item.models}
    assert set(index().data) == {key for item in used for key in item.data}
    assert set(index().measures) == {measure.key for item in used for measure in item.measures}
