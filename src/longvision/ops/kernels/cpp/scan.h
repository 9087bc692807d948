// The selective scan, forward and backward: as selective_scan/reference.py says it, LANES channels at a time.
//
// A task is one row of the batch and GROUP vectors of channels. It takes the tokens in chunks; for each chunk it first
// computes what one token does not owe to another (step, input), then runs the recurrence for a few states at a time,
// which keeps them in registers, and then writes. Whatever a chunk needs stays in the first caches.
#pragma once
#include <algorithm>
#include <cmath>
#include <memory>

#include "rows.h"
#include "sequences.h"
#include "threads.h"
#include "vector.h"

constexpr int STATES = 4;     // states whose recurrence runs at once
constexpr int64_t GROUP = 4;  // vectors of channels in a task: neighbours share cache lines, and sums over channels

// The fields are 8 bytes each, in the order in which cpu.py packs them.
struct Scan {
  int64_t batch, tokens, width, states, rank, threads;
  int64_t reverse, softplus, log_decay;
  const int64_t* boundaries;
  int64_t sequences;
  Rows<const IO> x, delta;      // delta (B, M, E), or if rank > 0 (B, M, rank), to be multiplied by `weight`
  const Real* weight;           // (E, rank)
  const Real* bias;             // (E)
  const Real* A;                // (E, N); with log_decay, log(-A)
  Rows<const IO> B, C;
  const Real* D;                // (E)
  Rows<const IO> z;             // gate
  Rows<const Real> other;       // what the other direction gave, to be added before the gate
  double scale;                 // of the sum
  Real* carry;                  // (B, N, E): state before the first token, and then behind the last; null: zero

  int64_t blocks() const { return (width + LANES - 1) / LANES; }
  int64_t groups() const { return (blocks() + GROUP - 1) / GROUP; }
  int64_t padded() const { return (states + STATES - 1) / STATES * STATES; }
  Sequences order() const { return {boundaries, sequences, reverse != 0}; }
};

struct ScanOutput {
  Rows<IO> y;        // scale * (y + other) * silu(z)
  Rows<Real> partial;  // or, if given, y alone, for the direction that comes second
  Real* before;      // (B, chunks, N, E) state before each chunk, or null
  int64_t slots;     // chunks that `before` has space for
};

struct ScanGradients {
  Rows<const IO> grad;     // of y
  const Real* before;
  int64_t slots;
  Rows<Real> dx, ddelta;   // (B, M, E); ddelta before bias and softplus
  Real* dBC;               // (groups, B, M, 2 N): to be summed over the groups
  Real *dA, *dD, *dbias;   // (B, E, N), (B, E), (B, E): to be summed over the batch
  Rows<Real> partial;      // as in the forward: y alone, or, in the last direction,
  Rows<IO> gated, dz;      // the forward's y, and the gradient of z
};

// One vector of channels: what all its tokens share.
struct Channels {
  int64_t first;
  int lanes;
  Vec D, bias;
  Vec* A;       // (states) times log2(e), so that decays are powers of two
  Vec* weight;  // (rank)
};

// What a task works in, one after the other in one block of memory.
struct Arena {
  std::unique_ptr<char[]> memory;
  char* next;
  explicit Arena(int64_t vectors) : memory(new char[(vectors + 1) * BYTES]) {
    next = memory.get() + (BYTES - reinterpret_cast<uintptr_t>(memory.get()) % BYTES) % BYTES;
  }
  Vec* vectors(int64_t count) {
    Vec* taken = reinterpret_cast<Vec*>(next);
    next += count * BYTES;
    return taken;
  }
  Real* reals(int64_t count) { return reinterpret_cast<Real*>(vectors((count + LANES - 1) / LANES)); }
};

static Channels channels(const Scan& scan, int64_t block, Arena& arena) {
  Channels c;
  c.first = block * LANES;
  c.lanes = int(std::min<int64_t>(LANES, scan.width - c.first));
  c.D = scan.D ? load_real(scan.D + c.first, c.lanes) : Vec{};
  c.bias = scan.bias ? load_real(scan.bias + c.first, c.lanes) : Vec{};
  c.A = arena.vectors(scan.padded());
  c.weight = arena.vectors(scan.rank);
  for (int64_t n = 0; n < scan.padded(); n++) {
    Vec A = n < scan.states ? gather(scan.A + c.first * scan.states + n, scan.states, c.lanes) : Vec{};
    c.A[n] = LOG2E * (scan.log_decay && n < scan.states ? -exp(A) : A);
  }
  for (int64_t r = 0; r < scan.rank; r++) c.weight[r] = gather(scan.weight + c.first * scan.rank + r, scan.rank, c.lanes);
  return c;
}

