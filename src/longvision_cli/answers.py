"""What `longvision predict` prints and writes for each kind of model."""

import json
import os
from pathlib import Path
from typing import Any

import numpy as np

PICTURED = 16  # images in a classifier's picture at most
THRESHOLD = 0.5  # least score of an object that is drawn and counted


class Classes:
    """A table of the likeliest classes and one picture, or JSON."""

    def __init__(self, predictor: Any, options: Any) -> None:
        _refuse(options, out="its picture goes to --picture", threshold="it prints its most likely classes")
        self.json, self.picture = options.json, _free_file(options.picture)
        self.rows: list[tuple[str, list[tuple[str, float]]]] = []
        self.pictured: list[Any] = []

    def add(self, prediction: Any) -> None:
        self.rows.append((prediction.name, prediction.top))
        if len(self.pictured) < PICTURED:  # thousands of photographs would not fit into memory
            prediction.image.thumbnail((512, 512))
            self.pictured.append((prediction.image, Path(prediction.name).name, prediction.top))

    def finish(self) -> None:
        from longvision.viz.charts import draw_predictions

        if self.json:
            print(json.dumps([_as_json(*row) for row in self.rows], indent=2))
            return
        _print_table(
            [name for name, _ in self.rows], [[f"{c} {100 * p:.1f} %" for c, p in top] for _, top in self.rows]
        )
        draw_predictions(self.pictured, self.picture)
        more = f" (the first {PICTURED} of {len(self.rows)})" if len(self.rows) > PICTURED else ""
        print(f"picture: {self.picture}{more}")


class Dense:
    """A folder with a picture of each input beside its prediction, and a table, or JSON."""

    def __init__(self, predictor: Any, options: Any) -> None:
        _refuse(options, picture="its files go to --out")
        self.classes, self.palette = predictor.classes, predictor.palette
        self.json, self.threshold = options.json, THRESHOLD if options.threshold is None else options.threshold
        if not 0 <= self.threshold <= 1:
            raise ValueError(f"--threshold {self.threshold}: expected a score from 0 to 1")
        self.folder = None if self.json else free_folder(options.out, "predictions-{}", "--out")
        self.names: list[str] = []
        self.taken: set[str] = set()
        self.renamed: list[str] = []

    def name(self, prediction: Any) -> str:
        """Of the files for this picture: its own, with a number where another one has it already."""
        stem = name = Path(prediction.name).stem
        number = 1
        while {name, f"{name}-mask"} & self.taken:
            number += 1
            name = f"{stem}-{number}"
        self.taken |= {name, f"{name}-mask"}
        self.names.append(prediction.name)
        if name != stem:
            self.renamed.append(f"{prediction.name} is {name}.png there: another one has {stem}.png")
        return name

    def path(self, file: str) -> Path:
        assert self.folder is not None
        self.folder.mkdir(parents=True, exist_ok=True)  # with the first answer: none, no folder
        return self.folder / file


class Masks(Dense):
    """NAME.png beside NAME-mask.png, whose values are class numbers."""

    def __init__(self, predictor: Any, options: Any) -> None:
        _refuse(options, threshold="every pixel gets its most likely class")
        super().__init__(predictor, options)
        self.rows: list[list[tuple[str, float, float]]] = []

    def add(self, prediction: Any) -> None:
        from longvision.inference.outputs import save_palette_png
        from longvision.viz.overlays import draw_segmentation

        name, mask_HW = self.name(prediction), prediction.mask_HW
        counts = np.bincount(mask_HW.ravel(), minlength=len(self.classes)) / mask_HW.size
        order = sorted(prediction.scores, key=lambda k: -counts[k])
        self.rows.append([(self.classes[k], float(counts[k]), prediction.scores[k]) for k in order])
        if self.json:
            return
        save_palette_png(mask_HW, self.palette, self.path(f"{name}-mask.png"))
        masks = {"prediction": mask_HW}
        drawn = draw_segmentation(prediction.image, masks, self.classes, self.palette, prediction.scores)
        drawn.save(self.path(f"{name}.png"))

    def finish(self) -> None:
        if self.json:
            as_dicts = [[{"class": c, "pixels": n, "score": s} for c, n, s in row] for row in self.rows]
            print(json.dumps([{"file": f, "classes": row} for f, row in zip(self.names, as_dicts)], indent=2))
            return
        _print_table(self.names, [[f"{c} {100 * n:.1f} %" for c, n, _ in row[:5]] for row in self.rows])
        print(*self.renamed, f"pictures and masks (the values are class numbers): {self.folder}", sep="\n")


