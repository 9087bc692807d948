"""A model read back from its file says what the same model says that was never written, of images in any form."""

import math
import types

import numpy as np
import pytest
import safetensors.torch
import torch
from PIL import Image

from longvision.errors import ImageTooLarge, UnreadableImage, UserError
from longvision.inference import InferenceConfig, Predictor, classification
from longvision.inference.description import read_description
from longvision.inference.windows import probabilities
from support.forked import Forked
from support.trained import CLASSES, PALETTE, write_model

NEEDS = {"segmentation": "segmentation_models_pytorch", "detr": "transformers"}
TASKS = ["classification", "segmentation", "detection", "detr"]


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """task -> (the model, the file that it was written to)."""
    made = {}

    def write(task):
        pytest.importorskip(NEEDS.get(task, "torch"))
        if task not in made:
            path = tmp_path_factory.mktemp(task) / "model.safetensors"
            made[task] = write_model(task, path), path
        return made[task]

    return write


def images(*sizes):
    """PIL images (width, height) of noise."""
    random = np.random.default_rng(0)
    return [Image.fromarray(random.integers(0, 256, (height, width, 3), dtype=np.uint8)) for width, height in sizes]


def normalised(image, mean, std):
    x_CHW = torch.from_numpy(np.array(image)).float().div(255).reshape(image.height, image.width, -1).permute(2, 0, 1)
    return (x_CHW - torch.tensor(mean)[:, None, None]) / torch.tensor(std)[:, None, None]


def imagenet(image):
    return normalised(image, [0.485, 0.456, 0.406], [0.229, 0.224, 0.225])


def values(result):
    """All that a result says of an image, as arrays."""
    if hasattr(result, "probabilities_K"):
        return [result.probabilities_K]
    if hasattr(result, "mask_HW"):
        return [result.mask_HW, *result.scores.values()]
    found = result.detections
    return [found.boxes, found.scores, found.labels, *([] if found.masks is None else [found.masks])]


def assert_same(result, other):
    assert type(result) is type(other)
    for one, two in zip(values(result), values(other), strict=True):
        np.testing.assert_allclose(one, two, rtol=1e-4, atol=1e-4)


# -- what it says, by hand


def test_a_classifier_s_probabilities(written):
    model, path = written("classification")
    # (24 / 0.9, 16 / 0.9) pixels and a centre crop: 26 x 17, of which 24 x 16
    (image,) = images((26, 17))
    grey = image.convert("L")
    cut = normalised(grey, [0.4], [0.2])[:, 0:16, 1:25]
    with torch.inference_mode():
        shares = model(cut[None]).softmax(1)[0]
    result = Predictor(path, "cpu")(image)
    np.testing.assert_allclose(result.probabilities_K, shares, rtol=1e-5)
    assert dict(result.top(7)) == pytest.approx(dict(zip(CLASSES, shares.tolist())), rel=1e-5)
    assert [share for _, share in result.top(3)] == pytest.approx(sorted(shares.tolist(), reverse=True)[:3], rel=1e-5)
    assert (result.name, result.classes, result.input.mode, result.input.size) == ("image-1", CLASSES, "L", (26, 17))


@pytest.mark.parametrize("config", [InferenceConfig(), InferenceConfig(window=64, flip=True)])
def test_a_segmentation_s_mask(written, config):
    model, path = written("segmentation")
    (image,) = images((70, 90))
    with torch.inference_mode():
        shares_KHW = probabilities(model, imagenet(image), len(CLASSES), (90, 70), config)
    result = Predictor(path, "cpu", inference=config)(image)
    assert result.mask_HW.dtype == np.uint8 and np.array_equal(result.mask_HW, shares_KHW.argmax(0))
    number = int(result.mask_HW[0, 0])
    expected = shares_KHW[number][torch.from_numpy(result.mask_HW) == number].mean()
    assert result.scores[number] == pytest.approx(float(expected), rel=1e-5)
    assert result.palette == PALETTE