// Rows are far apart, and the recurrence is longer than what a processor looks ahead: unasked, the next rows' way from
// memory would come on top of it.
template <class Element>
static inline void prefetch(Rows<Element> rows, int64_t b, Chunk chunk, int step, int64_t channel) {
  if (rows)
    for (int i = 0; i < chunk.length; i++) __builtin_prefetch(rows.at(b, chunk.first + i * step) + channel);
}

// B or C of a chunk, (length, padded states), in the order of the scan.
static void load_states(const Scan& scan, Rows<const IO> from, int64_t b, Chunk chunk, Real* to) {
  int64_t padded = scan.padded();
  for (int i = 0; i < chunk.length; i++) {
    const IO* row = from.at(b, chunk.first + i * scan.order().step());
    for (int64_t n = 0; n < scan.states; n++) to[i * padded + n] = read(row + n);
    for (int64_t n = scan.states; n < padded; n++) to[i * padded + n] = 0;
  }
}

// Step size before the softplus, for each token of a chunk.
static void raw_steps(const Scan& scan, const Channels& c, int64_t b, Chunk chunk, Vec* to) {
  int step = scan.order().step();
  if (!scan.rank) {
    for (int i = 0; i < chunk.length; i++)
      to[i] = load(scan.delta.at(b, chunk.first + i * step) + c.first, c.lanes) + c.bias;
    return;
  }
  constexpr int AT_ONCE = 4;  // tokens, so that a weight is loaded once for all
  for (int i = 0; i < chunk.length; i += AT_ONCE) {
    const IO* low[AT_ONCE];
    Vec sum[AT_ONCE];
    for (int j = 0; j < AT_ONCE; j++) {
      low[j] = scan.delta.at(b, chunk.first + std::min(i + j, chunk.length - 1) * step);
      sum[j] = c.bias;
    }
    for (int64_t r = 0; r < scan.rank; r++)
      for (int j = 0; j < AT_ONCE; j++) sum[j] += c.weight[r] * read(low[j] + r);
    for (int j = 0; j < AT_ONCE && i + j < chunk.length; j++) to[i + j] = sum[j];
  }
}

// The recurrence of STATES states over a chunk; h is kept in registers.
static inline void run(int length, int64_t stride, const Vec* step, const Vec* input, const Vec* A, const Real* B,
                       const Real* C, Vec* state, Vec* y) {
  Vec h[STATES], a[STATES];
  for (int n = 0; n < STATES; n++) h[n] = state[n], a[n] = A[n];
  for (int i = 0; i < length; i++) {
    Vec s = step[i], u = input[i], sum = y[i];
    const Real *b = B + i * stride, *c = C + i * stride;
#pragma GCC unroll 4
    for (int n = 0; n < STATES; n++) {
      h[n] = exp2(s * a[n]) * h[n] + u * b[n];
      sum += h[n] * c[n];
    }
    y[i] = sum;
  }
  for (int n = 0; n < STATES; n++) state[n] = h[n];
}

static void save(const Scan& scan, const Channels& c, const Vec* state, Real* to) {
  for (int64_t n = 0; n < scan.states; n++) store_real(to + n * scan.width + c.first, state[n], c.lanes);
}

// The state with which a sequence begins.
static void start(const Scan& scan, const Channels& c, int64_t b, Vec* state) {
  std::fill(state, state + scan.padded(), Vec{});
  if (!scan.carry) return;
  const Real* from = scan.carry + b * scan.states * scan.width + c.first;
  for (int64_t n = 0; n < scan.states; n++) state[n] = load_real(from + n * scan.width, c.lanes);
}

