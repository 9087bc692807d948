"""What makes objects and masks of a backbone's maps: plain modules, usable without Lightning."""
