"""The options of every task, `--model.…`, one dataclass each. Loads no torch, so that a mistake is told at once."""

from dataclasses import dataclass, field
from typing import Any, Literal

from longvision.errors import UserError
from longvision.inference.config import InferenceConfig
from longvision.types import Finetune

Schedule = Literal["cosine", "poly", "step"]


@dataclass(frozen=True, kw_only=True)
class BackboneConfig:
    """The timm model that a task trains.

    Args:
        name: any timm model, ours included; one of a single stride, such as a Vim or a DeiT, gets a pyramid where a
            task needs maps of several strides.
        args: further arguments of that model, such as depth or direction.
        pretrained: weights to start from: a file's path, or true for those that timm knows.
        drop_path: stochastic depth at the last block.
        checkpoint: activation checkpointing: save each block's input alone for the backward pass, and compute the rest
            again there. Less memory, more time.
    """

    name: str = "vim_tiny_patch16_224"
    args: dict[str, Any] | None = None
    pretrained: bool | str = False
    drop_path: float = 0.0
    checkpoint: bool = False

    def __post_init__(self) -> None:
        _check_range(self, drop_path=(0, 0.99))


@dataclass(frozen=True, kw_only=True)
class OptimConfig:
    """An optimizer with a linear warm-up, then a schedule that ends with the training.

    Args:
        optimizer: adamw, or sgd with a momentum of 0.9.
        lr: learning rate at the end of the warm-up.
        weight_decay: the optimizer's, for all but norms, biases, positions and decay rates.
        layer_decay: factor on the learning rate from each block to the one before it; null for none.
        schedule: from the warm-up to the end: cosine, poly, a straight line, or step, down at four fifths of it.
        warmup_epochs: over which the learning rate rises.
        warmup_steps: over which it rises, beside those epochs.
        final_lr: at the end, as a fraction of lr.
    """

    optimizer: Literal["adamw", "sgd"] = "adamw"
    lr: float = 1e-3
    weight_decay: float = 0.05
    layer_decay: float | None = None
    schedule: Schedule = "poly"
    warmup_epochs: float = 0.0
    warmup_steps: int = 0
    final_lr: float = 0.0

    def __post_init__(self) -> None:
        _check_range(self, lr=(0, 10), weight_decay=(0, 10), layer_decay=(0.01, 1), final_lr=(0, 1))
        _check_range(self, warmup_epochs=(0, 1e6), warmup_steps=(0, 1e9))


@dataclass(frozen=True, kw_only=True)
class TaskConfig(BackboneConfig, OptimConfig):
    """What all tasks have.

    Args:
        ema: decay of an average of the weights, as 0.9999, which is validated and saved in their place; 0 for none.
        nonfinite_steps: a step whose loss or gradient is not finite is skipped; so many in a row end the training.
    """

    ema: float = 0.0
    nonfinite_steps: int = 10

    def __post_init__(self) -> None:
        BackboneConfig.__post_init__(self)
        OptimConfig.__post_init__(self)
        _check_range(self, ema=(0, 1 - 1e-9), nonfinite_steps=(1, 1e9))


