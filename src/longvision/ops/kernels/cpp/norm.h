// Root-mean-square normalisation over the last dimension, forward and backward.
#pragma once
#include <algorithm>
#include <cmath>
#include <vector>

#include "threads.h"
#include "vector.h"

constexpr int64_t ROWS = 64;  // in a task; the sums for the weight's gradient are one per task, whatever the threads

struct Norm {
  int64_t rows, width, threads;
  double eps;
  const Real* x;       // (rows, width): the residual, never in half precision
  const Real* weight;  // (width)

  int64_t tasks() const { return (rows + ROWS - 1) / ROWS; }
};

struct NormOutput {
  IO* y;
  Real* inverse;  // (rows): 1 / rms
};

struct NormGradients {
  const IO* grad;
  const Real* inverse;
  Real* dx;
  Real* dweight;  // (tasks, width)
};

static inline Real sum(Vec v) {
  Real total = 0;
  for (int lane = 0; lane < LANES; lane++) total += v[lane];
  return total;
}

template <class Body>
static void each_row(const Norm& norm, int64_t task, Body body) {
  for (int64_t row = task * ROWS; row < std::min(norm.rows, (task + 1) * ROWS); row++) body(row);
}

// body(channel, lanes) for each vector of a row.
template <class Body>
static inline void each_vector(int64_t width, Body body) {
  for (int64_t e = 0; e < width; e += LANES) body(e, int(std::min<int64_t>(LANES, width - e)));
}

// -> 1 / rms of a row, whose normalised numbers it writes.
template <class To>
static inline Real normalise(const Real* x, const Real* weight, int64_t width, Real eps, To* y) {
  Vec squares{};
  each_vector(width, [&](int64_t e, int lanes) {
    Vec v = load_real(x + e, lanes);
    squares += v * v;
  });
  Real inverse = 1 / std::sqrt(sum(squares) / width + eps);
  each_vector(width, [&](int64_t e, int lanes) {
    store(y + e, load_real(x + e, lanes) * inverse * load_real(weight + e, lanes), lanes);
  });
  return inverse;
}

static void norm_forward(const Norm& norm, const NormOutput& out) {
  parallel(norm.tasks(), norm.threads, [&](int64_t task) {
    each_row(norm, task, [&](int64_t row) {
      int64_t first = row * norm.width;
      out.inverse[row] = normalise(norm.x + first, norm.weight, norm.width, Real(norm.eps), out.y + first);
    });
  });
}

// With n = x / rms and g = grad * weight: dx = (g - n mean(g n)) / rms, dweight = sum of grad n.
static void norm_backward(const Norm& norm, const NormGradients& out) {
  parallel(norm.tasks(), norm.threads, [&](int64_t task) {
    Real* dweight = out.dweight + task * norm.width;
    std::fill(dweight, dweight + norm.width, Real(0));
    each_row(norm, task, [&](int64_t row) {
      const Real* x = norm.x + row * norm.width;
      const IO* grad = out.grad + row * norm.width;
      Real inverse = out.inverse[row];
      Vec products{};
      each_vector(norm.width, [&](int64_t e, int lanes) {
        Vec g = load(grad + e, lanes), n = load_real(x + e, lanes) * inverse;
        products += g * load_real(norm.weight + e, lanes) * n;
        store_real(dweight + e, load_real(dweight + e, lanes) + g * n, lanes);
      });
      Real mean = sum(products) / norm.width;
      each_vector(norm.width, [&](int64_t e, int lanes) {
        Vec g = load(grad + e, lanes) * load_real(norm.weight + e, lanes), n = load_real(x + e, lanes) * inverse;
        store_real(out.dx + row * norm.width + e, (g - n * mean) * inverse, lanes);
      });
    });
  });
}
