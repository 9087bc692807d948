// The selective scan as selective_scan/reference.py says it, LANES channels at a time: what its two passes
// (scan_forward.h, scan_backward.h) share.
//
// A task is one row of the batch and GROUP vectors of channels. It takes the tokens in chunks; for each chunk it first
// computes what one token does not owe to another (step, input), a row of the tensors at a time, then runs the
// recurrence of each vector for a few states at a time, which keeps them in registers, and then writes, by rows again.
// Whatever a chunk needs stays in the first caches.
#pragma once
#include <algorithm>
#include <cmath>
#include <memory>
#include <type_traits>

#include "rows.h"
#include "sequences.h"
#include "threads.h"
#include "transposed.h"
#include "vector.h"

constexpr int STATES = 4;     // a vector of channels has one state, or a multiple of so many: missing ones are zeros
constexpr int64_t GROUP = 4;  // vectors of channels in a task: neighbours share cache lines, and sums over channels

// The fields are 8 bytes each, in the order in which cpu.py packs them.
struct Scan {
  int64_t batch, tokens;
  int64_t width, channels;      // of these channels, and of all: states, and what is summed up, have rows of all
  int64_t states, rank, threads;
  int64_t reverse, softplus, log_decay;
  const int64_t* boundaries;
  int64_t sequences;
  int64_t rows, columns;        // of a grid that is taken column by column, or 0
  Rows<const IO> x, delta;      // delta (B, M, E), or if rank > 0 (B, M, rank), to be multiplied by `weight`
  const Real* weight;           // (E, rank)
  const Real* bias;             // (E)
  const Real* A;                // (E, N); with log_decay, log(-A)
  Rows<const IO> B, C;
  const Real* D;                // (E)
  Rows<const IO> z;             // gate
  Real* carry;                  // (B, N, E): state before the first token, and then behind the last; null: zero. In the
                                // backward, the gradient of that behind the last, and then of that before the first

  int64_t blocks() const { return (width + LANES - 1) / LANES; }
  int64_t groups(int64_t of = GROUP) const { return (blocks() + of - 1) / of; }
  int64_t padded() const { return states == 1 ? 1 : (states + STATES - 1) / STATES * STATES; }
  Sequences order() const { return {boundaries, sequences, reverse != 0, rows, columns}; }
};

struct ScanOutput {
  Rows<IO> y;        // times silu(z), if there is z
  Rows<Real> raw;    // or, if given, without z
  Rows<const Real> other;  // added before; it may be where the output goes
  Real* before;      // (B, chunks, N, E) state before each chunk, or null
  int64_t slots;     // chunks that `before` has space for
};

struct ScanGradients {
  Rows<const IO> grad;     // of y,
  Rows<const Real> raw_grad;  // or of `raw`
  const Real* before;
  int64_t slots;
  Rows<Real> dx, ddelta;   // (B, M, E); ddelta before bias and softplus
  Real* dBC;               // (groups, B, M, 2 N): to be summed over the groups
  Real *dA, *dD, *dbias;   // (B, E, N), (B, E), (B, E): to be summed over the batch
  Rows<IO> dz;             // with z
  Rows<Real> raw;          // or, without, the forward's,
  int64_t add;             // added to what stands there
  int64_t add_dx;          // dx too
};

// One vector of channels: what all its tokens share. FULL: it has all of its lanes, which is known when compiling.
template <bool FULL>
struct Channels {
  int64_t first;
  int present;
  Vec D, bias;
  Vec* A;       // (states) times log2(e), so that decays are powers of two
  Vec* weight;  // (rank)
  Vec fastest;  // the least of A: what decays soonest; -infinity where some A is above zero or NaN

  int lanes() const { return FULL ? LANES : present; }
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

template <bool FULL>
static Channels<FULL> channels(const Scan& scan, int64_t block, Arena& arena) {
  Channels<FULL> c;
  c.first = block * LANES;
  c.present = int(std::min<int64_t>(LANES, scan.width - c.first));
  c.D = scan.D ? load_real(scan.D + c.first, c.lanes()) : Vec{};
  c.bias = scan.bias ? load_real(scan.bias + c.first, c.lanes()) : Vec{};
  c.A = arena.vectors(scan.padded());
  c.weight = arena.vectors(scan.rank);
  c.fastest = Vec{};
  for (int64_t n = 0; n < scan.padded(); n++) {
    Vec A = n < scan.states ? gather(scan.A + c.first * scan.states + n, scan.states, c.lanes()) : Vec{};
    c.A[n] = LOG2E * (scan.log_decay && n < scan.states ? -exp(A) : A);
    c.fastest = c.A[n] <= Real(0) ? (c.A[n] < c.fastest ? c.A[n] : c.fastest) : splat(-INFINITY);
  }
  for (int64_t r = 0; r < scan.rank; r++)
    c.weight[r] = gather(scan.weight + c.first * scan.rank + r, scan.rank, c.lanes());
  return c;
}

// Memory in which a task transposes so many tensors whose tokens are contiguous.
static inline int64_t transposed_vectors(int64_t tensors, int64_t count) { return tensors * count * CHUNK; }

// Whether no decay of a chunk, whose longest steps those are, falls below the range of `exp2_inside`.
template <bool FULL>
static inline bool decays_inside(const Scan& scan, const Channels<FULL>& c, Vec longest) {
  return scan.softplus && all_at_least(longest * c.fastest, LEAST + 1);
}

// Rows are far apart, and the recurrence is longer than what a processor looks ahead: unasked, their way from memory
// would come on top of it. So a row is asked for AHEAD tokens before. (GCC takes a function that only prefetches for
// one without effects and drops its calls, unless it is inlined first.)
constexpr int AHEAD = 16;

template <class Element>
__attribute__((always_inline)) static inline void prefetch(Rows<Element> rows, int64_t b, int64_t t, int64_t first,
                                                           int64_t channels) {
  if (!rows || rows.channel) return;  // of what is transposed, many rows come together
  const Element* row = rows.at(b, t) + first;
  for (int64_t e = 0; e < channels; e += LINE / int64_t(sizeof(Element))) __builtin_prefetch(row + e);
}

// B and C of a chunk as the recurrence reads them: where they stand, or where that has another dtype or too few states,
// copied, in the order of the scan.
struct States {
  const Real *B, *C;
  int64_t stride;  // from one token of the scan to the next
};

static States states_of(const Scan& scan, int64_t b, Chunk chunk, const int64_t* places, Real* space) {
  int64_t padded = scan.padded(), stride = scan.order().stride(chunk);
  if (sizeof(IO) == sizeof(Real) && padded == scan.states && scan.B.token == scan.C.token && stride)
    return {(const Real*)scan.B.at(b, places[0]), (const Real*)scan.C.at(b, places[0]), stride * scan.B.token};
  Real *B = space, *C = space + CHUNK * padded;
  for (int i = 0; i < chunk.length; i++)
    for (int64_t n = 0; n < padded; n++) {
      B[i * padded + n] = n < scan.states ? read(scan.B.at(b, places[i]) + n) : 0;
      C[i * padded + n] = n < scan.states ? read(scan.C.at(b, places[i]) + n) : 0;
    }
  return {B, C, padded};
}

// Tokens are prepared two at a time: each weight is loaded once for both. Behind the last of an odd number it is taken
// twice, rather than by other instructions, whose last bits may be others.
struct Pair {
  int64_t token[2];
  int present;

