"""One training run: its folder, Lightning's loop over it, and the report at its end."""
