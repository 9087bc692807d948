"""What is measured, and what came out: one model, in one form, bare or with a head, at one size."""

from collections.abc import Sequence
from dataclasses import dataclass, field

MODES = ("infer", "train")
HEADS = ("fpn", "cascade")
DTYPES = ("float32", "float64", "bfloat16")
OK, OUT_OF_MEMORY, OVER_BUDGET = "ok", "out of memory", "over budget"


@dataclass(frozen=True)
class Case:
    """One model in one form at one size; `asked` is the size that the user gave, `size` the one that fits.

    `head` is one of HEADS, or "" for the classifier that timm makes.
    """

    model: str
    variant: str
    mode: str
    asked: int
    size: int
    batch: int
    dtype: str
    device: str
    head: str = ""

    @property
    def label(self) -> str:
        """The model as the user writes it."""
        return f"{self.model}+{self.variant}" if self.variant else self.model


@dataclass(frozen=True)
class Round:
    """What one process found out about a case."""

    status: str = OK
    seconds: list[float] = field(default_factory=list)
    first_call: bool = False  # the only sample is the first call, which was too long to be thrown away
    spent: float = 0.0
    peak_bytes: int | None = None
    attention: str = ""
    threads: int = 0


class Result:
    """The rounds of a case, pooled."""

    def __init__(self, case: Case, macs: int | None = None) -> None:
        self.case, self.macs = case, macs
        self.status = OK
        self.seconds: list[float] = []
        self.first_calls = 0
        self.spent = 0.0
        self.peak_bytes: int | None = None
        self.attention = ""
        self.threads = 0

    def add(self, done: Round) -> None:
        """A round that failed fails the case: what it measured before would hide that."""
        self.status = done.status
        self.spent += done.spent
        self.seconds += done.seconds
        self.first_calls += done.first_call
        self.peak_bytes = done.peak_bytes if self.peak_bytes is None else self.peak_bytes
        self.attention = done.attention or self.attention
        self.threads = done.threads or self.threads

    @property
    def measured(self) -> bool:
        return self.status == OK and bool(self.seconds)

    @property
    def ended_the_model(self) -> bool:
        """Whether a larger size can only fail too."""
        return self.status.startswith((OUT_OF_MEMORY, OVER_BUDGET, "killed"))


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
