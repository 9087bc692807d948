"""Learnable memory against the published equations written out; the base under the mask; separate tasks together."""

import copy
import math
import pickle
from contextlib import nullcontext

import pytest
import timm
import torch
import torch.nn.functional as F
from torch import nn

from longvision.errors import UserError
from longvision.layers.memory import new_memory
from longvision.models.backbone import free_patch
from longvision.models.memory import FINETUNE, add_memory, concatenate, create_finetuned, fine_tune
from longvision.models.weights.files import read_weights, restore_weights, save_weights
from longvision.types import PackedImages

SIZE = 12, 20  # three by five patches: odd counts, and no square
MODELS = {
    "timm": ("vit_tiny_patch16_224", {"patch_size": 4, "embed_dim": 24, "num_heads": 3, "depth": 2}),
    "deit": ("deit_tiny_patch16_224", {"patch_size": 4, "embed_dim": 24, "num_heads": 3, "depth": 2}),
    "ours": ("vit_nano_patch4_32", {"embed_dim": 24, "num_heads": 3, "depth": 2}),
    "vim": ("vim_nano_patch4_32", {"embed_dim": 24, "depth": 2}),
    "vim_shared": ("vim_nano_patch4_32", {"embed_dim": 24, "depth": 2, "direction": "ssm"}),
    "vim_layer": ("vim_nano_patch4_32", {"embed_dim": 24, "depth": 2, "direction": "layer"}),
    "vim_head": ("vim_nano_patch4_32", {"embed_dim": 24, "depth": 2, "cls_token": "head"}),
}
EVERY = pytest.mark.parametrize("kind", MODELS)


def create(kind, **options):
    name, small = MODELS[kind]
    model = timm.create_model(name, **{"img_size": SIZE, "num_classes": 7, **small, **options})
    with torch.no_grad():
        for parameter in model.parameters():  # nothing is zero or one, so that nothing can be left out
            parameter.add_(0.05 * torch.randn_like(parameter))
    return model.eval()


def image(**options):
    return torch.randn(2, 3, *SIZE, **options)


def gradients(output, weights, parameters):
    return torch.autograd.grad((output * weights).sum(), parameters)


# The published equations, of a pre-norm block: z = x + attention(norm(x)), then z + mlp(norm(z))


def masked_attention(attention, x, mask):
    """softmax(q k / sqrt(d) + mask) v, head by head; x (B, M, D), mask (M, M) of True where a row sees a column."""
    heads, width = attention.num_heads, x.shape[-1] // attention.num_heads
    q, k, v = F.linear(x, attention.qkv.weight, attention.qkv.bias).chunk(3, dim=-1)
    out = []
    for h in range(heads):
        own = slice(h * width, (h + 1) * width)
        scores = q[..., own] @ k[..., own].mT / math.sqrt(width)
        out.append(scores.masked_fill(~mask, -math.inf).softmax(-1) @ v[..., own])
    return attention.proj(torch.cat(out, dim=-1))


def published_block(block, x, memory, mask):
    """[x; E_mem] through the block, cut to x again. `mask` (M, M + m)."""
    cells = len(memory)
    joined = torch.cat([x, memory.expand(len(x), -1, -1)], dim=1)
    rows = torch.cat([mask, torch.ones(cells, mask.shape[1], dtype=torch.bool)])  # whatever memory sees is dropped
    joined = joined + masked_attention(block.attn, block.norm1(joined), rows)
    return (joined + block.mlp(block.norm2(joined)))[:, : x.shape[1]]


def embedded(model, images):
    """(B, M, D) with the class token first."""
    if hasattr(model, "tokens"):
        return model.embed(images)[0]
    patches = model.patch_embed(images)
    return torch.cat([model.cls_token.expand(len(patches), -1, -1), patches], dim=1) + model.pos_embed


@pytest.mark.parametrize("kind", ["timm", "ours"])
def test_every_token_sees_its_memory(kind):
    model = add_memory(create(kind), 5, memory=3).double()
    x = embedded(model, images := image(dtype=torch.float64))
    for block in model.blocks:
        x = published_block(block, x, block.memory, torch.ones(x.shape[1], x.shape[1] + 3, dtype=torch.bool))
    truth = model.head(model.norm(x)[:, 0])
    check(model, model(images), truth)