@pytest.mark.parametrize("task", ["detection", "detr"])
def test_a_detector_s_objects(written, task):
    model, path = written(task)
    (image,) = images((70, 90))
    with torch.inference_mode():
        (expected,) = model.detect([imagenet(image)], [(90, 70)])
    found = Predictor(path, "cpu")(image).detections
    assert len(found) == len(expected) > 0
    for name in ("boxes", "scores", "labels", *(["masks"] if task == "detection" else [])):
        np.testing.assert_allclose(getattr(found, name), getattr(expected, name), rtol=1e-4, atol=1e-4)


def test_windows_are_the_run_s_where_nothing_else_is_said(tmp_path):
    pytest.importorskip("segmentation_models_pytorch")
    path = tmp_path / "model.safetensors"
    write_model("segmentation", path, asking={"window": 64, "stride": 40}, inference=None)
    (image,) = images((100, 80))
    predictor = Predictor(path, "cpu")
    assert_same(predictor(image), Predictor(path, "cpu", inference=InferenceConfig(window=64, stride=40))(image))
    whole = Predictor(path, "cpu", inference=InferenceConfig())(image)
    assert any(abs(whole.scores[k] - predictor(image).scores.get(k, 0)) > 1e-4 for k in whole.scores)


# -- how it is asked


@pytest.mark.parametrize("task", TASKS)
def test_one_or_many_in_any_batch_and_order(written, task):
    _, path = written(task)
    several = images((70, 60), (70, 60), (50, 90), (70, 60))
    alone = [Predictor(path, "cpu", batch=1)(image) for image in several]
    together = Predictor(path, "cpu", batch=3)(several)
    assert isinstance(together, list) and [result.name for result in together] == [f"image-{n}" for n in (1, 2, 3, 4)]
    for one, other in zip(alone, together, strict=True):
        assert_same(one, other)
    assert Predictor(path, "cpu")(tuple(several[:1]))[0].name == "image-1"


def test_batches_are_no_larger_than_asked_for(written):
    _, path = written("classification")
    predictor, seen = Predictor(path, "cpu", batch=2), []
    predictor.model.register_forward_pre_hook(lambda _, arguments: seen.append(len(arguments[0])))
    predictor(images(*[(30, 30)] * 5))
    assert seen == [2, 2, 1]


def test_an_iterator_is_read_as_its_results_are_asked_for(written):
    _, path = written("classification")
    read = []

    def source():
        for number, image in enumerate(images(*[(30, 30)] * 9)):
            read.append(number)
            yield image

    results = Predictor(path, "cpu", batch=2)(source())
    assert isinstance(results, types.GeneratorType) and not read
    next(results)
    assert len(read) <= 3
    assert len(list(results)) == 8


def test_a_list_of_none(written):
    assert Predictor(written("classification")[1], "cpu")([]) == []


def test_paths_are_the_names_of_results(written, tmp_path):
    images((9, 9))[0].save(tmp_path / "a.png")
    predictor = Predictor(written("classification")[1], "cpu")
    assert predictor(tmp_path / "a.png").name == predictor(str(tmp_path / "a.png")).name == str(tmp_path / "a.png")
    assert predictor((tmp_path / "a.png").read_bytes()).name == "image-1"


def test_dropout_is_off_and_no_gradient_is_held(tmp_path):
    path = tmp_path / "model.safetensors"
    write_model("classification", path, args={"depth": 2, "embed_dim": 32, "drop_rate": 0.5, "drop_path_rate": 0.5})
    predictor, (image,) = Predictor(path, "cpu"), images((30, 20))
    assert_same(predictor(image), predictor(image))
    seen = []
    predictor.model.register_forward_hook(lambda _, arguments, output: seen.append(output.requires_grad))
    predictor(image)
    assert seen == [False]


def test_a_model_in_hand(written):
    model, path = written("classification")
    model.train()
    predictor = Predictor(model, description=read_description(path))
    (image,) = images((40, 30))
    assert_same(predictor(image), Predictor(path, "cpu")(image))
    assert predictor.model is model and not model.training
    with pytest.raises(TypeError, match="Description"):
        Predictor(model)


