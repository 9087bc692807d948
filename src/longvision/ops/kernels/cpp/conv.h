// The short depthwise convolution with SiLU, forward and backward, a tile of tokens at a time: what a tile reads of its
// neighbours comes from the cache.
#pragma once
#include <algorithm>

#include "rows.h"
#include "threads.h"
#include "vector.h"

constexpr int64_t FORWARD_TILE = 12;  // tokens of a task: with their neighbours they fit the first cache
constexpr int64_t TILE = 32;          // in the backward, where neighbours cost more
constexpr int64_t MOST_TAPS = 8;

struct Conv {
  int64_t batch, tokens, width, taps, threads, reverse, silu;
  const int64_t* boundaries;  // in the forward they may lie beyond the tokens, whose neighbours are then read, too
  int64_t sequences;
  Rows<const IO> x;
  const Real* weight;  // (E, K)
  const Real* bias;    // (E)

  int64_t tiles() const { return (tokens + TILE - 1) / TILE; }
};

struct ConvGradients {
  Rows<const Real> grad;
  Rows<IO> dx;
  int64_t add;    // to what dx holds, as the second direction does
  Real* dweight;  // (B * tiles, K + 1, E): each filter's taps and bias, to be summed over the tiles
};

// The boundaries of the sequence that a token belongs to.
struct Extent { int64_t begin, end; };

static Extent extent(const Conv& conv, int64_t t) {
  const int64_t* end = std::upper_bound(conv.boundaries, conv.boundaries + conv.sequences, t);
  return {end[-1], end[0]};
}

struct Filter {
  int64_t first;
  int lanes;
  Vec bias, tap[MOST_TAPS];  // tap[k] weighs the token k before (reversed: after) the one computed
};

static Filter filter(const Conv& conv, int64_t block) {
  Filter f;
  f.first = block * LANES;
  f.lanes = int(std::min<int64_t>(LANES, conv.width - f.first));
  f.bias = conv.bias ? load_real(conv.bias + f.first, f.lanes) : Vec{};
  for (int64_t k = 0; k < conv.taps; k++)
    f.tap[k] = gather(conv.weight + f.first * conv.taps + conv.taps - 1 - k, conv.taps, f.lanes);
  return f;
}

// How many of the taps stay inside the sequence.
static inline int64_t reach(const Conv& conv, Extent e, int64_t t) {
  return std::min(conv.taps, conv.reverse ? e.end - t : t - e.begin + 1);
}

static inline Vec convolve_four(const Conv& conv, const Filter& f, const IO* x, int lanes) {
  int64_t back = (conv.reverse ? 1 : -1) * conv.x.token;
  return f.bias + f.tap[0] * load(x, lanes) + f.tap[1] * load(x + back, lanes) + f.tap[2] * load(x + 2 * back, lanes) +
         f.tap[3] * load(x + 3 * back, lanes);
}

static inline Vec convolve(const Conv& conv, const Filter& f, int64_t b, int64_t t, int64_t taps) {
  int64_t back = (conv.reverse ? 1 : -1) * conv.x.token;
  const IO* x = conv.x.at(b, t) + f.first;
  if (taps == 4) return convolve_four(conv, f, x, f.lanes);
  Vec sum = f.bias;
  for (int64_t k = 0; k < taps; k++) sum += f.tap[k] * load(x + k * back, f.lanes);
  return sum;
}

static std::vector<Filter> all_filters(const Conv& conv) {
  std::vector<Filter> filters;
  for (int64_t first = 0; first < conv.width; first += LANES) filters.push_back(filter(conv, first / LANES));
  return filters;
}

static void convolve_tile(const Conv& conv, const std::vector<Filter>& filters, const Rows<IO>& y, int64_t b,
                          int64_t first, int64_t last) {
  Extent e{0, 0};
  for (int64_t t = first; t < last; t++) {
    if (t >= e.end) e = extent(conv, t);
    int64_t taps = reach(conv, e, t);
    const Filter* f = filters.data();
    const Filter* end = f + filters.size();
    if (taps == 4 && conv.silu)  // the published filters, inside
      for (; f < end && f->lanes == LANES; f++)
        store(y.at(b, t) + f->first, silu(convolve_four(conv, *f, conv.x.at(b, t) + f->first, LANES)), LANES);
    for (; f < end; f++) {
      Vec sum = convolve(conv, *f, b, t, taps);
      store(y.at(b, t) + f->first, conv.silu ? silu(sum) : sum, f->lanes);
    }
  }
}

static void conv_forward(const Conv& conv, const Rows<IO>& y) {
  int64_t tiles = (conv.tokens + FORWARD_TILE - 1) / FORWARD_TILE;
  std::vector<Filter> filters = all_filters(conv);
  parallel(conv.batch * tiles, conv.threads, [&](int64_t task) {
    int64_t first = task % tiles * FORWARD_TILE;
    convolve_tile(conv, filters, y, task / tiles, first, std::min(conv.tokens, first + FORWARD_TILE));
  });
}

// The adjoint of looking back by k tokens is looking ahead by k. What SiLU saw is computed again, for the tile and for
// the tokens after it whose outputs its inputs went into.
static void conv_backward(const Conv& conv, const ConvGradients& out) {
  int64_t tiles = conv.tiles();
  std::vector<Filter> filters = all_filters(conv);
  parallel(conv.batch * tiles, conv.threads, [&](int64_t task) {
    int64_t b = task / tiles, first = task % tiles * TILE, last = std::min(conv.tokens, first + TILE);
    int64_t length = last - first, halo = conv.taps - 1, ahead = conv.reverse ? -1 : 1;
    // Outputs that the tile's inputs reach, in rising order of tokens.
    int64_t low = std::max<int64_t>(0, conv.reverse ? first - halo : first);
    int64_t high = std::min(conv.tokens, conv.reverse ? last : last + halo);
    Vec grad[TILE + MOST_TAPS];
    int64_t taps[TILE + MOST_TAPS];
    Extent extents[TILE];
    for (int64_t t = low; t < high; t++) taps[t - low] = reach(conv, extent(conv, t), t);
    for (int64_t i = 0; i < length; i++) extents[i] = extent(conv, first + i);

    for (const Filter& f : filters) {
      Vec dtap[MOST_TAPS]{}, dbias{};
      for (int64_t t = low; t < high; t++) {
        Vec g = load_real(out.grad.at(b, t) + f.first, f.lanes);
        if (conv.silu) {
          Vec before = convolve(conv, f, b, t, taps[t - low]);
          g *= silu_slope(before, sigmoid(before));
        }
        grad[t - low] = g;
      }
      for (int64_t i = 0; i < length; i++) {
        int64_t t = first + i;
        Vec dx{}, own = grad[t - low];
        int64_t reached = std::min(conv.taps, conv.reverse ? t - extents[i].begin + 1 : extents[i].end - t);
        for (int64_t k = 0; k < reached; k++) dx += f.tap[k] * grad[t + k * ahead - low];
        IO* to = out.dx.at(b, t) + f.first;
        store(to, out.add ? dx + load(to, f.lanes) : dx, f.lanes);
        for (int64_t k = 0; k < taps[t - low]; k++)
          dtap[k] += own * load(conv.x.at(b, t - k * ahead) + f.first, f.lanes);
        dbias += own;
      }
      Real* to = out.dweight + task * (conv.taps + 1) * conv.width + f.first;
      for (int64_t k = 0; k < conv.taps; k++) store_real(to + (conv.taps - 1 - k) * conv.width, dtap[k], f.lanes);
      store_real(to + conv.taps * conv.width, dbias, f.lanes);
    }
  });
}
