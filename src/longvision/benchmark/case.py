"""What is measured, and what came out."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

OK, OUT_OF_MEMORY, OVER_BUDGET = "ok", "out of memory", "over budget"
REFERENCE, PRODUCTS = "reference", "matrix products"  # what backends of the scan are multiples of


@dataclass(frozen=True)
class Case:
    """One model at one size.

    Args:
        model: its name in timm.
        form: "materialised", or "" for the model as timm makes it.
        mode: "infer" or "train".
        requested: the side of an image, pixels, that the user gave.
        size: the nearest one that the model takes.
        batch: images a call.
        dtype: "float32", "float64" or "bfloat16".
        device: "cpu" or "cuda".
        head: "fpn", "cascade", "detr", or "" for the classifier that timm makes.
        checkpoint: recompute blocks in the backward pass, as the model can.
    """

    model: str
    form: str
    mode: str
    requested: int
    size: int
    batch: int
    dtype: str
    device: str
    head: str = ""
    checkpoint: bool = False

    @property
    def label(self) -> str:
        """The model as the user writes it."""
        return f"{self.model}+{self.form}" if self.form else self.model


@dataclass(frozen=True)
class OpCase:
    """One backend of the scan at one length."""

    backend: str
    tokens: int

    @property
    def label(self) -> str:
        return self.backend


@dataclass(frozen=True)
class Round:
    """What one turn of a case found out.

    Args:
        status: OK, or why there are no samples.
        seconds: the samples, one a call.
        first_call: the only sample is the first call, which was too long to be thrown away.
        spent: seconds of all calls, those to warm up included.
        peak_bytes: memory above the state before a call; None where it was not measured.
        attention: how tokens meet, see `build.describe_attention`.
        threads: of torch; 0 where nothing ran.
    """

    status: str = OK
    seconds: list[float] = field(default_factory=list)
    first_call: bool = False
    spent: float = 0.0
    peak_bytes: int | None = None
    attention: str = ""
    threads: int = 0


class Result:
    """The rounds of a case, pooled. One that failed fails the case: what was measured before would hide that.

    Args:
        case: what is measured.
        status: OK, or why it is not to be measured at all.
        macs: multiply-adds of an image; None where they were not counted.
    """

    def __init__(self, case: Any, status: str = OK, macs: int | None = None) -> None:
        self.case, self.macs = case, macs
        self.rounds: list[Round] = []
        self._status = status

    def add(self, done: Round) -> None:
        self.rounds.append(done)

    @property
    def status(self) -> str:
        return self.rounds[-1].status if self.rounds else self._status

    @property
    def spent(self) -> float:
        return sum(done.spent for done in self.rounds)

    @property
    def seconds(self) -> list[float]:
        """All samples, none of a case that failed."""
        return [] if self.status != OK else [second for done in self.rounds for second in done.seconds]

    @property
    def is_final(self) -> bool:
        """Whether there is something to say of it."""
        return self.status != OK or bool(self.seconds)

    @property
    def median(self) -> float | None:
        return quantile(self.seconds, 0.5) if self.seconds else None

    @property
    def peak_bytes(self) -> int | None:
        """The first round's, which alone measures it."""
        return self.rounds[0].peak_bytes if self.seconds else None

    def times(self) -> dict[str, Any]:
        """The columns of its samples."""
        if not self.seconds:
            return {"ms_median": None, "ms_q1": None, "ms_q3": None, "samples": "0"}
        first_calls = sum(done.first_call for done in self.rounds)
        return {**milliseconds(self.seconds), "samples": sample_count(len(self.seconds), first_calls)}


def ratio(one: float | None, other: float | None) -> float | None:
    """One as a multiple of the other, None where either is missing."""
    return significant(one / other, 3) if one is not None and other else None


def sentence(error: Exception) -> str:
    """Its words on one line that a table can hold."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 200 else text[:199] + "…"


def quantile(values: Sequence[float], share: float) -> float:
    """Linear between the neighbours, as numpy's default."""
    ordered = sorted(values)
    position = share * (len(ordered) - 1)
    below = int(position)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (position - below) * (ordered[above] - ordered[below])


def milliseconds(seconds: Sequence[float]) -> dict[str, float]:
    """Median and quartiles, as columns."""
    shares = {"ms_median": 0.5, "ms_q1": 0.25, "ms_q3": 0.75}
    return {name: significant(1e3 * quantile(seconds, share)) for name, share in shares.items()}


def significant(value: float, digits: int = 4) -> float:
    """Rounded: what lies beyond is noise."""
    return float(f"{value:.{digits}g}")


def sample_count(samples: int, first_calls: int) -> str:
    """How many samples, and whether they were calls without a warm-up."""
    if not first_calls:
        return str(samples)
    if samples == 1:
        return "1 (first call)"
    return f"{samples} ({first_calls} first call{'s' * (first_calls > 1)})"
