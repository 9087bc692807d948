"""How kernels are launched: channels a program by the number of states, programs by the length of the sequence."""

import pytest

pytest.importorskip("triton.language")

from longvision.ops.kernels.triton import scan


def test_as_many_states_are_in_registers_for_every_number_of_them():
    held = {states: scan.forward_channels(states) * states for states in (4, 8, 16, 32)}
    assert held == {4: 512, 8: 1024, 16: 1024, 32: 1024}


@pytest.mark.parametrize("channels", [scan.forward_channels(16), scan.BACKWARD_CHANNELS])
def test_a_long_image_is_split(channels):
    assert scan.segmented(16385, -(-768 // channels))[1] > 10
