"""How fast and in how much memory photos are prepared, beside a bare Pillow loop with as many processes."""

import csv
import io
import multiprocessing
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image

from benchmarks.timing import peak_memory, side_by_side

SIZE, COUNT, WORKERS = 256, 10_000, os.cpu_count()


def draw(folder, count):
    """Photos of the size and detail of COCO's, 640 x 480 px, 100 to 150 kB: 64 of them, each at many shifts."""
    folder.mkdir()
    for i in range(min(64, count)):
        rng = np.random.default_rng(i)
        shapes = Image.fromarray(rng.integers(0, 256, (12, 16, 3), np.uint8)).resize((640, 480), Image.BICUBIC)
        grain = rng.normal(0, 9, (480, 640, 1))
        photo = (np.asarray(shapes) + grain).clip(0, 255).astype(np.uint8)
        for k in range(i, count, 64):  # equal photos would be kept once
            Image.fromarray(np.roll(photo, (k // 640, k), axis=(0, 1))).save(folder / f"{k}.jpg", quality=90)
    with open(folder.with_suffix(".csv"), "w", newline="") as file:
        rows = [(f"{i}.jpg", f"label {i % 7};label {i % 3}") for i in range(count)]
        csv.writer(file).writerows([("image", "labels"), *rows])


def bare(path):
    """Decode, resize, encode: what cannot be saved."""
    with Image.open(path) as image:
        scale = SIZE / min(image.size)
        file = io.BytesIO()
        size = round(image.width * scale), round(image.height * scale)
        image.convert("RGB").resize(size, Image.BICUBIC).save(file, "JPEG", quality=90)
    return len(file.getvalue())


def run_bare(folder):
    with multiprocessing.Pool(WORKERS) as pool:
        sum(pool.imap_unordered(bare, sorted(folder.iterdir()), chunksize=64))


def run_prepare(folder, out):
    arguments = ["--images", folder, "--labels", folder.with_suffix(".csv"), "--hold-out", "0.2", "--out", out]
    command = [sys.executable, "-m", "data_prep.folder", *arguments, "--workers", str(WORKERS)]
    subprocess.run(command, check=True, capture_output=True, cwd=Path(__file__).parents[1])


def load(out):
    subprocess.run([sys.executable, "-c", "import sys, clipdec; clipdec.load_data(sys.argv[1])", out], check=True)


def figures(device="cpu"):
    with tempfile.TemporaryDirectory() as temporary:
        root = Path(temporary)
        for name, count in (("few", COUNT // 5), ("many", COUNT)):
            draw(root / name, count)
            prepared = root / f"{name}-data"
            preparing, opening = peak_memory(run_prepare, root / name, prepared), peak_memory(load, prepared)
            yield f"preparing {count:,} photos: largest process (MB)", preparing, "imports included"
            yield f"load_data of {count:,} photos: peak memory (MB)", opening, "imports included"
        outs = (root / f"again{i}" for i in range(9))
        many = root / "many"
        t = side_by_side({"bare": lambda: run_bare(many), "ours": lambda: run_prepare(many, next(outs))}, 1)
        what, speed = f"ours / bare loop of {WORKERS} processes", f"{COUNT / t['ours']:.0f} images/s with start and end"
        yield f"preparing photos, images/s: {what}", t["bare"] / t["ours"], speed
