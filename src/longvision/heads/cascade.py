"""Cascade R-CNN (arXiv 1712.00726): each stage classifies and refines boxes that the stage before refined.

Shape suffixes: B images, N boxes of all images, K classes with background as class 0, C channels, P a pool's side.
"""

from dataclasses import dataclass, replace
from typing import NamedTuple, cast

import torch
import torch.nn.functional as F
from timm.layers import LayerNorm2d
from torch import Tensor, nn
from torchvision.models.detection._utils import BoxCoder
from torchvision.models.detection.faster_rcnn import FastRCNNConvFCHead
from torchvision.models.detection.mask_rcnn import MaskRCNNHeads, MaskRCNNPredictor
from torchvision.models.detection.roi_heads import RoIHeads
from torchvision.ops import batched_nms, box_iou, clip_boxes_to_image, remove_small_boxes, roi_align

from longvision.types import Detections, Size, Target

LEAST_SCORE = 0.05  # of an object; those below it are dropped
OVERLAP = 0.5  # of two boxes of one class, from which on the one that scores less is dropped


@dataclass(frozen=True)
class Stage:
    """What one stage is trained on.

    Args:
        iou: with an object, from which on a box is that object's; below it, background.
        weights: on the regression targets of x, y, width and height. They grow with the stage, as its corrections
            shrink.
    """

    iou: float
    weights: tuple[float, float, float, float]


CASCADE = (
    Stage(0.5, (10.0, 10.0, 5.0, 5.0)),
    Stage(0.6, (20.0, 20.0, 10.0, 10.0)),
    Stage(0.7, (30.0, 30.0, 15.0, 15.0)),
)


class Sample(NamedTuple):
    """Boxes (n, 4) of each image, and what each of them is: the number of its true box (n,), its class (n,)."""

    boxes: list[Tensor]
    nearest: list[Tensor]
    label: list[Tensor]


