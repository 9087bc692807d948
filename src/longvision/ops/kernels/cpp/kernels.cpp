// All kernels for one dtype, behind plain C functions. Each takes one record of 8-byte fields: what it reads, and
// behind that where it writes.
#include "conv.h"
#include "inner.h"
#include "norm.h"
#include "product.h"
#include "scan.h"

template <class Inputs, class Outputs>
struct Call {
  Inputs inputs;
  Outputs outputs;
};

extern "C" {
int lanes() { return LANES; }
void set_fork(Fork fork) { fork_team = fork; }

void call_scan_forward(const Call<Scan, ScanOutput>* call) { scan_forward(call->inputs, call->outputs); }
void call_scan_backward(const Call<Scan, ScanGradients>* call) { scan_backward(call->inputs, call->outputs); }
void call_conv_forward(const Call<Conv, Rows<IO>>* call) { conv_forward(call->inputs, call->outputs); }
void call_conv_backward(const Call<Conv, ConvGradients>* call) { conv_backward(call->inputs, call->outputs); }
void call_inner_forward(const Inner* call) { inner_forward(*call); }
void call_product(const Product* call) { product(*call); }
void call_norm_forward(const Call<Norm, NormOutput>* call) { norm_forward(call->inputs, call->outputs); }
void call_norm_backward(const Call<Norm, NormGradients>* call) { norm_backward(call->inputs, call->outputs); }
}
