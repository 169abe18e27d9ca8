"""One optimiser step: gradients, schedule, average, sampled labels, and what makes a step cheaper without another result."""

import copy
import math

import pytest
import timm
import torch
from accelerate.optimizer import AcceleratedOptimizer
from safetensors.torch import save_file

from clipdec import Config, alignment_loss, asymmetric_loss, trainer
from clipdec.model import CLIPDecoder
from clipdec.training.build import build_model
from clipdec.towers import ImageTower
from clipdec.trainer import Trainer, parts, precision, sample_labels

B, L, D, S = 12, 30, 8, 6


@pytest.fixture
def batch():
    """(index, tokens, queries, targets, sentences) of 20 training images, 12 of them in the batch."""
    tokens, queries, sentences = torch.randn(20, 5, 192), torch.randn(L, D), torch.randn(20, S)
    return torch.randperm(20)[:B], tokens, queries, torch.rand(20, L) < 0.1, sentences


def make(settings, **changes):
    config = settings("unused", **{"dropout": 0.0, "label_samples": 0} | changes)
    torch.manual_seed(0)
    return Trainer(CLIPDecoder(ImageTower("mini"), torch.zeros(1, D), S, 16, config.train_image_tower, config.dropout), config, 10)


def gradients(trainer, batch):
    """(figures of a step, {name: gradient})."""
    index, tokens, queries, targets, sentences = batch
    inputs = [tokens[part] for part in parts(index, trainer.config.accumulate)]
    figures = trainer.gradients(index, inputs, queries, targets, sentences)
    return figures, {n: p.grad for n, p in trainer.model.named_parameters() if p.grad is not None}


# ---- gradients --------------------------------------------------------------------------------------------------


def test_the_gradient_is_that_of_the_loss(settings, batch):
    trainer = make(settings, alpha=0.5, beta=2.0)
    figures, found = gradients(trainer, batch)
    model = copy.deepcopy(trainer.model)
    model.zero_grad()
    index, tokens, queries, targets, sentences = batch
    logits, image, text = model(tokens[index], queries, sentences[index])
    l_c, l_clip = asymmetric_loss(logits, targets[index]), alignment_loss(image, text, model.logit_scale, targets[index])
    (0.5 * l_clip + 2.0 * l_c).backward()
    expected = {n: p.grad for n, p in model.named_parameters()}
    assert found.keys() == expected.keys()
    for name in found:
        torch.testing.assert_close(found[name], expected[name], rtol=1e-4, atol=1e-6)
    norm = torch.stack([g.square().sum() for g in expected.values()]).sum().sqrt().item()
    assert figures == pytest.approx({"loss": 0.5 * l_clip.item() + 2 * l_c.item(), "l_c": l_c.item(), "l_clip": l_clip.item(), "grad_norm": norm}, rel=1e-4)


@pytest.mark.parametrize("accumulate", [2, 5])  # parts of 6 and 6, and of 3, 3, 2, 2, 2
def test_parts_of_a_batch_add_up_to_the_batch(settings, batch, accumulate):
    whole, found = (gradients(make(settings, alpha=0.0, accumulate=n), batch) for n in (1, accumulate))
    assert whole[0] == pytest.approx(found[0], rel=1e-4)
    for name, gradient in whole[1].items():
        torch.testing.assert_close(found[1][name], gradient, rtol=1e-3, atol=1e-6)


def test_the_alignment_loss_of_parts_is_their_mean(settings, batch):
    index, tokens, _, targets, sentences = batch
    trainer = make(settings, accumulate=5)
    expected = 0.0
    for part in index.tensor_split(5):
        with torch.no_grad():
            _, image, text = trainer.model(tokens[part], torch.randn(1, D), sentences[part])
            expected += len(part) / B * alignment_loss(image, text, trainer.model.logit_scale, targets[part]).item()
    assert gradients(trainer, batch)[0]["l_clip"] == pytest.approx(expected, rel=1e-5)


def test_clipped_gradients_keep_their_direction(settings, batch):
    free, clipped = gradients(make(settings), batch), gradients(make(settings, clip_grad=0.25), batch)
    assert clipped[0] == pytest.approx(free[0], rel=1e-5) and free[0]["grad_norm"] > 1
    for name, gradient in free[1].items():
        torch.testing.assert_close(clipped[1][name], gradient * 0.25 / free[0]["grad_norm"], rtol=1e-3, atol=1e-6)


