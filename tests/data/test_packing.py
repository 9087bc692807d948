"""Packs of patches: what is in them, how full they are, and that a device or a break changes nothing of that."""

import os
import tracemalloc
from collections import Counter
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import timm
import torch
from PIL import Image

pytest.importorskip("lightning")
from longvision.data import Augment, DigitsData, FolderData, read_image
from longvision.data.io.headers import upright_size
from longvision.data.io.images import decoded_at_least
from longvision.data.ordering import check_model
from longvision.data.packed_order import PackedOrder
from longvision.data.packing import PackingConfig, drawn_lengths, drawn_tokens, grids_of, packs_of
from longvision.errors import UserError
from longvision.models import NAMES
from longvision.models.memory import add_memory
from longvision.types import PackedImages

SHARED = os.environ.get("LONGVISION_SHARED", "")
# heights and widths of photographs as ImageNet has them: mostly 4:3, some 3:2, square, upright, and a few of any shape
COMMON = [((375, 500), 0.5), ((500, 375), 0.15), ((333, 500), 0.12), ((500, 333), 0.05), ((500, 500), 0.08)]


def photographs(count, seed=0):
    random = np.random.default_rng(seed)
    shares = np.array([share for _, share in COMMON] + [0.1])
    kinds = random.choice(len(shares), count, p=shares / shares.sum())
    rare = np.stack([np.full(count, 500), 500 * np.exp(random.normal(0, 0.4, count))], 1).astype(int)
    return np.where((kinds == len(COMMON))[:, None], rare, np.array([shape for shape, _ in COMMON] + [(1, 1)])[kinds])


def waste(lengths, budget=4096):
    packs = list(packs_of(lengths, budget))
    return 1 - sum(lengths[place] for pack in packs[:-1] for place in pack) / (budget * (len(packs) - 1))


@pytest.mark.parametrize(
    "sizes_by, sides", [("list", (224,)), ("list", (160, 224, 288)), ("uniform", (128, 320)), ("normal", (64, 384))]
)
def test_packs_of_photographs_waste_less_than_two_percent(sizes_by, sides):
    shapes_N2, draw = photographs(5000), np.random.default_rng(1)
    config = PackingConfig(pack=True, sizes_by=sizes_by, drop=0.2 * (sizes_by == "normal"), drop_by="beta")
    patches_N = grids_of(shapes_N2, drawn_tokens(config, sides, 16, len(shapes_N2), draw)).prod(1)
    assert waste(drawn_lengths(config, patches_N, (16, 576), draw).tolist()) < 0.02


@pytest.mark.skipif(not os.path.isdir(SHARED), reason="needs the shared data")
@pytest.mark.parametrize("name", ["coco", "camvid"])
def test_packs_of_real_headers_waste_less_than_two_percent(name):
    files = [file for file in sorted(Path(SHARED, "data", name).rglob("*.*")) if file.suffix in (".jpg", ".png")][:100]
    shapes_N2 = np.array([upright_size(file) for file in files] * 20)
    config, draw = PackingConfig(pack=True, sizes_by="uniform"), np.random.default_rng(0)
    lengths = grids_of(shapes_N2, drawn_tokens(config, (128, 320), 16, len(shapes_N2), draw)).prod(1)
    assert waste(lengths.tolist()) < 0.02


def test_every_image_is_in_one_pack_and_none_is_too_full():
    lengths = np.random.default_rng(0).integers(1, 300, 2000).tolist()
    packs = list(packs_of(lengths, 1000, ahead=32))
    assert sorted(place for pack in packs for place in pack) == list(range(2000))
    assert max(sum(lengths[place] for place in pack) for pack in packs) <= 1000
    number = {place: number for number, pack in enumerate(packs) for place in pack}
    assert max(abs(number[place] - number[place + 1]) for place in range(1999)) < 32  # none waits for long


def test_the_packer_looks_no_further_ahead_than_it_must():
    seen = 0

    def coming():
        nonlocal seen
        for _ in range(10_000):
            seen += 1
            yield 10

    packs = packs_of(coming(), 100, ahead=16)
    assert [len(next(packs)) for _ in range(3)] == [10, 10, 10]
    assert seen <= 3 * 10 + 16 + 1


@pytest.mark.parametrize("shape", [(375, 500), (500, 375), (64, 64), (1, 4000), (4000, 1), (480, 640), (1, 1)], ids=str)
def test_an_image_keeps_its_proportions_in_no_more_patches_than_it_may_have(shape):
    ((rows, columns),) = grids_of(np.array([shape]), np.array([196]))
    assert 1 <= rows * columns <= 196
    if max(shape) < 10 * min(shape):
        assert columns / rows == pytest.approx(shape[1] / shape[0], rel=0.08)
        assert rows * columns > 0.85 * 196


