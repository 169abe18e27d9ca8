"""Runs that are killed, asked to stop, out of disk or out of numbers: nothing is lost, and the end is that of an undisturbed run."""

import errno
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from filelock import FileLock
from helpers import history, results

from clipdec import fit, load_run
from clipdec.training.interruption import Interruption, Stopped
from clipdec.training.run_folder import RunFolder, whole
from clipdec.training.accelerated import AcceleratedTrainer

ROOT = Path(__file__).resolve().parents[2]
STEPS = {"epochs": 2, "batch_size": 6}  # 20 steps an epoch
needs_dev_full = pytest.mark.skipif(not os.path.exists("/dev/full"), reason="this system has no /dev/full")


@pytest.fixture(scope="module")
def undisturbed(tiny, settings, tmp_path_factory):
    folder = tmp_path_factory.mktemp("undisturbed")
    return fit(tiny, settings(folder, **STEPS)), history(folder)


def assert_same(tiny, settings, folder, undisturbed, **changes):
    """Resume the run in `folder`: its results and history are those of the undisturbed run."""
    metrics = fit(tiny, settings(folder, resume=True, **STEPS | changes))
    assert results(metrics) == pytest.approx(results(undisturbed[0]), abs=1e-6)
    assert (metrics["epochs"], metrics["best_epoch"]) == (2, undisturbed[0]["best_epoch"])
    varying = {"seconds": 0, "images_per_s": 0, "memory_mb": 0}
    for mine, theirs in zip(history(folder), undisturbed[1], strict=True):
        assert mine | varying == pytest.approx(theirs | varying, rel=1e-5)


def position(folder):
    """(epoch, step) of the last state, or None."""
    path = folder / "state.pt"
    return None if not path.is_file() else tuple(torch.load(path, weights_only=True)["position"][k] for k in ("epoch", "step"))


def at_step(monkeypatch, number, action):
    """Do something before the `number`-th optimiser step of this process."""
    real, calls = AcceleratedTrainer.step, []

    def step(self, *arguments):
        calls.append(1)
        if len(calls) == number:
            action()
        return real(self, *arguments)

    monkeypatch.setattr(AcceleratedTrainer, "step", step)


def start(config, folder, **changes):
    """`python -m clipdec.training` in a process of its own."""
    (folder / "run.json").write_text(json.dumps(config.as_dict() | changes))
    command = [sys.executable, "-m", "clipdec.training", "--config", folder / "run.json"]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def wait_until(ready, process):
    for _ in range(6000):
        if ready():
            return
        assert process.poll() is None, process.stdout.read()
        time.sleep(0.02)
    raise TimeoutError("the run did not come so far in two minutes")


# ---- killed -----------------------------------------------------------------------------------------------------


def test_a_run_that_is_killed_again_and_again_ends_as_an_undisturbed_one(tiny, settings, undisturbed, tmp_path):
    config, rng = settings(tmp_path, save_minutes=0.0, **STEPS), random.Random(0)
    for at_least in ((0, 4), (1, 3)):  # while the first epoch is trained, then the second
        process = start(config, tmp_path, resume=True)
        wait_until(lambda at_least=at_least: (position(tmp_path) or (0, 0)) >= at_least, process)
        time.sleep(rng.uniform(0, 0.1))  # anywhere: in a step, in the middle of a state
        process.kill()
        assert process.wait() == -signal.SIGKILL
        assert at_least <= position(tmp_path) < (2, 0) and not (tmp_path / "metrics.json").exists()
    (tmp_path / "state.pt.partial").write_bytes(b"half a state")
    assert_same(tiny, settings, tmp_path, undisturbed)


