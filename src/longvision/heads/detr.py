"""DETR (arXiv 2005.12872): objects as a set, from transformers' encoder and decoder on any timm backbone."""

import os
from typing import Any

import torch
import torch.nn.functional as F
from timm.layers import freeze_batch_norm_2d
from torch import Tensor, nn
from torchvision.ops import box_convert, clip_boxes_to_image

from longvision.heads.extra import dense_library
from longvision.heads.objects import ObjectModel
from longvision.heads.set_loss import set_losses
from longvision.models.backbone import create_features, dense_name
from longvision.models.sequence import check_at_least_one
from longvision.models.weights.detr import is_detr, load_detr
from longvision.models.weights.files import read_weights
from longvision.models.weights.fit import Weights
from longvision.types import Detections, Size, Target

HEADS = 8


def create_detr(
    name: str,
    classes: int,
    channels: int,
    size: tuple[int, int],
    pretrained: bool | str = False,
    args: dict[str, Any] | None = None,
    queries: int = 100,
    width: int = 256,
    layers: int = 6,
    dropout: float = 0.1,
) -> "Detr":
    """DETR on one map of a backbone: of stride 32, as published, or of 16 from a Vim or another of one stride. The
    published `detr_resnet50` is that of "resnet50" with 91 classes.

    Those come in patches of 16 pixels, and a coarser map would only be that one pooled.

    Batch norms are frozen in every backbone (in batches of a few images they measure nothing), and so is all of a
    ResNet before its second stage, as published: start those from pretrained weights.

    Arguments not named here are those of `create_segmenter`.

    Args:
        classes: how many, without the background.
        pretrained: of the backbone; or a file of a whole DETR, the authors' or transformers', whose head starts anew
            for another number of classes.
        queries: the most objects that can be found in an image.
        width: of encoder and decoder; their hidden layers are 8 times as wide.
        layers: of the encoder, and of the decoder.
        dropout: in encoder and decoder.

    Raises:
        ValueError: an unknown backbone, a width that does not divide into 8 heads, a count below 1, a dropout that is
            no share, or transformers is not installed.
    """
    check_at_least_one(classes=classes, queries=queries, layers=layers)
    if width < HEADS or width % HEADS:
        raise ValueError(f"width {width} does not divide into {HEADS} heads: the nearest that do are multiples of 8")
    if not 0 <= dropout < 1:
        raise ValueError(f"dropout {dropout}: expected from 0 to below 1")
    stride = 16 if dense_name(name).partition(".")[0].endswith("_pyramid") else 32
    whole = _whole(pretrained)
    features = create_features(name, channels, size, False if whole else pretrained, args, (stride,))
    features = freeze_batch_norm_2d(features)
    _freeze_stem(features)
    model = Detr(features, classes, queries, width, layers, dropout)
    if whole:
        load_detr(model, whole, str(pretrained))
    return model


def _whole(pretrained: bool | str) -> Weights | None:
    """The weights of a file that holds a whole DETR."""
    if not isinstance(pretrained, str) or not pretrained.endswith((".safetensors", ".pth", ".pt", ".bin")):
        return None
    if not os.path.isfile(pretrained):
        return None  # as whoever makes the backbone says
    weights, _ = read_weights(pretrained)
    return weights if is_detr(weights) else None


def _freeze_stem(features: nn.Module) -> None:
    """Of a ResNet, known by its stages' names: the shape of edges and spots is learned already."""
    stages = ("layer2", "layer3", "layer4")
    if not all(hasattr(features, stage) for stage in stages):
        return
    for name, parameter in features.named_parameters():
        parameter.requires_grad_(name.startswith(stages))


class Detr(ObjectModel):
    """Each query finds one object: as many as there are, of any score. Where a target has a `size`, the part of its
    image that is not padding, positions and boxes are relative to that, in training as in `detect`.

    Args:
        features: images (B, C, H, W) -> list of maps, the last of which is used, with timm's `feature_info`.
        classes, queries, width, layers, dropout: as in `create_detr`.
    """

    def __init__(
        self, features: nn.Module, classes: int, queries: int, width: int, layers: int, dropout: float
    ) -> None:
        super().__init__()
        self.queries = queries
        self.model = _transformers_detr(classes, queries, width, layers, dropout)
        # Put in afterwards: transformers would initialise the backbone anew, weights from a file included.
        self.model.model.backbone = MaskedMap(features)
        self.model.model.input_projection = nn.Conv2d(features.feature_info.channels()[-1], width, 1)  # type: ignore
        self.model.model.encoder.dropout = 0.0  # of its input: not in the paper's code
        _initialise(self.model)

    @property
    def most(self) -> int:
        return self.queries

    @property
    def backbone(self) -> nn.Module:
        """The timm model, for a learning rate of its own (published: a tenth of the rest's)."""
        return self.model.model.backbone.model

    def losses(self, images: list[Tensor], targets: list[Target]) -> dict[str, Tensor]:
        """Weighted: three of the last decoder layer, "loss_class", "loss_box" and "loss_giou", and the same of each
        layer before it, numbered: "loss_class_0"."""
        images = [_without_padding(image, target) for image, target in zip(images, targets, strict=True)]
        logits_LBQK, boxes_LBQ4 = self.decode(images)
        labels, boxes = zip(*map(_relative, images, targets), strict=True)
        with torch.autocast(boxes_LBQ4.device.type, enabled=False):
            return set_losses(logits_LBQK, boxes_LBQ4, list(labels), list(boxes))

    def found(self, images: list[Tensor], sizes: list[Size]) -> list[Detections]:
        logits_LBQK, boxes_LBQ4 = self.decode(images)
        found = []
        for logits_QK, boxes_Q4, (height, width) in zip(logits_LBQK[-1], boxes_LBQ4[-1], sizes, strict=True):
            scores_Q, labels_Q = logits_QK.softmax(-1)[:, :-1].max(-1)
            order_Q = scores_Q.argsort(descending=True)
            scale_4 = boxes_Q4.new_tensor([width, height, width, height])
            corners_Q4 = clip_boxes_to_image(box_convert(boxes_Q4, "cxcywh", "xyxy") * scale_4, (height, width))
            found.append(Detections(corners_Q4, scores_Q, labels_Q).select(order_Q))
        return found

    def decode(self, images: list[Tensor]) -> tuple[Tensor, Tensor]:
        """-> logits (L, B, Q, classes + 1), the last for none, and boxes (L, B, Q, 4), in float32.

        Boxes are cxcywh, relative to each image's own size, without the padding of the batch, as are the encoder's
        positions. Every layer's output goes through the decoder's final norm, for the heads alone: transformers'
        `auxiliary_loss` hands the normalised output on to the next layer too, which is another model.
        """
        out = self.model.model(*masked_batch(images), output_hidden_states=True)
        norm = self.model.model.decoder.layernorm
        before = [norm(hidden_BQD) for hidden_BQD in out.decoder_hidden_states[1:-1]]  # the first is what goes in
        hidden_LBQD = torch.stack([*before, out.last_hidden_state])
        # Not in half precision: bfloat16 knows positions to a 256th of the image.
        with torch.autocast(hidden_LBQD.device.type, enabled=False):
            hidden_LBQD = hidden_LBQD.to(self.model.class_labels_classifier.weight.dtype)
            logits_LBQK = self.model.class_labels_classifier(hidden_LBQD).float()
            return logits_LBQK, self.model.bbox_predictor(hidden_LBQD).float().sigmoid()


