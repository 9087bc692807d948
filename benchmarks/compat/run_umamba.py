"""U-Mamba's 2-D networks (bowang-lab/U-Mamba, Apache-2.0), from a checkout: umamba/nnunetv2/nets/UMambaBot_2d.py and
UMambaEnc_2d.py, as its trainers make them for seven stages of 2-D patches. See foreign.py.

Needs what nnunetv2 imports (pip install CHECKOUT/umamba, or the few that are named when they are missing). It has no
plain torch of its own.
"""

import torch
import torch.nn.functional as F
from foreign import checkout, report
from torch import nn

STAGES, FEATURES, MOST, SIZE, BATCH, CLASSES = 7, 32, 512, 256, 1, 4


def main() -> None:
    repository = checkout("umamba", "nnunetv2/nets/UMambaBot_2d.py")
    from nnunetv2.nets.UMambaBot_2d import UMambaBot
    from nnunetv2.nets.UMambaEnc_2d import UMambaEnc

    images, labels = torch.randn(BATCH, 1, SIZE, SIZE), torch.randint(CLASSES, (BATCH, SIZE, SIZE))
    settings = {
        **{"input_channels": 1, "num_classes": CLASSES, "n_stages": STAGES, "conv_op": nn.Conv2d},
        "features_per_stage": [min(FEATURES * 2**stage, MOST) for stage in range(STAGES)],
        **{"kernel_sizes": [[3, 3]] * STAGES, "strides": [[1, 1]] + [[2, 2]] * (STAGES - 1)},
        **{"conv_bias": True, "norm_op": nn.InstanceNorm2d, "norm_op_kwargs": {"eps": 1e-5, "affine": True}},
        **{"nonlin": nn.LeakyReLU, "nonlin_kwargs": {"inplace": True}, "deep_supervision": True},
    }

    def loss(model: nn.Module, x: torch.Tensor) -> torch.Tensor:
        outputs = model(x)  # of every stage, the largest first
        return sum(
            F.cross_entropy(each, labels[:, :: SIZE // each.shape[2], :: SIZE // each.shape[3]]) for each in outputs
        )

    for kind, extra in ((UMambaBot, {}), (UMambaEnc, {"input_size": (SIZE, SIZE)})):
        torch.manual_seed(0)
        blocks = {"n_conv_per_stage": [2] * STAGES, "n_conv_per_stage_decoder": [2] * (STAGES - 1)}
        model = kind(**settings, **blocks, **extra)
        report(f"{kind.__name__} 2-D", repository, model, images, loss)


if __name__ == "__main__":
    main()
