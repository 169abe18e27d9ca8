"""Runs that are killed, asked to stop, out of disk or out of numbers: nothing is lost, resumed they end undisturbed."""

import errno
import json
import math
import os
import pkgutil
import shutil
import signal
import stat
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from filelock import FileLock
from helpers import ROOT, at_step, command_line, history, load_state, needs_dev_full, processes, results, spy
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from clipdec import load_run
from clipdec.training import run
from clipdec.training.accelerated import AcceleratedTrainer
from clipdec.training.interruption import Interruption, Stopped
from clipdec.training.run_folder import RunFolder, check_out_dir, read_scores, whole, write_scores

STEPS = {"epochs": 2, "batch_size": 6}  # 20 steps an epoch
TRAINER = "clipdec.training.accelerated.AcceleratedTrainer"
SAVING = STEPS | {"save_minutes": 0.0}  # a state after every step


@pytest.fixture(scope="module")
def undisturbed(train, tmp_path_factory):
    folder = tmp_path_factory.mktemp("undisturbed")
    return train(folder, **STEPS), history(folder)


@pytest.fixture
def assert_goes_on(train, undisturbed, tmp_path):
    """Resume the run in tmp_path: its results and history are those of the undisturbed run."""

    def resume(**changes):
        metrics = train(tmp_path, resume=True, **STEPS | changes)
        assert results(metrics) == pytest.approx(results(undisturbed[0]), abs=1e-6)
        assert (metrics["epochs"], metrics["best_epoch"]) == (2, undisturbed[0]["best_epoch"])
        varying = {"seconds": 0, "images_per_s": 0, "memory_mb": 0}
        for mine, theirs in zip(history(tmp_path), undisturbed[1], strict=True):
            assert mine | varying == pytest.approx(theirs | varying, rel=1e-5)

    return resume


def position(folder):
    """(epoch, step) of the last state."""
    found = load_state(folder)["position"]
    return found["epoch"], found["step"]


def signalled_run(folder, number, owner, name, call):
    """A run that meets the signal `number` before the `call`-th of its calls of `owner.name`."""
    raised = lambda n: signal.raise_signal(number) if n == call else None
    spy(pytest.MonkeyPatch(), pkgutil.resolve_name(owner), name, raised)
    command_line(folder)


def signalled(config, *when):
    """The exit code of such a run in a process of its own."""
    folder = config.path("out_dir")
    folder.with_suffix(".json").write_text(json.dumps(config.as_dict()))
    process = processes.Process(target=signalled_run, args=(folder, *when))
    process.start()
    process.join()
    return process.exitcode


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="this system has no SIGKILL")
def test_a_run_that_is_killed_again_and_again_ends_as_an_undisturbed_one(settings, assert_goes_on, tmp_path):
    places = {  # the call that it does not live to make: the state that it leaves
        (TRAINER, "gradients", 5): (0, 1),  # after three for the estimate
        ("torch", "save", 8): (0, 8),  # a state of no bytes
        ("os", "replace", 15): (0, 19),  # a whole one without its name; the epoch's history and weights are there
        ("clipdec.training.run", "predict", 2): (0, 19),
        (TRAINER, "gradients", 10): (1, 5),
    }
    for place, left in places.items():
        code = signalled(settings(tmp_path, resume=True, **SAVING), signal.SIGKILL, *place)
        assert code == -signal.SIGKILL and position(tmp_path) == left, place
        assert not (tmp_path / "metrics.json").exists()
    assert_goes_on()