@pytest.mark.parametrize("kind", ["timm", "ours"])
def test_the_published_mask(kind):
    """Table 1, for concatenation, of two tasks with 3 and 2 cells; the base's class token is the first token."""
    model = add_memory(add_memory(create(kind), 5, memory=3, mask=True), 4, memory=2, mask=True).double()
    base, (one, two) = model.base, model.tasks
    with torch.no_grad():
        two.cls_token.add_(0.3)
    x = embedded(base, images := image(dtype=torch.float64))
    patches, total = x.shape[1], x.shape[1] + 2
    mask = torch.zeros(total, total + 5, dtype=torch.bool)
    mask[:, :patches] = True
    mask[patches, [patches, *range(total, total + 3)]] = True
    mask[patches + 1, [patches + 1, total + 3, total + 4]] = True
    x = torch.cat([x, *(task.cls_token.expand(2, -1, -1) for task in (one, two))], dim=1)
    for i, block in enumerate(base.blocks):
        x = published_block(block, x, torch.cat([one.memory[i], two.memory[i]]), mask)
    x = base.norm(x)
    truth = torch.cat([base.head(x[:, 0]), one.head(x[:, patches]), two.head(x[:, patches + 1])], dim=1)
    of_base, of_tasks = model.outputs(images)
    check(model, torch.cat([of_base, *of_tasks], dim=1), truth)


def check(model, got, truth):
    torch.testing.assert_close(got, truth, rtol=1e-10, atol=1e-11)
    trained, weights = [p for p in model.parameters() if p.requires_grad], torch.randn_like(truth)
    pairs = zip(gradients(got, weights, trained), gradients(truth, weights, trained), strict=True)
    for found, expected in pairs:
        torch.testing.assert_close(found, expected, rtol=1e-8, atol=1e-10)
        assert expected.abs().max() > 1e-6


# The same for a scan, token by token


def scan(own, x, memory=None):
    """Algorithm 1 of arXiv 2401.09417, lines 7-16, from the first token of x (B, M, E) to the last. The last one reads
    the state that `memory` leaves from zero, beside the one that those before it have left."""
    beside = 0 if memory is None else scan(own, memory)[1]
    padded = F.pad(x, (0, 0, 3, 0))
    taps = own.filter_EK.squeeze(1)
    u = F.silu(sum(padded[:, k : k + x.shape[1]] * taps[:, k] for k in range(4)) + own.filter_bias_E)
    rank, states = own.dt_proj_ER.shape[1], own.A_log_EN.shape[1]
    low, B, C = (u @ own.x_proj_PE.mT).split([rank, states, states], dim=-1)
    step = F.softplus(low @ own.dt_proj_ER.mT + own.dt_bias_E)
    h, out = 0, []
    for t in range(x.shape[1]):
        h = torch.exp(-step[:, t, :, None] * own.A_log_EN.exp()) * (h + beside * (t == x.shape[1] - 1))
        h = h + (step[:, t] * u[:, t])[:, :, None] * B[:, t, None]
        out.append((h * C[:, t, None]).sum(-1) + own.D_E * u[:, t])
    return torch.stack(out, dim=1), h


def normed(norm, x):
    return x / (x.square().mean(-1, keepdim=True) + 1e-5).sqrt() * norm.weight


@pytest.mark.parametrize("kind", ["vim", "vim_shared", "vim_layer", "vim_head"])
def test_each_direction_reads_memory_before_its_first_patch(kind):
    model = add_memory(create(kind), 5, memory=3).double()
    x = model.embed(images := image(dtype=torch.float64))[0]
    for block in model.layers:
        memory = block.memory.expand(2, -1, -1)
        read = {False: torch.cat([memory, x], 1), True: torch.cat([memory, x.flip(1)], 1)}
        directions, y = block.mixer.scan_directions(), 0
        for own in directions:
            x_E = (normed(block.norm, read[own.reverse]) @ block.mixer.in_proj.weight.mT).chunk(2, -1)[0]
            found = scan(own, x_E)[0][:, 3:]
            y = y + (found.flip(1) if own.reverse else found) / len(directions)
        z = (normed(block.norm, x) @ block.mixer.in_proj.weight.mT).chunk(2, -1)[1]
        x = x + (y * F.silu(z)) @ block.mixer.out_proj.weight.mT
    truth = model.head(model.tokens.alone(normed(model.norm_f, x)).mean(1))
    check(model, model(images), truth)