def test_a_step_is_adams(settings, batch):
    index, tokens, queries, targets, sentences = batch
    for name, kind in (("adam", torch.optim.Adam), ("adamw", torch.optim.AdamW)):
        trainer = make(settings, optimiser=name, weight_decay=0.5)
        model = copy.deepcopy(trainer.model)
        gradients(trainer, batch)
        lr = trainer.schedule.get_last_lr()[0]
        own = dict(model.named_parameters())
        groups = [{"params": [p for p in own.values() if p.ndim > 1], "weight_decay": 0.5}, {"params": [p for p in own.values() if p.ndim <= 1], "weight_decay": 0.0}]
        for key, p in trainer.model.named_parameters():
            own[key].grad = p.grad.clone()
        kind(groups, lr=lr, betas=(0.95, 0.999)).step()  # OneCycle starts at the highest momentum
        figures = trainer.step(index, [tokens[index]], queries, targets, sentences)
        assert figures["lr"] == lr and figures["logit_scale"] == pytest.approx(trainer.model.logit_scale.item())
        for key, p in trainer.model.named_parameters():
            torch.testing.assert_close(p, own[key], rtol=1e-4, atol=1e-6)


def test_a_rehearsal_leaves_no_trace(settings, batch, tmp_path):
    torch.manual_seed(0)
    weights = {k: v.contiguous() for k, v in timm.create_model("test_resnet").state_dict().items()}
    save_file(weights, tmp_path / "t.safetensors")
    config = settings(tmp_path, train_image_tower=True)
    trainer = Trainer(CLIPDecoder(ImageTower("timm:test_resnet", tmp_path / "t.safetensors"), torch.zeros(1, D), S, 16, True), config, 10)  # with batch statistics
    before = copy.deepcopy(trainer.state())
    index, pixels = torch.arange(B), torch.randn(B, 3, 64, 64)
    arguments = (index, [pixels], *batch[2:])
    trainer.rehearse(*arguments)
    after = trainer.state()
    for part in ("model", "average"):
        assert all(torch.equal(before[part][k], after[part][k]) for k in before[part])
    assert after["optimiser"]["state"] == {} and after["schedule"] == before["schedule"]
    trainer.step(*arguments)
    assert any("running_mean" in k and not torch.equal(before["model"][k], v) for k, v in trainer.state()["model"].items())


# ---- cheaper steps ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["mini", "timm:test_vit", "timm:test_resnet"])
def test_recomputed_activations_give_the_same_gradients(name, tmp_path):
    torch.manual_seed(0)
    weights = None
    if name != "mini":
        weights = tmp_path / "t.safetensors"
        save_file({k: v.contiguous() for k, v in timm.create_model(name[5:]).state_dict().items()}, weights)
    pixels, found = torch.randn(4, 3, 128, 128), []
    for recompute in (False, True):
        tower = ImageTower(name, weights).train()
        if name != "mini":
            pixels = torch.randn(4, 3, 160, 160, generator=torch.Generator().manual_seed(1))
        if recompute:
            tower.checkpoint()
        kept = []  # sizes of what the forward pass keeps for the backward pass
        with torch.autograd.graph.saved_tensors_hooks(lambda x, kept=kept: kept.append(x.numel()) or x, lambda x: x):
            out = tower(pixels)[0]
        out.square().mean().backward()
        found.append((sum(kept), {n: p.grad for n, p in tower.named_parameters() if p.grad is not None}))
    assert found[1][0] < 0.7 * found[0][0]
    assert found[0][1].keys() == found[1][1].keys()
    for key, gradient in found[0][1].items():
        torch.testing.assert_close(found[1][1][key], gradient, rtol=1e-3, atol=1e-5)


def test_a_tower_that_cannot_recompute(tmp_path, monkeypatch):
    tower = ImageTower("mini")
    monkeypatch.delattr(type(tower.trunk), "set_grad_checkpointing")
    with pytest.raises(ValueError, match="mini cannot recompute activations .*set checkpoint_tower False"):
        tower.checkpoint()


def test_a_compiled_step_is_the_same_step(settings, batch):
    plain, compiled = gradients(make(settings), batch), gradients(make(settings, compile=True), batch)
    assert plain[0] == pytest.approx(compiled[0], rel=1e-3)
    for name, gradient in plain[1].items():
        torch.testing.assert_close(compiled[1][name], gradient, rtol=1e-2, atol=1e-4)


