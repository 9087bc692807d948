"""Packed images against each image alone."""

import torch


def check_as_alone(model, packed, alone):
    """Values and every gradient; float64, sums in another order.

    Args:
        packed: `PackedImages` of all.
        alone: what the model takes, for each image.
    """
    got, truth = model(packed), torch.cat([model(each) for each in alone])
    torch.testing.assert_close(got, truth, rtol=1e-11, atol=1e-12)
    weights = torch.randn_like(truth)
    found = torch.autograd.grad((got * weights).sum(), model.parameters())
    expected = torch.autograd.grad((truth * weights).sum(), model.parameters())
    for (name, _), a, b in zip(model.named_parameters(), found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-11, msg=name)
