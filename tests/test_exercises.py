"""Solutions pass, blanks and typical mistakes fail, and the exercises are those of the solutions."""

from contextlib import chdir
from textwrap import dedent

import matplotlib
import nbformat
import pytest
from IPython.core.inputtransformer2 import TransformerManager

from docs.exercises import EXERCISES, NOTEBOOKS, SOLUTIONS, exercise, filled, is_tagged

PATHS = sorted(SOLUTIONS.glob("*.ipynb"))
read = lambda path: nbformat.read(path, as_version=4)


def test_every_notebook_of_the_course_has_exercises():
    course = {path.name for path in NOTEBOOKS.glob("*.ipynb")} - {"07_app.ipynb"}
    assert course == {path.name for path in PATHS} == {path.name for path in EXERCISES.glob("*.ipynb")}


@pytest.mark.parametrize("path", PATHS, ids=lambda path: path.stem)
def test_the_exercises_are_up_to_date_and_of_three_kinds(path):
    made = exercise(read(path))
    assert read(EXERCISES / path.name) == made, "run `python docs/exercises.py`"
    cells = read(path).cells
    kinds = [[cell for cell in cells if is_tagged(cell, tag)] for tag in ("fill-in", "check", "answer")]
    headings = [cell for cell in cells if cell.cell_type == "markdown" and cell.source.startswith("## ")]
    assert len(headings) >= 4 and all(kinds) and sum("prediction =" in cell.source for cell in kinds[0]) >= 1
    assert "SOLUTION" not in str(made) and not any(cell.get("outputs") for cell in made.cells)


def run(sources, names):
    """Execute cells one after the other in the namespace `names`, as IPython would."""
    for source in sources:
        exec(compile(TransformerManager().transform_cell(source), "<cell>", "exec"), names)


def parts(cells):
    """[(a fill-in cell or None, sources of the code cells behind it, up to the next)]"""
    found = [(None, [])]
    for cell in (cell for cell in cells if cell.cell_type == "code"):
        if is_tagged(cell, "fill-in"):
            found.append((cell, []))
        else:
            found[-1][1].append((cell.source, is_tagged(cell, "check")))
    return found


@pytest.mark.parametrize("path", PATHS, ids=lambda path: path.stem)
def test_blanks_and_mistakes_fail_where_the_solution_passes(path, monkeypatch):
    """Each in a copy of the names as the solutions before it leave them."""
    monkeypatch.setattr("builtins.print", lambda *_, **__: None)
    matplotlib.use("agg")
    names = {"__name__": "__main__", "display": lambda *_, **__: None}
    with chdir(path.parent):
        for cell, behind in parts(read(path).cells):
            if cell is not None:
                last = max((i for i, (_, check) in enumerate(behind) if check), default=None)
                assert last is not None, f"no check behind:\n{cell.source}"
                checks = [source for source, _ in behind[: last + 1]]
                for lines, error in ((filled(cell.source), NotImplementedError), (None, AssertionError)):
                    wrong = lines or filled(cell.source, dedent(cell.metadata["mistake"]))
                    with pytest.raises(error):
                        run([wrong, *checks], dict(names))
                run([cell.source], names)
            run([source for source, _ in behind], names)


def test_a_cell_without_a_marked_solution_is_an_error():
    assert (
        filled("def f():\n    # BEGIN SOLUTION\n    return 1\n    # END SOLUTION\n", "a\nb")
        == "def f():\n    a\n    b\n"
    )
    for source in (
        "x = 1",
        "# BEGIN SOLUTION\n# END SOLUTION\n# BEGIN SOLUTION\n# END SOLUTION",
        "# BEGIN SOLUTION\n1",
    ):
        with pytest.raises(ValueError, match="exactly one"):
            filled(source)
