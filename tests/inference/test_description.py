"""What a run wrote beside its weights is read, or refused by the name of the file and the key."""

import json
import subprocess
import sys

import pytest
import torch
from safetensors.torch import save_file

from longvision.errors import MissingFileError, UserError
from longvision.files import find_weights
from longvision.inference.config import InferenceConfig
from longvision.inference.description import read_description

METADATA = {
    "architecture": "vim_nano_patch4_32",
    "args": {"depth": 2},
    "classes": ["a", "b"],
    "preprocess": {"size": [16, 24], "channels": 1},
    "metrics": {"test/accuracy": 0.5},
}


@pytest.fixture
def write(tmp_path):
    def write(metadata):
        path = tmp_path / "model.safetensors"
        text = metadata if isinstance(metadata, str) else json.dumps(metadata)
        save_file({"w": torch.arange(5.0), "v": torch.zeros(2, 3)}, path, {"longvision": text})
        return path

    return write


def test_what_was_written_is_read(write):
    path = write(METADATA)
    description = read_description(path)
    assert (description.architecture, description.args) == ("vim_nano_patch4_32", {"depth": 2})
    assert (description.classes, description.task) == (["a", "b"], "classification")
    assert description.source == str(path)


@pytest.mark.parametrize("key", ["inference", "asking"])
def test_inference_is_read_under_its_old_name_too(write, key):
    config = {"window": 32, "stride": None, "scales": [1.0, 2.0], "flip": True}
    description = read_description(write({**METADATA, "task": "segmentation", key: config}))
    assert description.inference == InferenceConfig(window=32, scales=(1.0, 2.0), flip=True)


def test_no_torch_is_loaded(write):
    code = (
        "import sys; import longvision_cli.main; from longvision.inference.description import read_description\n"
        f"assert read_description({str(write(METADATA))!r}).classes == ['a', 'b']\n"
        "print(sorted({'torch', 'timm', 'lightning', 'torchvision'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=600)
    assert done.stdout.strip() == "[]", done.stderr


@pytest.mark.parametrize("key", ["architecture", "classes", "preprocess"])
def test_what_is_missing_is_named(write, key):
    path = write({name: value for name, value in METADATA.items() if name != key})
    with pytest.raises(UserError) as error:
        read_description(path)
    assert str(path) in str(error.value) and key in str(error.value)


@pytest.mark.parametrize(
    "key, value",
    [
        ("architecture", 3),
        ("classes", "ab"),
        ("classes", [1, 2]),
        ("preprocess", [16, 16]),
        ("preprocess", {"size": 16}),
        ("preprocess", {"size": [16, 16], "channels": 5}),
        ("preprocess", {"size": [16, 16], "channels": 3, "std": [0, 1, 1]}),
        ("preprocess", {"size": [16, 16], "channels": 3, "mean": 5}),
        ("preprocess", {"size": [16, 16], "channels": 3, "colour": 5}),
        ("args", 4),
        ("head", "fpn"),
        ("palette", [[1, 2]]),
        ("palette", 8),
        ("palette", [[1, 2, 3]]),
        ("task", 1),
        ("inference", 5),
        ("inference", {"window": 0}),
        ("inference", {"windows": 3}),
    ],
)
def test_what_cannot_be_is_named_with_its_key(write, key, value):
    path = write({**METADATA, key: value})
    with pytest.raises(UserError) as error:
        read_description(path)
    assert str(path) in str(error.value) and key in str(error.value)


def test_what_is_no_whole_safetensors_file(write):
    path = write(METADATA)
    for content in (b"", b"nonsense" * 100, path.read_bytes()[:-3]):
        path.write_bytes(content)
        with pytest.raises(UserError) as error:
            read_description(path)
        assert str(path) in str(error.value)


def test_weights_are_found(write, tmp_path):
    path = write(METADATA)
    assert find_weights(tmp_path) == find_weights(str(path)) == path


def test_where_no_weights_are(tmp_path):
    with pytest.raises(MissingFileError, match="nowhere"):
        find_weights(tmp_path / "nowhere")
    with pytest.raises(UserError, match="not a run folder"):
        find_weights(tmp_path)
    (tmp_path / "config.yaml").touch()
    with pytest.raises(UserError, match=f"--resume {tmp_path}"):
        find_weights(tmp_path)
    with pytest.raises(MissingFileError):
        read_description(tmp_path / "nowhere")
