"""Runs that are there, side by side: figures, differences and curves are those that the folders keep."""

import csv
import json
import shutil
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from helpers import files
from matplotlib.figure import Figure
from PIL import Image
from sklearn.metrics import average_precision_score

from clipdec.comparison.__main__ import _arguments, main
from clipdec.comparison.protocol import val_maps
from clipdec.comparison.report import span
from clipdec.comparison.runs import by_settings, check_alike, data_of, differences, paired, read_run
from clipdec.comparison.runs_report import draw_group, names_of, write_label_ap
from clipdec.comparison.statistics import bootstrap_weights, image_interval, interval, resampled_maps
from clipdec.metrics import average_precision
from clipdec.training.run_folder import read_history, read_scores, write_scores

TASKS = "zsl", "gzsl", "seen"


@pytest.fixture(scope="module")
def folder(train, tmp_path_factory):
    """Runs of two heads: `a` with two seeds, of two epochs, `b` with one."""
    folder = tmp_path_factory.mktemp("runs")
    for seed in (0, 1):
        train(folder / f"a-{seed}", seed=seed, epochs=2, hold_out=0.1)
    train(folder / "b-1", seed=1, head="ml_decoder", hold_out=0.0)
    return folder


@pytest.fixture
def runs(folder):
    return [read_run(folder / name) for name in ("b-1", "a-0", "a-1")]


def metrics_of(folder, name):
    return json.loads((folder / name / "metrics.json").read_text())


def table(text, cell):
    """The rows of the Markdown table that has such a cell: {first cell: the others}."""
    (block,) = (part for part in text.split("\n\n") if f"| {cell} |" in part)
    rows = [[cell.strip("* ") for cell in line.strip("|").split("|")] for line in block.splitlines()]
    return {row[0]: row[1:] for row in [rows[0], *rows[2:]]}


def changed_run(folder, path, **changes):
    """A copy of the run a-0 whose scores were made of something else."""
    copy = shutil.copytree(folder / "a-0", path)
    scores, made_of = read_scores(copy, "test")
    write_scores(copy / "scores.npz", made_of | changes, test=scores)
    return copy


@pytest.mark.parametrize("length", [0, 100])
def test_scores_that_were_broken_off_are_an_error(tmp_path, length):
    write_scores(tmp_path / "scores.npz", {}, test=torch.zeros(3, 4))
    data = (tmp_path / "scores.npz").read_bytes()
    (tmp_path / "scores.npz").write_bytes(data[:length])
    with pytest.raises(ValueError, match="scores.npz cannot be read .*: remove it"):
        read_scores(tmp_path, "test")


def test_seeds_of_one_setting_stand_together(runs):
    assert [[run.folder.name for run in group] for group in by_settings(runs)] == [["b-1"], ["a-0", "a-1"]]
    again = by_settings([*runs, runs[1]])  # of one seed twice: not one row
    assert [[run.folder.name for run in group] for group in again] == [["b-1"], ["a-0", "a-1"], ["a-0"]]


def test_runs_are_paired_by_seed(runs):
    group = lambda *seeds: [SimpleNamespace(seed=seed) for seed in seeds]
    seeds = lambda ours, others: [(a.seed, b.seed) for a, b in paired(ours, others)]
    assert seeds(group(2, 0, 1), group(1, 2)) == [(1, 1), (2, 2)]
    assert seeds(group(3, 0), group(1, 2, 4)) == [(0, 1), (3, 2)]


def test_resampled_maps_are_those_of_scikit_learn(tiny, runs):
    found, weights = resampled_maps(runs[0].scores, tiny.test, tiny.labels), bootstrap_weights(len(tiny.test)).numpy()
    for draw in (0, 499):
        ap = np.full(len(tiny.labels.names), np.nan)
        for label, (targets, scores) in enumerate(zip(tiny.test.targets.T.numpy(), runs[0].scores.T.numpy())):
            if (targets * weights[draw]).any():
                ap[label] = average_precision_score(targets, scores, sample_weight=weights[draw].astype(float))
        for task, part in (("seen", ap[:925]), ("zsl", ap[925:]), ("gzsl", ap)):
            assert found[task][draw].item() == pytest.approx(100 * np.nanmean(part), abs=1e-6)


def test_one_pair_has_an_interval_of_its_weights(tiny, runs):
    (found,) = differences([runs[1:2], runs[2:]], tiny)  # seeds 0 and 1
    draws = [resampled_maps(run.scores, tiny.test, tiny.labels) for run in runs]
    assert found["pairs"] == 1
    for task in TASKS:
        mean, drawn = (runs[2].metrics[task]["map"] - runs[1].metrics[task]["map"], draws[2][task] - draws[1][task])
        assert found[task]["mean"] == pytest.approx(mean)
        moves = np.quantile((drawn - drawn.mean()).numpy(), [0.025, 0.975])
        assert found[task]["interval"] == pytest.approx(mean + moves)


