"""The GPU's table on the CPU, with a small network in place of TResNet-M: what its rows measure, and how they fail."""

import os
import subprocess
import sys
from functools import partial

import pytest
import torch
from helpers import START_METHOD, needs_fork, outputs

from benchmarks import gpu, training
from benchmarks.timing import apart
from clipdec.towers import ImageTower
from clipdec.training import accelerated
from clipdec.training import config as training_config
from clipdec.training.processes import rank_and_count

weights = lambda tower: torch.cat([p.detach().flatten() for p in tower.parameters()])
ENDLESS = [sys.executable, "-c", "import threading; threading.Event().wait()"]


@pytest.mark.parametrize("kind, dtype", [("no", torch.float32), ("bf16", torch.bfloat16)])
def test_a_step_and_one_of_the_tower_alone(monkeypatch, tmp_path, kind, dtype):
    path, timed = training.random_weights("test_resnet", tmp_path), []
    towers = [ImageTower("timm:test_resnet", path) for _ in range(2)]
    monkeypatch.setattr(training, "paper_tower", iter(towers).__next__)
    monkeypatch.setattr(training, "side_by_side", lambda *a: timed.append(a) or {"step": 0.5, "tower": 0.25})
    speed, alone, memory, note = gpu.paper(kind, 2, 3, "cpu", checkpoint_tower=True)
    assert (speed, alone, note) == (4, 8, "500 ms") and memory > 100
    ((functions, rounds),) = timed
    assert rounds == 3 and [tower.trunk.grad_checkpointing for tower in towers] == [True, False]
    for name, tower, other in zip(("step", "tower"), towers, reversed(towers)):
        seen, (own, others) = outputs(tower.trunk.conv1), map(weights, (tower, other))
        functions[name]()
        assert seen[0].shape[0] == 2 and seen[0].dtype == dtype
        assert not torch.equal(weights(tower), own) and torch.equal(weights(other), others)


def test_a_run_on_data(tiny, monkeypatch):
    rows, real = [], gpu.read_history
    monkeypatch.setattr(gpu, "read_history", lambda folder: rows.extend(real(folder)) or rows)
    speed, alone, memory, note = gpu.mini("no", "cpu", str(tiny.folder), embed_dim=16)
    assert [row["epoch"] for row in rows] == [1, 2] and speed == rows[1]["images_per_s"] > 0
    assert alone is None and memory > 100 and " s for all; mAP " in note


@needs_fork
def test_processes_that_train_together():
    work = partial(gpu.together, 2, rank_and_count, True)
    rank, count = apart(work, method=START_METHOD)
    assert count == 2 and rank in (0, 1)


def test_the_table_goes_on_after_a_row_that_fails(monkeypatch):
    monkeypatch.setattr(gpu, "METHOD", START_METHOD)
    rows = {
        "good": (1, partial(tuple, (1000.4, 1250.0, 4600, "note"))),
        "no tower": (1, partial(tuple, (20.0, None, 50.0, "a"))), "wrong": (1, partial(int, "a|\nb")),
        "dead": (1, partial(os._exit, 3)), "two": (2, pytest.fail),
    }  # fmt: skip
    assert [*gpu.table(rows, 1)] == [
        "| good | 1000 | 1250 | 0.80 | 4600 | note |",
        "| no tower | 20 | | | 50 | a |",
        "| wrong | | | | | ValueError: invalid literal for int() with base 10: 'a/\\nb' |",
        "| dead | | | | | its process died |",
        "| two | | | | | left out: it needs 2 cards, there is 1 |",
    ]
    monkeypatch.setattr(gpu, "SECONDS", 0)
    assert [*gpu.table({"late": (1, pytest.fail)}, 1)] == ["| late | | | | | left out: 0 s were over |"]


def test_a_row_that_takes_too_long_ends():
    work = partial(subprocess.call, ENDLESS)
    assert gpu.line("slow", work, 0.5) == "| slow | | | | | took longer than 0 s |"


def test_each_row_does_what_it_says(monkeypatch):
    found, answers = [], {"zsl": {"map": 1}, "gzsl": {"map": 2}, "peak_memory_mb": 3, "seconds": 4}
    note = lambda config, answer: found.append((accelerated.precision(config), config)) or answer
    monkeypatch.setattr(training_config, "_is_there", lambda name: True)
    monkeypatch.setattr(gpu, "launch", lambda count, cpu, work: work())
    monkeypatch.setattr(gpu, "paper_speed", lambda config, rounds: note(config, (1, 1, 1)))
    monkeypatch.setattr(gpu, "load_data", lambda name: None)
    monkeypatch.setattr(gpu, "fit", lambda data, config: note(config, answers))
    monkeypatch.setattr(gpu, "read_history", lambda folder: [{"images_per_s": 1}])
    for what, (cards, work) in gpu.rows().items():
        work()
        kind, config = found.pop()
        assert config.preset in what and config.device == "cuda" and cards == 1 + ("two cards" in what)
        assert {"bf16": ", bfloat16", "fp16": ", float16", "no": ", float32"}[kind] in what
        assert (config.compile, config.checkpoint_tower) == ("compile" in what, "checkpoint_tower" in what)
        if config.preset == "paper":
            assert config.batch_size == 56 * cards
        else:
            assert config.processes == cards and config.epochs == 2