def test_bfloat16_steps_are_nearly_the_same(settings, batch, monkeypatch):
    plain = gradients(make(settings), batch)
    monkeypatch.setattr(trainer, "precision", lambda config: "bf16")  # also where the processor is slow with it
    mixed = make(settings)
    dtypes = []
    mixed.model.decoder.linear1.register_forward_hook(lambda module, inputs, output: dtypes.append(output.dtype))
    half = gradients(mixed, batch)
    assert dtypes == [torch.bfloat16] and all(g.dtype == torch.float32 for g in half[1].values())
    assert half[0] == pytest.approx(plain[0], rel=0.05)
    cosine = torch.nn.functional.cosine_similarity(*(torch.cat([g.flatten() for g in x[1].values()]) for x in (plain, half)), dim=0)
    assert cosine > 0.99
    assert make(settings).accelerator.mixed_precision == "bf16"
    monkeypatch.undo()
    assert make(settings).accelerator.mixed_precision == "no"  # not that of the run before


def with_scaler(trainer, scale):
    """The loss scaling of float16, here on the CPU in float32."""
    scaler = trainer.accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=scale)
    trainer.optimiser = AcceleratedOptimizer(trainer.optimiser.optimizer, device_placement=False, scaler=scaler)
    trainer.accelerator._optimizers = [trainer.optimiser]
    trainer.accelerator.native_amp, trainer.accelerator.state._mixed_precision = True, "fp16"
    return trainer


def test_scaled_losses_give_the_same_step(settings, batch):
    index, tokens, queries, targets, sentences = batch
    plain, scaled = make(settings), with_scaler(make(settings), 4096.0)
    scaled.rehearse(index, [tokens[index]], queries, targets, sentences)
    for _ in range(2):
        figures = [trainer.step(index, [tokens[index]], queries, targets, sentences) for trainer in (plain, scaled)]
        assert figures[0] == pytest.approx(figures[1], rel=1e-5)
    for a, b in zip(plain.model.parameters(), scaled.model.parameters()):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)
    state = scaled.state()
    assert state["scaler"]["scale"] == 4096.0 and state["scaler"]["_growth_tracker"] == 2
    again = with_scaler(make(settings), 1.0)
    again.load(state)
    assert again.accelerator.scaler.get_scale() == 4096.0


def test_a_step_whose_scaled_gradients_overflow_is_left_out(settings, batch):
    index, tokens, queries, targets, sentences = batch
    trainer = with_scaler(make(settings, beta=1000.0), 2.0**127)
    before, rate = copy.deepcopy(trainer.model.state_dict()), trainer.schedule.get_last_lr()
    figures = trainer.step(index, [tokens[index]], queries, targets, sentences)
    assert not math.isfinite(figures["grad_norm"]) and math.isfinite(figures["loss"])
    assert all(torch.equal(before[k], v) for k, v in trainer.model.state_dict().items())
    assert trainer.schedule.get_last_lr() == rate and trainer.average.n_averaged == 0
    assert trainer.accelerator.scaler.get_scale() == 2.0**126


@pytest.mark.parametrize(
    "device, capability, bfloat16, expected",
    [("cpu", "AVX2", None, "no"), ("cpu", "AVX512", None, "bf16"), ("cuda", None, True, "bf16"), ("cuda:1", None, False, "fp16"), ("mps", None, None, "bf16")],
)
def test_precision_is_what_the_device_has(monkeypatch, device, capability, bfloat16, expected):
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: bfloat16)
    config = Config(amp=True)
    config.device = device
    assert precision(config) == expected
    config.amp = False
    assert precision(config) == "no"


# ---- what the author's code does otherwise ----------------------------------------------------------------------


def test_what_is_not_trained_stays(settings, batch):
    config = settings("unused", train_projections=False, learn_scale=False)
    model = build_model(config, torch.zeros(1, D))
    assert model.logit_scale.item() == pytest.approx(1.1052, rel=1e-4)  # exp(0.1)
    idle = {n for n, p in model.named_parameters() if not p.requires_grad}
    assert idle == {"image_proj.weight", "text_proj.weight", "log_scale"}
    trained = {id(p) for group in Trainer(model, config, 3).optimiser.param_groups for p in group["params"]}
    assert trained == {id(p) for n, p in model.named_parameters() if n not in idle}


def test_equal_label_sets_are_negatives_without_the_mask(settings, batch):
    index, tokens, queries, targets, sentences = batch
    targets = targets.clone()
    targets[index[:6]] = targets[index[0]].clone()
    found = [gradients(make(settings, mask_equal=mask), (index, tokens, queries, targets, sentences))[0]["l_clip"] for mask in (True, False)]
    model = make(settings).model
    with torch.no_grad():
        _, image, text = model(tokens[index], queries, sentences[index])
        expected = [alignment_loss(image, text, model.logit_scale, sets).item() for sets in (targets[index], None)]
    assert found == pytest.approx(expected, rel=1e-5) and found[0] < found[1]


