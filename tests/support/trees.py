"""Folders of small images, written as a few words: shared by the tests of what is read from folders."""

from pathlib import Path

from PIL import Image

CODED: dict[tuple[str, int], bytes] = {}


def plant(root: Path, *words: str) -> Path:
    """Each word is a file, "train/cat/3" three images in a folder, "extra/" an empty folder, "up -> .." a link."""
    shade = 0
    for word in words:
        if " -> " in word:
            name, _, target = word.partition(" -> ")
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            (root / name).symlink_to(target)
        elif word.endswith("/"):
            (root / word).mkdir(parents=True)
        else:
            folder, _, last = word.rpartition("/")
            (root / folder).mkdir(parents=True, exist_ok=True)
            names = [f"{number}.png" for number in range(int(last))] if last.isdigit() else [last]
            for name in names:
                shade += 1
                (root / folder / name).write_bytes(image(shade) if "." not in name or name.endswith(".png") else b"-")
    return root


def image(shade: int) -> bytes:
    """A PNG of its own shade."""
    import io

    file = io.BytesIO()
    Image.new("RGB", (4, 4), (shade % 256, shade // 256, 0)).save(file, "png")
    return file.getvalue()
