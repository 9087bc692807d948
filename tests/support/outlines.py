"""Polygons for labels of objects: shared by the tests of COCO's files."""


def outline(box):
    """COCO's polygons of a box x, y, width, height; of what is no box, any."""
    whole = isinstance(box, list | tuple) and len(box) == 4 and all(type(value) in (int, float) for value in box)
    x, y, width, height = box if whole else (10, 10, 10, 10)
    return [[x, y, x + width, y, x + width, y + height, x, y + height]]