def test_a_run_killed_before_its_first_state_starts_again(tiny, settings, undisturbed, tmp_path, monkeypatch):
    at_step(monkeypatch, 3, lambda: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        fit(tiny, settings(tmp_path, **STEPS))
    assert position(tmp_path) is None
    assert_same(tiny, settings, tmp_path, undisturbed)


@pytest.mark.parametrize("changes", [{"num_workers": 1, "save_minutes": 1.0}, {"device": "cpu"}])
def test_what_may_change_when_a_run_is_resumed(tiny, settings, undisturbed, tmp_path, monkeypatch, changes):
    at_step(monkeypatch, 33, lambda: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        fit(tiny, settings(tmp_path, save_minutes=0.0, **STEPS))
    assert position(tmp_path) == (1, 12)
    assert_same(tiny, settings, tmp_path, undisturbed, **changes)


# ---- asked to stop ----------------------------------------------------------------------------------------------


def test_sigterm_writes_a_state_and_stops(tiny, settings, undisturbed, tmp_path):
    process = start(settings(tmp_path, **STEPS), tmp_path)
    wait_until(lambda: list(tmp_path.glob("tensorboard/events*")), process)  # the first step is done
    process.terminate()
    printed = process.communicate(timeout=60)[0]
    assert process.returncode == 128 + signal.SIGTERM
    epoch, step = position(tmp_path)
    assert f"stopped by SIGTERM in epoch {epoch + 1} after step {step} of 20: the state is in {tmp_path}, go on with resume True" in printed
    assert (0, 1) <= (epoch, step) < (2, 0) and not (tmp_path / "metrics.json").exists()
    assert_same(tiny, settings, tmp_path, undisturbed)


@pytest.mark.parametrize("number, error", [(signal.SIGTERM, SystemExit), (signal.SIGINT, KeyboardInterrupt)])
def test_a_signal_waits_for_the_step(tiny, settings, undisturbed, tmp_path, monkeypatch, capsys, number, error):
    before = signal.getsignal(number)
    at_step(monkeypatch, 26, lambda: os.kill(os.getpid(), number))
    with pytest.raises(error) as raised:
        fit(tiny, settings(tmp_path, **STEPS))
    assert type(raised.value) is error and signal.getsignal(number) is before
    assert position(tmp_path) == (1, 6) and f"stopped by {number.name} in epoch 2 after step 6 of 20" in capsys.readouterr().out
    assert_same(tiny, settings, tmp_path, undisturbed)


def test_a_signal_while_validating(tiny, settings, undisturbed, tmp_path, monkeypatch):
    from clipdec.training import run as training

    real, calls = training.predict, []

    def predict(*arguments, **more):
        calls.append(1)
        if len(calls) == 2:  # the first is the estimate's
            os.kill(os.getpid(), signal.SIGTERM)
            raise AssertionError("the signal did not come at once")
        return real(*arguments, **more)

    monkeypatch.setattr(training, "predict", predict)
    with pytest.raises(SystemExit):
        fit(tiny, settings(tmp_path, **STEPS))
    assert position(tmp_path) == (0, 20)  # trained, not yet validated
    assert_same(tiny, settings, tmp_path, undisturbed)


def test_signals_are_held_and_a_second_one_is_not():
    with Interruption() as interruption:
        with pytest.raises(Stopped, match="SIGTERM"), interruption.held():
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(0.01)
            assert interruption.signal == signal.SIGTERM
            with pytest.raises(KeyboardInterrupt):
                os.kill(os.getpid(), signal.SIGINT)
                time.sleep(0.01)


# ---- a full disk ------------------------------------------------------------------------------------------------


@needs_dev_full
@pytest.mark.parametrize("name", ["state.pt", "history.csv"])
def test_a_full_disk_ends_the_run_and_the_state_before_is_intact(tiny, settings, undisturbed, tmp_path, monkeypatch, name):
    """The file is written through a link to /dev/full, where the kernel refuses every byte as it does on a full disk."""
    at_step(monkeypatch, 13, lambda: (tmp_path / f"{name}.partial").symlink_to("/dev/full"))
    with pytest.raises(OSError, match="the disk is full .*make room, then go on with resume True") as error:
        fit(tiny, settings(tmp_path, save_minutes=0.0, **STEPS))
    assert error.value.errno == errno.ENOSPC
    assert position(tmp_path) == {"state.pt": (0, 12), "history.csv": (0, 19)}[name] and not list(tmp_path.glob("*.partial"))
    assert_same(tiny, settings, tmp_path, undisturbed)


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
for write in (lambda: folder.save_state({{"x": torch.ones(1_000_000)}}), lambda: folder.save_model(CLIPDecoder(ImageTower("mini"), torch.zeros(1, 8), 8, 512))):
    try:
        with full_disk_explained(folder.path):
            write()
        print("written")
    except OSError as error:
        print("full" if "make room" in str(error) else error)
print(folder.load_state("cpu")["x"].sum().item(), sorted(p.name for p in folder.path.iterdir()))
"""
    mount = f"mount -t tmpfs -o size=3m tmpfs {tmp_path}"
    if subprocess.run(["unshare", "-rm", "sh", "-c", mount], capture_output=True).returncode:
        pytest.skip("this user may mount no file system of its own")
    command = ["unshare", "-rm", "sh", "-c", f'{mount} && exec "$0" -c "$1"', sys.executable, program]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.stdout == "full\nfull\n100000.0 ['lock', 'state.pt']\n", done.stderr


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


# ---- no number, two writers -------------------------------------------------------------------------------------


def test_a_loss_that_is_not_finite_says_where(tiny, settings, tmp_path, monkeypatch):
    def spoil():
        raise_after.append(1)

    raise_after, gradients = [], AcceleratedTrainer.gradients
    monkeypatch.setattr(AcceleratedTrainer, "gradients", lambda self, *rest: gradients(self, *rest) | ({"l_clip": float("nan"), "loss": float("nan")} if raise_after else {}))
    at_step(monkeypatch, 25, spoil)
    where = r"epoch 2, step 5 of 20, images \[.*loss nan, l_c [\d.]+, l_clip nan, grad_norm .*use a lower lr than 0.004.*the last good state is in"
    with pytest.raises(FloatingPointError, match=where):
        fit(tiny, settings(tmp_path, save_minutes=0.0, **STEPS))
    state = torch.load(tmp_path / "state.pt", weights_only=True)
    assert position(tmp_path) == (1, 4) and all(v.isfinite().all() for v in state["model"].values())
    assert not (tmp_path / "metrics.json").exists()


def test_weights_that_explode_stop_the_run_before_they_are_saved(tiny, settings, tmp_path):
    with pytest.raises(FloatingPointError, match="use a lower lr than 1e.*, or clip_grad"):
        fit(tiny, settings(tmp_path, lr=1e30, save_minutes=0.0, **STEPS))
    state = torch.load(tmp_path / "state.pt", weights_only=True)
    assert all(v.isfinite().all() for v in state["model"].values())


def test_two_runs_in_one_folder(tiny, settings, tmp_path):
    with FileLock(tmp_path / "lock"), pytest.raises(RuntimeError, match="another run is writing to .*choose another out_dir"):
        fit(tiny, settings(tmp_path))
    assert [p.name for p in tmp_path.iterdir()] == ["lock"]
    folder = RunFolder(tmp_path)
    folder.close()
    fit(tiny, settings(tmp_path))
    assert load_run(tmp_path)[0] == settings(tmp_path)
