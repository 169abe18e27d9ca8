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
from benchmarks.timing import peak_memory, side_by_side, wait
from clipdec import Config
from clipdec.data import load_data
from clipdec.model import CLIPDecoder
from clipdec.towers import ImageTower
from clipdec.trainer import OPTIMISERS
from clipdec.training.accelerated import AcceleratedTrainer
from clipdec.training.batches import TrainingImages
from clipdec.training.build import build_model, label_queries, recompute_activations
from clipdec.training.fast import make_fast
from clipdec.training.machine import peak_memory_mb
from clipdec.training.pixels import Pixels
from clipdec.training.processes import share


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


def paper_tower():
    """TResNet-M with random weights."""
    with tempfile.TemporaryDirectory() as folder:
        return ImageTower("timm:tresnet_m", random_weights("tresnet_m", folder))


def paper_step(config):
    """(a function that makes a step of the paper's setting, its trainer): random weights, 224 px, 925 labels."""
    torch.manual_seed(0)
    size, device, tower = config.batch_size, config.device, paper_tower()
    model = CLIPDecoder(tower, torch.zeros(1, 512), 1024, config.embed_dim, train_tower=True)
    make_fast(model.decoder)
    if config.checkpoint_tower:
        recompute_activations(tower)
    trainer = AcceleratedTrainer(model.to(device), config, 1000)
    pixels, queries = torch.rand(size, 3, 224, 224), torch.randn(925, 512, device=device)
    pixels = pixels if device == "cpu" else pixels.pin_memory()  # as the loader's are
    sentences, targets = torch.randn(size, 1024), torch.rand(size, 925) < 0.005

    def step():
        trainer.step([share(pixels)], queries, sentences, targets)
        wait(device)

    return step, trainer


def tower_step(trainer, config):
    """A function that makes a step of such a tower alone: as many images, the trainer's precision and optimiser."""
    tower, accelerator = paper_tower().to(config.device).train(), trainer.accelerator
    optimiser = OPTIMISERS[config.optimiser](tower.parameters())
    scaler = torch.amp.GradScaler(config.device, enabled=accelerator.scaler is not None)
    pixels = share(torch.rand(config.batch_size, 3, 224, 224)).to(config.device)

    def step():
        optimiser.zero_grad()
        with accelerator.autocast():
            tokens, _ = tower(pixels)
        scaler.scale(tokens.float().square().mean()).backward()
        scaler.step(optimiser)
        scaler.update()
        wait(config.device)

    return step


def paper_speed(config, rounds):
    """(seconds of a step, seconds of one of the tower alone, peak memory of the steps in MB)."""
    step, trainer = paper_step(config)
    step()
    step()
    memory = peak_memory_mb(config.device)
    t = side_by_side({"step": step, "tower": tower_step(trainer, config)}, rounds)
    return t["step"], t["tower"], memory


def two_steps(config):
    step, _ = paper_step(config)
    step()
    step()


def paper(device):
    """A step of the paper's setting at full size."""
    on_gpu = device != "cpu"
    config = Config(preset="paper", device=device, batch_size=56 if on_gpu else 8, amp=on_gpu)
    step, tower, memory = paper_speed(config, 20 if on_gpu else 2)
    memory = memory if on_gpu else peak_memory(two_steps, config)
    what = f"paper's setting, batch {config.batch_size}, {'mixed precision' if on_gpu else 'float32'}"
    speed = f"{config.batch_size / step:.1f} images/s, {config.batch_size / tower:.1f} of TResNet-M alone"
    yield f"{what}: whole step / step of TResNet-M alone", step / tower, speed
    yield f"{what}: peak memory (MB)", memory, "of the GPU" if on_gpu else "of the process, imports included"


def figures(device="cpu"):
    data = load_data("emoji")
    yield from epochs(data, device)
    yield from loader(data)
    yield from end_to_end(device)
    yield from paper(device)
