"""The table of methods: real short runs, figures recomputed by scikit-learn, and no say for the test labels."""

import json
import shlex
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from sklearn.metrics import average_precision_score

from clipdec import Config, fit, load_data
from clipdec.comparison import systems as comparison
from clipdec.comparison.systems import ABLATIONS, SYSTEMS, TRAINED, bootstrap_weights, command, difference, main, notebook_command, system_config
from clipdec.metrics import average_precision, resampled_map
from clipdec.comparison.report import mean_sd
from data_prep import emoji_scenes

SHORT = {"embed_dim": 16, "epochs": 1, "label_samples": 16, "device": "cpu", "hold_out": 0.1}


@pytest.fixture(scope="module")
def table(tiny, tmp_path_factory):
    """(folder, arguments) of a comparison that was run: the files of its results, and its runs in runs/."""
    folder = tmp_path_factory.mktemp("results")
    names = tiny.labels.names
    np.savez(folder / "words.npz", names=np.array(names), vectors=np.random.default_rng(0).normal(size=(len(names), 12)))
    (folder / "run.json").write_text(json.dumps(SHORT | {"data": str(tiny.folder)}))
    arguments = ["--config", str(folder / "run.json"), "--word-vectors", str(folder / "words.npz"), "--seeds", "2", "--out", str(folder / "tiny")]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(comparison, "RUNS", folder / "runs")
        main([*arguments, "--jobs", "2"])
    return folder, arguments


def test_every_system_has_a_row_for_every_seed(table):
    rows = json.loads((table[0] / "tiny.json").read_text())
    assert [(r["system"], r["seed"]) for r in rows] == [(name, seed) for name in SYSTEMS for seed in range(2)]
    for row in rows:
        assert {"map", "p@3", "r@3", "f1@3", "p@5", "r@5", "f1@5"} == set(row["zsl"]) == set(row["gzsl"])
        assert ("gzsl_calibrated" in row) == (row["system"] in TRAINED and row["system"] != "clip_decoder_author")
    first = {name: [r["zsl"]["map"] for r in rows if r["system"] == name] for name in SYSTEMS}
    assert first["raw_clip"][0] == first["raw_clip"][1]  # nothing in it is random
    assert all(len(set(first[name])) == 2 for name in (*TRAINED, "conse"))


def test_figures_are_those_of_scikit_learn_on_the_kept_scores(table, tiny):
    targets, unseen = tiny.test.targets.numpy(), len(tiny.labels.seen)
    for row in json.loads((table[0] / "tiny.json").read_text()):
        scores = np.load(table[0] / "runs" / "tiny" / f"{row['system']}-{row['seed']}" / "scores.npy")
        for task, part in (("zsl", slice(unseen, None)), ("gzsl", slice(None))):
            s, t = scores[:, part], targets[:, part]
            aps = [average_precision_score(t[:, i], s[:, i]) for i in range(t.shape[1]) if t[:, i].any()]
            assert row[task]["map"] == pytest.approx(100 * np.mean(aps), abs=1e-6)
            top = np.zeros_like(t)
            np.put_along_axis(top, np.argsort(-s, axis=1, kind="stable")[:, :3], True, axis=1)
            assert row[task]["p@3"] == pytest.approx(100 * (top & t).sum() / top.sum(), abs=1e-6)
            assert row[task]["r@3"] == pytest.approx(100 * (top & t).sum() / t.sum(), abs=1e-6)


def test_a_trained_row_is_that_of_its_run(table):
    for row in json.loads((table[0] / "tiny.json").read_text()):
        if row["system"] in TRAINED:
            metrics = json.loads((table[0] / "runs" / "tiny" / f"{row['system']}-{row['seed']}" / "metrics.json").read_text())
            for part in ("zsl", "gzsl", "seen"):
                assert row[part] == pytest.approx(metrics[part], abs=1e-4)


def test_resume_takes_what_is_there(table, monkeypatch, capsys):
    monkeypatch.setattr(comparison, "RUNS", table[0] / "runs")
    before = (table[0] / "tiny.json").read_text()
    stamps = {p: p.stat().st_mtime_ns for p in (table[0] / "runs").rglob("scores.npy")}
    main([*table[1], "--resume"])
    assert (table[0] / "tiny.json").read_text() == before and len(stamps) == 2 * len(SYSTEMS)
    assert {p: p.stat().st_mtime_ns for p in stamps} == stamps


def test_the_report_quotes_the_rows(table):
    rows, text = json.loads((table[0] / "tiny.json").read_text()), (table[0] / "tiny.md").read_text()
    for name in SYSTEMS:
        each = [r for r in rows if r["system"] == name]
        assert text.count("| " + " | ".join(mean_sd([r["zsl"][f] for r in each]) for f in ("map", "p@3", "r@3"))) >= 1
        assert each[0]["command"] in text


