// A matmul, in tiles of sums that stay in registers. Torch's own reaches half of what the widest
// vectors give on some processors.
#pragma once
#include <algorithm>
#include <cstring>
#include <vector>

#include "lanes.h"
#include "threads.h"
#include "vector.h"

struct Matrix {
  const Real* data;
  int64_t row, column;  // strides; one of them is 1
  const Real* at(int64_t i, int64_t j) const { return data + i * row + j * column; }
};

// to (M, N) = left (M, K) right (K, N) + add (M, N)
struct Matmul {
  int64_t M, N, K, threads;
  Matrix left, right;
  const Real* add;  // or null
  int64_t add_row;
  Real* to;
  int64_t to_row;
};

// A tile is UP rows by two vectors: most registers hold sums, one a number of the left, two the right.
#if defined(__AVX512F__) || defined(__aarch64__)
constexpr int UP = 12;
#else
constexpr int UP = 6;
#endif
constexpr int PANEL = 2 * LANES;   // columns of a tile
constexpr int64_t DEPTH = 256;     // of the sums made at once: a panel of the right so deep fits the first cache
constexpr int64_t TILES = 4;       // tiles of a task, one below the other, at most
constexpr int64_t WHOLE = 2048;    // a right so deep is packed before the first sum, a deeper one slice by slice

// A band of the left by a panel of the right, both `depth` deep: rows of the left are `row` apart, or PACKED.
template <bool PACKED>
static inline void tile(int64_t depth, const Real* left, int64_t row, const Vec* right, Vec (&to)[UP][2]) {
  Vec sums[UP][2];  // of its own, so that they stay in registers
#pragma GCC unroll 12
  for (int i = 0; i < UP; i++) sums[i][0] = sums[i][1] = Vec{};
  for (int64_t k = 0; k < depth; k++) {
    Vec a = right[2 * k], b = right[2 * k + 1];
#pragma GCC unroll 12
    for (int i = 0; i < UP; i++) {
      Vec l = splat(PACKED ? left[k * UP + i] : left[i * row + k]);
      sums[i][0] += l * a;
      sums[i][1] += l * b;
    }
  }
#pragma GCC unroll 12
  for (int i = 0; i < UP; i++) to[i][0] = sums[i][0], to[i][1] = sums[i][1];
}

// Rows of the left as `tile` reads them, missing ones as zeros: (depth, UP).
static void pack_rows(const Matrix& left, int64_t first, int64_t rows, int64_t begin, int64_t depth, Real* to) {
  if (left.row == 1 && rows == UP) {
    for (int64_t k = 0; k < depth; k++) std::memcpy(to + k * UP, left.at(first, begin + k), UP * sizeof(Real));
    return;
  }
  for (int64_t i = 0; i < UP; i++)
    for (int64_t k = 0; k < depth; k++) to[k * UP + i] = i < rows ? *left.at(first + i, begin + k) : 0;
}

// LANES columns of the right as `tile` reads them, missing ones as zeros: (depth) vectors, two apart.
static void pack_columns(const Matrix& right, int64_t first, int columns, int64_t begin, int64_t depth, Vec* to) {
  if (right.column == 1) {
    for (int64_t k = 0; k < depth; k++) to[2 * k] = load_real(right.at(begin + k, first), columns);
    return;
  }
  for (int64_t k = 0; k < depth; k += LANES) {
    int deep = int(std::min<int64_t>(LANES, depth - k));
    Vec square[LANES];
    if (deep == LANES && columns == LANES) {  // nothing is missing: no questions in between
#pragma GCC unroll 16
      for (int j = 0; j < LANES; j++) square[j] = load_real(right.at(begin + k, first + j), LANES);
      transpose(square);
#pragma GCC unroll 16
      for (int i = 0; i < LANES; i++) to[2 * (k + i)] = square[i];
      continue;
    }
    for (int j = 0; j < LANES; j++) square[j] = j < columns ? load_real(right.at(begin + k, first + j), deep) : Vec{};
    transpose(square);
    for (int i = 0; i < deep; i++) to[2 * (k + i)] = square[i];
  }
}

// The right of a matmul as `tile` reads it: (slices, panels, depth, 2) vectors.
struct Packed {
  int64_t N, K;
  Vec* data;

  int64_t panels() const { return (N + PANEL - 1) / PANEL; }
  int64_t slices() const { return std::max<int64_t>(1, (K + DEPTH - 1) / DEPTH); }
  int64_t deep() const { return (K + slices() - 1) / slices(); }
  int64_t begin(int64_t slice) const { return slice * deep(); }
  int64_t depth(int64_t slice) const { return std::min(deep(), K - begin(slice)); }
  int64_t vectors() const { return panels() * slices() * deep() * 2; }
  Vec* at(int64_t slice, int64_t panel) const { return data + (slice * panels() * deep() + panel * depth(slice)) * 2; }
};

