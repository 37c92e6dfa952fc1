"""The published numbers: every file loads, nothing unknown gets in, and what can be added up adds up."""

import copy
import re
from pathlib import Path

import pytest

import sparsight
from reproduction import published
from reproduction.published import entries, entry, index
from reproduction.published_page import markdown

PAGE = Path(__file__).parent.parent.parent / "docs" / "reference" / "reproduce.md"

TABLES = {"colln": 16, "agile": 17, "entropy": 3}
FIGURES = {"colln": 5, "agile": 14, "entropy": 6}


def test_every_file():
    """It loads, its recipes parse and are those of this library, and a row without numbers to measure says what it shows."""
    for name in published.names():
        found = entry(name)
        assert not [row.recipe for row in found.rows if row.pending], name
        assert found.rows or found.command == "none", name
        assert found.command != "none" or found.shows or found.not_stated, name
        assert str(found).startswith(f"{name}: ")
        for row in found.rows:
            assert row.recipe or row.value or row.numbers, (name, row)
            if row.method:
                assert sparsight.parse(str(row.parsed())) == row.parsed()


def test_every_table_and_figure_is_there():
    names = set(entries())
    for kind, papers in (("table", TABLES), ("figure", FIGURES)):
        for paper, count in papers.items():
            assert {f"{paper}_{kind}{number:02d}" for number in range(1, count + 1)} <= names
    assert list(index().papers) == list(dict.fromkeys(item.paper.key for item in entries().values()))


def test_averages():
    """A printed average is that of the numbers beside it, MME in percent, unless the file says that it is not."""
    wrong, rows = [], 0
    for item, row, parts in rows_with("average"):
        rows += 1
        wrong += surprise(item, row, "average", sum(row.numbers[part.key] / part.scale for part in parts) / len(parts))
    assert rows >= 20
    assert wrong == []


def test_relative_scores():
    """A printed relative score follows from its row and the unpruned one by the entry's rule."""
    wrong, rows = [], 0
    for item, row, parts in rows_with("relative"):
        rows += 1
        whole = next(other for other in item.rows if other.recipe == "unpruned")
        if item.relative == "ratio of averages":
            found = 100 * row.numbers["average"] / whole.numbers["average"]
        else:
            found = 100 * sum(row.numbers[part.key] / whole.numbers[part.key] for part in parts) / len(parts)
        wrong += surprise(item, row, "relative", found)
    assert rows >= 90
    assert wrong == []


def rows_with(measure):
    """Rows of all entries that have both the measure and all that it is made of."""
    for item in entries().values():
        parts = [part for part in item.measures if part.data]
        if item.measure(measure) and parts:
            for row in item.rows:
                if all(part.key in row.numbers for part in (*parts, item.measure(measure))):
                    yield item, row, parts


def surprise(item, row, measure, found):
    """Nothing if the number agrees within the rounding of result and parts; a known oddity must really be one."""
    printed = row.numbers[measure]
    agrees = abs(found - printed) <= 0.05 + 0.5 * 10 ** -item.measure(measure).decimals
    return [] if agrees != bool(item.oddity(row, measure)) else [f"{item.id} {row}: printed {printed}, counted {found:.3f}"]


def test_corruptions_average():
    *rows, mean = entry("agile_table17").rows
    assert len(rows) == 15
    for key, value in mean.numbers.items():
        assert sum(row.numbers[key] for row in rows) / 15 == pytest.approx(value, abs=0.0055)


def test_best_order_of_the_entropy_paper():
    """Table 3 prints, for every keep rate, the best of table 1's rows."""
    table, cost = entry("entropy_table01"), entry("entropy_table03")
    for row in cost.rows[1:]:
        rate = row.recipe.partition(":")[2]
        same = [r for r in table.rows if r.data == "imagenet100" and r.recipe.endswith(rate)]
        best = max(r.numbers["top1"] for r in same if (r.label == "EViT") == (row.label == "EViT"))
        assert (row.numbers["top1"] == best) != bool(cost.oddity(row, "top1"))


def test_tables_that_repeat_each_other():
    """The same model, data and recipe has the same number in another table of the training-free Col-Ln tables."""
    seen = {}
    for name in (
        "colln_table01",
        "colln_table02",
        "colln_table03",
        "colln_table07",
        "colln_table08",
        "colln_table09",
        "colln_table11",
    ):
        for row in entry(name).rows:
            if row.method:
                assert seen.setdefault((row.model, row.recipe), row.numbers["top1"]) == row.numbers["top1"]


