"""One training step of CLIP-Decoder: which labels are decoded, forward, combined loss, backward, optimiser, average."""

import math

import torch
from torch.optim.swa_utils import AveragedModel

from clipdec.losses import CombinedLoss

OPTIMISERS = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}


class Trainer:
    """Trains a CLIPDecoder step by step: in one process, in the precision of its weights.

    Args:
        model, loss: a CLIPDecoder, a CombinedLoss.
        steps: how many steps the learning rate, OneCycle's, is laid over.
        optimiser, lr: "adam" or "adamw", its peak learning rate.
        weight_decay: of matrices; biases, norms and the logit scale are not decayed.
        clip_grad: largest norm of the gradient; 0: not clipped.
        ema_decay: decay of `average`, the moving average of the weights, which is what is evaluated.
        label_samples, weight_samples: as count and weighted of `sample_labels`.
        further: parameters trained beside the model's, not decayed and no part of the average.
    """

    def __init__(
        self, model, steps, loss=None, optimiser="adamw", lr=1e-3, weight_decay=1e-2, clip_grad=0.0, ema_decay=0.99,
        label_samples=0, weight_samples=False, further=(),
    ):  # fmt: skip
        self.model, self.loss = model, loss or CombinedLoss()
        self.clip_grad, self.label_samples, self.weight_samples = clip_grad, label_samples, weight_samples
        own = [p for p in model.parameters() if p.requires_grad]
        self.trained = [*own, *further]
        self.optimiser, self.schedule = optimiser_with_schedule(optimiser, own, steps, lr, weight_decay, further)
        self.average = AveragedModel(model, multi_avg_fn=moving_average(ema_decay))

    def step(self, images, queries, sentences, targets, known=None):
        """One optimiser step on a batch.

        Args:
            images: pixels [B, 3, H, W] or tokens [B, N, C].
            queries: vectors [L, D] of the labels asked in training.
            sentences: text vectors [B, S] of the images.
            targets: bool [B, L]; known: the same, of what L_c is taken, None: of all.

        Returns: {loss, l_c, l_clip, grad_norm, logit_scale, lr}, numbers.
        Raises: FloatingPointError if the loss or the gradient is not finite. The weights are then those of before.
        """
        lr = self.schedule.get_last_lr()[0]
        figures = self.gradients(images, queries, sentences, targets, known)
        self.check(figures)
        self.optimiser.step()
        self.advance()
        return figures | {"logit_scale": self.model.logit_scale.item(), "lr": lr}

    def gradients(self, images, queries, sentences, targets, known=None):
        """The clipped gradients of a step, and {loss, l_c, l_clip, grad_norm}. Arguments as `step`."""
        self.model.train()
        self.optimiser.zero_grad()
        labels, weights = sample_labels(targets, self.label_samples, self.weight_samples, known)
        weights = weights if known is None else weights * known[:, labels]  # [K] or [B, K]
        logits, image, text = self.model(images, queries[labels], sentences)  # [B, K], [B, 512], [B, 512]
        scale = self.model.logit_scale
        loss, l_c, l_clip = self.loss(logits, targets[:, labels], image, text, scale, targets, weights)
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(self.trained, self.clip_grad or math.inf)
        return {"loss": loss.item(), "l_c": l_c.item(), "l_clip": l_clip.item(), "grad_norm": norm.item()}

    def check(self, figures):
        if not all(map(math.isfinite, figures.values())):
            raise FloatingPointError(", ".join(f"{name} {value:.4g}" for name, value in figures.items()))

    def advance(self):
        self.schedule.step()
        self.average.update_parameters(self.model)


def optimiser_with_schedule(name, parameters, steps, lr, weight_decay, further=()):
    """(optimiser, its OneCycle): matrices among the `parameters` decay; biases, norms and `further` ones do not."""
    groups = [
        {"params": [p for p in parameters if p.ndim > 1], "weight_decay": weight_decay},
        {"params": [*(p for p in parameters if p.ndim <= 1), *further], "weight_decay": 0.0},
    ]
    optimiser = OPTIMISERS[name](groups, lr=lr)
    warm_up = 0.2 + 1e-9  # exactly 0.2 divides by 0 in a run of 5 steps
    return optimiser, torch.optim.lr_scheduler.OneCycleLR(optimiser, lr, total_steps=steps, pct_start=warm_up)


def sample_labels(targets, count, weighted=False, known=None):
    """Labels to decode in a step: every one that is positive in the batch, and `count` of the others (0: all of them).

    Args:
        targets: bool [B, L].
        weighted: whether the sampled labels stand for all absent ones, so that the expectation of the loss is that of
            the full one. Unweighted, absent labels weigh less than in the full loss.
        known: bool [B, L]; a label that is known of no image of the batch is not decoded. None: all are known.

    Returns: (indices [K], weights [K] for `asymmetric_loss`).
    """
    others = ~targets.any(0) if known is None else known.any(0) & ~targets.any(0)
    present, absent = targets.any(0).nonzero().flatten(), others.nonzero().flatten()
    sample = absent[torch.randperm(len(absent))[:count]] if count else absent
    weight = len(absent) / max(1, len(sample)) if weighted else 1.0
    weights = torch.cat([torch.ones(len(present)), torch.full((len(sample),), weight)])
    return torch.cat([present, sample]), weights.to(targets.device)


def moving_average(decay):
    """An exponential moving average for AveragedModel; its decay rises to `decay`: a short run forgets its start."""

    def update(averaged, current, count):
        own = [pair for pair in zip(averaged, current) if pair[0].data_ptr() != pair[1].data_ptr()]  # no shared tower
        torch._foreach_lerp_(*map(list, zip(*own)), 1 - min(decay, (1 + count.item()) / (10 + count.item())))

    return update
