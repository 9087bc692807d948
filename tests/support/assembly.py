"""What a compiler made of a loop: its instructions on vectors, and those that are there only for want of registers."""

import re
from typing import NamedTuple

VECTOR = re.compile(r"%[xyz]mm\d|\b[vqzsd]\d+\b")  # registers for numbers: of x86, and of ARM
STACK = re.compile(r"\(%r[sb]p|\[(?:sp|x29)\b")
LABEL = re.compile(r"([.\w$]+):")
# Only conditional ones: compilers put a loop's condition at its end, and what stands out of line comes back unasked.
JUMP = re.compile(r"(?:j(?!mp)\w+|b\.?\w+|cbn?z|tbn?z)\s+(?:.*,\s*)?([.\w$]+)$")


class Loop(NamedTuple):
    vector: int  # instructions
    stack: int  # of them, those that load from the stack or store to it


def loops(assembly: str, function: str) -> list[Loop]:
    """The innermost loops on vectors of the function whose mangled name begins with _Z and `function`, in order."""
    lines = _lines_of(assembly, function)
    begins = {match[1]: i for i, line in enumerate(lines) if (match := LABEL.match(line))}
    ends = ((begins.get(match[1]), i) for i, line in enumerate(lines) if (match := JUMP.match(line)))
    bodies = [(begin, end) for begin, end in ends if begin is not None and begin < end]
    innermost = [a for a in bodies if not any(a != b and a[0] <= b[0] and b[1] <= a[1] for b in bodies)]
    counted = [_counted(lines[begin:end]) for begin, end in sorted(innermost)]
    return [loop for loop in counted if loop.vector]


def _counted(lines: list[str]) -> Loop:
    vector = [line for line in lines if VECTOR.search(line)]
    return Loop(len(vector), sum(bool(STACK.search(line)) for line in vector))


def _lines_of(assembly: str, function: str) -> list[str]:
    """Instructions and labels."""
    found: list[str] = []
    inside = False
    for line in assembly.splitlines():
        line = re.split(r";|//", line)[0].strip().replace("\t", " ")
        label = LABEL.match(line)
        if label and re.match(rf"_+ZL?{function}", label[1]):
            inside = True
        elif label and label[1].startswith(("_", "Lfunc_end", ".Lfunc_end", ".LFE")):
            inside = False
        elif inside and line and (label or not line.startswith(".")):
            found.append(line)
    return found
