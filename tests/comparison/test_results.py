"""The results that are kept in the repository: complete, quoted as they are, and saying what the pages say."""

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
SEEDS, TASKS = range(5), ("zsl", "gzsl")
PAGE, README = ((ROOT / page).read_text() for page in ("docs/results.md", "README.md"))
BENCH, PHOTOGRAPHS = PAGE.split("## On photographs")
INTERVAL = r"([\d.]+) points[^(]*\(95 % interval ([\d.]+) to ([\d.]+)\)"
read = lambda ending: json.loads((RESULTS / f"emoji{ending}.json").read_text())
ROWS, ABLATED, SUMMARY = read(""), read("_ablations"), read("_summary")
SHOWN = read("_shown_ablations")


def test_every_system_and_ablation_is_there():
    assert [(row["system"], row["seed"]) for row in ROWS] == [(name, seed) for name in SYSTEMS for seed in SEEDS]
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
    assert [tuple(found["systems"]) for found in SUMMARY["differences"]] == list(PAIRS)
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


def quoted(page):
    """{name of a system: its row} of the tables of a page."""
    lines = [line for line in page.splitlines() if line.startswith(tuple(f"| {name} |" for name in NAMES.values()))]
    return {line.split(" |")[0].removeprefix("| "): line for line in lines}


def mean_maps():
    """{(passes, block, task): {system: mean mAP over the seeds}}."""
    found = {}
    for row, task in ((row, task) for row in ROWS for task in TASKS):
        means = found.setdefault((row["passes"], row["block"], task), {})
        means[row["system"]] = means.get(row["system"], 0) + row[task]["map"] / len(SEEDS)
    return found


def test_the_page_quotes_the_report_and_the_strongest():
    """Of each number of tower passes and each block the best in ZSL and in GZSL mAP stand there, whoever that is, and
    of the trained ones the best that is no CLIP-Decoder.
    """
    report, rows, means = (RESULTS / "emoji.md").read_text(), quoted(BENCH), mean_maps()
    assert all(line in report for line in rows.values())
    assert {passes for passes, *_ in means} == {1, 5, 26}
    rivals = [{name: mean for name, mean in found.items() if name not in TRAINED} for found in means.values()]
    strongest = {max(found, key=found.get) for found in [*means.values(), *rivals]}
    assert {NAMES[name] for name in strongest} <= rows.keys()


def test_the_readme_quotes_the_page_and_the_strongest():
    """Of each number of tower passes the heads, and the highest ZSL mAP of untouched CLIP and of the other methods."""
    rows, means = quoted(README), mean_maps()
    assert rows.items() <= quoted(BENCH).items()
    for passes in (1, 5, 26):
        clip, trained = means[passes, "training-free", "zsl"], means[passes, "trained on seen labels", "zsl"]
        best = max((name for name in clip if name.startswith("raw_clip")), key=clip.get)
        rival = max((name for name in trained if name not in TRAINED), key=trained.get)
        assert {NAMES[best], NAMES[rival]} <= rows.keys()
    assert {NAMES[name] for name in TRAINED if name != "ml_decoder"} <= rows.keys()


def test_the_page_quotes_the_photographs():
    report, rows = (RESULTS / "photographs.md").read_text(), quoted(PHOTOGRAPHS)
    assert rows and all(line in report for line in rows.values())


def test_the_differences_on_the_pages_are_those_of_the_json():
    found = [d[task] for d in SUMMARY["differences"] + read("_without_unseen_summary")["differences"] for task in TASKS]
    known = {tuple(f"{x:.1f}" for x in (abs(d["mean"]), *sorted(map(abs, d["interval"])))) for d in found}
    page, readme = re.findall(INTERVAL, PAGE), re.findall(INTERVAL, README)
    assert len(page) == 19 and set(page) <= known
    assert len(readme) == 3 and set(readme) <= set(page)


def test_no_path_of_a_machine_is_in_the_results():
    absolute = re.compile(r"""(^|["'\s=`])/\w""")  # what an absolute path begins with
    for path in [path for path in RESULTS.iterdir() if path.suffix in (".json", ".md")]:
        assert not absolute.search(path.read_text()), path
