// The loops whose instructions are counted, as functions of their own.
#include "block_backward.h"

auto* forward = run<true>;
auto* backward = run_back<true, false>;
auto* product = tile<false>;