@pytest.mark.parametrize("kind", ["vim", "vim_shared", "vim_layer", "vim_head"])
def test_a_task_is_a_branch_of_the_scans(kind):
    """Behind the tokens that each direction has read where the base's class token stands, with memory in the state."""
    model = add_memory(create(kind), 5, memory=3, mask=True).double()
    base, task = model.base, model.tasks[0]
    x = base.embed(images := image(dtype=torch.float64))[0]
    token, place = task.cls_token.expand(2, -1, -1), 0 if kind == "vim_head" else (x.shape[1] - 1) // 2
    for memory, block in zip(task.memory, base.layers, strict=True):
        project = block.mixer.in_proj.weight.mT
        memory = (normed(block.norm, memory[None]) @ project).chunk(2, -1)[0]
        directions, y = block.mixer.scan_directions(), 0
        for own in directions:
            before = x[:, place + 1 :].flip(1) if own.reverse else x[:, :place]
            read = (normed(block.norm, torch.cat([before, token], dim=1)) @ project).chunk(2, -1)[0]
            y = y + scan(own, read, memory)[0][:, -1:] / len(directions)
        z = (normed(block.norm, token) @ project).chunk(2, -1)[1]
        token = token + (y * F.silu(z)) @ block.mixer.out_proj.weight.mT
        x = block(x)
    check(model, model(images), task.head(normed(base.norm_f, token)[:, 0]))


# Under the mask


@EVERY
@pytest.mark.parametrize("grad", [False, True])
def test_the_base_is_untouched(kind, grad):
    """To the last bit, in both ways in which blocks of a Vim are run; each task is what it is alone."""
    base, images = create(kind), image()
    with torch.set_grad_enabled(grad):
        before = base(images)
        model = add_memory(base, 5, mask=True)
        alone = model(images)
        add_memory(model, 3, memory=2, mask=True)
        of_base, of_tasks = model.outputs(images)
    assert torch.equal(of_base, before) and torch.equal(base(images), before)
    assert torch.equal(of_tasks[0], alone) and of_tasks[1].shape == (2, 3)
    assert all(torch.equal(a, b) for a, b in zip(model(images), of_tasks, strict=True))


@EVERY
def test_the_base_is_untouched_by_training(kind):
    base = create(kind, drop_path_rate=0.9, drop_rate=0.5)
    before = copy.deepcopy(base.state_dict())
    model = add_memory(base, 5, mask=True).train()
    optimizer = torch.optim.SGD(model.parameters(), 0.5)
    first = model(images := image())
    first.square().sum().backward()
    optimizer.step()
    assert not torch.equal(model(images), first) and torch.equal(model(images), model(images))
    assert all(torch.equal(tensor, before[name]) for name, tensor in base.state_dict().items())
    trained = {name for name, p in model.named_parameters() if p.grad is not None and p.grad.abs().max() > 0}
    assert trained == {name for name, _ in model.named_parameters() if name.startswith("tasks.")}


def saved_bytes(model, images):
    """Of what the forward pass keeps for the backward pass, beside parameters."""
    kept = {}

    def note(tensor):
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        output = model(images)  # it holds them: no address is given twice
    assert output is not None
    return sum(kept[where] for where in kept.keys() - {p.untyped_storage().data_ptr() for p in model.parameters()})


@pytest.mark.parametrize("kind", ["timm", "vim"])
def test_the_base_is_saved_once_for_all_tasks(kind):
    """192 patches more are keys and values of two blocks, images of width 24; in a Vim they are in the state."""
    base, growths = create(kind, img_size=(64, 64)), []
    smaller = create(kind, img_size=(32, 32))
    for tasks in (1, 2, 3):
        base, smaller = add_memory(base, 5, mask=True), add_memory(smaller, 5, mask=True)
        sizes = [saved_bytes(model, torch.randn(2, 3, side, side)) for model, side in ((base, 64), (smaller, 32))]
        growths.append(sizes[0] - sizes[1])
        assert len(base.tasks) == tasks
    of_base = 2 * 2 * 2 * 192 * 24 * 4 if kind == "timm" else 0
    scores = 2 * 3 * 192 * 4 * 2 if kind == "timm" else 0  # of a task's token, in each head of both blocks
    assert growths == [of_base + tasks * scores for tasks in (1, 2, 3)]


