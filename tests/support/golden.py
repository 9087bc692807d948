"""Files of what authors' published code computed, in the development data."""

import json

import pytest
import timm
import torch
import torch.nn.functional as F
from safetensors import safe_open


def golden(shared, name):
    """-> the tensors of golden/backbones/NAME.safetensors, and its metadata; skips the test where there is no file."""
    path = shared / "golden" / "backbones" / f"{name}.safetensors"
    if not path.is_file():
        pytest.skip(f"no {path}")
    with safe_open(path, "pt") as file:
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 it is no dictionary
        return tensors, {key: _read(value) for key, value in file.metadata().items()}


def _read(value):
    try:
        return json.loads(value)
    except json.JSONDecodeError:
        return value


def cases_of(tensors, names):
    """-> by name of a case its tensors, by what follows that name."""
    return {
        case: {k.removeprefix(f"{case}."): t for k, t in tensors.items() if k.startswith(f"{case}.")} for case in names
    }


def relative(got, truth):
    """|got - truth| / |truth|, of tensors of one shape."""
    assert got.shape == truth.shape
    return ((got.double() - truth.double()).norm() / truth.double().norm().clamp(min=1e-12)).item()


def part(tensors, prefix):
    """Those whose names begin so, by the rest of their names."""
    return {key.removeprefix(prefix): tensor for key, tensor in tensors.items() if key.startswith(prefix)}


def check_golden(model, tensors):
    """Logits within 1e-5, all gradients together within 1e-5, each within 1e-3, the image's among them: relative norms,
    float32."""
    image = tensors["image"].clone().requires_grad_()
    logits = model.eval()(image)
    assert relative(logits.detach(), tensors["logits"]) <= 1e-5
    F.cross_entropy(logits, tensors["label"]).backward()
    expected = part(tensors, "grad.") | {"image": tensors["grad_image"]}
    got = {name: parameter.grad for name, parameter in model.named_parameters()} | {"image": image.grad}
    assert got.keys() == expected.keys()
    for name, gradient in got.items():
        assert relative(gradient, expected[name]) <= 1e-3, name
    together = [torch.cat([gradients[name].flatten() for name in got]) for gradients in (got, expected)]
    assert relative(*together) <= 1e-5


def released(path, name, depth, key="model"):
    """A file with tensors of the names and shapes of a registered model's, zeros, as if its blocks were `depth`."""
    with torch.device("meta"):
        shapes = {key: tensor.shape for key, tensor in timm.create_model(name, depth=1).state_dict().items()}
    names = {f"layers.{i}.{key[9:]}": key for key in shapes if key.startswith("layers.0.") for i in range(depth)}
    names |= {key: key for key in shapes}
    torch.save({key: {name: torch.zeros(1).expand(shapes[own]) for name, own in names.items()}}, path)
