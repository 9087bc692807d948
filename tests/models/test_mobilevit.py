"""timm's MobileViT against transformers' on the same weights, and the papers' parameter counts."""

import re

import pytest
import timm
import torch

pytest.importorskip("transformers")
from longvision.models.cost import measure_cost
from support.efficientvits import randomised

# Of a transformer layer, in timm's order; queries, keys and values are one layer there.
PARTS = ["layernorm_before", "attention.attention", "attention.output", "layernorm_after", "intermediate", "output"]


def place(name):
    """Where a tensor of transformers' stands among timm's of the same transformer layer."""
    inside = re.search(r"transformer\.layer\.\d+\.(.*)", name)
    return next((i for i, part in enumerate(PARTS) if inside and inside[1].startswith(part)), -1)


def grouped(weights):
    """Tensors of transformers' MobileViT in the order of timm's."""
    rest, result = list(weights), []
    while rest:
        layer = re.match(r"(.*transformer\.layer\.\d+)\.", rest[0])
        count = sum(name.startswith(f"{layer[1]}.") for name in rest) if layer else 1
        names, rest = sorted(rest[:count], key=place), rest[count:]
        for name in names:
            if ".query." in name:
                result.append(torch.cat([weights[name.replace("query", part)] for part in ("query", "key", "value")]))
            elif ".key." not in name and ".value." not in name:
                result.append(weights[name])
    return result


def both(name, kind):
    import transformers

    torch.manual_seed(0)
    config = getattr(transformers, f"{kind}Config")(num_labels=1000)
    theirs = randomised(getattr(transformers, f"{kind}ForImageClassification")(config))
    model = timm.create_model(name).eval()
    weights = {key: value for key, value in theirs.state_dict().items() if "num_batches" not in key}
    tensors = grouped(weights) if kind == "MobileViT" else list(weights.values())
    names = [key for key in model.state_dict() if "num_batches" not in key]
    model.load_state_dict(dict(zip(names, tensors, strict=True)), strict=False)
    return model, theirs


@pytest.mark.slow
@pytest.mark.parametrize("name, kind, size", [
    ("mobilevit_s", "MobileViT", (128, 192)), ("mobilevit_s", "MobileViT", (104, 104)),
    ("mobilevitv2_100", "MobileViTV2", (128, 192)),
])  # fmt: skip
def test_the_same_weights_give_the_same_logits(name, kind, size):
    """At 104 pixels maps are stretched for attention and back in both."""
    model, theirs = both(name, kind)
    x = torch.randn(2, 3, *size)
    with torch.no_grad():
        logits, expected = model(x), theirs(x).logits
    assert expected.std() > 1e-3
    torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-4 * float(expected.abs().max()))


@pytest.mark.parametrize("name, count, published", [
    ("mobilevit_xxs", 1_272_024, 1.3e6), ("mobilevit_xs", 2_317_848, 2.3e6), ("mobilevit_s", 5_578_632, 5.6e6),
    ("mobilevitv2_050", 1_370_593, 1.4e6), ("mobilevitv2_100", 4_901_841, 4.9e6),
    ("mobilevitv2_200", 18_449_329, 18.5e6),
    ("efficientvit_m0", 2_349_436, 2.3e6), ("efficientvit_m1", 2_980_560, 3.0e6), ("efficientvit_m2", 4_187_554, 4.2e6),
    ("efficientvit_m3", 6_900_722, 6.9e6), ("efficientvit_m4", 8_804_228, 8.8e6),
    ("efficientvit_m5", 12_473_772, 12.4e6),
])  # fmt: skip
def test_parameters(name, count, published):
    """Those of arXiv 2110.02178, 2206.02680 and 2305.07027, in millions."""
    with torch.device("meta"):
        model = timm.create_model(name)
    assert sum(parameter.numel() for parameter in model.parameters()) == count
    assert count == pytest.approx(published, rel=0.04)


def test_separable_attention_costs_as_much_as_there_are_tokens():
    """Four times the tokens are four times the multiply-adds; of softmax attention more and more."""
    for name, low, high in (("mobilevitv2_050", 3.99, 4.01), ("mobilevit_xxs", 5, 16)):
        small, large = (measure_cost(name, side, side).macs for side in (512, 1024))
        assert low < large / small < high
