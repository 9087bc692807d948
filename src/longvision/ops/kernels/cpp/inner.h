// The forward of a mixer between its two projections: convolution, SiLU and the product with x_proj of every direction
// in one walk over the tokens, then the scans.
#pragma once
#include "conv.h"
#include "scan.h"

struct Walk {
  const Real *filter, *filter_bias, *x_proj, *dt_proj, *dt_bias, *A_log, *D;
  int64_t reverse;
  IO* u;               // (B, M, E): convolved, and then, in the last direction, what the scan writes
  IO* projection;      // (B, M, P): low-rank step, B, C
  Rows<Real> partial;  // what the scan writes in a direction that is not the last; may lie over u
  Real* states;        // (B, slots, N, E), or null
  Real* carry;         // as in scan.h
};

struct Inner {
  int64_t batch, tokens, width, states, rank, taps, threads;
  const int64_t* borders;
  const int64_t* visible;  // the same, or for tokens that are part of an image, how far the convolution may look
  int64_t sequences, slots, walks;
  Rows<const IO> x, z;
  Rows<const Real> other;  // what the last direction adds to its own before it applies the gate
  double scale;            // of the sum
  Walk walk[2];

  int64_t projected() const { return rank + 2 * states; }
  Conv conv(const Walk& w) const {
    return {batch, tokens, width, taps, threads, w.reverse, 1, visible, sequences, x, w.filter, w.filter_bias};
  }
  Rows<IO> rows(IO* data, int64_t columns) const { return {data, tokens * columns, columns}; }
};

constexpr int ACROSS = LANES < 4 ? LANES : 4;  // tokens at once
constexpr int DOWN = LANES / ACROSS;           // rows of the weight at once

// u (length, E) times x_proj (P, E) transposed: a square of sums, whose lanes are summed at the end.
static void project(const Inner& inner, const Walk& w, const IO* u, IO* to, int64_t length) {
  int64_t width = inner.width, columns = inner.projected();
  for (int64_t p = 0; p < columns; p += DOWN)  // few rows of the weight at a time stay in the first cache, beside u
    for (int64_t t = 0; t < length; t += ACROSS) {
      Vec sums[LANES]{};
      const IO* left[ACROSS];
      const Real* right[DOWN];
      for (int i = 0; i < ACROSS; i++) left[i] = u + std::min(t + i, length - 1) * width;
      for (int j = 0; j < DOWN; j++) right[j] = w.x_proj + std::min(p + j, columns - 1) * width;
      auto add = [&](int64_t e, int lanes) {
        Vec a[ACROSS], b[DOWN];
        for (int i = 0; i < ACROSS; i++) a[i] = load(left[i] + e, lanes);
        for (int j = 0; j < DOWN; j++) b[j] = load_real(right[j] + e, lanes);
        for (int i = 0; i < ACROSS; i++)
          for (int j = 0; j < DOWN; j++) sums[i * DOWN + j] += a[i] * b[j];
      };
      int64_t e = 0;
      for (; e + LANES <= width; e += LANES) add(e, LANES);
      if (e < width) add(e, int(width - e));
      Vec total = sum_lanes(sums);
      for (int i = 0; i < ACROSS && t + i < length; i++)
        store(to + (t + i) * columns + p, shifted_down(total, i * DOWN), int(std::min<int64_t>(DOWN, columns - p)));
    }
}

static void convolve_and_project(const Inner& inner) {
  int64_t tiles = (inner.tokens + FORWARD_TILE - 1) / FORWARD_TILE;
  std::vector<std::vector<Filter>> filters(inner.walks);
  for (int64_t i = 0; i < inner.walks; i++) filters[i] = all_filters(inner.conv(inner.walk[i]));
  parallel(inner.batch * tiles, inner.threads, [&](int64_t task) {
    int64_t b = task / tiles, first = task % tiles * FORWARD_TILE, last = std::min(inner.tokens, first + FORWARD_TILE);
    for (int64_t i = 0; i < inner.walks; i++) {
      const Walk& w = inner.walk[i];
      Rows<IO> u = inner.rows(w.u, inner.width), projection = inner.rows(w.projection, inner.projected());
      convolve_tile(inner.conv(w), filters[i], u, b, first, last);
      project(inner, w, u.at(b, first), projection.at(b, first), last - first);
    }
  });
}

static Scan scan_of(const Inner& inner, int64_t i) {
  const Walk& w = inner.walk[i];
  Rows<IO> projection = inner.rows(w.projection, inner.projected());
  auto part = [&](int64_t from) { return Rows<const IO>{projection.data + from, projection.batch, projection.token}; };
  int64_t row = inner.tokens * inner.width;
  Scan scan{};
  scan.batch = inner.batch, scan.tokens = inner.tokens, scan.width = inner.width, scan.states = inner.states;
  scan.rank = inner.rank, scan.threads = inner.threads, scan.reverse = w.reverse;
  scan.softplus = scan.log_decay = 1;
  scan.borders = inner.borders, scan.sequences = inner.sequences;
  scan.x = {w.u, row, inner.width}, scan.delta = part(0);
  scan.weight = w.dt_proj, scan.bias = w.dt_bias, scan.A = w.A_log, scan.D = w.D;
  scan.B = part(inner.rank), scan.C = part(inner.rank + inner.states);
  scan.z = inner.z, scan.other = inner.other, scan.scale = inner.scale;
  scan.carry = w.carry;
  return scan;
}

static void inner_forward(const Inner& inner) {
  convolve_and_project(inner);
  for (int64_t i = 0; i < inner.walks; i++) {
    const Walk& w = inner.walk[i];
    // A piece of u is read before the same piece is written.
    scan_forward(scan_of(inner, i), {inner.rows(w.u, inner.width), w.partial, w.states, inner.slots});
  }
}
