"""What `longvision predict` makes of many results: rows of a table, JSON, and a folder of files. Loads no torch."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

from PIL import Image

from longvision.data.problems import listing
from longvision.errors import UserError
from longvision.inference.coco import CocoResults
from longvision.inference.results import THRESHOLD, ClassResult, MaskResult, ObjectResult, Result, write_new

ON_SHEET = 16  # images of a classifier that are drawn at most


class Outputs:
    """Takes one result after the other; the folder is made with the first one.

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
        self.dicts: list[Any] = []

    def add(self, result: Any) -> None:
        """One image's result: a row of the table, and its files, or its dictionary where there is no folder.

        Raises UserError where a file cannot be written.
        """
        self.rows.append((result.name, self.cells(result)))
        if self.folder is None:
            self.dicts.append(result.to_dict())
        else:
            self.write(result, self.folder)

    def cells(self, result: Any) -> list[str]:
        """What the table says of an image, behind its name."""
        return result.cells()

    def write(self, result: Any, folder: Path) -> None:
        """The files of one image, into `folder`, which is made if need be; none that exists is overwritten."""
        raise NotImplementedError

    def finish(self, folder: Path) -> None:
        """The files of all images together, once the last is added."""

    def remarks(self) -> list[str]:
        """What is to be told of all results, a line each."""
        return []

    def as_json(self) -> Any:
        """What `json.dumps` takes, of all images in their order; of results that were added without a folder."""
        return self.dicts

    def _save(self, result: Result, folder: Path, contents: dict[str, Any]) -> None:
        stem = Path(result.name).stem
        written = write_new(folder, stem, contents)[0]
        if written.stem != stem:
            self.notes.append(f"{result.name} is written as {written.name}: {stem}.png is taken, or too long a name")


class ClassTable(Outputs):
    """A classifier's: one sheet of the first images with their likeliest classes."""

    about = "images with their likeliest classes"

    def __init__(self, classes: Sequence[str], folder: Path | None) -> None:
        super().__init__(classes, folder)
        self.panels: list[Image.Image] = []

    def write(self, result: ClassResult, folder: Path) -> None:
        if len(self.panels) < ON_SHEET:  # thousands would not fit into memory
            self.panels.append(result.image())

    def finish(self, folder: Path) -> None:
        from longvision.viz.sheets import contact_sheet

        more = f", the first {ON_SHEET} of {len(self.rows)}" if len(self.rows) > ON_SHEET else ""
        write_new(folder, "predictions", {".png": contact_sheet(self.panels, f"{self.about}{more}")})


class MaskFiles(Outputs):
    """A segmentation's: NAME.png beside NAME-mask.png, whose values are class numbers."""

    options = frozenset({"window"})
    about = "drawings and masks (the values are class numbers)"

    def write(self, result: MaskResult, folder: Path) -> None:
        self._save(result, folder, result.files())


class ObjectFiles(Outputs):
    """A detector's: NAME.png for each image and one objects.json in COCO's format."""

    options = frozenset({"threshold", "detections"})

    def __init__(self, classes: Sequence[str], folder: Path | None, threshold: float = THRESHOLD) -> None:
        super().__init__(classes, folder)
        if not 0 <= threshold <= 1:
            raise UserError(f"--threshold {threshold}: expected a score from 0 to 1")
        self.threshold, self.found = threshold, CocoResults(classes)  # with the data's ids, once a result says them
        self.full: list[ObjectResult] = []
        self.least_score = 0.0

    @property
    def about(self) -> str:  # type: ignore[override]
        held = f"those above {self.least_score:g}" if self.least_score else "all"
        return (
            f"drawings of the objects above {self.threshold:.2f}, and objects.json in COCO's format, which holds {held}"
        )

    def add(self, result: ObjectResult) -> None:
        self.least_score = result.least_score
        if result.full:
            self.full.append(result)
        self.rows.append((result.name, self.cells(result)))
        if not self.found.images:
            self.found = CocoResults(self.classes, result.ids)
        self.found.add(result.name, (result.input.height, result.input.width), result.detections)
        if self.folder is not None:
            self.write(result, self.folder)

    def cells(self, result: ObjectResult) -> list[str]:
        return result.cells(self.threshold)

    def write(self, result: ObjectResult, folder: Path) -> None:
        self._save(result, folder, {".png": result.image(self.threshold)})

    def remarks(self) -> list[str]:
        if not self.full:
            return []
        most = self.full[0].full
        return [
            f"{most} of {most} objects, the most that this model finds in an image, were found in "
            f"{listing([result.name for result in self.full])}: where there may be more, raise --detections "
            "(of a DETR, train with more --model.queries)"
        ]

    def finish(self, folder: Path) -> None:
        write_new(folder, "objects", {".json": self.found.as_dict()})
        self.notes += self.found.notes()

    def as_json(self) -> Any:
        return self.found.as_dict()
