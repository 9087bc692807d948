"""VMamba (arXiv 2401.10166): a hierarchy of maps, each pixel read by selective scans in four directions."""

from collections import OrderedDict
from collections.abc import Sequence
from functools import partial
from itertools import accumulate
from typing import Any, Literal, get_args

from timm.models import generate_default_cfgs, register_model, register_notrace_module
from torch import nn

from longvision.errors import UserError
from longvision.layers.attention import LayerNorm
from longvision.layers.drop_path import rising
from longvision.layers.maps import MapConv2d, PatchMerging
from longvision.layers.ss2d import SS2D
from longvision.layers.vss_block import VSSBlock
from longvision.models.base import build
from longvision.models.hierarchy import HierarchyBackbone, Stage
from longvision.models.published import imagenet
from longvision.models.sequence import check_at_least_one
from longvision.models.vit import init_linear_layers
from longvision.models.weights.fit import Weights
from longvision.models.weights.vmamba import from_released

# timm's feature extraction by torch.fx takes mixers whole, as they run; torch.fx alone looks into them.
register_notrace_module(SS2D)

Version = Literal["v05", "v0"]


class VMamba(HierarchyBackbone):
    """VMamba. (B, C, H, W) -> (B, num_classes), for any H x W.

    Args:
        embed_dim: channels of the first stage's map; each further stage has twice as many.
        depths: blocks of each stage.
        state: states a channel of the scans.
        ssm_ratio: width of what is scanned, in channels of the map.
        mlp_ratio: width inside of a block's MLP, in channels of the map; 0 for none.
        version: "v05", the current one: convolutions of 3 x 3 make the first map and halve it. "v0", the first one:
            patches of 4 x 4, of which four are merged to halve a map, and a gate behind the scans.
        in_chans: channels of the image.
        num_classes: outputs; 0 for none (features are returned).
        pool: what goes to the head, "mean" or "max" over the last map, or "none", the map.
        drop_rate: dropout before the head.
        drop_path_rate: stochastic depth at the last block, rising from 0 at the first.

    Raises:
        UserError: an unknown word, or a number out of range.
    """

    blocks_name, norm_name, head_name = "layers", "classifier.norm", "classifier.head"  # of the released checkpoints

    def __init__(
        self,
        *,
        embed_dim: int = 96,
        depths: Sequence[int] = (2, 2, 8, 2),
        state: int = 1,
        ssm_ratio: float = 1.0,
        mlp_ratio: float = 4.0,
        version: Version = "v05",
        in_chans: int = 3,
        num_classes: int = 1000,
        pool: str = "mean",
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
    ) -> None:
        check_at_least_one(in_chans=in_chans, state=state, stages=_stages(depths))
        check_at_least_one(**{f"depths[{number}]": depth for number, depth in enumerate(depths)})
        if version not in get_args(Version):
            raise UserError(f"version={version!r} is unknown: choose {' or '.join(get_args(Version))}")
        if type(embed_dim) is not int or embed_dim < 2:
            raise UserError(f"embed_dim {embed_dim!r}: expected a whole number, at least 2")
        numbers = all(type(ratio) in (int, float) for ratio in (ssm_ratio, mlp_ratio))
        if not numbers or ssm_ratio * embed_dim < 1 or mlp_ratio < 0:
            raise UserError(
                f"ssm_ratio {ssm_ratio!r}, mlp_ratio {mlp_ratio!r}: expected a number that leaves a channel at least, "
                "and one of 0 or more"
            )
        widths = [embed_dim * 2**number for number in range(len(depths))]
        super().__init__(widths[-1], in_chans, num_classes, pool, drop_rate)
        self.embed_dim, self.smallest = embed_dim, 1 if version == "v05" else 4
        self.patch_embed = (_convolutions if version == "v05" else _patches)(in_chans, embed_dim)
        halve = _halving if version == "v05" else PatchMerging
        rates = rising(drop_path_rate, sum(depths))
        layers = []
        for width, depth, end in zip(widths, depths, accumulate(depths)):
            block = partial(VSSBlock, width, int(ssm_ratio * width), state, version == "v0", mlp_ratio)
            blocks = [block(drop_path=rate) for rate in rates[end - depth : end]]
            layers.append(Stage(blocks, halve(width) if end < sum(depths) else None))
        self.classifier = nn.Module()
        self._add_stages(layers, LayerNorm(widths[-1], 1e-5), [(width, 4 * 2**i) for i, width in enumerate(widths)])
        self._init_weights()

    def _init_weights(self) -> None:
        """As published: convolutions as torch's, the mixers have set their own."""
        init_linear_layers(self._blocks())
        self._init_head()

    def from_released(self, weights: Weights) -> Weights:
        """Of the authors' other versions, as `Backbone.from_released`."""
        return from_released(weights, self)