def test_an_image_interval_is_within_that_of_seeds_too():
    draws = torch.randn(3, 400, generator=torch.Generator().manual_seed(1)).double()
    each = torch.tensor([1.0, 2.0, 3.0]).double()
    (low, high), (lower, higher) = image_interval(each, draws), interval(each, draws)
    assert lower < low < 2 < high < higher and (low + high) / 2 == pytest.approx(2, abs=0.1)
    assert high - low == pytest.approx(2 * 1.96 / 3**0.5, rel=0.15)  # of a mean of three normal draws
    assert np.isnan(image_interval(each, torch.full((3, 4), torch.nan))).all()


def test_the_command_prints_figures_and_writes_a_folder(folder, tiny, tmp_path, capsys):
    before, names = files(folder), ("a-0", "b-1", "a-1")
    main([*(str(folder / name) for name in names), "--out", str(tmp_path / "out")])
    text, metrics = capsys.readouterr().out, {name: metrics_of(folder, name) for name in names}
    assert files(folder) == before and {f.name for f in (tmp_path / "out").iterdir()} == {
        "runs.md",
        "label_ap.csv",
        "curves.png",
    }
    figures = table(text, "seeds")
    assert figures[""] == ["seeds", "ZSL mAP", "GZSL mAP", "seen mAP", "ZSL F1@3", "GZSL F1@3"]
    columns = [("zsl", "map"), ("gzsl", "map"), ("seen", "map"), ("zsl", "f1@3"), ("gzsl", "f1@3")]
    assert figures["b-1"] == ["1", *(f"{metrics['b-1'][task][figure]:.1f}" for task, figure in columns)]
    for cell, (task, figure) in zip(figures["a-0"][1:], columns):
        values = [metrics[name][task][figure] for name in ("a-0", "a-1")]
        assert cell == f"{np.mean(values):.1f} ± {np.std(values, ddof=1):.1f}"
    assert table(text, "`head`")["`head`"] == ["residual", "ml_decoder"] and "`seed`" not in text
    row = table(text, "pairs")["b-1"]
    assert row[:5:2] == [f"{metrics['b-1'][task]['map'] - metrics['a-1'][task]['map']:+.1f}" for task in TASKS]
    assert row[6] == "1" and "minus that of a-0" in text and "60 test images, keep=all" in text
    (found,) = differences([[read_run(folder / "a-1")], [read_run(folder / "b-1")]], tiny)  # the seed that both have
    assert row[1:6:2] == [span(*found[task]["interval"]) for task in TASKS]
    assert text.split("\n\n" + str(tmp_path))[0].strip() in (tmp_path / "out" / "runs.md").read_text()


def test_ap_of_each_label_is_that_of_the_runs(folder, tmp_path):
    main([*(str(folder / name) for name in ("b-1", "a-0", "a-1")), "--out", str(tmp_path / "out")])
    read = lambda path: list(csv.DictReader(open(path, newline="", encoding="utf8")))
    found, kept = (
        read(tmp_path / "out" / "label_ap.csv"),
        {n: read(folder / n / "label_ap.csv") for n in ("a-0", "a-1", "b-1")},
    )
    assert len(found) == 1006 and [*found[0]] == ["label", "kind", "positives", "ap b-1", "ap a-0"]
    for row, first, second, other in zip(found, kept["a-0"], kept["a-1"], kept["b-1"]):
        assert all(row[key] == first[key] == other[key] for key in ("label", "kind", "positives"))
        ap = [float(each["ap"]) for each in (first, second, other)]
        assert float(row["ap b-1"]) == pytest.approx(ap[2], nan_ok=True)
        assert float(row["ap a-0"]) == pytest.approx((ap[0] + ap[1]) / 2, nan_ok=True)


def test_curves_are_those_of_the_histories(folder, tmp_path, runs):
    axis, history = Figure().subplots(), read_history(folder / "a-0")
    draw_group(axis, "val_seen_map", [(runs[1], history)], "a", {"color": "C0"})
    line, dot = axis.lines
    assert list(line.get_ydata()) == [row["val_seen_map"] for row in history] and list(line.get_xdata()) == [1, 2]
    best = metrics_of(folder, "a-0")["best_epoch"]
    assert list(dot.get_xdata()) == [best] and list(dot.get_ydata()) == [history[best - 1]["val_seen_map"]]
    main([str(folder / "a-0"), str(folder / "b-1"), "--out", str(tmp_path)])
    width, height = Image.open(tmp_path / "curves.png").size
    assert width > 2 * height  # of labels in training, and of those held out, which b has none of


