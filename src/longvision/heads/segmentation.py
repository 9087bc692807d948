"""Semantic segmentation: a decoder of segmentation_models_pytorch on any timm backbone, and an auxiliary head."""

from collections.abc import Sequence
from typing import Any, Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from longvision.heads.extra import dense_library
from longvision.models.backbone import create_features
from longvision.models.pyramid import STRIDES

Head = Literal["upernet", "fpn"]


class Segmenter(nn.Module):
    """(B, C, H, W) -> logits (B, K, H, W), for any H x W; the decoders' maps nest, so inside it is padded by zeros.

    In training with an auxiliary head: -> logits and the auxiliary logits, both (B, K, H, W).

    Args:
        backbone: images -> maps at strides 4, 8, 16 and 32.
        decoder: of segmentation_models_pytorch, maps at strides 1, 2, 4, 8, 16 and 32 -> one map at stride 4.
        classifier: that map -> logits at stride 4.
        auxiliary: the backbone's map of stride 16 -> logits at stride 16, or None.
    """

    def __init__(
        self, backbone: nn.Module, decoder: nn.Module, classifier: nn.Module, auxiliary: nn.Module | None = None
    ) -> None:
        super().__init__()
        self.backbone, self.decoder, self.classifier, self.auxiliary = backbone, decoder, classifier, auxiliary
        # A backbone of tokens gives maps in this order: convolutions that take it need not turn them around.
        self.to(memory_format=torch.channels_last)

    def forward(self, x_BCHW: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        height, width = x_BCHW.shape[2:]
        right, below = -width % STRIDES[-1], -height % STRIDES[-1]
        if (height + below, width + right) == (STRIDES[-1], STRIDES[-1]):
            right += STRIDES[-1]  # else the coarsest map is one pixel, which a norm of FPN's cannot be computed of
        padded_BCHW = F.pad(x_BCHW, (0, right, 0, below))
        maps = self.backbone(padded_BCHW)
        fine_BDHW = self.decoder([padded_BCHW, padded_BCHW, *maps])  # the decoders pass over the first two
        logits = [self.classifier(fine_BDHW)]
        if self.auxiliary is not None and self.training:
            logits.append(self.auxiliary(maps[STRIDES.index(16)]))
        full = [_enlarged(coarse, padded_BCHW.shape[2:])[:, :, :height, :width] for coarse in logits]
        return (full[0], full[1]) if len(full) > 1 else full[0]


def _enlarged(logits_BKhw: Tensor, size: Sequence[int]) -> Tensor:
    return F.interpolate(logits_BKhw, tuple(size), mode="bilinear", align_corners=False)


class FCNHead(nn.Sequential):
    """(B, C, h, w) -> (B, K, h, w): a 3x3 convolution of 256 channels and a 1x1 one.

    Beside UPerNet (arXiv 1807.10221) it gives the backbone a gradient that comes the short way, as in the
    segmentation that the Vim paper measures.
    """

    def __init__(self, channels: int, classes: int, width: int = 256, dropout: float = 0.1) -> None:
        super().__init__(
            nn.Conv2d(channels, width, 3, padding=1, bias=False),
            nn.BatchNorm2d(width),
            nn.ReLU(inplace=True),
            nn.Dropout2d(dropout),
            nn.Conv2d(width, classes, 1),
        )


def create_segmenter(
    name: str,
    head: Head,
    classes: int,
    channels: int,
    size: tuple[int, int],
    pretrained: bool | str = False,
    args: dict[str, Any] | None = None,
    width: int = 256,
    auxiliary: bool = True,
) -> Segmenter:
    """UPerNet (arXiv 1807.10221) or FPN (arXiv 1612.03144, 1901.02446) on a backbone.

    Args:
        name: any timm model with maps, or with a pyramid.
        head: "upernet" or "fpn".
        classes: K.
        channels: of the images.
        size: (height, width) for which positions are held; others work too.
        pretrained: the backbone's weights: a file's path, or true for those that timm knows.
        args: further arguments of the backbone.
        width: channels of the decoder.
        auxiliary: whether an FCN head is trained beside it.

    Raises:
        ValueError: an unknown model or head, or arguments that they do not take.
    """
    if head not in get_args(Head):
        raise ValueError(f"head {head!r} is unknown: choose {' or '.join(get_args(Head))}")
    if width < 1 or (head == "fpn" and width % 64):
        expected = "a multiple of 64, its norms have 32 groups" if head == "fpn" else "at least 1 channel"
        raise ValueError(f"width {width}: {head} needs {expected}")
    backbone = create_features(name, channels, size, pretrained, args)
    given = backbone.feature_info.channels()  # type: ignore[union-attr, operator]
    decoder, wide = _decoder(head, [channels, channels, *given], width)
    auxiliary_head = FCNHead(given[STRIDES.index(16)], classes) if auxiliary else None
    return Segmenter(backbone, decoder, nn.Conv2d(wide, classes, 1), auxiliary_head)


def _decoder(head: Head, channels: list[int], width: int) -> tuple[nn.Module, int]:
    """For the maps' channels at strides 1, 2, 4, 8, 16 and 32; -> the decoder and the channels that it gives."""
    decoders = dense_library("segmentation_models_pytorch").decoders
    if head == "fpn":
        decoder = decoders.fpn.decoder.FPNDecoder(channels, pyramid_channels=width, segmentation_channels=width // 2)
        return decoder, width // 2
    decoder = decoders.upernet.decoder.UPerNetDecoder(channels, decoder_channels=width)
    return nn.Sequential(decoder, nn.Dropout2d(0.1)), width  # FPN's has a dropout of its own
