"""timm's ViT, its hybrid and DeiT under the documented commands."""

import pytest
from PIL import Image

WORDS = """
    --model.optimizer sgd --data.size 64 --data.workers 0 --data.batch_size 8 --trainer.max_epochs 1
    --trainer.limit_train_batches 1 --trainer.limit_val_batches 1 --trainer.limit_test_batches 1
    --trainer.accelerator cpu --model.args
""".split()  # noqa: SIM905 the words as they are typed
ARGS = "{depth: 1, embed_dim: 32, num_heads: 2, weight_init: jax}"


@pytest.mark.slow
@pytest.mark.parametrize("name", ["vit_base_patch16_224.orig_in21k", "vit_tiny_r_s16_p8_224", "deit_tiny_patch16_224"])
def test_it_trains_validates_predicts_and_is_measured(longvision, name):
    trained = longvision("train", "--model.name", name, *WORDS, ARGS)
    assert trained.code == 0, trained.err
    assert longvision("validate", trained.run).code == 0
    Image.new("L", (40, 30), 99).save("grey.png")
    predicted = longvision("predict", trained.run, "grey.png")
    assert predicted.code == 0 and "grey.png" in predicted.out, predicted.err
    measured = longvision("benchmark", "models", "--models", name, "--sizes", "64", "--budget", "1")
    assert measured.code == 0 and name in measured.out, measured.err
