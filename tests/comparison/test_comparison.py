"""The table of methods: real short runs, figures recomputed by scikit-learn, and no say for the test labels."""

import json
import re
import shutil
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import datasets
import numpy as np
import pytest
import torch
from helpers import files
from safetensors.torch import load_file
from sklearn.metrics import average_precision_score

from clipdec import Config, fit, load_data
from clipdec.comparison import __main__ as command_line
from clipdec.comparison import ablations, systems
from clipdec.comparison.field import FREE, METHODS, OF_ONE_CLIP
from clipdec.comparison.report import mean_sd
from clipdec.comparison.statistics import bootstrap_weights, difference, interval, is_difference, resampled_ap
from clipdec.comparison.systems import SYSTEMS, TRAINED, TUNED, WORDS
from clipdec.metrics import average_precision
from clipdec.training.run_folder import read_history
from data_prep import emoji_scenes

SHORT = {"embed_dim": 16, "epochs": 1, "label_samples": 16, "device": "cpu", "hold_out": 0.1}
main, TASKS = command_line.main, ("zsl", "gzsl")
SOME = "raw_clip raw_clip_5 sparc conse sdl linear_patch_5 ml_decoder clip_decoder_author clip_decoder best".split()
RATES = 1.0, 30.0  # of which the second is far too high for some


@pytest.fixture(scope="module")
def small(tiny, tmp_path_factory):
    """The images of `tiny` with few labels, which is faster: each stands for 25 seen or 5 unseen ones."""
    folder, few = tmp_path_factory.mktemp("small"), lambda i: i // 25 if i < 925 else 37 + (i - 925) // 5
    row = lambda labels: {"labels": sorted({few(i) for i in labels})}
    datasets.load_from_disk(tiny.folder).map(row, input_columns="labels").save_to_disk(folder)
    (folder / "labels.json").write_text(json.dumps({"seen": tiny.labels.seen[::25], "unseen": tiny.labels.unseen[::5]}))
    return load_data(folder)


@pytest.fixture(scope="module")
def table(small, tmp_path_factory):
    """(folder, arguments, rows) of a comparison that was run; its runs are in runs/small, where more may be added."""
    folder, names = tmp_path_factory.mktemp("results"), small.labels.names
    np.savez(folder / "words.npz", names=names, vectors=np.random.default_rng(0).normal(size=(len(names), 12)))
    (folder / "run.json").write_text(json.dumps(SHORT | {"data": str(small.folder)}))
    arguments = ["--config", f"{folder}/run.json", "--word-vectors", f"{folder}/words.npz", "--seeds", "2"]
    arguments += ["--systems", *SOME]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(command_line, "RUNS", folder / "runs")
        patch.setattr(systems, "FACTORS", RATES)
        main([*arguments, "--out", f"{folder}/small", "--jobs", "2"])
        yield folder, arguments, json.loads((folder / "small.json").read_text())


def runs_of(folder, name, seed):
    """{learning rate: folder} of the runs of a system with a seed."""
    found = (path.parent for path in folder.glob(f"runs/small/{name}-{seed}*/config.json"))
    return {json.loads((path / "config.json").read_text())["lr"]: path for path in found}


def run_of(folder, row):
    return runs_of(folder, row["system"], 0 if row["system"] in FREE else row["seed"])[row["lr"]]


@pytest.fixture
def no_processes(monkeypatch):
    """Only `table` is made by other processes: to start one takes longer than the runs of the other tests."""
    monkeypatch.setattr(systems, "ProcessPoolExecutor", lambda jobs, *_: ThreadPoolExecutor(jobs))


def test_every_system_has_a_row_for_every_seed(table):
    rows = table[2]
    assert [(r["system"], r["seed"]) for r in rows] == [(name, seed) for name in SOME for seed in range(2)]
    for row in rows:
        assert {"map", "p@3", "r@3", "f1@3", "p@5", "r@5", "f1@5"} == set(row["zsl"]) == set(row["gzsl"])
        assert ("gzsl_calibrated" in row) == (row["system"] in TRAINED and row["system"] != "clip_decoder_author")
        assert row["passes"] == (5 if row["system"].endswith("_5") else 1) and row["scoring_seconds"] > 0
        assert (row["weights"] == row["training_seconds"] == 0) == (row["block"] != "trained on seen labels")
    different = {name: len({r["zsl"]["map"] for r in rows if r["system"] == name}) for name in SOME}
    assert all(count == (1 if name in FREE else 2) for name, count in different.items())


