"""The results that are kept in the repository: complete, quoted as they are, and saying what the README says."""

import json
import re
import shutil
from pathlib import Path

import pytest

from clipdec.comparison.ablations import ABLATIONS
from clipdec.comparison.report import NAMES, figures, write_report
from clipdec.comparison.systems import PAIRS, SYSTEMS, TRAINED

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "results"
PENDING = "biam mkt lesa recover_and_match dualcoop dualcoop_5 dualcoop_windows".split()  # not run yet: README says so
THERE = [name for name in SYSTEMS if name not in PENDING]
SEEDS, TASKS = range(5), ("zsl", "gzsl")
read = lambda ending: json.loads((RESULTS / f"emoji{ending}.json").read_text())
ROWS, ABLATED, SUMMARY = read(""), read("_ablations"), read("_summary")
SHOWN = read("_shown_ablations")


def test_every_system_and_ablation_is_there():
    assert [(row["system"], row["seed"]) for row in ROWS] == [(name, seed) for name in THERE for seed in SEEDS]
    assert set(NAMES) == set(SYSTEMS)
    for row in ROWS:
        assert all(0 < row[task][figure] < 100 for task in TASKS for figure in figures(ROWS))
        assert row["protocol"]["test_images"] == 2000 and row["protocol"]["keep"] == "all"
        command = "papermill notebooks/04_train" if row["system"] in TRAINED else "python -m clipdec.comparison"
        assert row["command"].startswith(command)
    made = (("head", ABLATED), ("author's points", SHOWN))
    for first, ablated in made:
        found = {(row["group"], row["setting"], row["seed"]) for row in ablated["rows"]}
        groups = {group for group, *_ in found}
        assert found == {(group, s, seed) for group in groups for s in ABLATIONS[group] for seed in range(3)}
        assert first in groups
    again, met = ([(row["system"], row["seed"]) for row in read(part)] for part in ("_without_unseen", "_with_unseen"))
    assert again == met == [(name, seed) for name in dict(again) for seed in range(3)]
    assert {"raw_clip", "raw_clip_softmax", "ml_decoder", "clip_decoder", "best"} == dict(again).keys()


def test_differences_are_those_of_the_rows():
    figure = {(row["system"], row["seed"], task): row[task]["map"] for row in ROWS for task in TASKS}
    pairs = [pair for pair in PAIRS if {*pair} <= {*THERE}]
    assert [tuple(found["systems"]) for found in SUMMARY["differences"]] == pairs
    for (a, b), task, found in [(d["systems"], task, d[task]) for d in SUMMARY["differences"] for task in TASKS]:
        each = [figure[a, seed, task] - figure[b, seed, task] for seed in SEEDS]
        assert found["mean"] == pytest.approx(sum(each) / len(each)) and found["min"] == pytest.approx(min(each))
        assert found["interval"][0] < found["mean"] < found["interval"][1]


def test_the_report_is_made_of_the_json(tmp_path):
    for path in RESULTS.glob("*.json"):
        shutil.copy(path, tmp_path)
    for name in ("emoji", "emoji_single", "emoji_shown", "emoji_with_unseen", "emoji_without_unseen", "photographs"):
        write_report(tmp_path / name)
        assert (tmp_path / f"{name}.md").read_text() == (RESULTS / f"{name}.md").read_text()


def test_the_readme_quotes_the_report_and_the_strongest():
    """Of each number of tower passes and each block the best in ZSL and in GZSL mAP stand there, whoever that is, and
    of the trained ones the best that is no CLIP-Decoder.
    """
    report, readme = (RESULTS / "emoji.md").read_text(), (ROOT / "README.md").read_text().split("### On photographs")[0]
    quoted = [line for line in readme.splitlines() if line.startswith(tuple(f"| {name} |" for name in NAMES.values()))]
    assert all(line in report for line in quoted)
    there = {line.split(" |")[0].removeprefix("| ") for line in quoted}
    means = {}
    for row, task in ((row, task) for row in ROWS for task in TASKS):
        each = means.setdefault((row["passes"], row["block"], task), {}).setdefault(row["system"], [])
        each.append(row[task]["map"])
    assert {passes for passes, *_ in means} == {1, 5, 26}
    rivals = [{name: each for name, each in found.items() if name not in TRAINED} for found in means.values()]
    strongest = {max(found, key=lambda name: sum(found[name])) for found in [*means.values(), *rivals]}
    assert {NAMES[name] for name in strongest} <= there
    assert all(NAMES[name] in readme for name in PENDING)


def test_the_readme_quotes_the_photographs():
    report, readme = (RESULTS / "photographs.md").read_text(), (ROOT / "README.md").read_text()
    section = readme.split("### On photographs")[1].split("\n## ")[0]
    quoted = [line for line in section.splitlines() if line.startswith(tuple(f"| {name} |" for name in NAMES.values()))]
    assert quoted and all(line in report for line in quoted)


def test_the_differences_in_the_readme_are_those_of_the_json():
    found = [d[task] for d in SUMMARY["differences"] + read("_without_unseen_summary")["differences"] for task in TASKS]
    known = {tuple(f"{x:.1f}" for x in (abs(d["mean"]), *sorted(map(abs, d["interval"])))) for d in found}
    pattern = r"([\d.]+) points[^(]*\(95 % interval ([\d.]+) to ([\d.]+)\)"
    quoted = re.findall(pattern, (ROOT / "README.md").read_text())
    assert len(quoted) == 17 and set(quoted) <= known


def test_no_path_of_a_machine_is_in_the_results():
    absolute = re.compile(r"""(^|["'\s=`])/\w""")  # what an absolute path begins with
    for path in [path for path in RESULTS.iterdir() if path.suffix in (".json", ".md")]:
        assert not absolute.search(path.read_text()), path

