"""What several test files use: what a run wrote, notes of calls, equal weights, files of vectors and of towers."""

import hashlib
import multiprocessing
import os
import time
from contextlib import redirect_stdout
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import save_file

from benchmarks.browser import CHROMIUM
from clipdec.training.__main__ import main
from clipdec.training.accelerated import AcceleratedTrainer
from clipdec.training.run_folder import read_history as history  # noqa: F401

SIZES = {"train": 120, "val": 30, "test": 60}  # of the small data set
ROOT = Path(__file__).resolve().parents[1]
METHODS = multiprocessing.get_all_start_methods()
START_METHOD = "forkserver" if "forkserver" in METHODS else "spawn"
processes = multiprocessing.get_context(START_METHOD)
if START_METHOD == "forkserver":  # each is forked from one that has imported all, and done nothing
    processes.set_forkserver_preload(["clipdec.training.__main__"])
needs_fork = pytest.mark.skipif("fork" not in METHODS, reason="this system forks no processes")
needs_dev_full = pytest.mark.skipif(not os.path.exists("/dev/full"), reason="this system has no /dev/full")
WANT = "left out, for want of Chromium: nothing was tested in a browser; on Debian `apt install chromium`"
needs_chromium = pytest.mark.skipif(CHROMIUM is None, reason=WANT)


def wait_until(ready, running=lambda: True):
    """Return once `ready()`. Ten minutes, more than the busiest machine takes, guard against hanging."""
    end = time.monotonic() + 600
    while not ready():
        assert running() and time.monotonic() < end, "what was waited for does not come"
        time.sleep(0.05)


def results(metrics):
    """The figures of metrics.json in one flat dict."""
    parts = {k: metrics[k] for k in ("zsl", "gzsl", "seen")} | {f"raw {k}": v for k, v in metrics["raw_clip"].items()}
    return {f"{part} {name}": value for part, figures in parts.items() for name, value in figures.items()}


def command_line(folder):
    """`python -m clipdec.training` on the JSON file beside a run folder; what it prints is added to a .txt there."""
    with open(folder.with_suffix(".txt"), "a", encoding="utf8") as file, redirect_stdout(file):
        main(["--config", str(folder.with_suffix(".json"))])


def spy(monkeypatch, owner, name, before=None):
    """The arguments of every call of `owner.name` from now on; `before(n)` is called before the n-th."""
    calls, real = [], getattr(owner, name)

    def noted(*arguments, **options):
        calls.append(arguments)
        if before:
            before(len(calls))
        return real(*arguments, **options)

    monkeypatch.setattr(owner, name, noted)
    return calls


def at_step(monkeypatch, number, action):
    """Do something before the `number`-th optimiser step of this process."""
    spy(monkeypatch, AcceleratedTrainer, "step", lambda n: action() if n == number else None)


def outputs(module):
    """The outputs of every call of a module from now on."""
    found = []
    module.register_forward_hook(lambda module, inputs, output: found.append(output))
    return found


def load_state(folder):
    """The contents of a run's state.pt."""
    return torch.load(folder / "state.pt", weights_only=True)


def files(folder):
    """{path in the folder: contents}."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def assert_equal(found, expected):
    """Two dicts of tensors, or two lists of them, bit for bit."""
    torch.testing.assert_close(found, expected, rtol=0, atol=0)


def save_vectors(path, names, vectors):
    """A file of label_embeddings."""
    np.savez(path, names=np.array(names), vectors=vectors)
    return str(path)


def timm_file(name, folder, **changes):
    """(timm model with random weights, safetensors file of them)."""
    model, path = timm.create_model(name, pretrained=False, **changes).eval(), Path(folder) / f"{name}.safetensors"
    save_file({k: v.contiguous() for k, v in model.state_dict().items()}, path)
    return model, path


def hub_cache(cache, name, contents, revisions=("main",)):
    """A repository as the hub's cache keeps it: {file: bytes} under a commit, to which the revisions lead. The commit.
    """
    commit = hashlib.sha1(repr((name, sorted(contents.items()))).encode()).hexdigest()
    place = Path(cache) / f"models--{name.replace('/', '--')}"
    for file, content in contents.items():
        (place / "snapshots" / commit / file).parent.mkdir(parents=True, exist_ok=True)
        (place / "snapshots" / commit / file).write_bytes(content)
    for revision in revisions:
        (place / "refs").mkdir(exist_ok=True)
        (place / "refs" / revision).write_text(commit)
    return commit
