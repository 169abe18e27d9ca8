"""What the files of the repository promise each other."""

import ast
import importlib
import os
import re
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
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from clipdec import Config
from clipdec.training.config import PRESETS

ROOT = Path(__file__).resolve().parents[1]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
ALL_NOTEBOOKS = [*NOTEBOOKS, *sorted((ROOT / "notebooks").glob("[es]*/*.ipynb"))]  # exercises, solutions
FOLDERS = (".", "docs", "benchmarks", "results", "clipdec/mini_clip")
PAGES = sorted(path for folder in FOLDERS for path in (ROOT / folder).glob("*.md"))
MOST_WORDS, WORDS_A_MINUTE = 1800, 200
read = lambda path: nbformat.read(path, as_version=nbformat.NO_CONVERT)


def number(path):
    """ "03b" of 03b_matching_head.ipynb."""
    return path.stem.partition("_")[0]


def test_the_environment_takes_its_packages_from_the_project():
    environment = yaml.safe_load((ROOT / "environment.yml").read_text())
    assert [d["pip"] for d in environment["dependencies"] if isinstance(d, dict)] == [["-e ."]]


def test_the_tested_versions_are_of_all_packages_and_within_their_bounds():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    parts = project["dependencies"], *project["optional-dependencies"].values()
    asked = [Requirement(text) for part in parts for text in part]
    pinned = [Requirement(line) for line in (ROOT / "constraints.txt").read_text().splitlines() if line[0] != "#"]
    versions = {canonicalize_name(pin.name): next(iter(pin.specifier)).version for pin in pinned if applies(pin)}
    for wanted in (each for each in asked if each.name != "clipdec"):
        assert wanted.specifier.contains(versions[canonicalize_name(wanted.name)]), wanted


def applies(requirement):
    return requirement.marker is None or requirement.marker.evaluate()


def test_the_address_of_the_repository_is_that_of_the_project():
    """In the badges and the cells that fetch it in Colab."""
    address = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["urls"]["Repository"]
    name = address.removeprefix("https://github.com/")
    for path in ALL_NOTEBOOKS:
        text = path.read_text(encoding="utf8")
        assert set(re.findall(r"git clone --depth 1 (\S+) ", text)) <= {address}, path
        assert set(re.findall(r"colab.research.google.com/github/([^/]+/[^/]+)/", text)) <= {name}, path


def test_the_notebooks_are_all_there():
    assert [number(p) for p in NOTEBOOKS] == "00 01 01b 02 02b 03 03b 04 05 06 06b 07 08".split()


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_notebook_is_committed_as_it_ran(path):
    notebook = read(path)
    first, code = notebook.cells[0], [c for c in notebook.cells if c.cell_type == "code"]
    nbformat.validate(notebook)
    assert not {"widgets", "papermill"} & notebook.metadata.keys()
    assert first.cell_type == "markdown" and first.source.startswith(f"# {number(path)} · ")
    assert [c.execution_count for c in code] == list(range(1, len(code) + 1))
    outputs = [o for c in code for o in c.outputs]
    assert outputs and "error" not in {o.output_type for o in outputs}
    assert not any("papermill" in c.metadata for c in notebook.cells)


def prose(notebook):
    """The text of a notebook: its markdown cells, and the sentences that its cells show, which hold no table."""
    texts = []
    for cell in notebook.cells:
        shown = [output.get("data", {}).get("text/markdown", "") for output in cell.get("outputs", [])]
        said = [text for text in shown if not re.search(r"^\|", text, re.M)]
        texts += [cell.source] if cell.cell_type == "markdown" else said
    return "\n\n".join(texts)


def minutes(time):
    """Of a time as README writes it, "20 s" or "3 min"; None for one that was not measured."""
    number, _, unit = time.partition(" ")
    return None if time == "–" else float(number) / {"s": 60, "min": 1}[unit]


def total(times):
    """Whole minutes of `times` together; None if one of them was not measured."""
    each = [minutes(time) for time in times]
    return None if None in each else round(sum(each))


