"""Loss and metrics against numbers worked out by hand."""

import math
from types import SimpleNamespace

import pytest
import torch

pytest.importorskip("lightning")
from longvision.errors import UserError
from longvision.tasks.classification import Classification
from longvision.tasks.config import ClassificationConfig
from longvision.types import DataInfo, PackedImages

LOG2, LOG4 = math.log(2), math.log(4)


def make(classes=3, channels=3, **options):
    config = ClassificationConfig(**{"name": "vim_nano_patch4_32", "args": {"depth": 1, "embed_dim": 16}, **options})
    task = Classification(config, DataInfo("set", [f"c{i}" for i in range(classes)], (8, 8), channels))
    task.log_dict = task.log = lambda *_, **__: None
    task._trainer = SimpleNamespace(global_step=7)
    return task


def answering(task, logits, monkeypatch):
    monkeypatch.setattr(task, "forward", lambda images: torch.tensor(logits))
    return task


IMAGES = torch.zeros(2, 3, 8, 8)


def test_cross_entropy(monkeypatch):
    task = answering(make(2), [[0.0, 0.0], [math.log(3), 0.0]], monkeypatch)
    loss = task.training_step((IMAGES, torch.tensor([0, 0])), 0)
    assert float(loss) == pytest.approx((LOG2 + math.log(4 / 3)) / 2)


def test_label_smoothing(monkeypatch):
    """With s = 0.3 over 2 classes the target is 0.85 and 0.15."""
    task = answering(make(2, label_smoothing=0.3), [[math.log(3), 0.0]], monkeypatch)
    loss = task.training_step((IMAGES[:1], torch.tensor([0])), 0)
    assert float(loss) == pytest.approx(-0.85 * math.log(3 / 4) - 0.15 * math.log(1 / 4))


def test_soft_targets(monkeypatch):
    task = answering(make(2), [[math.log(3), 0.0]], monkeypatch)
    loss = task.training_step((IMAGES[:1], torch.tensor([[0.25, 0.75]])), 0)
    assert float(loss) == pytest.approx(-0.25 * math.log(3 / 4) - 0.75 * math.log(1 / 4))


def test_the_training_accuracy_of_soft_targets_counts_the_larger_share(monkeypatch):
    task = answering(make(2), [[1.0, 0.0], [1.0, 0.0]], monkeypatch)
    logged = {}
    task.log = lambda name, value, **_: logged.update({name: value})
    task.training_step((IMAGES, torch.tensor([[0.6, 0.4], [0.3, 0.7]])), 0)
    assert float(logged["train/accuracy"]) == 0.5


def test_accuracy_and_confusion_by_hand(monkeypatch):
    task = make(3)
    logged = {}
    task.log = lambda name, value, **_: logged.setdefault(name, []).append(float(value))
    #            predicted:  0                1                1                2
    for logits, labels in [([[2.0, 1, 0], [0, 2.0, 1]], [0, 0]), ([[0, 2.0, 1], [0, 1, 2.0]], [1, 1])]:
        answering(task, logits, monkeypatch).validation_step((IMAGES, torch.tensor(labels)), 0)
    assert float(task.val_metrics.compute()["val/accuracy"]) == 0.5
    assert task.counts.compute().tolist() == [[1, 1, 0], [0, 1, 1], [0, 0, 0]]
    e = math.e
    right, second, total = e**2, e, e**2 + e + 1
    assert logged["val/loss"][0] == pytest.approx((-math.log(right / total) - math.log(1 / total)) / 2)
    assert logged["val/loss"][1] == pytest.approx((-math.log(right / total) - math.log(second / total)) / 2)
    task.on_validation_epoch_start()
    assert task.counts.compute().sum() == 0


def test_top5(monkeypatch):
    task = make(7)
    ranked = torch.arange(7.0).flip(0).expand(2, 7).tolist()  # class 0 first, 6 last
    answering(task, ranked, monkeypatch).test_step((IMAGES, torch.tensor([4, 5])), 0)
    metrics = {name: float(value) for name, value in task.test_metrics.compute().items()}
    assert math.isnan(metrics.pop("test/auroc"))  # some classes do not occur
    assert metrics == {"test/accuracy": 0.0, "test/top5": 0.5}
    assert set(make(5).test_metrics.keys()) == {"test/accuracy", "test/auroc"}


