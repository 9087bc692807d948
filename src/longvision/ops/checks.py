"""What fits together: kernels would read beyond the end of a tensor that does not, or at an address that is none."""

from torch import Tensor


def check_tokens(op: str, x: Tensor) -> None:
    """Raises TypeError or ValueError unless x is (batch, tokens, channels) of real numbers, with at least one token."""
    if not isinstance(x, Tensor):
        raise TypeError(f"{op} got x of type {type(x).__name__}, expected a torch.Tensor")
    if x.ndim != 3:
        raise ValueError(
            f"{op} got x of shape {tuple(x.shape)}, expected (batch, tokens, channels): channels come last"
        )
    if x.shape[1] == 0:
        raise ValueError(f"{op} got no tokens: x needs at least one")
    check_fits(op, "x", x, tuple(x.shape), x)


def check_fits(op: str, name: str, tensor: Tensor | None, shape: tuple[int, ...], x: Tensor) -> None:
    """Raises TypeError or ValueError unless it is a tensor of that shape, of real numbers, where x is."""
    if not isinstance(tensor, Tensor):
        raise TypeError(f"{op} got {name} of type {type(tensor).__name__}, expected a torch.Tensor of shape {shape}")
    if tuple(tensor.shape) != shape:
        raise ValueError(
            f"{op} got {name} of shape {tuple(tensor.shape)}, expected {shape}, since x is {tuple(x.shape)}: channels "
            "come last"
        )
    if not tensor.is_floating_point():
        raise ValueError(f"{op} got {name} of type {tensor.dtype}, expected a floating-point one: convert it")
    if tensor.device != x.device:
        raise ValueError(f"{op} got {name} on {tensor.device} and x on {x.device}: move one to the other")


def columns(op: str, name: str, matrix: Tensor) -> int:
    """Of a matrix that has some. Raises TypeError or ValueError for what is none."""
    if not isinstance(matrix, Tensor):
        raise TypeError(f"{op} got {name} of type {type(matrix).__name__}, expected a torch.Tensor of two dimensions")
    if matrix.ndim != 2 or matrix.shape[1] == 0:
        raise ValueError(f"{op} got {name} of shape {tuple(matrix.shape)}, expected two dimensions, the last not empty")
    return matrix.shape[1]
