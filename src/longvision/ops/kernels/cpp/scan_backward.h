// The selective scan, backward. With g_t = dL/dh_t = C_t dy_t + a_{t+1} g_{t+1} and a_t = exp(step_t A), against the
// scan:
//   d(step x) = g B, dB = g (step x), dC = h dy, d(step A) = g a h_{t-1}.
// A chunk is first gone through as in the forward, from the state saved before it, and then back, for a few states at a
// time: their decays and the states that each token found stay in the first cache in between.
#pragma once
#include "lanes.h"
#include "scan.h"

// Of a chunk: all in the order of the scan. What depends on the vector of channels is (GROUP, CHUNK): vector k, token i
// stands at [k * CHUNK + i].
struct BackwardWork {
  Vec *step, *slope, *x, *input, *gate, *dy, *y, *dinput, *dstep;
  Vec *decay, *found;  // (CHUNK, STATES)
  Vec* dBC;            // (CHUNK, 2, padded states): summed over the vectors; over the lanes last

  static int64_t vectors(const Scan& scan, int64_t count) {  // with space to sum the last lanes in full
    return 9 * count * CHUNK + 2 * CHUNK * STATES + 2 * CHUNK * scan.padded() + LANES;
  }

  BackwardWork(const Scan& scan, int64_t count, Arena& arena) {
    for (Vec** each : {&step, &slope, &x, &input, &gate, &dy, &y, &dinput, &dstep})
      *each = arena.vectors(count * CHUNK);
    decay = arena.vectors(CHUNK * STATES), found = arena.vectors(CHUNK * STATES);
    dBC = arena.vectors(2 * CHUNK * scan.padded() + LANES);
  }
};

// One vector of channels and so MANY of its states, from n on. FIRST: what it gives to dB and dC is not added to
// another's.
template <bool INSIDE, bool FIRST, int MANY>
static inline void run_back(int length, States in, int64_t n, int64_t padded, const BackwardWork& work, int64_t from,
                            const Vec* A, const Vec* before, Vec* carry, Vec* dA) {
  Vec h[MANY], a[MANY];
#pragma GCC unroll 4
  for (int k = 0; k < MANY; k++) h[k] = before[n + k], a[k] = A[n + k];
  // Addresses of its own, which no store can change.
  const Vec *step = work.step + from, *input = work.input + from, *dy = work.dy + from;
  Vec *y = work.y + from, *decay = work.decay, *found = work.found, *dB = work.dBC + n, *dC = dB + padded;
  const Real *B = in.B + n, *C = in.C + n;
  for (int i = 0; i < length; i++) {
    Vec s = step[i], u = input[i], grad = dy[i], sum = y[i];
#pragma GCC unroll 4
    for (int k = 0; k < MANY; k++) {
      Vec passed = INSIDE ? exp2_inside(s, a[k]) : exp2(s, a[k]);
      decay[k] = passed, found[k] = h[k];
      h[k] = passed * h[k] + u * B[k];
      sum += h[k] * C[k];
      dC[k] = FIRST ? h[k] * grad : dC[k] + h[k] * grad;
    }
    y[i] = sum;
    B += in.stride, C += in.stride, decay += MANY, found += MANY, dC += 2 * padded;
  }
  Vec g[MANY], da[MANY];
  Vec *dinput = work.dinput + from, *dstep = work.dstep + from;
#pragma GCC unroll 4
  for (int k = 0; k < MANY; k++) g[k] = carry[n + k], da[k] = dA[n + k];
  dB += 2 * padded * length;
  for (int i = length - 1; i >= 0; i--) {
    B -= in.stride, C -= in.stride, decay -= MANY, found -= MANY, dB -= 2 * padded;
    Vec s = step[i], u = input[i], grad = dy[i], into_input = dinput[i], into_step = dstep[i];
#pragma GCC unroll 4
    for (int k = 0; k < MANY; k++) {
      Vec dh = grad * C[k] + g[k];
      dB[k] = FIRST ? dh * u : dB[k] + dh * u;
      into_input += dh * B[k];
      g[k] = dh * decay[k];
      Vec dexponent = g[k] * found[k];
      into_step += dexponent * a[k];
      da[k] += dexponent * s;
    }
    dinput[i] = into_input, dstep[i] = into_step;
  }
#pragma GCC unroll 4
  for (int k = 0; k < MANY; k++) carry[n + k] = g[k], dA[n + k] = da[k];
}

