"""`fit`: train a CLIP-Decoder and write its run folder. `python -m clipdec.training --help` says how without Python."""

import json
import math
import os
import time
from dataclasses import replace

import torch
from safetensors.torch import load_model

from clipdec.data import find_data
from clipdec.metrics import average_precision
from clipdec.training.accelerated import AcceleratedTrainer
from clipdec.training.author import followed
from clipdec.training.batches import TrainingImages
from clipdec.training.build import build_model, label_queries
from clipdec.training.config import without_switches
from clipdec.training.epochs import epoch_that_counts, highest, val_figures
from clipdec.training.inputs import changed, inputs_of
from clipdec.training.interruption import Interruption, Stopped
from clipdec.training.machine import duration, peak_memory_mb, versions
from clipdec.training.processes import add_up, is_main, join, launch, progress, rank_and_count, wait
from clipdec.training.report import HEADINGS, dashed, full_report, label_table
from clipdec.training.run_folder import RunFolder, full_disk_explained
from clipdec.training.scores import choose_clip_weight, evaluate, held_labels, predict, split_scores
from clipdec.training.tokens import encoded

FEW = 5  # names of labels that are printed
UNPRINTED = {"val_map", "val_error", "grad_norm", "logit_scale", "lr", "memory_mb"}  # history.csv has them


def fit(data, config, on_epoch=None):
    """Train on data.train, evaluate on data.test, and write the run folder config.out_dir.

    The folder holds checkpoint.safetensors (the averaged weights of the best epoch, or those that a point of
    `as_author` chooses), config.json, history.csv (a row an epoch), metrics.json, labels.json, scores.npz (the logits
    of val and test, for numpy), label_ap.csv (AP of each label on test), tensorboard/ and state.pt: all that a run
    needs to go on, mid-epoch too, with `resume=True`. It is written every `save_minutes`, after every epoch and at
    SIGTERM or SIGINT. The random numbers of a step depend on the seed and the number of the step alone, so that on a
    CPU a resumed run equals an undisturbed one (a GPU adds up in any order), and without dropout several processes
    equal one as nearly as sums in another order do.

    Epochs are judged by the mean of two mAPs on val: of the labels in training, and of seen ones held out of it
    (`hold_out`), which play the unseen ones. The last epoch that is not below the highest by more than a standard error
    is the best (`epoch_that_counts`). Where val has labels of one kind only, these count, and without both the last
    epoch is the best.

    Args:
        data: a Data.
        config: a Config. With `processes` it starts them itself; under `accelerate launch` it is one of them.
        on_epoch: called with the rows of history.csv so far after every epoch (not with `processes`).

    Returns: the contents of metrics.json, None (there null) in place of a figure that does not exist.
    Raises: FloatingPointError if the loss is no longer finite, OSError if the disk is full, FileExistsError if out_dir
    holds something else than a run, RuntimeError if another run writes to it, ValueError for settings that do not fit
    the data, or a state made of other data, weights or settings. What was there is kept then.
    """
    if config.processes > 1 and "LOCAL_RANK" not in os.environ:
        launch(config.processes, config.device == "cpu", _fit, data, config)
        return json.loads((config.path("out_dir") / "metrics.json").read_text(encoding="utf8"))
    return _fit(data, config, on_epoch)


def _fit(data, config, on_epoch=None):
    """`fit` in this process, which may be one of several."""
    join(config.device == "cpu")
    folder = RunFolder(config.path("out_dir"), is_main())
    try:
        with full_disk_explained(folder.path):
            return Run(data, config, folder, on_epoch).run()
    finally:
        folder.close()


