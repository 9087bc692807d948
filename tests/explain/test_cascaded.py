"""Maps of EfficientViT's cascaded attention, from hooks: what its values are multiplied with."""

import pytest
import torch

from longvision.explain.cascaded import cascaded_layers, watched_cascades
from longvision.models.pruned_efficientvit import full_widths
from support.efficientvits import make


@pytest.mark.parametrize("size, windows", [(64, 1), (224, 4)])
@pytest.mark.parametrize("pruned", [False, True])
def test_maps_give_the_layer_s_output(size, windows, pruned):
    widths = {"stages.0.blocks.0.mixer.m.attn.qkvs.0": [3, 16]} if pruned else {}
    model = make("efficientvit_m0_pruned", img_size=size, widths=widths)
    layers, taken, given = cascaded_layers(model), {}, {}
    values = []
    for qkv, key in zip(layers["stages.0.blocks.0.mixer.m.attn"].qkvs, [3 if pruned else 8, 8]):
        qkv.register_forward_hook(lambda _, __, out, key=key: values.append(out[:, 2 * key :].flatten(2)))
    first = layers["stages.0.blocks.0.mixer.m.attn"]
    first.register_forward_hook(lambda _, inputs, out: given.update(out=out))
    x = torch.randn(2, 3, size, size)
    with torch.no_grad():
        with watched_cascades(model, taken.__setitem__):
            logits = model(x)
        expected = [v @ map_.transpose(1, 2) for v, map_ in zip(values, taken[0].unbind(1))]
        output = first.proj(torch.cat(expected, 1).view(given["out"].shape))
        torch.testing.assert_close(output, given["out"])
        assert torch.equal(model(x), logits) and len(taken) == len(layers) == 4  # and the hooks are gone
    assert taken[0].shape[:2] == (2 * windows, 2)
    for number, head_count in enumerate([2, 2, 3, 3]):
        assert taken[number].shape[1] == head_count
        torch.testing.assert_close(taken[number].sum(-1), torch.ones_like(taken[number][..., 0]))
    assert full_widths(model)["stages.0.blocks.0.mixer.m.attn.qkvs.0"] == ([3, 16] if pruned else [8, 16])
