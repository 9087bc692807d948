"""Which registered model a set of weights belongs to, read from the shapes alone."""

from dataclasses import dataclass

from torch import Tensor

from longvision.errors import UserError

# embed_dim, depth, patch side -> the name at stride = patch, and with overlapping patches
KNOWN = {
    (192, 24, 16): ("vim_tiny_patch16_224", "vim_tiny_patch16_stride8_224"),
    (384, 24, 16): ("vim_small_patch16_224", "vim_small_patch16_stride8_224"),
    (768, 24, 16): ("vim_base_patch16_224", "vim_base_patch16_224"),
    (128, 4, 4): ("vim_nano_patch4_32", "vim_nano_patch4_32"),
}


@dataclass(frozen=True)
class Identity:
    """A registered name, and the arguments of timm.create_model beside it, as text."""

    name: str
    num_classes: int
    arguments: str


def identify(weights: dict[str, Tensor], path: str) -> Identity:
    """Raises UserError for weights that no registered Vim has."""
    try:
        width, channels, side, _ = weights["patch_embed.proj.weight"].shape
        positions = weights["pos_embed"].shape[1]
    except (KeyError, ValueError) as error:
        raise UserError(f"{path} is not a Vim checkpoint: it has no patch_embed.proj.weight and pos_embed") from error
    depth = 1 + max((int(name.split(".")[1]) for name in weights if name.startswith("layers.")), default=-1)
    if (width, depth, side) not in KNOWN:
        raise UserError(
            f"{path} is a Vim of width {width}, {depth} blocks and patches of {side}, which is none of the "
            f"registered ones: load it with longvision.models.Vim(embed_dim={width}, depth={depth}, …)"
        )
    # Weights do not tell the stride; at 224 pixels the number of positions does: 27 x 27 patches overlap.
    name = KNOWN[width, depth, side][729 <= positions <= 731]
    classes = weights["head.weight"].shape[0] if "head.weight" in weights else 0
    arguments = {"num_classes": classes, "in_chans": channels}
    usual = {"num_classes": 10 if "nano" in name else 1000, "in_chans": 3}
    return Identity(
        name, classes, "".join(f", {key}={value}" for key, value in arguments.items() if value != usual[key])
    )
