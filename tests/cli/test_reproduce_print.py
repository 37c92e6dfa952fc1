"""sparsight reproduce on the command line: the list, one entry, GFLOPs, errors in one line."""

import json

from reproduction.published import names


def test_list(sparsight):
    code, out, _ = sparsight("reproduce")
    assert code == 0
    assert all(f"\n{name} " in out for name in names())
    assert len(json.loads(sparsight("reproduce", "--json")[1])) == len(names())


def test_an_entry_without_anything_at_hand(sparsight):
    """Published numbers in the printed decimals, lost ones named, and what to bring."""
    code, out, _ = sparsight("reproduce", "similarity_table01")
    assert code == 0
    for part in (
        "similarity:keep=0.5",
        "79.3",
        "9.2",
        "lost",
        "missing: data imagenet",
        "9.2 [1]",
        "\n[1] known to differ: no schedule",
    ):
        assert part in out
    assert json.loads(sparsight("reproduce", "similarity_table01", "--json")[1])["lines"][1]["row"]["numbers"]["top1"] == 77.2


def test_gflops(sparsight):
    code, out, _ = sparsight("reproduce", "entropy_table03", "--macs", "--only", "0.3")
    assert code == 0
    assert "1.82   1.82" in out
    assert out.endswith("agrees: 2\n")
    assert "1.80   1.805  agrees" in out
    assert sparsight("reproduce", "agile_table01", "--macs")[1] == "agile_table01 has no GFLOPs\n"


def test_unknown(sparsight):
    code, _, err = sparsight("reproduce", "colln_tabel02")
    assert code == 2
    assert err.startswith("error: no published table or figure 'colln_tabel02'; did you mean colln_table02")
    assert err.count("\n") == 1
