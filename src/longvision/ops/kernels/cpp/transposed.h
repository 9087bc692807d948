// Tensors whose tokens are contiguous, (B, n, M) in memory: the tokens of a chunk, for the channels of a task, are
// transposed in the first cache, so that the rest of a kernel finds rows. A copy of the tensor beforehand would go to
// memory and back.
#pragma once
#include <algorithm>

#include "lanes.h"
#include "rows.h"
#include "sequences.h"
#include "vector.h"

// A square of LANES rows, or what there is of one: to (columns, rows) = from (rows, columns).
template <bool WHOLE, class Element>
static inline void transpose_square(const Element* from, int64_t from_row, int rows, int columns, Element* to,
                                    int64_t to_row) {
  if (WHOLE) rows = columns = LANES;
  Vec square[LANES]{};
#pragma GCC unroll 16
  for (int i = 0; i < rows; i++) square[i] = load(from + i * from_row, columns);
  transpose(square);
#pragma GCC unroll 16
  for (int j = 0; j < columns; j++) store(to + j * to_row, square[j], rows);
}

// to (columns, rows) = from (rows, columns); one row is so far from the next. ROWS_FIRST: the squares of a row one after
// the other, and not those of a column: what lies far apart, on one or the other side, is taken a whole cache line at a
// time.
template <bool ROWS_FIRST, class Element>
static void transpose_tile(const Element* from, int64_t from_row, int64_t rows, int64_t columns, Element* to,
                           int64_t to_row) {
  int64_t outer = ROWS_FIRST ? rows : columns, inner = ROWS_FIRST ? columns : rows;
  for (int64_t p = 0; p < outer; p += LANES)
    for (int64_t q = 0; q < inner; q += LANES) {
      int64_t i = ROWS_FIRST ? p : q, j = ROWS_FIRST ? q : p;
      int down = int(std::min<int64_t>(LANES, rows - i)), across = int(std::min<int64_t>(LANES, columns - j));
      const Element* corner = from + i * from_row + j;
      Element* there = to + j * to_row + i;
      if (down == LANES && across == LANES) transpose_square<true>(corner, from_row, LANES, LANES, there, to_row);
      else transpose_square<false>(corner, from_row, down, across, there, to_row);
    }
}

// The tokens of a chunk and the channels of a task: where both begin, and how many there are.
struct Tile {
  int64_t b, token, channel, tokens, channels;

  Tile(int64_t b, Chunk chunk, int step, int64_t channel, int64_t channels)
      : b(b), token(step < 0 ? chunk.first - chunk.length + 1 : chunk.first), channel(channel), tokens(chunk.length),
        channels(channels) {}

  template <class Element>
  Element* in(const Rows<Element>& tensor) const {
    return tensor.data + b * tensor.batch + token + channel * tensor.channel;
  }
  // `space`, so that a token's row is found there by the token's number.
  template <class Element>
  Rows<Element> rows(Element* space, int64_t row) const { return {space - token * row - channel, 0, row, 0}; }
};

// Its rows are as far apart as channels are, so that no processor looks ahead in them: they are asked for while the
// recurrence runs, of a task's `parts` vectors one after the other.
template <class Element>
static inline void prefetch_transposed(const Rows<Element>& tensor, const Tile& tile, int64_t part, int64_t parts) {
  if (!tensor.channel) return;
  constexpr int64_t STEP = LINE / int64_t(sizeof(Element));
  for (int64_t e = part * tile.channels / parts; e < (part + 1) * tile.channels / parts; e++)
    for (int64_t i = 0; i < tile.tokens; i += STEP) __builtin_prefetch(tile.in(tensor) + e * tensor.channel + i, 0, 2);
}

// -> the tensor itself, or where its tokens are contiguous the tile in `space`, its rows so far apart.
template <class Element>
static inline Rows<const Element> transposed_in(const Rows<const Element>& from, const Tile& tile, Vec* space,
                                                int64_t row) {
  if (!from.channel) return from;
  Element* to = reinterpret_cast<Element*>(space);
  transpose_tile<true>(tile.in(from), from.channel, tile.channels, tile.tokens, to, row);
  return tile.rows<const Element>(to, row);
}

// -> where a tile is to be written: the tensor, or `space`, from where `transpose_out` brings it.
template <class Element>
static inline Rows<Element> to_transpose_out(const Rows<Element>& to, const Tile& tile, Vec* space, int64_t row) {
  return to.channel ? tile.rows(reinterpret_cast<Element*>(space), row) : to;
}

template <class Element>
static inline void transpose_out(const Rows<Element>& to, const Tile& tile, const Vec* space, int64_t row) {
  if (to.channel)
    transpose_tile<false>(reinterpret_cast<const Element*>(space), row, tile.tokens, tile.channels, tile.in(to),
                          to.channel);
}
