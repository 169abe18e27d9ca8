"""Make notebooks/exercises from notebooks/solutions: `python docs/exercises.py`.

A cell says by a tag what becomes of it. `fill-in`: what stands between the lines `# BEGIN SOLUTION` and
`# END SOLUTION` becomes a blank. `answer`: the text becomes a place to write. Everything else stays, without outputs.
(nbgrader marks solutions with such lines too; it also keeps courses, students and grades in a database, which nobody
here needs.)
"""

import re
from pathlib import Path

import nbformat

NOTEBOOKS = Path(__file__).resolve().parents[1] / "notebooks"
SOLUTIONS, EXERCISES = NOTEBOOKS / "solutions", NOTEBOOKS / "exercises"
BLOCK = re.compile(r"^( *)# BEGIN SOLUTION\n(.*?)^ *# END SOLUTION$", re.DOTALL | re.MULTILINE)
BLANK = 'raise NotImplementedError("your code here")'


def is_tagged(cell, tag):
    return tag in cell.metadata.get("tags", ())


def filled(source, lines=BLANK):
    """A `fill-in` cell's source with `lines`, indented as the solution is, in place of the solution.

    Raises ValueError where not exactly one solution is marked.
    """
    if len(BLOCK.findall(source)) != 1:
        raise ValueError(f"exactly one # BEGIN SOLUTION and # END SOLUTION is needed in the cell:\n{source}")
    return BLOCK.sub(lambda found: "\n".join(found[1] + line for line in lines.splitlines()), source)


def exercise(solution):
    """The notebook with blanks, no outputs, and nothing left that tells an answer."""
    notebook = nbformat.from_dict(solution)
    for cell in notebook.cells:
        cell.metadata.pop("mistake", None)
        if cell.cell_type == "code":
            cell.outputs, cell.execution_count = [], None
        if is_tagged(cell, "fill-in"):
            cell.source = filled(cell.source)
        if is_tagged(cell, "answer"):
            cell.source = "*Your answer:*"
    return notebook


def main():
    EXERCISES.mkdir(exist_ok=True)
    for path in sorted(SOLUTIONS.glob("*.ipynb")):
        text = nbformat.writes(exercise(nbformat.read(path, as_version=4)))
        (EXERCISES / path.name).write_text(text + "\n", encoding="utf8", newline="\n")


if __name__ == "__main__":
    main()