def test_what_does_not_compare_is_refused(folder, tmp_path, runs):
    metrics = metrics_of(folder, "a-0")
    relevant = shutil.copytree(folder / "a-0", tmp_path / "relevant")
    metrics["protocol"] |= {"keep": "relevant", "test_images": 50}
    (relevant / "metrics.json").write_text(json.dumps(metrics))
    other = changed_run(folder, tmp_path / "other", data="another")
    few = changed_run(folder, tmp_path / "few", labels="others")
    cases = {relevant: "keep 'all' and 'relevant', test_images 60 and 50", other: "data .* and 'another'"}
    for path, why in (cases | {few: "labels .* and 'others'", folder / "b-1": "b-1 is named twice"}).items():
        with pytest.raises(ValueError, match=why):
            check_alike([runs[0], read_run(path)])
    with pytest.raises(ValueError, match="data in .* are not those of .*other: name their folder, --data"):
        data_of([read_run(other)])
    check_alike(runs)


def test_runs_without_what_is_needed(folder, tmp_path, capsys):
    for name, why in (
        ("scores.npz", "no scores of test"),
        ("metrics.json", "no figures of test"),
        ("config.json", "is not a run folder"),
    ):
        lacking = shutil.copytree(folder / "a-0", tmp_path / name)
        (lacking / name).unlink()
        with pytest.raises(SystemExit, match=why):
            main([str(folder / "b-1"), str(lacking)])
    with pytest.raises(SystemExit, match="there is no data folder"):
        main([str(folder / "b-1"), str(folder / "a-0"), "--data", str(tmp_path / "none")])
    for wrong in (["--epochs", "2"], ["--word-vectors", "x.npz"], ["--ablations"]):
        with pytest.raises(SystemExit):
            main([str(folder / "b-1"), str(folder / "a-0"), *wrong])
        assert f"leave out {wrong[0]}" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main([str(folder / "b-1")])
    assert "two at least" in capsys.readouterr().err


def test_methods_of_the_field_stand_beside_runs(folder, tmp_path, capsys):
    """Their folders keep no history and no names."""
    method = changed_run(folder, tmp_path / "conse-0", system="conse")
    for name in ("history.csv", "labels.json", "checkpoint.safetensors"):
        (method / name).unlink()
    other = changed_run(folder, tmp_path / "mkt-0", system="mkt")
    (other / "history.csv").unlink()
    main([str(method), str(other), "--out", str(tmp_path / "out")])
    assert "| `method` | conse | mkt |" in capsys.readouterr().out
    assert not (tmp_path / "out" / "curves.png").exists() and "curves" not in (tmp_path / "out" / "runs.md").read_text()


def test_folders_of_one_name_are_told_apart(folder, tmp_path):
    again = read_run(shutil.copytree(folder / "b-1", tmp_path / "b-1"))
    assert names_of([[read_run(folder / "b-1")], [again]]) == [str(folder / "b-1"), str(tmp_path / "b-1")]


def test_without_runs_the_command_is_as_it_was():
    args = _arguments(["--word-vectors", "x.npz", "--systems", "conse", "best", "--seeds", "2"])
    assert args.runs == [] and args.systems == ["conse", "best"] and args.out is None


def test_what_is_not_known_counts_in_no_figure_of_a_comparison(tiny, runs, tmp_path):
    known = tiny.test.targets | (torch.rand(tiny.test.targets.shape) < 0.3)
    data = replace(tiny, test=replace(tiny.test, known=known), val=replace(tiny.test, known=known))
    scores, cells = runs[0].scores, zip(runs[0].scores.T.numpy(), tiny.test.targets.T.numpy(), known.T.numpy())
    ap = torch.tensor([100 * average_precision_score(t[k], s[k]) if t.any() else np.nan for s, t, k in cells])
    index, none = torch.arange(len(ap)), torch.arange(0)
    assert val_maps(scores, data.val, index, none)["val_map"] == pytest.approx(ap.nanmean().item())
    write_label_ap(tmp_path / "ap.csv", [[runs[0]]], data)
    with open(tmp_path / "ap.csv", newline="", encoding="utf8") as file:
        assert [float(row["ap b-1"]) for row in csv.DictReader(file)] == pytest.approx(ap.tolist(), nan_ok=True)
    drawn = torch.from_numpy(np.repeat(np.arange(60), bootstrap_weights(60)[7].numpy()))
    again = average_precision(scores[drawn], tiny.test.targets[drawn], known=known[drawn])
    maps = resampled_maps(scores, data.test, data.labels)
    assert maps["gzsl"][7].item() == pytest.approx(100 * again.nanmean().item())
