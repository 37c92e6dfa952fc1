"""Tables at every width: digits and names stay whole, columns that do not fit go as a whole and are named."""

import pytest
from rich.text import Text

from sparsight.cli.results import BENCH, COMPARISON, EVALUATION, RANKING, ROBUSTNESS, STAGES
from sparsight.cli.table import Column, pieces, print_table

RECIPE = "compose:score=col_ln,keep=0.7,layers=0/1/2/3/4/5/6/7/8/9/10/11,select=topk,reduce=fuse_rest,order=2.5,rows=patches"
TABLES = {
    "compare": COMPARISON,
    "evaluate": EVALUATION,
    "robustness": ROBUSTNESS,
    "bench": BENCH,
    "bench-vlm": STAGES,
    "rank": RANKING,
}


def printed(capsys, columns, width, monkeypatch):
    """A table of the given columns with recipes as names and distinct long numbers elsewhere."""
    if width:
        monkeypatch.setenv("COLUMNS", str(width))
    else:
        monkeypatch.delenv("COLUMNS", raising=False)
    numbers = [f"{1000 + place}.{row}" for row in (1, 2) for place in range(len(columns))]
    rows = [
        [RECIPE if column.name else numbers[row * len(columns) + place] for place, column in enumerate(columns)] for row in (0, 1)
    ]
    print_table("A title", columns, [rows[0], None, rows[1]], "results.csv")
    return capsys.readouterr().out, rows


@pytest.mark.parametrize("verb", TABLES)
@pytest.mark.parametrize("width", [60, 80, 100, 120, 200])
def test_nothing_is_cut(capsys, monkeypatch, verb, width):
    columns = TABLES[verb]
    text, rows = printed(capsys, columns, width, monkeypatch)
    assert max(map(len, text.splitlines())) <= width
    table, _, lost = text.partition("no room for ")
    dropped = lost.replace("\n", " ").partition(" in ")[0].split(", ") if lost else []
    assert all(column.drop for column in columns if column.head in dropped)
    for row in rows:
        for column, cell in zip(columns, row, strict=True):
            if not column.name:
                assert (cell in table.split()) == (column.head not in dropped)
    names = sum(column.name and column.head not in dropped for column in columns)
    assert table.count("rows=patches") == 2 * names


def test_a_pipe_gets_every_column_and_one_line_for_each_row(capsys, monkeypatch):
    text, _ = printed(capsys, COMPARISON, None, monkeypatch)
    assert text.count(RECIPE) == 2
    assert all(column.head in text for column in COMPARISON)
    assert "no room" not in text


def test_names_break_after_commas():
    assert pieces("evit:keep=0.5,layers=3/6/9", 18) == ["evit:keep=0.5,", "layers=3/6/9"]
    assert pieces("x" * 25, 10) == ["x" * 10, "x" * 10, "x" * 5]
    assert "".join(pieces(RECIPE, 16)) == RECIPE


def test_names_are_no_markup(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    print_table("[bold]t", [Column("name", name=True), Column("n")], [["[red]a.png", Text("1", "bold green")]])
    assert capsys.readouterr().out.splitlines()[0] == "[bold]t"


def test_a_table_without_rows(capsys):
    print_table("none", [Column("name", name=True), Column("n")], [])
    assert capsys.readouterr().out.splitlines()[1].split() == ["name", "n"]