def _stages(depths: Any) -> int:
    """How many there are. Raises UserError for what is no list."""
    if not isinstance(depths, Sequence) or isinstance(depths, str):
        raise UserError(f"depths {depths!r}: expected a list, the number of blocks of each stage")
    return len(depths)


def _convolutions(in_chans: int, dim: int) -> nn.Sequential:
    """(B, H, W, C) -> (B, ⌈H / 4⌉, ⌈W / 4⌉, D). Named as in the released weights."""
    half = dim // 2
    first = [("0", MapConv2d(in_chans, half, 3, 2, 1)), ("2", LayerNorm(half, 1e-5)), ("4", nn.GELU())]
    return nn.Sequential(OrderedDict([*first, ("5", MapConv2d(half, dim, 3, 2, 1)), ("7", LayerNorm(dim, 1e-5))]))


def _patches(in_chans: int, dim: int) -> nn.Sequential:
    """(B, H, W, C) -> (B, ⌊H / 4⌋, ⌊W / 4⌋, D)."""
    return nn.Sequential(OrderedDict([("0", MapConv2d(in_chans, dim, 4, 4)), ("2", LayerNorm(dim, 1e-5))]))


def _halving(dim: int) -> nn.Sequential:
    """(B, H, W, D) -> (B, ⌈H / 2⌉, ⌈W / 2⌉, 2 D)."""
    return nn.Sequential(OrderedDict([("1", MapConv2d(dim, 2 * dim, 3, 2, 1)), ("3", LayerNorm(2 * dim, 1e-5))]))


def _cfg(file: str, accuracy: float) -> dict[str, Any]:
    return imagenet(
        accuracy,
        url=f"https://github.com/MzeroMiko/VMamba/releases/download/{file}",
        custom_load=True,
        first_conv="patch_embed.0",
        classifier="classifier.head",
        license="mit",
        origin_url="https://github.com/MzeroMiko/VMamba",
        paper_ids="arXiv:2401.10166",
    )


default_cfgs = generate_default_cfgs(
    {
        "vmamba_tiny_s1l8_224.in1k": _cfg("%23v2cls/vssm1_tiny_0230s_ckpt_epoch_264.pth", 82.6),
        "vmamba_small_s1l20_224.in1k": _cfg("%23v2cls/vssm1_small_0229s_ckpt_epoch_240.pth", 83.3),
        "vmamba_base_s1l20_224.in1k": _cfg("%23v2cls/vssm1_base_0229s_ckpt_epoch_225.pth", 83.8),
        "vmamba_tiny_s2l5_224.in1k": _cfg("%23v2cls/vssm_tiny_0230_ckpt_epoch_262.pth", 82.5),
        "vmamba_small_s2l15_224.in1k": _cfg("%23v2cls/vssm_small_0229_ckpt_epoch_222.pth", 83.6),
        "vmamba_base_s2l15_224.in1k": _cfg("%23v2cls/vssm_base_0229_ckpt_epoch_237.pth", 83.9),
        "vmamba_tiny_v0_224.in1k": _cfg("%23v0cls/vssmtiny_dp01_ckpt_epoch_292.pth", 82.2),
        "vmamba_small_v0_224.in1k": _cfg("%23v0cls/vssmsmall_dp03_ckpt_epoch_238.pth", 83.5),
        "vmamba_base_v0_224.in1k": _cfg("%23v0cls/vssmbase_dp06_ckpt_epoch_241.pth", 83.7),
    }
)

