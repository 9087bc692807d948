// The selective scan, forward.
#pragma once
#include "scan.h"

#if defined(__AVX512F__) || defined(__aarch64__)
constexpr int AT_ONCE = 4;  // states whose recurrence runs at once: with 32 registers,
#else
constexpr int AT_ONCE = 2;  // and with 16, which hold h and a of two
#endif

// The recurrence of so MANY states over a chunk; h is kept in registers.
template <bool INSIDE, int MANY>
static inline void run(int length, States in, int64_t n, const Vec* step, const Vec* input, const Vec* A, Vec* state,
                       Vec* y) {
  Vec h[MANY], a[MANY];
#pragma GCC unroll 4
  for (int k = 0; k < MANY; k++) h[k] = state[n + k], a[k] = A[n + k];
  const Real *B = in.B + n, *C = in.C + n;
  for (int i = 0; i < length; i++, B += in.stride, C += in.stride) {
    Vec s = step[i], u = input[i], sum = y[i];
#pragma GCC unroll 4
    for (int k = 0; k < MANY; k++) {
      h[k] = (INSIDE ? exp2_inside(s, a[k]) : exp2(s, a[k])) * h[k] + u * B[k];
      sum += h[k] * C[k];
    }
    y[i] = sum;
  }
#pragma GCC unroll 4
  for (int k = 0; k < MANY; k++) state[n + k] = h[k];
}

template <bool INSIDE>
static inline void run_all(int length, States in, int64_t padded, const Vec* step, const Vec* input, const Vec* A,
                           Vec* state, Vec* y) {
  if (padded == 1) return run<INSIDE, 1>(length, in, 0, step, input, A, state, y);
  for (int64_t n = 0; n < padded; n += AT_ONCE) run<INSIDE, AT_ONCE>(length, in, n, step, input, A, state, y);
}

// Of a task's vectors, each (CHUNK): vector k, token i stands at [k * CHUNK + i].
struct ForwardWork {
  Vec *step, *input, *y;
};

