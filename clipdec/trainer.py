"""`Trainer`: the loss of a batch, and one optimiser step at a time, in one process or several."""

import math
from contextlib import nullcontext

import timm
import torch
from accelerate import Accelerator, DistributedDataParallelKwargs
from accelerate.state import AcceleratorState
from torch import nn
from torch.optim.swa_utils import AveragedModel

from clipdec.losses import CombinedLoss
from clipdec.training.processes import add_up, gather, place, rank_and_count, share


class Objective(nn.Module):
    """Model and loss in one module, so that the mixed precision and the gradient exchange of accelerate cover both."""

    def __init__(self, model, config):
        super().__init__()
        self.model, self.loss = model, CombinedLoss(config.alpha, config.beta, config.mask_equal)

    def forward(self, images, queries, sentences, targets, label_sets, weights):
        """(L, L_c, L_clip) of this process's share of a batch; the mean over the processes is that of the batch.

        Args:
            images: this process's pixels [b, 3, H, W] or tokens [b, N, C].
            queries: vectors [K, D] of the labels decoded in this step.
            sentences: text vectors [b, S] of the images.
            targets: [b, K].
            label_sets: targets [B, L] of the images of all processes, which are the negatives of L_clip.
            weights: [K], as in `asymmetric_loss`.
        """
        logits, image, text = self.model(images, queries, sentences)
        with torch.autocast(logits.device.type, enabled=False):
            image, text = gather(image.float(), len(label_sets)), gather(text.float(), len(label_sets))
            weights = weights * (len(targets) * rank_and_count()[1] / len(label_sets))  # shares may differ by an image
            loss, l_c, l_clip = self.loss(logits, targets, image, text, self.model.logit_scale, label_sets, weights)
        return loss, l_c.detach(), l_clip.detach()


