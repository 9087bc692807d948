"""Where the class token stands in the sequence."""

from collections.abc import Sequence
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from longvision.errors import UserError

ClassToken = Literal["none", "head", "middle", "double"]
CLASS_TOKENS: tuple[ClassToken, ...] = get_args(ClassToken)


class ClassTokens(nn.Module):
    """Puts the class tokens among the patch tokens and takes them out again.

    "middle", the paper's, stands between the two halves of the sequence, so that both directions have read half of
    the image when they come to it; "head" before the first patch; "double" one before the first and one behind the
    last (table 6 of arXiv 2401.09417). Holds no parameters: those keep the released checkpoints' names in the model.
    """

    def __init__(self, kind: ClassToken) -> None:
        super().__init__()
        if kind not in CLASS_TOKENS:
            raise UserError(f"cls_token={kind!r} is unknown: choose one of {', '.join(CLASS_TOKENS)}")
        self.kind = kind
        self.count = {"none": 0, "head": 1, "middle": 1, "double": 2}[kind]

    def insert(self, patches_BMD: Tensor, tokens_BTD: Tensor | None) -> Tensor:
        """(B, M, D) and (B, count, D) -> (B, M + count, D)."""
        if tokens_BTD is None:
            return patches_BMD
        at = self._split(patches_BMD.shape[1])
        return torch.cat([patches_BMD[:, :at], tokens_BTD[:, :1], patches_BMD[:, at:], tokens_BTD[:, 1:]], dim=1)

    def extract(self, x_BMD: Tensor) -> tuple[Tensor, Tensor]:
        """(B, M + count, D) -> patches (B, M, D) and class tokens (B, count, D): `insert` undone."""
        if not self.count:
            return x_BMD, x_BMD[:, :0]
        patches = x_BMD.shape[1] - self.count
        at = self._split(patches)
        return torch.cat([x_BMD[:, :at], x_BMD[:, at + 1 : patches + 1]], dim=1), self.alone(x_BMD)

    def alone(self, x_BMD: Tensor) -> Tensor:
        """(B, M + count, D) -> class tokens (B, count, D), without a copy of the patches."""
        patches = x_BMD.shape[1] - self.count
        at = self._split(patches)
        return torch.cat([x_BMD[:, at : at + min(1, self.count)], x_BMD[:, patches + 1 :]], dim=1)

    def packed_order(self, lengths: Sequence[int]) -> list[int]:
        """Of S packed images of so many patches, M in all: which of M patches and then S * count class tokens, image by
        image, stands where in the row."""
        order: list[int] = []
        begin, token = 0, sum(lengths)
        for patches in lengths:
            at, end = begin + self._split(patches), begin + patches
            tokens = range(token, token + self.count)
            order += [*range(begin, at), *tokens[:1], *range(at, end), *tokens[1:]]
            begin, token = end, token + self.count
        return order

    def _split(self, patches: int) -> int:
        """Patches before the first class token."""
        return patches // 2 if self.kind == "middle" else 0
