"""What to measure, in names and numbers: checked before torch is loaded."""

from collections.abc import Sequence
from dataclasses import dataclass

from longvision.errors import UserError

MODES = ("infer", "train")
DETECTORS = ("cascade", "detr")
HEADS = ("fpn", *DETECTORS)
DTYPES = ("float32", "float64", "bfloat16")
OPS_DTYPES = (*DTYPES, "float16")
DEVICES = ("cpu", "cuda")
MATERIALISED = "materialised"


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What both benchmarks ask for.

    Args:
        mode: one of MODES; train is forward, loss and backward, without an optimiser.
        batch: images or sequences a call.
        dtype: of the computation; bfloat16 models run under autocast.
        device: one of DEVICES, or "" for cuda where there is one.
        budget: seconds a case, over all rounds.
        rounds: how often each case has its turn.
    """

    mode: str = "infer"
    batch: int = 1
    dtype: str = "float32"
    device: str = ""
    budget: float = 60.0
    rounds: int = 3


@dataclass(frozen=True, kw_only=True)
class ModelsPlan(Plan):
    """Models against each other.

    Args:
        models: timm's names; NAME+materialised computes whole attention matrices.
        sizes: sides of square images, pixels, ascending.
        head: one of HEADS on every model as a backbone, or "" for the classifiers that timm makes.
        checkpoint: recompute blocks in the backward pass, in every model that can.
        baseline: the model that others are multiples of; "" for the first that is not ours.

    Raises:
        UserError: what cannot be measured together.
    """

    models: Sequence[str]
    sizes: Sequence[int]
    head: str = ""
    checkpoint: bool = False
    baseline: str = ""

    def __post_init__(self) -> None:
        if not self.models:
            raise UserError("--models is empty: give names such as vim_tiny_patch16_224, separated by commas")
        for label in self.models:
            name, plus, form = label.partition("+")
            if form == "checkpoint":
                raise UserError(f"{label}: give {name}, and the option --checkpoint, which is for all models")
            if plus and form != MATERIALISED:
                raise UserError(f"unknown form {form!r} of {name}: expected {name} or {name}+{MATERIALISED}")
        if self.checkpoint and self.mode != "train":
            raise UserError("--checkpoint changes training only: add --mode train")
        if self.head in DETECTORS and self.dtype == "float64":
            raise UserError(f"--dtype float64: boxes of --head {self.head} are float32: choose float32 or bfloat16")
        if self.baseline and self.baseline not in self.models:
            raise UserError(f"--baseline {self.baseline} is not measured: choose one of {', '.join(self.models)}")


@dataclass(frozen=True, kw_only=True)
class OpsPlan(Plan):
    """Backends of the selective scan against each other.

    Args:
        tokens: lengths of the sequences, ascending.
        channels: inner width E of the scan.
        states: of each channel, N.

    Raises:
        UserError: an odd number of channels.
    """

    tokens: Sequence[int]
    channels: int = 384
    states: int = 16
    budget: float = 20.0

    def __post_init__(self) -> None:
        if self.channels % 2:
            raise UserError(f"--channels {self.channels}: expected an even number, a block's inner width is 2 D")
