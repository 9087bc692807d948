// A block, forward: norm and input projection; convolution, SiLU and x_proj of every direction in one pass over the
// tokens; the scans of all directions; their mean, gated; output projection and residual.
//
// A long image is taken in chunks, one direction after the other, so that few tensors are as long as the image: its input,
// what the first direction gives, and the output. For the second direction the input projection is made once more.
#pragma once
#include "forward_space.h"

// Norm and input projection of what a window sees: xz (B, seen, columns).
static void project_in(const Block& block, const ForwardSpace& space, Window window, int64_t columns) {
  int64_t seen = window.seen_length(), channels = block.channels, rows = block.batch * seen;
  auto normalised = [&](int64_t row) {
    int64_t from = (row / seen * block.tokens + window.seen + row % seen) * channels;
    Left* to = space.left + row * filled(channels);
    const Real* x = static_cast<const Real*>(block.x) + from;
    if (block.norm_weight) normalise(x, block.norm_weight, channels, Real(block.eps), to);
    else if (block.x_is_real())
      each_vector(channels, [&](int64_t e, int lanes) { store(to + e, load_real(x + e, lanes), lanes); });
    else
      each_vector(channels, [&](int64_t e, int lanes) {
        store(to + e, load(static_cast<const IO*>(block.x) + from + e, lanes), lanes);
      });
  };
#ifdef STORED_BF16
  PackedStored right = space.in_proj;
  right.N = columns;
  multiply_stored(rows, space.left, right, block.threads, normalised,
                  [&](int64_t row, int64_t column, int64_t count, const Real* sums) {
    IO* to = space.xz + row * columns + column;
    each_vector(count, [&](int64_t e, int lanes) { store(to + e, load_real(sums + e, lanes), lanes); });
  });
#else
  Matmul call{rows, columns, channels, block.threads, {space.left, channels, 1}, {}, nullptr, 0, space.xz, columns};
  multiply(call, space.in_proj, 0, space.in_proj.slices(), normalised);
#endif
}

// u (length, E) times x_proj transposed -> (length, P).
static void project(const Block& block, const Packed& x_proj, const IO* u, IO* to, int64_t length) {
  int64_t width = block.width, columns = block.projected();
  thread_local std::vector<Real> rows;  // of u in the dtype that is computed in, where that is another, or the last few
  for (int64_t t = 0; t < length; t += UP) {
    int64_t present = std::min<int64_t>(UP, length - t);
    const Real* left = reinterpret_cast<const Real*>(u + t * width);
    if (!SAME || present < UP) {
      rows.assign(UP * width, 0);
      for (int64_t e = 0; e < present * width; e++) rows[e] = read(u + t * width + e);
      left = rows.data();
    }
    for (int64_t panel = 0; panel < x_proj.panels(); panel++) {
      Vec sums[UP][2]{};
      for (int64_t slice = 0; slice < x_proj.slices(); slice++) {
        Vec more[UP][2];
        tile<false>(x_proj.depth(slice), left + x_proj.begin(slice), width, x_proj.at(slice, panel), more);
        for (int i = 0; i < UP; i++) sums[i][0] += more[i][0], sums[i][1] += more[i][1];
      }
      for (int64_t i = 0; i < present; i++)
        for (int half = 0; half < 2; half++) {
          int64_t p = panel * PANEL + half * LANES;
          if (p < columns) store(to + (t + i) * columns + p, sums[i][half], int(std::min<int64_t>(LANES, columns - p)));
        }
    }
  }
}

// What a direction makes of a window: where x is found in xz, u, the projection, and the boundaries as they see them.
struct Part {
  const Block& block;
  const Direction& direction;
  Window window;
  const IO* xz;
  int64_t columns;  // of xz
  IO *u, *projection;
  int64_t boundaries[2], visible[2];

  Part(const Block& block, int64_t i, Window window, const IO* xz, int64_t columns, IO* u, IO* projection)
      : block(block), direction(block.direction[i]), window(window), xz(xz), columns(columns), u(u),
        projection(projection), boundaries{0, window.length()},
        visible{window.seen - window.first, window.seen_end - window.first} {}

