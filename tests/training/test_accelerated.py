"""The step of a run: the plain one in parts, in mixed precision, with scaled losses, compiled, as the author's code."""

import copy
import math

import pytest
import timm
import torch
from accelerate.optimizer import AcceleratedOptimizer
from helpers import spy
from safetensors.torch import save_file

from clipdec import CLIPDecoder, Config, alignment_loss
from clipdec.towers import ImageTower
from clipdec.trainer import Trainer
from clipdec.training import accelerated
from clipdec.training.accelerated import AcceleratedTrainer, precision
from clipdec.training.batches import parts
from clipdec.training.build import build_loss, build_model, recompute_activations
from clipdec.training.fast import Faster

B, L, D, S = 12, 30, 8, 6
named_gradients = lambda model: {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
in_parts = lambda trainer, batch: ([batch[0][i] for i in parts(torch.arange(B), trainer.accumulate)], *batch[1:])


@pytest.fixture
def batch():
    """The arguments of a plain step: tokens, queries, sentences, targets."""
    return torch.randn(B, 5, 192), torch.randn(L, D), torch.randn(B, S), torch.rand(B, L) < 0.1


def new_model(config):
    tower = ImageTower("mini")  # before the seed: loading it draws random numbers, the first time
    torch.manual_seed(0)
    return CLIPDecoder(tower, torch.zeros(1, D), S, 16, config.train_image_tower, config.dropout)


def make(settings, **changes):
    config = settings("unused", **{"dropout": 0.0, "label_samples": 0} | changes)
    return AcceleratedTrainer(new_model(config), config, 10)


def gradients(trainer, batch):
    """(figures of a step, {name: gradient})."""
    return trainer.gradients(*in_parts(trainer, batch)), named_gradients(trainer.model)


def timm_weights(name, path):
    torch.manual_seed(0)
    save_file({k: v.contiguous() for k, v in timm.create_model(name).state_dict().items()}, path)
    return path


def test_a_step_is_the_plain_one(settings, batch):
    changes = {"dropout": 0.2, "label_samples": 5, "weight_samples": True, "clip_grad": 0.5, "lr": 1e-2, "alpha": 0.5}
    config = settings("unused", **changes)
    names = ("optimiser", "lr", "weight_decay", "clip_grad", "ema_decay", "label_samples", "weight_samples")
    plain = Trainer(new_model(config), 10, build_loss(config), **{name: getattr(config, name) for name in names})
    mine = make(settings, **changes)
    known = batch[3] | (torch.rand(B, L) < 0.3)
    for step in range(4):
        found, rest = [], [known] * (step > 2)  # the last with a mask
        for trainer, arguments in ((plain, batch), (mine, in_parts(mine, batch))):
            torch.manual_seed(step)
            found.append(trainer.step(*arguments, *rest))
        assert found[0] == pytest.approx(found[1], rel=1e-5)
    for a, b in ((plain.model, mine.model), (plain.average, mine.average)):
        torch.testing.assert_close([*a.parameters()], [*b.parameters()], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("alpha, changes, rel, rtol, atol", [
    (0.0, {"accumulate": 2}, 1e-4, 1e-3, 1e-6), (0.0, {"accumulate": 5}, 1e-4, 1e-3, 1e-6),  # 6 and 6; 3, 3, 2, 2, 2
    (1.0, {"compile": True}, 1e-3, 1e-2, 1e-4),
])  # fmt: skip
def test_a_step_in_parts_or_compiled_is_the_same_step(settings, batch, alpha, changes, rel, rtol, atol):
    whole, found = (gradients(make(settings, alpha=alpha, **other), batch) for other in ({}, changes))
    assert whole[0] == pytest.approx(found[0], rel=rel)
    torch.testing.assert_close(found[1], whole[1], rtol=rtol, atol=atol)


def test_what_is_not_known_is_left_out_of_every_part(settings, batch):
    batch = (*batch, batch[3] | (torch.rand(B, L) < 0.3))
    whole, found = (gradients(make(settings, alpha=0.0, **other), batch) for other in ({}, {"accumulate": 5}))
    assert whole[0] == pytest.approx(found[0], rel=1e-4) and whole[0]["l_c"] > 0
    torch.testing.assert_close(found[1], whole[1], rtol=1e-3, atol=1e-6)


def test_the_alignment_loss_of_parts_is_their_mean(settings, batch):
    (tokens, _, sentences, targets), trainer, expected = batch, make(settings, accumulate=5), 0.0
    for part in torch.arange(B).tensor_split(5):
        with torch.no_grad():
            _, image, text = trainer.model(tokens[part], torch.randn(1, D), sentences[part])
        loss = alignment_loss(image, text, trainer.model.logit_scale, targets[part]).item()
        expected += len(part) / B * loss
    assert gradients(trainer, batch)[0]["l_clip"] == pytest.approx(expected, rel=1e-5)


def test_a_rehearsal_leaves_no_trace(settings, batch, tmp_path):
    tower = ImageTower("timm:test_resnet", timm_weights("test_resnet", tmp_path / "t.safetensors"))  # batch statistics
    model = CLIPDecoder(tower, torch.zeros(1, D), S, 16, True)
    trainer = AcceleratedTrainer(model, settings(tmp_path, train_image_tower=True), 10)
    before, arguments = copy.deepcopy(trainer.state()), ([torch.randn(B, 3, 64, 64)], *batch[1:])
    trainer.rehearse(*arguments)
    after = trainer.state()
    assert all(torch.equal(before[p][k], after[p][k]) for p in ("model", "average") for k in before[p])
    assert after["optimiser"]["state"] == {} and after["schedule"] == before["schedule"]
    trainer.step(*arguments)
    moved = [k for k, v in trainer.state()["model"].items() if not torch.equal(before["model"][k], v)]
    assert any("running_mean" in name for name in moved)


@pytest.mark.parametrize("name, size", [("mini", 128), ("timm:test_vit", 160), ("timm:test_resnet", 160)])
def test_recomputed_activations_give_the_same_gradients(name, size, tmp_path):
    weights = None if name == "mini" else timm_weights(name[5:], tmp_path / "t.safetensors")
    pixels, found = torch.randn(4, 3, size, size), []
    for recompute in (False, True):
        tower = ImageTower(name, weights).train()
        if recompute:
            recompute_activations(tower)
        kept = []  # sizes of what the forward pass keeps for the backward pass
        with torch.autograd.graph.saved_tensors_hooks(lambda x, kept=kept: kept.append(x.numel()) or x, lambda x: x):
            out = tower(pixels)[0]
        out.square().mean().backward()
        found.append((sum(kept), named_gradients(tower)))
    assert found[1][0] < 0.7 * found[0][0]
    torch.testing.assert_close(found[1][1], found[0][1], rtol=1e-3, atol=1e-5)


def test_a_tower_that_cannot_recompute(monkeypatch):
    tower = ImageTower("mini")
    monkeypatch.delattr(type(tower.trunk), "set_grad_checkpointing")
    with pytest.raises(ValueError, match="mini cannot recompute activations .*set checkpoint_tower False"):
        recompute_activations(tower)


def test_bfloat16_steps_are_nearly_the_same(settings, batch, monkeypatch):
    plain = gradients(make(settings), batch)
    monkeypatch.setattr(accelerated, "precision", lambda config: "bf16")  # also where the processor is slow with it
    mixed, dtypes = make(settings), []
    mixed.model.decoder.linear1.register_forward_hook(lambda module, inputs, output: dtypes.append(output.dtype))
    half = gradients(mixed, batch)
    assert dtypes == [torch.bfloat16] and all(g.dtype == torch.float32 for g in half[1].values())
    assert half[0] == pytest.approx(plain[0], rel=0.05)
    a, b = (torch.cat([g.flatten() for g in x[1].values()]) for x in (plain, half))
    assert torch.nn.functional.cosine_similarity(a, b, dim=0) > 0.99
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
    plain, scaled = make(settings), with_scaler(make(settings), 4096.0)
    scaled.rehearse(*in_parts(scaled, batch))
    for _ in range(2):
        figures = [trainer.step(*in_parts(trainer, batch)) for trainer in (plain, scaled)]
        assert figures[0] == pytest.approx(figures[1], rel=1e-5)
    torch.testing.assert_close([*plain.model.parameters()], [*scaled.model.parameters()], rtol=1e-4, atol=1e-6)
    state = scaled.state()
    assert state["scaler"]["scale"] == 4096.0 and state["scaler"]["_growth_tracker"] == 2
    again = with_scaler(make(settings), 1.0)
    again.load(state)
    assert again.accelerator.scaler.get_scale() == 4096.0


def test_a_step_whose_scaled_gradients_overflow_is_left_out(settings, batch):
    trainer = with_scaler(make(settings, beta=1000.0), 2.0**127)
    before, rate = copy.deepcopy(trainer.model.state_dict()), trainer.schedule.get_last_lr()
    figures = trainer.step(*in_parts(trainer, batch))
    assert not math.isfinite(figures["grad_norm"]) and math.isfinite(figures["loss"])
    assert all(torch.equal(before[k], v) for k, v in trainer.model.state_dict().items())
    assert trainer.schedule.get_last_lr() == rate and trainer.average.n_averaged == 0
    assert trainer.accelerator.scaler.get_scale() == 2.0**126


@pytest.mark.parametrize("device, capability, bfloat16, expected", [
    ("cpu", "AVX2", None, "no"), ("cpu", "AVX512", None, "bf16"), ("cuda", None, True, "bf16"),
    ("cuda:1", None, False, "fp16"), ("mps", None, None, "no"),
])  # fmt: skip
def test_precision_is_what_the_device_has(monkeypatch, device, capability, bfloat16, expected):
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: bfloat16)
    for amp in (True, False):
        config = Config(amp=amp)
        config.device = device
        assert precision(config) == (expected if amp else "no")


def test_what_is_not_trained_stays(settings):
    config = settings("unused", as_author="random_projections, fixed_scale")
    model = build_model(config, torch.zeros(1, D))
    assert model.logit_scale.item() == pytest.approx(1.1052, rel=1e-4)  # exp(0.1)
    idle = {n for n, p in model.named_parameters() if not p.requires_grad and not n.startswith("tower.")}
    assert idle == {"image_proj.weight", "text_proj.weight", "log_scale"}
    optimiser = AcceleratedTrainer(model, config, 3).optimiser
    trained = {id(p) for group in optimiser.param_groups for p in group["params"]}
    assert trained == {id(p) for n, p in model.named_parameters() if n not in idle and not n.startswith("tower.")}


def test_equal_label_sets_are_negatives_without_the_mask(settings, batch):
    targets = batch[3]
    targets[:6] = targets[0].clone()
    found = [gradients(make(settings, as_author=p), batch)[0]["l_clip"] for p in ([], ["equal_are_negatives"])]
    model = make(settings).model
    with torch.no_grad():
        _, image, text = model(*batch[:3])
        expected = [alignment_loss(image, text, model.logit_scale, sets).item() for sets in (targets, None)]
    assert found == pytest.approx(expected, rel=1e-5) and found[0] < found[1]


def test_a_sum_over_the_batch_makes_the_alignment_loss_lighter(settings, batch):
    """The gradient is that of B L_c + alpha L_clip, divided by the batch size B."""
    mine = gradients(make(settings, as_author="sum_loss", alpha=3.0, batch_size=B), batch)
    other = gradients(make(settings, alpha=3.0, beta=float(B)), batch)
    assert mine[0]["l_clip"] == pytest.approx(other[0]["l_clip"]) and mine[0]["l_c"] == pytest.approx(other[0]["l_c"])
    scaled = {name: gradient * B for name, gradient in mine[1].items()}
    torch.testing.assert_close(scaled, other[1], rtol=1e-4, atol=1e-5)


def test_adam_adds_the_decay_to_the_gradient_of_the_sum(settings, batch):
    """Weights after steps with a decay, that of Adam on B L_c + alpha L_clip; AdamW's decay has no share in it."""
    for optimiser, decay in (("adam", 0.5), ("adamw", 0.5)):
        changes = {"optimiser": optimiser, "weight_decay": decay, "alpha": 3.0, "batch_size": B, "lr": 1e-3}
        mine, other = make(settings, as_author="sum_loss", **changes), make(settings, beta=float(B), **changes)
        for trainer in (mine, other, mine, other, mine, other):
            trainer.step(*in_parts(trainer, batch))
        start = new_model(settings("unused", dropout=0.0))
        moved = [p - q for p, q in zip(other.model.parameters(), start.parameters())]
        apart = [p - q for p, q in zip(other.model.parameters(), mine.model.parameters())]
        assert sum(a.norm() for a in apart) < 0.02 * sum(m.norm() for m in moved), optimiser


@pytest.mark.parametrize("asked", [True, False])
def test_what_costs_time_or_memory_is_done_where_it_is_asked_for(settings, monkeypatch, asked):
    """Neither changes a figure, so no figure tells."""
    config = settings("unused", train_image_tower=True, checkpoint_tower=asked, compile=asked)
    model = build_model(config, torch.zeros(1, D))
    assert model.tower.trunk.transformer.grad_checkpointing == asked and isinstance(model.decoder, Faster)
    compiled = spy(monkeypatch, CLIPDecoder, "compile")
    AcceleratedTrainer(model, config, 10)
    assert len(compiled) == asked
