"""Steps of different image sizes: as many pixels each, the same size on every device, the same number an epoch."""

from collections import Counter
from types import SimpleNamespace

import pytest
import timm

pytest.importorskip("lightning")
from longvision.data import DigitsData
from longvision.data.multi_scale import MultiScaleOrder
from longvision.data.ordering import check_model
from longvision.errors import UserError
from longvision.models.backbone import create_backbone
from longvision.models.memory import add_memory

SIDES = (128, 160, 192)


def order(devices=1, rank=0, epoch=0, begin=0, count=1000, **options):
    options = {"size": (160, 160), "sides": SIDES, "batch": 16, **options}
    made = MultiScaleOrder(count, 7, devices, rank, **options)
    made.set_epoch(epoch, begin)
    return made


def test_a_step_has_the_pixels_of_a_batch():
    steps = list(order())
    assert len(steps) == len(order())
    for step in steps:
        (size,) = {draw.size for draw in step}
        assert len(step) == {128: 25, 160: 16, 192: 11}[size[0]]  # 16 * 160 ** 2 pixels or a few less
    counts = Counter(step[0].size for step in steps)
    assert set(counts) == {(side, side) for side in SIDES}
    assert max(counts.values()) - min(counts.values()) <= 1
    rows = [draw.row for step in steps for draw in step]
    assert len(set(rows)) == len(rows) > 1000 - 25


def test_epochs_have_as_many_steps_in_another_order_that_the_seed_gives():
    plans = [[step[0].size for step in order(epoch=epoch)] for epoch in (0, 1, 0)]
    assert plans[0] == plans[2] != plans[1]
    assert sorted(plans[0]) == sorted(plans[1])


def test_devices_have_the_same_size_at_a_step_and_no_image_twice():
    parts = [list(order(2, rank)) for rank in (0, 1)]
    assert [step[0].size for step in parts[0]] == [step[0].size for step in parts[1]]
    rows = [draw.row for part in parts for step in part for draw in step]
    assert len(set(rows)) == len(rows)
    assert all(len(a) == len(b) == {128: 25, 160: 16, 192: 11}[a[0].size[0]] for a, b in zip(*parts))


@pytest.mark.parametrize("done", [0, 1, 5])
def test_an_epoch_goes_on_behind_its_first_steps(done):
    whole = order(2, 1, epoch=3)
    whole.set_epoch(3, 0)
    begin = whole.after(done)
    rest = order(2, 1, epoch=3, begin=begin)
    assert list(rest) == list(whole)[done:]
    assert (rest.steps(begin), rest.after(2)) == (len(whole) - done, whole.after(done + 2))


def test_another_batch_size_goes_on_behind_the_images_that_were_shown():
    shown = {draw.row for step in list(order())[:4] for draw in step}
    rest = [draw.row for step in order(begin=order().after(4), batch=8) for draw in step]
    assert not shown & set(rest)
    assert len(rest) > (1000 - len(shown)) * 0.9


def test_a_set_smaller_than_a_step_is_one():
    steps = list(order(count=10))
    assert [len(step) for step in steps] == [10]
    assert [len(list(order(3, rank, count=2))) for rank in range(3)] == [1, 1, 1]


def test_batches_of_a_source():
    data = DigitsData(size=16, batch_size=32, sizes=(8, 16, 24)).build()
    data.setup("fit")
    batches = list(data.train_dataloader())
    assert len(batches) == data.batches()
    assert {tuple(images_BCHW.shape) for images_BCHW, _ in batches} == {
        (128, 1, 8, 8),
        (32, 1, 16, 16),
        (14, 1, 24, 24),
    }
    assert {tuple(images_BCHW.shape[2:]) for images_BCHW, _ in data.val_dataloader()} == {(16, 16)}


