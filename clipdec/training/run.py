"""`fit`: train a CLIP-Decoder and write its run folder.

    python -m clipdec.training --config run.json                                # one process
    accelerate launch --num_processes 2 -m clipdec.training --config run.json   # several, one for each GPU
"""

import argparse
import importlib.metadata
import json
import math
import os
import platform
import resource
import sys
import time
from itertools import islice, pairwise

import accelerate
import open_clip
import timm
import torch
from accelerate.state import AcceleratorState
from safetensors.torch import load_model
from torch.distributed.elastic.utils.distributed import get_free_port
from torch.utils.data import DataLoader

from clipdec.training.config import Config
from clipdec.data import Pixels, augmented, held_labels, load_data
from clipdec.evaluation import encoded, evaluate, predict, result_table, split_scores
from clipdec.training.interruption import Interruption, Stopped
from clipdec.metrics import average_precision
from clipdec.model import build_model, encode_sentences, label_vectors, uses_clip
from clipdec.training.processes import add_up, is_main, rank_and_count, wait
from clipdec.training.progress import progress
from clipdec.training.run_folder import RunFolder, full_disk_explained
from clipdec.trainer import Trainer, parts

UNPRINTED = {"val_map", "grad_norm", "logit_scale", "lr", "memory_mb"}  # history.csv has them
CLIP_WEIGHTS = (0.0, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0)
FREE = {"preset", "resume", "device", "processes", "num_workers", "out_dir", "save_minutes"}  # what a resumed run may change


def fit(data, config, on_epoch=None):
    """Train on data.train, evaluate on data.test, and write the run folder config.out_dir.

    The folder holds checkpoint.safetensors (the averaged weights of the best epoch), config.json, history.csv (a row an
    epoch), metrics.json, labels.json, tensorboard/ and state.pt: all that a run needs to go on, mid-epoch too, with `resume=True`. It is
    written every `save_minutes`, after every epoch and at SIGTERM or SIGINT. The random numbers of a step depend on the seed
    and the number of the step alone, so that a resumed run equals an undisturbed one, and several processes equal one as
    nearly as sums in another order do.

    The best epoch has the highest mean of two mAPs on val: of the labels in training, and of seen ones held out of it
    (`hold_out`), which play the unseen ones.

    Args:
        data: a Data.
        config: a Config. With `processes` it starts them itself; under `accelerate launch` it is one of them.
        on_epoch: called with the rows of history.csv so far after every epoch (not with `processes`).

    Returns: the contents of metrics.json.
    Raises: FloatingPointError if the loss is no longer finite, OSError if the disk is full, RuntimeError if another run writes
    to the folder, ValueError for settings that do not fit the data or the state. The last complete state is kept.
    """
    if config.processes > 1 and "LOCAL_RANK" not in os.environ:
        AcceleratorState._reset_state(reset_partial_state=True)  # left by a run in this process, in the way of the launcher
        accelerate.notebook_launcher(fit, (data, config), num_processes=config.processes, use_port=str(get_free_port()))
        return json.loads((config.path("out_dir") / "metrics.json").read_text())
    accelerate.PartialState(cpu=config.device == "cpu")  # joins the other processes, if there are any
    folder = RunFolder(config.path("out_dir"), is_main())
    try:
        with full_disk_explained(folder.path):
            return Run(data, config, folder, on_epoch).run()
    finally:
        folder.close()