def test_a_run_s_folder(written):
    _, path = written("classification")
    (image,) = images((40, 30))
    assert_same(Predictor(path.parent, "cpu")(image), Predictor(str(path), "cpu")(image))


# -- devices


@pytest.mark.parametrize("task", TASKS)
def test_the_device_is_the_caller_s_for_every_task(written, task):
    predictor = Predictor(written(task)[1], "cpu")
    assert predictor.device.type == "cpu"
    assert {parameter.device.type for parameter in predictor.model.parameters()} == {"cpu"}


@pytest.mark.parametrize("task", TASKS)
def test_a_gpu_is_the_default_for_every_task(written, task, monkeypatch):
    """Shown where there is none: the model is asked to move there."""
    _, path = written(task)
    moved = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.nn.Module, "to", lambda self, device=None, **_: moved.append(device) or self)
    predictor = Predictor(path)
    assert predictor.device == moved[-1] == torch.device("cuda")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("task", TASKS)
def test_a_gpu_gives_the_same(written, task):
    _, path = written(task)
    (image,) = images((70, 90))
    on_gpu = Predictor(path)
    assert next(on_gpu.model.parameters()).is_cuda
    result, expected = on_gpu(image), Predictor(path, "cpu")(image)
    if task in ("classification", "detr"):
        for one, two in zip(values(result), values(expected), strict=True):
            np.testing.assert_allclose(one, two, rtol=1e-2, atol=1e-2)


# -- what fails


def test_files_that_are_no_images_are_told_and_left_out(written, tmp_path):
    (tmp_path / "bad.png").write_text("no image")
    good = images((30, 30), (30, 30))
    predictor = Predictor(written("classification")[1], "cpu")
    with pytest.raises(UnreadableImage, match=r"bad\.png"):
        predictor([good[0], tmp_path / "bad.png"])
    told = []
    results = predictor.stream(
        [good[0], tmp_path / "bad.png", good[1]], lambda source, error: told.append((source, error))
    )
    assert [result.name for result in results] == ["image-1", "image-3"]
    assert [source for source, _ in told] == [tmp_path / "bad.png"] and isinstance(told[0][1], UnreadableImage)


def test_where_a_batch_is_too_large_its_images_may_fit_alone(written, monkeypatch):
    predictor = Predictor(written("classification")[1], "cpu", batch=4)
    several = images((30, 30), (31, 30), (30, 30), (30, 30))
    expected = predictor(several)
    forward = predictor.model.forward

    def limited(x_BCHW):
        if len(x_BCHW) > 1 or x_BCHW.mean() == refused:
            raise RuntimeError("CUDA out of memory. Tried to allocate 99 bytes")
        return forward(x_BCHW)

    refused = None
    monkeypatch.setattr(predictor.model, "forward", limited)
    for one, other in zip(predictor(several), expected, strict=True):
        assert_same(one, other)
    refused = predictor._task.prepare(several[1].convert("L"))[None].mean()
    told = []
    assert len(list(predictor.stream(several, lambda _, error: told.append(error)))) == 3
    assert isinstance(told[0], ImageTooLarge) and "image-2 (31x30 pixels)" in str(told[0])
    with pytest.raises(ImageTooLarge, match="image-2"):
        predictor(several)


def test_a_bug_is_not_a_lack_of_memory(written, monkeypatch):
    predictor = Predictor(written("classification")[1], "cpu")
    told = []
    for bug in (lambda x: 1 / 0, lambda x: torch.zeros(2, 3) @ torch.zeros(2, 3)):
        monkeypatch.setattr(predictor.model, "forward", bug)
        with pytest.raises((ZeroDivisionError, RuntimeError)):
            list(predictor.stream(images((9, 9))))
        assert list(predictor.stream(images((9, 9)), lambda _, error: told.append(error))) == []
    assert [type(error) for error in told] == [ZeroDivisionError, RuntimeError]


