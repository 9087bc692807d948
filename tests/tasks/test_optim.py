"""The learning rate at every step, and which parameters decay."""

import math
from itertools import pairwise

import pytest
import timm
import torch

pytest.importorskip("lightning")
import longvision.models  # noqa: F401 registers them
from longvision.models.memory import fine_tune
from longvision.tasks.config import OptimConfig
from longvision.tasks.optim import make_optimizer


def make(lr=1.0, weight_decay=0.1, layer_decay=None, warmup_steps=10.0, steps=50.0, final_lr=0.01, **arguments):
    model = timm.create_model("vim_nano_patch4_32", img_size=16, depth=3, embed_dim=32, **arguments)
    config = OptimConfig(
        lr=lr, weight_decay=weight_decay, layer_decay=layer_decay, final_lr=final_lr, schedule="cosine"
    )
    made = make_optimizer(model, config, warmup_steps, steps)
    return model, made["optimizer"], made["lr_scheduler"]


def rates(optimizer, schedule, steps):
    """The rate that each step is made with, and the one after the last."""
    found = []
    for _ in range(steps + 1):
        found.append(optimizer.param_groups[-1]["lr"])
        optimizer.step()
        schedule["scheduler"].step()
    return found


def test_warm_up_and_cosine():
    _, optimizer, schedule = make()
    assert schedule["interval"] == "step"
    found = rates(optimizer, schedule, 50)
    rises = [b - a for a, b in pairwise(found[:11])]
    assert rises == pytest.approx([1 / 11] * 10)  # linear, and not from zero: the first step is one too
    assert found[0] == pytest.approx(1 / 11)
    assert found[10] == pytest.approx(1.0)
    assert found[30] == pytest.approx(0.01 + 0.99 * 0.5)  # half way down the cosine
    assert found[20] == pytest.approx(0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi / 4)))
    assert found[50] == pytest.approx(0.01)
    assert found[10:] == sorted(found[10:], reverse=True)


def test_the_rate_stays_at_the_end_of_the_cosine():
    _, optimizer, schedule = make(steps=5, warmup_steps=0, final_lr=0.2, lr=0.5)
    found = rates(optimizer, schedule, 8)
    assert found[0] == pytest.approx(0.5)
    assert found[5:] == pytest.approx([0.1] * 4)


def test_what_goes_on_has_the_rates_of_its_options():
    """And not those of its checkpoint, in each group."""
    _, before, begun = make(lr=1.0, steps=50, layer_decay=0.5)
    rates(before, begun, 30)
    states = before.state_dict(), begun["scheduler"].state_dict()
    _, now, goes_on = make(lr=0.1, steps=80, layer_decay=0.5)
    now.load_state_dict(states[0])
    goes_on["scheduler"].load_state_dict(states[1])
    _, whole, schedule = make(lr=0.1, steps=80, layer_decay=0.5)
    rates(whole, schedule, 30)
    for name in ("lr", "initial_lr"):
        found, expected = ([group[name] for group in each.param_groups] for each in (now, whole))
        assert found == expected and len(set(found)) > 1
    assert goes_on["scheduler"].get_last_lr() == schedule["scheduler"].get_last_lr()
    assert rates(now, goes_on, 20) == rates(whole, schedule, 20)


def test_without_an_end_the_rate_stays_after_the_warm_up():
    _, optimizer, schedule = make(steps=math.inf, warmup_steps=1)
    assert rates(optimizer, schedule, 5) == pytest.approx([0.5, 1, 1, 1, 1, 1])


def test_a_warm_up_longer_than_the_run():
    _, optimizer, schedule = make(steps=4, warmup_steps=8)
    assert rates(optimizer, schedule, 4) == pytest.approx([n / 9 for n in range(1, 6)])


def test_what_does_not_decay():
    model, optimizer, _ = make(weight_decay=0.1)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    decay = {
        names[id(parameter)]: group["weight_decay"] for group in optimizer.param_groups for parameter in group["params"]
    }
    assert decay.keys() == dict(model.named_parameters()).keys()
    free = ("norm", "bias", "pos_embed", "cls_token", "A_log", "A_b_log", ".D", ".D_b")
    for name, value in decay.items():
        is_free = name.endswith((".bias", *free[2:])) or "norm" in name
        assert value == (0.0 if is_free else 0.1), name
    assert decay["layers.0.mixer.in_proj.weight"] == decay["head.weight"] == 0.1
    assert decay["layers.0.mixer.A_log"] == decay["layers.2.mixer.D"] == decay["pos_embed"] == 0.0