_S2 = {"ssm_ratio": 2.0}
_V0 = {"state": 16, "ssm_ratio": 2.0, "mlp_ratio": 0.0, "version": "v0"}


def _released(name: str, pretrained: bool, arguments: dict[str, Any]) -> VMamba:
    """With `features_only=True`, the maps of all stages where nobody names some."""
    return build(VMamba, name, pretrained, **{"out_indices": _stages(arguments["depths"]), **arguments})


@register_model
def vmamba_tiny_s1l8_224(pretrained: bool = False, **kwargs: Any) -> VMamba:
    """VMamba-T, scans as wide as the maps: 8 blocks in the third stage, 30.2 million parameters."""
    own = {"embed_dim": 96, "depths": (2, 2, 8, 2)}
    return _released("vmamba_tiny_s1l8_224", pretrained, {**own, **kwargs})


@register_model
def vmamba_small_s1l20_224(pretrained: bool = False, **kwargs: Any) -> VMamba:
    """VMamba-S, scans as wide as the maps: 20 blocks in the third stage, 49.0 million parameters."""
    own = {"embed_dim": 96, "depths": (2, 2, 20, 2)}
    return _released("vmamba_small_s1l20_224", pretrained, {**own, **kwargs})


@register_model
def vmamba_base_s1l20_224(pretrained: bool = False, **kwargs: Any) -> VMamba:
    """VMamba-B, scans as wide as the maps: 20 blocks in the third stage, 86.6 million parameters."""
    own = {"embed_dim": 128, "depths": (2, 2, 20, 2)}
    return _released("vmamba_base_s1l20_224", pretrained, {**own, **kwargs})


@register_model
def vmamba_tiny_s2l5_224(pretrained: bool = False, **kwargs: Any) -> VMamba:
    """VMamba-T, scans twice as wide as the maps: 5 blocks in the third stage, 30.7 million parameters."""
    own = {"embed_dim": 96, "depths": (2, 2, 5, 2), **_S2}
    return _released("vmamba_tiny_s2l5_224", pretrained, {**own, **kwargs})


@register_model
def vmamba_small_s2l15_224(pretrained: bool = False, **kwargs: Any) -> VMamba:
    """VMamba-S, scans twice as wide as the maps: 15 blocks in the third stage, 50.1 million parameters."""
    own = {"embed_dim": 96, "depths": (2, 2, 15, 2), **_S2}
    return _released("vmamba_small_s2l15_224", pretrained, {**own, **kwargs})


@register_model
def vmamba_base_s2l15_224(pretrained: bool = False, **kwargs: Any) -> VMamba:
    """VMamba-B, scans twice as wide as the maps: 15 blocks in the third stage, 88.6 million parameters."""
    own = {"embed_dim": 128, "depths": (2, 2, 15, 2), **_S2}
    return _released("vmamba_base_s2l15_224", pretrained, {**own, **kwargs})


@register_model
def vmamba_tiny_v0_224(pretrained: bool = False, **kwargs: Any) -> VMamba:
    """VMamba-T, the first version: 9 blocks in the third stage, 22.9 million parameters."""
    own = {"embed_dim": 96, "depths": (2, 2, 9, 2), **_V0}
    return _released("vmamba_tiny_v0_224", pretrained, {**own, **kwargs})


@register_model
def vmamba_small_v0_224(pretrained: bool = False, **kwargs: Any) -> VMamba:
    """VMamba-S, the first version: 27 blocks in the third stage, 44.4 million parameters."""
    own = {"embed_dim": 96, "depths": (2, 2, 27, 2), **_V0}
    return _released("vmamba_small_v0_224", pretrained, {**own, **kwargs})


@register_model
def vmamba_base_v0_224(pretrained: bool = False, **kwargs: Any) -> VMamba:
    """VMamba-B, the first version: 27 blocks in the third stage, 76.3 million parameters."""
    own = {"embed_dim": 128, "depths": (2, 2, 27, 2), **_V0}
    return _released("vmamba_base_v0_224", pretrained, {**own, **kwargs})