template <bool INSIDE, bool FIRST>
static inline void run_all_back(int length, States in, int64_t padded, const BackwardWork& work, int64_t from,
                                const Vec* A, const Vec* before, Vec* carry, Vec* dA) {
  if (padded == 1) return run_back<INSIDE, FIRST, 1>(length, in, 0, 1, work, from, A, before, carry, dA);
  for (int64_t n = 0; n < padded; n += STATES)
    run_back<INSIDE, FIRST, STATES>(length, in, n, padded, work, from, A, before, carry, dA);
}

// What a task reads and writes of a chunk, its channels contiguous.
struct BackwardRows {
  Rows<const IO> x, delta, z, grad;
  Rows<Real> dx, ddelta;
  Rows<IO> dz;
};

// Before the recurrence, for two tokens. -> the longest steps, and the sums for D.
template <bool FULL>
static inline void prepare_back(const Scan& scan, const ScanGradients& out, const BackwardRows& rows,
                                const Channels<FULL>* blocks, int64_t count, int64_t b, Pair pair, int i,
                                const BackwardWork& work, Vec* longest, Vec* dD) {
  Vec raw[2][GROUP];
  raw_steps(scan, rows.delta, blocks, count, b, pair, raw);
  for (int j = 0; j < pair.present; j++) {
    int64_t at = pair.token[j];
#pragma GCC unroll 4
    for (int k = 0; k < GROUP; k++) {
      if (!FULL && k >= count) break;
      int64_t first = blocks[k].first, to = k * CHUNK + i + j;
      int lanes = blocks[k].lanes();
      Vec x = load(rows.x.at(b, at) + first, lanes);
      Vec dy = rows.grad ? load(rows.grad.at(b, at) + first, lanes) : load_real(out.raw_grad.at(b, at) + first, lanes);
      if (rows.z) {
        Vec z = load(rows.z.at(b, at) + first, lanes);
        Vec gate = sigmoid(z);
        work.gate[to] = gate;
        dy *= z * gate;
      }
      Vec step = raw[j][k];
      if (scan.softplus) step = softplus(raw[j][k], work.slope[to]);
      longest[k] = longest[k] > step ? longest[k] : step;
      work.step[to] = step;
      work.x[to] = x;
      work.input[to] = step * x;
      work.dy[to] = dy;
      work.y[to] = blocks[k].D * x;
      work.dinput[to] = work.dstep[to] = Vec{};
      dD[k] += dy * x;
    }
  }
}

// After it: a token's gradients, and the sums for the bias.
template <bool FULL>
static inline void write_back(const Scan& scan, const ScanGradients& out, const BackwardRows& rows,
                              const Channels<FULL>* blocks, int64_t count, int64_t b, int64_t t, int i,
                              const BackwardWork& work, Vec* dbias) {
#pragma GCC unroll 4
  for (int k = 0; k < GROUP; k++) {
    if (!FULL && k >= count) break;
    int64_t first = blocks[k].first, from = k * CHUNK + i;
    int lanes = blocks[k].lanes();
    Vec dx = work.dinput[from] * work.step[from] + blocks[k].D * work.dy[from];
    Real* dx_row = rows.dx.at(b, t) + first;
    store_real(dx_row, out.add_dx ? load_real(dx_row, lanes) + dx : dx, lanes);
    Vec dstep = work.dinput[from] * work.x[from] + LN2 * work.dstep[from];
    if (scan.softplus) dstep *= work.slope[from];
    store_real(rows.ddelta.at(b, t) + first, dstep, lanes);
    dbias[k] += dstep;
    if (out.raw) {
      Real* to = out.raw.at(b, t) + first;
      store_real(to, out.add ? load_real(to, lanes) + work.y[from] : work.y[from], lanes);
    }
    if (!rows.dz) continue;
    Vec z = load(rows.z.at(b, t) + first, lanes), grad = load(rows.grad.at(b, t) + first, lanes);
    store(rows.dz.at(b, t) + first, grad * work.y[from] * silu_slope(z, work.gate[from]), lanes);
  }
}