static void scan_forward_task(const Scan& scan, const ScanOutput& out, const std::vector<Chunk>& chunks, int64_t b,
                              int64_t first_block) {
  int64_t padded = scan.padded(), count = std::min(GROUP, scan.blocks() - first_block);
  Arena arena(count * (2 * padded + scan.rank) + 3 * CHUNK + 2 * (CHUNK * padded / LANES + 1));
  Channels blocks[GROUP];
  for (int64_t k = 0; k < count; k++) blocks[k] = channels(scan, first_block + k, arena);
  Vec *states = arena.vectors(count * padded), *step = arena.vectors(CHUNK), *input = arena.vectors(CHUNK),
      *y = arena.vectors(CHUNK);
  Real *B = arena.reals(CHUNK * padded), *C = arena.reals(CHUNK * padded);
  int direction = scan.order().step();

  for (size_t p = 0; p < chunks.size(); p++) {
    Chunk chunk = chunks[p];
    load_states(scan, scan.B, b, chunk, B);
    load_states(scan, scan.C, b, chunk, C);
    for (int64_t k = 0; k < count; k++) {
      const Channels& c = blocks[k];
      Vec* h = states + k * padded;
      if (chunk.fresh) start(scan, c, b, h);
      if (out.before) save(scan, c, h, out.before + (b * out.slots + int64_t(p)) * scan.states * scan.width);

      raw_steps(scan, c, b, chunk, step);
      for (int i = 0; i < chunk.length; i++) {
        Vec x = load(scan.x.at(b, chunk.first + i * direction) + c.first, c.lanes);
        if (scan.softplus) step[i] = softplus(step[i]);
        input[i] = step[i] * x;
        y[i] = c.D * x;
      }
      if (k + 1 < count || p + 1 < chunks.size()) {
        Chunk next = k + 1 < count ? chunk : chunks[p + 1];
        int64_t channel = blocks[k + 1 < count ? k + 1 : 0].first;
        prefetch(scan.x, b, next, direction, channel);
        if (!scan.rank) prefetch(scan.delta, b, next, direction, channel);
        if (!out.partial) prefetch(scan.z, b, next, direction, channel), prefetch(scan.other, b, next, direction, channel);
      }
      for (int64_t n = 0; n < padded; n += STATES)
        run(chunk.length, padded, step, input, c.A + n, B + n, C + n, h + n, y);

      for (int i = 0; i < chunk.length; i++) {
        int64_t t = chunk.first + i * direction;
        if (out.partial) {
          store_real(out.partial.at(b, t) + c.first, y[i], c.lanes);
          continue;
        }
        Vec sum = y[i];
        if (scan.other) sum += load_real(scan.other.at(b, t) + c.first, c.lanes);
        sum *= Real(scan.scale);
        if (scan.z) sum *= silu(load(scan.z.at(b, t) + c.first, c.lanes));
        store(out.y.at(b, t) + c.first, sum, c.lanes);
      }
      if (scan.carry && p + 1 == chunks.size()) save(scan, c, h, scan.carry + b * scan.states * scan.width);
    }
  }
}

static void scan_forward(const Scan& scan, const ScanOutput& out) {
  std::vector<Chunk> chunks = scan.order().chunks();
  int64_t slot = scan.states * scan.width;
  for (int64_t b = 0; out.before && b < scan.batch; b++)  // slots that the boundaries left over
    std::fill(out.before + (b * out.slots + int64_t(chunks.size())) * slot, out.before + (b + 1) * out.slots * slot, 0);
  int64_t groups = scan.groups();
  parallel(scan.batch * groups, scan.threads, [&](int64_t task) {
    scan_forward_task(scan, out, chunks, task / groups, task % groups * GROUP);
  });
}

// The backward pass. With g_t = dL/dh_t = C_t dy_t + a_{t+1} g_{t+1} and a_t = exp(step_t A), against the scan:
//   d(step x) = g B, dB = g (step x), dC = h dy, d(step A) = g a h_{t-1}.
// A chunk is first gone through as in the forward, from the state saved before it, and then back, for a few states at a time:
// their decays and the states that each token found stay in the first cache in between.

// Of a chunk and one vector of channels: all in the order of the scan.
struct ChunkWork {
  Vec *raw, *slope, *step, *x, *input, *gate, *dy, *y, *dinput, *dstep;
  Vec *decay, *found;  // (CHUNK, STATES)
};