def test_balanced_accuracy_and_auroc_are_logged(monkeypatch):
    task = answering(make(2), [[2.0, 0], [1, 0], [0, 1], [0, 1]], monkeypatch)
    logged = {}
    task.log = lambda name, value, **_: logged.update({name: float(value)})
    task.validation_step((torch.zeros(4, 3, 8, 8), torch.tensor([0, 0, 0, 1])), 0)
    task.on_validation_epoch_end()
    assert logged["val/balanced_accuracy"] == pytest.approx((2 / 3 + 1) / 2)
    assert float(task.val_metrics.compute()["val/auroc"]) == pytest.approx(2.5 / 3)  # a tie counts half


def test_mistakes_are_known_by_their_rows_where_images_were_skipped(monkeypatch):
    """Of batches [0, 1, 2] and [3, 4] image 1 could not be read; 0 is right, the others are taken for class 0."""
    task = make(2)
    dataset = SimpleNamespace(unreadable_N=torch.tensor([False, True, False, False, False]))
    loader = SimpleNamespace(dataset=dataset, batch_sampler=[[0, 1, 2], [3, 4]])
    task._trainer = SimpleNamespace(test_dataloaders=loader)
    task.on_test_epoch_start()
    for index, (logits, labels) in enumerate([([[1.0, 0], [1, 0]], [0, 1]), ([[3, 0.0], [2, 0]], [1, 1])]):
        answering(task, logits, monkeypatch).test_step((torch.zeros(2, 3, 8, 8), torch.tensor(labels)), index)
    task.on_test_epoch_end()
    assert task.mistakes == [3, 4, 2]
    task._batches = [[0, 1]]  # another number of images: which they are is not certain
    task.worst.reset()
    answering(task, [[1.0, 0]] * 3, monkeypatch).test_step((torch.zeros(3, 3, 8, 8), torch.ones(3).long()), 0)
    task.on_test_epoch_end()
    assert task.mistakes == []


def test_the_metric_of_the_best_epoch():
    assert make(3).monitor() == "val/accuracy"
    task = make(3, monitor="balanced_accuracy")
    assert task.monitor() == "val/balanced_accuracy" and set(task.metric_names) == set(make(3).metric_names)
    assert make(1000, monitor="auroc").monitor() == "val/auroc"
    with pytest.raises(UserError, match=r"auroc.*1001"):
        make(1001, monitor="auroc")


@pytest.mark.parametrize("smoothing", [0.0, 0.3])
def test_training_and_validation_log_the_same_loss(monkeypatch, smoothing):
    """What is learned may be smoothed; what is compared in curves.png is not."""
    task = answering(make(2, label_smoothing=smoothing), [[math.log(3), 0.0]], monkeypatch)
    logged = {}
    task.log = lambda name, value, **_: logged.update({name: float(value)})
    task.training_step((IMAGES[:1], torch.tensor([0])), 0)
    task.validation_step((IMAGES[:1], torch.tensor([0])), 0)
    assert logged["train/loss"] == logged["train/loss_step"] == logged["val/loss"] == pytest.approx(math.log(4 / 3))


def test_a_model_without_activation_checkpointing_is_refused():
    make(checkpoint=True)
    with pytest.raises(UserError, match="VGG"), torch.device("meta"):
        make(name="vgg11", args=None, checkpoint=True)


def test_arguments_reach_the_model():
    args = {"depth": 2, "embed_dim": 16}
    task = make(4, args=args, drop_path=0.3, checkpoint=True, channels=1)
    assert task.args == args  # what rebuilds the model for prediction; drop path belongs to training
    assert task.model.layers[1].drop_path.drop_prob == 0.3
    assert task.model.grad_checkpointing
    assert (task.model.in_chans, task.model.num_classes, task.model.grid) == (1, 4, (2, 2))
    assert task(torch.zeros(2, 1, 8, 8)).shape == (2, 4)


