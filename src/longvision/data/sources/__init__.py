"""Sets of images: which images there are, in which split, with what labels."""