class Run:
    """What `fit` does, in its order: `run` trains epoch after epoch and evaluates the best."""

    def __init__(self, data, config, folder, on_epoch):
        if find_data(config.data).resolve() != data.folder.resolve():
            config = replace(config, data=str(data.folder.absolute()))  # what is written down is what was trained on
        config = followed(config, data)
        self.data, self.config, self.folder, self.on_epoch = data, config, folder, on_epoch
        self.began = self.saved = time.perf_counter()
        state = folder.load_state() if config.resume else None
        self.asked, self.held = held_labels(data.labels, config)
        self.queries = label_queries(config, data.labels.names).to(config.device)
        model = build_model(config, self.queries[self.asked].cpu()).to(config.device)
        self.inputs = inputs_of(config, data.labels, model.tower, data)
        self.about = {"inputs": self.inputs, "settings": config.decisive()}
        if state:
            self._check(state)
        self.images = TrainingImages(data, self.asked, model, config)
        self.val_kept = encoded(model, data.val, data, config)
        self.trainer = AcceleratedTrainer(model, config, config.epochs * self.images.steps)
        self.position = {
            "epoch": 0, "step": 0, "sums": {}, "images": 0, "epoch_seconds": 0.0, "seconds": 0.0, "history": [],
        }  # fmt: skip
        if state:
            self.trainer.load(state)
            self.position = state["position"]
        self.resumed = state is not None

    def run(self):
        """Metrics of the run. All that it needs has been found, and a step been tried, before an old run is removed."""
        if self.position["epoch"] < self.config.epochs:
            self._announce()
        self._begin()
        with Interruption() as interruption:
            try:
                self._train(interruption)
            except Stopped as stopped:
                self._save()
                place = f"epoch {self.position['epoch'] + 1} after step {self.position['step']} of {self.images.steps}"
                where = f"the state is in {self.folder.path}, go on with resume True"
                print(f"stopped by {stopped} in {place}: {where}", flush=True)
                stopped.end()
        return self._evaluate()

    def _begin(self):
        labels = self.data.labels
        if not self.resumed:
            self.folder.clear()
        self.folder.write_json("config.json", self.config.as_dict())
        self.folder.write_json("labels.json", {"seen": labels.seen, "unseen": labels.unseen})

    def _train(self, interruption):
        position, config = self.position, self.config
        while position["epoch"] < config.epochs and not self._stops_early():
            with interruption.held():
                self._train_epoch(interruption)
            row = self._row()
            with interruption.held():
                self._end_epoch(row)

    def _evaluate(self):
        """The figures of the best epoch, written to the folder."""
        model, data, config, position = self.trainer.average.module, self.data, self.config, self.position
        wait()  # for the checkpoint that the main process wrote
        load_model(model, str(self.folder.path / "checkpoint.safetensors"))
        model.clip_weight.fill_(choose_clip_weight(model, data, config))
        wait()  # until all have read it
        self.folder.save_model(model, self.about)
        history, name = position["history"], self._criterion()
        best = position["epoch"] if "last_weights" in config.as_author else epoch_that_counts(history, name)
        chosen_by = name if math.isfinite(history[-1][name]) else "being the last"
        figures = evaluate(model, data, config, save=self._save_scores)
        metrics = figures | self._figures_of_plain(figures) | {
            "data": str(config.data), "inputs": self.inputs, "config": config.as_dict(), "seed": config.seed,
            "epochs": position["epoch"],
            "best_epoch": best, "chosen_by": chosen_by, "clip_weight": round(model.clip_weight.item(), 6),
            "held_out": self._held_names(),
            "seconds": round(position["seconds"] + time.perf_counter() - self.began, 1),
            "peak_memory_mb": round(peak_memory_mb(config.device)), "processes": rank_and_count()[1],
            "versions": versions(),
        }  # fmt: skip
        return self.folder.write_json("metrics.json", metrics)

    def _save_scores(self, val, test):
        """Keep the logits [M, L] of val and of test, and AP of each label on test."""
        split = self.data.test
        self.folder.save_scores(self.config.decisive() | self.inputs, val=val, test=test)
        self.folder.write_table("label_ap.csv", label_table(test, split.targets, self.data.labels, split.known))

    def _figures_of_plain(self, figures):
        """With best_on_test the `figures` with P, R and F1 of the plain weights, as the author's code reports them."""
        if "best_on_test" not in self.config.as_author:
            return {}
        model, data = self.trainer.model, self.data
        load_model(model, str(self.folder.path / "plain.safetensors"))
        model.clip_weight.copy_(self.trainer.average.module.clip_weight)
        scores, test = split_scores(model, data.test, data, self.config), data.test
        plain = full_report(scores, test.targets, data.labels, known=test.known)
        mean = {task: {k: v for k, v in figures.get(task, {}).items() if k == "map"} for task in (*HEADINGS, "seen")}
        return {task: plain[task] | values for task, values in mean.items() if values}

    def _check(self, state):
        """Raises ValueError if a state belongs to other settings, data or weights."""
        its = {"as_author": [], "windows": 0} | without_switches(state["config"])
        others = changed(its, self.config.decisive()) or changed(state.get("inputs", self.inputs), self.inputs)
        if any("val_error" not in row for row in state["position"]["history"]):
            raise ValueError(f"{self.folder.path / 'state.pt'} is of an earlier version: set resume False")
        if others:
            made = f"{self.folder.path / 'state.pt'} was made with another {others}"
            raise ValueError(f"{made}: resume with the same, or set resume False")

    def _train_epoch(self, interruption):
        """The steps of the epoch that are still to do."""
        position, images = self.position, self.images
        batches = images.epoch(position["epoch"], position["step"])
        options = {"total": images.steps, "initial": position["step"]}
        began, before = time.perf_counter(), position["epoch_seconds"]
        for index, inputs in progress(batches, f"epoch {position['epoch'] + 1}", **options):
            figures = self._step(index, inputs)
            for name, value in figures.items():  # one that overflowed in float16 counts as 0
                position["sums"].setdefault(name, 0.0)
                position["sums"][name] += len(index) * (value if math.isfinite(value) else 0.0)
            position["images"] += len(index)
            position["step"] += 1
            position["epoch_seconds"] = before + time.perf_counter() - began
            due = is_main() and time.perf_counter() - self.saved >= 60 * self.config.save_minutes
            asked = torch.tensor([interruption.signal is not None, due], dtype=torch.float32)
            stop, due = add_up(asked).tolist()
            if stop:
                raise Stopped(interruption.signal)
            if due and position["step"] < images.steps:
                self._save()

    def _step(self, index, inputs):
        """A step on the images `index` of the training, logged. Raises FloatingPointError that says where it was."""
        epoch, step, config = self.position["epoch"], self.position["step"], self.config
        number = epoch * self.images.steps + step
        torch.manual_seed(hash((config.seed, number)))  # alike in all processes
        try:
            figures = self.trainer.step(*self.images.batch(index, inputs, self.queries[self.asked]))
        except FloatingPointError as error:
            where = f"epoch {epoch + 1}, step {step + 1} of {self.images.steps}, images {index[:8].tolist()}..."
            remedy = f"use a lower lr than {config.lr}, or clip_grad" + (", or amp False" if config.amp else "")
            if (self.folder.path / "state.pt").is_file():
                remedy += f"; the last good state is in {self.folder.path}"
            raise FloatingPointError(f"{where}: {error}. {remedy}") from None
        self.folder.log(number + 1, figures)
        return figures

    def _row(self):
        """The row of history.csv of the epoch that was just trained."""
        position, config, model = self.position, self.config, self.trainer.average.module
        means = {name: value / position["images"] for name, value in position["sums"].items()}
        row = {"epoch": position["epoch"] + 1} | means
        row |= {"logit_scale": self.trainer.model.logit_scale.item(), "lr": self.trainer.schedule.get_last_lr()[0]}
        speed, began = position["images"] / position["epoch_seconds"], time.perf_counter()
        row |= {"images_per_s": speed, "memory_mb": peak_memory_mb(config.device)}
        groups = {"val_seen_map": self.asked} | ({"val_held_map": self.held} if len(self.held) else {})
        row |= val_figures(self._precisions(model, self.data.val, groups, self.val_kept))
        if "best_on_test" in config.as_author:
            row |= self._test_maps(model)
        return row | {"seconds": position["epoch_seconds"] + time.perf_counter() - began}

    def _test_maps(self, average):
        """mAP of the unseen labels on test, the larger of two, and that of the plain weights, which is one of them."""
        test, groups = self.data.test, {"test_map": self.data.labels.unseen_index}
        kept = encoded(average, test, self.data, self.config)
        models = self.trainer.model, average
        plain, mean = (self._precisions(model, test, groups, kept)["test_map"].mean().item() for model in models)
        return {"test_map": max(plain, mean), "test_map_plain": plain}

    def _precisions(self, model, split, groups, kept):
        """AP in percent of groups of labels {name: indices} on a split, of those that occur there."""
        labels = torch.cat([*groups.values()])
        labels = labels[split.targets[:, labels].any(0)]
        scores = predict(model, split, self.queries[labels], kept, num_workers=self.config.num_workers)
        asked = split.select(labels=labels)
        precisions = 100 * average_precision(scores, asked.targets, known=asked.known)
        return {name: precisions[torch.isin(labels, group)] for name, group in groups.items()}

    def _criterion(self):
        return "test_map" if "best_on_test" in self.config.as_author else "val_map"

    def _end_epoch(self, row):
        """Write down what the epoch brought, and its weights if it is the one that counts so far."""
        position, epoch = self.position, row["epoch"]
        position["history"].append(row)
        counts = epoch_that_counts(position["history"], self._criterion()) == epoch
        if counts or "last_weights" in self.config.as_author:
            self._keep_weights(row)
        self.folder.write_table("history.csv", position["history"])
        scalars = {f"epoch/{name}": figure for name, figure in row.items() if name != "epoch"}
        self.folder.log(epoch * self.images.steps, scalars)
        position |= {"epoch": epoch, "step": 0, "sums": {}, "images": 0, "epoch_seconds": 0.0}
        self._save()
        if is_main():
            print("  ".join(f"{k} {dashed(v, '.4g')}" for k, v in row.items() if k not in UNPRINTED), flush=True)
            if self.on_epoch:
                self.on_epoch(position["history"])

    def _keep_weights(self, row):
        """Write the weights of an epoch that its figures are of: the averaged ones, with best_on_test the better."""
        model = self.trainer.average.module
        if "best_on_test" in self.config.as_author:
            self.folder.save_model(self.trainer.model, self.about, "plain.safetensors")
            model = self.trainer.model if row["test_map_plain"] == row["test_map"] else model
        self.folder.save_model(model, self.about)

    def _stops_early(self):
        history, patience = self.position["history"], self.config.patience
        return bool(patience and history and len(history) - highest(history, self._criterion())["epoch"] >= patience)

    def _save(self):
        now = time.perf_counter()
        position = self.position | {"seconds": self.position["seconds"] + now - self.began}
        about = {"position": position, "config": self.config.as_dict(), "inputs": self.inputs}
        self.folder.save_state(self.trainer.state() | about)
        self.saved = now

    def _say_what_is_held_out(self):
        if names := self._held_names():
            carriers = self.data.val.targets[:, self.held].any(1).sum()
            which = f"{', '.join(names[:FEW])}{', ...' if len(names) > FEW else ''}"
            print(f"held out of the training, to choose by ({len(names)}): {which}; in {carriers} images of val")

    def _held_names(self):
        return [self.data.labels.names[i] for i in self.held]

    def _announce(self):
        """Time a first step, thrown away, and say how long the run will take and how much memory."""
        images, config, val = self.images, self.config, self.data.val
        step = images.time_step(self.trainer, self.queries[self.asked])
        model, some = self.trainer.average.module, val.select(range(min(64, len(val))))
        kept, began = encoded(model, some, self.data, config), time.perf_counter()
        predict(model, some, self.queries[self.asked], kept, num_workers=config.num_workers)
        per_image = (time.perf_counter() - began) / max(1, len(some))
        epochs = config.epochs - self.position["epoch"]
        evaluated = epochs * len(val) + len(self.data.test)
        seconds = step * (epochs * images.steps - self.position["step"]) + per_image * evaluated
        adams = 2 * sum(p.numel() * p.element_size() for p in self.trainer.trained) / 1e6  # its state is not there yet
        if is_main():
            steps = f"{epochs} epochs of {images.steps} steps, {step * 1000:.0f} ms each"
            memory = f"memory about {(peak_memory_mb(config.device) + adams) / 1000:.1f} GB"
            print(f"{steps}, and {evaluated} images to evaluate: about {duration(seconds)}; {memory}", flush=True)
            self._say_what_is_held_out()