def test_val_chooses_the_learning_rate_with_the_first_seed(table):
    for name in set(SOME) & TUNED:
        rows = [row for row in table[2] if row["system"] == name]
        tried = {lr: json.loads((path / "metrics.json").read_text()) for lr, path in runs_of(table[0], name, 0).items()}
        assert len(tried) == len(RATES) and tried[rows[0]["lr"]]["val_map"] == max(m["val_map"] for m in tried.values())
        assert [*runs_of(table[0], name, 1)] == [rows[1]["lr"]] == [rows[0]["lr"]]


def test_figures_are_those_of_scikit_learn_on_the_kept_scores(table, small):
    for row in table[2]:
        scores = np.load(run_of(table[0], row) / "scores.npz")["test"]
        for task, first in (("zsl", len(small.labels.seen)), ("gzsl", 0)):
            s, t = scores[:, first:], small.test.targets[:, first:].numpy()
            aps = [average_precision_score(t[:, i], s[:, i]) for i in range(t.shape[1]) if t[:, i].any()]
            top = np.zeros_like(t)
            np.put_along_axis(top, np.argsort(-s, axis=1, kind="stable")[:, :3], True, axis=1)
            if task == "zsl":
                assert [ap for ap in row["unseen_ap"].values() if ap is not None] == pytest.approx(
                    100 * np.array(aps), abs=0.006
                )
            expected = np.mean(aps), (top & t).sum() / top.sum(), (top & t).sum() / t.sum()
            count = 1 if row["system"] == "clip_decoder_author" else 3  # whose P and R are those of the plain weights
            found = [row[task][f] / 100 for f in ("map", "p@3", "r@3")]
            assert found[:count] == pytest.approx(expected[:count], abs=1e-8)


def test_a_trained_row_is_that_of_its_run(table):
    for row in [row for row in table[2] if row["system"] in TRAINED]:
        metrics = json.loads((run_of(table[0], row) / "metrics.json").read_text())
        assert all(row[part] == pytest.approx(metrics[part], abs=1e-4) for part in (*TASKS, "seen"))
        assert row["reliability"] == metrics["reliability"] and row["equal_prevalence"] == metrics["equal_prevalence"]


def test_resume_takes_what_is_there(table, no_processes):
    folder, arguments, rows = table
    stamps = {path: path.stat().st_mtime_ns for path in (folder / "runs/small").rglob("scores.npz")}
    main([*arguments, "--out", f"{folder}/small", "--resume"])
    assert json.loads((folder / "small.json").read_text()) == rows and len(stamps) == 3 + 3 * 6 + 2
    assert {path: path.stat().st_mtime_ns for path in stamps} == stamps


def test_resume_runs_again_what_was_made_of_something_else(
    table, small, no_processes, tmp_path, monkeypatch, capsys
):
    """Of another number of epochs, and of other data under the same name: those runs alone, and it is said."""
    folder, arguments, _ = table
    runs, out = shutil.copytree(folder / "runs", tmp_path / "runs"), str(tmp_path / "small")
    monkeypatch.setattr(command_line, "RUNS", runs)
    before = files(runs)
    other = shutil.copytree(small.folder, tmp_path / "data", ignore=lambda *_: ["tokens"])
    changed = json.loads((other / "test" / "state.json").read_text()) | {"_fingerprint": "of other images"}
    (other / "test" / "state.json").write_text(json.dumps(changed))
    cases = [
        (["--epochs", "2", "--systems", "conse"], r"conse-0 runs again: .* another epochs 1 \(now 2\)", "conse-"),
        (["--data", str(other), "--systems", "raw_clip"], f"another data '{small.fingerprint}' .now ", "raw_clip-"),
    ]
    for options, said, names in cases:
        main([*arguments, *options, "--seeds", "1", "--out", out, "--resume"])
        assert re.search(said, capsys.readouterr().out)
        after = files(runs)
        written = [path for path in after if after[path] != before.get(path)]
        assert written and all(path.startswith(f"small/{names}") for path in written)
        before = after


