"""Vision Mamba (Vim, arXiv 2401.09417): patch tokens, a class token among them, bidirectional selective scans."""

import math
from collections.abc import Sequence
from typing import Any, Literal, get_args

import torch
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.layers import lecun_normal_, trunc_normal_
from timm.models import (
    build_model_with_cfg,
    generate_default_cfgs,
    register_model,
    resolve_pretrained_cfg,
)
from timm.models._features import feature_take_indices
from torch import Tensor, nn
from torch.utils import checkpoint as recompute

from longvision.layers import ClassToken, ClassTokens, Direction, PatchEmbed, RMSNorm, VimBlock, resample_pos_embed
from longvision.models.weights.files import fit_positions, load_weights, locate_weights

Checkpoint = Literal["none", "block"]
Pool = Literal["token", "mean", "max", "none"]
# timm's words for the same, which its tools pass as `global_pool`
POOLS: dict[str, Pool] = {"token": "token", "mean": "mean", "avg": "mean", "max": "max", "none": "none", "": "none"}


class Vim(nn.Module):
    """Vision Mamba. (B, C, H, W) -> (B, num_classes), for any H x W that divides into patches.

    Args:
        img_size: the size for which position embeddings are held, pixels, (height, width) or one number; images of
            another size get them resampled at each call.
        patch_size: side of a patch, pixels.
        stride: distance between patches, pixels; None for `patch_size`.
        in_chans: channels of the image.
        num_classes: outputs; 0 for none (features are returned).
        embed_dim: model width D.
        depth: number of blocks.
        state: states a channel of the scan.
        direction: how the tokens are walked (table 4 of the paper). "ssm_conv": each block in both directions, each
            with its own convolution and SSM. "ssm": both, sharing the convolution. "layer": every second block walks
            backward. "sequence": in training a random half of the images is walked backward. "none": forward.
        cls_token: where the class token stands: "middle", "head", "double" (both ends) or "none".
        pool: what goes to the head: the class "token" (of two, their mean), or "mean" or "max" over the patches, or
            "none" (all tokens). None: "token" where there is one, else "mean".
        drop_rate: dropout before the head.
        drop_path_rate: stochastic depth at the last block, rising from 0 at the first.
        pad: fill an image whose size does not divide with zeros, right and below, instead of refusing it.
        checkpoint: what training keeps for the backward pass. "none": what it needs. "block": only each block's
            input; the rest is computed again (arXiv 1604.06174), which takes a third of the memory and half as much
            time again.

    Raises:
        ValueError: an unknown literal, or "token" pooling without a class token.
    """

    def __init__(
        self,
        img_size: int | tuple[int, int] = 224,
        patch_size: int = 16,
        stride: int | None = None,
        in_chans: int = 3,
        num_classes: int = 1000,
        embed_dim: int = 192,
        depth: int = 24,
        state: int = 16,
        direction: Direction = "ssm_conv",
        cls_token: ClassToken = "middle",
        pool: Pool | None = None,
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        pad: bool = False,
        checkpoint: Checkpoint = "none",
    ) -> None:
        super().__init__()
        _check_at_least_one(img_size=img_size, patch_size=patch_size, stride=stride if stride is not None else 1)
        _check_at_least_one(in_chans=in_chans, embed_dim=embed_dim, depth=depth, state=state)
        if not 0 <= drop_path_rate < 1:
            raise ValueError(f"drop_path_rate {drop_path_rate}: expected a number from 0 to below 1")
        self.num_classes, self.in_chans = num_classes, in_chans
        self.embed_dim = self.num_features = self.head_hidden_size = embed_dim
        self.direction = direction
        if checkpoint not in get_args(Checkpoint):
            raise ValueError(f"checkpoint={checkpoint!r} is unknown: choose {' or '.join(get_args(Checkpoint))}")
        self.grad_checkpointing = checkpoint == "block"

        self.tokens = ClassTokens(cls_token)
        self.num_prefix_tokens = self.tokens.count
        self.pool = self._checked_pool(pool if pool is not None else "token" if self.tokens.count else "mean")

        self.patch_embed = PatchEmbed(patch_size, stride or patch_size, in_chans, embed_dim, pad)
        self.grid = self.patch_embed.grid_size(*_pair(img_size))
        for name in self._token_names():
            self.register_parameter(name, nn.Parameter(torch.empty(1, 1, embed_dim)))
        self.pos_embed = nn.Parameter(torch.empty(1, math.prod(self.grid) + self.tokens.count, embed_dim))

        rates = [drop_path_rate * i / max(1, depth - 1) for i in range(depth)]
        self.layers = nn.ModuleList(
            VimBlock(
                embed_dim,
                state=state,
                direction=direction,
                reverse=direction == "layer" and i % 2 == 1,
                drop_path=rates[i],
            )
            for i in range(depth)
        )
        reduction = self.patch_embed.stride
        self.feature_info = [
            {"module": f"layers.{i}", "num_chs": embed_dim, "reduction": reduction} for i in range(depth)
        ]
        self.norm_f: nn.Module = RMSNorm(embed_dim)
        self.head_drop = nn.Dropout(drop_rate)
        self.head = nn.Linear(embed_dim, num_classes) if num_classes > 0 else nn.Identity()
        self._init_weights()

    @torch.no_grad()
    def _init_weights(self) -> None:
        """The published initialisation; the mixers have set their own."""
        lecun_normal_(self.patch_embed.proj.weight)
        self.patch_embed.proj.bias.zero_()  # type: ignore[union-attr]
        for parameter in (self.pos_embed, *(getattr(self, name) for name in self._token_names())):
            trunc_normal_(parameter, std=0.02)
        for block in self.layers:
            # Depth residual branches add up to the variance of one (GPT-2's scheme).
            block.mixer.out_proj.weight /= math.sqrt(len(self.layers))  # type: ignore[union-attr, operator]
        self._init_head()

    def _init_head(self) -> None:
        if isinstance(self.head, nn.Linear):
            trunc_normal_(self.head.weight, std=0.02)
            nn.init.zeros_(self.head.bias)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, num_classes)."""
        return self.forward_head(self.forward_features(x_BCHW))

    def forward_features(self, x_BCHW: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, M + class tokens, D), normalised, in the order of the scan."""
        x_BMD, backward_B = self._maybe_turn(self._embed(x_BCHW))
        for block in self.layers:
            x_BMD = self._run(block, x_BMD)
        return self.norm_f(_turn(x_BMD, backward_B))

    def forward_head(self, x_BMD: Tensor, pre_logits: bool = False) -> Tensor:
        """(B, M + class tokens, D) -> (B, num_classes), or (B, D) with `pre_logits`."""
        pooled = self.head_drop(self._pool(x_BMD))
        return pooled if pre_logits else self.head(pooled)

    def forward_intermediates(
        self,
        x: Tensor,
        indices: int | list[int] | None = None,
        return_prefix_tokens: bool = False,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = "NCHW",
        intermediates_only: bool = False,
        output_dict: bool = False,
    ) -> Any:
        """Patch features after some of the blocks; timm's contract.

        Args:
            x: image, (B, C, H, W).
            indices: the last n blocks if a number, all if None, else these blocks (counted from 0; -1 is the last).
            return_prefix_tokens: return each block's class tokens (B, count, D) beside its map.
            norm: apply the final normalisation to each.
            stop_early: do not run blocks behind the last one asked for.
            output_fmt: "NCHW" for maps (B, D, gh, gw), "NLC" for tokens (B, M, D).
            intermediates_only: return the list alone, else (final features, list).
            output_dict: return a dict of "image_features", "image_intermediates", "image_intermediates_prefix".
        """
        if output_fmt not in ("NCHW", "NLC"):
            raise ValueError(f"output_fmt={output_fmt!r} is unknown: choose NCHW or NLC")
        take, last = feature_take_indices(len(self.layers), indices)
        grid = self.patch_embed.grid_size(*x.shape[2:])

        x_BMD, backward_B = self._maybe_turn(self._embed(x))
        maps, prefixes = [], []
        for i, block in enumerate(self.layers[: last + 1] if stop_early else self.layers):
            x_BMD = self._run(block, x_BMD)
            if i in take:
                taken_BMD = _turn(x_BMD, backward_B)
                patches_BMD, prefix_BTD = self.tokens.extract(self.norm_f(taken_BMD) if norm else taken_BMD)
                maps.append(_to_map(patches_BMD, grid) if output_fmt == "NCHW" else patches_BMD)
                prefixes.append(prefix_BTD)

        result: dict[str, Any] = {"image_intermediates": maps}
        with_prefix = return_prefix_tokens and self.tokens.count > 0
        if with_prefix:
            result["image_intermediates_prefix"] = prefixes
        if not intermediates_only:
            result["image_features"] = self.norm_f(_turn(x_BMD, backward_B))
        if output_dict:
            return result
        pairs = list(zip(maps, prefixes)) if with_prefix else maps
        return pairs if intermediates_only else (result["image_features"], pairs)

    def _embed(self, x_BCHW: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, M + class tokens, D) with positions, in float32 or better: the residual stays there."""
        x_BMD = self.tokens.insert(self.patch_embed(x_BCHW), self._class_tokens(x_BCHW.shape[0]))
        grid = self.patch_embed.grid_size(*x_BCHW.shape[2:])
        x_BMD = x_BMD.to(torch.promote_types(x_BMD.dtype, torch.float32))
        return x_BMD + resample_pos_embed(self.pos_embed, self.grid, grid, self.tokens)

    def _class_tokens(self, batch: int) -> Tensor | None:
        names = self._token_names()
        return torch.cat([getattr(self, name) for name in names], dim=1).expand(batch, -1, -1) if names else None

    def _token_names(self) -> list[str]:
        """As in the released checkpoints."""
        return [[], ["cls_token"], ["cls_token_head", "cls_token_tail"]][self.tokens.count]

    def _maybe_turn(self, x_BMD: Tensor) -> tuple[Tensor, Tensor | None]:
        """With direction "sequence", in training, turn a random half of the sequences; -> x and which were turned."""
        if self.direction != "sequence" or not self.training:
            return x_BMD, None
        backward_B = torch.rand(x_BMD.shape[0], device=x_BMD.device) < 0.5
        return _turn(x_BMD, backward_B), backward_B

    def _run(self, block: nn.Module, x_BMD: Tensor) -> Tensor:
        if self.grad_checkpointing and torch.is_grad_enabled():
            return recompute.checkpoint(block, x_BMD, use_reentrant=False)
        return block(x_BMD)

    def _pool(self, x_BMD: Tensor) -> Tensor:
        if self.pool == "none":
            return x_BMD
        if self.pool == "token":
            return self.tokens.alone(x_BMD).mean(dim=1)
        patches_BMD, _ = self.tokens.extract(x_BMD)
        return patches_BMD.mean(dim=1) if self.pool == "mean" else patches_BMD.amax(dim=1)

    def _checked_pool(self, pool: str) -> Pool:
        if pool not in POOLS:
            raise ValueError(f"pool={pool!r} is unknown: choose token, mean, max or none")
        if pool == "token" and not self.tokens.count:
            raise ValueError('pool="token" needs a class token: choose mean or max, or another cls_token')
        return POOLS[pool]

    # timm's contract

    @property
    def global_pool(self) -> str:
        """`pool` in timm's words."""
        return {"mean": "avg", "none": ""}.get(self.pool, self.pool)

    def get_classifier(self) -> nn.Module:
        return self.head

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """A new head for `num_classes` outputs (0: none), and another pooling if given, in timm's words or ours."""
        if global_pool is not None:
            self.pool = self._checked_pool(global_pool)
        self.num_classes = num_classes
        like = self.pos_embed
        self.head = (
            nn.Linear(self.embed_dim, num_classes, device=like.device, dtype=like.dtype)
            if num_classes > 0
            else nn.Identity()
        )
        self._init_head()

    @torch.no_grad()
    def set_input_size(self, img_size: int | tuple[int, int]) -> None:
        """Hold position embeddings for images of that size from now on, resampled from those held."""
        grid = self.patch_embed.grid_size(*_pair(img_size))
        resampled = resample_pos_embed(self.pos_embed, self.grid, grid, self.tokens).clone()
        self.pos_embed = nn.Parameter(resampled, requires_grad=self.pos_embed.requires_grad)
        self.grid = grid

    def no_weight_decay(self) -> set[str]:
        """Parameters to keep out of weight decay; one-dimensional ones are kept out by timm besides."""
        ssm = {name for name, _ in self.named_parameters() if name.split(".")[-1] in ("A_log", "A_b_log", "D", "D_b")}
        return {"pos_embed", *self._token_names(), *ssm}

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Which parameters form one layer, for layer-wise learning-rate decay."""
        return {
            "stem": r"^cls_token|pos_embed|patch_embed",
            "blocks": [(r"^layers\.(\d+)", None), (r"^norm_f", (99999,))],
        }

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """`checkpoint="block"`, by the name that timm gives it."""
        self.grad_checkpointing = enable

    def prune_intermediate_layers(
        self, indices: int | list[int] = 1, prune_norm: bool = False, prune_head: bool = True
    ) -> list[int]:
        """Drop the blocks behind the last one asked for, the final norm and the head, where not needed."""
        take, last = feature_take_indices(len(self.layers), indices)
        self.layers = self.layers[: last + 1]
        if prune_norm:
            self.norm_f = nn.Identity()
        if prune_head:
            self.reset_classifier(0)
        return take

    def load_pretrained(self, checkpoint_path: str, prefix: str = "") -> None:
        """Load a file of weights, the authors' or ours, made for another size, stride or class count too."""
        load_weights(self, checkpoint_path)