@pytest.mark.parametrize(
    "options, words",
    [({"sizes": (64,), "batch_size": 3}, ["64x64", "batch of 3", "16x16"]), ({"sizes": (0,)}, ["[0]"]),
     ({"sizes": (8, 8)}, ["[8, 8]"])],
    ids=["a-size-above-the-batch", "no-size", "twice"],
)  # fmt: skip
def test_mistakes(options, words):
    with pytest.raises(UserError) as raised:
        DigitsData(size=16, **options)
    assert [word for word in words if word not in str(raised.value)] == []


def checked(name, size=32, sizes=(), **args):
    model = timm.create_model(name, img_size=size, in_chans=1, **args)
    trainer = SimpleNamespace(accumulate_grad_batches=1, overfit_batches=0)
    check_model(DigitsData(size=size, sizes=sizes).build(), model, trainer)


@pytest.mark.parametrize(
    "name, sizes, args, words",
    [
        ("vim_nano_patch4_32", (24, 30), {}, ["30x30", "28x28 or 32x32", "--model.args.pad"]),
        ("vit_nano_patch4_32", (24, 30), {}, ["30x30", "28x28 or 32x32", "--model.args.pad"]),
        ("vit_nano_patch4_32", (24, 30), {"pad": True}, []),
        ("vim_nano_patch4_32", (24, 30), {"stride": 2}, []),
        ("test_vit", (64, 40), {"dynamic_img_size": True}, ["40x40", "32x32 or 48x48", "dynamic_img_pad"]),
        ("test_vit", (64, 40), {"dynamic_img_size": True, "dynamic_img_pad": True}, []),
        ("test_vit", (64,), {"dynamic_img_size": False}, ["32x32 alone", "dynamic_img_size"]),
    ],
    ids=["vim", "vit", "padded", "stride", "timm", "timm-padded", "timm-of-one-size"],
)
def test_sizes_that_do_not_divide_into_the_model_s_patches(name, sizes, args, words):
    """Before the first step, which may be of another size."""
    if not words:
        return checked(name, sizes=sizes, **args)
    with pytest.raises(UserError) as raised:
        checked(name, sizes=sizes, **args)
    assert [word for word in words if word not in str(raised.value)] == []


def test_sizes_that_the_base_of_tasks_does_not_take():
    model = add_memory(timm.create_model("test_vit", img_size=32, in_chans=1, dynamic_img_size=False), 2, mask=True)
    trainer = SimpleNamespace(accumulate_grad_batches=1, overfit_batches=0)
    with pytest.raises(UserError, match="32x32 alone"):
        check_model(DigitsData(size=32, sizes=(32, 48)).build(), model, trainer)


def test_a_size_alone_that_does_not_divide():
    with pytest.raises(UserError, match="30x30"):
        checked("vit_nano_patch4_32", size=30)
    with pytest.raises(UserError, match=r"40x40.*32x32 or 48x48.*dynamic_img_size true .*dynamic_img_pad true"):
        checked("test_vit", size=40, dynamic_img_size=False)  # timm would leave the edge out
    checked("test_vit", size=40, dynamic_img_size=True, dynamic_img_pad=True)


@pytest.mark.parametrize(
    "name, args",
    [("test_convnext", {}), ("test_vit", {"dynamic_img_size": True}), ("test_resnet", {}), ("vit_nano_patch4_32", {})],
)
def test_models_of_any_size_take_the_steps_of_all(name, args):
    data = DigitsData(size=32, batch_size=8, sizes=(32, 48, 64)).build()
    model = create_backbone(name, 10, 1, (32, 32), args=args)
    check_model(data, model, SimpleNamespace(overfit_batches=0, accumulate_grad_batches=1))
    data.setup("fit")
    seen = set()
    for images_BCHW, labels_B in data.train_dataloader():
        if images_BCHW.shape not in seen:
            model(images_BCHW).mean().backward()
            seen.add(images_BCHW.shape)
            assert len(labels_B) == 8 * 32 * 32 // images_BCHW.shape[2] ** 2
        if len(seen) == 3:
            break
    assert {side for *_, side in seen} == {32, 48, 64}
