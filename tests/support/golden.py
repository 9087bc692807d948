"""Files of what authors' published code computed, in the development data."""

import json

import pytest
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
