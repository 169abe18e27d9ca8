"""The step of trainer.py in several processes, in mixed precision, in parts, and with a state to go on from."""

import math
from contextlib import nullcontext

import timm
import torch
from accelerate import Accelerator, DistributedDataParallelKwargs
from accelerate.state import AcceleratorState
from torch import nn

from clipdec.trainer import Trainer, sample_labels
from clipdec.training.build import build_loss
from clipdec.training.processes import add_up, gather, rank_and_count, share
from clipdec.training.sentences import trained_tower


class Objective(nn.Module):
    """Model, loss and, where it is trained, the text tower of the sentences in one module, so that the mixed precision
    and the gradient exchange of accelerate cover all.
    """

    def __init__(self, model, loss, sentence_tower):
        super().__init__()
        self.model, self.loss, self.sentence_tower = model, loss, sentence_tower

    def forward(self, images, queries, sentences, targets, label_sets, weights):
        """(L, L_c, L_clip) of this process's share of a batch; the mean over the processes is that of the batch.

        Args: images, pixels [b, 3, H, W] or tokens [b, N, C], sentences [b, S] (token ids [b, T] where their
            tower is trained) and targets [b, K] of this process; queries [K, D] and weights, [K] or [b, K], of the
            labels decoded;
            label_sets, targets [B, L] of the images of all processes, which are the negatives of L_clip.
        """
        if self.sentence_tower:
            sentences = self.sentence_tower(sentences)
        logits, image, text = self.model(images, queries, sentences)
        with torch.autocast(logits.device.type, enabled=False):
            image, text = (gather(vectors.float(), len(label_sets)) for vectors in (image, text))
            weights = weights * (len(targets) * rank_and_count()[1] / len(label_sets))  # shares may differ by an image
            scale = self.model.logit_scale
            loss, l_c, l_clip = self.loss(logits, targets, image, text, scale, label_sets, weights)
        return loss, l_c.detach(), l_clip.detach()


class AcceleratedTrainer(Trainer):
    """The Trainer of a run: its settings from a Config, `steps` steps.

    Of a batch it takes this process's share of the images only, in `accumulate` parts, one after the other.
    """

    def __init__(self, model, config, steps):
        names = ("optimiser", "lr", "weight_decay", "clip_grad", "ema_decay", "label_samples", "weight_samples")
        if rank_and_count()[1] > 1 and config.device != "cpu":
            timm.layers.convert_sync_batchnorm(model)
        self.sentence_tower = trained_tower(config)
        options = {name: getattr(config, name) for name in names}
        if "sum_loss" in config.as_author and config.optimiser == "adam":  # which adds the decay to the gradient
            options["weight_decay"] /= config.batch_size
        further = [*self.sentence_tower.parameters()] if self.sentence_tower else []
        super().__init__(model, steps, build_loss(config), further=further, **options)
        self.device, self.accumulate = config.device, config.accumulate
        AcceleratorState._reset_state(rank_and_count()[1] == 1)  # it would keep device and precision of an earlier run
        unused = config.train_image_tower or further or not (config.alpha and config.beta)  # weights, by the loss
        self.accelerator = Accelerator(
            cpu=config.device == "cpu",
            mixed_precision=precision(config),
            device_placement=False,
            kwargs_handlers=[DistributedDataParallelKwargs(find_unused_parameters=bool(unused))],
        )
        if config.compile:
            model.compile()
        objective = Objective(model, self.loss, self.sentence_tower)
        self.objective, self.optimiser = self.accelerator.prepare(objective, self.optimiser)

    def gradients(self, images, queries, sentences, targets, known=None):
        """As the Trainer's; `images` are this process's parts (see `parts`), the other arguments those of all
        processes.
        """
        self.objective.train()
        self.optimiser.zero_grad()
        # alike in all processes
        labels, weights = sample_labels(targets, self.label_samples, self.weight_samples, known)
        if rank := rank_and_count()[0]:
            torch.manual_seed(torch.initial_seed() + rank)  # for dropout masks of its own
        queries = queries[labels]
        parts, sums = torch.arange(len(targets)).tensor_split(self.accumulate), torch.zeros(2, device=self.device)
        for number, (part, inputs) in enumerate(zip(parts, images), 1):
            mine, whole = share(part), targets[part].to(self.device)
            weighed = weights if known is None else weights * known[mine][:, labels]  # [K] or [b, K]
            rows = inputs, sentences[mine], targets[mine][:, labels], weighed
            inputs, texts, truth, weighed = (x.to(self.device, non_blocking=True) for x in rows)
            with self.accelerator.no_sync(self.objective) if number < len(parts) else nullcontext():
                loss, *terms = self.objective(inputs, queries, texts, truth, whole, weighed)
                self.accelerator.backward(loss * (len(part) / len(targets)))
            sums += torch.stack(terms) * (len(part) / len(targets))
        norm = self.accelerator.clip_grad_norm_(self.trained, self.clip_grad or math.inf)
        l_c, l_clip = (add_up(sums) / rank_and_count()[1]).tolist()
        loss = self.loss.alpha * l_clip + self.loss.beta * l_c
        return {"loss": loss, "l_c": l_c, "l_clip": l_clip, "grad_norm": float(norm)}

    def check(self, figures):
        """As the Trainer's; float16 gradients that overflow are no error: the scaler tries a smaller scale."""
        if not (self.accelerator.scaler and math.isfinite(figures["loss"])):
            super().check(figures)

    def advance(self):
        if not self.optimiser.step_was_skipped:  # because of such gradients
            super().advance()

    def rehearse(self, *batch):
        """A step without its update: to time it, or to see early that memory is short. It leaves no trace."""
        buffers = [b.clone() for b in self.model.buffers()]
        scaler = self.accelerator.scaler
        state = scaler and scaler.state_dict()
        self.gradients(*batch)
        self.optimiser.zero_grad()
        for buffer, value in zip(self.model.buffers(), buffers):
            buffer.copy_(value)
        if scaler:
            scaler.update()
            scaler.load_state_dict(state)

    def state(self):
        """All that a run needs to go on from here."""
        parts = {k: getattr(self, k).state_dict() for k in self._parts()}
        return parts | {"scaler": self.accelerator.scaler.state_dict() if self.accelerator.scaler else {}}

    def load(self, state):
        for k in self._parts():
            getattr(self, k).load_state_dict(state[k])
        if self.accelerator.scaler and state["scaler"]:
            self.accelerator.scaler.load_state_dict(state["scaler"])

    def _parts(self):
        """Names of the parts that have a state."""
        return ["model", "average", "optimiser", "schedule"] + (["sentence_tower"] if self.sentence_tower else [])


def precision(config):
    """The mixed precision of a run, as accelerate names it: bfloat16 where the device computes with it, else float16.

    A processor without either is several times slower with them than in float32, so it stays with that; so does mps,
    where older versions of macOS and torch refuse them.
    """
    if not config.amp or config.device.startswith("mps"):
        return "no"
    if config.device == "cpu":
        return "bf16" if torch.backends.cpu.get_cpu_capability() == "AVX512" else "no"
    return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp16"