class MaskedMap(nn.Module):
    """What transformers' DETR asks of a backbone. The name `model` is as in its published weights."""

    def __init__(self, features: nn.Module) -> None:
        super().__init__()
        self.model = features

    def forward(self, pixel_values: Tensor, pixel_mask: Tensor) -> list[tuple[Tensor, Tensor]]:
        """(B, C, H, W) and true where there is image (B, H, W) -> [(map (B, D, h, w), mask (B, h, w))]."""
        map_BDHW = self.model(pixel_values)[-1]
        mask_B1HW = F.interpolate(pixel_mask[:, None].float(), size=map_BDHW.shape[-2:])
        return [(map_BDHW, mask_B1HW[:, 0].bool())]


def _transformers_detr(classes: int, queries: int, width: int, layers: int, dropout: float) -> Any:
    """DetrForObjectDetection as published but for its backbone, a stand-in that costs and downloads nothing."""
    transformers: Any = dense_library("transformers")
    stand_in: dict[str, Any] = dict(embedding_size=1, hidden_sizes=[1], depths=[1], out_features=["stage1"])
    options: dict[str, Any] = dict(
        backbone_config=transformers.ResNetConfig(layer_type="basic", **stand_in),
        use_timm_backbone=False,
        num_labels=classes,
        num_queries=queries,
        d_model=width,
        dropout=dropout,
        attention_dropout=dropout,  # this and the next are 0 by default
        activation_dropout=dropout,
    )
    for part in ("encoder", "decoder"):
        options |= {f"{part}_layers": layers, f"{part}_attention_heads": HEADS, f"{part}_ffn_dim": 8 * width}
    return transformers.DetrForObjectDetection(transformers.DetrConfig(**options))


def _initialise(detr: Any) -> None:
    """As the paper's code: Xavier in encoder and decoder, PyTorch's own elsewhere, queries far apart.

    transformers draws everything with a deviation of 0.02, the queries too, which are then nearly one.
    """
    detr.class_labels_classifier.reset_parameters()
    for layer in detr.bbox_predictor.layers:
        layer.reset_parameters()
    detr.model.query_position_embeddings.reset_parameters()
    for part in (detr.model.encoder, detr.model.decoder):
        for name, module in part.named_modules():
            if not isinstance(module, nn.Linear):
                continue
            module.reset_parameters()
            # There queries, keys and values are one matrix, three times as high: its Xavier bound is lower.
            one_of_three = name.endswith(("q_proj", "k_proj", "v_proj"))
            nn.init.xavier_uniform_(module.weight, gain=0.5**0.5 if one_of_three else 1)
            if name.endswith("_proj"):
                nn.init.zeros_(module.bias)


def masked_batch(images: list[Tensor]) -> tuple[Tensor, Tensor]:
    """Images (C, H, W) -> (B, C, H, W), zeros below and right of smaller ones, and where there is image (B, H, W)."""
    height, width = (max(image.shape[side] for image in images) for side in (1, 2))
    padded = [F.pad(image, (0, width - image.shape[2], 0, height - image.shape[1])) for image in images]
    mask_BHW = torch.zeros(len(images), height, width, dtype=torch.bool, device=images[0].device)
    for mask_HW, image in zip(mask_BHW, images, strict=True):
        mask_HW[: image.shape[1], : image.shape[2]] = True
    return torch.stack(padded), mask_BHW


def _without_padding(image_CHW: Tensor, target: Target) -> Tensor:
    height, width = target.size or image_CHW.shape[1:]
    return image_CHW[:, :height, :width]


def _relative(image: Tensor, target: Target) -> tuple[Tensor, Tensor]:
    """-> labels (N,) and boxes (N, 4), cxcywh as fractions of the image."""
    target = target.select(~target.iscrowd)
    labels, boxes = target.labels, target.boxes.float()
    height, width = image.shape[1:]
    return labels, box_convert(boxes, "xyxy", "cxcywh") / boxes.new_tensor([width, height, width, height])
