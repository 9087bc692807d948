// A residual block of Vim, or a mixer alone: what its forward and its backward share. See mixer/reference.py.
#pragma once
#include "conv.h"
#include "matmul_stored.h"
#include "norm.h"
#include "scan_forward.h"

struct Direction {
  const Real *filter, *filter_bias, *x_proj, *dt_proj, *dt_bias, *A_log, *D;
  int64_t reverse;
};

// (M, K) times (K, N) of numbers as they are stored: for a dtype that is computed in another, by torch.
struct OutsideMatmul {
  int64_t M, N, K;
  const IO* left;
  int64_t left_row, left_column;
  const IO* right;
  int64_t right_row, right_column;
  IO* to;
};
typedef int (*Outside)(const OutsideMatmul*);  // -> 1, or 0 where it failed

// The fields are 8 bytes each, in the order in which cpu.py packs them.
struct Tokens {
  int64_t batch, tokens, threads;
  int64_t chunk;              // tokens to be taken at once; 0: all
  const int64_t* boundaries;  // of packed sequences
  int64_t sequences, slots;
  const void* x;              // (B, M, D), Real with a norm or a residual, else IO
  IO *xz, *projections;       // (B, M, 2 E) and (W, B, M, P), saved for the backward; or null
  Real* before;               // (W, B, slots, N, E), the same
  Real* other;                // (B, M, E): memory for what the first of two directions gives in chunks, or null
};

struct Parameters {
  int64_t channels, width, states, rank, taps, outputs, directions, residual;
  const Real* norm_weight;       // (D), or null
  double eps;
  const IO *in_proj, *out_proj;  // (2 E, D), (D', E)
  int64_t weights_are_real;      // these two are given in Real, to be rounded to IO; not in the backward
  Outside outside;
  Direction direction[2];
};

struct Block : Tokens, Parameters {
  bool x_is_real() const { return norm_weight || residual; }
  int64_t projected() const { return rank + 2 * states; }
  int64_t rows() const { return batch * tokens; }
};

constexpr bool SAME = sizeof(IO) == sizeof(Real);  // what is stored is what is computed in

// Memory, handed out one piece after the other; without a begin it only counts.
struct Space {
  char* begin;
  int64_t used = 0;

  template <class Element>
  Element* take(int64_t count) {
    Element* taken = reinterpret_cast<Element*>(begin + used);
    used += (count * int64_t(sizeof(Element)) + BYTES - 1) / BYTES * BYTES;
    return begin ? taken : nullptr;
  }
  static Space at(void* memory) {
    char* begin = static_cast<char*>(memory);
    return {begin ? begin + (BYTES - reinterpret_cast<uintptr_t>(begin) % BYTES) % BYTES : nullptr};
  }
};

// body(row) for each of so many.
template <class Body>
static void each_row(int64_t rows, int64_t threads, Body body) {
  int64_t tasks = (rows + ROWS - 1) / ROWS;
  if (tasks < 4 * threads) tasks = std::min(rows, 4 * threads);
  parallel(tasks, threads, [&](int64_t task) {
    for (int64_t row = task * rows / tasks; row < (task + 1) * rows / tasks; row++) body(row);
  });
}

// to (M, N) = left (M, K) times right (K, N), + add, in IO.
static void multiply_io(const Block& block, int64_t M, int64_t N, int64_t K, const IO* left, int64_t left_row,
                        int64_t left_column, const IO* right, int64_t right_row, int64_t right_column, IO* to) {
  if (SAME) {
    auto real = [](const IO* p) { return reinterpret_cast<const Real*>(p); };
    matmul({M, N, K, block.threads, {real(left), left_row, left_column}, {real(right), right_row, right_column}, nullptr,
            0, reinterpret_cast<Real*>(to), N});
    return;
  }
  if (!M || !N || !K) return void(std::fill_n(to, M * N, IO(0)));  // of no images
  OutsideMatmul call{M, N, K, left, left_row, left_column, right, right_row, right_column, to};
  if (block.outside(&call) != 1) throw std::bad_alloc();
}