def _check_at_least_one(**values: int | tuple[int, int]) -> None:
    for name, value in values.items():
        if min(_pair(value)) < 1:
            raise ValueError(f"{name} {value}: expected at least 1")


def _pair(size: int | Sequence[int]) -> tuple[int, int]:
    return (size, size) if isinstance(size, int) else (size[0], size[1])


def _turn(x_BMD: Tensor, backward_B: Tensor | None) -> Tensor:
    """The sequences marked, last token first."""
    return x_BMD if backward_B is None else torch.where(backward_B[:, None, None], x_BMD.flip(1), x_BMD)


def _to_map(patches_BMD: Tensor, grid: tuple[int, int]) -> Tensor:
    return patches_BMD.transpose(1, 2).unflatten(2, grid).contiguous()


def _create_vim(variant: str, pretrained: bool = False, **kwargs: Any) -> Any:
    """A Vim, or with `features_only=True` timm's wrapper that returns its maps; for timm.create_model."""
    if (pool := kwargs.pop("global_pool", None)) is not None:
        kwargs.setdefault("pool", pool)
    cfg = resolve_pretrained_cfg(
        variant, kwargs.pop("pretrained_cfg", None), kwargs.pop("pretrained_cfg_overlay", None)
    )
    if pretrained:
        cfg = locate_weights(variant, cfg, kwargs.get("cache_dir"))
    feature_cfg = {"out_indices": kwargs.pop("out_indices", 3), "feature_cls": "getter"}
    return build_model_with_cfg(
        Vim,
        variant,
        pretrained,
        pretrained_cfg=cfg.to_dict(),
        pretrained_filter_fn=fit_positions,
        feature_cfg=feature_cfg,
        **kwargs,
    )


