"""What a run does between Lightning's steps: a table, a progress bar, checkpoints."""
