"""The head against the reference layer and against its own feed-forward products; its cost as labels grow."""

import torch
import torch.nn.functional as F
from timm.layers.ml_decoder import TransformerDecoderLayerOptimal
from torch import nn

from benchmarks.timing import peak_memory, side_by_side
from clipdec import MLDecoder, asymmetric_loss
from clipdec.trainer import sample_labels

B, N, C, L, D, WIDTH = 8, 49, 2048, 1006, 512, 768  # the paper's setting, eight images


class Reference(nn.Module):
    """The reference head in its zero-shot form: its layer called directly (nn.TransformerDecoder no longer can), its loop over labels."""

    def __init__(self):
        super().__init__()
        self.embed_standart, self.wordvec_proj = nn.Linear(C, WIDTH), nn.Linear(D, WIDTH)
        self.layer = TransformerDecoderLayerOptimal(WIDTH)
        self.duplicate_pooling, self.duplicate_pooling_bias = nn.Parameter(torch.randn(WIDTH, 1) * 0.05), nn.Parameter(torch.zeros(1))

    def forward(self, tokens, queries):
        memory = self.embed_standart(tokens).relu().transpose(0, 1)  # [N, B, d]
        target = self.wordvec_proj(queries).relu()[:, None].expand(-1, len(tokens), -1)  # [L, B, d]
        decoded = self.layer(target, memory).transpose(0, 1)  # [B, L, d]
        out = torch.zeros(len(tokens), len(queries), 1, device=tokens.device, dtype=decoded.dtype)
        for i in range(len(queries)):
            out[:, i, :] = decoded[:, i, :] @ self.duplicate_pooling
        return out.flatten(1) + self.duplicate_pooling_bias


def speed(device):
    """Forward, and forward with backward, in evaluation mode and with dropout."""
    torch.manual_seed(0)
    tokens, queries = torch.rand(B, N, C, device=device), torch.randn(L, D, device=device)
    ours, reference = MLDecoder(C, D).to(device), Reference().to(device)
    rows = torch.rand(B * L, WIDTH, device=device)

    def forward(head, *inputs):
        with torch.no_grad():
            head(*inputs)
        wait(device)

    def backward(head, *inputs):
        head.zero_grad()
        head(*inputs).sum().backward()
        wait(device)

    products = nn.Sequential(ours.linear1, ours.linear2)
    for mode in ("evaluation", "training"):
        for head in (ours, reference):
            head.train(mode == "training")
        if mode == "evaluation":
            t = side_by_side({"ours": lambda: forward(ours, tokens, queries), "reference": lambda: forward(reference, tokens, queries), "products": lambda: forward(products, rows)})
            yield "head forward: reference / ours", t["reference"] / t["ours"], f"{1000 * t['ours']:.0f} ms"
            yield "head forward: ours / bare feed-forward products", t["ours"] / t["products"], f"{1000 * t['products']:.0f} ms for the products"
        t = side_by_side({"ours": lambda: backward(ours, tokens, queries), "reference": lambda: backward(reference, tokens, queries)}, 3)
        dropout = "with dropout" if mode == "training" else "without dropout"
        yield f"head forward and backward, {dropout}: reference / ours", t["reference"] / t["ours"], f"{1000 * t['ours']:.0f} ms"


def steps(device):
    """A training step of the default head (32 images, 64 tokens of 192 channels) as the labels grow."""
    torch.manual_seed(0)
    head = MLDecoder(192, 128, 96, ff_dim=256).to(device)
    optimiser = torch.optim.AdamW(head.parameters())
    tokens = torch.rand(32, 64, 192, device=device)

    def step(labels, sample):
        queries = torch.randn(labels, 128, device=device)
        targets = torch.zeros(32, labels, dtype=torch.bool)
        targets[torch.arange(32).repeat(3), torch.randint(0, min(labels, 1000), (96,))] = True  # three labels an image

        def run():
            index = sample_labels(targets, sample)[0]
            loss = asymmetric_loss(head(tokens, queries[index.to(device)]), targets[:, index].to(device))
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            wait(device)

        return run

    counts = (100, 1000, 10_000)
    t = side_by_side({(count, sample): step(count, sample) for count in counts for sample in (0, 32)}, 3)
    for count in counts[1:]:
        yield f"training step with 32 sampled labels: {count:,} labels / {counts[counts.index(count) - 1]:,} labels", t[count, 32] / t[counts[counts.index(count) - 1], 32], f"{1000 * t[count, 32]:.0f} ms"
        yield f"training step at {count:,} labels: all labels / 32 sampled", t[count, 0] / t[count, 32], f"{1000 * t[count, 0]:.0f} ms for all"


def score_many():
    """Score 100,000 labels for eight images at the paper's width."""
    torch.manual_seed(0)
    head = MLDecoder(C, D).eval()
    with torch.no_grad():
        assert head(torch.rand(B, N, C), F.normalize(torch.randn(100_000, D), dim=1)).shape == (B, 100_000)


def memory():
    yield "100,000 labels scored for 8 images: peak memory (MB)", peak_memory(score_many), "imports included"


def wait(device):
    if device != "cpu":
        torch.cuda.synchronize()


def figures(device="cpu"):
    yield from speed(device)
    yield from steps(device)
    yield from memory()
