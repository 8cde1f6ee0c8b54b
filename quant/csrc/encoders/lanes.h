// Vectors for encoders. Each lane works on its own block, with the arithmetic of the scalar algorithm in the same order, so
// that the bytes equal ggml's. Only the width makes an encoder's code depend on the target.
#pragma once
#include <utility>

#include "../half.h"

namespace {

inline vi bits_of(vf v) { return (vi)v; }
inline vf floats_of(vi v) { return (vf)v; }
inline bool all(vi mask) { return !any(~mask); }
inline vi clamp(vi v, int low, int high) {
  v = v < low ? vi{} + low : v;
  return v > high ? vi{} + high : v;
}

// ggml's nearest_int: rounds ties to even below 2^22 in magnitude; larger numbers give the same meaningless results.
inline vi nearest(vf v) { return (bits_of(v + 12582912.0f) & 0x007fffff) - 0x00400000; }

// to_float(clamp(nearest(v), low, high)) for a v below small_enough in magnitude.
constexpr float small_enough = 4194303.0f;
inline vf round_small(vf v, int low, int high) {
  const float shift = 12582912.0f;
  return smaller(larger(v + shift, splat(shift + float(low))), splat(shift + float(high))) - shift;
}

// C's roundf, which rounds ties away from zero. Adding the float before 0.5 carries no fraction below one half to the next.
inline vi round_away(vf v) {
  const vi half = bits_of(splat(0.49999997f)) | (bits_of(v) & INT32_MIN);
  return to_ints(v + floats_of(half));
}

inline vf round_to_half(vf v) {
  uint8_t halves[2 * lanes];
  float each[lanes];
  std::memcpy(each, &v, sizeof v);
  f32_row_to_f16(each, lanes, halves);
  f16_row_to_f32(halves, lanes, each);
  std::memcpy(&v, each, sizeof v);
  return v;
}

// In each square of 2 * apart lanes and as many vectors, swaps the block above the diagonal with the one below.
template <int apart, class Vector, int... l>
inline void swap_halves(Vector* v, int n, std::integer_sequence<int, l...>) {
  for (int i = 0; i < n; ++i) {
    if (i & apart) continue;
    const Vector a = v[i], b = v[i + apart];
    v[i] = __builtin_shufflevector(a, b, (l & apart ? lanes + l - apart : l)...);
    v[i + apart] = __builtin_shufflevector(a, b, (l & apart ? lanes + l : l + apart)...);
  }
}

// tile[i] holds weight i of every lane's block; n is a multiple of the lanes.
inline void load_tile(const float* const (&source)[lanes], int n, vf* tile) {
  for (int i = 0; i < n; i += lanes) {
    vf square[lanes];
    for (int l = 0; l < lanes; ++l) std::memcpy(square + l, source[l] + i, sizeof(vf));
    swap_halves<1>(square, lanes, every_lane);
    swap_halves<2>(square, lanes, every_lane);
    if constexpr (lanes > 4) swap_halves<4>(square, lanes, every_lane);
    if constexpr (lanes > 8) swap_halves<8>(square, lanes, every_lane);
    std::memcpy(tile + i, square, sizeof square);
  }
}

// The destination of each lane's block.
struct Blocks {
  uint8_t* lane[lanes];

  void store_halves(int offset, vf v) const {
    float each[lanes];
    uint8_t halves[2 * lanes];
    std::memcpy(each, &v, sizeof v);
    f32_row_to_f16(each, lanes, halves);
    for (int l = 0; l < lanes; ++l) std::memcpy(lane[l] + offset, halves + 2 * l, 2);
  }
  void store_byte(int offset, vi v) const {
    for (int l = 0; l < lanes; ++l) lane[l][offset] = uint8_t(v[l]);
  }
  void store_halfwords(int offset, vi v) const {
    for (int l = 0; l < lanes; ++l) {
      const auto halfword = uint16_t(v[l]);
      std::memcpy(lane[l] + offset, &halfword, 2);
    }
  }
  void store_words(int offset, vi v) const {
    int32_t word[lanes];
    std::memcpy(word, &v, sizeof v);
    for (int l = 0; l < lanes; ++l) std::memcpy(lane[l] + offset, word + l, 4);
  }
  // Stores bytes[i] (0 to 255) at offset + i, for i below n, a multiple of four.
  void store_bytes(int offset, const vi* bytes, int n) const {
    const auto word = [&](int i) { return bytes[i] | bytes[i + 1] << 8 | bytes[i + 2] << 16 | bytes[i + 3] << 24; };
    int i = 0;
    for (; i + 16 <= n; i += 16) { // four words of a lane become adjacent: lane 4k + j in part k of vector j
      vi words[4] = {word(i), word(i + 4), word(i + 8), word(i + 12)};
      swap_halves<1>(words, 4, every_lane);
      swap_halves<2>(words, 4, every_lane);
      const auto* from = reinterpret_cast<const uint8_t*>(words);
      for (int l = 0; l < lanes; ++l)
        std::memcpy(lane[l] + offset + i, from + sizeof(vi) * (l % 4) + 16 * (l / 4), 16);
    }
    for (; i < n; i += 4) store_words(offset + i, word(i));
  }
};

} // namespace
