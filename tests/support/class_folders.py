"""Folders of classes whose images are all others."""

import numpy as np
from PIL import Image

from longvision.data.config import FolderData


def draw(path, seed):
    path.parent.mkdir(parents=True, exist_ok=True)
    random = np.random.default_rng(list(seed.encode()))
    Image.fromarray(random.integers(0, 256, (9, 8, 3), dtype=np.uint8)).save(path)
    return path


def source_of(root, seed=0):
    return FolderData(str(root), seed=seed).source()


def in_splits(root):
    """train and val of cat and dog, four images each, every one another."""
    for split in ("train", "val"):
        for name in ("cat", "dog"):
            for number in range(4):
                draw(root / split / name / f"{number}.png", f"{split}{name}{number}")
    return root


def without_splits(root):
    """cat and dog, twenty images each, of which a tenth validates."""
    for name in ("cat", "dog"):
        for number in range(20):
            draw(root / name / f"{number}.png", f"{name}{number}")
    return root
