// All kernels for one dtype, behind plain C functions. Each takes one record of 8-byte fields: what it reads, and
// behind that where it writes (of scans there may be several: all that is read comes first); it returns 0, or 1 where
// there is no memory to work in.
#include "block_backward.h"

template <class Inputs, class Outputs>
struct Call {
  Inputs inputs;
  Outputs outputs;
};

// No exception may leave a C function: it would end the process.
template <class Body>
static int caught(Body body) {
  try {
    body();
  } catch (...) {  // nothing here throws but the allocation of memory
    return 1;
  }
  return 0;
}

template <class Inputs, class Outputs>
static int caught(void (*kernel)(const Inputs&, const Outputs&), const Call<Inputs, Outputs>* call) {
  return caught([&] { kernel(call->inputs, call->outputs); });
}

template <class Outputs>
static int caught(void (*kernel)(const Scan*, const Outputs*, int64_t, int64_t), const Scan* scans, int64_t count,
                  int64_t consecutive) {
  const Outputs* outs = reinterpret_cast<const Outputs*>(scans + count * consecutive);
  return caught([&] { kernel(scans, outs, count, consecutive); });
}

extern "C" {
int lanes() { return LANES; }
void set_runtime(const Runtime* found) { runtime = *found; }

int call_scans_forward(const Scan* first, int64_t count, int64_t consecutive) {
  return caught(scans_forward, first, count, consecutive);
}
int call_scans_backward(const Scan* first, int64_t count, int64_t consecutive) {
  return caught(scans_backward, first, count, consecutive);
}
int call_conv_forward(const Call<Conv, Rows<IO>>* call) { return caught(conv_forward, call); }
int call_conv_backward(const Call<Conv, ConvGradients>* call) { return caught(conv_backward, call); }
int call_norm_forward(const Call<Norm, NormOutput>* call) { return caught(norm_forward, call); }
int call_norm_backward(const Call<Norm, NormGradients>* call) { return caught(norm_backward, call); }
int64_t space_of_block_forward(const Block* block) { return block_forward_space(*block); }
int64_t space_of_block_backward(const Block* block) { return block_backward_space(*block); }
int call_blocks_forward(const Block* first, int64_t count, void* memory, void* out) {
  return caught([&] { blocks_forward(*first, count, memory, out); });
}
int call_block_backward(const Block* block, void* memory, const BlockGradients* to) {
  return caught([&] { block_backward(*block, memory, *to); });
}
int call_matmul(const Matmul* call) {
  return caught([&] { matmul(*call); });
}
}