class CascadeRoIHeads(RoIHeads):
    """Boxes, classes and masks from proposals. One stage makes it Faster or Mask R-CNN.

    As in the paper, boxes are corrected without regard to their class, and in evaluation an object's box is the last
    stage's and its score the mean over the stages. As in detectron2, proposals are sampled for the first stage only
    (with the true boxes among them): later ones take all boxes of the stage before and label them anew. Also as there,
    the masks are learned on the first stage's sample, in evaluation they are drawn in the final boxes, and the maps
    get each stage's gradient divided by the number of stages, so that they learn no faster than with one.

    Heads are those of ViTDet (arXiv 2203.16527): four convolutions with LayerNorm, then one linear layer for boxes,
    one transposed convolution for masks.

    Every parameter gets a gradient at every step, even without any object. Boxes and losses are float32 under autocast.

    Args:
        classes: how many, background not among them.
        channels: C, of every map.
        strides: of the maps in pixels, finest first, each the double of the one before.
        masks: whether to learn and predict masks.
        stages: what each is trained on.
        samples: how many boxes an image are learned from, at most a quarter of them objects.
        detections: the most objects that are found in an image.
    """

    def __init__(
        self,
        classes: int,
        channels: int,
        strides: tuple[int, ...],
        masks: bool,
        stages: tuple[Stage, ...] = CASCADE,
        samples: int = 512,
        detections: int = 100,
    ) -> None:
        super().__init__(
            box_roi_pool=LevelPool(strides, 7),
            box_head=nn.ModuleList(box_head(channels, 7) for _ in stages),
            box_predictor=nn.ModuleList(BoxPredictor(4 * channels, classes) for _ in stages),
            fg_iou_thresh=stages[0].iou,
            bg_iou_thresh=stages[0].iou,
            batch_size_per_image=samples,
            positive_fraction=0.25,
            bbox_reg_weights=stages[0].weights,
            score_thresh=LEAST_SCORE,
            nms_thresh=OVERLAP,
            detections_per_img=detections,
            mask_roi_pool=LevelPool(strides, 14) if masks else None,
            mask_head=MaskRCNNHeads(channels, [channels] * 4, 1, LayerNorm2d) if masks else None,
            mask_predictor=MaskRCNNPredictor(channels, channels, classes) if masks else None,
        )
        self.stages = stages
        self.coders = [BoxCoder(stage.weights) for stage in stages]

    def forward(
        self,
        features: dict[str, Tensor],
        proposals: list[Tensor],
        image_shapes: list[Size],
        targets: list[Target] | None = None,
    ) -> tuple[list[Detections], dict[str, Tensor]]:
        """Maps (B, C, h, w) and boxes (n, 4) an image -> detections, in evaluation, and losses, in training.

        Boxes are in pixels of images of `image_shapes`. Targets have masks where masks are learned, and no crowds.
        Detections are sorted, the highest score first; their masks are probabilities (n, 28, 28) that fill the boxes.
        """
        maps = list(features.values())[: len(self.box_roi_pool.strides)]  # proposals may come from further ones
        if not self.training:
            return self._detections(maps, proposals, image_shapes), {}
        assert targets is not None  # `ObjectModel` saw to it
        sample = Sample(*self.select_training_samples(proposals, [_torchvision(one) for one in targets])[:3])
        losses = self._box_losses(maps, sample, image_shapes, targets)
        if self.has_mask():
            losses["loss_mask"] = self._mask_loss(maps, sample, targets)
        return [], losses

    def _box_losses(
        self, maps: list[Tensor], sample: Sample, image_shapes: list[Size], targets: list[Target]
    ) -> dict[str, Tensor]:
        """`sample` is the first stage's."""
        losses: dict[str, Tensor] = {}
        boxes = sample.boxes
        for i, stage in enumerate(self.stages):
            if i:
                pairs = zip(boxes, targets, strict=True)
                matches = [assign_to_objects(some, target, stage.iou) for some, target in pairs]
                sample = Sample(boxes, *map(list, zip(*matches, strict=True)))
            logits_NK, deltas_N4 = self._stage(i, maps, boxes)
            classifier, regression = box_losses(logits_NK, deltas_N4, sample, targets, self.coders[i])
            losses |= {f"loss_classifier_{i + 1}": classifier, f"loss_box_reg_{i + 1}": regression}
            boxes = self._refined(i, deltas_N4.detach(), boxes, image_shapes)
        return losses

    def _stage(self, i: int, maps: list[Tensor], boxes: list[Tensor]) -> tuple[Tensor, Tensor]:
        """-> logits (N, K) and box corrections (N, 4), float32."""
        pooled_NCPP = self.box_roi_pool(maps, boxes)
        if pooled_NCPP.requires_grad:
            pooled_NCPP.register_hook(lambda gradient: gradient / len(self.stages))
        return self.box_predictor[i](self.box_head[i](pooled_NCPP))

    def _refined(self, i: int, deltas_N4: Tensor, boxes: list[Tensor], image_shapes: list[Size]) -> list[Tensor]:
        refined_N4 = self.coders[i].decode_single(deltas_N4, torch.cat(boxes))
        by_image = refined_N4.split([len(some) for some in boxes])
        return [clip_boxes_to_image(some, shape) for some, shape in zip(by_image, image_shapes, strict=True)]

    def _detections(self, maps: list[Tensor], proposals: list[Tensor], image_shapes: list[Size]) -> list[Detections]:
        boxes, scores = proposals, []
        for i in range(len(self.stages)):
            logits_NK, deltas_N4 = self._stage(i, maps, boxes)
            scores.append(logits_NK.softmax(1))
            boxes = self._refined(i, deltas_N4, boxes, image_shapes)
        mean_NK = torch.stack(scores).mean(0)
        by_image = mean_NK.split([len(some) for some in boxes])
        found = [self._best(some, score) for some, score in zip(boxes, by_image, strict=True)]
        return self._with_masks(maps, found) if self.has_mask() else found

    def _best(self, boxes_n4: Tensor, scores_nK: Tensor) -> Detections:
        """A box may be several classes; of boxes of one class that overlap, the surest is left."""
        box, label = torch.where(scores_nK[:, 1:] > self.score_thresh)
        found = Detections(boxes_n4[box], scores_nK[:, 1:][box, label], label)
        found = found.select(remove_small_boxes(found.boxes, 1e-2))
        best = batched_nms(found.boxes, found.scores, found.labels, self.nms_thresh)
        return found.select(best[: self.detections_per_img])

    def _mask_logits(self, maps: list[Tensor], boxes: list[Tensor]) -> Tensor:
        """-> (N, K - 1, 28, 28), float32."""
        return self.mask_predictor(self.mask_head(self.mask_roi_pool(maps, boxes))).float()

    def _with_masks(self, maps: list[Tensor], found: list[Detections]) -> list[Detections]:
        logits = self._mask_logits(maps, [one.boxes for one in found])
        label = torch.cat([one.labels for one in found])
        own_NPP = logits[torch.arange(len(label), device=label.device), label].sigmoid()
        by_image = own_NPP.split([len(one) for one in found])
        return [replace(one, masks=masks) for one, masks in zip(found, by_image, strict=True)]

    def _mask_loss(self, maps: list[Tensor], sample: Sample, targets: list[Target]) -> Tensor:
        """Cross-entropy of the true class's mask, in the boxes that are an object's."""
        object_ = [some > 0 for some in sample.label]
        boxes, index, label = ([x[o] for x, o in zip(xs, object_, strict=True)] for xs in sample)
        logits = self._mask_logits(maps, boxes)
        side = logits.shape[-1]
        truth = [cut_masks(cast(Tensor, t.masks), b, i, side) for t, b, i in zip(targets, boxes, index, strict=True)]
        wanted = torch.cat(label) - 1
        own_NPP = logits[torch.arange(len(wanted), device=wanted.device), wanted]
        loss = F.binary_cross_entropy_with_logits(own_NPP, torch.cat(truth), reduction="sum")
        return loss / max(1, own_NPP.numel())


