"""How fast and in how much memory photos are prepared, beside a bare Pillow loop with as many processes.

    python benchmarks/prepare.py

Draws 64 JPEGs of 640 x 480 px and links them under as many names as asked for.
"""

import argparse
import csv
import io
import multiprocessing
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image

SIZE = 256


def draw(folder, count):
    """Photos of the size and detail of COCO's: about 100 to 150 kB each."""
    folder.mkdir()
    for i in range(min(64, count)):
        rng = np.random.default_rng(i)
        shapes = Image.fromarray(rng.integers(0, 256, (12, 16, 3), np.uint8)).resize((640, 480), Image.BICUBIC)
        grain = rng.normal(0, 9, (480, 640, 1))
        Image.fromarray((np.asarray(shapes) + grain).clip(0, 255).astype(np.uint8)).save(folder / f"{i}.jpg", quality=90)
    for i in range(64, count):
        os.link(folder / f"{i % 64}.jpg", folder / f"{i}.jpg")
    with open(folder.with_suffix(".csv"), "w", newline="") as file:
        csv.writer(file).writerows([("image", "labels"), *((f"{i}.jpg", f"label {i % 7};label {i % 3}") for i in range(count))])


def bare(path):
    """Decode, resize, encode: what cannot be saved."""
    with Image.open(path) as image:
        scale = SIZE / min(image.size)
        file = io.BytesIO()
        image.convert("RGB").resize((round(image.width * scale), round(image.height * scale)), Image.BICUBIC).save(file, "JPEG", quality=90)
    return len(file.getvalue())


def run_bare(folder, count, workers):
    with multiprocessing.Pool(workers) as pool:
        return sum(pool.imap_unordered(bare, [folder / f"{i}.jpg" for i in range(count)], chunksize=64))


def run_prepare(folder, out, workers):
    arguments = ["--images", folder, "--labels", folder.with_suffix(".csv"), "--hold-out", "0.2", "--out", out, "--workers", str(workers)]
    command = [sys.executable, "-m", "data_prep.folder", *arguments]
    subprocess.run(command, check=True, capture_output=True, cwd=Path(__file__).parents[1])


def load(out):
    subprocess.run([sys.executable, "-c", "import sys, clipdec; clipdec.load_data(sys.argv[1])", out], check=True)


def peak_memory(function, *args):
    """Peak memory in MB of the largest process that function(*args) starts, measured in a process of its own."""
    def run(pipe):
        function(*args)
        pipe.send(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1e3)

    ours, theirs = multiprocessing.Pipe()
    process = multiprocessing.get_context("fork").Process(target=run, args=(theirs,))
    process.start()
    process.join()
    return ours.recv()


def timed(function, *args):
    start = time.perf_counter()
    function(*args)
    return time.perf_counter() - start


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--count", type=int, default=10_000, help="photos")
    parser.add_argument("--workers", type=int, default=os.cpu_count(), help="processes")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        root = Path(temporary)
        for name, count in (("few", args.count // 5), ("many", args.count)):
            draw(root / name, count)
            memory = peak_memory(run_prepare, root / name, root / f"{name}-data", args.workers), peak_memory(load, root / f"{name}-data")
            print(f"{count} photos: largest process of the preparation {memory[0]:.0f} MB, of load_data {memory[1]:.0f} MB", flush=True)
        loop = timed(run_bare, root / "many", args.count, args.workers)
        ours = timed(run_prepare, root / "many", root / "again", args.workers)
        print(f"{args.workers} processes, {args.count} photos of 640 x 480 px to {SIZE} px: bare loop {args.count / loop:.0f} images/s, "
              f"data_prep.folder {args.count / ours:.0f} images/s with its start and end, ratio {loop / ours:.2f}")  # fmt: skip


if __name__ == "__main__":
    main()
