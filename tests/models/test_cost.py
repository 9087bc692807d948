"""What models cost, counted: the published sizes, and what the scan takes of it."""

import pytest

from longvision.errors import UserError
from longvision.models.cost import measure_cost


def test_vim_tiny():
    """The multiply-adds that docs/models.md gives; 15.6 % of them are the scan's."""
    cost = measure_cost("vim_tiny_patch16_224", 224, 224)
    assert cost.parameters == 7_148_008
    assert cost.macs / 1e9 == pytest.approx(1.532, abs=5e-4)
    assert 100 * cost.scan_macs / cost.macs == pytest.approx(15.6, abs=0.05)


def test_tokens_cost_what_they_cost():
    one, four = (measure_cost("vim_nano_patch4_32", side, side, depth=1) for side in (32, 64))
    assert 3.9 < four.macs / one.macs < 4
    # 4 N + 2 a token, channel and direction: a class token among the patches
    assert one.scan_macs == 2 * (64 + 1) * 256 * (4 * 16 + 2)


def test_other_models_and_sizes():
    assert measure_cost("resnet10t", 64, 96).scan_macs == 0
    with pytest.raises(UserError, match="30x32"):
        measure_cost("vim_nano_patch4_32", 30, 32)


def test_an_attention_pooling_counts():
    """A query, keys and values, the output, and an MLP of four widths, beside what attention costs."""
    pooled, mean = (measure_cost("navit_tiny_patch16", 32, 32, depth=1, pool=pool) for pool in ("map", "mean"))
    projections = 192**2 * (1 + 2 * 4 + 1 + 2 * 4)
    assert pooled.macs - mean.macs - projections in (0, 2 * 4 * 192)  # of attention, where the counter knows its kernel
