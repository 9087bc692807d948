"""What a DETR's queries and attention are drawn from: the right query, the right cell, the right pixels."""

import csv
import json

import numpy as np
import pytest
import torch
from PIL import Image

pytest.importorskip("transformers")
from longvision.errors import UserError
from longvision.explain.decoder_attention import explain_decoder
from longvision.explain.detr import Cells, decoded
from longvision.explain.encoder_attention import explain_encoder
from longvision.explain.queries import explain_queries, spread
from longvision.inference.predictor import Predictor
from longvision.viz.attention import glow
from longvision.viz.charts import box_kinds
from support.trained import CLASSES, write_model

PREPROCESS = {"size": (64, 64), "channels": 3, "resize": "fit"}


@pytest.fixture(scope="module")
def predictor(tmp_path_factory):
    path = tmp_path_factory.mktemp("run") / "model.safetensors"
    write_model("detr", path, preprocess=PREPROCESS)
    return Predictor(path, "cpu")


@pytest.fixture
def image(tmp_path):
    """128x80 pixels, which the model sees as 64x40: 4 by 3 cells of 32 pixels, the lowest of which stand out."""
    path = tmp_path / "some image.png"
    Image.effect_noise((128, 80), 90).convert("RGB").save(path)
    return path


def written(finding, folder):
    for name, write in finding.files.items():
        write(folder / name)
    return sorted(finding.files)


@pytest.mark.parametrize(
    "x, y, cell", [(0, 0, (0, 0)), (31.9, 31.9, (0, 0)), (32, 0, (0, 1)), (159, 99, (3, 4)), (70, 95.5, (2, 2))]
)
def test_the_cell_of_a_pixel(x, y, cell):
    cells = Cells(image=(100, 160), input=(50, 80), stride=16)
    assert (cells.grid, cells.size) == ((4, 5), (32, 32))
    assert cells.at(x, y) == cell


def test_cells_are_as_wide_and_high_as_their_image_was_shrunk():
    cells = Cells(image=(90, 400), input=(30, 100), stride=32)
    assert cells.size == (96, 128) and cells.grid == (1, 4)
    assert cells.at(399, 89) == (0, 3)


@pytest.mark.parametrize("x, y", [(128, 0), (0, 80), (5000, 5000)])
def test_a_point_outside_of_the_image_is_told(predictor, image, x, y):
    with pytest.raises(UserError, match=rf"--point {x},{y}.*128x80.*127.*79"):
        next(explain_encoder(predictor, [image], (x, y)))


def test_a_score_is_a_share(predictor, image):
    with pytest.raises(UserError, match=r"--score 1\.5"):
        next(explain_decoder(predictor, [image], 1.5))


def peaked(rows, columns, place):
    """A map of attention (1, 8 heads, rows of queries, cells) that is all on one cell for each query."""
    map_1HQM = torch.full((1, 8, len(place), rows * columns), 0.001)
    for query, (row, column) in enumerate(place):
        map_1HQM[:, :, query, row * columns + column] = 1
    return map_1HQM


@pytest.mark.parametrize("point, cell", [((70, 40), (1, 2)), ((127, 79), (2, 3))])
def test_the_encoder_s_map_is_that_of_the_point_and_lies_where_it_attends(predictor, image, tmp_path, point, cell):
    """Cell n attends to the n-th from the end."""
    places = [divmod(11 - n, 4) for n in range(12)]
    attention = predictor.model.model.model.encoder.layers[-1].self_attn
    hook = attention.register_forward_hook(lambda _, __, out: (out[0], peaked(3, 4, places)))
    try:
        (finding,) = explain_encoder(predictor, [image], point)
    finally:
        hook.remove()
    assert written(finding, tmp_path) == ["001-some image-encoder.json", "001-some image-encoder.png"]
    found = json.loads((tmp_path / "001-some image-encoder.json").read_text())
    assert (found["point"], found["cell"], found["cell_size"]) == (list(point), list(cell), [32, 32])
    map_hw = np.array(found["attention"])
    assert np.unravel_index(map_hw.argmax(), map_hw.shape) == (2 - cell[0], 3 - cell[1])


def test_each_object_has_its_own_query_s_map_and_box(predictor, image, tmp_path):
    places = [(0, 0), (1, 1), (2, 2), (2, 3), (0, 3)]
    attention = predictor.model.model.model.decoder.layers[-1].encoder_attn
    hook = attention.register_forward_hook(lambda _, __, out: (out[0], peaked(3, 4, places)))
    try:
        (finding,) = explain_decoder(predictor, [image], 0.0)
        (surest,) = explain_decoder(predictor, [image], 1.0)
    finally:
        hook.remove()
    written(finding, tmp_path)
    objects = json.loads((tmp_path / "001-some image-decoder.json").read_text())["objects"]
    result = predictor(image)
    assert [one["class"] for one in objects] == [CLASSES[k] for k in result.detections.labels]
    np.testing.assert_allclose([one["score"] for one in objects], result.detections.scores, atol=1e-4)
    np.testing.assert_allclose([one["box"] for one in objects], result.detections.boxes, atol=0.06)
    for one in objects:
        map_hw = np.array(one["attention"])
        assert np.unravel_index(map_hw.argmax(), map_hw.shape) == places[one["query"]]
    assert "no object" in surest.sentence and "surest" in surest.sentence
    assert written(surest, tmp_path)


