"""Several processes are one, but for dropout: the same batches, negatives, scores, metrics. Real ones are started.
And one bar for all, of few messages."""

import io
import json
import multiprocessing
import os
import subprocess
import sys
import warnings
from types import SimpleNamespace

import pytest
import torch
import tqdm.std
from helpers import ROOT, START_METHOD, at_step, command_line, history, needs_fork, results
from safetensors.torch import load_file
from torch.distributed.elastic.utils.distributed import get_free_port

from clipdec.training.processes import gather, launch, progress, rank_and_count, share

FROZEN = {"epochs": 2, "batch_size": 13, "accumulate": 2, "dropout": 0.0}  # shares of unequal size
TRAINED = {"epochs": 1, "batch_size": 24, "dropout": 0.0, "train_image_tower": True, "augment": True}
TRAINED |= {"as_author": "trained_sentence_tower"}


def in_processes(count, work, *arguments):
    """work(*arguments) in as many processes, which know of each other as those of a launcher do."""
    arguments = (count, get_free_port(), work, *arguments)
    torch.multiprocessing.start_processes(launched, arguments, count, start_method=START_METHOD)


def launched(rank, count, port, work, *arguments):
    about = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": count, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    os.environ.update({name: str(value) for name, value in about.items()})
    torch.set_num_threads(1)
    work(*arguments)


def in_two(folder):
    in_processes(2, command_line, folder)


def under_accelerate(folder):
    options = "--multi_gpu --num_processes 2 --num_machines 1 --mixed_precision no --dynamo_backend no".split()
    command = [sys.executable, "-m", "accelerate.commands.launch", *options, "-m", "clipdec.training", "--config"]
    env = os.environ | {"OMP_NUM_THREADS": "1"}
    with open(folder.with_suffix(".txt"), "w") as file:
        subprocess.run([*command, folder.with_suffix(".json")], check=True, cwd=ROOT, stdout=file, env=env)


def run(config, start=command_line):
    """The folder of a run, whose processes `start` starts; one of them talks."""
    folder = config.path("out_dir")
    folder.with_suffix(".json").write_text(json.dumps(config.as_dict()))
    start(folder)
    printed = folder.with_suffix(".txt").read_text(encoding="utf8")
    assert printed.count(f"epoch {config.epochs}  loss") == 1 and printed.count("test images, keep=all") == 1
    return folder


@pytest.fixture(scope="module")
def alone(settings, tmp_path_factory):
    """The folder of a run of one process."""
    return run(settings(tmp_path_factory.mktemp("alone"), **FROZEN))


def assert_same_run(one, two):
    """The run in `two`, of two processes, is that of one in `one`, as nearly as sums in another order allow."""
    a, b = (json.loads((folder / "metrics.json").read_text()) for folder in (one, two))
    assert (a["processes"], b["processes"]) == (1, 2) and a["best_epoch"] == b["best_epoch"]
    assert results(b) == pytest.approx(results(a), abs=1)  # points: images of nearly equal scores may change places
    for mine, theirs in zip(history(one), history(two), strict=True):
        for name in ("loss", "l_c", "l_clip", "grad_norm", "logit_scale"):
            assert theirs[name] == pytest.approx(mine[name], rel=1e-3), name
        for name in ("val_seen_map", "val_held_map"):
            assert theirs[name] == pytest.approx(mine[name], abs=3), name
    a, b = (load_file(folder / "checkpoint.safetensors") for folder in (one, two))
    close = torch.cat([torch.isclose(a[k], b[k], rtol=1e-2, atol=1e-3).flatten() for k in a]).float().mean()
    assert close > 0.98  # Adam turns rounding into steps of the size of lr where a gradient is near 0


def test_two_processes_equal_one(settings, alone, tmp_path):
    """Without dropout: with sampled labels, parts of a batch, and shares that differ in size."""
    assert_same_run(alone, run(settings(tmp_path, **FROZEN), under_accelerate))


def test_two_processes_that_train_the_tower_equal_one(settings, tmp_path):
    one, two = settings(tmp_path / "one", **TRAINED), settings(tmp_path / "two", **TRAINED)
    assert_same_run(run(one), run(two, in_two))


