// A matmul of numbers that are stored as bfloat16, summed up in float32. The left is a buffer whose rows are made shortly
// before they are read, the right is weights, packed. Processors multiply bfloat16 by instructions of their own, in pairs
// along the depth or in whole tiles; elsewhere the same numbers are multiplied as float32. The float32 and float64
// libraries have `multiply` (matmul.h) for this.
#pragma once
#include <type_traits>

#include "matmul.h"

#ifdef STORED_BF16
#if defined(__AVX512BF16__)
constexpr bool PAIRS = true;
#else
constexpr bool PAIRS = false;
#endif
#if defined(__AMX_BF16__) && defined(__AVX512BF16__) && defined(__linux__)
#define TILES_OF_THE_PROCESSOR
#include <sys/syscall.h>
#include <unistd.h>
#endif

// A float32 that bfloat16 has too.
struct Rounded {
  Real value;
};
static inline void store(Rounded* to, Vec v, int lanes) { store_real(&to->value, as_stored(v), lanes); }

typedef std::conditional_t<PAIRS, IO, Rounded> Left;
constexpr int64_t STEP = PAIRS ? 32 : 1;      // the depth is filled up to multiples with zeros
constexpr int64_t HIGH = 32;                  // rows that a left is filled up to a multiple of: those of the largest tile
static_assert(!PAIRS || LANES == 16, "a vector is 16 pairs, of 16 columns");

static inline int64_t filled(int64_t depth) { return (depth + STEP - 1) / STEP * STEP; }

// Vectors that `pack_stored` writes for a right (K, N): (panels, depth, 2), or with pairs (panels, depth / 2, 2).
struct PackedStored {
  int64_t N, K;
  Vec* data;

  int64_t panels() const { return (N + PANEL - 1) / PANEL; }
  int64_t steps() const { return PAIRS ? filled(K) / 2 : K; }
  int64_t vectors() const { return panels() * steps() * 2; }
  Vec* at(int64_t panel) const { return data + panel * steps() * 2; }
};

// Panel of a right that is the transpose of weights (N, K), given in Element. Missing columns and depth are zeros.
template <class Element>
static void pack_stored(const Element* weights, const PackedStored& to, int64_t panel) {
  int64_t N = to.N, K = to.K;
  for (int64_t j = panel * PANEL; j < std::min(N, (panel + 1) * PANEL); j++)
    for (int64_t k = 0; k < K; k += LINE / int64_t(sizeof(Element))) __builtin_prefetch(weights + j * K + k);
  for (int half = 0; half < 2; half++) {
    int64_t column = panel * PANEL + half * LANES, columns = std::clamp<int64_t>(N - column, 0, LANES);
    for (int64_t k = 0; k < filled(K); k += LANES) {
      int deep = int(std::clamp<int64_t>(K - k, 0, LANES));
      Vec square[LANES];
      for (int j = 0; j < LANES; j++)
        square[j] = j < columns ? load(weights + (column + j) * K + k, deep) : Vec{};
      transpose(square);
      Vec* begin = to.at(panel) + half;
      if (PAIRS)
        for (int i = 0; i < LANES; i += 2)
          begin[k + i] = (Vec)(as_bits(square[i]) | as_bits(square[i + 1]) << 16);
      else
        for (int i = 0; i < deep; i++) begin[2 * (k + i)] = as_stored(square[i]);
    }
  }
}

// A tile of UP rows by a panel.
static inline void tile_stored(int64_t steps, const Left* left, int64_t row, const Vec* right, Real (*to)[PANEL]) {
  Vec sums[UP][2];
#if defined(__AVX512BF16__)
#pragma GCC unroll 12
  for (int i = 0; i < UP; i++) sums[i][0] = sums[i][1] = Vec{};
  for (int64_t k = 0; k < steps; k++) {
    __m512bh a = (__m512bh)right[2 * k], b = (__m512bh)right[2 * k + 1];
#pragma GCC unroll 12
    for (int i = 0; i < UP; i++) {
      int pair;
      std::memcpy(&pair, left + i * row + 2 * k, sizeof pair);
      __m512bh l = (__m512bh)_mm512_set1_epi32(pair);
      sums[i][0] = (Vec)_mm512_dpbf16_ps((__m512)sums[i][0], l, a);
      sums[i][1] = (Vec)_mm512_dpbf16_ps((__m512)sums[i][1], l, b);
    }
  }
#else
  tile<false>(steps, &left->value, row, right, sums);
#endif
#pragma GCC unroll 12
  for (int i = 0; i < UP; i++) store_real(to[i], sums[i][0], LANES), store_real(to[i] + LANES, sums[i][1], LANES);
}

