// A block, backward: what the forward did not save, the normalised input and what the convolutions and the scans gave
// included, is computed again. The directions follow one another and share their memory.
#pragma once
#include "block_forward.h"
#include "scan_backward.h"

// Each is shaped as what it is the gradient of.
struct DirectionGradients {
  Real *filter, *filter_bias;
  IO* x_proj;
  Real *dt_proj, *dt_bias, *A_log, *D;
};

struct BlockGradients {
  const IO* out;         // of the output, (B, M, D')
  const Real* residual;  // the same as the residual gets it, or null
  void* x;               // in x's dtype
  Real* norm_weight;
  IO *in_proj, *out_proj;
  DirectionGradients direction[2];
};

struct BackwardSpace {
  IO *dgated, *u, *dxz, *dprojection_io;
  Real *dy, *sum, *du, *ddelta, *dBC, *dprojection, *projection, *inverse;
  Real *dA, *dD, *dbias, *dfilter, *dnorm;

  BackwardSpace(const Block& block, Space& space) {
    int64_t rows = block.rows(), width = block.width, groups = scan_of(block).groups();
    dgated = space.take<IO>(rows * width);
    int64_t widest = std::max(width, block.channels);  // the normalised input and its gradient come to lie over u and du
    u = space.take<IO>(rows * widest);
    dxz = space.take<IO>(rows * 2 * width);
    du = space.take<Real>(rows * widest);
    for (Real** each : {&dy, &sum, &ddelta}) *each = space.take<Real>(rows * width);
    dBC = space.take<Real>(groups * rows * 2 * block.states);
    dprojection = space.take<Real>(rows * block.projected());
    dprojection_io = SAME ? nullptr : space.take<IO>(rows * block.projected());
    projection = SAME ? nullptr : space.take<Real>(rows * block.projected());
    inverse = space.take<Real>(rows);
    dA = space.take<Real>(block.batch * width * block.states);
    dD = space.take<Real>(block.batch * width);
    dbias = space.take<Real>(block.batch * width);
    dfilter = space.take<Real>(block.batch * ((block.tokens + TILE - 1) / TILE) * (block.taps + 1) * width);
    dnorm = space.take<Real>((rows + ROWS - 1) / ROWS * block.channels);
  }

  static Scan scan_of(const Block& block) {
    Scan scan{};
    scan.width = block.width;
    return scan;
  }
};

static int64_t block_backward_space(const Block& block) {
  Space counted{nullptr};
  BackwardSpace space(block, counted);
  return counted.used + BYTES;
}

// to (count, columns) = the sum of so many parts, each (count, columns), which lie `apart`; in their order.
static void sum_parts(const Real* parts, int64_t number, int64_t apart, int64_t count, int64_t columns, int64_t from_row,
                      Real* to, int64_t to_row, int64_t threads) {
  each_row(count, threads, [&](int64_t row) {
    each_vector(columns, [&](int64_t e, int lanes) {
      Vec total{};
      for (int64_t i = 0; i < number; i++) total += load_real(parts + i * apart + row * from_row + e, lanes);
      store_real(to + row * to_row + e, total, lanes);
    });
  });
}

// What the filters' parts, (parts, K + 1, E), say of the taps (E, K) and the bias.
static void sum_filters(const Block& block, const Real* parts, const DirectionGradients& to) {
  int64_t taps = block.taps, width = block.width;
  int64_t number = block.batch * ((block.tokens + TILE - 1) / TILE), apart = (taps + 1) * width;
  parallel((width + LANES - 1) / LANES, block.threads, [&](int64_t vector) {
    int64_t first = vector * LANES;
    int lanes = int(std::min<int64_t>(LANES, width - first));
    for (int64_t k = 0; k <= taps; k++) {
      Vec total{};
      for (int64_t i = 0; i < number; i++) total += load_real(parts + i * apart + k * width + first, lanes);
      if (k == taps) store_real(to.filter_bias + first, total, lanes);
      else
        for (int lane = 0; lane < lanes; lane++) to.filter[(first + lane) * taps + k] = total[lane];
    }
  });
}

// Gradients of the step's weight, x_proj and, added, of u, from those of the step, B and C.
static void projection_backward(const Block& block, const BackwardSpace& space, int64_t i, const DirectionGradients& to) {
  int64_t rows = block.rows(), width = block.width, P = block.projected(), rank = block.rank, threads = block.threads;
  const Direction& d = block.direction[i];
  const IO* saved = block.projections + i * rows * P;
  sum_parts(space.dBC, BackwardSpace::scan_of(block).groups(), rows * 2 * block.states, rows, 2 * block.states,
            2 * block.states, space.dprojection + rank, P, threads);
  matmul({rows, rank, width, threads, {space.ddelta, width, 1}, {d.dt_proj, rank, 1}, nullptr, 0, space.dprojection, P});
  const Real* projection = reinterpret_cast<const Real*>(saved);
  if (!SAME) {
    each_row(rows, threads, [&](int64_t row) {
      for (int64_t p = row * P; p < (row + 1) * P; p++) space.projection[p] = read(saved + p);
      each_vector(P, [&](int64_t p, int lanes) {
        store(space.dprojection_io + row * P + p, load_real(space.dprojection + row * P + p, lanes), lanes);
      });
    });
    projection = space.projection;
  }
  matmul({width, rank, rows, threads, {space.ddelta, 1, width}, {projection, P, 1}, nullptr, 0, to.dt_proj, rank});
  const IO* dprojection = SAME ? reinterpret_cast<const IO*>(space.dprojection) : space.dprojection_io;
  multiply_io(block, P, width, rows, dprojection, 1, P, space.u, width, 1, to.x_proj);
  matmul({rows, width, P, threads, {space.dprojection, P, 1}, {d.x_proj, width, 1}, space.du, width, space.du, width});
}