  Rows<const IO> of_xz(int64_t column) const {
    return {xz + (window.first - window.seen) * columns + column, window.seen_length() * columns, columns};
  }
  template <class Element>
  Rows<Element> rows(Element* data, int64_t width) const {
    return {data, window.length() * width, width};
  }
  Conv conv() const {
    const Direction& d = direction;
    return {block.batch, window.length(), block.width, block.taps, block.threads, d.reverse, 1,
            block.chunk ? visible : block.boundaries, block.chunk ? 1 : block.sequences, of_xz(0), d.filter,
            d.filter_bias};
  }
  Scan scan(Real* carry) const {
    const Direction& d = direction;
    auto projected = [&](int64_t from) { return rows<const IO>(projection + from, block.projected()); };
    auto with = [&](Rows<const IO> r) { return Rows<const IO>{r.data, window.length() * block.projected(), r.token}; };
    Scan scan{};
    scan.batch = block.batch, scan.tokens = window.length(), scan.states = block.states;
    scan.width = scan.channels = block.width;
    scan.rank = block.rank, scan.threads = block.threads, scan.reverse = d.reverse;
    scan.softplus = scan.log_decay = 1;
    scan.boundaries = block.chunk ? boundaries : block.boundaries, scan.sequences = block.chunk ? 1 : block.sequences;
    scan.x = rows<const IO>(u, block.width), scan.delta = with(projected(0));
    scan.weight = d.dt_proj, scan.bias = d.dt_bias, scan.A = d.A_log, scan.D = d.D;
    scan.B = with(projected(block.rank)), scan.C = with(projected(block.rank + block.states));
    scan.carry = carry;
    return scan;
  }
};

static void convolve_and_project(const Block& block, const ForwardSpace& space, const std::vector<Part>& parts,
                                 int64_t first_direction) {
  int64_t length = parts[0].window.length(), tiles = (length + FORWARD_TILE - 1) / FORWARD_TILE;
  std::vector<std::vector<Filter>> filters;
  std::vector<Conv> convs;
  for (const Part& part : parts) convs.push_back(part.conv()), filters.push_back(all_filters(convs.back()));
  parallel(int64_t(parts.size()) * block.batch * tiles, block.threads, [&](int64_t task) {
    int64_t tile = task % tiles, b = task / tiles % block.batch, i = task / tiles / block.batch;
    int64_t first = tile * FORWARD_TILE, last = std::min(length, first + FORWARD_TILE);
    const Part& part = parts[i];
    Rows<IO> u = part.rows(part.u, block.width), projection = part.rows(part.projection, block.projected());
    convolve_tile(convs[i], filters[i], u, b, first, last);
    project(block, space.x_proj[first_direction + i], u.at(b, first), projection.at(b, first), last - first);
  });
}

// A row of the mean of what the directions gave, gated, for the output projection. `other` is the first direction's, if
// there are two.
struct Gate {
  const Block& block;
  const Part& part;
  const Real* raw;
  Rows<const Real> other;
  Left* to;
  int64_t to_row;  // its length

  void operator()(int64_t row) const {
    int64_t length = part.window.length(), width = block.width, b = row / length, t = row % length;
    Real scale = Real(1) / block.directions;
    const IO* z = part.of_xz(width).at(b, t);
    const Real *one = raw + row * width, *two = other ? other.at(b, t) : nullptr;
    each_vector(width, [&](int64_t e, int lanes) {
      Vec sum = load_real(one + e, lanes);
      if (two) sum += load_real(two + e, lanes);
      store(to + row * to_row + e, scale * sum * silu(load(z + e, lanes)), lanes);
    });
  }
};

static void project_out(const Block& block, const ForwardSpace& space, Window window, const Gate& gate, void* out) {
  int64_t length = window.length(), outputs = block.outputs, rows = block.batch * length;
#ifdef STORED_BF16
  multiply_stored(rows, gate.to, space.out_proj, block.threads, gate,
                  [&](int64_t row, int64_t column, int64_t count, const Real* sums) {
    int64_t to = (row / length * block.tokens + window.first + row % length) * outputs + column;
    each_vector(count, [&](int64_t e, int lanes) {
      Vec sum = load_real(sums + e, lanes);
      if (!block.residual) return store(static_cast<IO*>(out) + to + e, sum, lanes);
      store_real(static_cast<Real*>(out) + to + e,
                 as_stored(sum) + load_real(static_cast<const Real*>(block.x) + to + e, lanes), lanes);
    });
  });
#else
  int64_t width = block.width;
  bool whole = length == block.tokens;
  for (int64_t b = 0; b < (whole ? 1 : block.batch); b++) {
    int64_t first = (b * block.tokens + window.first) * outputs, before = b * length;
    const Real* x = block.residual ? static_cast<const Real*>(block.x) + first : nullptr;
    Matmul call{whole ? rows : length, outputs, width, block.threads, {gate.to + before * width, width, 1}, {}, x,
                outputs, static_cast<Real*>(out) + first, outputs};
    multiply(call, space.out_proj, 0, space.out_proj.slices(), [&](int64_t row) { gate(before + row); });
  }
#endif
}

