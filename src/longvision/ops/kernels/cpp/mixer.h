// The forward of a mixer between its two projections: convolution, SiLU and the matmul with x_proj of every direction
// in one pass over the tokens, then the scans.
#pragma once
#include "conv.h"
#include "matmul.h"
#include "scan_forward.h"

struct Direction {
  const Real *filter, *filter_bias, *x_proj, *dt_proj, *dt_bias, *A_log, *D;
  int64_t reverse;
  IO* u;               // (B, M, E): convolved, and then, in the last direction, what the scan writes
  IO* projection;      // (B, M, P): low-rank step, B, C
  Rows<Real> partial;  // what the scan writes in a direction that is not the last; may lie over u
  Real* states;        // (B, slots, N, E), or null
  Real* carry;         // as in scan.h
};

struct Mixer {
  int64_t batch, tokens, width, states, rank, taps, threads;
  const int64_t* boundaries;
  const int64_t* visible;  // the same, or for tokens that are part of an image, how far the convolution may look
  int64_t sequences, slots, directions;
  Rows<const IO> x, z;
  Rows<const Real> other;  // what the last direction adds to its own before it applies the gate
  double scale;            // of the sum
  Direction direction[2];

  int64_t projected() const { return rank + 2 * states; }
  Conv conv(const Direction& d) const {
    return {batch, tokens, width, taps, threads, d.reverse, 1, visible, sequences, x, d.filter, d.filter_bias};
  }
  Rows<IO> rows(IO* data, int64_t columns) const { return {data, tokens * columns, columns}; }
};

// x_proj transposed as `tile` reads it, in panels: (panels, E, 2) vectors.
static std::vector<Vec> packed_x_proj(const Mixer& mixer, const Direction& d) {
  int64_t width = mixer.width, columns = mixer.projected(), panels = (columns + PANEL - 1) / PANEL;
  std::vector<Vec> packed(panels * width * 2);
  for (int64_t half = 0; half < 2 * panels; half++) {
    int64_t first = half * LANES, present = std::clamp<int64_t>(columns - first, 0, LANES);
    pack_columns({d.x_proj, 1, width}, first, int(present), 0, width, packed.data() + half / 2 * width * 2 + half % 2);
  }
  return packed;
}

// u (length, E) times x_proj transposed -> (length, P); at most FORWARD_TILE tokens.
static void project(const Mixer& mixer, const std::vector<Vec>& x_proj, const IO* u, IO* to, int64_t length) {
  int64_t width = mixer.width, columns = mixer.projected();
  thread_local std::vector<Real> rows;  // of u in the dtype that is computed in, where that is another, or of the last
  for (int64_t t = 0; t < length; t += UP) {
    int64_t present = std::min<int64_t>(UP, length - t);
    const Real* left = reinterpret_cast<const Real*>(u + t * width);
    if (sizeof(IO) != sizeof(Real) || present < UP) {
      rows.assign(UP * width, 0);
      for (int64_t e = 0; e < present * width; e++) rows[e] = read(u + t * width + e);
      left = rows.data();
    }
    for (int64_t panel = 0; panel * PANEL < columns; panel++) {
      Vec sums[UP][2];
      tile<false>(width, left, width, x_proj.data() + panel * width * 2, sums);
      for (int64_t i = 0; i < present; i++)
        for (int half = 0; half < 2; half++) {
          int64_t p = panel * PANEL + half * LANES;
          if (p < columns) store(to + (t + i) * columns + p, sums[i][half], int(std::min<int64_t>(LANES, columns - p)));
        }
    }
  }
}

static void convolve_and_project(const Mixer& mixer) {
  int64_t tiles = (mixer.tokens + FORWARD_TILE - 1) / FORWARD_TILE;
  std::vector<std::vector<Filter>> filters(mixer.directions);
  std::vector<std::vector<Vec>> x_proj(mixer.directions);
  for (int64_t i = 0; i < mixer.directions; i++) {
    filters[i] = all_filters(mixer.conv(mixer.direction[i]));
    x_proj[i] = packed_x_proj(mixer, mixer.direction[i]);
  }
  parallel(mixer.batch * tiles, mixer.threads, [&](int64_t task) {
    int64_t b = task / tiles, first = task % tiles * FORWARD_TILE, last = std::min(mixer.tokens, first + FORWARD_TILE);
    for (int64_t i = 0; i < mixer.directions; i++) {
      const Direction& d = mixer.direction[i];
      Rows<IO> u = mixer.rows(d.u, mixer.width), projection = mixer.rows(d.projection, mixer.projected());
      convolve_tile(mixer.conv(d), filters[i], u, b, first, last);
      project(mixer, x_proj[i], u.at(b, first), projection.at(b, first), last - first);
    }
  });
}

static Scan scan_of(const Mixer& mixer, int64_t i) {
  const Direction& d = mixer.direction[i];
  Rows<IO> projection = mixer.rows(d.projection, mixer.projected());
  auto part = [&](int64_t from) { return Rows<const IO>{projection.data + from, projection.batch, projection.token}; };
  int64_t row = mixer.tokens * mixer.width;
  Scan scan{};
  scan.batch = mixer.batch, scan.tokens = mixer.tokens, scan.width = mixer.width, scan.states = mixer.states;
  scan.rank = mixer.rank, scan.threads = mixer.threads, scan.reverse = d.reverse;
  scan.softplus = scan.log_decay = 1;
  scan.boundaries = mixer.boundaries, scan.sequences = mixer.sequences;
  scan.x = {d.u, row, mixer.width}, scan.delta = part(0);
  scan.weight = d.dt_proj, scan.bias = d.dt_bias, scan.A = d.A_log, scan.D = d.D;
  scan.B = part(mixer.rank), scan.C = part(mixer.rank + mixer.states);
  scan.z = mixer.z, scan.other = mixer.other, scan.scale = mixer.scale;
  scan.carry = d.carry;
  return scan;
}

static void mixer_forward(const Mixer& mixer) {
  convolve_and_project(mixer);
  for (int64_t i = 0; i < mixer.directions; i++) {
    const Direction& d = mixer.direction[i];
    // A chunk of u is read before the same chunk is written.
    scan_forward(scan_of(mixer, i), {mixer.rows(d.u, mixer.width), d.partial, d.states, mixer.slots});
  }
}