  Pair(Chunk chunk, const int64_t* places, int i)
      : token{places[i], places[std::min(i + 1, chunk.length - 1)]}, present(std::min(2, chunk.length - i)) {}
};

// Their steps before the softplus, for all vectors of a task.
template <bool FULL, size_t MOST>
static inline void raw_steps(const Scan& scan, const Rows<const IO>& delta, const Channels<FULL>* blocks, int64_t count,
                             int64_t b, Pair pair, Vec (&to)[2][MOST]) {
  const IO* low[2] = {delta.at(b, pair.token[0]), delta.at(b, pair.token[1])};
  if (!scan.rank) {
    for (int j = 0; j < 2; j++)
      for (int64_t k = 0; k < count; k++) to[j][k] = load(low[j] + blocks[k].first, blocks[k].lanes()) + blocks[k].bias;
    return;
  }
  Vec sum[2][MOST];
#pragma GCC unroll 4
  for (int k = 0; k < int(MOST); k++) sum[0][k] = sum[1][k] = FULL || k < count ? blocks[k].bias : Vec{};
  for (int64_t r = 0; r < scan.rank; r++) {
    Vec one = splat(read(low[0] + r)), two = splat(read(low[1] + r));
#pragma GCC unroll 4
    for (int k = 0; k < int(MOST); k++) {
      if (!FULL && k >= count) break;
      sum[0][k] += blocks[k].weight[r] * one;
      sum[1][k] += blocks[k].weight[r] * two;
    }
  }
#pragma GCC unroll 4
  for (int k = 0; k < int(MOST); k++) to[0][k] = sum[0][k], to[1][k] = sum[1][k];
}

template <bool FULL>
static void save(const Scan& scan, const Channels<FULL>& c, const Vec* state, Real* to) {
  for (int64_t n = 0; n < scan.states; n++) store_real(to + n * scan.channels + c.first, state[n], c.lanes());
}

template <bool FULL>
static void load_states(const Scan& scan, const Channels<FULL>& c, const Real* from, Vec* state) {
  for (int64_t n = 0; n < scan.padded(); n++)
    state[n] = n < scan.states ? load_real(from + n * scan.channels + c.first, c.lanes()) : Vec{};
}

// The state that a task begins with, or its gradient: what was handed in, where it is the first, or zero.
template <bool FULL>
static void load_carry(const Scan& scan, const Channels<FULL>& c, int64_t b, bool first, Vec* state) {
  if (first && scan.carry) load_states(scan, c, scan.carry + b * scan.states * scan.channels, state);
  else std::fill(state, state + scan.padded(), Vec{});
}

template <bool FULL>
static void save_carry(const Scan& scan, const Channels<FULL>& c, int64_t b, const Vec* state) {
  if (scan.carry) save(scan, c, state, scan.carry + b * scan.states * scan.channels);
}

// `count` times `consecutive` scans, all of the same shape. The channels of a scan have nothing to do with each other:
// a task is a row of the batch and a group of so MANY vectors, of `consecutive` scans one after the other. body(full,
// scan, b, group) for each of these, with `full` a constant that says whether all of the group's channels are there.
template <int64_t MANY, class Body>
static void each_group(const Scan* scans, int64_t count, int64_t consecutive, Body body) {
  int64_t groups = scans[0].groups(MANY), batch = scans[0].batch;
  parallel(count * batch * groups, scans[0].threads, [&](int64_t task) {
    int64_t group = task % groups, b = task / groups % batch, first = task / groups / batch * consecutive;
    for (int64_t i = first; i < first + consecutive; i++)
      if ((group + 1) * MANY * LANES <= scans[i].width) body(std::true_type{}, i, b, group);
      else body(std::false_type{}, i, b, group);
  });
}

static std::vector<std::vector<Chunk>> all_chunks(const Scan* scans, int64_t count) {
  std::vector<std::vector<Chunk>> chunks;
  for (int64_t i = 0; i < count; i++) chunks.push_back(scans[i].order().chunks());
  return chunks;
}