static inline void run_back(int length, int64_t stride, const ChunkWork& w, const Vec* A, const Real* B, const Real* C,
                            const Vec* state, Vec* carry, Vec* dA, bool first, Vec* dBC, int64_t dC_offset) {
  Vec h[STATES], a[STATES];
  for (int n = 0; n < STATES; n++) h[n] = state[n], a[n] = A[n];
  for (int i = 0; i < length; i++) {
    Vec s = w.step[i], u = w.input[i], dy = w.dy[i], sum = w.y[i];
    const Real *b = B + i * stride, *c = C + i * stride;
    Vec* dC = dBC + 2 * i * stride + dC_offset;
#pragma GCC unroll 4
    for (int n = 0; n < STATES; n++) {
      Vec decay = exp2(s * a[n]);
      w.decay[i * STATES + n] = decay;
      w.found[i * STATES + n] = h[n];
      h[n] = decay * h[n] + u * b[n];
      sum += h[n] * c[n];
      dC[n] = first ? h[n] * dy : dC[n] + h[n] * dy;
    }
    w.y[i] = sum;
  }
  Vec g[STATES], da[STATES];
  for (int n = 0; n < STATES; n++) g[n] = carry[n], da[n] = dA[n];
  for (int i = length - 1; i >= 0; i--) {
    Vec s = w.step[i], u = w.input[i], dy = w.dy[i], dinput = w.dinput[i], dstep = w.dstep[i];
    const Real *b = B + i * stride, *c = C + i * stride;
    Vec* dB = dBC + 2 * i * stride;
#pragma GCC unroll 4
    for (int n = 0; n < STATES; n++) {
      Vec dh = dy * c[n] + g[n];
      dB[n] = first ? dh * u : dB[n] + dh * u;
      dinput += dh * b[n];
      g[n] = dh * w.decay[i * STATES + n];
      Vec dexponent = g[n] * w.found[i * STATES + n];
      dstep += dexponent * a[n];
      da[n] += dexponent * s;
    }
    w.dinput[i] = dinput;
    w.dstep[i] = dstep;
  }
  for (int n = 0; n < STATES; n++) carry[n] = g[n], dA[n] = da[n];
}

