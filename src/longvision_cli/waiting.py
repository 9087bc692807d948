"""How torch's threads wait for each other in a training on a CPU, which has to be said before torch is loaded."""

import os

LOOKS = "10000"  # instead of 300,000


def sleep_soon() -> None:
    """A thread of GNU's OpenMP, on which torch computes, looks for work that often before it sleeps: beside other work
    it does so on the core that the thread it waits for needs. What the user set stays."""
    if not {"GOMP_SPINCOUNT", "OMP_WAIT_POLICY"} & os.environ.keys():
        os.environ["GOMP_SPINCOUNT"] = LOOKS
