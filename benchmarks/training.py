"""Training: from cached tokens or not, from the disk or from memory, the loader, the step of the paper's setting."""

import copy
import io
import os
import tempfile
from dataclasses import replace
from functools import partial
from pathlib import Path

import timm
import torch
from PIL import Image
from safetensors.torch import save_file
from torch.utils.data import DataLoader

from benchmarks.photos import draw, run_prepare
from benchmarks.timing import peak_memory, side_by_side
from clipdec import Config
from clipdec.data import load_data
from clipdec.model import CLIPDecoder
from clipdec.towers import ImageTower
from clipdec.training.accelerated import AcceleratedTrainer, precision
from clipdec.training.batches import TrainingImages
from clipdec.training.build import build_model, label_queries
from clipdec.training.fast import make_fast
from clipdec.training.machine import peak_memory_mb
from clipdec.training.pixels import Pixels


def epochs(data, device):
    """An epoch of the default run over 1,600 scenes, tokens cached or not."""
    config, seen = Config(device=device), data.labels.seen_index
    queries = label_queries(config, data.labels.names)[seen].to(device)
    model = build_model(config, queries).to(device)
    images = TrainingImages(replace(data, train=data.train.select(range(1600))), seen, model, config)
    anew = copy.copy(images)
    anew.tokens = None
    trainer = AcceleratedTrainer(model, config, 10_000)

    def epoch(images):
        for index, inputs in images.epoch(0):
            trainer.step(*images.batch(index, inputs, queries))

    t = side_by_side({"cached": lambda: epoch(images), "encoded": lambda: epoch(anew)}, 2)
    speed = f"{1600 / t['cached']:.0f} images/s from tokens"
    yield "epoch that encodes images / epoch from cached tokens", t["encoded"] / t["cached"], speed


def loader(data):
    """The loader of one process against decoding the same files."""
    train = data.train.select(range(1000))
    files, transform = [cell["bytes"] for cell in data.train.rows[:1000]["image"]], ImageTower("mini").preprocess

    def load():
        for _ in DataLoader(Pixels(train, transform), 32):
            pass

    def decode():
        for file in files:
            transform(Image.open(io.BytesIO(file)).convert("RGB"))

    t = side_by_side({"loader": load, "decode": decode}, 3)
    speed = f"{1000 / t['loader']:.0f} images/s"
    yield "loader images/s / bare loop of decode and transform", t["decode"] / t["loader"], speed


def random_weights(name, folder):
    """A file with random weights of a timm network."""
    path = Path(folder) / f"{name}.safetensors"
    save_file({k: v.contiguous() for k, v in timm.create_model(name).state_dict().items()}, path)
    return path


def end_to_end(device, batch_size=16, batches=8):
    """Training a ResNet-18 at 224 px on stored photos of 256 px, against the same steps fed with tensors in memory."""
    with tempfile.TemporaryDirectory() as folder:
        count = batch_size * batches
        draw(Path(folder) / "photos", 3 * count)  # of which the first ones are trained on
        run_prepare(Path(folder) / "photos", Path(folder) / "data")
        data = load_data(Path(folder) / "data")
        data = replace(data, train=data.train.select(range(count)))
        weights, workers = str(random_weights("resnet18", folder)), 0 if device == "cpu" else os.cpu_count()
        settings = {"device": device, "image_tower": "timm:resnet18", "image_weights": weights, "num_workers": workers}
        settings |= {"train_image_tower": True, "batch_size": batch_size, "embed_dim": 768}
        for augment in (False, True):
            config, seen = Config(**settings, augment=augment), data.labels.seen_index
            queries = label_queries(config, data.labels.names)[seen].to(device)
            model = build_model(config, queries).to(device)
            images = TrainingImages(data, seen, model, config)
            trainer = AcceleratedTrainer(model, config, 10_000)
            ready = [(index, [x.to(device) for x in inputs]) for index, inputs in images.epoch(0)]

            def train(batches, images=images, trainer=trainer, queries=queries):
                for index, inputs in batches:
                    trainer.step(*images.batch(index, inputs, queries))

            def from_disk(train=train, images=images):
                train(images.epoch(0))

            t = side_by_side({"disk": from_disk, "memory": partial(train, ready)}, 3)
            how = "with RandAugment and Cutout" if augment else "without augmentation"
            what, speed = f"training ResNet-18 at 224 px from the disk {how}", f"{count / t['disk']:.1f} images/s"
            yield f"{what}, images/s / from memory", t["memory"] / t["disk"], speed


def paper_step(device, batch_size, amp):
    """Functions that make a step of the paper's setting, and one of its tower alone: TResNet-M, 224 px, 925 labels."""
    config = Config(preset="paper", device=device, batch_size=batch_size, amp=amp)
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as folder:
        tower = ImageTower(config.image_tower.replace(".miil_in21k", ""), random_weights("tresnet_m", folder))
    model = CLIPDecoder(tower, torch.zeros(1, 512), 1024, config.embed_dim, train_tower=True)
    trainer = AcceleratedTrainer(model, config, 1000)
    make_fast(model.decoder)
    model.to(device)
    pixels, queries = torch.rand(batch_size, 3, 224, 224), torch.randn(925, 512, device=device)
    sentences, targets = torch.randn(batch_size, 1024), torch.rand(batch_size, 925) < 0.005
    on_device = pixels.to(device)

    def alone():
        model.zero_grad()
        with torch.autocast(torch.device(device).type, torch.bfloat16, enabled=precision(config) != "no"):
            tokens = model.tower(on_device)[0]
        tokens.float().square().mean().backward()
        if device != "cpu":
            torch.cuda.synchronize()

    return lambda: trainer.step([pixels], queries, sentences, targets), alone


def two_steps(batch_size, amp):
    step, _ = paper_step("cpu", batch_size, amp)
    step()
    step()


def paper(device):
    """A step of the paper's setting at full size."""
    batch_size, amp = (8, False) if device == "cpu" else (56, True)
    step, alone = paper_step(device, batch_size, amp)
    t = side_by_side({"step": step, "tower": alone}, 2 if device == "cpu" else 20)
    memory = peak_memory(two_steps, batch_size, amp) if device == "cpu" else peak_memory_mb(device)
    what = f"paper's setting, batch {batch_size}, {'mixed precision' if amp else 'float32'}"
    speed = f"{batch_size / t['step']:.1f} images/s, {batch_size / t['tower']:.1f} of the tower alone"
    yield f"{what}: whole step / TResNet-M alone", t["step"] / t["tower"], speed
    yield f"{what}: peak memory (MB)", memory, "of the process, imports included" if device == "cpu" else "of the GPU"


def figures(device="cpu"):
    data = load_data("emoji")
    yield from epochs(data, device)
    yield from loader(data)
    yield from end_to_end(device)
    yield from paper(device)
