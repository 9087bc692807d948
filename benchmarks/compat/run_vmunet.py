"""VM-UNet (JCruan519/VM-UNet, Apache-2.0), from a checkout: models/vmunet/vmunet.py with the depths and the image size
of its configs/config_setting.py. See foreign.py. Needs einops and timm; it has no plain torch of its own."""

import torch
import torch.nn.functional as F
from foreign import checkout, report

SIZE, BATCH = 256, 1


def main() -> None:
    repository = checkout("models", "vmunet/vmunet.py")
    from vmunet.vmunet import VMUNet

    torch.manual_seed(0)
    model = VMUNet(depths=[2, 2, 2, 2], depths_decoder=[2, 2, 2, 1])
    images, mask = torch.randn(BATCH, 3, SIZE, SIZE), (torch.rand(BATCH, 1, SIZE, SIZE) > 0.5).float()
    report("VM-UNet", repository, model, images, lambda model, x: F.binary_cross_entropy(model(x), mask))


if __name__ == "__main__":
    main()
