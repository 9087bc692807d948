// The loops whose instructions are counted, as functions of their own.
#include "block_backward.h"

auto* forward = run<true, AT_ONCE>;
auto* backward = run_back<true, false, STATES>;
auto* product = tile<false>;
