"""sparsight analyse: attention statistics against the whole matrix in float64, agreement and ranks by hand, and what is written."""

import csv
import json
import math
from dataclasses import replace

import pytest
import torch
from compare_data import make_images, make_model
from PIL import Image

from sparsight import PruneError
from sparsight.evaluation import metrics
from sparsight.look.analyse import analyse, check_layers
from sparsight.look.analysis import Analysis, Head
from sparsight.look.analysis_figures import beyond_chance
from sparsight.look.rank import pearson

pytest.importorskip("timm")
pytest.importorskip("matplotlib")

RECIPES = ("col_ln:keep=0.5", "class_attention:keep=0.5", "tome:keep=0.6", "dpc_knn:keep=0.5", "ats:keep=0.5", "evit:keep=0.3")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return make_images(tmp_path_factory.mktemp("images"))


@pytest.fixture(scope="module")
def loaded():
    """Random weights attend to everything alike; larger queries make a difference between patches."""
    made = make_model()
    with torch.no_grad():
        for block in made.model.blocks:
            block.attn.qkv.weight *= 8
    return made


@pytest.fixture(scope="module")
def out(tmp_path_factory):
    return tmp_path_factory.mktemp("out") / "runs"


@pytest.fixture(scope="module")
def done(loaded, folder, out):
    return analyse(loaded, folder, RECIPES, out, orders=(2, 1, math.inf), layers="0/2", limit=3, batch_size=2)


def by_hand(loaded, folder, names, block):
    """Entropies and distances [images, H, N] from the whole matrix in float64, pixel by pixel distances from loops, and tokens x."""
    entropies, distances, tokens = [], [], []
    model = loaded.model
    attn, seen = model.blocks[block].attn, {}
    hooks = [
        getattr(attn, name).register_forward_hook(lambda _m, _a, o, name=name: seen.update({name: o}))
        for name in ("q_norm", "k_norm")
    ]
    hooks.append(model.blocks[block].norm2.register_forward_pre_hook(lambda _m, args: seen.update(x=args[0])))
    side = model.patch_embed.grid_size[1]
    for name in names:
        with torch.no_grad():
            model(loaded.transform(Image.open(folder / name).convert("RGB"))[None])
        a = (seen["q_norm"].double()[0, :, 1:] @ seen["k_norm"].double()[0, :, 1:].transpose(-2, -1) * attn.scale).softmax(-1)
        n = a.shape[-1]
        far = torch.tensor([[16 * math.dist(divmod(i, side), divmod(j, side)) for j in range(n)] for i in range(n)]).double()
        entropies.append({1.0: -(a * a.log()).sum(-1), 2.0: -(a**2).sum(-1).log(), math.inf: -a.amax(-1).log()})
        distances.append((a * far).sum(-1))
        tokens.append(seen["x"][0, 1:].double())
    for hook in hooks:
        hook.remove()
    return entropies, distances, tokens


def test_heads_are_those_of_the_matrix(done, loaded, folder):
    """Mean distance in pixels, entropies of all orders and their correlation over patches, head by head."""
    assert done.order == 1.0
    assert done.orders == [2.0, 1.0, math.inf]
    names = sorted(file.relative_to(folder).as_posix() for file in folder.rglob("*.png"))
    names = [next(name for name in names if name.startswith(kind)) for kind in ("cat", "dog", "owl")]
    for block in (0, 2):
        entropies, distances, _ = by_hand(loaded, folder, names, block)
        for head in (head for head in done.heads if head.block == block):
            own = torch.cat([d[head.head] for d in distances])
            assert head.distance == pytest.approx(float(own.mean()), rel=1e-4)
            for order, found in zip(done.orders, head.entropies, strict=True):
                assert found == pytest.approx(float(torch.stack([e[order][head.head].mean() for e in entropies]).mean()), rel=1e-4)
            shannon = torch.cat([e[1.0][head.head] for e in entropies])
            assert head.correlation == pytest.approx(pearson(shannon.tolist(), own.tolist()), abs=2e-3)
        for item in (item for item in done.histograms if (item.block, item.order) == (block, 1.0)):
            rows = torch.stack([e[1.0].mean(0) for e in entropies])
            assert sum(item.kept) == 3 * done.kept
            assert sum(item.pruned) == 3 * (rows.shape[1] - done.kept)
            assert item.mean(done.top) == pytest.approx(float(rows.mean()), abs=done.top / 60)
            lowest = rows.sort(dim=1).values[:, : done.kept]
            assert item.kept == torch.histc(lowest, 60, 0, done.top).int().tolist()


