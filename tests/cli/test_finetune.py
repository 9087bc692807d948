"""`--model.finetune`: trained from a run's weights, gone on with, validated, and read by prediction."""

import json

import pytest
import torch

from longvision.data.sources.digits import DigitsSource
from longvision.inference import Predictor
from longvision.models.weights.files import read_weights

SGD = "--model.optimizer", "sgd", "--model.lr", 0.1, "--model.drop_path", 0


@pytest.fixture(scope="module")
def tuned(train, digits_run, tmp_path_factory):
    """way -> a run that was trained so, an epoch of two steps; called once for each."""
    runs = {}

    def of(way):
        if way not in runs:
            words = *SGD, "--model.finetune", way, "--trainer.max_epochs", 1, "--runs", tmp_path_factory.mktemp("tuned")
            answer = train("--model.pretrained", digits_run / "model.safetensors", *words)
            assert (answer.code, answer.err) == (0, ""), answer
            runs[way] = answer
        return runs[way]

    return of


HEAD = 32 * 10 + 10
TRAINED = {
    "head": HEAD,
    "class_token": HEAD + 32,
    "memory": HEAD + 32 + 5 * 32,
    "memory_mask": HEAD + 32 + 5 * 32,
}
slow = pytest.mark.slow


@pytest.mark.parametrize(
    "way", [pytest.param("head", marks=slow), pytest.param("class_token", marks=slow), "memory", "memory_mask"]
)
def test_only_its_share_is_trained(tuned, digits_run, way):
    answer = tuned(way)
    assert f"({TRAINED[way]:,} of them trained)" in answer.out.splitlines()[0]
    before, _ = read_weights(digits_run / "model.safetensors")
    after, metadata = read_weights(answer.run / "model.safetensors")
    base = "base." if way == "memory_mask" else ""
    changed = {name for name in before if base + name in after and not torch.equal(before[name], after[base + name])}
    changes = {"head.weight", "head.bias", *(["cls_token"] if way != "head" else [])}
    assert changed == (set() if way == "memory_mask" else changes)
    assert ("head" in metadata) == way.startswith("memory")


@pytest.mark.parametrize("way", ["memory", "memory_mask"])
def test_its_model_is_read_again(longvision, tuned, tmp_path, way):
    run = tuned(way).run
    image, _ = DigitsSource().split("test")[0]
    image.save(tmp_path / "digit.png")
    result = Predictor(run)(tmp_path / "digit.png")
    (row,) = json.loads(longvision("predict", run, tmp_path / "digit.png", "--json").out)
    assert [best["probability"] for best in row["top"]] == pytest.approx([share for _, share in result.top()], abs=1e-6)
    measured = read_weights(run / "model.safetensors")[1]["metrics"]["test/accuracy"]
    answer = longvision("validate", run, "--split", "test", "--trainer.accelerator", "cpu")
    assert f"{100 * measured:.1f} %" in answer.out, answer
    card = (run / "README.md").read_text()
    assert "longvision predict" in card and "timm.create_model" not in card


@pytest.mark.parametrize("way", ["memory", pytest.param("memory_mask", marks=slow)])
def test_it_takes_images_of_every_size_one_by_one(longvision, tuned, way):
    answer = longvision("validate", tuned(way).run, "--tokens", "16", "--out", "curve", "--trainer.accelerator", "cpu")
    assert answer.code == 0 and "    16 tokens  accuracy " in answer.out, answer


@pytest.mark.parametrize("way", ["memory", pytest.param("memory_mask", marks=slow)])
def test_it_goes_on(longvision, train, digits_run, stop, tmp_path, way):
    """Without the weights that it began with."""
    weights = tmp_path / "base.safetensors"
    weights.write_bytes((digits_run / "model.safetensors").read_bytes())
    words = "--model.pretrained", weights, *SGD, "--model.finetune", way, "--runs", tmp_path / "runs"
    assert stop(3, lambda: train(*words)).code == 130
    weights.unlink()
    (run,) = (tmp_path / "runs").iterdir()
    answer = longvision("train", "--resume", run)
    assert answer.code == 0 and (run / "model.safetensors").exists(), answer


@pytest.mark.parametrize(
    "words, named",
    [
        (("--model.finetune", "head", "--model.drop_path", 0), "--model.pretrained"),
        (("--model.finetune", "memory"), "--model.drop_path is 0.1"),
        (("--model.finetune", "memory", "--model.drop_path", 0, "--model.memory", 0), "--model.memory is 0"),
        (("--model.finetune", "most"), "memory_mask"),
    ],
)
def test_mistakes_are_told_before_torch_is_loaded(fresh, words, named):
    code, modules, err = fresh(["train", *words])
    assert code == 2 and named in err and "torch" not in modules, err


def test_a_model_with_memory_is_no_base(train, tuned):
    weights = tuned("memory_mask").run / "model.safetensors"
    answer = train("--model.pretrained", weights, *SGD, "--model.finetune", "head")
    assert answer.code == 2 and "is a model with memory" in answer.err