#ifdef TILES_OF_THE_PROCESSOR
// Linux keeps these registers for processes that ask for them.
static bool has_tiles() {
  constexpr int ARCH_REQ_XCOMP_PERM = 0x1023, XFEATURE_XTILEDATA = 18;
  static const bool granted = syscall(SYS_arch_prctl, ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA) == 0;
  return granted;
}

// Compilers are not told all that these instructions read: what was written before has to be in memory by now.
static inline void see_memory() { __asm__ volatile("" ::: "memory"); }

// Eight tiles of 16 rows of 64 bytes, for this thread, until it goes out of scope.
struct Tiles {
  explicit Tiles(bool wanted) : wanted(wanted) {
    if (!wanted) return;
    struct {
      uint8_t palette = 1, start = 0, reserved[14]{};
      uint16_t bytes[16]{};
      uint8_t rows[16]{};
    } shape;
    std::fill_n(shape.bytes, 8, 64), std::fill_n(shape.rows, 8, 16);
    see_memory();
    _tile_loadconfig(&shape);
  }
  ~Tiles() {
    if (wanted) _tile_release();
  }
  bool wanted;
};

// HIGH rows by a panel.
static inline void tile_of_the_processor(int64_t steps, const Left* left, int64_t row, const Vec* right,
                                         Real (*to)[PANEL]) {
  see_memory();
  _tile_zero(0);
  _tile_zero(1);
  _tile_zero(2);
  _tile_zero(3);
  for (int64_t k = 0; k < steps; k += LANES) {
    _tile_loadd(4, left + 2 * k, row * sizeof(Left));
    _tile_loadd(5, left + 16 * row + 2 * k, row * sizeof(Left));
    _tile_loadd(6, right + 2 * k, 2 * BYTES);
    _tile_loadd(7, right + 2 * k + 1, 2 * BYTES);
    _tile_dpbf16ps(0, 4, 6);
    _tile_dpbf16ps(1, 4, 7);
    _tile_dpbf16ps(2, 5, 6);
    _tile_dpbf16ps(3, 5, 7);
  }
  constexpr int64_t apart = PANEL * sizeof(Real);
  _tile_stored(0, to[0], apart);
  _tile_stored(1, to[0] + LANES, apart);
  _tile_stored(2, to[16], apart);
  _tile_stored(3, to[16] + LANES, apart);
}
#else
static bool has_tiles() { return false; }
struct Tiles {
  explicit Tiles(bool) {}
};
static inline void tile_of_the_processor(int64_t, const Left*, int64_t, const Vec*, Real (*)[PANEL]) {}
#endif

// `rows` of left (rows, K) times right. `make(row)` writes a row of the left, K long; finish(row, column, columns, sums)
// takes so many sums of a row. Tasks are as those of `multiply`.
template <class Make, class Finish>
static void multiply_stored(int64_t rows, Left* left, const PackedStored& right, int64_t threads, Make make,
                            Finish finish) {
  bool tiles_there = has_tiles();
  int64_t high = tiles_there ? HIGH : UP, row_length = filled(right.K);
  int64_t tiles = (rows + high - 1) / high, panels = right.panels();
  if (!tiles) return;
  int64_t rounds = (tiles + TILES * threads - 1) / (TILES * threads), bands = std::min(tiles, rounds * threads);
  int64_t wanted = tiles < ENOUGH * threads ? ENOUGH * threads : bands;
  int64_t parts = std::min(panels, (wanted + bands - 1) / bands);
  auto make_tile = [&](int64_t tile) {
    for (int64_t row = tile * high; row < (tile + 1) * high; row++) {
      int64_t made = row < rows ? right.K : 0;  // missing rows are zeros: what is there may be slow to multiply
      if (made) make(row);
      std::fill_n(left + row * row_length + made, row_length - made, Left{});
    }
  };
  if (parts > 1) parallel(tiles, threads, make_tile);
  parallel(bands * parts, threads, [&](int64_t task) {
    int64_t band = task / parts, from = band * tiles / bands, to = (band + 1) * tiles / bands;
    for (int64_t tile = from; parts == 1 && tile < to; tile++) make_tile(tile);
    Tiles configured(tiles_there);
    auto multiply_tile = tiles_there ? tile_of_the_processor : tile_stored;
    for (int64_t panel = task % parts * panels / parts; panel < (task % parts + 1) * panels / parts; panel++)
      for (int64_t tile = from; tile < to; tile++) {
        alignas(BYTES) Real sums[HIGH][PANEL];
        int64_t first = tile * high, columns = std::min<int64_t>(PANEL, right.N - panel * PANEL);
        multiply_tile(right.steps(), left + first * row_length, row_length, right.at(panel), sums);
        for (int64_t i = 0; i < std::min(high, rows - first); i++) finish(first + i, panel * PANEL, columns, sums[i]);
      }
  });
}
#else
typedef Real Left;
static inline int64_t filled(int64_t depth) { return depth; }
#endif
