"""Training on a GPU, in four minutes at most: precisions, memory, torch.compile, two cards; a Markdown table.

    python -m benchmarks.gpu                         # after `python -m data_prep.emoji_scenes`, for the runs on emoji
    python -m benchmarks.gpu --out benchmarks/gpu.md

Each row is measured in a process of its own, so that one that fails costs no other: its error stands in the table.
"""

import argparse
import multiprocessing
import os
import sys
import tempfile
import time
from functools import partial
from pathlib import Path
from unittest.mock import patch

import torch

from benchmarks.__main__ import machine
from benchmarks.timing import apart
from benchmarks.training import paper_speed
from clipdec import Config
from clipdec.data import load_data
from clipdec.training import accelerated
from clipdec.training.processes import launch
from clipdec.training.run import fit
from clipdec.training.run_folder import read_history

SECONDS = 240
BATCH = 56  # images on a card
PRECISIONS = {"bfloat16": "bf16", "float16, loss scaled": "fp16", "float32": "no"}  # as accelerate names them
METHOD = "forkserver" if "forkserver" in multiprocessing.get_all_start_methods() else "spawn"
HEAD = """| measured | images/s | of the tower alone | ratio | peak memory (MB) | of which |
|---|---|---|---|---|---|"""


def rows():
    """{what: (cards that it needs, function)}; the last may take longest."""
    found = {f"step of `paper`, {name}": (1, partial(paper, kind)) for name, kind in PRECISIONS.items()}
    found |= {f"run of `mini`, {name}": (1, partial(mini, kind)) for name, kind in PRECISIONS.items()}
    return found | {
        "step of `paper`, bfloat16, checkpoint_tower": (1, partial(paper, "bf16", checkpoint_tower=True)),
        "step of `paper`, bfloat16, two cards": (2, partial(together, 2, partial(paper, "bf16", 2 * BATCH))),
        "run of `mini`, bfloat16, two cards": (2, partial(mini, "bf16", processes=2)),
        "step of `paper`, bfloat16, compile": (1, partial(paper, "bf16", compile=True)),
    }


def paper(kind, batch_size=BATCH, rounds=20, device="cuda", **settings):
    """A step at full size with random weights: (images/s, those of TResNet-M alone, MB, note)."""
    config = Config(preset="paper", device=device, batch_size=batch_size, **settings)
    with computing_in(kind):
        step, tower, memory = paper_speed(config, rounds)
    return batch_size / step, batch_size / tower, memory, f"{1000 * step:.0f} ms"


def mini(kind, device="cuda", data="emoji", **settings):
    """The default run, but of two epochs: (images/s of the second, nothing, MB, note)."""
    with tempfile.TemporaryDirectory() as folder, computing_in(kind):
        workers = min(8, os.cpu_count())
        config = Config(device=device, data=data, out_dir=folder, epochs=2, num_workers=workers, **settings)
        metrics, row = fit(load_data(data), config), read_history(folder)[-1]
    figures = metrics.get("left_out") or f"mAP {metrics['zsl']['map']:.1f} ZSL, {metrics['gzsl']['map']:.1f} GZSL"
    return row["images_per_s"], None, metrics["peak_memory_mb"], f"{metrics['seconds']:.0f} s for all; {figures}"


def computing_in(kind):
    """Runs made meanwhile compute in this precision, whatever their `amp` and the card say."""
    return patch.object(accelerated, "precision", lambda config: kind)


def together(count, work, cpu=False):
    """What work() returns in one of `count` processes that train together."""
    answers = multiprocessing.get_context("fork").SimpleQueue()
    launch(count, cpu, lambda: answers.put(work()))
    return answers.get()


def line(what, function, seconds):
    """A row of the table; the error in place of the figures of one that fails."""
    try:
        speed, tower, memory, note = apart(function, method=METHOD, seconds=seconds)
    except RuntimeError as error:
        return f"| {what} | | | | | {' '.join(str(error).split())[:300].replace('|', '/')} |"
    alone = f"{tower:.0f} | {speed / tower:.2f}" if tower else "|"
    return f"| {what} | {speed:.0f} | {alone} | {memory:.0f} | {note} |"


def table(rows, cards):
    """The lines of the table, one after the other."""
    until = time.monotonic() + SECONDS
    for what, (needed, function) in rows.items():
        left = until - time.monotonic()
        if needed > cards:
            yield f"| {what} | | | | | left out: it needs {needed} cards, there is {cards} |"
        elif left < 1:
            yield f"| {what} | | | | | left out: {SECONDS} s were over |"
        else:
            yield line(what, function, left)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, help="Markdown file to write beside what is printed")
    args = parser.parse_args()
    if not torch.cuda.is_available():
        sys.exit("error: torch finds no GPU here: run it on a machine that has one")
    about = f"Printed by `python -m benchmarks.gpu`: {machine('cuda')}; cards: {torch.cuda.device_count()}."
    turns = "A step and one of the tower alone, TResNet-M, were measured in turns, in one process."
    lines = ["# Training on a GPU", "", about, turns, "", HEAD]
    print("\n".join(lines), flush=True)
    for row in table(rows(), torch.cuda.device_count()):
        print(row, flush=True)
        lines.append(row)
        if args.out:
            args.out.write_text("\n".join(lines) + "\n", encoding="utf8")


if __name__ == "__main__":
    multiprocessing.set_forkserver_preload(["benchmarks.training"])  # imports once what all rows need
    main()
