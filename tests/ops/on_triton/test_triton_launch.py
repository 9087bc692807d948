"""How kernels are launched: channels a program by the number of states, programs by the length of the sequence."""

import pytest
import torch

pytest.importorskip("triton.language")

from longvision.ops.kernels.triton import scan
from longvision.ops.kernels.triton.configurations import KERNELS, configuration


def chosen_for(kernel, batch, tokens, width, states):
    return configuration(kernel, torch.empty(batch, tokens, width, device="meta"), states)


def test_as_many_states_are_in_registers_for_every_number_of_them():
    chosen = {states: chosen_for("scan_forward", 8, 197, 384, states).channels * states for states in (4, 8, 16, 32)}
    assert chosen == {4: 512, 8: 1024, 16: 1024, 32: 1024}


@pytest.mark.parametrize("kernel", ["scan_forward", "scan_backward"])
def test_a_long_image_is_split(kernel):
    chosen = chosen_for(kernel, 1, 16385, 768, 16)
    tiles = -(-768 // chosen.channels)
    assert scan.grouping(16385, tiles, chosen.programs)[1] > 10


def test_every_kernel_has_a_configuration():
    assert all(chosen_for(kernel, 1, 1, 1, 16).channels >= 32 for kernel in KERNELS)
