"""Parquet files of grey images, as the `datasets` library stores them or as plain binary: each shows a shade by which a
test tells it from the others."""

import io
import json

import pyarrow as pa
from PIL import Image

STRUCT = pa.struct([("bytes", pa.binary()), ("path", pa.string())])


def png(shade):
    buffer = io.BytesIO()
    Image.new("L", (4, 4), shade).save(buffer, "PNG")
    return buffer.getvalue()


def shard(labels, names=None, kind=None, image=STRUCT, meta=None, first=0, columns=("image", "label")):
    """A table of images, shades from `first` on, with these labels. `names` of classes are stored as `datasets` does,
    else `meta` in their place."""
    labels = labels if isinstance(labels, pa.Array) else pa.array(labels, kind)
    contents = [png(first + row) for row in range(len(labels))]
    images = [{"bytes": one, "path": None} for one in contents] if pa.types.is_struct(image) else contents
    table = pa.table(dict(zip(columns, (pa.array(images, image), labels), strict=True)))
    if names is not None:
        features = {"image": {"_type": "Image"}, "label": {"names": names, "_type": "ClassLabel"}}
        meta = json.dumps({"info": {"features": features}})
    return table if meta is None else table.replace_schema_metadata({"huggingface": meta})
