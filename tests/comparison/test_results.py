"""The results that are kept in the repository: complete, quoted as they are, and saying what the README says."""

import json
import re
import shutil
from pathlib import Path

import pytest

from clipdec.comparison.systems import ABLATIONS, SYSTEMS, TRAINED
from clipdec.comparison.report import NAMES, write_report

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "results"
SEEDS = range(5)


@pytest.fixture(scope="module")
def rows():
    return json.loads((RESULTS / "emoji.json").read_text())


def test_every_system_has_five_seeds(rows):
    assert [(row["system"], row["seed"]) for row in rows] == [(name, seed) for name in SYSTEMS for seed in SEEDS]
    assert set(NAMES) == set(SYSTEMS)
    for row in rows:
        assert all(0 < row[task][figure] < 100 for task in ("zsl", "gzsl") for figure in ("map", "p@3", "r@3", "f1@3", "p@5", "r@5", "f1@5"))
        assert row["protocol"]["test_images"] == 2000 and row["protocol"]["keep"] == "all"


def test_all_ablations_are_there():
    found = [(row["group"], row["setting"]) for row in json.loads((RESULTS / "emoji_ablations.json").read_text())["rows"] if row["seed"] == 0]
    assert found == [(group, setting) for group, settings in ABLATIONS.items() for setting in settings]


def test_the_head_wins_with_every_seed(rows):
    figure = {(row["system"], row["seed"], task): row[task]["map"] for row in rows for task in ("zsl", "gzsl")}
    for other in set(SYSTEMS) - {"best"}:
        assert all(figure["best", seed, task] > figure[other, seed, task] for seed in SEEDS for task in ("zsl", "gzsl")), other
    for difference in json.loads((RESULTS / "emoji_summary.json").read_text())["differences"]:
        for task in ("zsl", "gzsl"):
            a, b = difference["systems"]
            each = [figure[a, seed, task] - figure[b, seed, task] for seed in SEEDS]
            assert difference[task]["mean"] == pytest.approx(sum(each) / len(each)) and difference[task]["min"] == pytest.approx(min(each))
            assert a != "best" or difference[task]["interval"][0] > 0


def test_the_report_is_made_of_the_json(tmp_path):
    for path in RESULTS.glob("*.json"):
        shutil.copy(path, tmp_path)
    write_report(tmp_path / "emoji")
    assert (tmp_path / "emoji.md").read_text() == (RESULTS / "emoji.md").read_text()


def test_the_readme_quotes_the_report():
    report = (RESULTS / "emoji.md").read_text()
    readme = (ROOT / "README.md").read_text()
    quoted = [line for line in readme.splitlines() if line.startswith("| ") and any(line.startswith(f"| {name} |") for name in NAMES.values())]
    assert len(quoted) >= 2 * len(SYSTEMS)
    for line in quoted:
        assert line in report


def test_no_path_of_a_machine_is_in_the_results():
    for path in RESULTS.iterdir():
        if path.suffix in (".json", ".md"):
            assert not re.search(r"""(^|["'\s=`])/\w""", path.read_text()), path  # nothing that begins as an absolute path does


def test_rows_of_trained_systems_name_a_command(rows):
    for row in rows:
        assert row["command"].startswith("papermill notebooks/04_train.ipynb" if row["system"] in TRAINED else "python -m clipdec.comparison")
