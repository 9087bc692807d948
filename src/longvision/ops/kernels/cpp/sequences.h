// The order in which a direction walks the tokens: packed sequences one after the other, each in pieces of at most
// CHUNK tokens. The state before each piece is kept for the backward pass.
#pragma once
#include <algorithm>
#include <cstdint>
#include <vector>

constexpr int64_t CHUNK = 64;

struct Piece {
  int64_t first;   // token walked first
  int length;      // tokens
  bool fresh;      // a sequence begins: the state is zero
};

struct Sequences {
  const int64_t* borders;  // count + 1 numbers, from 0 to the number of tokens
  int64_t count;
  bool reverse;

  int step() const { return reverse ? -1 : 1; }

  std::vector<Piece> pieces() const {
    std::vector<Piece> walk;
    for (int64_t i = 0; i < count; i++) {
      int64_t length = borders[i + 1] - borders[i];
      for (int64_t done = 0; done < length; done += CHUNK) {
        int64_t first = reverse ? borders[i + 1] - 1 - done : borders[i] + done;
        walk.push_back({first, int(std::min(CHUNK, length - done)), done == 0});
      }
    }
    return walk;
  }
};