// Where gated tokens go: over what the first scan read, where numbers are computed in as they are stored.
static Gate gate_of(const Block& block, const ForwardSpace& space, const Part& part, Rows<const Real> other) {
#ifdef STORED_BF16
  return {block, part, space.raw[0], other, space.left, filled(block.width)};
#else
  return {block, part, space.raw[0], other, space.u[0], block.width};
#endif
}

// All tokens and directions at once.
static void forward_whole(const Block& block, const ForwardSpace& space, void* out) {
  Window all = windows(block, false)[0];
  project_in(block, space, all, 2 * block.width);
  std::vector<Part> parts;
  std::vector<Scan> scans;
  std::vector<ScanOutput> outs;
  int64_t rows = block.rows();
  for (int64_t i = 0; i < block.directions; i++) {
    IO* projection = space.projections + i * rows * block.projected();
    parts.emplace_back(block, i, all, space.xz, 2 * block.width, space.u[i], projection);
    scans.push_back(parts[i].scan(nullptr));
    Real* before = block.before ? block.before + i * block.batch * block.slots * block.states * block.width : nullptr;
    outs.push_back({{}, parts[i].rows(space.raw[i], block.width), {}, before, block.slots});
  }
  convolve_and_project(block, space, parts, 0);
  scans_forward(scans.data(), outs.data(), block.directions, 1);
  bool two = block.directions > 1;
  Rows<const Real> other = two ? parts[0].rows<const Real>(space.raw[1], block.width) : Rows<const Real>{};
  project_out(block, space, all, gate_of(block, space, parts[0], other), out);
}

// One direction after the other, chunk by chunk.
static void forward_chunks(const Block& block, const ForwardSpace& space, void* out) {
  for (int64_t i = 0; i < block.directions; i++) {
    bool last = i + 1 == block.directions;
    int64_t columns = last ? 2 * block.width : block.width;
    std::fill_n(space.carry, block.batch * block.states * block.width, Real(0));
    for (Window window : windows(block, block.direction[i].reverse)) {
      project_in(block, space, window, columns);
      std::vector<Part> parts;
      parts.emplace_back(block, i, window, space.xz, columns, space.u[0], space.projections);
      convolve_and_project(block, space, parts, i);
      Rows<Real> whole{block.other + window.first * block.width, block.tokens * block.width, block.width};
      Rows<Real> raw = last ? parts[0].rows(space.raw[0], block.width) : whole;
      Scan scan = parts[0].scan(space.carry);
      ScanOutput output{{}, raw, {}, nullptr, 0};
      scans_forward(&scan, &output, 1, 1);
      if (!last) continue;
      Rows<const Real> other = i ? Rows<const Real>{whole.data, whole.batch, whole.token} : Rows<const Real>{};
      project_out(block, space, window, gate_of(block, space, parts[0], other), out);
    }
  }
}

static void block_forward(const Block& block, void* memory, void* out) {
  Space begin = Space::at(memory);
  ForwardSpace space(block, begin);
  pack_weights(block, space);
  (block.chunk ? forward_chunks : forward_whole)(block, space, out);
}

// Blocks of the same shape, one after the other. The parameters of those behind the first stand behind its own; what is
// between them is written to `out` too, so that they can't go in chunks, which look back at tokens.
static void blocks_forward(const Block& first, int64_t count, void* memory, void* out) {
  const Parameters* all = &first;
  Block block = first;
  for (int64_t i = 0; i < count; i++, block.x = out) {
    static_cast<Parameters&>(block) = all[i];
    block_forward(block, memory, out);
  }
}