def test_a_run_killed_before_its_first_state_starts_again(train, assert_goes_on, tmp_path, monkeypatch):
    at_step(monkeypatch, 3, lambda: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        train(tmp_path, **STEPS)
    assert not (tmp_path / "state.pt").exists()
    assert_goes_on()


@pytest.mark.parametrize("changes", [{"num_workers": 1, "save_minutes": 1.0}, {"device": "cpu"}])
def test_what_may_change_when_a_run_is_resumed(train, assert_goes_on, tmp_path, monkeypatch, changes):
    at_step(monkeypatch, 33, lambda: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        train(tmp_path, **SAVING)
    assert position(tmp_path) == (1, 12)
    assert_goes_on(**changes)


def test_sigterm_writes_a_state_and_stops(settings, assert_goes_on, tmp_path):
    code = signalled(settings(tmp_path, **STEPS), signal.SIGTERM, TRAINER, "step", 26)
    assert code == 128 + signal.SIGTERM and position(tmp_path) == (1, 6)
    where = f"in epoch 2 after step 6 of 20: the state is in {tmp_path}, go on with resume True"
    assert f"stopped by SIGTERM {where}" in tmp_path.with_suffix(".txt").read_text(encoding="utf8")
    assert not (tmp_path / "metrics.json").exists()
    assert_goes_on()


@pytest.mark.parametrize("number, error", [(signal.SIGTERM, SystemExit), (signal.SIGINT, KeyboardInterrupt)])
def test_a_signal_waits_for_the_step(train, assert_goes_on, tmp_path, monkeypatch, capsys, number, error):
    before = signal.getsignal(number)
    at_step(monkeypatch, 26, lambda: signal.raise_signal(number))
    with pytest.raises(error) as raised:
        train(tmp_path, **STEPS)
    assert type(raised.value) is error and signal.getsignal(number) is before
    assert position(tmp_path) == (1, 6)
    assert f"stopped by {number.name} in epoch 2 after step 6 of 20" in capsys.readouterr().out
    assert_goes_on()


def test_a_signal_while_validating(train, assert_goes_on, tmp_path, monkeypatch):
    def stop(n):
        if n == 2:  # the first is the estimate's
            signal.raise_signal(signal.SIGTERM)
            raise AssertionError("the signal did not come at once")

    spy(monkeypatch, run, "predict", stop)
    with pytest.raises(SystemExit):
        train(tmp_path, **STEPS)
    assert position(tmp_path) == (0, 20)  # trained, not yet validated
    assert_goes_on()


def test_signals_are_held_and_a_second_one_is_not(monkeypatch):
    """The last one is what Windows has for SIGTERM."""
    monkeypatch.setattr(signal, "SIGBREAK", signal.SIGILL, raising=False)
    with Interruption() as interruption:
        with pytest.raises(Stopped, match="SIGTERM"), interruption.held():
            signal.raise_signal(signal.SIGTERM)
            assert interruption.signal == signal.SIGTERM
            with pytest.raises(KeyboardInterrupt):
                signal.raise_signal(signal.SIGINT)
            with pytest.raises(KeyboardInterrupt):
                signal.raise_signal(signal.SIGBREAK)
    

@needs_dev_full
@pytest.mark.parametrize("name, last", [("state.pt", (0, 12)), ("history.csv", (0, 19))])
def test_a_full_disk_ends_the_run_and_the_state_before_is_intact(
    train, assert_goes_on, tmp_path, monkeypatch, name, last
):
    """The file is written through a link to /dev/full, where the kernel refuses every byte as on a full disk."""
    aside, unlink, filled = tmp_path / f"{name}.partial", Path.unlink, []

    def fill():
        def unlinked(path, **options):
            unlink(path, **options)
            if path == aside and not filled:  # once, after what lay there was removed
                filled.append(path)
                path.symlink_to("/dev/full")
        monkeypatch.setattr(Path, "unlink", unlinked)

    at_step(monkeypatch, 13, fill)
    with pytest.raises(OSError, match="the disk is full .*make room, then go on with resume True") as error:
        train(tmp_path, **SAVING)
    assert error.value.errno == errno.ENOSPC
    assert position(tmp_path) == last and not list(tmp_path.glob("*.partial"))
    assert_goes_on()


def test_a_small_disk_fills_up(tmp_path):
    """A file system of 3 MB that really fills up, where this user may mount one."""
    program = f"""
import torch
from pathlib import Path
from clipdec.training.run_folder import RunFolder, full_disk_explained
from clipdec.model import CLIPDecoder
from clipdec.towers import ImageTower
folder = RunFolder(Path({str(tmp_path)!r}))
folder.save_state({{"x": torch.ones(100_000)}})
model = CLIPDecoder(ImageTower("mini"), torch.zeros(1, 8), 8, 512)
for write, *what in ((folder.save_state, {{"x": torch.ones(1_000_000)}}), (folder.save_model, model, {{}})):
    try:
        with full_disk_explained(folder.path):
            write(*what)
        print("written")
    except OSError as error:
        print("full" if "make room" in str(error) else error)
state = torch.load(folder.path / "state.pt", weights_only=True)
print(state["x"].sum().item(), sorted(p.name for p in folder.path.iterdir()))
"""
    mount, unshare = f"mount -t tmpfs -o size=3m tmpfs {tmp_path}", ["unshare", "-rm", "sh", "-c"]
    if not shutil.which("unshare") or subprocess.run([*unshare, mount], capture_output=True).returncode:
        pytest.skip("this user may mount no file system of its own")
    command = [*unshare, f'{mount} && exec "$0" -c "$1"', sys.executable, program]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.stdout == "full\nfull\n100000.0 ['lock', 'state.pt']\n", done.stderr


@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="open files are counted in /proc")
def test_a_folder_that_cannot_be_flushed_leaves_nothing_open(tmp_path, monkeypatch):
    def fsync(descriptor, flush=os.fsync):
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise OSError(errno.EINVAL, "not for folders")
        flush(descriptor)
    monkeypatch.setattr(os, "fsync", fsync)
    before = len(os.listdir("/proc/self/fd"))
    for i in range(5):
        with whole(tmp_path / "a.txt") as aside:
            aside.write_text(str(i))
    assert (tmp_path / "a.txt").read_text() == "4" and len(os.listdir("/proc/self/fd")) == before


def test_a_link_in_the_way_leads_nowhere(tmp_path):
    (tmp_path / "mine.txt").write_text("mine")
    (tmp_path / "state.pt.partial").symlink_to(tmp_path / "mine.txt")
    with whole(tmp_path / "state.pt") as aside:
        aside.write_text("state")
    assert (tmp_path / "mine.txt").read_text() == "mine" and (tmp_path / "state.pt").read_text() == "state"
    assert not (tmp_path / "state.pt").is_symlink()


def test_a_hidden_file_alone_makes_no_folder_foreign(tmp_path):
    (tmp_path / ".DS_Store").write_text("")
    check_out_dir(tmp_path)
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(FileExistsError, match="not empty, and no run folder"):
        check_out_dir(tmp_path)


def test_what_was_there_stays_until_the_new_is_whole(tmp_path):
    path = tmp_path / "x"
    path.write_text("old")
    with pytest.raises(ZeroDivisionError), whole(path) as aside:
        aside.write_text("half")
        raise ZeroDivisionError
    assert path.read_text() == "old" and [p.name for p in tmp_path.iterdir()] == ["x"]
    with whole(path) as aside:
        aside.write_text("new")
        assert path.read_text() == "old"
    assert path.read_text() == "new" and [p.name for p in tmp_path.iterdir()] == ["x"]


def test_a_loss_that_is_not_finite_says_where(train, tmp_path, monkeypatch):
    def spoil():
        real, nan = AcceleratedTrainer.gradients, {"l_clip": math.nan, "loss": math.nan}
        monkeypatch.setattr(AcceleratedTrainer, "gradients", lambda *batch: real(*batch) | nan)

    at_step(monkeypatch, 25, spoil)
    what = r"loss nan, l_c [\d.]+, l_clip nan, grad_norm .*use a lower lr than 0.0015.*the last good state is in"
    with pytest.raises(FloatingPointError, match=rf"epoch 2, step 5 of 20, images \[.*{what}"):
        train(tmp_path, **SAVING)
    assert position(tmp_path) == (1, 4) and all(v.isfinite().all() for v in load_state(tmp_path)["model"].values())
    assert not (tmp_path / "metrics.json").exists()


def test_weights_that_explode_stop_the_run_before_they_are_saved(train, tmp_path):
    with pytest.raises(FloatingPointError, match="use a lower lr than 1e.*, or clip_grad"):
        train(tmp_path, lr=1e30, **SAVING)
    assert all(v.isfinite().all() for v in load_state(tmp_path)["model"].values())


def test_two_runs_in_one_folder(train, settings, tmp_path):
    with FileLock(tmp_path / "lock"):
        with pytest.raises(RuntimeError, match="another run is writing to .*choose another out_dir"):
            train(tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["lock"]
    RunFolder(tmp_path).close()
    train(tmp_path)
    assert load_run(tmp_path)[0] == settings(tmp_path)


def test_scalars_of_steps_that_are_made_again_stand_once(train, tmp_path, monkeypatch):
    at_step(monkeypatch, 26, lambda: 1 / 0)  # the state is that of the epoch before
    with pytest.raises(ZeroDivisionError):
        train(tmp_path, **STEPS)
    assert position(tmp_path) == (1, 0)
    train(tmp_path, resume=True, **STEPS)
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert [event.step for event in events.Scalars("loss")] == list(range(1, 41))


def test_scores_that_fail_leave_those_that_were_there(tmp_path, monkeypatch):
    write_scores(tmp_path / "scores.npz", {}, test=torch.ones(2, 3))
    monkeypatch.setattr(np, "savez", lambda file, **_: file.write(b"half") / 0)
    with pytest.raises(ZeroDivisionError):
        write_scores(tmp_path / "scores.npz", {}, test=torch.zeros(2, 3))
    assert torch.equal(read_scores(tmp_path, "test")[0], torch.ones(2, 3))