def test_readme_says_how_long_reading_takes():
    """Each notebook's within a minute, so that a further sentence does not make README untrue; sums exactly."""
    text = (ROOT / "README.md").read_text(encoding="utf8")
    rows = re.findall(r"^\| \[(\w+)\]\(notebooks/\1\.ipynb\) \|.*\| (.+) \| (.+) \|$", text, re.M)
    words = {path.stem: len(prose(read(path)).split()) for path in NOTEBOOKS}
    assert [name for name, *_ in rows] == list(words)
    found = {name: words[name] / WORDS_A_MINUTE for name, _, reads in rows}
    untrue = {name: f"{found[name]:.1f} min" for name, _, reads in rows if abs(minutes(reads) - found[name]) > 1}
    assert not untrue
    for title, end in (("00 to 05", "05_"), ("all", "08_")):
        parts = [row for row in rows if row[0][:3] <= end]
        runs, reads = re.search(rf"^\| \*\*{title}\*\* \|.*\| (.+) \| (.+) \|$", text, re.M).groups()
        assert minutes(reads) == total([part[2] for part in parts])
        assert minutes(runs) == total([part[1] for part in parts])


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_notebooks_are_short_to_read(path):
    assert len(prose(read(path)).split()) <= MOST_WORDS


def unfenced(text):
    """A page without its blocks of code."""
    return re.sub(r"^```.*?^```", "", text, flags=re.S | re.M)


def links(text):
    """Where the links and pictures of a page lead, those out of the repository left out."""
    text = unfenced(text)
    found = re.findall(r"\]\(([^()\s]+)\)", text) + re.findall(r"(?:src|href)=\"([^\"]+)\"", text)
    return [link for link in found if not re.match(r"[a-z]+:", link)]


def anchors(text):
    """What GitHub makes of the headings of a page."""
    titles = re.findall(r"^#+ (.+)$", unfenced(text), re.M)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.relative_to(ROOT).as_posix())
def test_links_of_pages_lead_somewhere(page):
    text = page.read_text(encoding="utf8")
    for link in links(text):
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.exists() and target.is_relative_to(ROOT), link
        assert not anchor or anchor in anchors(target.read_text(encoding="utf8")), link


@pytest.mark.parametrize("path", ALL_NOTEBOOKS, ids=lambda p: f"{p.parent.name}/{p.stem}")
def test_links_of_notebooks_lead_somewhere(path):
    for link in links(prose(read(path))):
        target = (path.parent / link.partition("#")[0]).resolve()
        assert target.exists() and target.is_relative_to(ROOT), link


def test_readme_is_short_and_leads_to_every_page():
    text = (ROOT / "README.md").read_text(encoding="utf8")
    assert len(text.splitlines()) <= 200
    led = {(ROOT / link.partition("#")[0]).resolve() for link in links(text)}
    pages = {path for path in (ROOT / "docs").glob("*.md") if path.name != "index.md"}
    assert pages and pages <= led
    for path in (*pages, ROOT / "README.md"):
        bare = unfenced(path.read_text(encoding="utf8"))
        assert bare.startswith("# ") and len(re.findall(r"^# ", bare, re.M)) == 1, path.name


def test_the_table_of_symbols_names_what_is_in_the_code():
    known = {word for path in (ROOT / "clipdec").rglob("*.py") for word in re.findall(r"\w+", path.read_text("utf8"))}
    page = (ROOT / "docs" / "symbols.md").read_text(encoding="utf8")
    rows = [line.strip("|").split("|") for line in page.splitlines() if line.startswith("| $")]
    named = [word for *_, code, _ in rows for part in re.findall(r"`(.+?)`", code) for word in re.findall(r"\w+", part)]
    assert len(rows) > 30 and len(named) > 30 and set(named) <= known
    assert {row[-1].strip() for row in rows} <= {number(path) for path in NOTEBOOKS}


def test_the_claims_are_shown_as_their_notebook_computes_them():
    cells = read(ROOT / "notebooks" / "08_paper_and_code.ipynb").cells
    tables = [o.data.get("text/markdown", "") for c in cells for o in c.get("outputs", []) if "data" in o]
    (claims,) = (table for table in tables if "not tested here" in table)
    page = (ROOT / "docs" / "results.md").read_text(encoding="utf8")
    assert claims in page and "+3.9" in claims and "+2.3" in claims


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
