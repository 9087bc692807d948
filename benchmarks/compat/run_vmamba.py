"""VMamba's own models (MzeroMiko/VMamba, MIT), from a checkout: classification/models/vmamba.py. See foreign.py.

Needs einops, fvcore and timm. Beside the scan nothing of the file asks for a GPU, except that it enters
`torch.cuda.device` with the device of its tensors, which torch refuses for a CPU's: here that does nothing.
"""

import contextlib

import torch
import torch.nn.functional as F
from foreign import checkout, report

SIZE, BATCH = 224, 1


def main() -> None:
    repository = checkout("classification/models", "vmamba.py")
    enter = torch.cuda.device
    torch.cuda.device = lambda device: contextlib.nullcontext() if str(device) == "cpu" else enter(device)
    import vmamba

    torch.manual_seed(0)
    for name in ("vmamba_tiny_s1l8", "vmamba_tiny_s2l5"):
        images, label = torch.randn(BATCH, 3, SIZE, SIZE), torch.zeros(BATCH, dtype=torch.long)
        report(name, repository, getattr(vmamba, name)(), images, lambda model, x: F.cross_entropy(model(x), label))  # noqa: B023


if __name__ == "__main__":
    main()
