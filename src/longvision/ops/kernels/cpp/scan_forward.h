// The selective scan, forward.
#pragma once
#include "scan.h"

#if defined(__AVX512F__) || defined(__aarch64__)
constexpr int AT_ONCE = 4;  // states whose recurrence runs at once: with 32 registers,
#else
constexpr int AT_ONCE = 2;  // and with 16, which hold h and a of two
#endif

// The recurrence of AT_ONCE states over a chunk; h is kept in registers.
template <bool INSIDE>
static inline void run(int length, States in, int64_t n, const Vec* step, const Vec* input, const Vec* A, Vec* state,
                       Vec* y) {
  Vec h[AT_ONCE], a[AT_ONCE];
#pragma GCC unroll 4
  for (int k = 0; k < AT_ONCE; k++) h[k] = state[n + k], a[k] = A[n + k];
  const Real *B = in.B + n, *C = in.C + n;
  for (int i = 0; i < length; i++, B += in.stride, C += in.stride) {
    Vec s = step[i], u = input[i], sum = y[i];
#pragma GCC unroll 4
    for (int k = 0; k < AT_ONCE; k++) {
      h[k] = (INSIDE ? exp2_inside(s, a[k]) : exp2(s, a[k])) * h[k] + u * B[k];
      sum += h[k] * C[k];
    }
    y[i] = sum;
  }
#pragma GCC unroll 4
  for (int k = 0; k < AT_ONCE; k++) state[n + k] = h[k];
}

// The state with which a sequence begins.
template <bool FULL>
static void start(const Scan& scan, const Channels<FULL>& c, int64_t b, Vec* state) {
  std::fill(state, state + scan.padded(), Vec{});
  if (!scan.carry) return;
  const Real* from = scan.carry + b * scan.states * scan.width + c.first;
  for (int64_t n = 0; n < scan.states; n++) state[n] = load_real(from + n * scan.width, c.lanes());
}

// Of a task's vectors, each (CHUNK): vector k, token i stands at [k * CHUNK + i].
struct ForwardWork {
  Vec *step, *input, *y;
};

// Before the recurrence, for two tokens: step, input and the part of the output that passes the states by. -> the longest
// steps.
template <bool FULL, int64_t MANY>
static inline void prepare(const Scan& scan, const Channels<FULL>* blocks, int64_t count, int64_t b, Pair pair, int i,
                           ForwardWork work, Vec* longest) {
  Vec raw[2][MANY];
  raw_steps(scan, blocks, count, b, pair, raw);
#pragma GCC unroll 2
  for (int j = 0; j < 2; j++) {
    const IO* x_row = scan.x.at(b, pair.token[j]);
#pragma GCC unroll 4
    for (int k = 0; k < MANY; k++) {
      if (!FULL && k >= count) break;
      Vec x = load(x_row + blocks[k].first, blocks[k].lanes());
      Vec step = scan.softplus ? softplus(raw[j][k]) : raw[j][k];
      longest[k] = longest[k] > step ? longest[k] : step;
      work.step[k * CHUNK + i + j] = step;
      work.input[k * CHUNK + i + j] = step * x;
      work.y[k * CHUNK + i + j] = blocks[k].D * x;
    }
  }
}

// After it: a token's outputs.
template <bool FULL, int64_t MANY>
static inline void write(const Scan& scan, const ScanOutput& out, const Channels<FULL>* blocks, int64_t count, int64_t b,
                         int64_t t, const Vec* y) {
#pragma GCC unroll 4
  for (int k = 0; k < MANY; k++) {
    if (!FULL && k >= count) break;
    int64_t first = blocks[k].first;
    int lanes = blocks[k].lanes();
    Vec sum = y[k * CHUNK];
    if (out.raw) {
      store_real(out.raw.at(b, t) + first, sum, lanes);
      continue;
    }
    if (scan.z) sum *= silu(load(scan.z.at(b, t) + first, lanes));
    store(out.y.at(b, t) + first, sum, lanes);
  }
}

