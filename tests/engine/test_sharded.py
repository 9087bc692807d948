"""Weights in shards, block by block: what Lightning's FSDP does on GPUs, by torch's `fully_shard` over gloo."""

import json
from types import SimpleNamespace

import pytest
import torch

pytest.importorskip("lightning")

from longvision.engine.report import evaluate
from longvision.engine.run import Run
from longvision.engine.strategy import TIMEOUT, ShardedStrategy, cluster, in_one_piece, make_strategy
from longvision.engine.trainer import make_trainer, train
from longvision.errors import UserError
from support.counted import fit
from support.launched import launch, torchrun

PROGRAM = """
import json, sys
from pathlib import Path
import timm, torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
import longvision
from longvision.engine.checkpoint_file import is_whole, seal_folder
from longvision.engine.report import read_checkpoint
from longvision.engine.strategy import BLOCKS

torch.set_num_threads(1)
dist.init_process_group("gloo")
rank, folder = dist.get_rank(), Path(sys.argv[1])

def model(seed=0):
    torch.manual_seed(seed)
    return timm.create_model("vim_nano_patch4_32", depth=2, embed_dim=32, num_classes=5)

def shard(model):
    blocks = [module for module in model.modules() if isinstance(module, tuple(BLOCKS))]
    for block in blocks:
        fully_shard(block)
    return fully_shard(model), len(blocks)

def whole(tensor):
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor

def step(model, images, labels):
    loss = torch.nn.functional.cross_entropy(model(images), labels)
    loss.backward()
    return loss

torch.manual_seed(1)
images, labels = torch.randn(4, 3, 32, 32), torch.tensor([0, 1, 2, 3])
alone = model()
step(alone, images, labels)
sharded, blocks = shard(model())
mine = slice(2 * rank, 2 * rank + 2)
step(sharded, images[mine], labels[mine])
named = dict(alone.named_parameters())
worst = max((whole(p.grad) - named[name].grad).abs().max().item() for name, p in sharded.named_parameters())
held = sum(p.to_local().numel() for p in sharded.parameters())
total = sum(p.numel() for p in alone.parameters())
with torch.no_grad():
    same = torch.allclose(sharded(images), alone(images), atol=1e-5)
optimizer = torch.optim.AdamW(sharded.parameters(), 0.01)
optimizer.step()
dcp.save({"model": sharded.state_dict()}, checkpoint_id=folder)
if rank == 0:
    seal_folder(folder)
dist.barrier()
sealed = is_whole(folder)
other, _ = shard(model(seed=2))
state = {"model": other.state_dict()}
dcp.load(state, checkpoint_id=folder)
other.load_state_dict(state["model"])
again = all(torch.equal(whole(a), whole(b)) for a, b in zip(other.parameters(), sharded.parameters()))
trained = any(not torch.equal(whole(p), named[name]) for name, p in other.named_parameters())
full = read_checkpoint(folder) if rank == 0 else {}
states = {k: whole(v) for k, v in sharded.state_dict().items()}
file = all(torch.equal(states[k], v) for k, v in full.items()) and (rank or len(full) == len(states))
said = {"blocks": blocks, "worst": worst, "held": held, "total": total}
said |= {"sealed": sealed, "shards": len(list(folder.glob("*.distcp")))}
said |= {"same": same, "again": again, "trained": trained, "file": bool(file)}
Path(f"{folder}-{rank}.json").write_text(json.dumps(said))
dist.destroy_process_group()
"""


@pytest.mark.slow
def test_blocks_in_shards_train_and_are_saved_as_one_process_does(tmp_path):
    done = launch(tmp_path, PROGRAM, *torchrun(), timeout=300)
    assert done.returncode == 0, done.stderr
    said = [json.loads((tmp_path / f"runs-{rank}.json").read_text()) for rank in range(2)]
    for one in said:
        assert one["blocks"] == 2 and one["worst"] < 1e-6  # of the gradients of the joint batch
        assert one["sealed"] and one["shards"] == 2
        assert one["same"] and one["again"] and one["trained"] and one["file"]
    assert sum(one["held"] for one in said) == said[0]["total"]


@pytest.fixture
def gpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)


def test_fsdp_wraps_blocks_and_writes_folders(gpu):
    made = make_strategy("fsdp")
    assert isinstance(made, ShardedStrategy) and made._state_dict_type == "sharded"
    assert make_strategy("ddp") == "ddp"
    with pytest.raises(UserError, match="fsdp2"):  # unknown to Lightning
        make_trainer({"strategy": "fsdp2", "accelerator": "cpu"})


def test_fsdp_without_a_gpu_is_told():
    with pytest.raises(UserError, match="fsdp needs GPUs"):
        make_trainer({"strategy": "fsdp", "accelerator": "cpu", "devices": 2})


def test_an_average_of_whole_weights_is_refused(gpu):
    trainer = SimpleNamespace(is_global_zero=False, strategy=make_strategy("fsdp"))
    task = SimpleNamespace(config=SimpleNamespace(ema=0.5))
    with pytest.raises(UserError, match=r"--model\.ema"):
        train(trainer, task, None, None)


def test_processes_do_not_wait_for_ever():
    assert make_trainer({"strategy": "ddp", "accelerator": "cpu", "devices": 2}).strategy._timeout == TIMEOUT


@pytest.mark.parametrize("job, launcher, ours", [({}, {}, 0), (1, {}, 1), (1, {"TORCHELASTIC_RUN_ID": "x"}, 0)])
def test_slurm_requeues_nothing_by_itself(monkeypatch, job, launcher, ours):
    given = {"SLURM_NTASKS": "1", "SLURM_JOB_NAME": "train"} if job else {}
    for name in ("SLURM_NTASKS", "SLURM_JOB_NAME", "TORCHELASTIC_RUN_ID"):
        monkeypatch.delenv(name, raising=False)
    for name, value in {**given, **launcher, "RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0"}.items():
        monkeypatch.setenv(name, value)
    assert [each.auto_requeue for each in cluster()] == [False] * ours


def test_a_folder_is_not_read_in_one_piece(tmp_path):
    trainer = SimpleNamespace(is_global_zero=False, strategy=None)
    task = SimpleNamespace(config=SimpleNamespace(ema=0))
    with pytest.raises(UserError, match="strategy fsdp"):
        train(trainer, task, None, None, tmp_path)


@pytest.mark.filterwarnings("ignore")
def test_what_was_trained_in_shards_is_evaluated_and_saved_in_one_piece(tmp_path):
    task = fit(tmp_path)
    best = torch.load(Run(tmp_path).best, weights_only=True)["state_dict"]
    evaluator, copy = in_one_piece(task.trainer, task, best)
    assert copy is not task and all(torch.equal(value, best[name]) for name, value in copy.state_dict().items())
    assert evaluate(evaluator, copy, task.trainer.datamodule, "val").metrics["score"] == 0
