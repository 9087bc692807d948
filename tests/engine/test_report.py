"""A report whose stages fail one after the other: the model is never lost."""

import json
import signal

import pytest
import torch
from safetensors import safe_open

pytest.importorskip("lightning")
from longvision.data.config import DigitsData
from longvision.data.sources.base import Source
from longvision.engine import report
from longvision.engine import trainer as training
from longvision.engine.callbacks.checkpoints import RunCheckpoint
from longvision.engine.report import Outcome, read_checkpoint
from longvision.engine.run import Run
from longvision.errors import UserError
from longvision.tasks.classification import Classification
from longvision.tasks.config import ClassificationConfig
from longvision.types import CocoIds, DataInfo
from support.checkpoints import DAMAGES

QUICK = {
    "accelerator": "cpu", "max_epochs": 1, "limit_train_batches": 1, "limit_val_batches": 1, "limit_test_batches": 1,
}  # fmt: skip


@pytest.fixture
def run(tmp_path):
    run = Run.create(tmp_path, "x")
    run.new_config().write_text("{}")
    return run


@pytest.fixture
def undrawn(monkeypatch):
    """Charts are empty files: drawing takes longer than so short a run."""
    from matplotlib.figure import Figure

    monkeypatch.setattr(Figure, "savefig", lambda self, path, **_: path.touch())


def train(run, **options):
    data = DigitsData(size=16, workers=0, batch_size=8).build()
    config = ClassificationConfig(name="vim_nano_patch4_32", args={"depth": 1, "embed_dim": 16, "pad": True})
    return training.train(training.make_trainer({**QUICK, **options}), Classification(config, data.info), data, run)


def metadata(run):
    with safe_open(run.weights, "pt") as file:
        return json.loads(file.metadata()["longvision"])


def failing(error):
    def fail(*_, **__):
        raise error

    return fail


def test_what_a_run_leaves(run):
    outcome = train(run)
    assert metadata(run)["metrics"]["test/accuracy"] == outcome.metrics["accuracy"]
    assert sorted(outcome.artifacts) == ["confusion.png", "curves.png", "predictions.png", "report.html"]
    assert all((run.path / name).is_file() for name in outcome.artifacts) and not outcome.failed
    assert "test accuracy" in run.card.read_text() and str(outcome).startswith("test accuracy")


@pytest.mark.usefixtures("undrawn")
@pytest.mark.parametrize("error, caught", [(TypeError("a bug"), TypeError), (UserError("no images"), UserError)])
def test_weights_card_and_drawings_survive_an_evaluation_that_fails(run, monkeypatch, error, caught):
    monkeypatch.setattr(report, "evaluate", failing(error))
    with pytest.raises(caught) as failure:
        train(run)
    said = [str(failure.value), *getattr(failure.value, "__notes__", [])]
    assert any(str(run.weights) in line for line in said)  # nobody has to wonder whether it is lost
    assert "metrics" not in metadata(run) and "accuracy |" not in run.card.read_text()
    assert (run.path / "curves.png").is_file() and (run.path / "predictions.png").is_file()
    assert "not evaluated" in (run.path / "report.html").read_text()


@pytest.mark.usefixtures("undrawn")
def test_a_page_that_fails_takes_nothing_along(run, monkeypatch):
    monkeypatch.setattr(report, "write_page", failing(RuntimeError("no page")))
    with pytest.warns(UserWarning, match=r"report\.html.*no page"):
        outcome = train(run)
    assert outcome.failed == ["report.html"] and (run.path / "confusion.png").is_file() and metadata(run)["metrics"]


@pytest.mark.usefixtures("undrawn")
def test_weights_card_and_metrics_survive_drawings_that_fail(run, monkeypatch):
    monkeypatch.setattr(report, "draw_curves", failing(ImportError("no matplotlib")))
    with pytest.warns(UserWarning, match=r"curves\.png.*ImportError: no matplotlib"):
        outcome = train(run)
    assert outcome.failed == ["curves.png"]
    assert sorted(outcome.artifacts) == ["confusion.png", "predictions.png", "report.html"]  # each on its own
    assert metadata(run)["metrics"] and "test accuracy" in run.card.read_text()


@pytest.mark.usefixtures("undrawn")
def test_weights_survive_a_card_that_fails(run, monkeypatch):
    monkeypatch.setattr(report, "model_card", failing(RuntimeError("card")))
    with pytest.raises(RuntimeError, match="card"):
        train(run)
    assert metadata(run)["task"] == "classification"