template <bool FULL, int64_t MANY>
static void scan_forward_task(const Scan& scan, const ScanOutput& out, const std::vector<Chunk>& chunks, int64_t b,
                              int64_t group) {
  int64_t padded = scan.padded(), first_block = group * MANY;
  int64_t count = FULL ? MANY : std::min(MANY, scan.blocks() - first_block);
  Arena arena(count * (2 * padded + scan.rank + 3 * CHUNK) + 2 * (CHUNK * padded / LANES + 1));
  Channels<FULL> blocks[MANY];
  for (int64_t k = 0; k < count; k++) blocks[k] = channels<FULL>(scan, first_block + k, arena);
  Vec* states = arena.vectors(count * padded);
  ForwardWork work{arena.vectors(count * CHUNK), arena.vectors(count * CHUNK), arena.vectors(count * CHUNK)};
  Real* space = arena.reals(2 * CHUNK * padded);
  int direction = scan.order().step();

  int64_t first = blocks[0].first, width = std::min<int64_t>(count * LANES, scan.width - first);
  auto ask_before = [&](Chunk chunk, int i) __attribute__((always_inline)) {
    int64_t t = chunk.first + i * direction;
    prefetch(scan.x, b, t, first, width);
    if (!scan.rank) prefetch(scan.delta, b, t, first, width);
  };
  auto ask_after = [&](Chunk chunk, int i) __attribute__((always_inline)) {
    int64_t t = chunk.first + i * direction;
    prefetch(out.raw, b, t, first, width);
    prefetch(out.y, b, t, first, width);
    prefetch(scan.z, b, t, first, width);
  };

  for (size_t p = 0; p < chunks.size(); p++) {
    Chunk chunk = chunks[p];
    Vec longest[MANY]{};
    for (int i = 0; i < chunk.length; i += 2) {
      if (i + AHEAD < chunk.length) ask_before(chunk, i + AHEAD);
      if (i + 1 + AHEAD < chunk.length) ask_before(chunk, i + 1 + AHEAD);
      prepare<FULL, MANY>(scan, blocks, count, b, Pair(chunk, i, direction), i, work, longest);
    }

    States in = states_of(scan, b, chunk, space);
    for (int64_t k = 0; k < count; k++) {
      const Channels<FULL>& c = blocks[k];
      Vec* h = states + k * padded;
      if (chunk.fresh) start(scan, c, b, h);
      if (out.before) save(scan, c, h, out.before + (b * out.slots + int64_t(p)) * scan.states * scan.width);
      if (k + 1 == count)
        for (int i = 0; i < std::min(AHEAD, chunk.length); i++) ask_after(chunk, i);
      Vec *step = work.step + k * CHUNK, *input = work.input + k * CHUNK, *y = work.y + k * CHUNK;
      auto run_all = decays_inside(scan, c, longest[k]) ? run<true> : run<false>;
      for (int64_t n = 0; n < padded; n += AT_ONCE) run_all(chunk.length, in, n, step, input, c.A, h, y);
      if (scan.carry && p + 1 == chunks.size()) save(scan, c, h, scan.carry + b * scan.states * scan.width);
    }

    for (int i = 0; i < chunk.length; i++) {
      int next = i + AHEAD - chunk.length;
      if (next < 0) ask_after(chunk, i + AHEAD);
      else if (p + 1 < chunks.size() && next < chunks[p + 1].length) ask_before(chunks[p + 1], next);
      write<FULL, MANY>(scan, out, blocks, count, b, chunk.first + i * direction, work.y + i);
    }
  }
}

// Scans of the same shape, whose tasks all run beside each other.
static void scans_forward(const Scan* scans, const ScanOutput* outs, int64_t count) {
  std::vector<Chunk> chunks[2];
  for (int64_t i = 0; i < count; i++) {
    const Scan& scan = scans[i];
    const ScanOutput& out = outs[i];
    chunks[i] = scan.order().chunks();
    int64_t slot = scan.states * scan.width, used = int64_t(chunks[i].size());
    for (int64_t b = 0; out.before && b < scan.batch; b++)  // slots that the boundaries left over
      std::fill(out.before + (b * out.slots + used) * slot, out.before + (b + 1) * out.slots * slot, 0);
  }
  auto run = [&](auto many) {
    each_group<many.value>(scans, count, [&](auto full, int64_t i, int64_t b, int64_t group) {
      scan_forward_task<full.value, many.value>(scans[i], outs[i], chunks[i], b, group);
    });
  };
  // Channels have nothing to do with each other: for many threads there are more tasks, of a cache line each.
  if (count * scans[0].batch * scans[0].groups() >= ENOUGH * scans[0].threads) run(std::integral_constant<int64_t, GROUP>{});
  else run(std::integral_constant<int64_t, (BYTES < LINE ? LINE / BYTES : 1)>{});
}

static void scan_forward(const Scan& scan, const ScanOutput& out) { scans_forward(&scan, &out, 1); }