def _cfg(repository: str = "", filename: str = "", **kwargs: Any) -> dict[str, Any]:
    return {
        "hf_hub_id": f"hustvl/{repository}" if repository else None,
        "hf_hub_filename": filename or None,
        "input_size": (3, 224, 224),
        "num_classes": 1000,
        "crop_pct": 0.875,
        "interpolation": "bicubic",
        "mean": IMAGENET_DEFAULT_MEAN,
        "std": IMAGENET_DEFAULT_STD,
        "first_conv": "patch_embed.proj",
        "classifier": "head",
        "license": "apache-2.0",
        "origin_url": "https://github.com/hustvl/Vim",
        "paper_ids": "arXiv:2401.09417",
        **kwargs,
    }


# ImageNet-1k top-1 as published: 76.1, 80.5, 81.9; stride 8, fine-tuned: 78.3, 81.6.
default_cfgs = generate_default_cfgs(
    {
        "vim_tiny_patch16_224.in1k": _cfg("Vim-tiny-midclstok", "vim_t_midclstok_76p1acc.pth"),
        "vim_small_patch16_224.in1k": _cfg("Vim-small-midclstok", "vim_s_midclstok_80p5acc.pth"),
        "vim_base_patch16_224.in1k": _cfg("Vim-base-midclstok", "vim_b_midclstok_81p9acc.pth"),
        "vim_tiny_patch16_stride8_224.in1k": _cfg("Vim-tiny-midclstok", "vim_t_midclstok_ft_78p3acc.pth"),
        "vim_small_patch16_stride8_224.in1k": _cfg("Vim-small-midclstok", "vim_s_midclstok_ft_81p6acc.pth"),
        "vim_nano_patch4_32.untrained": _cfg(input_size=(3, 32, 32), num_classes=10, crop_pct=1.0, license=None),
    }
)


