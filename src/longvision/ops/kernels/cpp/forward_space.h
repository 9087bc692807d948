// What a block works in, forward: the pieces of a long image, memory, and packed weights.
#pragma once
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
  IO *normed, *xz, *projections, *u[2], *product;
  Real *raw[2], *carry;
  Packed in_proj, out_proj, x_proj[2];

  ForwardSpace(const Block& block, Space& space) {
    int64_t halo = block.chunk ? block.taps - 1 : 0, most = block.chunk ? std::min(block.chunk, block.tokens) : block.tokens;
    int64_t rows = block.batch * most, at_once = block.chunk ? 1 : block.directions;
    normed = space.take<IO>(block.batch * (most + halo) * block.channels);
    xz = block.xz ? block.xz : space.take<IO>(block.batch * (most + halo) * 2 * block.width);
    projections = block.projections ? block.projections : space.take<IO>(at_once * rows * block.projected());
    for (int64_t i = 0; i < at_once; i++) {
      u[i] = space.take<IO>(rows * block.width);
      raw[i] = SAME ? reinterpret_cast<Real*>(u[i]) : space.take<Real>(rows * block.width);
    }
    product = SAME ? nullptr : space.take<IO>(rows * block.outputs);
    carry = block.chunk ? space.take<Real>(block.batch * block.states * block.width) : nullptr;
    auto pack = [&](int64_t N, int64_t K, bool wanted) {
      Packed packed{N, K, nullptr};
      packed.data = wanted ? space.take<Vec>(packed.vectors()) : nullptr;
      return packed;
    };
    in_proj = pack(2 * block.width, block.channels, SAME);
    out_proj = pack(block.outputs, block.width, SAME);
    for (int64_t i = 0; i < block.directions; i++) x_proj[i] = pack(block.projected(), block.width, true);
  }
};

static int64_t block_forward_space(const Block& block) {
  Space counted{nullptr};
  ForwardSpace space(block, counted);
  return counted.used + BYTES;
}

// All weights as `tile` reads them, transposed.
static void pack_weights(const Block& block, const ForwardSpace& space) {
  struct Weight {
    Matrix matrix;
    const Packed* to;
  };
  std::vector<Weight> weights;
  for (int64_t i = 0; i < block.directions; i++)
    weights.push_back({{block.direction[i].x_proj, 1, block.width}, &space.x_proj[i]});
  if (SAME) {
    weights.push_back({{reinterpret_cast<const Real*>(block.in_proj), 1, block.channels}, &space.in_proj});
    weights.push_back({{reinterpret_cast<const Real*>(block.out_proj), 1, block.width}, &space.out_proj});
  }
  int64_t tasks = 0;
  for (const Weight& weight : weights) tasks += weight.to->slices() * weight.to->panels();
  parallel(tasks, block.threads, [&](int64_t task) {
    for (const Weight& weight : weights) {
      int64_t own = weight.to->slices() * weight.to->panels();
      if (task < own) return pack_panel(weight.matrix, *weight.to, task / weight.to->panels(), task % weight.to->panels());
      task -= own;
    }
  });
}