def test_layer_decay():
    model, optimizer, _ = make(layer_decay=0.5, warmup_steps=0)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    rate = {names[id(parameter)]: group["lr"] for group in optimizer.param_groups for parameter in group["params"]}
    head, blocks = rate["head.weight"], [rate[f"layers.{i}.mixer.in_proj.weight"] for i in range(3)]
    assert head == pytest.approx(1.0)
    assert [b / a for a, b in pairwise(blocks)] == pytest.approx([2.0, 2.0])
    assert blocks[-1] <= head
    assert rate["patch_embed.proj.weight"] == pytest.approx(blocks[0] / 2)


def test_a_backbone_under_a_head_decays_from_below_it():
    """ViTDet's and BEiT's count: the head has the full rate, the last block one factor less."""
    model = torch.nn.Sequential(
        timm.create_model("vim_nano_patch4_32_pyramid", depth=3, embed_dim=32), torch.nn.Linear(4, 4)
    )
    optimizer = make_optimizer(model, OptimConfig(lr=1.0, weight_decay=0.1, layer_decay=0.5), 0, 10)["optimizer"]
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    rate = {names[id(parameter)]: group["lr"] for group in optimizer.param_groups for parameter in group["params"]}
    blocks = [rate[f"0.base.layers.{i}.mixer.in_proj.weight"] for i in range(3)]
    assert blocks == pytest.approx([0.125, 0.25, 0.5])
    assert rate["0.base.patch_embed.proj.weight"] == pytest.approx(0.0625)
    assert rate["1.weight"] == rate["1.bias"] == pytest.approx(1.0)
    assert rate.keys() == names_of(model)


def names_of(model):
    return dict(model.named_parameters()).keys()


def test_the_line_of_dense_heads():
    model = timm.create_model("vim_nano_patch4_32", img_size=16, depth=1, embed_dim=32)
    made = make_optimizer(model, OptimConfig(lr=1.0, weight_decay=0.1, schedule="poly"), 2, 10)
    assert rates(made["optimizer"], made["lr_scheduler"], 10) == pytest.approx(
        [1 / 3, 2 / 3, 1.0, 0.875, 0.75, 0.625, 0.5, 0.375, 0.25, 0.125, 0.0]
    )


def test_the_step_of_detr():
    """A tenth of the rate from four fifths on."""
    model = timm.create_model("vim_nano_patch4_32", img_size=16, depth=1, embed_dim=32)
    made = make_optimizer(model, OptimConfig(lr=1.0, schedule="step", final_lr=0.1), 0, 10)
    assert rates(made["optimizer"], made["lr_scheduler"], 10) == pytest.approx([1.0] * 8 + [0.1] * 3)


def test_a_step_moves_the_weights_by_the_rate():
    """AdamW's first step is the rate times the gradient's sign, after the decay."""
    model, optimizer, _ = make(lr=0.1, warmup_steps=0, weight_decay=0.5)
    weight = model.head.weight
    before = weight.detach().clone()
    weight.grad = torch.full_like(weight, 3.0)
    optimizer.step()
    torch.testing.assert_close(weight.detach(), before * (1 - 0.1 * 0.5) - 0.1, rtol=1e-4, atol=1e-5)


def test_sgd_has_a_plain_momentum_of_0_9():
    """The second step goes on with nine tenths of the first one's; Nesterov's first would be 1.9 times as long."""
    weight = torch.nn.Parameter(torch.zeros(2, 2))
    model = torch.nn.ParameterList([weight])
    config = OptimConfig(optimizer="sgd", lr=0.1, weight_decay=0, schedule="poly")
    optimizer = make_optimizer(model, config, 0, math.inf)["optimizer"]
    for expected in (-0.1, -0.1 - 0.19):
        weight.grad = torch.ones_like(weight)
        optimizer.step()
        torch.testing.assert_close(weight.detach(), torch.full_like(weight, expected))


@pytest.mark.parametrize("way", ["memory", "memory_mask"])
def test_memory_does_not_decay_and_what_is_frozen_is_left_out(way):
    model = timm.create_model("vim_nano_patch4_32", img_size=16, depth=2, embed_dim=32)
    model = fine_tune(model, 3, way)
    optimizer = make_optimizer(model, OptimConfig(weight_decay=0.1, layer_decay=0.5), 0, 10)["optimizer"]
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    decay = {names[id(p)]: group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
    assert decay.keys() == {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert {name for name, value in decay.items() if value} == {name for name in decay if name.endswith("head.weight")}
