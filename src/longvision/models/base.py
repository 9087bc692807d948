"""timm's contract, written once for every backbone here: embed -> blocks -> norm -> pool -> head.

A backbone is one file: a subclass of `longvision.models.sequence.SequenceBackbone` for tokens or of
`longvision.models.hierarchy.HierarchyBackbone` for maps, its `default_cfgs`, and a registered function for each variant
that calls `build`.
"""

import re
from collections.abc import Sequence
from typing import Any

import torch
from timm.models import build_model_with_cfg, resolve_pretrained_cfg
from timm.models._features import feature_take_indices
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from longvision.errors import UserError
from longvision.layers import run_at_once, set_fused
from longvision.models.classifier import Classifier
from longvision.models.packed_features import marked, refuse_marked
from longvision.models.weights.files import load_weights
from longvision.models.weights.fit import Weights, fit_positions
from longvision.models.weights.hub import locate_weights
from longvision.types import PackedImages

SCANS_OWN = re.compile(r"A_\w*log\w*|D(s|_\w+)?|dt_projs_bias")  # names of decay rates, skip connections, steps


class Backbone(Classifier):
    """Images (B, C, H, W) -> (B, num_classes), by blocks one behind another.

    A subclass calls `super().__init__`, makes what stands before the blocks, calls `_add_blocks`, and defines `embed`,
    `_pooled` and `_patch_features`; the rest of timm's contract follows.

    Args:
        num_features: channels of the last block's output.
        in_chans: channels of the image.
        num_classes: outputs; 0 for none (features are returned).
        pool: what goes to the head, one of `pools`.
        drop_rate: dropout before the head.
    """

    blocks_name = "blocks"  # of the list of blocks: `blocks.3` in a file of weights
    norm_name = "norm"  # of the norm behind them
    takes_packed = False  # whether `embed` takes PackedImages
    formats: Sequence[str] = ("NCHW", "NLC")  # of `forward_intermediates`
    pool_names: Sequence[str] = ()  # of modules that pool and have parameters, which go with the head

    def __init__(self, num_features: int, in_chans: int, num_classes: int, pool: str, drop_rate: float) -> None:
        super().__init__(num_features, num_classes, pool, drop_rate)
        self.in_chans, self.embed_dim = in_chans, num_features
        self.grad_checkpointing = False
        self.feature_info: list[dict[str, Any]] = []

    def _add_blocks(self, blocks: Sequence[nn.Module], norm: nn.Module, scales: Sequence[tuple[int, int]]) -> None:
        """The blocks, each with the channels and the stride of what it returns, the norm behind them, and a head."""
        setattr(self, self.blocks_name, nn.ModuleList(blocks))
        self.feature_info = [
            {"module": f"{self.blocks_name}.{i}", "num_chs": channels, "reduction": stride}
            for i, (channels, stride) in enumerate(scales)
        ]
        self._set(self.norm_name, norm)
        self._set(self.head_name, self._new_head())

    # What a subclass says

    def embed(self, images: Any) -> tuple[Tensor, Any]:
        """Images -> what the first block takes, and a layout: whatever the methods below must know of the images."""
        raise NotImplementedError

    def _block_arguments(self, layout: Any) -> tuple[Any, ...]:
        """What a block takes beside x."""
        return ()

    def _in_order(self, x: Tensor, layout: Any) -> Tensor:
        """What blocks return, in the order of the images' patches."""
        return x

    def _patch_features(self, x: Tensor, layout: Any, output_fmt: str) -> tuple[Any, Any]:
        """-> features in one of `formats`, and prefix tokens (B, T, D) or None."""
        raise NotImplementedError

    def _pooled(self, x: Tensor, layout: Any) -> Tensor:
        """What the last norm returns -> (B, D), by `self.pool`, which is not "none"."""
        raise NotImplementedError

    # Images to classes

    def forward(self, x: Tensor | PackedImages) -> Tensor:
        """(B, C, H, W) -> (B, num_classes); S packed images -> (S, num_classes)."""
        return self._classes(*self._features(x))

    def forward_features(self, x: Tensor | PackedImages) -> Tensor:
        """(B, C, H, W) -> what goes to the pooling, normalised; of packed images, all in one row."""
        return marked(self._features(x)[0], x)

    def forward_head(self, x: Tensor, pre_logits: bool = False, images: PackedImages | None = None) -> Tensor:
        """What `forward_features` returned -> (B, num_classes), or (B, D) with `pre_logits`.

        `images`: the packed images whose features these are.

        Raises UserError for features of packed images without `images`: all would be pooled as one image.
        """
        if images is None:
            refuse_marked(x)
        return self._classes(x, self._layout(images) if images is not None else None, pre_logits)

    def _layout(self, images: PackedImages) -> Any:
        raise self._cannot_pack()

    def _features(self, images: Tensor | PackedImages) -> tuple[Tensor, Any]:
        x, layout = self._embed(images)
        at_once = run_at_once(self._blocks(), x, *self._block_arguments(layout))
        if at_once is not None:
            x = at_once
        else:
            for number in range(len(self._blocks())):
                x = self._step(number, x, layout)
        return self._norm()(self._in_order(x, layout)), layout

    def _embed(self, images: Tensor | PackedImages) -> tuple[Tensor, Any]:
        if isinstance(images, PackedImages) and not self.takes_packed:
            raise self._cannot_pack()
        return self.embed(images)

    def _cannot_pack(self) -> UserError:
        name = getattr(self, "pretrained_cfg", {}).get("architecture", type(self).__name__)
        return UserError(f"{name} takes images of one size, (B, C, H, W), and no PackedImages: call it once a size")

    def _step(self, number: int, x: Tensor, layout: Any) -> Tensor:
        """Through the block of that number."""
        return self._run(self._blocks()[number], x, layout)

    def _run(self, block: nn.Module, x: Tensor, layout: Any) -> Tensor:
        arguments = self._block_arguments(layout)
        if self.grad_checkpointing and torch.is_grad_enabled():
            return checkpoint(block, x, *arguments, use_reentrant=False)
        return block(x, *arguments)

    def _classes(self, x: Tensor, layout: Any, pre_logits: bool = False) -> Tensor:
        pooled = self.head_drop(x if self.pool == "none" else self._pooled(x, layout))
        return pooled if pre_logits else self.get_classifier()(pooled)

    def _blocks(self) -> nn.ModuleList:
        return getattr(self, self.blocks_name)

    def _norm(self, number: int = -1) -> nn.Module:
        """What normalises the features behind the block of that number."""
        return self.get_submodule(self.norm_name)

    # timm's contract

    def forward_intermediates(
        self,
        x: Tensor | PackedImages,
        indices: int | list[int] | None = None,
        return_prefix_tokens: bool = False,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = "NCHW",
        intermediates_only: bool = False,
        output_dict: bool = False,
    ) -> Any:
        """Patch features after some of the blocks.

        Args:
            x: image, (B, C, H, W), or packed images, for which each map is a list of one (1, D, gh, gw) an image.
            indices: the last n blocks if a number, all if None, else these blocks (counted from 0; -1 is the last).
            return_prefix_tokens: return each block's class tokens (B, count, D) beside its map.
            norm: apply the final normalisation to each.
            stop_early: do not run blocks behind the last one asked for.
            output_fmt: one of `formats`: "NCHW" or "NHWC" for maps, "NLC" for tokens (B, M, D).
            intermediates_only: return the list alone, else (final features, list).
            output_dict: return a dict of "image_features", "image_intermediates", "image_intermediates_prefix".

        Raises:
            ValueError: another format, or a block that is not there.
        """
        if output_fmt not in self.formats:
            raise ValueError(f"output_fmt={output_fmt!r} is unknown: choose {' or '.join(self.formats)}")
        take, last = feature_take_indices(len(self._blocks()), indices)
        images = x
        x, layout = self._embed(x)
        maps, prefixes = [], []
        ran = range(last + 1 if stop_early else len(self._blocks()))
        for i in ran:
            x = self._step(i, x, layout)
            if i in take:
                taken = self._in_order(x, layout)
                patches, prefix = self._patch_features(self._norm(i)(taken) if norm else taken, layout, output_fmt)
                maps.append(patches)
                prefixes.append(prefix)

        result: dict[str, Any] = {"image_intermediates": maps}
        with_prefix = return_prefix_tokens and all(prefix is not None for prefix in prefixes)
        if with_prefix:
            result["image_intermediates_prefix"] = prefixes
        if not intermediates_only:
            result["image_features"] = marked(self._norm(ran[-1])(self._in_order(x, layout)), images)
        if output_dict:
            return result
        pairs = list(zip(maps, prefixes)) if with_prefix else maps
        return pairs if intermediates_only else (result["image_features"], pairs)

    def prune_intermediate_layers(
        self, indices: int | list[int] = 1, prune_norm: bool = False, prune_head: bool = True
    ) -> list[int]:
        """Drop the blocks behind the last one asked for, the final norm and the head, where not needed."""
        take, last = feature_take_indices(len(self._blocks()), indices)
        setattr(self, self.blocks_name, self._blocks()[: last + 1])
        if prune_norm:
            self._set(self.norm_name, nn.Identity())
        if prune_head:
            self.reset_classifier(0, "none" if self.pool_names else None)
        return take

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Keep only each block's input for the backward pass and compute the rest again (arXiv 1604.06174)."""
        self.grad_checkpointing = enable

    def set_fused(self, fused: bool = True) -> None:
        """See `longvision.layers.set_fused`: with False no op of ours runs, for graph tools and for hooks."""
        set_fused(self, fused)

    def no_weight_decay(self) -> set[str]:
        """Parameters to keep out of weight decay, the scans' own; timm keeps one-dimensional ones out besides."""
        return {name for name, _ in self.named_parameters() if SCANS_OWN.fullmatch(name.split(".")[-1])}

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Which parameters form one layer, for layer-wise learning-rate decay."""
        return {
            "stem": r"^cls_token|pos_embed|patch_embed",
            "blocks": [(rf"^{self.blocks_name}\.(\d+)", None), (rf"^{self.norm_name}", (99999,))],
        }

    def from_released(self, weights: Weights) -> Weights:
        """Weights of the authors' other versions under the names and in the shapes of the released ones."""
        return weights

    def load_pretrained(self, checkpoint_path: str, prefix: str = "") -> None:
        """Load a file of weights, made for another size, stride or class count too, from the names behind `prefix`."""
        load_weights(self, checkpoint_path, prefix)


def build(model_class: type[Backbone], variant: str, pretrained: bool = False, **kwargs: Any) -> Any:
    """A variant, or with `features_only=True` timm's wrapper that returns its maps; for timm.create_model.

    Raises:
        TypeError: an argument that the class does not take.
        UserError: an argument out of range, or a pooling that cannot be applied.
        UnreachableWeights: pretrained weights that cannot be fetched.
    """
    if (pool := kwargs.pop("global_pool", None)) is not None:
        kwargs.setdefault("pool", pool)
    cfg = resolve_pretrained_cfg(
        variant, kwargs.pop("pretrained_cfg", None), kwargs.pop("pretrained_cfg_overlay", None)
    )
    if pretrained:
        cfg = locate_weights(variant, cfg, kwargs.get("cache_dir"))
    features = {"out_indices": kwargs.pop("out_indices", 3), "feature_cls": "getter", **kwargs.pop("feature_cfg", {})}
    return build_model_with_cfg(
        model_class,
        variant,
        pretrained,
        pretrained_cfg=cfg.to_dict(),
        pretrained_filter_fn=lambda weights, model: fit_positions(model.from_released(weights), model),
        feature_cfg=features,
        **kwargs,
    )
