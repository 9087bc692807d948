"""A model read back from its file says what the task said that wrote it."""

import dataclasses

import pytest
import torch
from PIL import Image

pytest.importorskip("lightning")
from longvision.data.io.images import UnreadableImage
from longvision.data.transforms.preprocess import Preprocess
from longvision.inference.predictor import Predictor
from longvision.models.weights.files import save_weights
from longvision.tasks.classification import Classification

CLASSES = [f"class {n}" for n in range(7)]
PREPROCESS = Preprocess((16, 24), 1, 0.9, (0.4,), (0.2,))


@pytest.fixture
def task():
    args = {"depth": 2, "embed_dim": 32, "cls_token": "double", "direction": "layer"}
    return Classification(args=args, name="vim_nano_patch4_32", classes=CLASSES, size=(16, 24), channels=1).eval()


@pytest.fixture
def weights(task, tmp_path):
    metadata = {
        "architecture": task.name,
        "args": task.args,
        "classes": CLASSES,
        "preprocess": dataclasses.asdict(PREPROCESS),
    }
    save_weights(task.model, tmp_path / "model.safetensors", metadata)
    return tmp_path / "model.safetensors"


@pytest.fixture
def image(tmp_path):
    pixels = (torch.rand(30, 40, 3) * 255).byte().numpy()
    Image.fromarray(pixels).save(tmp_path / "image.png")
    return tmp_path / "image.png"


def test_the_task_s_probabilities(task, weights, image):
    with torch.inference_mode(), Image.open(image) as picture:
        shares = task(PREPROCESS.transform()(picture)[None]).softmax(1)[0]
    prediction = Predictor(weights).predict(image, top=7)
    assert dict(prediction.top) == pytest.approx(dict(zip(CLASSES, shares.tolist())), rel=1e-5)
    assert [share for _, share in prediction.top] == sorted(shares.tolist(), reverse=True)
    assert prediction.name == str(image)
    assert (prediction.image.mode, prediction.image.size) == ("L", (40, 30))


def test_the_first_few(weights, image):
    predictor = Predictor(weights)
    every = predictor.predict(image, top=99).top
    assert len(every) == 7
    assert predictor.predict(image).top == every[:5]
    assert predictor.predict(image, top=1).top == every[:1]


def test_dropout_is_off(tmp_path, image):
    args = {"depth": 2, "embed_dim": 32, "drop_rate": 0.5, "drop_path_rate": 0.5}
    task = Classification(args=args, name="vim_nano_patch4_32", classes=CLASSES, size=(16, 24), channels=1)
    metadata = {"architecture": task.name, "args": args, "classes": CLASSES}
    save_weights(task.model, tmp_path / "m.safetensors", {**metadata, "preprocess": dataclasses.asdict(PREPROCESS)})
    predictor = Predictor(tmp_path / "m.safetensors")
    assert predictor.predict(image).top == predictor.predict(image).top


def test_a_file_that_is_no_image(weights, tmp_path):
    (tmp_path / "bad.png").write_text("no image")
    with pytest.raises(UnreadableImage, match=r"bad\.png is not an image"):
        Predictor(weights).predict(tmp_path / "bad.png")


def test_weights_that_do_not_say_what_they_are(task, tmp_path):
    save_weights(task.model, tmp_path / "m.safetensors", {"architecture": task.name})
    with pytest.raises(ValueError, match="does not say its classes, preprocess"):
        Predictor(tmp_path / "m.safetensors")
    with pytest.raises(FileNotFoundError, match="is not a file"):
        Predictor(tmp_path / "no.safetensors")
