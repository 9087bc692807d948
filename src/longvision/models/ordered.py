"""Sequence backbones whose scans read the patches in several orders."""

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from longvision.errors import UserError
from longvision.layers.orders import Orders, scan_orders
from longvision.models.sequence import Layout, SequenceBackbone
from longvision.types import PackedImages

torch.fx.wrap("scan_orders")  # it looks at sizes that a symbolic trace does not know


@dataclass(frozen=True)
class OrderedLayout(Layout):
    """With the orders of the grid, and what else blocks take."""

    orders: Orders = field(default_factory=dict)
    others: tuple[Any, ...] = ()


class OrderedBackbone(SequenceBackbone):
    """Blocks are called with the orders of the grid: see `longvision.layers.orders.scan_orders`.

    Args:
        block: see `SequenceBackbone`.
        norm: see `SequenceBackbone`.
        orders: their names.
        cls_token: "middle" or "none".
        **others: see `SequenceBackbone`.

    Raises:
        UserError: a class token elsewhere.
    """

    def __init__(self, block: Any, norm: Any, *, orders: set[str], cls_token: str, **others: Any) -> None:
        if cls_token not in ("middle", "none"):
            raise UserError(f"cls_token={cls_token!r}: the scans leave out one in the middle; choose middle or none")
        self.orders = sorted(orders)
        super().__init__(block, norm, cls_token=cls_token, **others)  # type: ignore[arg-type]

    def embed(self, images: Tensor | PackedImages) -> tuple[Tensor, Layout]:
        """As `SequenceBackbone.embed`."""
        x_BMD, layout = super().embed(images)
        grid = layout.grids[0]
        token = self._left_out(grid[0] * grid[1]) if self.tokens.count else None
        orders = scan_orders(self.orders, grid, token, x_BMD.device)
        return x_BMD, OrderedLayout(layout.grids, orders=orders, others=self._others(grid, x_BMD))

    def _left_out(self, patches: int) -> int:
        """The place of the token that scans take for the class token."""
        return patches // 2

    def _others(self, grid: tuple[int, int], x_BMD: Tensor) -> tuple[Any, ...]:
        """What else blocks take."""
        return ()

    def _block_arguments(self, layout: Any) -> tuple[Any, ...]:
        return layout.orders, *layout.others
