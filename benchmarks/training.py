"""Training from cached tokens against encoding anew, the loader against decoding alone, and a step against the tower alone."""

import io
import tempfile

import timm
import torch
from PIL import Image
from safetensors.torch import save_file
from torch.utils.data import DataLoader

from benchmarks.timing import side_by_side
from clipdec import CombinedLoss, Config
from clipdec.data import Pixels, encode_images, load_data
from clipdec.model import CLIPDecoder, build_model, label_vectors
from clipdec.towers import ImageTower
from clipdec.training import Trainer, _batches, encode_sentences


def epochs(data, device):
    """An epoch of the default run over 1,600 scenes, tokens cached or not."""
    config = Config(device=device)
    train, seen = data.train.select(range(1600)), data.labels.seen_index
    queries = label_vectors(config, data.labels.names)[seen].to(device)
    model = build_model(config, queries.shape[1]).to(device)
    model.tower.to(device)
    tokens, sentences = encode_images(model.tower, train, device=device)[0], encode_sentences(train, data.labels, config)
    trainer = Trainer(model, config, 10_000)

    def epoch(tokens):
        trainer.epoch(_batches(train, tokens, model.tower, config), train, queries, sentences)

    t = side_by_side({"cached": lambda: epoch(tokens), "encoded": lambda: epoch(None)}, 2)
    yield "epoch that encodes images / epoch from cached tokens", t["encoded"] / t["cached"], f"{1600 / t['cached']:.0f} images/s from tokens"


def loader(data):
    """The loader of one process against decoding the same files."""
    train = data.train.select(range(1000))
    files, transform = [cell["bytes"] for cell in train.rows["image"]], ImageTower("mini").preprocess

    def load():
        for _ in DataLoader(Pixels(train, transform), 32):
            pass

    def decode():
        for file in files:
            transform(Image.open(io.BytesIO(file)).convert("RGB"))

    t = side_by_side({"loader": load, "decode": decode}, 3)
    yield "loader images/s / bare loop of decode and transform", t["decode"] / t["loader"], f"{1000 / t['loader']:.0f} images/s"


def step(device):
    """A step of a trained ResNet-18 at 224 px with the head, against the tower alone."""
    torch.manual_seed(0)
    with tempfile.NamedTemporaryFile(suffix=".safetensors") as file:
        save_file({k: v.contiguous() for k, v in timm.create_model("resnet18").state_dict().items()}, file.name)
        model = CLIPDecoder(ImageTower("timm:resnet18", file.name), 512, 512, train_tower=True).to(device).train()
    pixels, queries, sentences = torch.rand(16, 3, 224, 224, device=device), torch.randn(80, 512, device=device), torch.randn(16, 512, device=device)
    targets, loss = (torch.rand(16, 80, device=device) < 0.05), CombinedLoss()

    def whole():
        model.zero_grad()
        logits, image, text = model(model.tokens(pixels), queries, sentences)
        loss(logits, targets, image, text, model.logit_scale)[0].backward()

    def tower():
        model.zero_grad()
        model.tokens(pixels).sum().backward()

    t = side_by_side({"whole": whole, "tower": tower}, 3)
    yield "step of ResNet-18, head and losses / the tower alone", t["whole"] / t["tower"], f"{16 / t['whole']:.0f} images/s"


def figures(device="cpu"):
    data = load_data("emoji")
    yield from epochs(data, device)
    yield from loader(data)
    yield from step(device)