@EVERY
def test_concatenated_tasks_are_the_separate_ones(kind):
    base, images = create(kind), image()
    one = add_memory(copy.deepcopy(base), 5, mask=True)
    two = add_memory(add_memory(copy.deepcopy(base), 4, memory=1, mask=True), 3, memory=2, mask=True)
    truth = [one(images), *two(images)]
    both = concatenate(one, two)
    for got, expected in zip(both(images), truth, strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-5)
    assert torch.equal(both.outputs(images)[0], base(images))
    assert {name.split(".")[0] for name, p in both.named_parameters() if p.requires_grad} == {"tasks"}


@pytest.mark.parametrize("kind", [kind for kind in MODELS if kind.startswith("vim")])
def test_without_memory_a_branch_is_the_base_s_class_token(kind):
    model = add_memory(create(kind), 7, mask=True)
    (task,) = model.tasks
    task.head, task.memory = model.base.head, nn.ParameterList(memory[:0].detach() for memory in task.memory)
    of_base, (of_task,) = model.outputs(image())
    torch.testing.assert_close(of_task, of_base, rtol=1e-4, atol=1e-5)


# What is trained


@pytest.mark.parametrize("way", FINETUNE)
@pytest.mark.parametrize("kind", ["timm", "vim"])
def test_gradients_only_where_they_belong(kind, way):
    model = fine_tune(create(kind), 5, way, memory=2)
    model(image()).square().sum().backward()
    found = {name for name, p in model.named_parameters() if p.grad is not None}
    names = {name for name, _ in model.named_parameters()}
    head = {"head.weight", "head.bias"}
    wanted = {
        "full": names,
        "head": head,
        "class_token": head | {"cls_token"},
        "memory": head | {"cls_token"} | {name for name in names if name.endswith(".memory")},
        "memory_mask": {name for name in names if name.startswith("tasks.0.")},
    }[way]
    assert found == wanted == {name for name, p in model.named_parameters() if p.requires_grad}
    assert model.training == (way == "memory_mask") and model(image()).shape == (2, 5)  # of those, the tasks alone


@pytest.mark.parametrize("way", FINETUNE)
@pytest.mark.parametrize("kind", ["timm", "deit", "vim"])
def test_a_new_head_begins_in_one_way(kind, way):
    head = fine_tune(create(kind), 500, way).get_classifier()
    assert float(head.weight.detach().std()) == pytest.approx(0.02, rel=0.05) and not head.bias.any()


def test_both_class_tokens_are_trained():
    distilled = fine_tune(timm.create_model("deit_tiny_distilled_patch16_224", depth=1), 5, "memory")
    double = fine_tune(create("vim", cls_token="double"), 5, "class_token")
    for model, names in ((distilled, ["cls_token", "dist_token"]), (double, ["cls_token_head", "cls_token_tail"])):
        assert [name for name, p in model.named_parameters() if p.requires_grad and "token" in name] == names


@pytest.mark.parametrize("cells", [1, 5])
def test_parameters_of_a_base_sized_model(cells):
    """12 blocks of width 768: m tokens in each, a class token, a head for 100 classes."""
    with torch.device("meta"):
        base = timm.create_model("vit_base_patch16_224", weight_init="skip")
        parameters = sum(p.numel() for p in base.parameters())
        model = add_memory(base, 100, memory=cells, mask=True)
    added = 12 * cells * 768 + 768 + (768 * 100 + 100)
    assert parameters == 86_567_656 and sum(p.numel() for p in model.parameters()) == parameters + added
    assert sum(p.numel() for p in model.parameters() if p.requires_grad) == added


def test_memory_begins_small():
    memory = new_memory(200, torch.empty(1, 1, 768))
    assert memory.shape == (200, 768) and float(memory.detach().std()) == pytest.approx(0.02, rel=0.02)
    assert abs(float(memory.detach().mean())) < 2e-4


# As a model of timm's kind