# ---- schedule, average, weight decay ----------------------------------------------------------------------------


@pytest.mark.parametrize("steps", [1, 2, 3, 4, 5, 6, 10])
def test_the_learning_rate_rises_and_falls_at_any_length(settings, tmp_path, steps):
    config = settings(tmp_path)
    trainer = Trainer(CLIPDecoder(ImageTower("mini"), torch.zeros(1, 4), 4, 16), config, steps)
    rates = []
    for _ in range(steps):
        rates.append(trainer.optimiser.param_groups[0]["lr"])
        trainer.optimiser.step()
        if len(rates) < steps:
            trainer.schedule.step()
    assert all(0 < r <= config.lr * (1 + 1e-6) for r in rates)
    if steps == 10:
        assert rates[0] < rates[1] == pytest.approx(config.lr) and rates[1:] == sorted(rates[1:], reverse=True)


def test_the_average_follows_the_weights(settings, tmp_path):
    model = CLIPDecoder(ImageTower("mini"), torch.zeros(1, 4), 4, 16)
    trainer = Trainer(model, settings(tmp_path, ema_decay=0.3), 3)
    expected = None
    for value, decay in ((1.0, None), (2.0, 2 / 11), (5.0, 3 / 12), (-4.0, 0.3), (3.0, 0.3)):  # (1 + n) / (10 + n) up to 0.3
        with torch.no_grad():
            model.decoder.output.bias.fill_(value)
        trainer.average.update_parameters(model)
        expected = value if expected is None else decay * expected + (1 - decay) * value
    assert trainer.average.module.decoder.output.bias.item() == pytest.approx(expected)


def test_biases_norms_and_the_scale_are_not_decayed(settings, tmp_path):
    model = CLIPDecoder(ImageTower("mini"), torch.zeros(1, 4), 4, 16)
    decayed, plain = Trainer(model, settings(tmp_path, weight_decay=0.3), 3).optimiser.param_groups
    names = {p: n for n, p in model.named_parameters()}
    assert (decayed["weight_decay"], plain["weight_decay"]) == (0.3, 0.0)
    assert all(names[p].endswith(".weight") and "norm" not in names[p] for p in decayed["params"])
    assert all(names[p].endswith(".bias") or "norm" in names[p] or names[p] == "log_scale" for p in plain["params"])
    assert len(decayed["params"]) + len(plain["params"]) == len(names)


# ---- sampled labels ---------------------------------------------------------------------------------------------


def test_sampled_labels_hold_all_that_are_present():
    targets = torch.zeros(4, 50, dtype=torch.bool)
    targets[[0, 1, 2, 2], [7, 3, 7, 49]] = True
    for count in (1, 5, 46):
        labels, weights = sample_labels(targets, count)
        assert torch.equal(weights, torch.ones(3 + count))
        assert len(labels) == len(set(labels.tolist())) == 3 + count
        assert set(labels.tolist()) >= {3, 7, 49}


@pytest.mark.parametrize("count", [0, 47, 1000])
def test_all_labels(count):
    targets = torch.zeros(4, 50, dtype=torch.bool)
    targets[[0, 1, 2], [7, 3, 49]] = True
    assert sorted(sample_labels(targets, count)[0].tolist()) == list(range(50))


def test_batches_with_every_label_or_none():
    for targets, count in ((torch.ones(2, 5), 5), (torch.zeros(2, 5), 3)):
        assert len(sample_labels(targets.bool(), 3, weighted=True)[0]) == count


def test_weights_give_the_full_loss_in_expectation():
    torch.manual_seed(0)
    logits, targets = torch.randn(4, 30), torch.zeros(4, 30, dtype=torch.bool)
    targets[[0, 1, 2], [7, 3, 29]] = True
    losses = []
    for _ in range(4000):
        labels, weights = sample_labels(targets, 6, weighted=True)
        losses.append(asymmetric_loss(logits[:, labels], targets[:, labels], weights=weights))
    losses, full = torch.stack(losses), asymmetric_loss(logits, targets)
    assert (losses.mean() - full).abs() < 5 * losses.std() / 4000**0.5 and losses.std() > 0.01 * full


def test_absent_labels_are_sampled_alike():
    targets = torch.zeros(2, 12, dtype=torch.bool)
    targets[0, 4] = True
    counts = torch.bincount(torch.cat([sample_labels(targets, 4)[0] for _ in range(4000)]), minlength=12)
    assert counts[4] == 4000
    absent = torch.arange(12) != 4
    assert (counts[absent] / 4000 - 4 / 11).abs().max() < 0.04  # five standard deviations
