"""The hidden attention of scans: applied to what is scanned it is the scan, to the last digits."""

import weakref

import pytest
import torch
import torch.nn.functional as F

from longvision.explain import scans
from longvision.explain.scans import hidden_attention, scan_layers, watched_scans
from longvision.layers.mixer import DIRECTIONS
from longvision.models import Vim
from longvision.models.memory import add_memory
from longvision.ops.selective_scan.reference import selective_scan_reference


def scan_inputs(batch=2, tokens=7, channels=6, state=3):
    x, step = torch.randn(2, batch, tokens, channels, dtype=torch.float64)
    B, C = torch.randn(2, batch, tokens, state, dtype=torch.float64)
    return x, F.softplus(step), -torch.rand(channels, state, dtype=torch.float64), B, C


@pytest.mark.parametrize("reverse", [False, True])
def test_it_is_the_scan(reverse):
    x, step, A, B, C = scan_inputs()
    map_BEMM = hidden_attention(step, A, B, C, heads=6, reverse=reverse)
    scanned = selective_scan_reference(x, step, A, B, C, reverse=reverse)
    torch.testing.assert_close(torch.einsum("beij,bje->bie", map_BEMM, x), scanned, rtol=1e-12, atol=1e-13)
    assert not (map_BEMM.tril(-1) if reverse else map_BEMM.triu(1)).any()
    grouped = hidden_attention(step, A, B, C, heads=2, reverse=reverse)
    torch.testing.assert_close(grouped, map_BEMM.unflatten(1, (2, 3)).mean(2), rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("reverse", [False, True])
def test_an_entry_is_the_equation(reverse):
    _, step, A, B, C = scan_inputs(batch=1, tokens=5)
    map_BEMM = hidden_attention(step, A, B, C, heads=6, reverse=reverse)
    i, j, e = (1, 3, 4) if reverse else (3, 1, 4)
    between = range(i, j) if reverse else range(j + 1, i + 1)
    decay_N = torch.exp(sum(step[0, k, e] for k in between) * A[e])
    torch.testing.assert_close(map_BEMM[0, e, i, j], (C[0, i] * decay_N * step[0, j, e] * B[0, j]).sum())


@pytest.mark.parametrize("direction", DIRECTIONS)
@torch.no_grad()
def test_a_vim_s_mixers(direction, monkeypatch):
    """A mixer's output, rebuilt from the maps and what each direction scans; the Vim is as it was."""
    model = Vim(img_size=16, patch_size=4, embed_dim=16, depth=2, state=3, num_classes=2, direction=direction)
    model, image = model.double().eval(), torch.randn(2, 3, 16, 16, dtype=torch.float64)
    truth, maps, seen, each = model(image), {}, {}, []
    monkeypatch.setattr(scans, "hidden_attention", lambda *args: each.append(hidden_attention(*args)) or each[-1])
    with watched_scans(model, maps.__setitem__, heads=32):
        torch.testing.assert_close(model(image), truth, rtol=1e-10, atol=1e-12)
    assert sorted(maps) == [0, 1] and len(scan_layers(model)) == 2

    mixer = model.layers[1].mixer
    mixer.register_forward_hook(lambda _, args, out: seen.update(x=args[0], y=out))
    assert torch.equal(model(image), truth)  # by the kernels again
    own = mixer.scan_directions()
    of_last = each[-len(own) :]
    torch.testing.assert_close(maps[1], sum(of_last) / len(own))
    x, z = mixer.in_proj(seen["x"]).chunk(2, dim=-1)
    outputs = []
    for direction_of, map_BEMM in zip(own, of_last, strict=True):
        u = x.flip(1) if direction_of.reverse else x
        bias, kernel = direction_of.filter_bias_E, direction_of.filter_EK.view(32, 1, 4)
        u = F.silu(F.conv1d(F.pad(u.mT, (3, 0)), kernel, bias, groups=32)).mT
        u = u.flip(1) if direction_of.reverse else u
        outputs.append(torch.einsum("beij,bje->bie", map_BEMM, u) + direction_of.D_E * u)
    y = sum(outputs) / len(outputs) * F.silu(z)
    torch.testing.assert_close(mixer.out_proj(y), seen["y"], rtol=1e-9, atol=1e-11)


def tiny_vim(**options):
    return Vim(img_size=16, patch_size=4, embed_dim=16, depth=2, state=3, num_classes=2, **options).eval()


@torch.no_grad()
def test_one_direction_s_map_is_held_at_once(monkeypatch):
    made = []

    def watched(*args):
        assert not any(map_() is not None for map_ in made)
        map_BHMM = hidden_attention(*args)
        made.append(weakref.ref(map_BHMM))
        return map_BHMM

    monkeypatch.setattr(scans, "hidden_attention", watched)
    model = tiny_vim()
    with watched_scans(model, lambda *_: None, heads=2):
        model(torch.randn(1, 3, 16, 16))
    assert len(made) == 4


@torch.no_grad()
def test_memory_is_left_out(monkeypatch):
    """What the image's tokens take of one another: of the whole map, the middle."""
    model, image = add_memory(tiny_vim(), 2, memory=3), torch.randn(2, 3, 16, 16)
    cut, whole = {}, {}
    with watched_scans(model, cut.__setitem__, heads=4):
        model(image)
    monkeypatch.setattr(scans, "own_tokens", lambda model: {})
    with watched_scans(model, whole.__setitem__, heads=4):
        model(image)
    for number in range(2):
        assert cut[number].shape == (2, 4, 17, 17) and whole[number].shape == (2, 4, 23, 23)
        torch.testing.assert_close(cut[number], whole[number][:, :, 3:20, 3:20])