GOOD = {
    "paper": "colln",
    "number": "table 99",
    "title": "A table",
    "kind": "accuracy",
    "command": "compare",
    "model": "ViT-S/16",
    "data": "imagenet",
    "columns": ["label", "recipe", "top1", "gmacs"],
    "rows": [["[CLS]", "class_attention:keep=0.7", 78.9, "lost"], ["unpruned", "unpruned", 81.4, "-"]],
}


def changed(**changes):
    return {**copy.deepcopy(GOOD), **changes}


def test_a_good_file():
    found = published.read_entry("a", GOOD, index())
    first, second = found.rows
    assert (first.numbers, first.lost, second.lost) == ({"top1": 78.9}, ("gmacs",), ())
    assert (found.models, found.data, first.method, second.method) == (["ViT-S/16"], ["imagenet"], "class_attention", "")


def test_a_method_of_a_later_version():
    """An unknown method is no fault of the file: the row says that it is pending."""
    row = published.read_entry("a", changed(rows=[["new", "tokenizzle:keep=0.7", 78.9, 3.0]]), index()).rows[0]
    assert row.pending
    with pytest.raises(sparsight.PruneError, match="tokenizzle"):
        row.parsed()


@pytest.mark.parametrize(("faulty", "said"), [
    (changed(colour="red"), "key 'colour' is not known"),
    (changed(kind="poem"), "kind 'poem' is not known"),
    (changed(command="dance"), "command 'dance'"),
    (changed(paper="none"), "paper 'none'"),
    (changed(model="ViT-X"), "model 'ViT-X'"),
    (changed(data="mnist"), "data 'mnist'"),
    (changed(relative="somehow"), "relative 'somehow'"),
    (changed(title=""), "title is ''"),
    (changed(columns=["label", "recipe", "top1", "iq"]), "column 'iq'"),
    (changed(columns=["recipe", "recipe", "top1", "gmacs"]), "columns must be different"),
    (changed(decimals={"erank": 1}), "decimals 'erank'"),
    (changed(decimals={"top1": "two"}), "no whole number"),
    (changed(rows=[["[CLS]", "class_attention:keep=0.7", 78.9]]), "row 1: 4 columns"),
    (changed(rows=[["[CLS]", "class_attention:keep=0.7", 78.9, "?"]]), "gmacs is '?'"),
    (changed(rows=[["[CLS]", "class_attention:keep=1.7", 78.9, 3.0]]), "row 1: recipe 'class_attention:keep=1.7'"),
    (changed(rows=[["[CLS]", "class_attention:kep=0.7", 78.9, 3.0]]), "did you mean 'keep'"),
    (changed(exceptions=[{"measure": "top1", "reason": "odd", "label": "Col-Ln"}]), "no row is meant"),
    (changed(exceptions=[{"measure": "top1"}]), "reason is missing"),
    (changed(exceptions=[{"measure": "top1", "reason": 3}]), "reason=3"),
], ids=lambda v: v if isinstance(v, str) else "")  # fmt: skip
def test_faults(faulty, said):
    with pytest.raises(sparsight.PruneError, match=re.escape(said)):
        published.read_entry("a", faulty, index())


def test_broken_file():
    with pytest.raises(sparsight.PruneError, match=r"tables/a\.toml cannot be read"):
        published.loads("a", "title = ")


def test_unknown_entry():
    with pytest.raises(sparsight.PruneError, match="did you mean colln_table12 or colln_table02"):
        entry("colln_table2")


def test_page_is_up_to_date():
    page = PAGE.read_text(encoding="utf-8")
    assert page == markdown(), "run `make docs`"
    assert all(f"| `{name}` |" in page for name in published.names())


def test_every_number_that_is_known_to_differ_has_its_reason():
    """On the page each of the 29 rows of GFLOPs, and all other numbers that do not add up."""
    rows = [line for line in markdown().partition("## What does not add up")[2].splitlines() if line.startswith("| `")]
    assert sum("| GFLOPs |" in line for line in rows) == 29
    assert all(line.split(" | ")[-1].strip(" |") for line in rows)
    odd = [(item, row, key) for item in entries().values() for row in item.rows for key in row.numbers if item.oddity(row, key)]
    assert len(rows) == len(odd)