@register_model
def vim_tiny_patch16_224(pretrained: bool = False, **kwargs: Any) -> Vim:
    """Vim-Ti: 24 blocks of width 192, 7.1 million parameters."""
    return _create_vim("vim_tiny_patch16_224", pretrained, **{"embed_dim": 192, **kwargs})


@register_model
def vim_small_patch16_224(pretrained: bool = False, **kwargs: Any) -> Vim:
    """Vim-S: 24 blocks of width 384, 25.8 million parameters."""
    return _create_vim("vim_small_patch16_224", pretrained, **{"embed_dim": 384, **kwargs})


@register_model
def vim_base_patch16_224(pretrained: bool = False, **kwargs: Any) -> Vim:
    """Vim-B: 24 blocks of width 768, 97.6 million parameters."""
    return _create_vim("vim_base_patch16_224", pretrained, **{"embed_dim": 768, **kwargs})


@register_model
def vim_tiny_patch16_stride8_224(pretrained: bool = False, **kwargs: Any) -> Vim:
    """Vim-Ti with overlapping patches: four times the tokens."""
    return _create_vim("vim_tiny_patch16_stride8_224", pretrained, **{"embed_dim": 192, "stride": 8, **kwargs})


@register_model
def vim_small_patch16_stride8_224(pretrained: bool = False, **kwargs: Any) -> Vim:
    """Vim-S with overlapping patches: four times the tokens."""
    return _create_vim("vim_small_patch16_stride8_224", pretrained, **{"embed_dim": 384, "stride": 8, **kwargs})


@register_model
def vim_nano_patch4_32(pretrained: bool = False, **kwargs: Any) -> Vim:
    """For images of a few dozen pixels: 4 blocks of width 128, half a million parameters."""
    nano = {"img_size": 32, "patch_size": 4, "embed_dim": 128, "depth": 4}
    return _create_vim("vim_nano_patch4_32", pretrained, **{**nano, **kwargs})
