"""Run folders."""

import datetime
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import pytest

from longvision.engine import run as runs
from longvision.engine.run import Run
from longvision.errors import UserError
from longvision.files import find_weights
from support.checkpoints import DAMAGES, save


def test_folders_of_the_same_second_get_numbers(tmp_path, monkeypatch):
    now = datetime.datetime(2026, 3, 4, 5, 6, 7)
    monkeypatch.setattr(runs.datetime, "datetime", SimpleNamespace(now=lambda: now))
    names = [Run.create(tmp_path / "new", "digits-vim").path.name for _ in range(3)]
    assert names == [f"digits-vim-20260304-050607{end}" for end in ("", "-2", "-3")]


def test_no_two_processes_share_a_folder(tmp_path):
    with ThreadPoolExecutor(8) as pool:
        paths = list(pool.map(lambda _: Run.create(tmp_path, "x").path, range(24)))
    assert len(set(paths)) == 24


def test_a_root_that_is_a_file(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(ValueError, match="is a file"):
        Run.create(tmp_path / "file", "x")
    assert (tmp_path / "file").read_text() == "x"


def test_configurations_are_numbered(tmp_path):
    run = Run.create(tmp_path, "x")
    for number in range(3):
        run.new_config().write_text(str(number))
    assert [path.name for path in run.configs()] == ["config.yaml", "config-resumed-1.yaml", "config-resumed-2.yaml"]
    assert [path.read_text() for path in run.configs()] == ["0", "1", "2"]


def test_the_last_configuration_is_the_last_after_ten_too(tmp_path):
    run = Run.create(tmp_path, "x")
    for number in range(12):
        run.new_config().write_text(str(number))
    assert run.configs()[-1].read_text() == "11"


def test_an_unused_folder_goes_and_a_used_one_stays(tmp_path):
    unused, with_metrics, with_checkpoints = (Run.create(tmp_path, "x") for _ in range(3))
    unused.new_config().write_text("x")
    with_metrics.metrics.write_text("epoch\n")
    with_checkpoints.checkpoints.mkdir()
    assert [run.discard_if_unused() for run in (unused, with_metrics, with_checkpoints)] == [True, False, False]
    assert [run.path.exists() for run in (unused, with_metrics, with_checkpoints)] == [False, True, True]


def test_what_can_be_opened_resumed_and_predicted_with(tmp_path):
    with pytest.raises(FileNotFoundError, match="does not exist"):
        Run.open(tmp_path / "no")
    run = Run.create(tmp_path, "x")
    with pytest.raises(ValueError, match=r"not a run folder, it has no config\.yaml"):
        Run.open(run.path)
    run.new_config().write_text("x")
    assert Run.open(str(run.path)).path == run.path
    assert run.resume_from()[0] is None
    run.checkpoints.mkdir()
    save(run.last)
    assert run.resume_from() == (run.last, [])
    with pytest.raises(ValueError, match="not finished"):
        find_weights(run.path)
    run.weights.touch()
    assert find_weights(run.path) == run.weights
    assert run.is_finished()
    run.unreported.touch()
    assert not run.is_finished()


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_the_newest_whole_checkpoint_is_taken_and_the_others_are_told(tmp_path, damage):
    run = Run.create(tmp_path, "x")
    run.new_config().write_text("x")
    files = [save(path) for path in (run.last, run.previous, run.best)]
    assert run.resume_from() == (run.last, [])
    for number, file in enumerate(files[:2]):
        damage(file)
        taken, (told,) = run.resume_from()
        assert taken == files[number + 1]
        assert all(str(damaged) in told for damaged in files[: number + 1]) and str(taken) in told
    damage(run.best)
    with pytest.raises(UserError, match=r"last\.ckpt.*previous\.ckpt.*best\.ckpt.*no other checkpoint.*config\.yaml"):
        run.resume_from()


def test_a_kill_between_the_two_renames_leaves_the_one_before(tmp_path):
    run = Run.create(tmp_path, "x")
    save(run.previous)
    assert run.resume_from() == (run.previous, [])


def test_whose_weights_a_file_holds(tmp_path):
    run = Run.create(tmp_path / "runs", "x")
    assert Run.of_weights(run.weights) is None
    run.new_config().write_text("x")
    run.metrics.write_text("epoch")
    (tmp_path / "link").symlink_to(run.weights)
    assert [Run.of_weights(file).path for file in (run.weights, tmp_path / "link")] == [run.path] * 2
    assert Run.of_weights(tmp_path / "model.safetensors") is None


def test_the_best_epoch_is_read_once(tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(runs, "is_whole", lambda path: not asked.append(path))
    run = Run(tmp_path)
    assert run.has_best and run.has_best and asked == [run.best]
