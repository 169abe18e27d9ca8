"""A folder of photos tagged by untouched CLIP into a CSV, beside its bare tower on pixels that are ready."""

import tempfile
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from benchmarks.timing import peak_memory, side_by_side
from clipdec.predictor.__main__ import main
from clipdec.predictor.predictor import BATCH, Predictor

COUNT, MANY, LABELS = 200, 1000, ["dog face", "pizza", "guitar", "rainbow"]


def drawn(folder, count):
    """A folder of `count` photos of 640 x 480 px, each of its own smooth noise."""
    folder.mkdir()
    for i in range(count):
        coarse = Image.fromarray(np.random.default_rng(i).integers(0, 256, (12, 16, 3), np.uint8))
        coarse.resize((640, 480), Image.BICUBIC).save(folder / f"{i}.jpg", quality=90)
    return folder


def tag(folder, device):
    with tempfile.TemporaryDirectory() as aside, redirect_stdout(StringIO()):
        options = ["--top-k", "3", "--csv", f"{aside}/tags.csv", "--device", device]
        try:
            main(["mini", str(folder), "--labels", *LABELS, *options])
        except SystemExit as end:
            if end.code:
                raise RuntimeError(f"tagging failed: {end.code}") from None


def figures(device):
    predictor = Predictor.from_clip("mini", device=device)
    tower, size = predictor.model.tower, -(-BATCH // predictor.model.tower.passes)
    with tempfile.TemporaryDirectory() as aside:
        few, many = (drawn(Path(aside) / str(count), count) for count in (COUNT, MANY))
        pixels = torch.stack([tower.preprocess(Image.open(photo).convert("RGB")) for photo in few.iterdir()])

        def bare():
            with torch.no_grad():
                for part in pixels.split(size):
                    tower(part.to(device))[1].cpu()

        t = side_by_side({"tag": lambda: tag(few, device), "bare": bare}, rounds=2)
        rate = f"{COUNT / t['tag']:.1f} photos/s, with loading, of 640 x 480 px, {tower.passes} passes each"
        yield f"tagging {COUNT} photos into a CSV, photos/s: command / bare tower", t["bare"] / t["tag"], rate
        for folder, count in ((few, COUNT), (many, MANY)):
            yield f"tagging {count:,} photos: peak memory (MB)", peak_memory(tag, folder, device), "imports included"
