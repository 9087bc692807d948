"""Forward-mode derivatives: none, and none that is silently zero."""

import pytest
import torch
from torch.autograd import forward_ad

from longvision.ops import causal_conv1d, rms_norm, selective_scan
from support.mixer_cases import make

MIXER = make(2, 5, 4)
OTHERS = -torch.ones(5, 3, dtype=torch.float64), torch.ones(2, 5, 3).double(), torch.ones(2, 5, 3).double()
OPS = {
    "rms_norm": lambda x: rms_norm(x, torch.ones(5, dtype=torch.float64)),
    "causal_conv1d": lambda x: causal_conv1d(x, torch.ones(5, 4, dtype=torch.float64)),
    "selective_scan": lambda x: selective_scan(x, x, -torch.ones(5, 3, dtype=torch.float64), x[..., :3], x[..., 2:]),
    "mixer": lambda x: MIXER._replace(x=x).call(),
}


@pytest.mark.parametrize("name", OPS)
def test_a_tangent_is_not_lost(name):
    x = MIXER.x
    try:
        _, of_func = torch.func.jvp(OPS[name], (x,), (torch.ones_like(x),))
        with forward_ad.dual_level():
            of_dual = forward_ad.unpack_dual(OPS[name](forward_ad.make_dual(x, torch.ones_like(x)))).tangent
    except NotImplementedError as error:
        assert "no forward-mode derivative" in str(error)
    else:  # without kernels there is plain torch
        step = 1e-6
        central = (OPS[name](x + step) - OPS[name](x - step)) / (2 * step)
        torch.testing.assert_close(of_func, central, rtol=1e-6, atol=1e-8)
        torch.testing.assert_close(of_dual, of_func)


@pytest.mark.parametrize("name", OPS)
def test_beside_a_tangent_all_is_as_ever(name):
    with forward_ad.dual_level():
        forward_ad.make_dual(MIXER.x.clone(), torch.ones_like(MIXER.x))
        assert torch.isfinite(OPS[name](MIXER.x)).all()


def test_a_tangent_elsewhere_behind_vmap():
    batch = torch.stack([MIXER.x, MIXER.x])
    scan = torch.func.vmap(lambda x: selective_scan(x, x, *OTHERS, backend="chunked"))
    _, tangent = torch.func.jvp(lambda t: t * scan(batch).sum(), (torch.tensor(2.0),), (torch.tensor(1.0),))
    torch.testing.assert_close(tangent, scan(batch).sum())


def test_the_reference_has_them(monkeypatch):
    monkeypatch.setenv("LONGVISION_SCAN_BACKEND", "reference")
    _, tangent = torch.func.jvp(OPS["selective_scan"], (MIXER.x,), (torch.ones_like(MIXER.x),))
    assert tangent.abs().sum() > 0
