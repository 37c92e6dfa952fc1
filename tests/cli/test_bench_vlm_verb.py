"""sparsight bench-vlm: the table, the files, and refusals in one line."""

import pytest

pytest.importorskip("transformers")


def test_the_table_and_the_files(sparsight, tmp_path):
    wanted = ("bench-vlm", "--config", "tiny", "--layers", 3, "--rounds", 2, "--new-tokens", 2, "--recipe", "divprune:tokens=64",
              "--recipe", "fastv:layer=1,keep=0.5", "--out", tmp_path)  # fmt: skip
    code, text, news = sparsight(*wanted)
    assert code == 0
    title, heads, *lines = text.splitlines()
    assert title.startswith("tiny with random weights, 3 layers: 1 prompt of 640 tokens and 2 new")
    assert heads.split()[:3] == ["recipe", "tokens", "GMACs"]
    assert [line.split()[0] for line in lines[:3]] == ["unpruned", "divprune:tokens=64", "fastv:keep=0.5,layer=1"]
    assert "576 → 64" in lines[1]
    assert lines[-1].startswith("wrote ")
    assert all((tmp_path / name).stat().st_size > 1000 for name in ("report.html", "results.json"))
    assert news.splitlines()[0].startswith("1/3 unpruned: 576 visual tokens")
    assert "(finished before)" in sparsight(*wanted)[2]


def test_refusals_are_one_line(sparsight, tmp_path):
    out = ("--out", tmp_path / "out")
    code, text, fault = sparsight("bench-vlm", "--config", "huge", "--recipe", "divprune:tokens=64", *out)
    assert (code, text, fault) == (
        2,
        "",
        "error: config 'huge' is not known; choose tiny or llava-7b-shape, or give a checkpoint with --model\n",
    )
    code, _, fault = sparsight("bench-vlm", "--config", "tiny", *out)
    assert code == 2
    assert fault.startswith("error: nothing to measure")
    assert not (tmp_path / "out").exists()
