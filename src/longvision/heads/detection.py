"""Detectors: a backbone's maps, a region proposal network, and R-CNN heads for boxes and masks."""

from dataclasses import replace
from typing import Any, Literal, get_args

import torch
import torch.nn.functional as F
from timm.layers import LayerNorm2d
from torch import Tensor, nn
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.rpn import RegionProposalNetwork, RPNHead
from torchvision.ops import FeaturePyramidNetwork

from longvision.errors import UserError
from longvision.heads.cascade import CASCADE, CascadeRoIHeads
from longvision.heads.objects import ObjectModel
from longvision.models.backbone import create_features, dense_name
from longvision.models.sequence import check_at_least_one
from longvision.types import Detections, Size, Target

Head = Literal["cascade", "rcnn"]
NESTING = 64  # the coarsest stride: torchvision spaces anchors by an image's side over its map's, so they must divide


def create_detector(
    name: str,
    head: Head = "cascade",
    *,
    classes: int,
    channels: int = 3,
    size: Size,
    masks: bool,
    pretrained: bool | str = False,
    args: dict[str, Any] | None = None,
    width: int = 256,
    detections: int = 100,
) -> "Detector":
    """Any timm backbone with maps of strides 4 to 32 as a detector, as ViTDet is built (arXiv 2203.16527).

    Arguments not named here are those of `create_segmenter`.

    Args:
        name: of the backbone; one of a single stride gets the simple feature pyramid, others an FPN.
        head: "cascade", three stages, or "rcnn", the first of them alone: Faster R-CNN, Mask R-CNN with masks.
        classes: how many, background not among them.
        size: of a training image, (height, width) in pixels. Anchors, and how many boxes are looked at, follow from it.
        masks: whether to learn and predict masks.
        width: channels of all maps and heads; a quarter of the linear layers' width. ViTDet's 256 asks for a GPU; 32
            trains on two CPU cores.
        detections: the most objects that are found in an image.

    Raises:
        ValueError: an unknown head or backbone, or a number out of its range.
    """
    if head not in get_args(Head):
        raise ValueError(f"head {head!r} is unknown: choose {' or '.join(get_args(Head))}")
    check_at_least_one(classes=classes, width=width, detections=detections)
    if dense_name(name).partition(".")[0].endswith("_pyramid"):
        args = {"out_chans": width, **(args or {})}
    body = create_features(name, channels, size, pretrained, args)
    return detector_from(body, classes, size, masks, width, head, detections)


def detector_from(
    body: nn.Module,
    classes: int,
    size: Size,
    masks: bool,
    width: int = 256,
    head: Head = "cascade",
    detections: int = 100,
) -> "Detector":
    """From a module that returns a list of maps and has timm's `feature_info`; the rest as above."""
    backbone = Levels(body, width)
    side = max(size)
    rpn = region_proposals(width, anchor_sizes(side, (*backbone.strides, 2 * backbone.strides[-1])), side, detections)
    stages = CASCADE if head == "cascade" else CASCADE[:1]
    heads = CascadeRoIHeads(classes, width, backbone.strides, masks, stages, share(side, 512, 32), detections)
    return Detector(backbone, rpn, heads, size)


def anchor_sizes(side: int, strides: tuple[int, ...]) -> list[int]:
    """Of one map each, for images of `side` pixels: 8 strides from 1024 pixels on, as in the FPN paper (32 to 512).

    A smaller canvas holds no object of 512 pixels, and one of 32 is not its smallest: the anchors shrink with it, to
    no less than 2 strides (8 to 128 at 256 pixels and below), as anchors further apart miss objects between them.
    """
    cells = min(8.0, max(2.0, side / 128))
    return [round(cells * stride) for stride in strides]


