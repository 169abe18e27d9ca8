"""`fit`: train a CLIP-Decoder and write its run folder."""

import csv
import json
import os
import platform
import resource
import sys
import time

import open_clip
import torch
import torch.nn.functional as F
from torch.optim.swa_utils import AveragedModel
from torch.utils.data import DataLoader
from tqdm.auto import tqdm

from clipdec.data import Pixels
from clipdec.evaluation import evaluate, predict, tokens_of
from clipdec.labels import encode_texts, join_names
from clipdec.losses import CombinedLoss
from clipdec.metrics import average_precision
from clipdec.model import build_model, label_vectors
from clipdec.version import __version__


def fit(data, config):
    """Train on data.train, evaluate on data.test, and write the run folder config.out_dir.

    The folder holds checkpoint.safetensors (the last averaged weights), config.json, history.csv, metrics.json and
    state.pt, from which `resume=True` goes on after the last whole epoch. Nothing is chosen by a look at test: the
    last averaged weights are used. The same seed on the same machine gives the same numbers.

    Returns: the contents of metrics.json.
    """
    start, out = time.time(), config.path("out_dir")
    seen = data.labels.seen_index
    train = data.train.select(data.train.targets[:, seen].any(1).nonzero().flatten().tolist())  # an image needs a seen label
    if not len(train):
        raise ValueError("no training image carries a seen label: check labels.json and the train split")
    queries = label_vectors(config, data.labels.names).to(config.device)
    model = build_model(config, queries.shape[1]).to(config.device)
    tokens, val_tokens = tokens_of(model, train, data, config), tokens_of(model, data.val, data, config)
    sentences = encode_sentences(train, data.labels, config) if config.alpha else torch.zeros(len(train), model.text_proj.in_features)
    on_val = seen[data.val.targets[:, seen].any(0)]  # the labels that val can measure

    steps = -(-len(train) // config.batch_size)  # an epoch
    trainer = Trainer(model, config, config.epochs * steps)
    out.mkdir(parents=True, exist_ok=True)
    history = trainer.resume(out) if config.resume else []
    for old in ("metrics.json", "checkpoint.safetensors"):  # old results and weights must not stand beside new settings
        (out / old).unlink(missing_ok=True)
    write_whole(out / "config.json", json.dumps(config.as_dict(), indent=1))
    for epoch in range(len(history), config.epochs):
        began = time.time()
        torch.manual_seed(1_000_003 * config.seed + epoch)  # an epoch does not depend on those before: resuming repeats it exactly
        batches = tqdm(_batches(train, tokens, model.tower, config), f"epoch {epoch + 1}", steps, leave=False)
        row = {"epoch": epoch + 1, **trainer.epoch(batches, train, queries[seen], sentences)}
        scores = predict(trainer.average.module, data.val, queries[on_val], val_tokens, num_workers=config.num_workers)
        row["val_seen_map"] = 100 * average_precision(scores, data.val.targets[:, on_val]).mean().item()
        row["seconds"] = time.time() - began
        history.append(row)
        print("  ".join(f"{k} {v:.4g}" for k, v in row.items()), flush=True)
        trainer.save(out, history)
        _write_history(out / "history.csv", history)

    model = trainer.average.module
    aside = out / "checkpoint.partial"
    model.save(aside)
    aside.rename(out / "checkpoint.safetensors")
    metrics = evaluate(model, data, config) | {
        "data": str(config.data), "config": config.as_dict(), "seed": config.seed, "epochs": config.epochs,
        "seconds": round(time.time() - start, 1), "peak_memory_mb": round(peak_memory_mb()), "versions": versions(),
    }
    write_whole(out / "metrics.json", json.dumps(metrics, indent=1))
    return metrics


class Trainer:
    """Model, average, optimiser and schedule: one epoch at a time, and their state on disk."""

    def __init__(self, model, config, steps):
        self.model, self.config = model, config
        self.loss = CombinedLoss(config.alpha, config.beta)
        decay, plain = [], []
        for p in model.parameters():
            (decay if p.ndim > 1 else plain).append(p)  # biases, norms and the logit scale are not decayed
        groups = [{"params": decay, "weight_decay": config.weight_decay}, {"params": plain, "weight_decay": 0.0}]
        self.optimiser = torch.optim.AdamW(groups, lr=config.lr)
        # pct_start of exactly 0.2 divides by 0 in a run of 5 steps
        self.schedule = torch.optim.lr_scheduler.OneCycleLR(self.optimiser, config.lr, total_steps=steps, pct_start=0.2 + 1e-9)
        self.average = AveragedModel(model, multi_avg_fn=_moving_average(config.ema_decay))

    def epoch(self, batches, train, queries, sentences):
        """One pass over `batches` of (tokens or pixels, image indices). Returns the mean losses, scale and learning rate."""
        self.model.train()
        sums, count, device = torch.zeros(3), 0, self.config.device
        seen = train.targets[:, : len(queries)]
        for inputs, index in batches:
            targets = seen[index]
            labels, weights = sample_labels(targets, self.config.label_samples, self.config.weight_samples)
            with torch.autocast(torch.device(device).type, torch.bfloat16, enabled=self.config.amp):
                tokens = inputs.to(device) if inputs.ndim == 3 else self.model.tokens(inputs.to(device))
                logits, image, text = self.model(tokens, queries[labels], sentences[index].to(device))
            loss, l_c, l_clip = self.loss(
                logits, targets[:, labels].to(device), image, text, self.model.logit_scale, targets.to(device), weights.to(device)
            )
            if not loss.isfinite():
                raise FloatingPointError(f"the loss became {loss.item()}: use a lower lr than {self.config.lr}")
            self.optimiser.zero_grad()
            loss.backward()
            self.optimiser.step()
            self.schedule.step()
            self.average.update_parameters(self.model)
            sums += len(index) * torch.stack([loss, l_c, l_clip]).detach().cpu()
            count += len(index)
        means = dict(zip(("loss", "l_c", "l_clip"), (sums / count).tolist()))
        return means | {"logit_scale": self.model.logit_scale.item(), "lr": self.schedule.get_last_lr()[0]}

    def save(self, out, history):
        """Write the state after a whole epoch aside, then rename it: state.pt is always complete."""
        state = {k: getattr(self, k).state_dict() for k in ("model", "average", "optimiser", "schedule")}
        torch.save(state | {"history": history, "config": self.config.as_dict()}, out / "state.partial")
        os.replace(out / "state.partial", out / "state.pt")

    def resume(self, out):
        """Load the state that `save` wrote and return its history. Raises ValueError if it belongs to other settings."""
        if not (out / "state.pt").is_file():
            return []
        state = torch.load(out / "state.pt", map_location=self.config.device, weights_only=True)
        mine, free = self.config.as_dict(), {"resume", "device", "num_workers", "out_dir"}
        if changed := [k for k in mine if k not in free and mine[k] != state["config"].get(k)]:
            raise ValueError(f"{out / 'state.pt'} was made with another {', '.join(changed)}: resume with the same settings, or set resume False")
        for k in ("model", "average", "optimiser", "schedule"):
            getattr(self, k).load_state_dict(state[k])
        return state["history"]


def _moving_average(decay):
    """An exponential moving average for AveragedModel; its decay rises to `decay`, so that a short run forgets its random start."""

    def update(averaged, current, count):
        torch._foreach_lerp_(averaged, current, 1 - min(decay, (1 + count.item()) / (10 + count.item())))

    return update


def sample_labels(targets, count, weighted=False):
    """Labels to decode in a step: every one that is positive in the batch, and `count` of the others (0: all of them).

    Args:
        targets: bool [B, L].
        weighted: whether the sampled labels stand for all absent ones, so that the expectation of the loss is that of
            the full one. Unweighted, absent labels weigh less than in the full loss.

    Returns: (indices [K], weights [K] for `asymmetric_loss`).
    """
    present, absent = targets.any(0).nonzero().flatten(), (~targets.any(0)).nonzero().flatten()
    sample = absent[torch.randperm(len(absent))[:count]] if count else absent
    weight = len(absent) / max(1, len(sample)) if weighted else 1.0
    return torch.cat([present, sample]), torch.cat([torch.ones(len(present)), torch.full((len(sample),), weight)])


def encode_sentences(split, labels, config):
    """The text vector [M, S] of each image: its seen labels joined in one sentence, "a photo of sky, car and road".

    With label_embeddings, which know no sentences, it is the mean of the labels' vectors, scaled to length 1.
    """
    targets = split.targets[:, labels.seen_index]
    if config.label_embeddings:
        vectors = label_vectors(config, labels.seen)
        return torch.cat([F.normalize(part.float() @ vectors, dim=-1) for part in targets.split(4096)])
    joined = [join_names([labels.names[i] for i in row.nonzero().flatten()]) for row in targets]
    place = {sentence: i for i, sentence in enumerate(dict.fromkeys(joined))}  # equal label sets are encoded once
    vectors = encode_texts([config.prompt.replace("{}", sentence) for sentence in place], config.text_tower, config.device)
    return vectors[[place[sentence] for sentence in joined]]


def _batches(split, tokens, tower, config):
    """Shuffled batches of (tokens or pixels, image indices)."""
    order = torch.randperm(len(split))
    if tokens is not None:
        yield from ((tokens[index], index) for index in order.split(config.batch_size))
    else:
        loader = DataLoader(Pixels(split, tower.preprocess), config.batch_size, sampler=order.tolist(), num_workers=config.num_workers)
        yield from ((pixels, index) for pixels, _, index in loader)


def write_whole(path, text):
    """Write a text file so that it is there as a whole or not at all."""
    aside = path.with_name(path.name + ".partial")
    aside.write_text(text + "\n")
    os.replace(aside, path)


def _write_history(path, history):
    with open(path, "w", newline="") as file:
        writer = csv.DictWriter(file, history[0])
        writer.writeheader()
        writer.writerows(history)


def peak_memory_mb():
    """Peak resident memory of this process in MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1e6 if sys.platform == "darwin" else 1e3)


def versions():
    """Versions that a result depends on."""
    return {"python": platform.python_version(), "clipdec": __version__, "torch": torch.__version__, "open_clip": open_clip.__version__}
