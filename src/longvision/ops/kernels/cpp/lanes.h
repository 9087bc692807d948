// What goes across the lanes of vectors: their sums, and squares of them transposed.
#pragma once
#include <utility>

#include "vector.h"

#if defined(__has_builtin)
#if __has_builtin(__builtin_shufflevector)
#define HAS_SHUFFLE
#endif
#endif

#ifdef HAS_SHUFFLE
// LANES vectors -> one vector, whose lane i is the sum over the lanes of vector i. Each level adds the two halves of
// two vectors into one, their lanes interleaved: after the last, every sum has come to its place.
template <int... I>
static inline Vec fold(Vec a, Vec b, std::integer_sequence<int, I...>) {
  Vec low = __builtin_shufflevector(a, b, (I / 2 + I % 2 * LANES)...);
  Vec high = __builtin_shufflevector(a, b, (I / 2 + I % 2 * LANES + LANES / 2)...);
  return low + high;
}

static inline Vec sum_lanes(const Vec* rows) {
  Vec part[LANES];
  std::memcpy(part, rows, sizeof part);
#pragma GCC unroll 8
  for (int half = LANES / 2; half >= 1; half /= 2)
#pragma GCC unroll 16
    for (int i = 0; i < half; i++) part[i] = fold(part[i], part[i + half], std::make_integer_sequence<int, LANES>());
  return part[0];
}

// Exchanges, in two rows, the second half of every 2 WIDTH lanes of the first with the first half of the second's.
template <int WIDTH, int... I>
static inline void exchange(Vec& a, Vec& b, std::integer_sequence<int, I...>) {
  Vec low = __builtin_shufflevector(a, b, ((I / WIDTH % 2) ? I - WIDTH + LANES : I)...);
  Vec high = __builtin_shufflevector(a, b, ((I / WIDTH % 2) ? I + LANES : I + WIDTH)...);
  a = low, b = high;
}

template <int WIDTH>
static inline void exchange_rows(Vec* rows) {
  if constexpr (WIDTH < LANES) {
#pragma GCC unroll 16
    for (int i = 0; i < LANES; i++)
      if (!(i & WIDTH)) exchange<WIDTH>(rows[i], rows[i + WIDTH], std::make_integer_sequence<int, LANES>());
    exchange_rows<2 * WIDTH>(rows);
  }
}

// A square of LANES rows: halves of halves change places.
static inline void transpose(Vec* rows) { exchange_rows<1>(rows); }
#else
static inline Vec sum_lanes(const Vec* rows) {
  Vec sums{};
  for (int i = 0; i < LANES; i++)
    for (int lane = 0; lane < LANES; lane++) sums[i] += rows[i][lane];
  return sums;
}

static inline void transpose(Vec* rows) {
  for (int i = 0; i < LANES; i++)
    for (int j = 0; j < i; j++) std::swap(((Real*)&rows[i])[j], ((Real*)&rows[j])[i]);
}
#endif
