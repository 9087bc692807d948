"""How torch's threads wait for each other in a training on a CPU, which has to be said before torch is loaded."""

import os

LOOKS = "10000"  # instead of 300,000


def sleep_soon() -> None:
    """GNU's OpenMP, which torch computes on, has a thread without work look for some so often before it sleeps: beside
    other work on a core that the thread it waits for would need. Who set either variable is not overruled."""
    if not {"GOMP_SPINCOUNT", "OMP_WAIT_POLICY"} & os.environ.keys():
        os.environ["GOMP_SPINCOUNT"] = LOOKS
