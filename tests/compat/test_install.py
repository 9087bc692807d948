"""Where other code looks: modules of other names, and scripts that are run with them."""

import importlib
import subprocess
import sys
from types import ModuleType

import pytest
import torch

from longvision.compat import __main__ as command
from longvision.compat import install
from longvision.compat.mamba_ssm import Mamba
from longvision.errors import UserError


def run(folder, code, *words, module=True):
    """A script that is run by `python -m longvision.compat`, or by itself -> its process."""
    script = folder / "script.py"
    script.write_text(code)
    how = ["-m", "longvision.compat"] if module else []
    return subprocess.run(
        [sys.executable, *how, str(script), *words], capture_output=True, text=True, timeout=600, cwd=folder.parent
    )


def output(done):
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


@pytest.fixture
def modules(monkeypatch):
    """What is imported, put back afterwards."""
    before = dict(sys.modules)
    yield sys.modules
    sys.modules.clear()
    sys.modules.update(before)


def package(folder, name, content=""):
    """Somebody else's package."""
    path = folder.joinpath(*name.split("."))
    path.mkdir(parents=True, exist_ok=True)
    (path / "__init__.py").write_text(content)


@pytest.mark.slow
def test_imports_of_other_code(tmp_path):
    """Each in the way in which other repositories have it; find_spec too, by which transformers asks."""
    code = """
import importlib.util, torch
from mamba_ssm import Mamba
from mamba_ssm.ops.selective_scan_interface import selective_scan_fn, selective_scan_ref
from mamba_ssm.ops.selective_scan_interface import mamba_inner_fn, bimamba_inner_fn, mamba_inner_ref
from mamba_ssm.ops.selective_scan_interface import mamba_inner_fn_no_out_proj
from mamba_ssm.modules.mamba_simple import Mamba as Same
from causal_conv1d import causal_conv1d_fn, causal_conv1d_update
from causal_conv1d.causal_conv1d_interface import causal_conv1d_ref, causal_conv1d_update_ref
import mamba_ssm.ops.triton.selective_state_update
import selective_scan_cuda, selective_scan_cuda_core, selective_scan_cuda_oflex, causal_conv1d_cuda
print(Mamba is Same, Mamba.__module__)
print(all(importlib.util.find_spec(name) for name in ("mamba_ssm", "causal_conv1d", "selective_scan_cuda")))
try:
    from mamba_ssm.ops.triton.layernorm import RMSNorm
except ImportError as error:
    print(error)
x, A, B = torch.ones(1, 2, 3), -torch.ones(2, 1), torch.ones(1, 1, 1, 3)
out, states = selective_scan_cuda_oflex.fwd(x, x, A, B, B, None, None, False, 1, True)
print(out.shape, causal_conv1d_cuda.causal_conv1d_fwd(x, torch.ones(2, 4), None, None, False)[0, 0].tolist())
print(Mamba(8)(torch.randn(1, 3, 8)).shape)
"""
    (tmp_path / "own").mkdir()
    found = output(run(tmp_path / "own", code))
    assert found == [
        "True longvision.compat.module",
        "True",
        "No module named 'mamba_ssm.ops.triton.layernorm'",
        "torch.Size([1, 2, 3]) [1.0, 2.0, 3.0]",
        "torch.Size([1, 3, 8])",
    ]


@pytest.mark.slow
def test_a_script_runs_as_python_runs_it(tmp_path):
    code = """
import sys, helper, __main__
print(__name__, sys.argv[1:], helper.VALUE, __main__.__file__ == __file__ == sys.argv[0], sys.path[0])
sys.exit(3)
"""
    own = tmp_path / "own"
    own.mkdir()
    (own / "helper.py").write_text("VALUE = 5")
    found, truth = (run(own, code, "--depth", "2", module=module) for module in (True, False))
    assert (found.stdout, found.returncode) == (truth.stdout, truth.returncode)
    assert found.stdout.startswith("__main__ ['--depth', '2'] 5 True")


def test_what_is_installed_stays(modules, tmp_path, monkeypatch):
    """A whole mamba_ssm is left as it is, and told; a second call places nothing."""
    package(tmp_path, "mamba_ssm", "import selective_scan_cuda\nVALUE = 7")
    package(tmp_path, "selective_scan_cuda")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.warns(UserWarning, match="^mamba_ssm, selective_scan_cuda: installed.*step aside"):
        placed = install()
    assert "causal_conv1d" in placed and not any(name.startswith("mamba_ssm") for name in placed)
    assert importlib.import_module("mamba_ssm").VALUE == 7
    assert not hasattr(modules["selective_scan_cuda"], "fwd")
    assert modules["causal_conv1d"].causal_conv1d_fn.__module__ == "longvision.compat.convolution"
    with pytest.warns(UserWarning, match="step aside"):
        assert install() == []


