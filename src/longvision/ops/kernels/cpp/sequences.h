// The order in which a direction takes the tokens: packed sequences one after the other, each in chunks of at most
// CHUNK tokens. The state before each chunk is saved for the backward pass.
#pragma once
#include <algorithm>
#include <cstdint>
#include <vector>

constexpr int64_t CHUNK = 64;

struct Chunk {
  int64_t first;   // token taken first
  int length;      // tokens
  bool fresh;      // a sequence begins: the state is zero
};

struct Sequences {
  const int64_t* boundaries;  // count + 1 numbers, from 0 to the number of tokens
  int64_t count;
  bool reverse;

  int step() const { return reverse ? -1 : 1; }

  std::vector<Chunk> chunks() const {
    std::vector<Chunk> order;
    for (int64_t i = 0; i < count; i++) {
      int64_t length = boundaries[i + 1] - boundaries[i];
      for (int64_t done = 0; done < length; done += CHUNK) {
        int64_t first = reverse ? boundaries[i + 1] - 1 - done : boundaries[i] + done;
        order.push_back({first, int(std::min(CHUNK, length - done)), done == 0});
      }
    }
    return order;
  }
};