def test_a_run_of_one_process_goes_on_in_two(train, settings, alone, tmp_path, monkeypatch):
    """A second GPU came free: the batches stay those of the run."""
    at_step(monkeypatch, 14, lambda: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        train(tmp_path, save_minutes=0.0, **FROZEN)
    assert_same_run(alone, run(settings(tmp_path, resume=True, **FROZEN), in_two))


@needs_fork
def test_fit_starts_processes_itself(train, alone, tmp_path, monkeypatch):
    """As notebook 04 does: in the same interpreter, whose threads have worked before and do not outlive a fork."""
    monkeypatch.setenv("OMP_NUM_THREADS", "2")  # what accelerate goes by
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    torch.rand(500, 500) @ torch.rand(500, 500)
    assert train(tmp_path, processes=2, **FROZEN)["processes"] == 2 == torch.get_num_threads()
    torch.set_num_threads(before)
    assert_same_run(alone, tmp_path)


@needs_fork
def test_in_colab_with_one_device_it_trains_in_this_process(train, tmp_path, monkeypatch):
    shell = SimpleNamespace(get_ipython=lambda: "google.colab._shell.Shell")  # what accelerate looks for
    monkeypatch.setitem(sys.modules, "IPython", shell)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    before = torch.get_num_threads()
    assert train(tmp_path, processes=2)["processes"] == 1 and torch.get_num_threads() == before


def test_where_nothing_forks_fit_says_what_to_use(train, tmp_path, monkeypatch):
    monkeypatch.setattr(multiprocessing, "get_all_start_methods", lambda: ["spawn"])
    with pytest.raises(ValueError, match="cannot fork .*: use `accelerate launch --multi_gpu --num_processes 2 -m"):
        train(tmp_path / "run", processes=2)
    assert not (tmp_path / "run").exists()


@needs_fork
def test_from_a_process_that_has_used_a_gpu_none_is_forked(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(ValueError, match="processes 2: this process has used a GPU.* restart it.*, or use `acc"):
        launch(2, False, pytest.fail)


def check_sharing():
    warnings.simplefilter("error")  # of what torch will drop
    torch.distributed.init_process_group("gloo")
    assert rank_and_count() == (int(os.environ["RANK"]), 3)
    for total in (0, 1, 2, 3, 7, 9):
        everything = torch.arange(2.0 * total).view(total, 2)
        assert torch.equal(torch.cat([everything.tensor_split(3)[i] for i in range(3)]), everything)
        mine = share(everything).clone().requires_grad_()
        together = gather(mine, total)
        assert torch.equal(together, everything)
        if total:
            (together * everything).sum().backward()  # the same on all three: each share's gradient comes three times
            torch.testing.assert_close(mine.grad, 3 * share(everything))
    torch.distributed.destroy_process_group()


def test_shares_are_gathered_once_each_in_order_with_gradients():
    in_processes(3, check_sharing)


def test_one_process_has_everything():
    rows = torch.arange(5.0)[:, None]
    assert rank_and_count() == (0, 1) and torch.equal(share(rows), rows) and gather(rows, 5) is rows


def test_too_small_a_batch_for_its_parts(train, tmp_path):
    with pytest.raises(ValueError, match="batch_size must give each of 7 parts .* a batch here holds 5"):
        train(tmp_path, batch_size=6, accumulate=7)


def drawn(monkeypatch, count, seconds):
    """What the bar of `count` steps draws; each takes so many seconds of a clock that only they move."""
    now, steps, text = [0.0], [], io.StringIO()
    monkeypatch.setattr(tqdm.std, "time", lambda: now[0])
    for step in progress(range(count), "steps", file=text):
        steps.append(step)
        now[0] += seconds
    assert steps == list(range(count))
    return text.getvalue()


def test_a_bar_is_drawn_once_a_second_at_most(monkeypatch):
    assert 1 <= drawn(monkeypatch, 150, 0.02).count("steps:") <= 4  # without a limit it would be thirty


def test_what_is_quick_has_no_bar(monkeypatch):
    assert "steps" not in drawn(monkeypatch, 1000, 0.0009)


def test_a_bar_begins_what_it_counts_once():
    """A loader starts its processes then."""
    begun = []

    class Loader(list):
        def __iter__(self):
            begun.append(self)
            return super().__iter__()

    bar = progress(Loader("abc"), "letters")
    assert [*bar] == ["a", "b", "c"] and bar.total == 3 and len(begun) == 1