def test_scores_that_were_removed_are_computed_again(table, no_processes, tmp_path, monkeypatch):
    folder, arguments, rows = table
    runs = shutil.copytree(folder / "runs", tmp_path / "runs")
    monkeypatch.setattr(command_line, "RUNS", runs)
    (runs / "small/raw_clip-0/scores.npz").unlink()
    main([*arguments, "--systems", "raw_clip", "--out", f"{tmp_path}/small", "--resume"])
    again = json.loads((tmp_path / "small.json").read_text())
    assert [row["zsl"] for row in again] == [row["zsl"] for row in rows if row["system"] == "raw_clip"]


def test_an_error_ends_a_comparison_at_once(small, tmp_path, monkeypatch, no_processes):
    begun = []
    def run(name, config, resume):
        begun.append(name)
        time.sleep(0.1)
        raise OSError("the disk is full")
    monkeypatch.setattr(systems, "run_system", run)
    with pytest.raises(OSError, match="the disk is full"):
        [*systems.run_all([(i, None) for i in range(9)], 1, False)]
    assert 0 in begun and len(begun) <= 2  # a second may have begun before the error of the first was read


def test_the_report_quotes_the_rows(table):
    text = (table[0] / "small.md").read_text()
    for each in ([row for row in table[2] if row["system"] == name] for name in SOME):
        assert "| " + " | ".join(mean_sd([r["zsl"][f] for r in each]) for f in ("map", "p@3", "r@3")) in text
        assert each[0]["command"] in text


def test_differences_are_paired(small):
    targets, weights = small.test.targets, bootstrap_weights(len(small.test), draws=50)
    assert weights.sum(1).eq(len(targets)).all() and weights.unique().numel() > 3
    def result(bonus):
        scores = torch.randn(targets.shape) + bonus * targets
        figures = {"map": 100 * average_precision(scores, targets).nanmean().item()}
        draws = 100 * resampled_ap(scores, targets, weights).nanmean(0)
        return [dict.fromkeys(TASKS, found) for found in (figures, draws)]
    better, worse = ([result(bonus) for _ in range(3)] for bonus in (4, 0))  # three seeds of each
    found = difference(better, worse)["zsl"]
    each = [a["zsl"]["map"] - b["zsl"]["map"] for (a, _), (b, _) in zip(better, worse)]
    assert (found["mean"], found["min"], found["max"]) == pytest.approx((np.mean(each), min(each), max(each)))
    draws = torch.stack([a["zsl"] - b["zsl"] for (_, a), (_, b) in zip(better, worse)])
    assert found["interval"] == pytest.approx(interval(torch.tensor(each).double(), draws))
    assert 0 < found["interval"][0] < found["mean"] < found["interval"][1] and is_difference(found)
    same = difference(better, better)["gzsl"]
    assert same == {"mean": 0, "min": 0, "max": 0, "interval": [0, 0]} and not is_difference(same)
    alone = difference(better[:1], worse[:1])["zsl"]
    assert np.isnan(alone["interval"]).all() and not is_difference(alone)


def test_intervals_are_those_of_their_parts():
    """Of the seeds alone Student's t, of the images alone their bootstrap, of both about the root of their squares."""
    each, none = torch.tensor([1.0, 2.0, 4.0, 4.5, 6.0], dtype=torch.float64), torch.zeros(5, 100, dtype=torch.float64)
    half = 2.7764 * each.std().item() / 5**0.5  # 97.5 % of t with four degrees of freedom
    assert interval(each, none) == pytest.approx([3.5 - half, 3.5 + half], rel=0.02)
    draws = torch.randn(5, 500, dtype=torch.float64) * torch.arange(1, 6)[:, None] + 7  # repeated images raise AP
    images = draws.mean(0)
    quantiles = images.quantile(torch.tensor([0.025, 0.975]).double()) - images.mean()
    assert interval(torch.full((5,), 3.5).double(), draws) == pytest.approx((3.5 + quantiles).tolist(), abs=0.02)
    low, high = interval(each, draws)
    assert high - 3.5 > half and 3.5 - low > half
    assert high - low == pytest.approx(2 * (half**2 + (quantiles.diff().item() / 2) ** 2) ** 0.5, rel=0.1)
    draws[:, :50] = float("nan")  # samples without a positive
    assert np.isfinite(interval(each, draws)).all() and np.isnan(interval(each, draws * float("nan"))).all()