// Weights come from the main memory: all of a panel is asked for at once.
static void pack_panel(const Matrix& right, const Packed& to, int64_t slice, int64_t panel) {
  for (int64_t j = panel * PANEL; right.row == 1 && j < std::min(to.N, (panel + 1) * PANEL); j++)
    for (int64_t k = 0; k < to.depth(slice); k += LINE / int64_t(sizeof(Real)))
      __builtin_prefetch(right.at(to.begin(slice) + k, j));
  for (int half = 0; half < 2; half++) {
    int64_t first = panel * PANEL + half * LANES, columns = std::clamp<int64_t>(to.N - first, 0, LANES);
    pack_columns(right, first, int(columns), to.begin(slice), to.depth(slice), to.at(slice, panel) + half);
  }
}

static void finish_tile(const Matmul& p, int64_t first, int64_t rows, int64_t column, const Vec (&sums)[UP][2],
                        const Real* add, int64_t add_row) {
  if (rows == UP && column + PANEL <= p.N) {  // nothing is missing: no questions in between
    Real* to = p.to + first * p.to_row + column;
    const Real* plus = add ? add + first * add_row + column : nullptr;
#pragma GCC unroll 12
    for (int i = 0; i < UP; i++)
#pragma GCC unroll 2
      for (int half = 0; half < 2; half++) {
        Vec sum = sums[i][half];
        if (plus) sum += load_real(plus + i * add_row + half * LANES, LANES);
        store_real(to + i * p.to_row + half * LANES, sum, LANES);
      }
    return;
  }
  for (int64_t i = 0; i < rows; i++)
    for (int half = 0; half < 2; half++) {
      int64_t j = column + half * LANES;
      if (j >= p.N) break;
      int lanes = int(std::min<int64_t>(LANES, p.N - j));
      Vec sum = sums[i][half];
      if (add) sum += load_real(add + (first + i) * add_row + j, lanes);
      store_real(p.to + (first + i) * p.to_row + j, sum, lanes);
    }
}

// All rows by a few slices of the right; what the slices before gave is added to. Each row of the left is made by
// `make(row)` shortly before it is read, or is there.
struct IsThere {
  void operator()(int64_t) const {}
};

template <class Make = IsThere>
static void multiply(const Matmul& p, const Packed& right, int64_t from_slice, int64_t to_slice, Make make = {}) {
  if (!p.M || !p.N) return;
  int64_t tiles = (p.M + UP - 1) / UP, panels = (p.N + PANEL - 1) / PANEL;
  // As many tasks for each thread; each of few rows, which stay in the cache beside the panels.
  int64_t rounds = (tiles + TILES * p.threads - 1) / (TILES * p.threads), bands = std::min(tiles, rounds * p.threads);
  // Where rows do not suffice for so many threads, the panels are divided too, and rows are made beforehand.
  int64_t wanted = tiles < ENOUGH * p.threads ? ENOUGH * p.threads : bands;
  int64_t parts = std::min(panels, (wanted + bands - 1) / bands);
  if (parts > 1) parallel(tiles, p.threads, [&](int64_t tile) {
    for (int64_t row = tile * UP; row < std::min(p.M, (tile + 1) * UP); row++) make(row);
  });
  parallel(bands * parts, p.threads, [&](int64_t task) {
    int64_t band = task / parts, from_panel = task % parts * panels / parts, to_panel = (task % parts + 1) * panels / parts;
    int64_t from = band * tiles / bands * UP, to = std::min(p.M, (band + 1) * tiles / bands * UP);
    Vec buffer[TILES * UP * DEPTH / LANES];
    Real* rows = reinterpret_cast<Real*>(buffer);
    auto in_place = [&](int64_t first) { return p.left.column == 1 && first + UP <= p.M; };
    for (int64_t row = from; parts == 1 && row < to; row++) make(row);
    for (int64_t slice = from_slice; slice < to_slice; slice++) {
      int64_t begin = right.begin(slice), depth = right.depth(slice);
      const Real* add = begin ? p.to : p.add;
      int64_t add_row = begin ? p.to_row : p.add_row;
      for (int64_t first = from; first < to; first += UP)
        if (!in_place(first))
          pack_rows(p.left, first, std::min<int64_t>(UP, to - first), begin, depth, rows + (first - from) * depth);
      for (int64_t panel = from_panel; panel < to_panel; panel++)
        for (int64_t first = from; first < to; first += UP) {
          Vec sums[UP][2];
          const Vec* b = right.at(slice, panel);
          if (in_place(first)) tile<false>(depth, p.left.at(first, begin), p.left.row, b, sums);
          else tile<true>(depth, rows + (first - from) * depth, 0, b, sums);
          finish_tile(p, first, std::min<int64_t>(UP, to - first), panel * PANEL, sums, add, add_row);
        }
    }
  });
}

static void matmul(const Matmul& p) {
  thread_local std::vector<Vec> memory;
  Packed right{p.N, p.K, nullptr};
  int64_t slices = right.slices(), at_once = right.K <= WHOLE ? slices : 1;
  int64_t vectors = right.vectors() / slices * at_once;
  if (int64_t(memory.size()) < vectors) memory.resize(vectors);  // to let it shrink would clear the rest
  for (int64_t slice = 0; slice < slices; slice += at_once) {
    right.data = memory.data() - slice * right.panels() * right.deep() * 2;
    parallel(right.panels() * at_once, p.threads, [&](int64_t task) {
      pack_panel(p.right, right, slice + task / right.panels(), task % right.panels());
    });
    multiply(p, right, slice, slice + at_once);
  }
}