def test_the_caller_s_arguments_stay_as_they_are():
    args = {"depth": 1, "embed_dim": 16}
    make(args=args, drop_path=0.3)
    assert args == {"depth": 1, "embed_dim": 16}


def make_multilabel(**options):
    config = ClassificationConfig(**{"name": "vim_nano_patch4_32", "args": {"depth": 1, "embed_dim": 16}, **options})
    task = Classification(config, DataInfo("set", ["cat", "dog"], (8, 8), 3, multilabel=True))
    task.log_dict = task.log = lambda *_, **__: None
    task._trainer = SimpleNamespace(global_step=7)
    return task


LOG3 = math.log(3)  # a sigmoid of 3/4


def test_several_labels_have_a_binary_cross_entropy_each(monkeypatch):
    task = answering(make_multilabel(label_smoothing=0.5), [[LOG3, 0.0], [-LOG3, LOG3]], monkeypatch)
    batch = IMAGES, torch.tensor([[1.0, 0.0], [1.0, 1.0]])
    logged = {}
    task.log = lambda name, value, **_: logged.update({name: float(value)})
    right, wrong = -math.log(3 / 4), -math.log(1 / 4)
    smooth = (0.75 * right + 0.25 * wrong + LOG2 + 0.25 * right + 0.75 * wrong + 0.75 * right + 0.25 * wrong) / 4
    assert float(task.training_step(batch, 0)) == pytest.approx(smooth)
    task.validation_step(batch, 0)
    assert logged["train/loss"] == logged["val/loss"] == pytest.approx((right + LOG2 + wrong + right) / 4)


def test_several_labels_are_measured_and_described(monkeypatch):
    task = answering(make_multilabel(), [[LOG3, -1.0], [-1.0, LOG3]], monkeypatch)
    logged = {}
    task.log = lambda name, value, **_: logged.update({name: float(value)})
    task.validation_step((IMAGES, torch.tensor([[1.0, 0.0], [1.0, 1.0]])), 0)
    task.on_validation_epoch_end()
    assert logged["val/f1"] == pytest.approx((2 / 3 + 1) / 2)
    assert task.monitor() == "val/map" and task.describe() == {"multilabel": True} and make().describe() == {}
    assert float(task.val_metrics.compute()["val/map"]) == 1
    answer = task.kind.answer(torch.tensor([LOG3, -LOG3]), [1.0, 1.0], ["cat", "dog"])
    assert (answer.says, answer.truth, answer.right) == ("cat (75 %)", "cat (75 %), dog (25 %)", False)
    assert task.kind.answer(torch.tensor([-LOG3, -LOG3]), [0.0, 0.0], ["cat", "dog"]).says == "nothing"
    with pytest.raises(UserError, match=r"accuracy.*map, f1, auroc"):
        make_multilabel(monitor="accuracy")
    with pytest.raises(UserError, match=r"map.*accuracy"):
        make(monitor="map")


def test_packs_of_two_devices_weigh_their_images_alike():
    """The mean of both devices' gradients is that of all their images in one batch, however many each pack holds."""
    torch.manual_seed(0)
    images = [torch.randn(3, 4 * rows, 8) for rows in (1, 2, 3, 2, 1)]
    labels_B = torch.tensor([0, 1, 2, 1, 0])
    task, gradients = make(3), []
    for some, devices in ((slice(0, 5), 1), (slice(0, 2), 2), (slice(2, 5), 2)):
        mean = SimpleNamespace(reduce=lambda count, reduce_op: torch.tensor(2.5))  # images a device
        task._trainer = SimpleNamespace(global_step=0, world_size=devices, strategy=mean)
        loss = task.training_step((PackedImages.from_images(images[some], 4), labels_B[some]), 0)
        gradients.append(torch.autograd.grad(loss, task.model.head.weight)[0])
    torch.testing.assert_close((gradients[1] + gradients[2]) / 2, gradients[0])
