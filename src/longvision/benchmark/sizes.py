"""Image sides from text: `224,512`, or a range such as `224:2048`."""

# About sqrt(2) apart, all divisible by 16; 1248 is the size of Figure 1 in arXiv 2401.09417.
LADDER = (32, 48, 64, 96, 128, 192, 256, 384, 512, 768, 1024, 1248, 1536, 2048, 3072, 4096, 6144, 8192)
APART = 1.2  # a step nearer than this to an end of the range says nothing new


def parse_sizes(text: str) -> list[int]:
    """-> sides in pixels, ascending, each once. Raises ValueError for what is no list and no range."""
    if ":" in text:
        return _range(text)
    return sorted({_side(word, text) for word in text.split(",")})


def _range(text: str) -> list[int]:
    words = text.split(":")
    if len(words) != 2:
        raise _no_sizes(text)
    first, last = (_side(word, text) for word in words)
    if first > last:
        raise ValueError(f"--sizes {text!r} runs downward: expected the smaller side first, {last}:{first}")
    for side in (first, last):
        if side % 16:
            raise ValueError(
                f"--sizes {text!r}: the ends of a range are divisible by 16, {side} is not: "
                f"take {max(16, side // 16 * 16)}, or list the sizes with commas"
            )
    between = [side for side in LADDER if first * APART <= side <= last / APART]
    return sorted({first, *between, last})


def _side(word: str, text: str) -> int:
    if not (word.strip().isascii() and word.strip().isdigit()) or int(word) == 0:
        raise _no_sizes(text)
    return int(word)


def _no_sizes(text: str) -> ValueError:
    return ValueError(
        f"--sizes {text!r}: expected image sides in pixels, above 0, such as 224,512,1248, or a range such as 224:2048"
    )