def test_ranks_are_of_the_tokens_that_are_left(done, loaded, folder):
    names = [sorted(folder.glob(f"{kind}/*.png"))[0].relative_to(folder).as_posix() for kind in ("cat", "dog", "owl")]
    _, _, tokens = by_hand(loaded, folder, names, 2)
    rows = {row.recipe: row for row in done.left if row.block == 2}
    full = sum(float(metrics.effective_rank(x)) for x in tokens) / 3
    assert rows["col_ln:keep=0.5"].unpruned == pytest.approx(full, rel=1e-4)
    assert rows["col_ln:keep=0.5"].random == rows["class_attention:keep=0.5"].random
    assert rows["col_ln:keep=0.5"].tokens == 50
    assert rows["evit:keep=0.3"].tokens == 31  # with the fused one
    assert rows["ats:keep=0.5"].tokens <= 50
    for row in rows.values():
        assert 1 < row.rank < row.unpruned * 1.05
        assert 1 < row.random < row.unpruned


def test_agreement(done):
    """With itself all of it; a smaller set counts whole; before block 0 nothing is asked; both ways the same."""
    names = list(done.recipes)
    assert names == list(RECIPES)
    for name in names:
        own = done.agreed(name, name)
        assert [a.block for a in own] == ([2] if name.startswith("dpc_knn") else [0, 2])
        assert all(a.overlap == 1 and a.iou == 1 for a in own)
    pair = done.agreed("class_attention:keep=0.5", "evit:keep=0.3")
    assert len(pair) == 2
    for a in pair:
        assert (a.overlap, a.iou, a.chance) == pytest.approx((1, 30 / 50, 0.5))  # the same score: 30 of the 50
    assert done.agreed("col_ln:keep=0.5", "class_attention:keep=0.5")[0].overlap < 1
    assert beyond_chance(pair[0]) == 1


def test_correlations_of_an_analysis(done):
    heads = [
        Head(block, head, 10.0 * head + block, [0.0, 2.0 * head - 5 * block, 0.0], None) for block in (0, 2) for head in (0, 1, 2)
    ]
    made = replace(done, heads=heads)
    assert made.within(2) == pytest.approx(1)
    assert made.correlation_of_blocks == pytest.approx(-1)
    assert made.correlation == pytest.approx(pearson([0, 2, 4, -10, -8, -6], [0, 10, 20, 2, 12, 22]))


def test_files(done, out, folder):
    figures = {"agreement.png", "distance.png", "entropy.png", "rank.png", "scores0.png", "scores1.png"}
    tables = {"agreement.csv", "entropy.csv", "heads.csv", "rank.csv", "scores.csv"}
    assert {file.name for file in out.iterdir()} == figures | tables | {"analysis.json", "report.html", "rows"}
    for name in figures:
        with Image.open(out / name) as picture:
            assert min(picture.size) > 250, name
            assert len(picture.convert("RGB").getcolors(10**7)) > 20, name
    assert Analysis.load(out) == done
    assert json.loads((out / "analysis.json").read_text())["correlations"]["heads"] == done.correlation
    with open(out / "heads.csv", newline="") as file:
        assert [float(line["distance"]) for line in csv.DictReader(file)] == [head.distance for head in done.heads]
    with open(out / "entropy.csv", newline="") as file:
        lines = list(csv.DictReader(file))
    assert sum(int(line["kept"]) + int(line["pruned"]) for line in lines) == 3 * 2 * 3 * 100
    with open(out / "scores.csv", newline="") as file:
        lines = list(csv.DictReader(file))
    assert {line["image"] for line in lines} == set(done.maps)
    assert len(done.maps) == 2
    assert sum(line["recipe"] == "col_ln:keep=0.5" for line in lines) == 2 * 2 * 100
    page = (out / "report.html").read_text()
    assert page.count("data:image/") == 2 * len(figures)  # each for light and for dark
    assert not any(word in page for word in ("http:", "https:", "url("))
    assert "3 images, blocks 0/2, 10 x 10 patches of 16 x 16 pixels" in str(done)
    assert "dpc_knn: before a block, so not asked at block 0" in done.notes


def test_the_model_is_left_alone(loaded, folder, tmp_path):
    """Nothing of the probes stays, batches do not matter, and a recipe alone gets no matrices."""
    before = set(loaded.model.blocks[0].__dict__)
    one = analyse(loaded, folder, ["random:keep=0.5"], tmp_path / "a", orders=[2], layers=[1], batch_size=1, shown=0, limit=3)
    two = analyse(loaded, folder, ["random:keep=0.5"], tmp_path / "b", orders=[2], layers=[1], batch_size=3, shown=0, limit=3)
    assert set(loaded.model.blocks[0].__dict__) == before
    assert not loaded.model._forward_hooks
    assert one.order == 2
    assert one.left[0].random == pytest.approx(two.left[0].random, rel=1e-6)
    assert one.heads[0].distance == pytest.approx(two.heads[0].distance, rel=1e-6)
    (tmp_path / "a" / "agreement.png").write_bytes(b"of an earlier run")
    (tmp_path / "a" / "scores_of_mine.png").write_bytes(b"no file of ours")
    analyse(loaded, folder, ["random:keep=0.5"], tmp_path / "a", orders=[2], layers=[1], shown=1, limit=1)
    assert not (tmp_path / "a" / "agreement.png").exists()
    assert sorted(file.name for file in (tmp_path / "a").glob("scores*.png")) == ["scores0.png", "scores_of_mine.png"]
    (tmp_path / "a" / "scores_of_mine.png").unlink()
    analyse(loaded, folder, ["random:keep=0.5"], tmp_path / "a", orders=[2], layers=[1], shown=0, limit=1)
    assert not list((tmp_path / "a").glob("scores*.png"))


