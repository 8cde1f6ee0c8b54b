// What an encoder is. Encoders work on a tile: as many blocks as there are lanes, x[i] holding weight i of each.
#pragma once
#include <array>

#include "lanes.h"

namespace {

// How the importance of a column counts in the encoding of a format.
enum class Importance {
  ignored, // not at all
  plain,   // the encoder is given it as it is
  needed,  // the same, and there is no encoding without
  damped,  // the encoder is given it times sqrt(mean square of the row + square of the weight)
};

// For each format F:
//   static constexpr int halves[]            offsets of the block's f16 fields, which come out finite or are a fault
//   static constexpr Importance importance
//   static void encode(x, weight, out)       x and weight (null without importance) are tiles of F::block
template <class F> struct Encoder;

// `halves` of a format that has none.
constexpr std::array<int, 0> no_halves{};

inline Floats inverse_or_zero(Floats d) { return d != 0 ? 1.0f / d : Floats{}; }
inline Ints as_int8(Ints v) { return v << 24 >> 24; }

inline Floats largest_size(const Floats* x, int n) {
  Floats largest{};
  for (int i = 0; i < n; ++i) largest = larger(largest, magnitude(x[i]));
  return largest;
}

// Sum of squares of n weights, in ggml's order.
inline Floats sum_of_squares(const Floats* x, int n) {
  Floats sum{};
  for (int i = 0; i < n; ++i) sum += x[i] * x[i];
  return sum;
}

// weight[i] = importance[i] * sqrt(mean square + x[i]^2), for n weights.
inline void damp(const Floats* x, const Floats* importance, int n, Floats mean_square, Floats* weight) {
  for (int i = 0; i < n; ++i) weight[i] = importance[i] * square_root(mean_square + x[i] * x[i]);
}

// How blocks of 32 keep 4 bits of each code.
inline void store_nibbles(const Blocks& out, int offset, const Ints* codes) {
  Ints bytes[16];
  for (int i = 0; i < 16; ++i) bytes[i] = (codes[i] & 15) | (codes[i + 16] & 15) << 4;
  out.store_bytes(offset, bytes, 16);
}
// How super-blocks of 256 keep 4 and 2 bits of each code.
inline void store_nibbles_by_32(const Blocks& out, int offset, const Ints* codes) {
  Ints bytes[32];
  for (int j = 0; j < 4; ++j) {
    for (int i = 0; i < 32; ++i) bytes[i] = (codes[64 * j + i] & 15) | (codes[64 * j + i + 32] & 15) << 4;
    out.store_bytes(offset + 32 * j, bytes, 32);
  }
}
inline void store_pairs(const Blocks& out, int offset, const Ints* codes) {
  Ints bytes[32];
  for (int j = 0; j < 2; ++j) {
    const Ints* c = codes + 128 * j;
    for (int i = 0; i < 32; ++i)
      bytes[i] = (c[i] & 3) | (c[i + 32] & 3) << 2 | (c[i + 64] & 3) << 4 | (c[i + 96] & 3) << 6;
    out.store_bytes(offset + 32 * j, bytes, 32);
  }
}

} // namespace
