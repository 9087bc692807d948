"""Image sides from text: `224,512`, or a range such as `224:2048`."""

from longvision.errors import UserError

# About sqrt(2) apart, all divisible by 16; 1248 is the size of Figure 1 in arXiv 2401.09417.
LADDER = (32, 48, 64, 96, 128, 192, 256, 384, 512, 768, 1024, 1248, 1536, 2048, 3072, 4096, 6144, 8192)
APART = 1.2  # a step nearer than this to an end of the range says nothing new


def parse_sizes(text: str) -> list[int]:
    """-> sides in pixels, ascending, each once. Raises UserError for what is no list and no range."""
    words = text.split(":" if ":" in text else ",")
    if not all(map(is_count, words)) or (":" in text and len(words) != 2):
        raise UserError(
            f"{text!r}: expected image sides in pixels, above 0, such as 224,512,1248, or a range such as 224:2048"
        )
    sides = [int(word) for word in words]
    return _range(text, *sides) if ":" in text else sorted(set(sides))


def is_count(text: str) -> bool:
    """Whether it is a whole number above 0. "²" is a digit, but not for int()."""
    word = text.strip()
    return word.isascii() and word.isdigit() and int(word) > 0


def _range(text: str, first: int, last: int) -> list[int]:
    if first > last:
        raise UserError(f"{text!r} runs downward: expected the smaller side first, {last}:{first}")
    for side in (first, last):
        if side % 16:
            raise UserError(
                f"{text!r}: the ends of a range are divisible by 16, {side} is not: "
                f"take {max(16, side // 16 * 16)}, or list the sizes with commas"
            )
    between = [side for side in LADDER if first * APART <= side <= last / APART]
    return sorted({first, *between, last})
