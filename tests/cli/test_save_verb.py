"""sparsight save: the demo model with the recipe that was given or that a search chose, and what is refused."""

import json

import pytest
from typer.testing import CliRunner

import sparsight
from sparsight.cli.main import app
from sparsight.errors import PruneError

RUN = CliRunner()


def run(*arguments: object) -> object:
    return RUN.invoke(app, ["save", *map(str, arguments)])


def test_saved_and_saved_again(tmp_path):
    (tmp_path / "tuned").mkdir()
    recipe = sparsight.parse("evit:keep=0.7")
    (tmp_path / "tuned" / "recipe.json").write_text(recipe.to_json())
    rows = [{"recipes": [str(recipe)], "report": {"value": 0.8, "low": 0.7, "high": 0.9}, "cost": 2.0}]
    (tmp_path / "tuned" / "results.json").write_text(json.dumps({"unit": "GMACs", "rows": rows}))
    done = run("demo", "--recipe", tmp_path / "tuned", "--out", tmp_path / "a")
    assert done.output == f"wrote {tmp_path / 'a'}\n"
    assert run(tmp_path / "a", "--out", tmp_path / "b").exit_code == 0
    found = sparsight.load(str(tmp_path / "b"))
    assert found.recipes == (recipe,)
    assert found.evidence["rows"] == [[str(recipe), "80.0 [70.0, 90.0]", "2"]]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["demo", "--out", "x"], "demo is not pruned; give --recipe"),
        (["demo", "--recipe", "evit"], "give either --out FOLDER or --push OWNER/NAME"),
        (["demo", "--recipe", "runs/none", "--out", "x"], "no file or folder runs/none"),
    ],
    ids=["unpruned", "nowhere", "no-file"],
)
def test_refused(arguments, message):
    done = run(*arguments)
    assert done.exit_code != 0
    assert message in " ".join(str(done.exception if isinstance(done.exception, PruneError) else done.output).split())
