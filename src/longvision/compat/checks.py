"""What is refused at the border, in the words of the layout there: (B, D, L), batch x channels x tokens."""

from torch import Tensor

from longvision.errors import UserError


def check_tokens(function: str, name: str, x_BDL: Tensor) -> None:
    """Raises UserError unless it is (B, D, L), with at least one channel and one token."""
    if not isinstance(x_BDL, Tensor):
        raise UserError(f"{function} got {name} of type {type(x_BDL).__name__}, expected a torch.Tensor")
    if x_BDL.ndim != 3 or 0 in x_BDL.shape[1:]:
        raise UserError(
            f"{function} got {name} of shape {tuple(x_BDL.shape)}, expected (batch, channels, tokens) with at least "
            "one channel and one token"
        )


def check_shape(function: str, name: str, tensor: Tensor | None, shape: tuple[int, ...], meaning: str) -> None:
    """Raises UserError unless it is a tensor of that shape; `meaning` names its dimensions."""
    if not isinstance(tensor, Tensor):
        raise UserError(f"{function} got {name} of type {type(tensor).__name__}, expected a torch.Tensor")
    if tuple(tensor.shape) != shape:
        raise UserError(f"{function} got {name} of shape {tuple(tensor.shape)}, expected {meaning}: {shape}")


def takes_silu(function: str, activation: str | None) -> bool:
    """Raises UserError for an activation that the convolution does not have."""
    if activation not in (None, "silu", "swish"):
        raise UserError(f"{function} got activation={activation!r}, expected None, 'silu' or 'swish'")
    return activation is not None
