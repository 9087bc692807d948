import pytest

from support.class_folders import in_splits, without_splits


@pytest.fixture
def folder(tmp_path):
    """Folders of classes, in splits."""
    return in_splits(tmp_path / "set")


@pytest.fixture
def alone(tmp_path):
    """Folders of classes, without splits."""
    return without_splits(tmp_path / "set")
