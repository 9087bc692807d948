"""How a trained segmentation model is asked about pictures: in one piece or in windows, once or several times over."""

from collections.abc import Callable
from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor

from longvision.inference.windows import augmented, slide, whole


@dataclass(frozen=True)
class Asking:
    """A way of inference, which changes no weight.

    Args:
        window: side of the windows that slide over the picture, pixels; None for the whole picture at once.
        stride: from one window to the next, pixels; None for two thirds of the window, as mmsegmentation's 341 of 512.
        scales: sizes at which the picture is shown, as factors; the answers are averaged.
        flip: show it mirrored too.
    """

    window: int | None = None
    stride: int | None = None
    scales: tuple[float, ...] = (1.0,)
    flip: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "scales", tuple(self.scales))
        if self.window is not None and self.window < 1:
            raise ValueError(f"--model.asking.window {self.window}: expected pixels, or null for the whole picture")
        if self.stride is not None and self.window is None:
            raise ValueError(f"--model.asking.stride {self.stride} needs --model.asking.window, the windows' side")
        if self.stride is not None and not 1 <= self.stride <= (self.window or 0):
            raise ValueError(
                f"--model.asking.stride {self.stride}: expected 1 to the window's side, or pixels go unseen"
            )
        if not self.scales or min(self.scales) <= 0:
            raise ValueError(f"--model.asking.scales {list(self.scales)}: expected factors above 0")

    def probabilities(
        self, model: Callable[[Tensor], Tensor], image_CHW: Tensor, classes: int, size: tuple[int, int]
    ) -> Tensor:
        """(C, h, w) -> (K, H, W) float32, for a picture of that `size`."""

        def predict(shown_CHW: Tensor) -> Tensor:
            if self.window is None:
                return whole(model, shown_CHW)
            step = self.stride or max(1, self.window * 2 // 3)
            return slide(model, shown_CHW, (self.window, self.window), (step, step), classes)

        shares_Khw = augmented(predict, image_CHW, self.scales, self.flip)
        if shares_Khw.shape[1:] == size:
            return shares_Khw
        return F.interpolate(shares_Khw[None], size, mode="bilinear", antialias=True)[0]