class Trainer:
    """Model, average, optimiser and schedule of a run of `steps` steps.

    Args: model, a CLIPDecoder; config, a Config.
    """

    def __init__(self, model, config, steps):
        self.model, self.config = model, config
        unused = config.train_image_tower or not (config.alpha and config.beta)  # weights that the loss may not reach
        AcceleratorState._reset_state(rank_and_count()[1] == 1)  # it would keep device and precision of the first run in this process
        self.accelerator = Accelerator(
            cpu=config.device == "cpu",
            mixed_precision=precision(config),
            device_placement=False,
            kwargs_handlers=[DistributedDataParallelKwargs(find_unused_parameters=unused)],
        )
        if rank_and_count()[1] > 1 and config.device != "cpu":
            timm.layers.convert_sync_batchnorm(model)
        self.average = AveragedModel(model, multi_avg_fn=_moving_average(config.ema_decay))
        self.trained = [p for p in model.parameters() if p.requires_grad]
        groups = [  # biases, norms and the logit scale are not decayed
            {"params": [p for p in self.trained if p.ndim > 1], "weight_decay": config.weight_decay},
            {"params": [p for p in self.trained if p.ndim <= 1], "weight_decay": 0.0},
        ]
        optimiser = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[config.optimiser](groups, lr=config.lr)
        # pct_start of exactly 0.2 divides by 0 in a run of 5 steps
        self.schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, config.lr, total_steps=steps, pct_start=0.2 + 1e-9)
        if config.compile:
            model.compile()
        self.objective, self.optimiser = self.accelerator.prepare(Objective(model, config), optimiser)

    def step(self, index, inputs, queries, targets, sentences):
        """One optimiser step.

        Args:
            index: numbers [B] of the images of all processes.
            inputs: this process's images in `accumulate` parts, pixels or tokens, see `parts`.
            queries: vectors [L, D] of the labels asked in training.
            targets: bool [M, L] of all training images; sentences: text vectors [M, S] of theirs.

        Returns: {loss, l_c, l_clip, grad_norm, logit_scale, lr}, numbers.
        Raises: FloatingPointError if the loss or the gradient is not finite. The weights are still those before the step.
        """
        figures = self.gradients(index, inputs, queries, targets, sentences)
        lr = self.schedule.get_last_lr()[0]
        if not all(map(math.isfinite, figures.values())) and not (self.accelerator.scaler and math.isfinite(figures["loss"])):
            raise FloatingPointError(", ".join(f"{name} {value:.4g}" for name, value in figures.items()))
        self.optimiser.step()
        if not self.optimiser.step_was_skipped:  # float16 gradients that overflowed; the scaler tries a smaller scale
            self.schedule.step()
            self.average.update_parameters(self.model)
        return figures | {"logit_scale": self.model.logit_scale.item(), "lr": lr}

    def gradients(self, index, inputs, queries, targets, sentences):
        """The gradients of a step, averaged over processes and clipped, and {loss, l_c, l_clip, grad_norm}. Arguments as `step`."""
        config, device = self.config, self.config.device
        self.objective.train()
        self.optimiser.zero_grad()
        labels, weights = sample_labels(targets[index], config.label_samples, config.weight_samples)
        sums = torch.zeros(2, device=device)
        everyone = index.tensor_split(config.accumulate)
        for number, (part, images) in enumerate(zip(everyone, inputs), 1):
            mine = share(part)
            self.model.decoder.dropout.place = (*place(len(part)), len(part))
            with self.accelerator.no_sync(self.objective) if number < len(everyone) else nullcontext():
                loss, *terms = self.objective(
                    images.to(device, non_blocking=True), queries[labels], sentences[mine].to(device), targets[mine][:, labels].to(device), targets[part].to(device), weights.to(device)
                )
                self.accelerator.backward(loss * (len(part) / len(index)))
            sums += torch.stack(terms) * (len(part) / len(index))
        norm = self.accelerator.clip_grad_norm_(self.trained, config.clip_grad or math.inf)
        l_c, l_clip = (add_up(sums) / rank_and_count()[1]).tolist()
        return {"loss": config.alpha * l_clip + config.beta * l_c, "l_c": l_c, "l_clip": l_clip, "grad_norm": float(norm)}

    def rehearse(self, *arguments):
        """A step without its update: to time it, or to see early that memory is short. It leaves no trace."""
        buffers = [b.clone() for b in self.model.buffers()]
        scaler = self.accelerator.scaler
        state = scaler and scaler.state_dict()
        self.gradients(*arguments)
        self.optimiser.zero_grad()
        for buffer, value in zip(self.model.buffers(), buffers):
            buffer.copy_(value)
        if scaler:
            scaler.update()
            scaler.load_state_dict(state)

    def state(self):
        """All that a run needs to go on from here."""
        parts = {k: getattr(self, k).state_dict() for k in ("model", "average", "optimiser", "schedule")}
        return parts | {"scaler": self.accelerator.scaler.state_dict() if self.accelerator.scaler else {}}

    def load(self, state):
        for k in ("model", "average", "optimiser", "schedule"):
            getattr(self, k).load_state_dict(state[k])
        if self.accelerator.scaler and state["scaler"]:
            self.accelerator.scaler.load_state_dict(state["scaler"])


def parts(index, accumulate):
    """This process's images of a batch `index` [B], in the parts that `Trainer.step` takes one after the other."""
    return [share(part) for part in index.tensor_split(accumulate)]


def precision(config):
    """The mixed precision of a run, as accelerate names it: bfloat16 where the device computes with it, else float16.

    A processor without either is several times slower with them than in float32, so it stays with that.
    """
    if not config.amp:
        return "no"
    if config.device == "cpu":
        return "bf16" if torch.backends.cpu.get_cpu_capability() == "AVX512" else "no"
    return "bf16" if not config.device.startswith("cuda") or torch.cuda.is_bf16_supported(including_emulation=False) else "fp16"


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


def _moving_average(decay):
    """An exponential moving average for AveragedModel; its decay rises to `decay`, so that a short run forgets its random start."""

    def update(averaged, current, count):
        torch._foreach_lerp_(averaged, current, 1 - min(decay, (1 + count.item()) / (10 + count.item())))

    return update
