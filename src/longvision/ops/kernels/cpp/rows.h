// How kernels find a tensor's elements.
#pragma once
#include <cstdint>

#include "vector.h"

// A (B, M, n) tensor. Its channels are contiguous, or its tokens are.
template <class Element>
struct Rows {
  Element* data;
  int64_t batch, token;  // strides
  int64_t channel = 0;   // the stride of channels where tokens are contiguous, else 0
  Element* at(int64_t b, int64_t t) const { return data + b * batch + t * token; }
  explicit operator bool() const { return data != nullptr; }
};

// One vector of every stride-th element: a column of a row-major matrix.
static Vec gather(const Real* from, int64_t stride, int lanes) {
  Vec v{};
  for (int lane = 0; lane < lanes; lane++) v[lane] = from[lane * stride];
  return v;
}
