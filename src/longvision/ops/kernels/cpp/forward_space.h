// What a block works in, forward: the pieces of a long image, memory, and packed weights.
#pragma once
#include <functional>
#include <utility>

#include "block.h"

// Tokens [first, last) are scanned; the convolution may look at [seen, seen_end).
struct Window {
  int64_t first, last, seen, seen_end;

  int64_t length() const { return last - first; }
  int64_t seen_length() const { return seen_end - seen; }
};

static std::vector<Window> windows(const Block& block, bool reverse) {
  int64_t tokens = block.tokens, halo = block.taps - 1;
  if (!block.chunk) return {{0, tokens, 0, tokens}};
  std::vector<Window> found;
  for (int64_t first = 0; first < tokens; first += block.chunk) {
    int64_t last = std::min(tokens, first + block.chunk);
    if (reverse) found.push_back({first, last, first, std::min(tokens, last + halo)});
    else found.push_back({first, last, std::max<int64_t>(0, first - halo), last});
  }
  if (reverse) std::reverse(found.begin(), found.end());
  return found;
}

struct ForwardSpace {
  Left* left;  // of a product: normalised tokens, and then gated ones
  IO *xz, *projections, *u[2];
  Real *raw[2], *carry;
  Packed x_proj[2];
#ifdef STORED_BF16
  PackedStored in_proj, out_proj;
#else
  Packed in_proj, out_proj;
#endif

  ForwardSpace(const Block& block, Space& space) {
    int64_t halo = block.chunk ? block.taps - 1 : 0, most = block.chunk ? std::min(block.chunk, block.tokens) : block.tokens;
    int64_t rows = block.batch * most, at_once = block.chunk ? 1 : block.directions;
    int64_t seen = block.batch * (most + halo);
#ifdef STORED_BF16
    left = space.take<Left>((seen + HIGH) * std::max(filled(block.channels), filled(block.width)));
#else
    left = space.take<Left>(seen * block.channels);
#endif
    xz = block.xz ? block.xz : space.take<IO>(seen * 2 * block.width);
    projections = block.projections ? block.projections : space.take<IO>(at_once * rows * block.projected());
    for (int64_t i = 0; i < at_once; i++) {
      u[i] = space.take<IO>(rows * block.width);
      raw[i] = SAME ? reinterpret_cast<Real*>(u[i]) : space.take<Real>(rows * block.width);
    }
    carry = block.chunk ? space.take<Real>(block.batch * block.states * block.width) : nullptr;
    auto pack = [&](auto& packed, int64_t N, int64_t K) {
      packed = {N, K, nullptr};
      packed.data = space.take<Vec>(packed.vectors());
    };
    pack(in_proj, 2 * block.width, block.channels);
    pack(out_proj, block.outputs, block.width);
    for (int64_t i = 0; i < block.directions; i++) pack(x_proj[i], block.projected(), block.width);
  }
};

static int64_t block_forward_space(const Block& block) {
  Space counted{nullptr};
  ForwardSpace space(block, counted);
  return counted.used + BYTES;
}

// All weights as products read them, transposed: each panel is a task.
static void pack_weights(const Block& block, const ForwardSpace& space) {
  std::vector<std::pair<int64_t, std::function<void(int64_t)>>> weights;
  auto add = [&](const Real* weight, const Packed& to) {
    weights.emplace_back(to.slices() * to.panels(), [&to, weight](int64_t task) {
      pack_panel({weight, 1, to.K}, to, task / to.panels(), task % to.panels());
    });
  };
  for (int64_t i = 0; i < block.directions; i++) add(block.direction[i].x_proj, space.x_proj[i]);
#ifdef STORED_BF16
  auto add_stored = [&](const IO* weight, const PackedStored& to) {
    weights.emplace_back(to.panels(), [&block, &to, weight](int64_t panel) {
      if (block.weights_are_real) pack_stored(reinterpret_cast<const Real*>(weight), to, panel);
      else pack_stored(weight, to, panel);
    });
  };
  add_stored(block.in_proj, space.in_proj), add_stored(block.out_proj, space.out_proj);
#else
  add(block.in_proj, space.in_proj), add(block.out_proj, space.out_proj);
#endif
  int64_t tasks = 0;
  for (const auto& [own, pack] : weights) tasks += own;
  parallel(tasks, block.threads, [&](int64_t task) {
    for (const auto& [own, pack] : weights) {
      if (task < own) return pack(task);
      task -= own;
    }
  });
}