class Run:
    """What `fit` does, in its order: `run` trains epoch after epoch and evaluates the best."""

    def __init__(self, data, config, folder, on_epoch):
        self.data, self.config, self.folder, self.on_epoch = data, config, folder, on_epoch
        self.began = self.saved = time.time()
        state = self._state_to_resume()
        folder.clear(keep_record=state is not None)
        folder.write_text("config.json", json.dumps(config.as_dict(), indent=1))
        self.asked, self.held = held_labels(data.labels, config)
        self.queries = label_vectors(config, data.labels.names).to(config.device)
        model = build_model(config, self.queries[self.asked].cpu()).to(config.device)
        model.tower.to(config.device)  # a frozen one is no part of the model
        self.images = TrainingImages(data, self.asked, model, config)
        self.val_kept = encoded(model, data.val, data, config)
        self.trainer = Trainer(model, config, config.epochs * self.images.steps)
        self.position = {"epoch": 0, "step": 0, "sums": {}, "images": 0, "epoch_seconds": 0.0, "seconds": 0.0, "history": [], "best": None}
        if state:
            self.trainer.load(state)
            self.position = state["position"]

    def run(self):
        position, config = self.position, self.config
        with Interruption() as interruption:
            try:
                if position["epoch"] < config.epochs:
                    self._announce()
                while position["epoch"] < config.epochs and not self._stops_early():
                    with interruption.held():
                        self._train_epoch(interruption)
                    row = self._row()
                    with interruption.held():
                        self._end_epoch(row)
            except Stopped as stopped:
                self._save()
                done = f"stopped by {stopped} in epoch {position['epoch'] + 1} after step {position['step']} of {self.images.steps}"
                print(f"{done}: the state is in {self.folder.path}, go on with resume True", flush=True)
                stopped.end()
        wait()  # for the checkpoint that the main process wrote
        model = self.trainer.average.module
        load_model(model, str(self.folder.path / "checkpoint.safetensors"))
        model.clip_weight.copy_(choose_clip_weight(model, self.data, config))
        wait()  # until all have read it
        self.folder.save_model(model)
        metrics = evaluate(model, self.data, config) | {
            "data": str(config.data), "config": config.as_dict(), "seed": config.seed, "epochs": position["epoch"],
            "best_epoch": position["best"]["epoch"] if config.keep_best else position["epoch"], "chosen_by": self._criterion(),
            "clip_weight": round(model.clip_weight.item(), 6), "seconds": round(position["seconds"] + time.time() - self.began, 1), "peak_memory_mb": round(peak_memory_mb(config.device)),
            "processes": rank_and_count()[1], "versions": versions(),
        }  # fmt: skip
        labels = {"seen": self.data.labels.seen, "unseen": self.data.labels.unseen}
        self.folder.write_text("labels.json", json.dumps(labels, indent=1, ensure_ascii=False))
        self.folder.write_text("metrics.json", json.dumps(metrics, indent=1))
        return metrics

    def _state_to_resume(self):
        """The state to go on from, or None. Raises ValueError if it belongs to other settings."""
        state = self.folder.load_state(self.config.device) if self.config.resume else None
        mine = self.config.as_dict()
        if state and (changed := [k for k in mine if k not in FREE and mine[k] != state["config"].get(k)]):
            path = self.folder.path / "state.pt"
            raise ValueError(f"{path} was made with another {', '.join(changed)}: resume with the same settings, or set resume False")
        return state

    def _train_epoch(self, interruption):
        """The steps of the epoch that are still to do."""
        position, config, images = self.position, self.config, self.images
        batches = images.epoch(position["epoch"], position["step"])
        bar = progress(batches, f"epoch {position['epoch'] + 1}", total=images.steps, initial=position["step"])
        began, before = time.time(), position["epoch_seconds"]
        for index, inputs in bar:
            number = position["epoch"] * images.steps + position["step"]
            seed_step(config, number)
            try:
                figures = self.trainer.step(index, inputs, self.queries[self.asked], images.targets, images.sentences)
            except FloatingPointError as error:
                place = f"epoch {position['epoch'] + 1}, step {position['step'] + 1} of {images.steps}, images {index[:8].tolist()}..."
                remedy = f"use a lower lr than {config.lr}, or clip_grad" + (", or amp False" if config.amp else "")
                kept = f"; the last good state is in {self.folder.path}" if (self.folder.path / "state.pt").is_file() else ""
                raise FloatingPointError(f"{place}: {error}. {remedy}{kept}") from None
            self.folder.log(number + 1, figures)
            for name, value in figures.items():  # a gradient that overflowed in float16 counts as 0: its step was left out
                position["sums"][name] = position["sums"].get(name, 0.0) + len(index) * (value if math.isfinite(value) else 0.0)
            position["images"] += len(index)
            position["step"] += 1
            position["epoch_seconds"] = before + time.time() - began
            due = is_main() and time.time() - self.saved >= 60 * config.save_minutes
            stop, due = add_up(torch.tensor([interruption.signal is not None, due], dtype=torch.float32)).tolist()
            if stop:
                raise Stopped(interruption.signal)
            if due and position["step"] < images.steps:
                self._save()

    def _row(self):
        """The row of history.csv of the epoch that was just trained."""
        position, config, model = self.position, self.config, self.trainer.average.module
        row = {"epoch": position["epoch"] + 1} | {name: value / position["images"] for name, value in position["sums"].items()}
        row |= {"logit_scale": self.trainer.model.logit_scale.item(), "lr": self.trainer.schedule.get_last_lr()[0]}
        row |= {"images_per_s": position["images"] / position["epoch_seconds"], "memory_mb": peak_memory_mb(config.device)}
        began = time.time()
        groups = {"val_seen_map": self.asked} | ({"val_held_map": self.held} if len(self.held) else {})
        row |= (maps := self._maps(model, self.data.val, groups, self.val_kept))
        row["val_map"] = sum(maps.values()) / len(maps)
        if not config.choose_on_val:
            kept = encoded(model, self.data.test, self.data, config)
            row |= self._maps(model, self.data.test, {"test_map": self.data.labels.unseen_index}, kept)
        return row | {"seconds": position["epoch_seconds"] + time.time() - began}

    def _maps(self, model, split, groups, kept):
        """mAP in percent of groups of labels {name: indices} on a split, nan for one that does not occur there."""
        labels = torch.cat([*groups.values()])
        labels = labels[split.targets[:, labels].any(0)]
        scores = predict(model, split, self.queries[labels], kept, num_workers=self.config.num_workers)
        precisions = 100 * average_precision(scores, split.targets[:, labels])
        return {name: precisions[torch.isin(labels, group)].mean().item() for name, group in groups.items()}

    def _criterion(self):
        return "val_map" if self.config.choose_on_val else "test_map"

    def _end_epoch(self, row):
        """Write down what the epoch brought, and its weights if it is the best."""
        position, value = self.position, row[self._criterion()]
        position["history"].append(row)
        if position["best"] is None or not value <= position["best"]["value"]:  # nan, where val measures nothing: the last
            position["best"] = {"epoch": row["epoch"], "value": value}
        if position["best"]["epoch"] == row["epoch"] or not self.config.keep_best:
            self.folder.save_model(self.trainer.average.module)
        self.folder.write_history(position["history"])
        self.folder.log(row["epoch"] * self.images.steps, {f"epoch/{name}": value for name, value in row.items() if name != "epoch"})
        position |= {"epoch": row["epoch"], "step": 0, "sums": {}, "images": 0, "epoch_seconds": 0.0}
        self._save()
        if is_main():
            print("  ".join(f"{k} {v:.4g}" for k, v in row.items() if k not in UNPRINTED), flush=True)
            if self.on_epoch:
                self.on_epoch(position["history"])

    def _stops_early(self):
        best = self.position["best"]
        return bool(self.config.patience and best and self.position["epoch"] - best["epoch"] >= self.config.patience)

    def _save(self):
        now = time.time()
        position = self.position | {"seconds": self.position["seconds"] + now - self.began}
        self.folder.save_state(self.trainer.state() | {"position": position, "config": self.config.as_dict()})
        self.saved = now

    def _announce(self):
        """Time a first step, thrown away, and say how long the run will take and how much memory."""
        images, config, position = self.images, self.config, self.position
        step = images.time_step(self.trainer, self.queries[self.asked])
        model, some = self.trainer.average.module, self.data.val.select(range(min(64, len(self.data.val))))
        kept, began = encoded(model, some, self.data, config), time.time()
        predict(model, some, self.queries[self.asked], kept, num_workers=config.num_workers)
        per_image = (time.time() - began) / max(1, len(some))
        epochs = config.epochs - position["epoch"]
        evaluated = epochs * len(self.data.val) + len(self.data.test)
        seconds = step * (epochs * images.steps - position["step"]) + per_image * evaluated
        state = 2 * sum(p.numel() * p.element_size() for p in self.trainer.trained) / 1e6  # of Adam, not there yet
        if is_main():
            plan = f"{epochs} epochs of {images.steps} steps, {step * 1000:.0f} ms each, and {evaluated} images to evaluate"
            print(f"{plan}: about {duration(seconds)}; memory about {(peak_memory_mb(config.device) + state) / 1000:.1f} GB", flush=True)