@EVERY
@pytest.mark.parametrize("mask", [False, True])
def test_features_head_and_copies(kind, mask):
    model, images = add_memory(create(kind), 5, memory=2, mask=mask), image()
    logits = model(images)
    assert torch.equal(model.forward_head(model.forward_features(images)), logits)
    assert model.forward_head(model.forward_features(images), pre_logits=True).shape == (2, model.num_features)
    assert model.num_classes == model.get_classifier().out_features == 5
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(other(images), logits)
    with pytest.raises(UserError, match="checkpointing") if mask else nullcontext():
        model.set_grad_checkpointing()
    model.set_grad_checkpointing(False)
    assert torch.equal(model(images), logits)


@EVERY
def test_memory_is_in_intermediate_features(kind):
    base, images = create(kind), image()
    before = base.forward_intermediates(images, intermediates_only=True)
    after = add_memory(base, 5).forward_intermediates(images, intermediates_only=True)
    assert [a.shape for a in after] == [b.shape for b in before]
    assert not torch.allclose(after[0], before[0], atol=1e-4)


@EVERY
@pytest.mark.parametrize("way", ["memory", "memory_mask"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_mixed_precision(kind, way, dtype):
    """To three digits of the largest output in bfloat16; gradients are finite."""
    model, images = fine_tune(create(kind), 5, way), image()
    truth = model(images)
    with torch.autocast("cpu", dtype):
        got = model(images)
    assert (got - truth).abs().max() < 0.03 * truth.abs().max()
    got.float().sum().backward()
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.requires_grad)


@pytest.mark.parametrize("kind", ["timm", "vim"])
@pytest.mark.parametrize("way", ["memory", "memory_mask"])
def test_weights_in_a_file(kind, way, tmp_path):
    model, images = fine_tune(create(kind), 5, way, memory=2), image()
    save_weights(model, tmp_path / "weights.safetensors")
    name, args = MODELS[kind]
    other = create_finetuned(name, 5, 3, SIZE, args=args, finetune=way, memory=2).eval()
    if way == "memory":
        other.load_state_dict(read_weights(tmp_path / "weights.safetensors")[0])
        assert torch.equal(other(images), model(images))
    else:  # here the base had a head, which a base that is made by name does not get
        with pytest.raises(RuntimeError, match=r"base\.head\.weight"):
            other.load_state_dict(read_weights(tmp_path / "weights.safetensors")[0])
        assert isinstance(other.base.get_classifier(), nn.Identity)


@pytest.mark.parametrize("kind", ["ours", "vim"])
def test_weights_of_another_image_size(kind, tmp_path):
    """The base's positions are resampled as without tasks; the class token's has its place in the task."""
    base, larger = create(kind), create(kind, img_size=(16, 24))
    save_weights(base, tmp_path / "base.safetensors")
    save_weights(add_memory(base, 5, mask=True), tmp_path / "tasks.safetensors")
    restore_weights(larger, tmp_path / "base.safetensors")
    model = add_memory(create(kind, img_size=(16, 24)), 5, mask=True)
    restore_weights(model, tmp_path / "tasks.safetensors")
    images = torch.randn(1, 3, 16, 24)
    assert torch.equal(model.base(images), larger(images)) and model(images).shape == (1, 5)


# Mistakes


def test_what_cannot_have_memory():
    with pytest.raises(UserError, match="ResNet cannot have memory"):
        add_memory(timm.models.ResNet(timm.models.resnet.BasicBlock, [1, 1], channels=(8, 8)), 5)
    with pytest.raises(UserError, match="memory 0"):
        add_memory(create("timm"), 5, memory=0)
    with pytest.raises(UserError, match="num_classes 0"):
        add_memory(create("timm"), 0)
    with pytest.raises(UserError, match="has memory already"):
        add_memory(add_memory(create("timm"), 5), 5)
    with pytest.raises(UserError, match="'some'"):
        fine_tune(create("timm"), 5, "some")


@pytest.mark.parametrize(
    "kind, options, named",
    [
        ("vim", {"cls_token": "none"}, "0 class tokens"),
        ("vim", {"cls_token": "double"}, "2 class tokens"),
        ("timm", {"class_token": False, "global_pool": "avg"}, "0 class tokens"),
        ("timm", {"attn_layer": "diff"}, "DiffAttention"),
    ],
)
def test_what_cannot_be_masked(kind, options, named):
    model = create(kind, **options)
    with pytest.raises(UserError, match=named):
        add_memory(model, 5, mask=True)
    assert all(p.requires_grad for p in model.parameters())  # and is as it was
    if options.get("cls_token") == "none" or "class_token" in options:
        with pytest.raises(UserError, match="no class token to train"):
            fine_tune(model, 5, "class_token")
    assert add_memory(model, 5)(image()).shape == (2, 5)


def test_re_attention():
    """Its maps are mixed over heads: a row cannot be read alone."""
    model = timm.create_model("deepvit_16", img_size=16, patch_size=4, embed_dim=24, num_heads=3, depth=2).eval()
    with pytest.raises(UserError, match="ReAttention"):
        add_memory(model, 5, mask=True)
    images = torch.randn(2, 3, 16, 16)
    before = model.forward_intermediates(images, intermediates_only=True)[0]
    after = add_memory(model, 5).forward_intermediates(images, intermediates_only=True)[0]
    assert before.shape == after.shape and not torch.equal(before, after) and model(images).shape == (2, 5)


def test_an_adapter_under_a_task():
    model = create("vim")
    model.layers[1].mixer.x_proj = nn.Sequential(model.layers[1].mixer.x_proj)
    model.layers[1].mixer.out_proj.register_forward_hook(lambda *_: None)
    with pytest.raises(UserError, match="out_proj"):
        add_memory(model, 5, mask=True)


def test_other_bases():
    one, other = (add_memory(create("timm"), 5, mask=True) for _ in range(2))
    with pytest.raises(UserError, match="beginning with cls_token"):
        concatenate(one, other)
    same = copy.deepcopy(one)
    with torch.no_grad():
        same.base.blocks[1].mlp.fc1.bias[3] += 1e-6
    with pytest.raises(UserError, match=r"beginning with blocks\.1\.mlp\.fc1\.bias"):
        concatenate(one, same)
    with pytest.raises(UserError, match="Vim"):
        concatenate(one, add_memory(create("vim"), 5, mask=True))
    with pytest.raises(UserError, match="cannot be concatenated"):
        concatenate(one, add_memory(create("timm"), 5))


@pytest.mark.parametrize(
    "change, named",
    [
        (
            lambda base: [setattr(b.attn, "num_heads", 6) or setattr(b.attn, "head_dim", 4) for b in base.blocks],
            "num_h",
        ),
        (lambda base: setattr(base.blocks[1].norm1, "eps", 1e-3), r"blocks\.1\.norm1\.eps \(1e-06 and 0\.001\)"),
        (lambda base: setattr(base.blocks[0].mlp, "act", nn.ReLU()), r"mlp\.act \(GELU and ReLU\)"),
        (lambda base: setattr(base.patch_embed, "img_size", SIZE[::-1]), "image size"),
        (lambda base: base.double(), "cls_token .*float32.*float64"),
        (lambda base: base.to("meta"), "cls_token .*cpu.*meta"),
    ],
    ids=["heads", "eps", "activation", "size", "dtype", "device"],
)
def test_bases_of_the_same_weights_that_compute_something_else(change, named):
    one = add_memory(create("timm"), 5, mask=True)
    other = copy.deepcopy(one)
    assert len(concatenate(one, other).tasks) == 2
    change(other.base)
    with pytest.raises(UserError, match=named):
        concatenate(one, other)


@pytest.mark.parametrize("mask", [False, True])
@pytest.mark.parametrize("kind", ["ours", "vim"])
def test_packed_images(kind, mask):
    packed, model = PackedImages.from_images([torch.zeros(3, 8, 8)], 4), add_memory(create(kind), 5, mask=mask)
    with pytest.raises(UserError, match="PackedImages"):
        model(packed)
    assert not getattr(model, "takes_packed", False) and create(kind).takes_packed


@pytest.mark.parametrize("mask", [False, True])
def test_images_of_every_size(mask):
    model = add_memory(create("vim"), 5, mask=mask)
    assert free_patch(model, "tokens") == 4 and model(torch.randn(1, 3, 8, 24)).shape == (1, 5)
    with pytest.raises(UserError, match="images of every size"):
        free_patch(add_memory(create("timm"), 5, mask=mask), "tokens")