static void direction_backward(const Block& block, const BackwardSpace& space, int64_t i, const DirectionGradients& to) {
  int64_t rows = block.rows(), width = block.width, states = block.states, batch = block.batch, threads = block.threads;
  Window all{0, block.tokens, 0, block.tokens};
  Part part(block, i, all, block.xz, 2 * width, space.u, block.projections + i * rows * block.projected());
  Conv conv = part.conv();
  conv_forward(conv, part.rows(space.u, width));
  ScanGradients grads{};
  grads.raw_grad = part.rows<const Real>(space.dy, width);
  grads.before = block.before + i * batch * block.slots * states * width, grads.slots = block.slots;
  grads.dx = part.rows(space.du, width), grads.ddelta = part.rows(space.ddelta, width);
  grads.dBC = space.dBC, grads.dA = space.dA, grads.dD = space.dD, grads.dbias = space.dbias;
  grads.raw = part.rows(space.sum, width), grads.add = i > 0;
  Scan scan = part.scan(nullptr);
  scans_backward(&scan, &grads, 1, 1);
  sum_parts(space.dA, batch, width * states, width, states, states, to.A_log, states, threads);
  sum_parts(space.dD, batch, width, 1, width, 0, to.D, 0, threads);
  sum_parts(space.dbias, batch, width, 1, width, 0, to.dt_bias, 0, threads);
  projection_backward(block, space, i, to);
  Rows<IO> dx{space.dxz, block.tokens * 2 * width, 2 * width};
  conv_backward(conv, {part.rows<const Real>(space.du, width), dx, i > 0, space.dfilter});
  sum_filters(block, space.dfilter, to);
}

// Gradients of z, and what the output projection was given, over the gradient of it.
static void gate_backward(const Block& block, const BackwardSpace& space) {
  int64_t width = block.width;
  Real scale = Real(1) / block.directions;
  each_row(block.rows(), block.threads, [&](int64_t row) {
    const IO* z_row = block.xz + row * 2 * width + width;
    IO *dgated = space.dgated + row * width, *dz = space.dxz + row * 2 * width + width;
    each_vector(width, [&](int64_t e, int lanes) {
      Vec z = load(z_row + e, lanes), gate = sigmoid(z), grad = load(dgated + e, lanes);
      Vec sum = scale * load_real(space.sum + row * width + e, lanes);
      store(dz + e, grad * sum * silu_slope(z, gate), lanes);
      store(dgated + e, sum * z * gate, lanes);
    });
  });
}

// From the gradient of xz: of the input projection, the norm and x.
static void input_backward(const Block& block, const BackwardSpace& space, const BlockGradients& to) {
  int64_t rows = block.rows(), width = block.width, channels = block.channels, threads = block.threads;
  IO *normed = space.u, *dnormed = reinterpret_cast<IO*>(space.du);
  const Real* x = static_cast<const Real*>(block.x);
  each_row(rows, threads, [&](int64_t row) {
    int64_t first = row * channels;
    if (block.norm_weight)
      space.inverse[row] = normalise(x + first, block.norm_weight, channels, Real(block.eps), normed + first);
    else if (block.x_is_real())
      each_vector(channels, [&](int64_t e, int lanes) { store(normed + first + e, load_real(x + first + e, lanes), lanes); });
    else std::copy_n(static_cast<const IO*>(block.x) + first, channels, normed + first);
  });
  multiply_io(block, 2 * width, channels, rows, space.dxz, 1, 2 * width, normed, channels, 1, to.in_proj);
  multiply_io(block, rows, channels, 2 * width, space.dxz, 2 * width, 1, block.in_proj, channels, 1, dnormed);
  if (block.norm_weight) {
    Norm norm{rows, channels, threads, block.eps, x, block.norm_weight};
    norm_backward(norm, {dnormed, space.inverse, static_cast<Real*>(to.x), space.dnorm});
    sum_parts(space.dnorm, norm.tasks(), channels, 1, channels, 0, to.norm_weight, 0, threads);
  }
  each_row(rows, threads, [&](int64_t row) {
    int64_t first = row * channels;
    if (!block.x_is_real()) return void(std::copy_n(dnormed + first, channels, static_cast<IO*>(to.x) + first));
    Real* dx = static_cast<Real*>(to.x) + first;
    each_vector(channels, [&](int64_t e, int lanes) {
      Vec own = block.norm_weight ? load_real(dx + e, lanes) : load(dnormed + first + e, lanes);
      store_real(dx + e, block.residual ? own + load_real(to.residual + first + e, lanes) : own, lanes);
    });
  });
}

static void block_backward(const Block& block, void* memory, const BlockGradients& to) {
  Space begin = Space::at(memory);
  BackwardSpace space(block, begin);
  int64_t rows = block.rows(), width = block.width, outputs = block.outputs;
  Real scale = Real(1) / block.directions;
  multiply_io(block, rows, width, outputs, to.out, outputs, 1, block.out_proj, width, 1, space.dgated);
  each_row(rows, block.threads, [&](int64_t row) {
    const IO* z = block.xz + row * 2 * width + width;
    each_vector(width, [&](int64_t e, int lanes) {
      Vec grad = load(space.dgated + row * width + e, lanes);
      store_real(space.dy + row * width + e, scale * grad * silu(load(z + e, lanes)), lanes);
    });
  });
  for (int64_t i = 0; i < block.directions; i++) direction_backward(block, space, i, to.direction[i]);
  gate_backward(block, space);
  multiply_io(block, outputs, width, rows, to.out, 1, outputs, space.dgated, width, 1, to.out_proj);
  input_backward(block, space, to);
}