class TrainingImages:
    """The images that are trained on, with their targets and sentences, in batches that depend on seed and epoch alone."""

    def __init__(self, data, asked, model, config):
        rows = data.train.targets[:, asked].any(1).nonzero().flatten() if config.drop_unlabelled else torch.arange(len(data.train))
        split = data.train.select(rows)
        if not len(split):
            raise ValueError("no training image carries a seen label: check labels.json and the train split")
        self.split, self.config, self.steps = split, config, -(-len(split) // config.batch_size)
        if len(split) // self.steps < (least := config.accumulate * rank_and_count()[1]):
            raise ValueError(f"batch_size must give each of {least} parts (accumulate times processes) an image: a batch here holds {len(split) // self.steps}")
        self.targets = split.targets[:, asked]
        kept = data.folder / "tokens"
        width = model.text_proj.in_features
        self.sentences = encode_sentences(split, data.labels, config, asked, kept) if config.alpha else torch.zeros(len(split), width)
        found = None if config.augment else encoded(model, split, data, config)
        self.tokens = found and found[0]
        self.transform = augmented(model.tower.preprocess) if config.augment else model.tower.preprocess

    def epoch(self, epoch, first=0):
        """(numbers [B] of a batch's images, iterator of this process's parts of them) from step `first` on.

        Batches differ by an image at most, so that none is too small to share out or to take the statistics of.
        """
        seed = hash((self.config.seed, epoch))
        order = torch.randperm(len(self.split), generator=torch.Generator().manual_seed(seed))
        batches = order.tensor_split(self.steps)[first:]
        mine = [part for index in batches for part in parts(index, self.config.accumulate)]
        if self.tokens is not None:
            inputs = (self.tokens[part] for part in mine)
        else:
            pixels = Pixels(self.split, self.transform, seed)
            loader = DataLoader(pixels, batch_sampler=[part.tolist() for part in mine], num_workers=self.config.num_workers, pin_memory=self.config.device != "cpu")
            inputs = (images for images, *_ in loader)
        for index in batches:
            yield index, islice(inputs, self.config.accumulate)

    def time_step(self, trainer, queries):
        """Seconds of a step with its loading: the shorter of two, after one that is slower for being the first."""
        times = [time.time()]
        for index, inputs in islice(self.epoch(0), 3):
            trainer.rehearse(index, inputs, queries, self.targets, self.sentences)
            times.append(time.time())
        return min(b - a for a, b in pairwise(times))


def choose_clip_weight(model, data, config):
    """How much of CLIP's own answer goes into a logit: of CLIP_WEIGHTS the one with the best mAP on val, 0 where there is none.

    What counts is the mean of two mAPs, of the labels held out of the training, which are as unseen ones, and of all seen labels,
    so that neither ZSL nor GZSL is bought with the other.
    """
    _, held = held_labels(data.labels, config)
    if not uses_clip(config) or not len(held):
        return torch.tensor(0.0)
    seen = data.val.targets[:, data.labels.seen_index].any(0).nonzero().flatten()  # those that occur
    targets, (without, once) = data.val.targets[:, seen], (_scores_with(weight, model, data, config)[:, seen] for weight in (0.0, 1.0))
    weights, quality = torch.tensor(CLIP_WEIGHTS), []
    for weight in weights:
        precisions = average_precision(without + weight * (once - without), targets)  # a logit is linear in the weight
        quality.append(precisions.mean() + precisions[torch.isin(seen, held)].mean().nan_to_num())
    return weights[torch.stack(quality).argmax()]


def _scores_with(weight, model, data, config):
    model.clip_weight.fill_(weight)
    return split_scores(model, data.val, data, config)


def seed_step(config, number):
    """Seed the random numbers of a step: alike in all processes, but for what GPUs draw on their own (dropout)."""
    rank, _ = rank_and_count()
    torch.manual_seed(hash((config.seed, number)))
    if rank and config.device.startswith("cuda"):
        torch.cuda.manual_seed(hash((config.seed, number, rank)))


def peak_memory_mb(device="cpu"):
    """Peak memory in MB: of a GPU what torch has allocated there, else the resident memory of this process."""
    if device.startswith("cuda"):
        return torch.cuda.max_memory_allocated() / 1e6
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1e6 if sys.platform == "darwin" else 1e3)


def duration(seconds):
    """"2 min 5 s" """
    minutes, seconds = divmod(math.ceil(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {seconds} s" if minutes else f"{seconds} s"


def versions():
    """Versions that a result depends on."""
    return {"python": platform.python_version(), "clipdec": importlib.metadata.version("clipdec")} | {m.__name__: m.__version__ for m in (torch, open_clip, timm, accelerate)}


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", required=True, help="JSON file with a preset and any parameters of notebooks/04_train.ipynb, such as the config.json of a run")
    parser.add_argument("--resume", action="store_true", help="go on from the state in the run folder")
    args = parser.parse_args(arguments)
    with open(args.config, encoding="utf8") as file:
        settings = json.load(file)
    config = Config.from_parameters(settings | ({"resume": True} if args.resume else {}))
    metrics = fit(load_data(config.data), config)
    if is_main():
        print(result_table(metrics))


if __name__ == "__main__":
    main()