def test_a_release_without_its_scan(modules, tmp_path, monkeypatch):
    """It keeps its modules, and finds ours as its extension; imported before, it would not."""
    interface = "try:\n    import selective_scan_cuda\nexcept ImportError:\n    selective_scan_cuda = None"
    package(tmp_path, "mamba_ssm.ops.selective_scan_interface", interface)
    package(tmp_path, "mamba_ssm.ops")
    package(tmp_path, "mamba_ssm", "from mamba_ssm.ops.selective_scan_interface import selective_scan_cuda")
    monkeypatch.syspath_prepend(tmp_path)
    imported = {name for name in importlib.import_module("mamba_ssm") and modules if name.startswith("mamba_ssm")}
    with pytest.raises(UserError, match="imported before, without its scan"):
        install()
    assert "selective_scan_cuda" not in modules
    for name in imported:
        del modules[name]
    with pytest.warns(UserWarning, match="^mamba_ssm: installed.*not built"):
        install()
    assert importlib.import_module("mamba_ssm").selective_scan_cuda.fwd.__module__ == "longvision.compat.extensions"


@pytest.mark.parametrize("code", [False, True])
def test_a_folder_is_a_package_if_it_has_code(modules, tmp_path, monkeypatch, code):
    """One that pip left behind, or results beside a script, is none; one without __init__.py may be."""
    (tmp_path / "mamba_ssm" / "ops").mkdir(parents=True)
    (tmp_path / "mamba_ssm" / "ops" / ("norm.py" if code else "results.csv")).write_text("VALUE = 7")
    monkeypatch.syspath_prepend(tmp_path)
    if code:
        with pytest.warns(UserWarning, match="^mamba_ssm: installed"):
            assert "mamba_ssm" not in install()
        assert importlib.import_module("mamba_ssm.ops.norm").VALUE == 7
    else:
        assert "mamba_ssm" in install()
        assert modules["mamba_ssm"].Mamba.__module__ == "longvision.compat.module"


def test_a_module_that_mamba_ssm_saved(modules, tmp_path, monkeypatch):
    """A whole one, pickled under the name of its class there, is loaded as ours."""
    module, x = Mamba(16), torch.randn(2, 5, 16)
    names = "mamba_ssm", "mamba_ssm.modules", "mamba_ssm.modules.mamba_simple"
    with monkeypatch.context() as there:
        there.setattr(Mamba, "__module__", names[-1])
        for name in names:
            there.setitem(modules, name, ModuleType(name))
        modules[names[-1]].Mamba = Mamba
        torch.save(module, tmp_path / "module.pt")
    with pytest.raises(ModuleNotFoundError, match="mamba_ssm"):
        torch.load(tmp_path / "module.pt", weights_only=False)
    install()
    loaded = torch.load(tmp_path / "module.pt", weights_only=False)
    assert type(loaded) is Mamba and torch.equal(loaded(x), module(x))


@pytest.mark.slow
def test_a_process_that_a_script_spawns_installs_itself(tmp_path):
    code = """
import multiprocessing
import longvision.compat
longvision.compat.install()
import mamba_ssm
def where():
    print(mamba_ssm.Mamba.__module__)
if __name__ == "__main__":
    process = multiprocessing.get_context("spawn").Process(target=where)
    process.start()
    process.join()
"""
    assert output(run(tmp_path, code)) == ["longvision.compat.module"]


@pytest.mark.parametrize(
    "words, said",
    [((), "expected a script"), (("none.py", "-x"), "none.py: no such file"), (("--help",), "expected a script")],
)
def test_no_script(words, said, modules, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["longvision/compat/__main__.py", *words])
    with pytest.raises(UserError, match=said):
        command.prepare()
    assert "mamba_ssm" not in modules


@pytest.mark.slow
def test_transformers_finds_them(tmp_path):
    """Its Mamba asks for the packages by name: gradients and a cached generation are the same, by our functions."""
    code = """
import importlib, torch
from transformers.models.mamba import modeling_mamba as mamba
import longvision.compat

words = torch.arange(20).view(2, 10)
size = {"vocab_size": 50, "hidden_size": 16, "num_hidden_layers": 2, "state_size": 4}

def computed():
    torch.manual_seed(0)
    model = mamba.MambaForCausalLM(mamba.MambaConfig(**size)).train()
    model(words, labels=words).loss.backward()
    found = [parameter.grad for parameter in model.parameters()] + [model.eval()(words).logits.detach()]
    return found, model.generate(words, max_new_tokens=5, do_sample=False)

grads, generated = computed()
longvision.compat.install()
importlib.reload(mamba)
scan = mamba.mamba_selective_scan.__closure__
print(any(getattr(cell.cell_contents, "__module__", "") == "longvision.compat.scan" for cell in scan))
ours, words_of_ours = computed()
far = max(((a - b).norm() / b.norm()).item() for a, b in zip(ours, grads))
print(far < 1e-5, torch.equal(generated, words_of_ours))
"""
    assert output(run(tmp_path, code, module=False)) == ["True", "True True"]
