"""The head against the reference layer and against its own feed-forward products; its cost as labels grow."""

import copy
import functools
from itertools import pairwise

import torch
import torch.nn.functional as F
from timm.layers.ml_decoder import TransformerDecoderLayerOptimal
from torch import nn

from benchmarks.timing import both_clocks, peak_memory, side_by_side, wait
from clipdec import MLDecoder, asymmetric_loss
from clipdec.decoder import MatchingDecoder
from clipdec.trainer import sample_labels
from clipdec.training.config import Config
from clipdec.training.fast import make_fast

B, N, C, L, D, WIDTH = 8, 49, 2048, 1006, 512, 768  # the paper's setting, eight images


class Reference(nn.Module):
    """The reference head in its zero-shot form: its layer, which nn.TransformerDecoder cannot call, and its loop."""

    def __init__(self):
        super().__init__()
        self.embed_standart, self.wordvec_proj = nn.Linear(C, WIDTH), nn.Linear(D, WIDTH)
        self.layer = TransformerDecoderLayerOptimal(WIDTH)
        self.duplicate_pooling = nn.Parameter(torch.randn(WIDTH, 1) * 0.05)
        self.duplicate_pooling_bias = nn.Parameter(torch.zeros(1))

    def forward(self, tokens, queries):
        memory = self.embed_standart(tokens).relu().transpose(0, 1)  # [N, B, d]
        target = self.wordvec_proj(queries).relu()[:, None].expand(-1, len(tokens), -1)  # [L, B, d]
        decoded = self.layer(target, memory).transpose(0, 1)  # [B, L, d]
        out = torch.zeros(len(tokens), len(queries), 1, device=tokens.device, dtype=decoded.dtype)
        for i in range(len(queries)):
            out[:, i, :] = decoded[:, i, :] @ self.duplicate_pooling
        return out.flatten(1) + self.duplicate_pooling_bias


def speed(device):
    """The head of a run and the plain one beside the reference and the bare feed-forward products of the same sizes."""
    torch.manual_seed(0)
    tokens, queries = torch.rand(B, N, C, device=device), torch.randn(L, D, device=device)
    plain = MLDecoder(C, D)
    heads = {"run": make_fast(copy.deepcopy(plain)), "plain": plain, "reference": Reference()}
    products, rows = nn.Sequential(plain.linear1, plain.linear2), torch.rand(B * L, WIDTH, device=device)
    inputs = {name: (head.to(device), tokens, queries) for name, head in heads.items()}
    inputs["products"] = products.to(device), rows
    for head in heads.values():
        head.eval()
    yield from compare("head forward", forward, inputs, device)
    yield from compare("head forward and backward, without dropout", backward, inputs, device)
    for head in heads.values():
        head.train()
    yield from compare("head forward and backward, with dropout", backward, inputs, device)


def compare(what, function, inputs, device):
    def call(arguments):
        function(*arguments)
        wait(device)

    calls = {name: functools.partial(call, arguments) for name, arguments in inputs.items()}
    wall, processor = both_clocks(calls)
    for name in ("run", "plain"):
        note = f"{ms(wall[name])}; in processor seconds {processor[name] / processor['products']:.2f}"
        head = "a run's head" if name == "run" else "the plain head"
        yield f"{what}: {head} / bare feed-forward products", wall[name] / wall["products"], note
    yield f"{what}: reference / a run's head", wall["reference"] / wall["run"], ms(wall["reference"])


def forward(head, *inputs):
    with torch.no_grad():
        head(*inputs)


def backward(head, *inputs):
    head.zero_grad()
    head(*inputs).sum().backward()


def steps(device):
    """A step of the default run (its batch, 64 tokens of 192 channels) as the labels grow."""
    images, sampled = Config().batch_size, Config().label_samples
    torch.manual_seed(0)
    plain = MatchingDecoder(192, 128, 96, ff_dim=256, dropout=0.0)
    fast = make_fast(copy.deepcopy(plain)).to(device)
    tokens = torch.rand(images, 64, 192, device=device)

    def step(labels, sample, head=fast):
        optimiser = torch.optim.AdamW(head.parameters())
        queries = torch.randn(labels, 128, device=device)
        targets = torch.zeros(images, labels, dtype=torch.bool)
        three = torch.randint(0, min(labels, 1000), (3 * images,))  # labels an image
        targets[torch.arange(images).repeat(3), three] = True

        def run():
            index = sample_labels(targets, sample)[0]
            loss = asymmetric_loss(head(tokens, queries[index.to(device)]), targets[:, index].to(device))
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            wait(device)

        return run

    t = side_by_side({"run": step(1000, sampled), "plain": step(1000, sampled, plain.to(device))})
    what = f"default training step, 1,000 labels, {sampled} sampled: plain head / a run's"
    yield what, t["plain"] / t["run"], ms(t["run"])
    counts = (200, 1000, 10_000)
    t = side_by_side({(count, sample): step(count, sample) for count in counts for sample in (0, sampled)}, 3)
    for fewer, count in pairwise(counts):
        growth, saving = t[count, sampled] / t[fewer, sampled], t[count, 0] / t[count, sampled]
        some = f"training step with {sampled} sampled labels: {count:,} labels / {fewer:,} labels"
        yield some, growth, ms(t[count, sampled])
        yield f"training step at {count:,} labels: all labels / {sampled} sampled", saving, f"{ms(t[count, 0])} for all"


def score_many():
    """Score 100,000 labels for eight images at the paper's width."""
    torch.manual_seed(0)
    head = make_fast(MLDecoder(C, D)).eval()
    with torch.no_grad():
        assert head(torch.rand(B, N, C), F.normalize(torch.randn(100_000, D), dim=1)).shape == (B, 100_000)


def memory():
    yield "100,000 labels scored for 8 images: peak memory (MB)", peak_memory(score_many), "imports included"


def ms(seconds):
    return f"{1000 * seconds:.0f} ms"


def figures(device="cpu"):
    yield from speed(device)
    yield from steps(device)
    yield from memory()