def test_intervals_hold_the_difference_as_often_as_they_say():
    """Simulated differences: a true one of 1, moved by the seed, the image, and the seed at the image. Without the
    seeds' share the interval would hold it too seldom.
    """
    torch.manual_seed(0)
    seeds, images, weights, held = 5, 60, bootstrap_weights(60, draws=60).double() / 60, torch.zeros(2)
    for _ in range(150):
        moves = 2 * torch.randn(seeds, 1) + 6 * torch.randn(1, images) + 3 * torch.randn(seeds, images)
        values = 1 + moves.double()
        draws, alone = values @ weights.T, torch.full((seeds,), values.mean().item(), dtype=torch.float64)
        for i, each in enumerate((values.mean(1), alone)):
            low, high = interval(each, draws)
            held[i] += low < 1 < high
    both, images_alone = (held / 150).tolist()
    assert 0.93 <= both <= 0.99 and images_alone < 0.85


def test_test_labels_change_no_weight_and_no_threshold(small, tmp_path):
    """Nor in the author's setting, where they choose between the plain and the averaged weights of the last epoch."""
    order = torch.randperm(len(small.test), generator=torch.Generator().manual_seed(1))
    other = replace(small, test=replace(small.test, targets=small.test.targets[order]))
    for name in ("best", "clip_decoder_author"):
        found = []
        for data, folder in ((small, tmp_path / name / "a"), (other, tmp_path / name / "b")):
            config = Config(**SHORT | {"epochs": 2, "batch_size": 32, "out_dir": str(folder)} | TRAINED[name])
            weights = "checkpoint" if name == "best" else "plain"
            found.append((fit(data, config), load_file(folder / f"{weights}.safetensors")))
        (a, weights), (b, others) = found
        torch.testing.assert_close(weights, others, rtol=0, atol=0)
        assert all(a.get(k) == b.get(k) for k in ("seen_offset", "clip_weight", "best_epoch"))
        assert a["zsl"]["map"] != b["zsl"]["map"]  # the test labels did change


def test_ablations_change_what_they_say(table, tmp_path, monkeypatch, no_processes):
    settings = {"head": {"residual": {}, "ml_decoder": {"head": "ml_decoder"}}, "words": {"CLIP": {}, "words": WORDS}}
    monkeypatch.setattr(ablations, "ABLATIONS", settings)
    main([*table[1], "--ablations", "--seeds", "1", "--out", f"{tmp_path}/small"])
    found = json.loads((tmp_path / "small_ablations.json").read_text())
    rows, differences = found["rows"], found["differences"]
    assert [(d["group"], d["setting"]) for d in differences] == [("head", "ml_decoder"), ("words", "words")]
    assert differences[0]["zsl"]["mean"] == pytest.approx(rows[1]["zsl"]["map"] - rows[0]["zsl"]["map"])
    assert [(r["group"], r["setting"]) for r in rows] == [(group, s) for group in settings for s in settings[group]]
    runs = table[0] / "runs/small_ablations"
    history = read_history(runs / "head=ml_decoder-0")[rows[1]["epochs"] - 1]  # one epoch, which is the best
    assert rows[1]["val"] == {part: pytest.approx(history[f"val_{part}_map"]) for part in ("seen", "held")}
    text = (tmp_path / "small.md").read_text()
    assert text.startswith("# One change at a time: small")
    assert f"| `ml_decoder` | {history['val_held_map']:.1f} | {history['val_seen_map']:.1f} |" in text
    assert rows[0]["zsl"] == rows[2]["zsl"] != rows[1]["zsl"] and len([*runs.rglob("scores.npz")]) == 3
    saved = [json.loads(path.read_text()) for path in runs.rglob("config.json")]
    found = sorted((config["head"], config["label_embeddings"] or "") for config in saved)
    assert found == [("ml_decoder", ""), ("residual", ""), ("residual", f"{table[0]}/words.npz")]


