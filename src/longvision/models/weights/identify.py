"""Which registered model a set of weights belongs to, read from the names and shapes alone."""

import re
from collections.abc import Iterable
from dataclasses import dataclass

from torch import Tensor

from longvision.errors import UserError
from longvision.models.weights.vmamba import renamed

# What only a family's tensors have in their names -> the family. A Vim has none of these.
MARKS = {
    "reatten_matrix.weight": "DeepViT",
    "pos_embed_cls": "MambaReg",
    "A_c_log": "ARM",
    "A_log_0": "LocalVim",
    "A_logs": "VMamba",
}
# Family -> width and depth, of a VMamba its third stage's -> the name
SIZES = {
    "Vim": {
        (192, 24): "vim_tiny_patch16_224",
        (384, 24): "vim_small_patch16_224",
        (768, 24): "vim_base_patch16_224",
        (128, 4): "vim_nano_patch4_32",
    },
    "DeepViT": {
        (384, 16): "deepvit_16",
        (384, 24): "deepvit_24",
        (384, 32): "deepvit_32",
        (396, 16): "deepvit_s",
        (420, 32): "deepvit_l",
    },
    "MambaReg": {
        (192, 24): "mambareg_tiny_patch16_224",
        (384, 24): "mambareg_small_patch16_224",
        (768, 24): "mambareg_base_patch16_224",
        (1024, 48): "mambareg_large_patch16_224",
    },
    "ARM": {
        (384, 12): "arm_tiny_patch16_224",
        (512, 12): "arm_small_patch16_224",
        (768, 12): "arm_base_patch16_224",
        (1024, 24): "arm_large_patch16_224",
        (1536, 24): "arm_huge_patch16_224",
    },
    "LocalVim": {(192, 20): "localvim_tiny_patch16_224", (384, 20): "localvim_small_patch16_224"},
    "VMamba": {
        (96, 8): "vmamba_tiny_s1l8_224",
        (96, 20): "vmamba_small_s1l20_224",
        (128, 20): "vmamba_base_s1l20_224",
        (96, 5): "vmamba_tiny_s2l5_224",
        (96, 15): "vmamba_small_s2l15_224",
        (128, 15): "vmamba_base_s2l15_224",
        (96, 9): "vmamba_tiny_v0_224",
        (96, 27): "vmamba_small_v0_224",
        (128, 27): "vmamba_base_v0_224",
    },
}
# Name -> others of the same width and depth, by their number of positions. At 224 pixels 27 x 27 patches overlap.
BY_POSITIONS = {
    "vim_tiny_patch16_224": dict.fromkeys((729, 730, 731), "vim_tiny_patch16_stride8_224"),
    "vim_small_patch16_224": dict.fromkeys((729, 730, 731), "vim_small_patch16_stride8_224"),
    "deepvit_l": {577: "deepvit_l_384"},
}
HEADS = "head.weight", "classifier.head.weight"
FIRST = "patch_embed.conv1.weight", "patch_embed.0.weight", "patch_embed.proj.weight"


@dataclass(frozen=True)
class Identity:
    """A registered name, and the arguments of timm.create_model beside it, as text."""

    name: str
    num_classes: int
    arguments: str


def identify(weights: dict[str, Tensor], path: str) -> Identity:
    """Raises UserError for weights that no registered model of ours has."""
    family, width, depth, name = _read(weights)
    if not family:
        raise UserError(f"{path} is not a checkpoint of a {', '.join(SIZES)} or DETR: it does not have their tensors")
    if name is None:
        patches = weights.get("patch_embed.proj.weight")
        side = "" if patches is None else f" and patches of {patches.shape[-1]}"
        raise UserError(
            f"{path} is a {family} of width {width}, depth {depth}{side}, which none of the registered ones is: load "
            f"it with longvision.models.{family}(embed_dim={width}, …)"
        )
    return _identity(name, weights)


def fitting(weights: dict[str, Tensor]) -> str | None:
    """The registered name of ours whose blocks they fill; None where none is known to."""
    return _read(weights)[3]


def family_of(weights: Iterable[str]) -> str:
    """By the names; a Vim where no other can be told."""
    names = [str(name) for name in weights]
    return next((family for mark, family in MARKS.items() if any(mark in name for name in names)), "Vim")


def _read(weights: dict[str, Tensor]) -> tuple[str, int, int, str | None]:
    """-> family, width, depth and name."""
    family = family_of(weights)
    blocks = [name.split(".") for name in weights if name.startswith(("blocks.", "layers."))]
    if family == "VMamba":
        norm = renamed(weights).get("layers.0.blocks.0.norm.weight")
        if norm is None:
            return "", 0, 0, None
        depth = 1 + max((int(parts[3]) for parts in blocks if parts[1:3] == ["2", "blocks"]), default=-1)
        return family, len(norm), depth, SIZES[family].get((len(norm), depth))
    patches, positions = weights.get("patch_embed.proj.weight"), weights.get("pos_embed")
    marked = family != "Vim" or any(name.endswith("mixer.A_log") for name in weights)
    if not marked or patches is None or patches.ndim != 4 or positions is None or positions.ndim != 3:
        return "", 0, 0, None
    width, depth = patches.shape[0], 1 + max((int(parts[1]) for parts in blocks), default=-1)
    name = SIZES[family].get((width, depth), "")
    side = re.search(r"patch(\d+)", name)
    if not name or (side and int(side[1]) != patches.shape[-1]):
        return family, width, depth, None
    if name == "localvim_tiny_patch16_224":
        name += ".rope_in1k" if "rope.freqs_cos" in weights else ".middle_cls_in1k"
    return family, width, depth, BY_POSITIONS.get(name, {}).get(positions.shape[1], name)


def _identity(name: str, weights: dict[str, Tensor]) -> Identity:
    head, first = (next((weights[key] for key in keys if key in weights), None) for keys in (HEADS, FIRST))
    classes = 0 if head is None else len(head)
    arguments = {"num_classes": classes, "in_chans": 3 if first is None else first.shape[1]}
    usual = {"num_classes": 10 if "nano" in name else 1000, "in_chans": 3}
    return Identity(
        name, classes, "".join(f", {key}={value}" for key, value in arguments.items() if value != usual[key])
    )
