"""What `longvision predict` makes of many results: rows of a table, JSON, and a folder of files. Loads no torch."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar

from PIL import Image

from longvision.data.problems import listing
from longvision.errors import UserError
from longvision.inference.coco import CocoResults
from longvision.inference.results import (
    THRESHOLD,
    MaskResult,
    ObjectResult,
    Result,
    palette_image,
    write_new,
)

ON_SHEET = 16  # images of a classifier that are drawn at most


class Outputs:
    """Takes one result after the other; the folder is made with the first one. A drawing or a file that cannot be made
    is told in `failed`: the others are there.

    Args:
        classes: the names of all classes.
        folder: for the files; None for JSON alone.
    """

    options: ClassVar[frozenset[str]] = frozenset()  # of the command, that mean something to the task
    about: ClassVar[str]  # the files

    def __init__(self, classes: Sequence[str], folder: Path | None) -> None:
        self.classes, self.folder = classes, folder
        self.rows: list[tuple[str, list[str]]] = []
        self.notes: list[str] = []
        self.failed: list[str] = []  # what could not be drawn or written, and why
        self.dicts: list[Any] = []

    def add(self, result: Any) -> None:
        """One image's result: a row of the table, and its files, or its dictionary where there is no folder.

        Raises OSError where the folder cannot be made.
        """
        self.rows.append((result.name, self.cells(result)))
        self.hold(result)
        if self.folder is not None:
            self.folder.mkdir(parents=True, exist_ok=True)
            with self._or_failed(f"the files of {result.name}"):
                self.write(result, self.folder)

    def hold(self, result: Any) -> None:
        """What `as_json` and `finish` need of an image."""
        if self.folder is None:
            self.dicts.append(result.to_dict())

    def end(self) -> None:
        """Write the files of all images, if there is a folder."""
        if self.folder is not None:
            with self._or_failed(f"the files of all images in {self.folder}"):
                self.finish(self.folder)

    def cells(self, result: Any) -> list[str]:
        """What the table says of an image, behind its name."""
        return result.cells()

    def write(self, result: Any, folder: Path) -> None:
        """The files of one image, into `folder`; none that exists is overwritten."""
        raise NotImplementedError

    def finish(self, folder: Path) -> None:
        """The files of all images together, once the last is added."""

    def remarks(self) -> list[str]:
        """What is to be told of all results, a line each."""
        return []

    def as_json(self) -> Any:
        """What `json.dumps` takes, of all images in their order; of results that were added without a folder."""
        return self.dicts

    @contextmanager
    def _or_failed(self, what: str) -> Iterator[None]:
        """One drawing that fails, whatever the reason, takes no other with it."""
        try:
            yield
        except Exception as error:
            reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
            self.failed.append(f"{what} could not be made: {type(error).__name__}: {reason}")

    def _save(self, result: Result, folder: Path, draw: Callable[[], Image.Image], values: dict[str, Any]) -> None:
        """The drawing with the values beside it; without it where it fails."""
        contents = dict(values)
        with self._or_failed(f"the drawing of {result.name}"):
            contents = {".png": draw(), **values}
        if not contents:
            return
        stem = Path(result.name).stem
        written = write_new(folder, stem, contents)[0]
        if written.name != f"{stem}{next(iter(contents))}":
            self.notes.append(f"{result.name} is written as {written.name}: {stem}.png is taken, or too long a name")


class ClassTable(Outputs):
    """A classifier's: one sheet of the first images with their likeliest classes."""

    options = frozenset({"tokens", "budget-ms"})
    about = "images with their likeliest classes"

    def __init__(self, classes: Sequence[str], folder: Path | None, threshold: float | None = None) -> None:
        """`threshold` is of labels of which an image may have any number."""
        super().__init__(classes, folder)
        self.panels: list[Image.Image] = []
        self.above = {} if threshold is None else {"threshold": _checked(threshold)}

    def hold(self, result: Any) -> None:
        if self.folder is None:
            self.dicts.append(result.to_dict(**self.above))

    def cells(self, result: Any) -> list[str]:
        return result.cells(**self.above)

    def write(self, result: Any, folder: Path) -> None:
        if len(self.panels) < ON_SHEET:  # thousands would not fit into memory
            self.panels.append(result.image(**self.above))

    def finish(self, folder: Path) -> None:
        from longvision.viz.sheets import contact_sheet

        if not self.panels:
            return
        more = f", the first {ON_SHEET} of {len(self.rows)}" if len(self.rows) > ON_SHEET else ""
        write_new(folder, "predictions", {".png": contact_sheet(self.panels, f"{self.about}{more}")})


class MaskFiles(Outputs):
    """A segmentation's: NAME.png beside NAME-mask.png, whose values are class numbers."""

    options = frozenset({"window"})
    about = "drawings and masks (the values are class numbers)"

    def write(self, result: MaskResult, folder: Path) -> None:
        self._save(result, folder, result.image, {"-mask.png": palette_image(result.mask_HW, result.palette)})


class ObjectFiles(Outputs):
    """A detector's: NAME.png for each image and one objects.json in COCO's format."""

    options = frozenset({"threshold", "detections"})

    def __init__(self, classes: Sequence[str], folder: Path | None, threshold: float = THRESHOLD) -> None:
        super().__init__(classes, folder)
        self.threshold = _checked(threshold)
        self.found = CocoResults(classes)  # with the data's ids, once a result says them
        self.full: list[str] = []  # images with as many objects as can be found
        self.most, self.least_score = 0, 0.0

    @property
    def about(self) -> str:  # type: ignore[override]
        held = f"those above {self.least_score:g}" if self.least_score else "all"
        return (
            f"drawings of the objects above {self.threshold:.2f}, and objects.json in COCO's format, which holds {held}"
        )

    def hold(self, result: ObjectResult) -> None:
        self.most, self.least_score = max(self.most, result.full), result.least_score
        self.full += [result.name] * bool(result.full)
        if not self.found.images:
            self.found = CocoResults(self.classes, result.ids)
        self.found.add(result.name, (result.input.height, result.input.width), result.detections)

    def cells(self, result: ObjectResult) -> list[str]:
        return result.cells(self.threshold)

    def write(self, result: ObjectResult, folder: Path) -> None:
        self._save(result, folder, lambda: result.image(self.threshold), {})

    def remarks(self) -> list[str]:
        if not self.full:
            return self.found.notes()
        # only what finds as many as it has queries drops none
        more = "raise --detections" if self.least_score else "train with more --model.queries"
        return [
            *self.found.notes(),
            f"{self.most} of {self.most} objects, the most that this model finds in an image, were found in "
            f"{listing(self.full)}, unsure ones counted: where there may be more, {more}",
        ]

    def finish(self, folder: Path) -> None:
        write_new(folder, "objects", {".json": self.found.as_dict()})

    def as_json(self) -> Any:
        return self.found.as_dict()


def _checked(threshold: float) -> float:
    if not 0 <= threshold <= 1:
        raise UserError(f"--threshold {threshold}: expected a score from 0 to 1")
    return threshold
