"""Speed and memory of vision backbones against their peers, each case in a process of its own."""