class LevelPool(nn.Module):
    """RoIAlign, each box from the level that suits its size: 224 pixels at stride 16 (arXiv 1612.03144, equation 1).

    Unlike torchvision's MultiScaleRoIAlign it is told the strides: that one guesses them from the first batch's images,
    wrongly where a small image is padded a lot.
    """

    def __init__(self, strides: tuple[int, ...], side: int) -> None:
        super().__init__()
        self.strides, self.side = strides, side

    def forward(self, maps: list[Tensor], boxes: list[Tensor]) -> Tensor:
        """Maps (B, C, h, w), boxes (n, 4) an image, pixels -> (N, C, side, side) float32."""
        boxes_N4 = torch.cat(boxes)
        image_N = torch.cat([torch.full_like(some[:, 0], i) for i, some in enumerate(boxes)])
        rois_N5 = torch.cat([image_N[:, None], boxes_N4], 1)
        level_N = self.levels(boxes_N4)
        pooled = maps[0].new_zeros(len(rois_N5), maps[0].shape[1], self.side, self.side, dtype=torch.float32)
        for i, (map_BChw, stride) in enumerate(zip(maps, self.strides, strict=True)):
            here = torch.where(level_N == i)[0]
            some = roi_align(map_BChw.float(), rois_N5[here], self.side, 1 / stride, sampling_ratio=2, aligned=True)
            pooled[here] = some
        return pooled

    def levels(self, boxes_N4: Tensor) -> Tensor:
        """(N, 4) -> the number of each box's map (N,)."""
        width_N, height_N = (boxes_N4[:, 2:] - boxes_N4[:, :2]).clamp(min=1e-3).unbind(1)
        stride_N = 16 * (width_N * height_N).sqrt() / 224
        level_N = torch.floor(torch.log2(stride_N / self.strides[0]) + 1e-6)
        return level_N.clamp(0, len(self.strides) - 1).long()


class BoxPredictor(nn.Module):
    """(N, D) -> logits of the classes and background (N, classes + 1), box corrections (N, 4), both float32."""

    def __init__(self, width: int, classes: int) -> None:
        super().__init__()
        self.classifier = nn.Linear(width, classes + 1)
        self.regression = nn.Linear(width, 4)
        for layer, std in ((self.classifier, 0.01), (self.regression, 0.001)):  # as in detectron2
            nn.init.normal_(layer.weight, std=std)
            nn.init.zeros_(layer.bias)

    def forward(self, x_ND: Tensor) -> tuple[Tensor, Tensor]:
        return self.classifier(x_ND).float(), self.regression(x_ND).float()


def box_head(channels: int, side: int) -> nn.Module:
    """(N, C, side, side) -> (N, 4 C)."""
    return FastRCNNConvFCHead((channels, side, side), [channels] * 4, [4 * channels], LayerNorm2d)


def _torchvision(target: Target) -> dict[str, Tensor]:
    """As its code reads objects; class 0 is background."""
    masks = {} if target.masks is None else {"masks": target.masks}
    return {"boxes": target.boxes, "labels": target.labels + 1} | masks


def assign_to_objects(boxes_n4: Tensor, target: Target, iou: float) -> tuple[Tensor, Tensor]:
    """Boxes (n, 4) and one image's objects -> the nearest one's number (n,) and class from 1, or 0: background (n,)."""
    if not len(target):
        nothing_n = torch.zeros(len(boxes_n4), dtype=torch.long, device=boxes_n4.device)
        return nothing_n, nothing_n
    overlap_n, index_n = box_iou(target.boxes, boxes_n4).max(0)
    return index_n, (target.labels[index_n] + 1) * (overlap_n >= iou)


def box_losses(
    logits_NK: Tensor, deltas_N4: Tensor, sample: Sample, targets: list[Target], coder: BoxCoder
) -> tuple[Tensor, Tensor]:
    """Cross-entropy, and smooth L1 of the corrections of boxes that are an object's: both sums divided by N."""
    label_N = torch.cat(sample.label)
    count = max(1, len(label_N))
    classifier = F.cross_entropy(logits_NK, label_N, reduction="sum") / count
    wanted = []
    for boxes, index, label, target in zip(*sample, targets, strict=True):
        wanted.append(coder.encode_single(target.boxes[index[label > 0]], boxes[label > 0]))
    regression = F.smooth_l1_loss(deltas_N4[label_N > 0], torch.cat(wanted), beta=1 / 9, reduction="sum") / count
    return classifier, regression


def cut_masks(masks_MHW: Tensor, boxes_n4: Tensor, index_n: Tensor, side: int) -> Tensor:
    """Each box's part of its object's mask, scaled to (n, side, side), from 0 to 1."""
    rois_n5 = torch.cat([index_n[:, None].to(boxes_n4), boxes_n4], 1)
    return roi_align(masks_MHW[:, None].float(), rois_n5, side, aligned=True)[:, 0]