class Objects(Dense):
    """NAME.png for each picture and one objects.json in COCO's format."""

    def __init__(self, predictor: Any, options: Any) -> None:
        super().__init__(predictor, options)
        from longvision.inference.outputs import CocoResults

        self.found = CocoResults(self.classes)
        self.counts: list[str] = []

    def add(self, prediction: Any) -> None:
        from longvision.viz.overlays import draw_objects

        name, found = self.name(prediction), prediction.objects
        self.found.add(prediction.name, (prediction.image.height, prediction.image.width), found)
        shown = found.labels[found.scores >= self.threshold]
        numbers, counts = np.unique(shown, return_counts=True)
        order = np.argsort(-counts, kind="stable")
        found_words = ", ".join(f"{self.classes[numbers[i]]} × {counts[i]}" for i in order)
        self.counts.append(found_words or f"nothing above {self.threshold:.2f}")
        if not self.json:
            objects = {"prediction": found}
            drawn = draw_objects(prediction.image, objects, self.classes, self.palette, self.threshold)
            drawn.save(self.path(f"{name}.png"))

    def finish(self) -> None:
        if self.json:
            print(json.dumps(self.found.as_dict()))
            return
        self.path("objects.json").write_text(json.dumps(self.found.as_dict()))
        _print_table(self.names, [[counts] for counts in self.counts])
        print(*self.renamed, f"pictures, and objects.json in COCO's format: {self.folder}", sep="\n")


ANSWERS: dict[str, Any] = {
    "Predictor": Classes,
    "SegmentationPredictor": Masks,
    "ObjectPredictor": Objects,
}


def _as_json(file: str, top: list[tuple[str, float]]) -> dict[str, Any]:
    return {"file": file, "top": [{"class": label, "probability": share} for label, share in top]}


def _refuse(options: Any, **useless: str) -> None:
    for name, instead in useless.items():
        if getattr(options, name) is not None:
            raise ValueError(f"--{name} means nothing to this run: {instead}")


def _free_file(asked: str | None) -> Path:
    """Where the picture may go. Raises FileExistsError: nothing is overwritten."""
    if asked is None:
        return _first_free("predictions-{}.png")
    if Path(asked).exists():
        raise FileExistsError(f"{asked} exists already and is not overwritten: give another --picture")
    if not Path(asked).absolute().parent.is_dir():
        raise FileNotFoundError(f"--picture {asked}: its folder does not exist, make it first")
    return Path(asked)


def free_folder(asked: str | None, pattern: str, option: str) -> Path:
    """A folder that does not exist yet, or is empty. Raises FileExistsError: nothing is overwritten."""
    if asked is None:
        return _first_free(pattern)
    path = Path(asked)
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise FileExistsError(f"{asked} exists already and is not overwritten: give another {option}")
    return path


def _first_free(pattern: str) -> Path:
    number = 1
    while (path := Path(pattern.format(number))).exists():
        number += 1
    return path


def _print_table(files: list[str], cells: list[list[str]]) -> None:
    """One line an image: the file, below the folder that all have in common, and what is in it."""
    if len({os.path.isabs(name) for name in files}) > 1:  # some typed one way, some the other
        files = [os.path.abspath(name) for name in files]
    folder = os.path.commonpath([os.path.dirname(name) for name in files]) if len(files) > 1 else ""
    if folder:
        print(f"in {folder}")
    names = [os.path.relpath(name, folder) if folder else name for name in files]
    columns = max(map(len, cells))
    filled = [row + [""] * (columns - len(row)) for row in cells]
    widths = [max(map(len, column)) for column in zip(*filled)]
    for name, row in zip(names, filled):
        print(f"{name:<{max(map(len, names))}}  " + "  ".join(f"{c:<{n}}" for c, n in zip(row, widths)).rstrip())
