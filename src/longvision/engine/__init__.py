"""One training run: its folder, its loop, its report."""