// Gradients of B and C, summed over the lanes of a task's vectors, to (M, 2, N).
static void write_states(const Scan& scan, const BackwardWork& work, int length, const int64_t* places, Real* space,
                         Real* to) {
  int64_t padded = scan.padded(), states = scan.states;
  for (int64_t i = 0; i < 2 * length * padded; i += LANES) store_real(space + i, sum_lanes(work.dBC + i), LANES);
  for (int i = 0; i < 2 * length; i++)
    std::copy_n(space + i * padded, states, to + (2 * places[i / 2] + i % 2) * states);
}

template <bool FULL>
static void scan_backward_task(const Scan& scan, const ScanGradients& out, const std::vector<Chunk>& chunks, int64_t b,
                               int64_t group) {
  int64_t padded = scan.padded(), first_block = group * GROUP;
  int64_t count = FULL ? GROUP : std::min(GROUP, scan.blocks() - first_block);
  bool transposed = scan.x.channel || scan.delta.channel || scan.z.channel || out.grad.channel || out.dx.channel ||
                out.ddelta.channel || out.dz.channel;
  Arena arena(count * (3 * padded + scan.rank) + padded + BackwardWork::vectors(scan, count) +
              2 * (CHUNK * padded / LANES + 1) + LANES + transposed * transposed_vectors(4, count));
  Channels<FULL> blocks[GROUP];
  for (int64_t k = 0; k < count; k++) blocks[k] = channels<FULL>(scan, first_block + k, arena);
  Vec *carries = arena.vectors(count * padded), *dAs = arena.vectors(count * padded);
  Vec* before = arena.vectors(padded);
  BackwardWork work(scan, count, arena);
  Real* space = arena.reals(2 * CHUNK * padded + LANES);
  Vec* squares[4];  // where x and dx, delta and ddelta, z and dz, and the gradient are transposed
  for (Vec*& each : squares) each = arena.vectors(transposed * transposed_vectors(1, count));
  Vec dDs[GROUP]{}, dbiases[GROUP]{};
  std::fill(dAs, dAs + count * padded, Vec{});
  Sequences order = scan.order();

  int64_t first = blocks[0].first, width = std::min<int64_t>(count * LANES, scan.width - first), row = count * LANES;
  auto ask = [&](int64_t t) __attribute__((always_inline)) {
    prefetch(scan.x, b, t, first, width);
    prefetch(out.grad, b, t, first, width);
    prefetch(out.raw_grad, b, t, first, width);
    if (!scan.rank) prefetch(scan.delta, b, t, first, width);
    prefetch(scan.z, b, t, first, width);
  };
  auto ask_after = [&](int64_t t) __attribute__((always_inline)) {
    prefetch(out.dx, b, t, first, width);
    prefetch(out.ddelta, b, t, first, width);
    prefetch(out.dz, b, t, first, width);
    prefetch(out.raw, b, t, first, width);
  };

  int64_t places[2][CHUNK];  // of the tokens of this chunk, and of the one before it
  order.places(chunks.back(), places[(chunks.size() - 1) % 2]);
  for (int64_t p = int64_t(chunks.size()) - 1; p >= 0; p--) {
    Chunk chunk = chunks[p], next_chunk = p > 0 ? chunks[p - 1] : Chunk{0, 0, false};
    const int64_t *here = places[p % 2], *there = places[(p + 1) % 2];
    order.places(next_chunk, places[(p + 1) % 2]);
    bool behind_all = p + 1 == int64_t(chunks.size());
    bool last = behind_all || chunks[p + 1].fresh;  // of its sequence: nothing comes back to it
    Tile tile(b, chunk, order.step(), first, width);
    BackwardRows rows{transposed_in(scan.x, tile, squares[0], row),
                      transposed_in(scan.delta, tile, squares[1], row),
                      transposed_in(scan.z, tile, squares[2], row),
                      transposed_in(out.grad, tile, squares[3], row),
                      to_transpose_out(out.dx, tile, squares[0], row),
                      to_transpose_out(out.ddelta, tile, squares[1], row),
                      to_transpose_out(out.dz, tile, squares[2], row)};
    Vec longest[GROUP]{};
    for (int i = 0; i < chunk.length; i += 2) {
      if (i + AHEAD < chunk.length) ask(here[i + AHEAD]);
      if (i + 1 + AHEAD < chunk.length) ask(here[i + 1 + AHEAD]);
      prepare_back(scan, out, rows, blocks, count, b, Pair(chunk, here, i), i, work, longest, dDs);
    }

    States in = states_of(scan, b, chunk, here, space);
    for (int64_t k = 0; k < count; k++) {
      const Channels<FULL>& c = blocks[k];
      Vec *carry = carries + k * padded, *dA = dAs + k * padded;
      if (last) load_carry(scan, c, b, behind_all, carry);
      load_states(scan, c, out.before + (b * out.slots + p) * scan.states * scan.channels, before);
      if (k + 1 == count)
        for (int i = 0; i < std::min(AHEAD, chunk.length); i++) ask_after(here[i]);
      if (transposed) {
        Tile next(b, next_chunk, order.step(), first, width);
        for (const Rows<const IO>& each : {scan.x, scan.delta, scan.z, out.grad})
          prefetch_transposed(each, next, k, count);
        prefetch_transposed(out.dx, tile, k, count), prefetch_transposed(out.ddelta, tile, k, count);
        prefetch_transposed(out.dz, tile, k, count);
      }
      auto back = decays_inside(scan, c, longest[k]) ? (k ? run_all_back<true, false> : run_all_back<true, true>)
                                                     : (k ? run_all_back<false, false> : run_all_back<false, true>);
      back(chunk.length, in, padded, work, k * CHUNK, c.A, before, carry, dA);
      if (p == 0) save_carry(scan, c, b, carry);
    }

    for (int i = 0; i < chunk.length; i++) {
      int next = i + AHEAD - chunk.length;
      if (next < 0) ask_after(here[i + AHEAD]);
      else if (next < next_chunk.length) ask(there[next]);
      write_back(scan, out, rows, blocks, count, b, here[i], i, work, dbiases);
    }
    transpose_out(out.dx, tile, squares[0], row);
    transpose_out(out.ddelta, tile, squares[1], row);
    transpose_out(out.dz, tile, squares[2], row);
    write_states(scan, work, chunk.length, here, space,
                 out.dBC + (group * scan.batch + b) * scan.tokens * 2 * scan.states);
  }

  for (int64_t k = 0; k < count; k++) {
    const Channels<FULL>& c = blocks[k];
    store_real(out.dD + b * scan.channels + c.first, dDs[k], c.lanes());
    store_real(out.dbias + b * scan.channels + c.first, dbiases[k], c.lanes());
    for (int64_t n = 0; n < scan.states; n++) {
      Vec dA = dAs[k * padded + n];
      if (scan.log_decay) dA *= c.A[n] * LN2;  // dA / dlog(-A) = A
      for (int lane = 0; lane < c.lanes(); lane++)
        out.dA[(b * scan.channels + c.first + lane) * scan.states + n] = dA[lane];
    }
  }
}

static void scans_backward(const Scan* scans, const ScanGradients* outs, int64_t count, int64_t consecutive) {
  std::vector<std::vector<Chunk>> chunks = all_chunks(scans, count * consecutive);
  each_group<GROUP>(scans, count, consecutive, [&](auto full, int64_t i, int64_t b, int64_t group) {
    scan_backward_task<full.value>(scans[i], outs[i], chunks[i], b, group);
  });
}
