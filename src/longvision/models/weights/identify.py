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
# The same of DeepViTs, with their positions in place of the patch: embed_dim, depth, positions
DEEPVITS = {
    (384, 16, 197): "deepvit_16",
    (384, 24, 197): "deepvit_24",
    (384, 32, 197): "deepvit_32",
    (396, 16, 197): "deepvit_s",
    (420, 32, 197): "deepvit_l",
    (420, 32, 577): "deepvit_l_384",
}


@dataclass(frozen=True)
class Identity:
    """A registered name, and the arguments of timm.create_model beside it, as text."""

    name: str
    num_classes: int
    arguments: str


def identify(weights: dict[str, Tensor], path: str) -> Identity:
    """Raises UserError for weights that no registered Vim or DeepViT has."""
    try:
        width, channels, side, _ = weights["patch_embed.proj.weight"].shape
        positions = weights["pos_embed"].shape[1]
    except (KeyError, ValueError) as error:
        raise UserError(
            f"{path} is not a checkpoint of a Vim or DeepViT: it has no patch_embed.proj.weight and pos_embed"
        ) from error
    is_deepvit = any(name.endswith("reatten_matrix.weight") for name in weights)
    blocks = [name.split(".")[1] for name in weights if name.startswith("blocks." if is_deepvit else "layers.")]
    depth = 1 + max(map(int, blocks), default=-1)
    if is_deepvit:
        return _deepvit(weights, path, (width, depth, positions))
    if (width, depth, side) not in KNOWN:
        raise UserError(
            f"{path} is a Vim of width {width}, {depth} blocks and patches of {side}, which is none of the "
            f"registered ones: load it with longvision.models.Vim(embed_dim={width}, depth={depth}, …)"
        )
    # Weights do not tell the stride; at 224 pixels the number of positions does: 27 x 27 patches overlap.
    name = KNOWN[width, depth, side][729 <= positions <= 731]
    return _identity(name, weights, channels, 10 if "nano" in name else 1000)


def _deepvit(weights: dict[str, Tensor], path: str, sizes: tuple[int, int, int]) -> Identity:
    if sizes not in DEEPVITS:
        width, depth, positions = sizes
        raise UserError(
            f"{path} is a DeepViT of width {width}, {depth} blocks and {positions} positions, which is none of the "
            "registered ones: load it with longvision.models.DeepViT(…)"
        )
    first = weights.get("patch_embed.conv1.weight", weights["patch_embed.proj.weight"])
    return _identity(DEEPVITS[sizes], weights, first.shape[1], 1000)


def _identity(name: str, weights: dict[str, Tensor], channels: int, usual_classes: int) -> Identity:
    classes = weights["head.weight"].shape[0] if "head.weight" in weights else 0
    arguments, usual = {"num_classes": classes, "in_chans": channels}, {"num_classes": usual_classes, "in_chans": 3}
    return Identity(
        name, classes, "".join(f", {key}={value}" for key, value in arguments.items() if value != usual[key])
    )
