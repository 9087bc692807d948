"""Modules of a few dozen lines: what a model is made of."""

from longvision.layers.block import VimBlock
from longvision.layers.factorised import FactorisedPositions, factorised_on_grid
from longvision.layers.mixer import Direction, VimMixer
from longvision.layers.norm import RMSNorm
from longvision.layers.patch_embed import PatchEmbed
from longvision.layers.plain import set_fused
from longvision.layers.positions import packed_pos_embed, resample_pos_embed
from longvision.layers.stack import run_at_once
from longvision.layers.tokens import ClassToken, ClassTokens, Registers

__all__ = [
    "ClassToken",
    "ClassTokens",
    "Direction",
    "FactorisedPositions",
    "PatchEmbed",
    "RMSNorm",
    "Registers",
    "VimBlock",
    "VimMixer",
    "factorised_on_grid",
    "packed_pos_embed",
    "resample_pos_embed",
    "run_at_once",
    "set_fused",
]