static void scan_backward_task(const Scan& scan, const ScanGradients& out, const std::vector<Chunk>& chunks, int64_t b,
                               int64_t group) {
  int64_t padded = scan.padded(), first_block = group * GROUP, count = std::min(GROUP, scan.blocks() - first_block);
  int64_t sums = CHUNK * 2 * padded;
  Arena arena(count * (3 * padded + scan.rank) + 10 * CHUNK + 2 * CHUNK * STATES + padded + sums + LANES +
              2 * (CHUNK * padded / LANES + 1));
  Channels blocks[GROUP];
  for (int64_t k = 0; k < count; k++) blocks[k] = channels(scan, first_block + k, arena);
  Vec *carries = arena.vectors(count * padded), *dAs = arena.vectors(count * padded);
  Vec* before = arena.vectors(padded);
  ChunkWork w;
  for (Vec** each : {&w.raw, &w.slope, &w.step, &w.x, &w.input, &w.gate, &w.dy, &w.y, &w.dinput, &w.dstep})
    *each = arena.vectors(CHUNK);
  w.decay = arena.vectors(CHUNK * STATES), w.found = arena.vectors(CHUNK * STATES);
  Vec* dBC = arena.vectors(sums + LANES);  // (CHUNK, 2, padded states): lanes are summed last; space to sum in full
  Real *B = arena.reals(CHUNK * padded), *C = arena.reals(CHUNK * padded);
  Vec dDs[GROUP]{}, dbiases[GROUP]{};
  std::fill(dAs, dAs + count * padded, Vec{});
  int direction = scan.order().step();

  for (int64_t p = int64_t(chunks.size()) - 1; p >= 0; p--) {
    Chunk chunk = chunks[p];
    bool last = p + 1 == int64_t(chunks.size()) || chunks[p + 1].fresh;  // of its sequence: nothing comes back to it
    load_states(scan, scan.B, b, chunk, B);
    load_states(scan, scan.C, b, chunk, C);
    for (int64_t k = 0; k < count; k++) {
      const Channels& c = blocks[k];
      Vec *carry = carries + k * padded, *dA = dAs + k * padded;
      if (last) std::fill(carry, carry + padded, Vec{});
      for (int64_t n = 0; n < padded; n++) {
        const Real* saved = out.before + ((b * out.slots + p) * scan.states + n) * scan.width + c.first;
        before[n] = n < scan.states ? load_real(saved, c.lanes) : Vec{};
      }

      raw_steps(scan, c, b, chunk, w.raw);
      for (int i = 0; i < chunk.length; i++) {
        int64_t t = chunk.first + i * direction;
        Vec x = load(scan.x.at(b, t) + c.first, c.lanes);
        Vec dy = Real(scan.scale) * load(out.grad.at(b, t) + c.first, c.lanes);
        if (scan.z) {
          Vec z = load(scan.z.at(b, t) + c.first, c.lanes);
          w.gate[i] = sigmoid(z);
          dy *= z * w.gate[i];
        }
        w.step[i] = scan.softplus ? softplus(w.raw[i], w.slope[i]) : w.raw[i];
        w.x[i] = x;
        w.input[i] = w.step[i] * x;
        w.dy[i] = dy;
        w.y[i] = c.D * x;
        w.dinput[i] = w.dstep[i] = Vec{};
        dDs[k] += dy * x;
      }
      if (k + 1 < count || p > 0) {
        Chunk next = k + 1 < count ? chunk : chunks[p - 1];
        int64_t channel = blocks[k + 1 < count ? k + 1 : 0].first;
        prefetch(scan.x, b, next, direction, channel);
        prefetch(out.grad, b, next, direction, channel);
        if (!scan.rank) prefetch(scan.delta, b, next, direction, channel);
        prefetch(scan.z, b, next, direction, channel);
        if (out.dz) prefetch(scan.other, b, next, direction, channel);
      }
      for (int64_t n = 0; n < padded; n += STATES)
        run_back(chunk.length, padded, w, c.A + n, B + n, C + n, before + n, carry + n, dA + n, k == 0, dBC + n, padded);

      for (int i = 0; i < chunk.length; i++) {
        int64_t t = chunk.first + i * direction;
        store_real(out.dx.at(b, t) + c.first, w.dinput[i] * w.step[i] + c.D * w.dy[i], c.lanes);
        Vec dstep = w.dinput[i] * w.x[i] + LN2 * w.dstep[i];
        if (scan.softplus) dstep *= w.slope[i];
        store_real(out.ddelta.at(b, t) + c.first, dstep, c.lanes);
        dbiases[k] += dstep;
        if (out.partial) store_real(out.partial.at(b, t) + c.first, w.y[i], c.lanes);
        if (!out.dz) continue;
        Vec sum = w.y[i];
        if (scan.other) sum += load_real(scan.other.at(b, t) + c.first, c.lanes);
        sum *= Real(scan.scale);
        Vec z = load(scan.z.at(b, t) + c.first, c.lanes), gate = w.gate[i];
        if (out.gated) store(out.gated.at(b, t) + c.first, sum * z * gate, c.lanes);
        Vec grad = load(out.grad.at(b, t) + c.first, c.lanes);
        store(out.dz.at(b, t) + c.first, grad * sum * silu_slope(z, gate), c.lanes);
      }
    }
    Real* to = out.dBC + ((group * scan.batch + b) * scan.tokens) * 2 * scan.states;
    for (int i = 0; i < chunk.length; i++)
      for (int64_t half = 0; half < 2; half++)
        for (int64_t n = 0; n < scan.states; n += LANES)
          store_real(to + ((chunk.first + i * direction) * 2 + half) * scan.states + n,
                     sum_lanes(dBC + (2 * i + half) * padded + n), int(std::min<int64_t>(LANES, scan.states - n)));
  }

  for (int64_t k = 0; k < count; k++) {
    const Channels& c = blocks[k];
    store_real(out.dD + b * scan.width + c.first, dDs[k], c.lanes);
    store_real(out.dbias + b * scan.width + c.first, dbiases[k], c.lanes);
    for (int64_t n = 0; n < scan.states; n++) {
      Vec dA = dAs[k * padded + n];
      if (scan.log_decay) dA *= c.A[n] * LN2;  // dA / dlog(-A) = A
      for (int lane = 0; lane < c.lanes; lane++)
        out.dA[(b * scan.width + c.first + lane) * scan.states + n] = dA[lane];
    }
  }
}

static void scan_backward(const Scan& scan, const ScanGradients& out) {
  std::vector<Chunk> chunks = scan.order().chunks();
  int64_t groups = scan.groups();
  parallel(scan.batch * groups, scan.threads,
           [&](int64_t task) { scan_backward_task(scan, out, chunks, task / groups, task % groups); });
}
