"""Several processes are one, but for dropout: the same batches, negatives, scores and metrics. Tests start real ones."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from helpers import history, results
from safetensors.torch import load_file

from clipdec import fit
from clipdec.training.processes import gather, rank_and_count, share

ROOT = Path(__file__).resolve().parents[2]
ONE_THREAD = os.environ | {"OMP_NUM_THREADS": "1"}  # sums in one order
LAUNCH = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2", "--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no"]
SETTINGS = {"epochs": 2, "batch_size": 13, "accumulate": 2, "dropout": 0.0}  # shares of unequal size


def train(config, folder, launcher=(sys.executable,), **changes):
    """metrics.json of `-m clipdec.training` under a launcher."""
    folder.mkdir(exist_ok=True)
    (folder / "run.json").write_text(json.dumps(config.as_dict() | {"out_dir": str(folder)} | changes))
    done = subprocess.run([*launcher, "-m", "clipdec.training", "--config", folder / "run.json"], cwd=ROOT, capture_output=True, text=True, env=ONE_THREAD)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("epoch 2  loss") == 1 and done.stdout.count("test images, keep=all") == 1  # only one of them talks
    return json.loads((folder / "metrics.json").read_text())


def assert_same_run(a, b, tolerance=1e-4):
    assert results(a[0]) == pytest.approx(results(b[0]), abs=tolerance) and a[0]["best_epoch"] == b[0]["best_epoch"]
    for mine, theirs in zip(history(a[1]), history(b[1]), strict=True):
        for name in ("loss", "l_c", "l_clip", "grad_norm", "logit_scale", "val_seen_map", "val_held_map"):
            assert mine[name] == pytest.approx(theirs[name], rel=1e-3), name


@pytest.mark.parametrize("tower", ["frozen", "trained"])
def test_two_processes_equal_one(tiny, settings, tmp_path, tower):
    """Without dropout: with sampled labels, parts of a batch, and shares that differ in size."""
    trained = {"train_image_tower": True, "augment": True, "batch_size": 24, "epochs": 2, "dropout": 0.0}
    changes = trained if tower == "trained" else SETTINGS
    config = settings(tmp_path, **changes)
    one, two = train(config, tmp_path / "one"), train(config, tmp_path / "two", LAUNCH)
    assert (one["processes"], two["processes"]) == (1, 2)
    assert_same_run((one, tmp_path / "one"), (two, tmp_path / "two"))
    a, b = (load_file(tmp_path / name / "checkpoint.safetensors") for name in ("one", "two"))
    close = [torch.isclose(a[k], b[k], rtol=1e-2, atol=1e-3).float().mean().item() for k in a]
    assert min(close) > 0.98  # Adam's first steps turn rounding into steps of the size of lr where a gradient is near 0


def test_a_run_of_one_process_goes_on_in_two(tiny, settings, tmp_path, monkeypatch):
    """A second GPU came free: the batches stay those of the run."""
    config = settings(tmp_path, **SETTINGS)
    whole = train(config, tmp_path / "whole")
    from clipdec.training.accelerated import AcceleratedTrainer as Trainer

    real, calls = Trainer.step, []
    monkeypatch.setattr(Trainer, "step", lambda *rest: calls.append(1) or (1 / 0 if len(calls) == 14 else real(*rest)))
    with pytest.raises(ZeroDivisionError):
        fit(tiny, settings(tmp_path / "part", save_minutes=0.0, **SETTINGS))
    rest = train(config, tmp_path / "part", LAUNCH, resume=True)
    assert rest["processes"] == 2 and results(rest) == pytest.approx(results(whole), abs=1e-4)


def test_fit_starts_processes_itself(tiny, settings, tmp_path):
    """As notebook 04 does: in the same interpreter, which has used its threads before."""
    one = train(settings(tmp_path, **SETTINGS), tmp_path / "one")
    two = fit(tiny, settings(tmp_path / "two", processes=2, **SETTINGS))
    assert two["processes"] == 2
    assert_same_run((one, tmp_path / "one"), (two, tmp_path / "two"))


def check_sharing(rank, port):
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    torch.distributed.init_process_group("gloo", rank=rank, world_size=3)
    assert rank_and_count() == (rank, 3)
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
    from torch.distributed.elastic.utils.distributed import get_free_port

    torch.multiprocessing.spawn(check_sharing, (get_free_port(),), nprocs=3)


def test_one_process_has_everything():
    rows = torch.arange(5.0)[:, None]
    assert rank_and_count() == (0, 1) and torch.equal(share(rows), rows) and gather(rows, 5) is rows


def test_too_small_a_batch_for_its_parts(tiny, settings, tmp_path):
    with pytest.raises(ValueError, match="batch_size must give each of 7 parts .* a batch here holds 5"):
        fit(tiny, settings(tmp_path, batch_size=6, accumulate=7))