def test_finished_work_is_taken_up(loaded, folder, tmp_path, monkeypatch):
    """An interruption after some images, one of them unreadable: the rest alone is read again; a damaged file is no obstacle."""
    from sparsight.look import analyse as module

    monkeypatch.setattr(module, "KEEP_EVERY", 0)
    monkeypatch.setattr(module, "publish", lambda *_: None)
    given = {"recipes": RECIPES, "layers": [0, 2], "orders": (1, 2), "batch_size": 2}
    broken = folder / "cat" / "0a.png"
    broken.write_bytes(b"no image")
    seen, run = [], module.Probe.run

    def counted(self, images, places, shown):
        if len(seen) == 2:
            seen.append(None)
            raise KeyboardInterrupt
        seen.append(places)
        run(self, images, places, shown)

    try:
        whole = analyse(loaded, folder, out=tmp_path / "whole", **given)
        monkeypatch.setattr(module.Probe, "run", counted)
        with pytest.raises(KeyboardInterrupt):
            analyse(loaded, folder, out=tmp_path / "out", **given)
        done = analyse(loaded, folder, out=tmp_path / "out", **given)
        assert replace(done, date=whole.date) == whole
        assert [place for places in seen if places for place in places] == [place for place in range(7) if place != 1]
        analyse(loaded, folder, out=tmp_path / "out", **given)
        assert len(seen) == 4  # nothing was left to do
        next((tmp_path / "out" / "rows").iterdir()).write_text("{")
        assert replace(analyse(loaded, folder, out=tmp_path / "out", **given), date=whole.date) == whole
        assert len(seen) == 7
    finally:
        broken.unlink()


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"orders": (1, 0)}, "order=0 must be above 0"),
        ({"orders": ()}, "no order"),
        ({"layers": "0/9"}, "out of range"),
        ({"layers": "input"}, "before the first block"),
        ({"layers": [2, 1]}, "ascending"),
        ({"layers": "0-2"}, "no list of block numbers"),
        ({"recipes": ["divprune"]}, "language model"),
        ({"recipes": ["fastv"]}, "language model"),
        ({"recipes": ["sit"]}, "learned weights"),
        ({"recipes": ["dpc_knn"], "layers": [0]}, "give blocks above 0"),
        ({"recipes": ["evitt"]}, "did you mean 'evit'"),
        ({"limit": 0}, "limit=0"),
        ({"batch_size": 0}, "batch_size=0"),
        ({"data": "nowhere"}, "does not exist"),
    ],
)
def test_bad_input_leaves_nothing(loaded, folder, tmp_path, given, message):
    with pytest.raises(PruneError, match=message):
        analyse(loaded, **{"data": folder, "out": tmp_path / "deep" / "out", **given})
    assert not list(tmp_path.iterdir())


def test_models_that_do_not_fit(folder, tmp_path):
    import timm

    import sparsight
    from sparsight.load.models import Loaded, timm_transform

    plain_vit = timm.create_model("test_vit2", num_classes=0, class_token=False, global_pool="avg").eval()
    plain = Loaded("plain", plain_vit, timm_transform(plain_vit), None, (64, 64))
    with pytest.raises(PruneError, match="no class token"):
        analyse(plain, folder, ["class_attention"], tmp_path / "out")
    done = analyse(plain, folder, (), tmp_path / "out", layers=[0], limit=1, shown=1)
    assert done.recipes == ["col_ln:keep=0.5", "renyi:keep=0.5"]
    with sparsight.prune(plain_vit, "random:keep=0.5,layers=0"), pytest.raises(PruneError, match="is pruned"):
        analyse(plain, folder, (), tmp_path / "out")
    (tmp_path / "empty").mkdir()
    with pytest.raises(PruneError, match="is empty"):
        analyse(plain, tmp_path / "empty", (), tmp_path / "new")
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "a.png").write_bytes(b"no image")
    with pytest.raises(PruneError, match=r"none of the 1 images .* can be read; a.png: not an image"):
        analyse(plain, tmp_path / "broken", (), tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_layers():
    assert check_layers("all", 3) == (0, 1, 2)
    assert check_layers("0/2", 3) == (0, 2)
    assert check_layers([1], 3) == (1,)
    with pytest.raises(PruneError, match="no layers"):
        check_layers([], 3)