@dataclass(frozen=True, kw_only=True)
class ClassificationConfig(TaskConfig):
    """A classifier of images: any timm model, cross-entropy.

    Args:
        finetune: what is trained: full, everything; head, a new head alone; class_token, that and the class token;
            memory, these and tokens that each block of a vision transformer or a Vim reads (arXiv 2203.15243);
            memory_mask, the same with a class token beside the model's own, whose output stays as it is.
        memory: of these two, tokens in a block.
        label_smoothing: share of the target that is spread over all classes.
        monitor: the metric that tells which epoch is best, the highest; accuracy when left out, or map
            where an image may have any number of labels, which also has f1 and auroc.
    """

    schedule: Schedule = "cosine"
    warmup_epochs: float = 5.0
    final_lr: float = 0.01
    finetune: Finetune = "full"
    memory: int = 5
    label_smoothing: float = 0.0
    monitor: Literal["accuracy", "balanced_accuracy", "auroc", "map", "f1"] | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_range(self, label_smoothing=(0, 0.99), memory=(1, 1e4))
        self._check_finetune()

    def _check_finetune(self) -> None:
        """Raises UserError for an option that has no meaning in this way of fine-tuning."""
        way, drops = f"with --model.finetune {self.finetune}", {"drop_path": self.drop_path}
        drops.update({f"args.{name}": value for name, value in (self.args or {}).items() if "drop" in name})
        for name, value in drops.items():
            if self.finetune != "full" and value:
                raise UserError(f"--model.{name} is {value}: {way} the model is frozen and drops nothing: set it to 0")
        if not self.finetune.startswith("memory") and self.memory != ClassificationConfig.memory:
            raise UserError(
                f"--model.memory is {self.memory}: {way} a model has none: choose memory or memory_mask, "
                "or leave it out"
            )
        if self.finetune != "full" and "weight_init" in (self.args or {}):
            raise UserError(f"--model.args.weight_init: {way} the new head begins from N(0, 0.02): leave it out")
        if self.finetune == "memory_mask" and self.checkpoint:
            raise UserError(
                f"--model.checkpoint is true: {way} gradients go through the tasks' tokens, of which nothing is "
                "computed again: set it to false"
            )


@dataclass(frozen=True, kw_only=True)
class SegmentationConfig(TaskConfig):
    """A classifier of pixels: a decoder on any timm backbone, cross-entropy.

    Args:
        head: upernet (arXiv 1807.10221) or fpn (arXiv 1901.02446).
        width: channels of the head.
        auxiliary: weight of the loss of a second, small head on the map of stride 16; 0 for none.
        inference: windows and test-time augmentation of the trained model; changes no weight.
    """

    warmup_steps: int = 100
    head: Literal["upernet", "fpn"] = "upernet"
    width: int = 256
    auxiliary: float = 0.4
    inference: InferenceConfig = field(default_factory=InferenceConfig)

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_range(self, auxiliary=(0, 10), width=(1, 65536))
        if self.head == "fpn" and self.width % 64:
            raise UserError(f"--model.width is {self.width}: fpn needs a multiple of 64, its norms have 32 groups")


@dataclass(frozen=True, kw_only=True)
class DetectionConfig(TaskConfig):
    """A detector in two steps: regions, then what is in each; with masks where the data has them.

    Args:
        head: cascade (Cascade R-CNN, arXiv 1712.00726) or rcnn (Faster or Mask R-CNN, arXiv 1703.06870).
        width: channels of the maps and heads; ViTDet's 256 asks for a GPU.
        detections: the most objects that are found in an image; can be changed after training.
    """

    lr: float = 1e-4
    weight_decay: float = 0.1
    warmup_steps: int = 250
    head: Literal["cascade", "rcnn"] = "cascade"
    width: int = 256
    detections: int = 100

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_range(self, width=(1, 65536), detections=(1, 1e5))


@dataclass(frozen=True, kw_only=True)
class DetrConfig(TaskConfig):
    """A detector by queries, without anchors and without suppression; it learns from boxes alone. A ResNet needs
    pretrained weights.

    Args:
        queries: the most objects that are found in an image.
        width: of encoder and decoder.
        layers: of the encoder, and of the decoder.
        dropout: in encoder and decoder.
        backbone_lr: the backbone's learning rate, as a fraction of lr.
    """

    lr: float = 1e-4
    weight_decay: float = 1e-4
    queries: int = 100
    width: int = 256
    layers: int = 6
    dropout: float = 0.1
    backbone_lr: float = 0.1

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_range(self, queries=(1, 1e5), width=(8, 65536), layers=(1, 1000), dropout=(0, 0.99), backbone_lr=(0, 10))
        if self.width % 8:
            raise UserError(f"--model.width is {self.width}: expected a multiple of 8, the number of attention heads")


def _check_range(config: Any, **limits: tuple[float, float]) -> None:
    """Raises UserError for a value outside its limits, naming its key; None is one that is not set."""
    for name, (low, high) in limits.items():
        value = getattr(config, name)
        if value is not None and not low <= value <= high:
            raise UserError(f"--model.{name} is {value}: expected a number from {low:g} to {high:g}")