def share(side: int, of: int, least: int) -> int:
    """As much of what is usual at 1024 pixels as the image's side is of those."""
    return min(of, max(least, of * side // 1024))


def region_proposals(width: int, sizes: list[int], side: int, detections: int) -> RegionProposalNetwork:
    """torchvision's, with anchors of one size a map and ratios 1:2, 1:1 and 2:1. At least two regions are looked at for
    each of the objects that may be found."""
    tested = max(share(side, 1000, 256), 2 * detections)
    anchors = AnchorGenerator(tuple((size,) for size in sizes), ((0.5, 1.0, 2.0),) * len(sizes))
    return RegionProposalNetwork(
        anchors,
        Float32RPNHead(width, anchors.num_anchors_per_location()[0], conv_depth=2),
        fg_iou_thresh=0.7,
        bg_iou_thresh=0.3,
        batch_size_per_image=256,
        positive_fraction=0.5,
        pre_nms_top_n={"training": share(side, 2000, 256), "testing": tested},
        post_nms_top_n={"training": share(side, 1000, 256), "testing": tested},
        nms_thresh=0.7,
    )


class Float32RPNHead(RPNHead):
    """Under autocast the corrections would be bfloat16, and so would the proposals: 4 pixels apart at 1000."""

    def forward(self, x: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        logits, corrections = super().forward(x)
        return [some.float() for some in logits], [some.float() for some in corrections]


class Levels(nn.Module):
    """(B, C, H, W) -> {"0" ... "3": maps, "pool": the last one at half the size}, all `width` wide and float32.

    Maps of another width go through an FPN with LayerNorm. Anchors and boxes take their precision from the maps, which
    is why these leave autocast.
    """

    def __init__(self, body: nn.Module, width: int) -> None:
        super().__init__()
        info: Any = body.feature_info
        found = info.channels()
        self.strides = tuple(info.reduction())
        self.body = body
        self.fpn = None if set(found) == {width} else FeaturePyramidNetwork(found, width, norm_layer=LayerNorm2d)

    def forward(self, x_BCHW: Tensor) -> dict[str, Tensor]:
        maps = {str(i): map_BChw for i, map_BChw in enumerate(self.body(x_BCHW))}
        if self.fpn is not None:
            maps = self.fpn(maps)
        maps["pool"] = F.max_pool2d(list(maps.values())[-1], 1, 2)
        return {name: map_BChw.float() for name, map_BChw in maps.items()}


class Detector(ObjectModel):
    """R-CNN: objects that score above 0.05, at most `most` an image. Targets have masks where masks are learned, and
    boxes with an area.

    Args:
        backbone: (B, C, H, W) -> maps by name, finest first, the last one for proposals only.
        rpn: torchvision's.
        roi_heads: such as `CascadeRoIHeads`.
        size: (height, width) that smaller images are padded to with zeros, as in training, so that
            the backbone sees positions that it has learned.
    """

    def __init__(self, backbone: nn.Module, rpn: nn.Module, roi_heads: CascadeRoIHeads, size: Size) -> None:
        super().__init__()
        self.backbone, self.rpn, self.roi_heads, self.size = backbone, rpn, roi_heads, size

    @property
    def most(self) -> int:
        return self.roi_heads.detections_per_img

    @property
    def least_score(self) -> float:
        return self.roi_heads.score_thresh

    def losses(self, images: list[Tensor], targets: list[Target]) -> dict[str, Tensor]:
        """Raises UserError for a box without an area."""
        wanted = [self._wanted(target, i) for i, target in enumerate(targets)]
        batch, maps = self._maps(images)
        proposals, losses = self.rpn(batch, maps, [{"boxes": one.boxes} for one in wanted])
        _, more = self.roi_heads(maps, proposals, batch.image_sizes, wanted)
        return {**losses, **more}

    def found(self, images: list[Tensor], sizes: list[Size]) -> list[Detections]:
        batch, maps = self._maps(images)
        proposals, _ = self.rpn(batch, maps)
        found, _ = self.roi_heads(maps, proposals, batch.image_sizes)
        return [at_size(one, seen, size) for one, seen, size in zip(found, batch.image_sizes, sizes, strict=True)]

    def _maps(self, images: list[Tensor]) -> tuple[ImageList, dict[str, Tensor]]:
        batch = padded_batch(images, self.size)
        return batch, self.backbone(batch.tensors)

    def _wanted(self, target: Target, i: int) -> Target:
        """As the heads want it: without crowds, which are no objects to learn from."""
        wanted = replace(target, boxes=target.boxes.float()).select(~target.iscrowd)
        flat = (wanted.boxes[:, 2:] <= wanted.boxes[:, :2]).any(1)
        if flat.any():
            box = [round(x, 2) for x in wanted.boxes[flat][0].tolist()]
            raise UserError(f"image {i} of the batch has the box {box}: expected x1 < x2 and y1 < y2")
        return wanted


def padded_batch(images: list[Tensor], size: Size) -> ImageList:
    """One batch: zeros at the right and below, up to `size` or the largest image, and on to a multiple of `NESTING`."""
    sizes = [(image.shape[-2], image.shape[-1]) for image in images]
    height, width = (-(-max(one[d] for one in (size, *sizes)) // NESTING) * NESTING for d in (0, 1))
    batch_BCHW = images[0].new_zeros(len(images), images[0].shape[0], height, width)
    for image, canvas_CHW in zip(images, batch_BCHW, strict=True):
        canvas_CHW[:, : image.shape[1], : image.shape[2]] = image
    return ImageList(batch_BCHW, sizes)


def at_size(found: Detections, seen: Size, size: Size) -> Detections:
    """From an image of the size `seen`, masks being probabilities that fill the boxes -> in one of `size`."""
    scale = [size[1] / seen[1], size[0] / seen[0]] * 2
    boxes = found.boxes * found.boxes.new_tensor(scale)
    masks = None if found.masks is None else masks_in_image(found.masks, boxes, size)
    return replace(found, boxes=boxes, masks=masks)


def masks_in_image(masks_NPP: Tensor, boxes_N4: Tensor, size: Size) -> Tensor:
    """Probabilities that fill boxes -> (N, height, width), whether a pixel's centre has at least 0.5.

    One at a time: a hundred float32 masks of a large photograph take gigabytes.
    """
    height, width = size
    masks_NHW = torch.zeros(len(boxes_N4), height, width, dtype=torch.bool, device=boxes_N4.device)
    corners = boxes_N4.tolist()  # one wait for the device
    for mask_PP, (x1, y1, x2, y2), canvas_HW in zip(masks_NPP, corners, masks_NHW, strict=True):
        columns = slice(max(0, int(x1)), min(width, int(x2) + 1))
        rows = slice(max(0, int(y1)), min(height, int(y2) + 1))
        x = torch.arange(columns.start, columns.stop, device=masks_NPP.device) + 0.5
        y = torch.arange(rows.start, rows.stop, device=masks_NPP.device) + 0.5
        x, y = 2 * (x - x1) / max(x2 - x1, 1e-6) - 1, 2 * (y - y1) / max(y2 - y1, 1e-6) - 1
        grid_hw2 = torch.stack(torch.meshgrid(x, y, indexing="xy"), 2)
        drawn = F.grid_sample(mask_PP[None, None].float(), grid_hw2[None].float(), align_corners=False)
        canvas_HW[rows, columns] = drawn[0, 0] >= 0.5
    return masks_NHW