def test_sizes_are_drawn_as_asked():
    def sides(sizes_by):
        config = PackingConfig(pack=True, sizes_by=sizes_by)
        return 16 * np.sqrt(drawn_tokens(config, (128, 256), 16, 4000, np.random.default_rng(0)))

    assert set(sides("list")) == {128, 256}
    assert np.mean(sides("uniform")) == pytest.approx(192 - 1, abs=3)
    assert np.mean(sides("normal") < 192) > 0.6
    assert all(sides(by).min() >= 128 and sides(by).max() <= 256 for by in ("uniform", "normal"))


@pytest.mark.parametrize("drop_by", ["fixed", "beta", "resolution"])
def test_patches_are_dropped_as_asked(drop_by):
    patches_N = np.linspace(100, 1000, 2000).round().astype(int)
    config = PackingConfig(pack=True, drop=0.4, drop_by=drop_by)
    rate_N = 1 - drawn_lengths(config, patches_N, (100, 1000), np.random.default_rng(0)) / patches_N
    assert rate_N.mean() == pytest.approx(0.4, abs=0.01)
    if drop_by == "fixed":
        assert rate_N.std() < 0.005
    elif drop_by == "beta":
        assert rate_N.std() == pytest.approx(np.sqrt(0.4 * 0.6 / 11), rel=0.1)
    else:
        assert (rate_N[0], rate_N[-1]) == (pytest.approx(0, abs=0.01), pytest.approx(0.8, abs=0.01))


def order(devices=1, rank=0, epoch=0, begin=0, count=400, tokens=512, **options):
    config = PackingConfig(pack=True, tokens=tokens, sizes_by="uniform", drop=0.25, drop_by="beta", **options)
    made = PackedOrder(
        count, 3, devices, rank, shapes_N2=photographs(count), sides=(64, 160), patch=16, config=config, batch=64
    )
    made.set_epoch(epoch, begin)
    return made


def test_devices_share_the_packs_of_an_epoch_and_have_as_many():
    parts = [list(order(2, rank, epoch=1)) for rank in (0, 1)]
    assert len(parts[0]) == len(parts[1]) == len(order(2)) == len(order(2, epoch=5))
    rows = [draw.row for part in parts for pack in part for draw in pack]
    again = len(rows) - len(set(rows))
    assert again == 0 or len(rows) > 400  # only when each was there once
    assert all(sum(draw.length for draw in pack) <= 512 for part in parts for pack in part)


@pytest.mark.parametrize("done", [0, 1, 7])
def test_an_epoch_goes_on_behind_its_first_packs(done):
    whole = order(2, 1, epoch=2)
    begin = whole.after(done)
    rest = order(2, 1, epoch=2, begin=begin)
    assert list(rest) == list(whole)[done:]
    assert (rest.steps(begin), rest.after(3)) == (len(whole) - done, whole.after(done + 3))


def test_epochs_differ_and_the_seed_gives_them():
    assert list(order(epoch=1)) == list(order(epoch=1)) != list(order(epoch=0))


def test_an_epoch_that_has_fewer_packs_than_the_first_shows_its_first_ones_again_varied_otherwise():
    made = order()
    made.packs = 200
    draws = [draw for pack in made for draw in pack]
    assert len(draws) == len(set(draws))
    assert max(Counter(draw.row for draw in draws).values()) > 1


def test_the_plan_of_an_epoch_takes_few_bytes_an_image():
    """Arrays: as objects, 230 bytes each, ImageNet's took 400 MB in every process."""
    made = order(count=4000, epoch=1)
    tracemalloc.start()
    packs = iter(made)
    next(packs)
    held, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert held < 60 * 4000


