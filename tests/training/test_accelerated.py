"""The step of a run: the plain one in parts, in mixed precision, with loss scaling, compiled, as the author's code."""

import copy
import math

import pytest
import torch
from accelerate.optimizer import AcceleratedOptimizer
from helpers import assert_equal, outputs, timm_file

from clipdec import CLIPDecoder, Config, alignment_loss
from clipdec.towers import ImageTower
from clipdec.trainer import Trainer
from clipdec.training import accelerated
from clipdec.training.accelerated import AcceleratedTrainer, precision
from clipdec.training.batches import parts
from clipdec.training.build import build_loss, build_model, recompute_activations

B, L, D, S = 12, 30, 8, 6
NAMES = ("optimiser", "lr", "weight_decay", "clip_grad", "ema_decay", "label_samples", "weight_samples")


@pytest.fixture
def batch():
    """The arguments of a plain step: tokens, queries, sentences, targets."""
    return torch.randn(B, 5, 192), torch.randn(L, D), torch.randn(B, S), torch.rand(B, L) < 0.1


def new_model(config):
    tower = ImageTower("mini")  # before the seed: loading it draws random numbers, the first time
    torch.manual_seed(0)
    return CLIPDecoder(tower, torch.zeros(1, D), S, 16, config.train_image_tower, config.dropout)


@pytest.fixture
def make(settings):
    """make(**changes): a trainer of ten steps, by default without dropout and with all labels."""

    def trainer(**changes):
        config = settings("unused", **{"dropout": 0.0, "label_samples": 0} | changes)
        return AcceleratedTrainer(new_model(config), config, 10)

    return trainer


def in_parts(trainer, batch):
    tokens, *others = batch
    return [tokens[part] for part in parts(torch.arange(len(tokens)), trainer.accumulate)], *others


def by_name(model):
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


def gradients(trainer, batch):
    """(figures of a step, {name: gradient})."""
    return trainer.gradients(*in_parts(trainer, batch)), by_name(trainer.model)


def test_a_step_is_the_plain_one(settings, make, batch):
    changes = {"dropout": 0.2, "label_samples": 5, "weight_samples": True, "clip_grad": 0.5, "lr": 1e-2, "alpha": 0.5}
    config = settings("unused", **changes)
    plain = Trainer(new_model(config), 10, build_loss(config), **{name: getattr(config, name) for name in NAMES})
    mine = make(**changes)
    for step in range(3):
        torch.manual_seed(step)
        expected = plain.step(*batch)
        torch.manual_seed(step)
        assert mine.step(*in_parts(mine, batch)) == pytest.approx(expected, rel=1e-5)
    for part in ("model", "average"):
        a, b = (dict(getattr(trainer, part).named_parameters()) for trainer in (mine, plain))
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("accumulate", [2, 5])  # parts of 6 and 6, and of 3, 3, 2, 2, 2
def test_parts_of_a_batch_add_up_to_the_batch(make, batch, accumulate):
    whole, found = (gradients(make(alpha=0.0, accumulate=n), batch) for n in (1, accumulate))
    assert whole[0] == pytest.approx(found[0], rel=1e-4)
    torch.testing.assert_close(found[1], whole[1], rtol=1e-3, atol=1e-6)


def test_the_alignment_loss_of_parts_is_their_mean(make, batch):
    tokens, _, sentences, targets = batch
    trainer, expected = make(accumulate=5), 0.0
    for part in torch.arange(B).tensor_split(5):
        with torch.no_grad():
            _, image, text = trainer.model(tokens[part], torch.randn(1, D), sentences[part])
            loss = alignment_loss(image, text, trainer.model.logit_scale, targets[part]).item()
            expected += len(part) / B * loss
    assert gradients(trainer, batch)[0]["l_clip"] == pytest.approx(expected, rel=1e-5)