def test_settings_are_those_of_config():
    words, settings = "words.npz", [changes for group in ablations.ABLATIONS.values() for changes in group.values()]
    assert all(systems.system_config(name, {}, words, 0, 3.0, "runs/x") for name in SYSTEMS)
    assert all(Config(**systems.with_words(changes, words)) for changes in settings)
    batch = lambda base: {name: systems.system_config(name, base, words, 0, 1.0, "r").batch_size for name in SYSTEMS}
    assert {*batch({}).values()} == {Config().batch_size}
    assert {*batch({"batch_size": 24}).values()} == {24}
    command = "--systems conse --seeds 2 --data 'my data' --word-vectors words.npz --out runs/again"
    assert systems.command("conse", {"data": "my data"}, words, 1) == f"python -m clipdec.comparison {command}"
    assert "--config run.json --out" in systems.command("raw_clip", {}, words, 0, "run.json")
    assert "--epochs 3 --out" in systems.command("mkt", {"epochs": 3}, words, 0)
    command = "notebooks/04_train.ipynb out.ipynb -p prompt 'a {}' -p alpha 0.0 -p seed 3 -p out_dir runs/again"
    assert systems.notebook_command({"prompt": "a {}", "alpha": 0.0}, 3) == f"papermill {command}"


@pytest.mark.parametrize("base", [
    {}, {"preset": "clip", "alpha": 0.2, "label_embeddings": "glove.npz"}, {"beta": 0.5}, {"preset": "paper"},
    {"as_author": ["sum_loss"], "head": "ml_decoder"},
])  # fmt: skip
def test_a_row_is_named_after_what_was_run(base, tmp_path):
    """And equal settings share a run, whatever those of the other rows are."""
    made = {
        (group, name): ablations._config(base, changes, 0, tmp_path)
        for group, settings in ablations.ABLATIONS.items()
        for name, changes in settings.items()
    }
    assert all(made["decoder width", f"{width}"].embed_dim == width for width in (48, 96, 192))
    assert made["seen labels in training", "95 %"].hold_out == 0.05 
    assert made["alpha / beta", "1"].alpha == made["alpha / beta", "1"].beta == 1
    assert not made["author's points", "none"].augment and not made["author's points", "none"].as_author
    assert made["label vectors", "CLIP"].label_embeddings is None and made["head", "residual"].head == "residual"
    named = {}
    for config in made.values():
        named.setdefault(config.out_dir, []).append(config.as_dict())
    assert all(config == each[0] for each in named.values() for config in each)
    assert len({json.dumps(each[0] | {"out_dir": ""}) for each in named.values()}) == len(named) < len(made)
    assert f"{tmp_path}/0" in named


def test_without_a_clip_only_what_is_trained_runs(capsys):
    """Label vectors of a file and a tower of images alone: the text tower, here `mini`, has no part in such a run."""
    of_files = {"image_tower": "timm:test_efficientnet", "label_embeddings": "words.npz"}
    can_run = lambda **settings: {name for name in SYSTEMS if systems._can_run(name, Config(**settings))}
    assert can_run(**of_files) == TRAINED.keys() | METHODS.keys() - OF_ONE_CLIP
    assert can_run() == {*SYSTEMS} and can_run(label_embeddings="words.npz") == {*SYSTEMS} - OF_ONE_CLIP
    assert "raw_clip is left out: no CLIP is asked here" in capsys.readouterr().out


def test_options_are_checked_first(capsys):
    for options, message in (("--systems ml_decoder", "data_prep.word_vectors"), ("--seeds 0", "at least 1, got 0")):
        with pytest.raises(SystemExit):
            main(options.split())
        assert message in capsys.readouterr().err


def test_a_misspelt_setting_is_said(tmp_path):
    (tmp_path / "run.json").write_text('{"epoch": 3}')
    with pytest.raises(SystemExit, match="unknown parameter 'epoch': did you mean 'epochs'"):
        main(["--config", f"{tmp_path}/run.json", "--systems", "raw_clip", "--out", f"{tmp_path}/x"])


def test_scenes_of_one_object(tmp_path):
    data = load_data(emoji_scenes.prepare(tmp_path / "d", 0, {"train": 20, "val": 5, "test": 20}, 1, most=1))
    counts = torch.cat([split.targets.sum(1) for split in (data.train, data.val, data.test)])
    assert counts.eq(1).all() and data.info["most_objects"] == 1
