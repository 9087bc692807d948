"""Orders in which scans read the patches of a grid: row by row, column by column, window by window."""

from collections.abc import Iterable, Mapping
from typing import NamedTuple

import torch
from torch import Tensor


class Order(NamedTuple):
    """Where a scan reads each token.

    Args:
        name: the same for equal orders.
        place_M: int64 (M,), the place of each token in the scan's sequence.
        length: of that sequence; places that are no token's hold zeros.
    """

    name: str
    place_M: Tensor
    length: int


Orders = Mapping[str, Order | None]  # by name; None where the tokens stay as they are


def scan_orders(names: Iterable[str], grid: tuple[int, int], token: int | None, device: torch.device) -> Orders:
    """ "h" row by row, "v" column by column, "w7" in windows of 7x7 patches, row by row each and inside each.

    Windows that the grid does not fill are filled with zeros, right and below. An order with an f behind its name is
    for a scan from its end, which finds the class token after as many tokens as the other does.

    Args:
        names: of the orders.
        grid: rows and columns of patches.
        token: the place of a class token, in the sequence and in each order; None for none.
        device: of the tensors.
    """
    orders: dict[str, Order | None] = {}
    for name in names:
        base = name.removesuffix("f")
        place_M, length = _places(base, grid, device)
        at = token if token is None or base == name else length - token
        if at == token:  # both ways alike, as in every even number of patches
            orders[name] = None if base == "h" else orders.get(base) or _around(base, token, at, place_M, length)
        else:
            orders[name] = _around(name, token, at, place_M, length)
    return orders


def _places(base: str, grid: tuple[int, int], device: torch.device) -> tuple[Tensor, int]:
    """-> the place of each patch, and the length of the sequence."""
    height, width = grid
    row_H1, column_W = torch.arange(height, device=device)[:, None], torch.arange(width, device=device)
    if base == "h":
        return torch.arange(height * width, device=device), height * width
    if base == "v":
        return (column_W * height + row_H1).flatten(), height * width
    side = int(base[1:])
    down, across = -(-height // side), -(-width // side)
    window_HW = row_H1 // side * across + column_W // side
    place_HW = (window_HW * side + row_H1 % side) * side + column_W % side
    return place_HW.flatten(), down * across * side**2


def _around(name: str, token: int | None, at: int | None, place_M: Tensor, length: int) -> Order:
    """With a class token at that place, from its own in the sequence."""
    if at is None:
        return Order(name, place_M, length)
    place_M = place_M + (place_M >= at)
    return Order(name, torch.cat([place_M[:token], place_M.new_full((1,), at), place_M[token:]]), length + 1)


def in_orders(x_BME: Tensor, orders: Orders, names: Iterable[str]) -> dict[str, Tensor]:
    """(B, M, E) -> (B, length, E) by name, as scans read them; one tensor for equal orders."""
    moved: dict[str, Tensor] = {}
    for name in names:
        order = orders[name]
        if order is None:
            moved[name] = x_BME
        else:
            if order.name not in moved:
                moved[order.name] = in_order(x_BME, order)
            moved[name] = moved[order.name]
    return moved


def in_order(x_BME: Tensor, order: Order) -> Tensor:
    """(B, M, E) -> (B, length, E)."""
    (batch, tokens, width), length = x_BME.shape, order.length
    own = x_BME.new_empty if length == tokens else x_BME.new_zeros
    return own(batch, length, width).index_copy_(1, order.place_M, x_BME)


def put_back(y_BME: Tensor, order: Order | None) -> Tensor:
    """(B, length, E) -> (B, M, E): `in_order` undone."""
    return y_BME if order is None else y_BME.index_select(1, order.place_M)
