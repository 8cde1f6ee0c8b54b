// The interface of encoders. They work on a tile of as many blocks as there are lanes; x[i] holds weight i of each block.
#pragma once
#include <array>

#include "lanes.h"

namespace {

// How the encoder of a format uses the importance of columns.
enum class Importance {
  ignored, // not at all
  plain,   // passed to the encoder unchanged
  needed,  // the same, and required
  damped,  // passed to the encoder times sqrt(mean square of the row + square of the weight)
};

// For each format F:
//   static constexpr int halves[]            offsets of the block's f16 fields; a value that is not finite is a fault
//   static constexpr Importance importance
//   static void encode(x, weight, out)       x and weight (null without importance) are tiles of F::block
template <class F> struct Encoder;

// The `halves` of a format without f16 fields.
constexpr std::array<int, 0> no_halves{};

inline vf inverse_or_zero(vf d) { return d != 0 ? 1.0f / d : vf{}; }
inline vi as_int8(vi v) { return v << 24 >> 24; }

inline vf largest_size(const vf* x, int n) {
  vf largest{};
  for (int i = 0; i < n; ++i) largest = larger(largest, abs(x[i]));
  return largest;
}

// The sum of squares of n weights, in ggml's order.
inline vf sum_of_squares(const vf* x, int n) {
  vf sum{};
  for (int i = 0; i < n; ++i) sum += x[i] * x[i];
  return sum;
}

// weight[i] = importance[i] * sqrt(mean square + x[i]^2), for n weights.
inline void damp(const vf* x, const vf* importance, int n, vf mean_square, vf* weight) {
  for (int i = 0; i < n; ++i) weight[i] = importance[i] * square_root(mean_square + x[i] * x[i]);
}

// The layout of 4 bits of each code in blocks of 32.
inline void store_nibbles(const Blocks& out, int offset, const vi* codes) {
  vi bytes[16];
  for (int i = 0; i < 16; ++i) bytes[i] = (codes[i] & 15) | (codes[i + 16] & 15) << 4;
  out.store_bytes(offset, bytes, 16);
}
// The layout of 4 and of 2 bits of each code in super-blocks of 256.
inline void store_nibbles_by_32(const Blocks& out, int offset, const vi* codes) {
  vi bytes[32];
  for (int j = 0; j < 4; ++j) {
    for (int i = 0; i < 32; ++i) bytes[i] = (codes[64 * j + i] & 15) | (codes[64 * j + i + 32] & 15) << 4;
    out.store_bytes(offset + 32 * j, bytes, 32);
  }
}
inline void store_pairs(const Blocks& out, int offset, const vi* codes) {
  vi bytes[32];
  for (int j = 0; j < 2; ++j) {
    const vi* c = codes + 128 * j;
    for (int i = 0; i < 32; ++i)
      bytes[i] = (c[i] & 3) | (c[i + 32] & 3) << 2 | (c[i + 64] & 3) << 4 | (c[i + 96] & 3) << 6;
    out.store_bytes(offset + 32 * j, bytes, 32);
  }
}

} // namespace
