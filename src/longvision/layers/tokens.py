"""Where class tokens and registers stand in the sequence."""

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
        self.kind: str = kind
        self.count = {"none": 0, "head": 1, "middle": 1, "double": 2}[kind]

    @property
    def in_positions(self) -> "ClassTokens":
        """Those that have a row in the patches' table of positions."""
        return self

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
            order += self._order(range(begin, begin + patches), range(token, token + self.count))
            begin, token = begin + patches, token + self.count
        return order

    def _order(self, patches: range, tokens: range) -> list[int]:
        """Of one image's numbers."""
        at = self._split(len(patches))
        return [*patches[:at], *tokens[:1], *patches[at:], *tokens[1:]]

    def _split(self, patches: int) -> int:
        """Patches before the first class token."""
        return patches // 2 if self.kind == "middle" else 0


class Registers(ClassTokens):
    """Spreads registers evenly among the patch tokens (arXiv 2405.14858): one behind every M // (count + 1) patches,
    the rest of the patches behind the last one.

    Args:
        count: how many, at least one.
    """

    def __init__(self, count: int) -> None:
        super().__init__("none")
        self.kind, self.count = "registers", count
        self.none = ClassTokens("none")

    @property
    def in_positions(self) -> ClassTokens:
        """None: they have a table of their own."""
        return self.none

    def insert(self, patches_BMD: Tensor, tokens_BTD: Tensor | None) -> Tensor:
        """(B, M, D) and (B, count, D) -> (B, M + count, D)."""
        if tokens_BTD is None:
            return patches_BMD
        run = self._split(patches_BMD.shape[1])
        among_BTRD = patches_BMD[:, : self.count * run].unflatten(1, (self.count, run))
        among_BTRD = torch.cat([among_BTRD, tokens_BTD.unsqueeze(2)], dim=2)
        return torch.cat([among_BTRD.flatten(1, 2), patches_BMD[:, self.count * run :]], dim=1)

    def extract(self, x_BMD: Tensor) -> tuple[Tensor, Tensor]:
        """(B, M + count, D) -> patches (B, M, D) and registers (B, count, D): `insert` undone."""
        run = self._split(x_BMD.shape[1] - self.count)
        among = self.count * (run + 1)
        patches_BMD = x_BMD[:, :among].unflatten(1, (self.count, run + 1))[:, :, :run].flatten(1, 2)
        return torch.cat([patches_BMD, x_BMD[:, among:]], dim=1), self.alone(x_BMD)

    def alone(self, x_BMD: Tensor) -> Tensor:
        """(B, M + count, D) -> registers (B, count, D), without a copy."""
        run = self._split(x_BMD.shape[1] - self.count)
        return x_BMD[:, run : self.count * (run + 1) : run + 1]

    def _order(self, patches: range, tokens: range) -> list[int]:
        run = self._split(len(patches))
        order: list[int] = []
        for i, token in enumerate(tokens):
            order += [*patches[i * run : (i + 1) * run], token]
        return [*order, *patches[self.count * run :]]

    def _split(self, patches: int) -> int:
        """Patches before each register."""
        return patches // (self.count + 1)