def test_differences_are_paired(tiny):
    weights = bootstrap_weights(len(tiny.test), draws=50)
    assert weights.sum(1).eq(len(tiny.test)).all() and weights.unique().numel() > 3
    targets = tiny.test.targets
    scores = {(name, seed): torch.randn(targets.shape) + bonus * targets for seed in range(3) for name, bonus in (("best", 1.0), ("conse", 0.0))}
    report = lambda s: {"map": 100 * average_precision(s, targets).nanmean().item()}
    figures = {key: {task: report(s) for task in ("zsl", "gzsl")} for key, s in scores.items()}
    maps = {key: dict.fromkeys(("zsl", "gzsl"), 100 * resampled_map(s, targets, weights)) for key, s in scores.items()}
    found = difference("best", "conse", figures, maps, range(3))["zsl"]
    each = [figures["best", seed]["zsl"]["map"] - figures["conse", seed]["zsl"]["map"] for seed in range(3)]
    assert (found["mean"], found["min"], found["max"]) == pytest.approx((np.mean(each), min(each), max(each)))
    draws = np.mean([(maps["best", s]["zsl"] - maps["conse", s]["zsl"]).numpy() for s in range(3)], axis=0)
    assert found["interval"] == pytest.approx((np.quantile(draws, [0.025, 0.975]) - draws.mean() + np.mean(each)).tolist())
    assert 0 < found["interval"][0] < found["mean"] < found["interval"][1]
    same = difference("best", "best", figures, maps, range(3))["gzsl"]
    assert same["mean"] == 0 and same["interval"] == [0, 0]


def test_test_labels_change_no_weight_and_no_threshold(tiny, settings, tmp_path):
    """Nor in the author's setting, which logs mAP on test: it keeps the last epoch, whatever that says."""
    order = torch.randperm(len(tiny.test), generator=torch.Generator().manual_seed(1))
    other = replace(tiny, test=replace(tiny.test, targets=tiny.test.targets[order]))
    for name in ("best", "clip_decoder_author"):
        changes = {k: v for k, v in TRAINED[name].items() if v != "WORDS"}
        found = []
        for data, folder in ((tiny, "a"), (other, "b")):
            metrics = fit(data, settings(tmp_path / name / folder, **{"epochs": 2, "hold_out": 0.1} | changes))
            found.append((metrics, load_file(tmp_path / name / folder / "checkpoint.safetensors")))
        (a, weights), (b, others) = found
        assert weights.keys() == others.keys() and all(torch.equal(weights[k], others[k]) for k in weights)
        assert all(a.get(k) == b.get(k) for k in ("seen_offset", "clip_weight", "best_epoch"))
        assert a["zsl"]["map"] != b["zsl"]["map"]  # the test labels did change


def test_ablations_change_what_they_say(tiny, tmp_path, monkeypatch, table):
    monkeypatch.setattr(comparison, "RUNS", tmp_path / "runs")
    monkeypatch.setattr(comparison, "ABLATIONS", {"head": {"residual": {}, "ml_decoder": {"head": "ml_decoder"}}, "words": {"CLIP": {}, "words": {"label_embeddings": "WORDS"}}})
    main([*table[1][:4], "--ablations", "--seeds", "1", "--out", str(tmp_path / "tiny")])
    found = json.loads((tmp_path / "tiny_ablations.json").read_text())
    rows = found["rows"]
    assert [(d["group"], d["setting"]) for d in found["differences"]] == [("head", "ml_decoder"), ("words", "words")]
    assert found["differences"][0]["zsl"]["mean"] == pytest.approx(rows[1]["zsl"]["map"] - rows[0]["zsl"]["map"])
    assert [(r["group"], r["setting"]) for r in rows] == [("head", "residual"), ("head", "ml_decoder"), ("words", "CLIP"), ("words", "words")]
    assert rows[0]["zsl"] == rows[2]["zsl"] != rows[1]["zsl"] and len(list((tmp_path / "runs").rglob("scores.npy"))) == 3
    saved = {p.parent.name: json.loads(p.read_text()) for p in (tmp_path / "runs").rglob("config.json")}
    assert sorted(c["head"] for c in saved.values()) == ["ml_decoder", "residual", "residual"]
    assert [c["label_embeddings"] for c in saved.values() if c["label_embeddings"]] == [table[1][3]]


def test_settings_are_those_of_config():
    words = "words.npz"
    for name in SYSTEMS:
        system_config(name, {}, words, 0, "runs/x")
    for settings in ABLATIONS.values():
        for changes in settings.values():
            assert Config(**{k: words if v == "WORDS" else v for k, v in changes.items()})
    assert shlex.split(command("conse", {"data": "my data"}, words, 1))[3:] == [
        "--systems", "conse", "--seeds", "2", "--data", "my data", "--word-vectors", words, "--out", "runs/again",
    ]  # fmt: skip
    parsed = shlex.split(notebook_command({"prompt": "a {}", "alpha": 0.0}, 3))
    assert parsed[:3] == ["papermill", "notebooks/04_train.ipynb", "out.ipynb"]
    assert parsed[3:9] == ["-p", "prompt", "a {}", "-p", "alpha", "0.0"] and parsed[9:12] == ["-p", "seed", "3"]


def test_word_vectors_are_asked_for(capsys):
    with pytest.raises(SystemExit):
        main(["--systems", "ml_decoder"])
    assert "data_prep.word_vectors" in capsys.readouterr().err


def test_scenes_of_one_object(tmp_path):
    data = load_data(emoji_scenes.prepare(tmp_path / "d", 0, {"train": 20, "val": 5, "test": 20}, 1, most=1))
    assert all((split.targets.sum(1) == 1).all() for split in (data.train, data.val, data.test)) and data.info["most_objects"] == 1