def test_a_rehearsal_leaves_no_trace(settings, batch, tmp_path):
    tower = ImageTower("timm:test_resnet", timm_file("test_resnet", tmp_path)[1])  # with batch statistics
    config = settings(tmp_path, train_image_tower=True)
    trainer = AcceleratedTrainer(CLIPDecoder(tower, torch.zeros(1, D), S, 16, True), config, 10)
    before, arguments = copy.deepcopy(trainer.state()), ([torch.randn(B, 3, 64, 64)], *batch[1:])
    trainer.rehearse(*arguments)
    after = trainer.state()
    assert_equal([after["model"], after["average"]], [before["model"], before["average"]])
    assert after["optimiser"]["state"] == {} and after["schedule"] == before["schedule"]
    trainer.step(*arguments)
    means = {k: v for k, v in trainer.state()["model"].items() if "running_mean" in k}
    assert any(not torch.equal(before["model"][k], v) for k, v in means.items())


# ---- cheaper steps ----------------------------------------------------------------------------------------------


def kept_and_gradients(tower, pixels):
    """(How many numbers the forward pass keeps for the backward pass, {name: gradient})."""
    sizes = []

    def keep(x):
        sizes.append(x.numel())
        return x

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
        tokens = tower(pixels)[0]
    tokens.square().mean().backward()
    return sum(sizes), by_name(tower)


@pytest.mark.parametrize("name, size", [("mini", 128), ("timm:test_vit", 160), ("timm:test_resnet", 160)])
def test_recomputed_activations_give_the_same_gradients(name, size, tmp_path):
    weights = None if name == "mini" else timm_file(name[5:], tmp_path)[1]
    plain, recomputing = (ImageTower(name, weights).train() for _ in range(2))
    recompute_activations(recomputing)
    pixels = torch.randn(4, 3, size, size)
    (kept, expected), (less, found) = (kept_and_gradients(tower, pixels) for tower in (plain, recomputing))
    assert less < 0.7 * kept
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-5)


def test_a_tower_that_cannot_recompute(monkeypatch):
    tower = ImageTower("mini")
    monkeypatch.delattr(type(tower.trunk), "set_grad_checkpointing")
    with pytest.raises(ValueError, match="mini cannot recompute activations .*set checkpoint_tower False"):
        recompute_activations(tower)


def test_a_compiled_step_is_the_same_step(make, batch):
    plain, compiled = gradients(make(), batch), gradients(make(compile=True), batch)
    assert plain[0] == pytest.approx(compiled[0], rel=1e-3)
    torch.testing.assert_close(compiled[1], plain[1], rtol=1e-2, atol=1e-4)


def test_bfloat16_steps_are_nearly_the_same(make, batch, monkeypatch):
    plain = gradients(make(), batch)
    monkeypatch.setattr(accelerated, "precision", lambda config: "bf16")  # also where the processor is slow with it
    mixed = make()
    hidden, half = outputs(mixed.model.decoder.linear1), gradients(mixed, batch)
    assert [x.dtype for x in hidden] == [torch.bfloat16] and all(g.dtype == torch.float32 for g in half[1].values())
    assert half[0] == pytest.approx(plain[0], rel=0.05)
    a, b = (torch.cat([g.flatten() for g in x[1].values()]) for x in (plain, half))
    assert torch.nn.functional.cosine_similarity(a, b, dim=0) > 0.99
    assert make().accelerator.mixed_precision == "bf16"
    monkeypatch.undo()
    assert make().accelerator.mixed_precision == "no"  # not that of the run before


def with_scaler(trainer, scale):
    """The loss scaling of float16, here on the CPU in float32."""
    scaler = trainer.accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=scale)
    trainer.optimiser = AcceleratedOptimizer(trainer.optimiser.optimizer, device_placement=False, scaler=scaler)
    trainer.accelerator._optimizers = [trainer.optimiser]
    trainer.accelerator.native_amp, trainer.accelerator.state._mixed_precision = True, "fp16"
    return trainer