// Before the recurrence, for two tokens: step, input and the part of the output that passes the states by. -> the
// longest steps.
template <bool FULL, int64_t MANY>
static inline void prepare(const Scan& scan, const Rows<const IO>& x_rows, const Rows<const IO>& delta,
                           const Channels<FULL>* blocks, int64_t count, int64_t b, Pair pair, int i, ForwardWork work,
                           Vec* longest) {
  Vec raw[2][MANY];
  raw_steps(scan, delta, blocks, count, b, pair, raw);
#pragma GCC unroll 2
  for (int j = 0; j < 2; j++) {
    const IO* x_row = x_rows.at(b, pair.token[j]);
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
static inline void write(const ScanOutput& out, const Rows<const IO>& z, const Rows<IO>& to,
                         const Channels<FULL>* blocks, int64_t count, int64_t b, int64_t t, const Vec* y) {
#pragma GCC unroll 4
  for (int k = 0; k < MANY; k++) {
    if (!FULL && k >= count) break;
    int64_t first = blocks[k].first;
    int lanes = blocks[k].lanes();
    Vec sum = y[k * CHUNK];
    if (out.other) sum += load_real(out.other.at(b, t) + first, lanes);
    if (out.raw) {
      store_real(out.raw.at(b, t) + first, sum, lanes);
      continue;
    }
    if (z) sum *= silu(load(z.at(b, t) + first, lanes));
    store(to.at(b, t) + first, sum, lanes);
  }
}

template <bool FULL, int64_t MANY>
static void scan_forward_task(const Scan& scan, const ScanOutput& out, const std::vector<Chunk>& chunks, int64_t b,
                              int64_t group) {
  int64_t padded = scan.padded(), first_block = group * MANY;
  int64_t count = FULL ? MANY : std::min(MANY, scan.blocks() - first_block);
  bool transposed = scan.x.channel || scan.delta.channel || scan.z.channel || out.y.channel;
  Arena arena(count * (2 * padded + scan.rank + 3 * CHUNK) + 2 * (CHUNK * padded / LANES + 1) +
              transposed * transposed_vectors(2, count));
  Channels<FULL> blocks[MANY];
  for (int64_t k = 0; k < count; k++) blocks[k] = channels<FULL>(scan, first_block + k, arena);
  Vec* states = arena.vectors(count * padded);
  ForwardWork work{arena.vectors(count * CHUNK), arena.vectors(count * CHUNK), arena.vectors(count * CHUNK)};
  Real* space = arena.reals(2 * CHUNK * padded);
  int64_t square = transposed * transposed_vectors(1, count);
  Vec* squares[2] = {arena.vectors(square), arena.vectors(square)};  // where x and z, and delta and y are transposed
  Sequences order = scan.order();

  int64_t first = blocks[0].first, width = std::min<int64_t>(count * LANES, scan.width - first), row = count * LANES;
  auto ask_before = [&](int64_t t) __attribute__((always_inline)) {
    prefetch(scan.x, b, t, first, width);
    if (!scan.rank) prefetch(scan.delta, b, t, first, width);
  };
  auto ask_after = [&](int64_t t) __attribute__((always_inline)) {
    prefetch(out.raw, b, t, first, width);
    prefetch(out.y, b, t, first, width);
    prefetch(out.other, b, t, first, width);
    prefetch(scan.z, b, t, first, width);
  };

  int64_t places[2][CHUNK];  // of the tokens of this chunk, and of the next
  order.places(chunks[0], places[0]);
  for (size_t p = 0; p < chunks.size(); p++) {
    Chunk chunk = chunks[p], next_chunk = p + 1 < chunks.size() ? chunks[p + 1] : Chunk{0, 0, false};
    const int64_t *here = places[p % 2], *there = places[(p + 1) % 2];
    order.places(next_chunk, places[(p + 1) % 2]);
    Tile tile(b, chunk, order.step(), first, width);
    Rows<const IO> x = transposed_in(scan.x, tile, squares[0], row);
    Rows<const IO> delta = transposed_in(scan.delta, tile, squares[1], row);
    Vec longest[MANY]{};
    for (int i = 0; i < chunk.length; i += 2) {
      if (i + AHEAD < chunk.length) ask_before(here[i + AHEAD]);
      if (i + 1 + AHEAD < chunk.length) ask_before(here[i + 1 + AHEAD]);
      prepare<FULL, MANY>(scan, x, delta, blocks, count, b, Pair(chunk, here, i), i, work, longest);
    }

    States in = states_of(scan, b, chunk, here, space);
    for (int64_t k = 0; k < count; k++) {
      const Channels<FULL>& c = blocks[k];
      Vec* h = states + k * padded;
      if (chunk.fresh) load_carry(scan, c, b, true, h);
      if (out.before) save(scan, c, h, out.before + (b * out.slots + int64_t(p)) * scan.states * scan.channels);
      if (k + 1 == count)
        for (int i = 0; i < std::min(AHEAD, chunk.length); i++) ask_after(here[i]);
      if (transposed) {
        Tile next(b, next_chunk, order.step(), first, width);
        prefetch_transposed(scan.x, next, k, count), prefetch_transposed(scan.delta, next, k, count);
        prefetch_transposed(scan.z, tile, k, count), prefetch_transposed(out.y, tile, k, count);
      }
      auto run_chunk = decays_inside(scan, c, longest[k]) ? run_all<true> : run_all<false>;
      run_chunk(chunk.length, in, padded, work.step + k * CHUNK, work.input + k * CHUNK, c.A, h, work.y + k * CHUNK);
      if (p + 1 == chunks.size()) save_carry(scan, c, b, h);
    }

    // x and delta are done with.
    Rows<const IO> z = transposed_in(scan.z, tile, squares[0], row);
    Rows<IO> y = to_transpose_out(out.y, tile, squares[1], row);
    for (int i = 0; i < chunk.length; i++) {
      int next = i + AHEAD - chunk.length;
      if (next < 0) ask_after(here[i + AHEAD]);
      else if (next < next_chunk.length) ask_before(there[next]);
      write<FULL, MANY>(out, z, y, blocks, count, b, here[i], work.y + i);
    }
    transpose_out(out.y, tile, squares[1], row);
  }
}

// Those that are not consecutive run beside each other.
static void scans_forward(const Scan* scans, const ScanOutput* outs, int64_t count, int64_t consecutive) {
  std::vector<std::vector<Chunk>> chunks = all_chunks(scans, count * consecutive);
  for (int64_t i = 0; i < count * consecutive; i++) {
    const Scan& scan = scans[i];
    const ScanOutput& out = outs[i];
    for (int64_t b = 0; out.before && b < scan.batch; b++)  // slots that the boundaries left over
      for (int64_t n = int64_t(chunks[i].size()) * scan.states; n < out.slots * scan.states; n++)
        std::fill_n(out.before + (b * out.slots * scan.states + n) * scan.channels, scan.width, Real(0));
  }
  auto run = [&](auto many) {
    each_group<many.value>(scans, count, consecutive, [&](auto full, int64_t i, int64_t b, int64_t group) {
      scan_forward_task<full.value, many.value>(scans[i], outs[i], chunks[i], b, group);
    });
  };
  // For many threads there are more tasks, of a cache line each.
  if (count * scans[0].batch * scans[0].groups() >= ENOUGH * scans[0].threads)
    run(std::integral_constant<int64_t, GROUP>{});
  else
    run(std::integral_constant<int64_t, (BYTES < LINE ? LINE / BYTES : 1)>{});
}