@pytest.fixture
def photos(tmp_path):
    for number in range(20):
        for name in ("cat", "dog"):
            (tmp_path / name).mkdir(exist_ok=True)
            pixels = np.random.default_rng(number).integers(0, 256, (30 + number, 60 - number, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / name / f"{number}.png")
    return str(tmp_path)


def test_batches_hold_the_images_themselves(photos):
    """Without variation a pack's patches are those of each image as evaluation sees it."""
    plain = Augment(crop_scale=None, flip=0)
    data = FolderData(photos, size=32, pack=True, tokens=40, patch=8, workers=0, augment=plain).build()
    data.setup("fit")
    draws, batch = next(iter(data.order())), next(iter(data.train_dataloader()))
    assert batch[0].patches.dtype == torch.uint8
    packed, labels_B = data.transforms.mix(batch)
    images = [data.images("train")[draw.row] for draw in draws]
    alone = PackedImages.from_images([data.input.evaluated(image) for image, _ in images], 8)
    assert packed.grids == alone.grids and labels_B.tolist() == [label for _, label in images]
    # torch and Pillow round bytes otherwise here and there: by one, of 255
    torch.testing.assert_close(packed.patches, alone.patches, atol=1.1 / 255 / 0.224, rtol=0)
    assert packed.patches.shape[1] <= 40
    (evaluated, _), *_ = data.val_dataloader()
    assert evaluated.patches.dtype == torch.float32 and len(evaluated) == 2  # of 16 patches each, and the budget is 40


@pytest.mark.parametrize("tokens, images", [(16, 1), (47, 2), (64, 4)])
def test_evaluation_keeps_to_the_budget(photos, tokens, images):
    data = FolderData(photos, size=32, pack=True, tokens=tokens, patch=8, workers=0, batch_size=64).build()
    data.setup("validate")
    packs = [packed for packed, _ in data.val_dataloader()]
    assert max(map(len, packs)) == images and max(packed.patches.shape[1] for packed in packs) <= tokens
    assert sum(map(len, packs)) == len(data.images("val"))


@pytest.mark.parametrize("erase", [0.0, 1.0])
def test_crops_have_the_image_s_proportions_and_patches_are_left_out(photos, erase):
    options = {"drop": 0.5, "drop_by": "fixed", "sizes": (16, 48), "sizes_by": "uniform"}
    augment = Augment(erase=erase, rand_augment="rand-m5-n1")
    data = FolderData(photos, size=32, pack=True, tokens=64, patch=8, workers=0, augment=augment, **options).build()
    data.setup("fit")
    for draws, (packed, _) in zip(data.order(), data.train_dataloader(), strict=True):
        assert packed.grids == tuple((draw.size[0] // 8, draw.size[1] // 8) for draw in draws)
        assert packed.lengths == tuple(draw.length for draw in draws)
        assert packed.patches.dtype == (torch.float32 if erase else torch.uint8)
        for (rows, columns), length in zip(packed.grids, packed.lengths):
            assert length == max(1, round(rows * columns / 2))


def test_a_large_jpeg_is_decoded_at_a_part_of_its_size_and_looks_the_same(tmp_path):
    """No smaller than it is shown; where it lies otherwise, too."""
    shades = np.linspace(0, 255, 400 * 640).reshape(400, 640).astype(np.uint8)
    for name, pixels in {"wide": shades, "high": shades.T.copy()}.items():
        (tmp_path / name).mkdir()
        for number in range(3):
            Image.fromarray(pixels).convert("RGB").save(tmp_path / name / f"{number}.jpg", quality=95)
    with decoded_at_least((100, 161)):
        assert [read_image(tmp_path / name / "0.jpg").size for name in ("wide", "high")] == [(320, 200), (200, 320)]
    assert read_image(tmp_path / "wide" / "0.jpg").size == (640, 400)
    plain = Augment(crop_scale=None, flip=0)
    data = FolderData(str(tmp_path), size=128, pack=True, tokens=64, patch=16, workers=0, augment=plain).build()
    data.setup("fit")
    draws, batch = next(iter(data.order())), next(iter(data.train_dataloader()))
    alone = PackedImages.from_images([data.input.evaluated(data.images("train")[draws[0].row][0])], 16)
    torch.testing.assert_close(data.transforms.mix(batch)[0].patches, alone.patches, atol=0.05, rtol=0)


def test_an_image_that_cannot_be_read_leaves_its_pack(photos):
    broken = Path(photos, "cat", "3.png")
    broken.write_bytes(broken.read_bytes()[:100])
    data = FolderData(photos, size=32, pack=True, tokens=64, patch=8, workers=0, unreadable=0.2).build()
    data.setup("fit")
    with pytest.warns(UserWarning, match="3.png"):
        packs = list(data.train_dataloader())
    counts = [len(packed) for packed, _ in packs]
    assert sum(counts) in (sum(map(len, data.order())) - 1, sum(map(len, data.order())))
    assert read_image(Path(photos, "cat", "4.png"), 3).size == (56, 34)


@pytest.mark.parametrize(
    "options, words",
    [
        ({}, []),
        ({"accumulate_grad_batches": 4}, ["accumulate_grad_batches 4"]),
        ({"overfit_batches": 2}, ["overfit_batches"]),
    ],
    ids=["plain", "accumulated", "overfit"],
)
@pytest.mark.parametrize("given", [{"pack": True}, {"sizes": (8, 16)}], ids=["packs", "sizes"])
def test_what_a_trainer_cannot_do_with_packs(options, words, given):
    """Nor with batches of several sizes: they have different numbers of images, and accumulated would weigh alike."""
    trainer = SimpleNamespace(**{"accumulate_grad_batches": 1, "overfit_batches": 0, **options})
    data = DigitsData(size=16, **given).build()
    with pytest.raises(UserError, match=words[0]) if words else nullcontext():
        embed = SimpleNamespace(patch=4, stride=4)
        check_model(data, SimpleNamespace(takes_packed=True, patch_embed=embed), trainer)


def test_a_model_that_cannot_pack_is_told_all_that_can(monkeypatch):
    models = ["resnet18", "test_vit", "vim_nano_patch4_32", "vim_tiny_patch16_stride8_224", "vit_nano_patch4_32"]
    monkeypatch.setattr(timm, "list_models", lambda: models)
    trainer = SimpleNamespace(accumulate_grad_batches=1, overfit_batches=0)
    with pytest.raises(UserError, match=r"Linear cannot .* one of vim_nano_patch4_32, vit_nano_patch4_32, or leave"):
        check_model(DigitsData(size=16, pack=True).build(), torch.nn.Linear(1, 1), trainer)


@pytest.mark.parametrize("mask", [False, True])
def test_a_model_with_memory_cannot_pack(monkeypatch, mask):
    monkeypatch.setattr(timm, "list_models", lambda: ["vim_nano_patch4_32"])
    model = add_memory(timm.create_model("vim_nano_patch4_32", depth=1), 2, mask=mask)
    trainer = SimpleNamespace(accumulate_grad_batches=1, overfit_batches=0)
    with pytest.raises(UserError, match=f"{type(model).__name__} cannot take packed .* with memory"):
        check_model(DigitsData(size=16, pack=True).build(), model, trainer)


def test_models_of_ours_say_their_class():
    """By which the ones that pack are found."""
    for name in NAMES:
        assert issubclass(timm.models.model_entrypoint(name).__annotations__["return"], torch.nn.Module), name


@pytest.mark.parametrize(
    "options, words",
    [
        ({"tokens": 3, "patch": 4}, ["tokens 3", "16x16", "16 patches"]),
        ({"tokens": 20, "patch": 4, "sizes": (24,)}, ["24x24", "36"]),
        ({"size": 18, "patch": 4}, ["18", "patches of 4"]),
        ({"size": (16, 32)}, ["16, 32"]),
        ({"augment": Augment(mixup=0.2)}, ["mixup", "leave data.pack out"]),
        ({"augment": Augment(cutmix=0.2)}, ["cutmix"]),
        ({"drop": 1.0}, ["drop 1.0"]),
        ({"drop": 0.7, "drop_by": "resolution", "sizes": (8, 16)}, ["drop 0.7"]),
        ({"drop": 0.3, "drop_by": "resolution"}, ["two sizes"]),
        ({"sizes_by": "uniform", "sizes": (8,)}, ["two sizes"]),
        ({"total_batch": 64}, ["total_batch"]),
        ({"pack": False, "drop": 0.2}, ["data.drop 0.2", "data.pack true", "at 0.0"]),
        ({"pack": False, "drop_by": "beta"}, ["data.drop_by beta", "data.pack true", "at fixed"]),
        ({"pack": False, "sizes_by": "normal"}, ["data.sizes_by normal", "data.pack true", "at list"]),
        ({"pack": False, "tokens": 512, "patch": 4}, ["data.tokens 512, data.patch 4", "data.pack true", "4096, null"]),
    ],
    ids=lambda value: None if isinstance(value, list) else "-".join(value),
)
def test_mistakes(options, words):
    with pytest.raises(UserError) as raised:
        DigitsData(**{"size": 16, "pack": True, **options})
    assert [word for word in words if word not in str(raised.value)] == []


def test_a_turned_image_has_a_turned_grid():
    """And so are its proportions kept as well: 10 x 40 pixels in 12 patches had been 7 x 1."""
    random = np.random.default_rng(0)
    shapes_N2, tokens_N = random.integers(1, 500, (1000, 2)), random.integers(1, 300, 1000)
    grids_N2 = grids_of(shapes_N2, tokens_N)
    square_N = shapes_N2[:, 0] == shapes_N2[:, 1]  # 13 patches of a square are 4 x 3, whichever side is up
    assert ((grids_of(shapes_N2[:, ::-1], tokens_N) == grids_N2[:, ::-1]).all(1) | square_N).all()
    assert (grids_N2 >= 1).all() and (grids_N2.prod(1) <= tokens_N).all()
    assert grids_of(np.array([[40, 10]]), np.array([12])).tolist() == [[6, 2]]