def test_scaled_losses_give_the_same_step(make, batch):
    plain, scaled = make(), with_scaler(make(), 4096.0)
    scaled.rehearse(*in_parts(scaled, batch))
    for _ in range(2):
        figures = [trainer.step(*in_parts(trainer, batch)) for trainer in (plain, scaled)]
        assert figures[0] == pytest.approx(figures[1], rel=1e-5)
    torch.testing.assert_close(plain.model.state_dict(), scaled.model.state_dict(), rtol=1e-4, atol=1e-6)
    state = scaled.state()
    assert state["scaler"]["scale"] == 4096.0 and state["scaler"]["_growth_tracker"] == 2
    again = with_scaler(make(), 1.0)
    again.load(state)
    assert again.accelerator.scaler.get_scale() == 4096.0


def test_a_step_whose_scaled_gradients_overflow_is_left_out(make, batch):
    trainer = with_scaler(make(beta=1000.0), 2.0**127)
    before, rate = copy.deepcopy(trainer.model.state_dict()), trainer.schedule.get_last_lr()
    figures = trainer.step(*in_parts(trainer, batch))
    assert not math.isfinite(figures["grad_norm"]) and math.isfinite(figures["loss"])
    assert_equal(trainer.model.state_dict(), before)
    assert trainer.schedule.get_last_lr() == rate and trainer.average.n_averaged == 0
    assert trainer.accelerator.scaler.get_scale() == 2.0**126


@pytest.mark.parametrize("device, capability, bfloat16, expected", [
    ("cpu", "AVX2", None, "no"), ("cpu", "AVX512", None, "bf16"), ("cuda", None, True, "bf16"),
    ("cuda:1", None, False, "fp16"), ("mps", None, None, "bf16"),
])  # fmt: skip
def test_precision_is_what_the_device_has(monkeypatch, device, capability, bfloat16, expected):
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: bfloat16)
    config = Config(amp=True)
    config.device = device
    assert precision(config) == expected
    config.amp = False
    assert precision(config) == "no"


# ---- what the author's code does otherwise ----------------------------------------------------------------------


def test_what_is_not_trained_stays(settings):
    config = settings("unused", as_author="random_projections, fixed_scale")
    model = build_model(config, torch.zeros(1, D))
    assert model.logit_scale.item() == pytest.approx(1.1052, rel=1e-4)  # exp(0.1)
    own = {n: p for n, p in model.named_parameters() if not n.startswith("tower.")}
    idle = {n for n, p in own.items() if not p.requires_grad}
    assert idle == {"image_proj.weight", "text_proj.weight", "log_scale"}
    groups = AcceleratedTrainer(model, config, 3).optimiser.param_groups
    assert {id(p) for group in groups for p in group["params"]} == {id(p) for n, p in own.items() if n not in idle}


def test_equal_label_sets_are_negatives_without_the_mask(make, batch):
    tokens, queries, sentences, targets = batch
    targets[:6] = targets[0].clone()
    points = ([], ["equal_are_negatives"])
    found = [gradients(make(as_author=names), batch)[0]["l_clip"] for names in points]
    model = make().model
    with torch.no_grad():
        _, image, text = model(tokens, queries, sentences)
        expected = [alignment_loss(image, text, model.logit_scale, sets).item() for sets in (targets, None)]
    assert found == pytest.approx(expected, rel=1e-5) and found[0] < found[1]


def test_a_sum_over_the_batch_makes_the_alignment_loss_lighter(make, batch):
    """The gradient is that of B L_c + alpha L_clip, divided by the batch size B."""
    mine = gradients(make(as_author="sum_loss", alpha=3.0, batch_size=B), batch)
    other = gradients(make(alpha=3.0, beta=float(B)), batch)
    assert mine[0]["l_clip"] == pytest.approx(other[0]["l_clip"]) and mine[0]["l_c"] == pytest.approx(other[0]["l_c"])
    torch.testing.assert_close({n: g * B for n, g in mine[1].items()}, other[1], rtol=1e-4, atol=1e-5)