@pytest.mark.usefixtures("undrawn")
@pytest.mark.parametrize("options", [{"limit_test_batches": 0}, {"limit_val_batches": 0, "limit_test_batches": 0}])
def test_without_an_evaluation_the_model_is_saved_all_the_same(run, options):
    outcome = train(run, **options)
    assert not outcome.metrics and "limit_test_batches" in str(outcome)
    assert run.card.is_file() and metadata(run)["classes"] == [str(n) for n in range(10)]
    assert (run.path / "curves.png").is_file() and (run.path / "predictions.png").is_file()


@pytest.mark.usefixtures("undrawn")
def test_ctrl_c_while_it_evaluates_is_an_interruption(run, monkeypatch):
    """Lightning would end the process."""
    monkeypatch.setattr(Classification, "test_step", failing(KeyboardInterrupt()))
    handler = signal.getsignal(signal.SIGINT)
    try:
        with pytest.raises(KeyboardInterrupt):
            train(run)
    finally:
        signal.signal(signal.SIGINT, handler)  # Lightning has it ignored
    assert metadata(run)["task"] == "classification" and run.card.is_file()


@pytest.mark.usefixtures("undrawn")
def test_where_nothing_validated_the_last_weights_are_taken_and_tested(run, recwarn):
    assert train(run, limit_val_batches=0).metrics["accuracy"] >= 0
    assert not [warning for warning in recwarn if "monitor" in str(warning.message)]  # nobody asked for a best epoch
    assert not run.best.exists() and "last step" in run.card.read_text()


@pytest.mark.usefixtures("undrawn")
@pytest.mark.parametrize("damage", ["cut", "a-bit-of-a-tensor"])
def test_a_damaged_best_epoch_is_not_taken(run, monkeypatch, damage):
    """Nor is it an error: the run has its last epoch."""
    save = RunCheckpoint._save_checkpoint

    def damaged(self, trainer, path):
        save(self, trainer, path)
        if path == str(run.best):
            DAMAGES[damage](run.best)

    monkeypatch.setattr(RunCheckpoint, "_save_checkpoint", damaged)
    with pytest.warns(UserWarning, match=r"best\.ckpt.*damaged"):
        assert train(run).epoch == "last"
    assert "last step" in run.card.read_text()
    last = read_checkpoint(run.last)
    with safe_open(run.weights, "pt") as file:
        assert all(torch.equal(file.get_tensor(name), last[f"model.{name}"]) for name in file.keys())  # noqa: SIM118


def test_an_outcome_in_words():
    outcome = Outcome("val", {"miou": 0.25, "loss": 3.0}, {"miou": "mIoU"})
    assert str(outcome).startswith("validation mIoU 25.0 % (")


def test_a_sharded_checkpoint_is_read_as_a_file_is(tmp_path):
    """FSDP writes a folder."""
    from torch.distributed import checkpoint

    state = {"head.weight": torch.randn(3, 4), "head.bias": torch.randn(3)}
    torch.save({"state_dict": state}, tmp_path / "best.ckpt")
    checkpoint.save({"model": state}, checkpoint_id=tmp_path / "folder.ckpt", no_dist=True)
    for name in ("best.ckpt", "folder.ckpt"):
        found = read_checkpoint(tmp_path / name)
        assert found.keys() == state.keys() and all(torch.equal(found[key], state[key]) for key in state)


def test_the_timm_program_of_a_card_is_python(run):
    """Arguments that JSON writes otherwise: true, null."""
    info = DataInfo("set", ["a", "b"], (16, 16), 1)
    args = {"depth": 1, "embed_dim": 16, "pad": True, "drop_rate": 0.0, "pool": "mean"}
    task = Classification(ClassificationConfig(name="vim_nano_patch4_32", args=args), info)
    data = DigitsData(size=16, workers=0).build()
    text = report.model_card(task, data, run, {})
    assert "not evaluated" in text
    program = text.split("```python\n")[1].split("```")[0].split("model = ", 1)[1]
    called = {}
    timm = type("timm", (), {"create_model": lambda name, **words: called.update(words) or task.model})
    eval(program, {"timm": timm, "dict": dict})
    assert {name: called[name] for name in args} == args


@pytest.mark.usefixtures("undrawn")
def test_weights_hold_no_names_of_images(run, monkeypatch):
    """With a large set's the header is too large to be written, and where weights go, training images are not named."""
    ids = CocoIds(list(range(10)), {"train/private.png": 5})
    monkeypatch.setattr(Source, "coco_ids", ids)
    train(run)
    assert metadata(run)["coco_ids"] == {"categories": list(range(10))}
    assert b"private" not in run.weights.read_bytes() and "private" not in run.card.read_text()
    assert json.loads((run.path / "coco-ids.json").read_text()) == ids.images