@pytest.mark.parametrize("task", ["classification", "detection"])
def test_windows_for_a_task_without_them_are_refused(written, task):
    with pytest.raises(UserError, match=task):
        Predictor(written(task)[1], "cpu", inference=InferenceConfig(window=8))


def test_a_batch_of_none_is_refused(written):
    with pytest.raises(UserError, match="batch 0"):
        Predictor(written("classification")[1], "cpu", batch=0)


def test_weights_of_another_model_or_task(tmp_path):
    path = tmp_path / "model.safetensors"
    write_model("classification", path, args={"depth": 3, "embed_dim": 32})
    with pytest.raises(ValueError, match=r"layers\.2.* is missing"):
        Predictor(path, "cpu")
    write_model("classification", tmp_path / "b.safetensors", task="counting")
    with pytest.raises(UserError, match="counting"):
        Predictor(tmp_path / "b.safetensors", "cpu")


# -- what it needs


def test_its_file_is_opened_once(written, monkeypatch):
    _, path = written("classification")
    opened, safe_open = [], safetensors.safe_open
    for module in (safetensors, safetensors.torch):
        monkeypatch.setattr(
            module, "safe_open", lambda *words, **more: opened.append(words) or safe_open(*words, **more)
        )
    Predictor(path, "cpu")
    assert len(opened) == 1


@pytest.mark.parametrize("task", TASKS)
def test_it_loads_nothing_that_only_training_needs(written, tmp_path, task):
    _, path = written(task)
    code = f"""
import sys
import numpy as np
from longvision.inference import Predictor
result = Predictor({str(path)!r}, "cpu")(np.zeros((64, 64, 3), np.uint8))
heavy = "lightning torchmetrics matplotlib sklearn pandas pyarrow tensorboard jsonargparse".split()
heavy += [] if {task!r} == "detr" else ["transformers"]
heavy += [] if {task!r} == "segmentation" else ["segmentation_models_pytorch"]
print([name for name in heavy if name in sys.modules])
result.image()
print([name for name in heavy if name in sys.modules])
"""
    done = Forked(tmp_path, code).wait()
    assert done.stdout.splitlines() == ["[]", "[]"], done.stderr or done.stdout


# -- images of a number of tokens


def test_images_of_a_number_of_tokens(written):
    """40 x 10 pixels in 12 patches of 4: two rows of six, in an image that is not cropped."""
    model, path = written("classification")
    (image,) = images((40, 10))
    small = normalised(image.convert("L").resize((24, 8), Image.Resampling.BICUBIC), [0.4], [0.2])
    with torch.inference_mode():
        shares = model(small[None]).softmax(1)[0]
    predictor = Predictor(path, "cpu", tokens=12)
    np.testing.assert_allclose(predictor(image).probabilities_K, shares, rtol=1e-5)
    assert predictor.milliseconds is None


@pytest.mark.parametrize("budget, tokens", [(20, 16), (1e6, 100)])
def test_as_many_tokens_as_there_is_time_for(written, monkeypatch, budget, tokens):
    """A token takes a millisecond; at most four times those of training, 5 x 5, are tried."""
    _, path = written("classification")
    monkeypatch.setattr(classification, "milliseconds_of", lambda model, x_1CHW: x_1CHW[0, 0].numel() / 16)
    predictor = Predictor(path, "cpu", budget_ms=budget)
    assert (predictor.description.input.most_patches, predictor.milliseconds) == (tokens, tokens)


def test_tokens_of_what_has_none(written):
    _, path = written("classification")
    with pytest.raises(UserError, match="tokens and budget_ms"):
        Predictor(path, "cpu", tokens=4, budget_ms=3)
    with pytest.raises(UserError, match="tokens 0"):
        Predictor(path, "cpu", tokens=0)
    for budget in (math.nan, -1.0, 0):
        with pytest.raises(UserError, match=f"budget_ms {budget}"):
            Predictor(path, "cpu", budget_ms=budget)
    with pytest.raises(UserError, match="segmentation"):
        Predictor(written("segmentation")[1], "cpu", tokens=4)