def test_attention_sums_to_one_and_the_model_is_left_as_it_was(predictor, image):
    before = predictor(image).detections.scores
    config = predictor.model.model.config
    was = config._attn_implementation
    attention = predictor.model.model.model.decoder.layers[-1].encoder_attn
    hooks = len(attention._forward_hooks)  # transformers has one of its own
    found = decoded(predictor, image, attention)
    assert found.kept.shape == (1, 8, 5, 12)
    torch.testing.assert_close(found.kept.sum(-1), torch.ones(1, 8, 5))
    assert config._attn_implementation == was and len(attention._forward_hooks) == hooks
    np.testing.assert_array_equal(predictor(image).detections.scores, before)


def test_queries_keep_their_numbers(predictor, image, tmp_path):
    (finding,) = explain_queries(predictor, [image, image])
    assert "2 images" in finding.sentence
    written(finding, tmp_path)
    with (tmp_path / "queries.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [int(row["query"]) for row in rows] == [*range(5)] * 2
    logits, boxes = predictor.model.decode([predictor.description.input.evaluated(Image.open(image))])
    expected = boxes[-1, 0].detach().numpy()
    got = [[float(row[name]) for name in ("x", "y", "width", "height")] for row in rows[:5]]
    np.testing.assert_allclose(got, expected, atol=1e-4)
    best = logits[-1, 0].softmax(-1)[:, :-1].argmax(-1)
    assert [row["class"] for row in rows[:5]] == [CLASSES[k] for k in best]
    assert "over 2 images" in finding.sentence and "0.000 sides" in finding.sentence  # twice the same image
    with Image.open(tmp_path / "queries.png") as drawn:
        assert drawn.width > drawn.height / 2


def test_how_far_the_boxes_of_a_query_spread():
    centres = np.array([[[0.2, 0.5], [0.8, 0.5]], [[0.4, 0.5], [0.8, 0.5]]])
    within, between = spread(centres)
    assert within == pytest.approx(0.1 / 2**0.5) and between == pytest.approx(0.25)


def test_boxes_are_wide_or_high_in_pixels():
    boxes = np.array([[[0.5, 0.5, 0.4, 0.5], [0.5, 0.5, 0.1, 0.1]]] * 2)
    assert box_kinds(boxes, np.array([[100, 200], [200, 100]])).tolist() == [["wide", "small"], ["tall", "small"]]


@pytest.mark.parametrize("row, column", [(0, 0), (1, 3), (2, 1), (3, 2)])
def test_the_glow_lies_on_its_cell(row, column):
    """The lowest cells show only their upper 4 pixels, the last ones 22 of 32."""
    map_hw = np.zeros((4, 5), np.float32)
    map_hw[row, column] = 1
    glowing = np.asarray(glow(Image.new("RGB", (150, 100)), map_hw, (32, 32)).convert("L"), float)
    assert glowing.shape == (100, 150)
    y, x = np.argwhere(glowing == glowing.max()).mean(0)
    assert 32 * row <= y < 32 * row + 32 and 32 * column <= x < 32 * column + 32
    if 0 < row < 3:  # inside, the middle of the cell is the brightest
        assert abs(y - 32 * row - 15.5) < 2 and abs(x - 32 * column - 15.5) < 2


@pytest.mark.parametrize(
    "words, files",
    [
        (["queries"], ["queries.csv", "queries.png"]),
        (["decoder-attention", "--score", "0.1"], ["001-some image-decoder.json", "001-some image-decoder.png"]),
        (["encoder-attention", "--point", "3,79.5"], ["001-some image-encoder.json", "001-some image-encoder.png"]),
    ],
)
def test_the_command(capsys, tmp_path, predictor, image, words, files):
    from longvision_cli.main import main

    run = predictor.description.source
    assert main(["explain", run, str(image), "--out", str(tmp_path / "out"), "--method", *words]) == 0
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == files
    sentence, folder = capsys.readouterr().out.splitlines()
    assert sentence and folder == str(tmp_path / "out")
    with Image.open(tmp_path / "out" / files[1]) as drawn:
        assert min(drawn.size) > 200


@pytest.mark.parametrize("method", ["queries", "decoder-attention", "encoder-attention"])
def test_a_model_that_is_no_detr_is_told(capsys, tmp_path, method, image):
    pytest.importorskip("lightning")
    from longvision_cli.main import main

    assert main(["explain", "vit_nano_patch4_32", str(image), "--method", method, "--out", str(tmp_path / "x")]) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1 and "detr" in err and "classification" in err
    assert not (tmp_path / "x").exists()


def test_a_missing_point_is_told_before_the_model_is_loaded(capsys, tmp_path, monkeypatch, predictor, image):
    from longvision_cli.main import main

    monkeypatch.setattr("longvision.inference.predictor.Predictor", None)
    words = [predictor.description.source, str(image), "--method", "encoder-attention", "--out", str(tmp_path / "x")]
    assert main(["explain", *words]) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1 and "--point X,Y" in err


@pytest.mark.parametrize("point", ["5", "5,", "a,b", "5;6"])
def test_what_is_no_point_is_told(capsys, tmp_path, image, point):
    from longvision_cli.main import main

    assert main(["explain", "x", str(image), "--method", "encoder-attention", "--point", point]) == 2
    err = capsys.readouterr().err
    assert repr(point) in err and "X,Y" in err
