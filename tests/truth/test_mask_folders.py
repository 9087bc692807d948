"""Folders of images and masks as people call them, and what lies there and is not used."""

import unicodedata

import pytest

from longvision.data.sources.pairs import find_pairs
from longvision.errors import UserError
from support.trees import plant

FORMS = ("images", "NFC"), ("masks", "NFD")
# files -> how many images train, validate, test, and words that are told
READ = {
    "images/Train, masks/TRAIN": (
        ["images/Train/4", "masks/TRAIN/4", "images/Val/2", "masks/val/2", "images/Testing/1", "masks/Testing/1"],
        (4, 2, 1),
        [],
    ),
    "Train with Train_Masks (Carvana)": (["Train/4", "Train_Masks/4", "valid/2", "valid_masks/2"], (4, 2, None), []),
    "train with train_labels (CamVid's)": (
        ["train/4", "train_labels/4", "val/2", "val_labels/2", "test/1", "test_labels/1", "class_dict.csv"],
        (4, 2, 1),
        ["1 other file (class_dict.csv)"],
    ),
    "imagesTr, labelsTr (nnU-Net)": (["imagesTr/20", "labelsTr/20", "imagesTs/3"], (18, 2, None), ["imagesTs"]),
    "train2017 below images and annotations": (
        ["images/train2017/3", "annotations/train2017/3", "images/val2017/2", "annotations/val2017/2"],
        (3, 2, None),
        [],
    ),
    "Training/Images with Training/GT": (["Training/Images/20", "Training/GT/20"], (18, 2, None), []),
    "imgs with ground_truth": (["imgs/20", "ground_truth/20"], (18, 2, None), []),
    "dev validates": (["train/images/4", "train/masks/4", "dev/images/1", "dev/masks/1"], (4, 1, None), []),
    "masks without an image": (["images/20", "masks/20", "masks/stray.png"], (18, 2, None), ["1 mask", "stray.png"]),
    "text beside masks (YOLO's)": (["images/20", "masks/20", "labels/0.txt"], (18, 2, None), ["labels (1 file)"]),
    "JSON among the masks": (["images/20", "masks/20", "masks/0.json"], (18, 2, None), ["1 file of no image type"]),
    "img_dir/train with ann_dir/train (mmsegmentation)": (
        ["img_dir/train/4", "ann_dir/train/4", "img_dir/val/2", "ann_dir/val/2"],
        (4, 2, None),
        [],
    ),
    "JPEGImages with SegmentationClass (VOC's) without lists": (
        ["JPEGImages/20", "SegmentationClass/20", "SegmentationObject/3", "Annotations/0.xml"],
        (18, 2, None),
        ["SegmentationObject (3 images)", "Annotations (1 file)"],
    ),
    "a folder beside": (["images/20", "masks/20", "previews/3", "all.zip"], (18, 2, None), ["previews (3 images)"]),
    "loose images beside split folders": (
        ["images/train/4", "masks/train/4", "images/val/2", "masks/val/2", "images/x.png", "images/other/3"],
        (4, 2, None),
        ["1 image (x.png)", "other (3 images)"],
    ),
    "names composed and decomposed": (
        [f"{folder}/{name}.png" for folder, form in FORMS for name in ("dog", unicodedata.normalize(form, "café"))],
        (1, 1, None),
        [],
    ),
    "system files": (["images/20", "masks/20", "masks/Thumbs.db", "images/._0.png", "__MACOSX/2"], (18, 2, None), []),
}


@pytest.mark.parametrize(("files", "counts", "told"), READ.values(), ids=READ)
def test_what_is_found(tmp_path, files, counts, told):
    notes = []
    pairs, _ = find_pairs(plant(tmp_path, *files), 0, notes)
    assert tuple(len(pairs[split]) if split in pairs else None for split in ("train", "val", "test")) == counts
    assert all(mask for found in pairs.values() for _, mask in found)
    text = "\n".join(notes)
    assert [words for words in told if words not in text] == []
    assert bool(text) == bool(told), text


def test_lists_of_voc(tmp_path):
    """VOC2012 has 17,125 images and 2,913 masks: what trains and what validates is in its lists."""
    plant(tmp_path, "JPEGImages/20", "SegmentationClass/12", "Annotations/0.xml")
    lists = tmp_path / "ImageSets/Segmentation"
    lists.mkdir(parents=True)
    for name, rows in (("train", [0, 3, 5]), ("val", [1, 2]), ("trainval", [0, 1, 2, 3, 5]), ("test", [18, 19])):
        (lists / f"{name}.txt").write_text("".join(f"{row}\n" for row in rows))
    notes = []
    pairs, drawn = find_pairs(tmp_path, 0, notes)
    names = {split: [image.rpartition("/")[2] for image, _ in found] for split, found in pairs.items()}
    assert names == {"train": ["0.png", "3.png", "5.png"], "val": ["1.png", "2.png"]} and not drawn
    text = "\n".join(notes)
    assert "2 images" in text and "test.txt" in text and "7 masks" in text and "ImageSets (" not in text
    (lists / "val.txt").write_text("nowhere")
    with pytest.raises(UserError, match=r"val\.txt.*nowhere"):
        find_pairs(tmp_path, 0, [])


REFUSED = {
    "train and Train": (["images/train/3", "images/Train/3", "masks/train/3"], "Train and images/train"),
    "two folders of masks": (["images/3", "masks/3", "annotations/3"], "annotations and masks"),
    "no training images": (["images/val/3", "masks/val/3"], "no training images"),
    "a split inside the images": (["images/set/test/3", "images/3", "masks/3"], "test is called as a split"),
    "images of one name": (["images/a.png", "images/a.jpg", "masks/a.png"], "one name"),
    "JSON for masks (Supervisely)": (["img/3", "ann/0.png.json"], r"files of \.json"),
    "none of the layouts": (["photos/3", "other/3"], "only other, photos"),
    "train without masks": (["train/3", "val/3"], "no folder of masks"),
}


@pytest.mark.parametrize(("files", "words"), REFUSED.values(), ids=REFUSED)
def test_what_is_refused(tmp_path, files, words):
    with pytest.raises(UserError, match=words):
        find_pairs(plant(tmp_path, *files), 0, [])
