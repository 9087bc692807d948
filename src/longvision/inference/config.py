"""How a trained segmentation model is run on an image: at once or in windows, and with test-time augmentation."""

from dataclasses import dataclass

from longvision.errors import UserError


@dataclass(frozen=True)
class InferenceConfig:
    """A way of inference, which changes no weight.

    Args:
        window: side of the windows that slide over the image, pixels; None for the whole image at once.
        stride: from one window to the next, pixels; None for two thirds of the window, as mmsegmentation's 341 of 512.
        scales: factors by which the image is resized; the probabilities are averaged.
        flip: average over the mirrored image too.
    """

    window: int | None = None
    stride: int | None = None
    scales: tuple[float, ...] = (1.0,)
    flip: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "scales", tuple(self.scales))
        if self.window is not None and self.window < 1:
            raise UserError(f"--model.inference.window {self.window}: expected pixels, or null for the whole image")
        if self.stride is not None and self.window is None:
            raise UserError(f"--model.inference.stride {self.stride} needs --model.inference.window, the windows' side")
        if self.stride is not None and not 1 <= self.stride <= (self.window or 0):
            raise UserError(
                f"--model.inference.stride {self.stride}: expected 1 to {self.window}, the windows' side: "
                "with more, pixels between the windows would get no class"
            )
        if not self.scales or min(self.scales) <= 0:
            raise UserError(f"--model.inference.scales {list(self.scales)}: expected factors above 0")
