"""What the files of the repository promise each other."""

import ast
import importlib
import os
import shutil
import subprocess
import sys
import tomllib
import typing
from dataclasses import fields
from pathlib import Path

import nbformat
import pytest
import yaml

from clipdec import Config
from clipdec.training.config import PRESETS

ROOT = Path(__file__).resolve().parents[1]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
read = lambda path: nbformat.read(path, as_version=nbformat.NO_CONVERT)


def test_environment_and_project_name_the_same_packages():
    environment = yaml.safe_load((ROOT / "environment.yml").read_text())
    (pip,) = (d["pip"] for d in environment["dependencies"] if isinstance(d, dict))
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert [p for p in pip if not p.startswith("-e")] == project["dependencies"] and pip[-1] == "-e ."


def test_the_notebooks_are_all_there():
    assert {"00", "01", "02", "03", "04", "05", "06", "07", "08"} <= {p.name[:2] for p in NOTEBOOKS}


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_notebook_is_committed_as_it_ran(path):
    notebook = read(path)
    first, code = notebook.cells[0], [c for c in notebook.cells if c.cell_type == "code"]
    nbformat.validate(notebook)
    assert not {"widgets", "papermill"} & notebook.metadata.keys()
    assert first.cell_type == "markdown" and first.source.startswith(f"# {path.name[:2]} · ")
    assert [c.execution_count for c in code] == list(range(1, len(code) + 1))
    outputs = [o for c in code for o in c.outputs]
    assert outputs and "error" not in {o.output_type for o in outputs}
    assert not any("papermill" in c.metadata for c in notebook.cells)


def test_readme_shows_the_claims_as_their_notebook_computes_them():
    cells = read(ROOT / "notebooks" / "08_paper_and_code.ipynb").cells
    tables = [o.data.get("text/markdown", "") for c in cells for o in c.get("outputs", []) if "data" in o]
    (claims,) = (table for table in tables if "not tested here" in table)
    assert claims in (ROOT / "README.md").read_text(encoding="utf8") and "+3.9" in claims and "+2.3" in claims


def test_the_parameters_are_those_of_config():
    """Name, type, value and help of each, in order; None stands for the preset's value where presets differ."""
    cells = read(ROOT / "notebooks" / "04_train.ipynb").cells
    (source,) = (cell.source for cell in cells if "parameters" in cell.metadata.get("tags", []))
    lines, found = source.splitlines(), {}
    for node in ast.parse(source).body:
        assert isinstance(node, ast.AnnAssign), f"line {node.lineno}: one `name: type = value` a line"
        found[node.target.id] = node, lines[node.lineno - 1].partition("  # ")[2]
    assert list(found) == [setting.name for setting in fields(Config)]
    by_presets = {name for other in ("clip", "paper") for name in PRESETS[other]}
    for setting in fields(Config):
        node, help_text = found[setting.name]
        kind = eval(ast.unparse(node.annotation), {"Optional": typing.Optional})
        default = setting.default or PRESETS["mini"].get(setting.name)
        optional = typing.Optional[setting.type] if setting.name in by_presets else setting.type
        assert kind == optional and help_text == setting.metadata["help"], setting.name
        assert ast.literal_eval(node.value) == (None if setting.name in by_presets else default), setting.name


@pytest.mark.parametrize("path", sorted((ROOT / "benchmarks").glob("[a-z]*.py")), ids=lambda p: p.stem)
def test_benchmarks_find_what_they_import(path):
    importlib.import_module(f"benchmarks.{path.stem}")


@pytest.mark.parametrize("where, verdict", [
    ("Path(__file__).parent", "changed while the tests ran: kept.txt, runs, runs/emoji, runs/emoji/metrics.json"),
    ("Path(os.environ['CLIPDEC_HOME'])", "2 passed"),
])  # fmt: skip
def test_a_test_that_changes_the_checkout_fails(tmp_path, where, verdict):
    """As notebook 04 would, which by default trains into runs/emoji."""
    assert Config().path("out_dir") == Path(os.environ["CLIPDEC_HOME"]).resolve() / "runs" / "emoji"
    shutil.copy(ROOT / "conftest.py", tmp_path)
    (tmp_path / "kept.txt").write_text("as it was")
    test = f"""
import os
from pathlib import Path

def test_one():
    run = {where} / "runs" / "emoji"
    run.mkdir(parents=True)
    (run / "metrics.json").write_text("{{}}")
    ({where} / "kept.txt").write_text("not as it was")
"""
    (tmp_path / "test_one.py").write_text(test)
    command = [sys.executable, "-m", "pytest", "-q", tmp_path]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert verdict.replace("/", os.sep) in done.stdout and (done.returncode == 0) == verdict.endswith("passed")
