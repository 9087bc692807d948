// The order in which a direction takes the tokens: packed sequences one after the other, or the columns of a grid, in
// chunks of at most CHUNK tokens. The state before each chunk is saved for the backward pass.
#pragma once
#include <algorithm>
#include <cstdint>
#include <vector>

constexpr int64_t CHUNK = 64;

struct Chunk {
  int64_t first;   // token taken first; of a grid's, counted column by column
  int length;      // tokens
  bool fresh;      // a sequence begins: the state is zero
};

struct Sequences {
  const int64_t* boundaries;  // count + 1 numbers, from 0 to the number of tokens
  int64_t count;
  bool reverse;
  int64_t rows, columns;  // of a grid that is taken column by column; 0: tokens as they lie

  int step() const { return reverse ? -1 : 1; }

  // Where the tokens of a chunk lie, in the order of the scan.
  void places(Chunk chunk, int64_t* to) const {
    if (!rows) {
      for (int i = 0; i < chunk.length; i++) to[i] = chunk.first + i * step();
      return;
    }
    int64_t row = chunk.first % rows, column = chunk.first / rows;
    for (int i = 0; i < chunk.length; i++) {
      to[i] = row * columns + column;
      row += step();
      if (row == rows) row = 0, column++;
      if (row < 0) row = rows - 1, column--;
    }
  }

  // From one token of a chunk to the next, where that is everywhere the same; else 0.
  int64_t stride(Chunk chunk) const {
    if (!rows) return step();
    int64_t last = chunk.first + (chunk.length - 1) * step();
    return chunk.first / rows == last / rows ? step() * columns : 0;
  }

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
