// Vectors for encoders: each lane works on a block of its own, with the arithmetic of the scalar algorithm in its order, so
// that the bytes agree with ggml's. The only place where an encoder's code depends on what the target has is the width.
#pragma once
#include <utility>

#include "../half.h"

#pragma GCC diagnostic ignored "-Wpsabi" // no vector crosses a translation unit

namespace {

#if defined(__AVX512F__)
constexpr int lanes = 16;
#elif defined(__AVX2__)
constexpr int lanes = 8;
#else
constexpr int lanes = 4;
#endif
typedef float Floats __attribute__((vector_size(4 * lanes)));
typedef int32_t Ints __attribute__((vector_size(4 * lanes)));

inline Floats all_lanes(float v) { return v - Floats{}; }
inline Floats to_floats(Ints v) { return __builtin_convertvector(v, Floats); }
inline Ints bits_of(Floats v) { return (Ints)v; }
inline Floats floats_of(Ints v) { return (Floats)v; }
inline Floats magnitude(Floats v) { return floats_of(bits_of(v) & 0x7fffffff); }
// Towards zero; what does not fit becomes INT_MIN, as on x86.
inline Ints to_ints(Floats v) {
#if defined(__aarch64__) // whose own conversion saturates
  return magnitude(v) < 2147483648.0f ? __builtin_convertvector(v, Ints) : Ints{} + INT32_MIN;
#else
  return __builtin_convertvector(v, Ints);
#endif
}
// b where the two do not compare.
#if defined(__AVX512F__)
inline Floats larger(Floats a, Floats b) { return (Floats)_mm512_max_ps((__m512)a, (__m512)b); }
inline Floats smaller(Floats a, Floats b) { return (Floats)_mm512_min_ps((__m512)a, (__m512)b); }
inline bool any(Ints mask) { return _mm512_test_epi32_mask((__m512i)mask, (__m512i)mask); }
#elif defined(__AVX2__)
inline Floats larger(Floats a, Floats b) { return (Floats)_mm256_max_ps((__m256)a, (__m256)b); }
inline Floats smaller(Floats a, Floats b) { return (Floats)_mm256_min_ps((__m256)a, (__m256)b); }
inline bool any(Ints mask) { return _mm256_movemask_ps((__m256)mask); }
#else
inline Floats larger(Floats a, Floats b) { return a > b ? a : b; }
inline Floats smaller(Floats a, Floats b) { return a < b ? a : b; }
#if defined(LLTOOL_NEON)
inline bool any(Ints mask) { return vmaxvq_u32((uint32x4_t)mask); }
#else
inline bool any(Ints mask) { return mask[0] | mask[1] | mask[2] | mask[3]; }
#endif
#endif
inline bool all(Ints mask) { return !any(~mask); }
inline Ints clamp(Ints v, int low, int high) {
  v = v < low ? Ints{} + low : v;
  return v > high ? Ints{} + high : v;
}
inline Floats square_root(Floats v) {
#if defined(LLTOOL_NEON)
  return vsqrtq_f32(v);
#else
  float each[lanes];
  std::memcpy(each, &v, sizeof v);
  for (int l = 0; l < lanes; ++l) each[l] = __builtin_sqrtf(each[l]);
  std::memcpy(&v, each, sizeof v);
  return v;
#endif
}

// ggml's nearest_int: ties to even below 2^22 in magnitude, and the same nonsense above.
inline Ints nearest(Floats v) { return (bits_of(v + 12582912.0f) & 0x007fffff) - 0x00400000; }

// to_floats(clamp(nearest(v), low, high)) of a v below small_enough in magnitude.
constexpr float small_enough = 4194303.0f;
inline Floats round_small(Floats v, int low, int high) {
  const float shift = 12582912.0f;
  return smaller(larger(v + shift, all_lanes(shift + float(low))), all_lanes(shift + float(high))) - shift;
}

// C's roundf: ties away from zero. No fraction below one half reaches the next whole by the float before 0.5.
inline Ints round_away(Floats v) {
  const Ints half = bits_of(all_lanes(0.49999997f)) | (bits_of(v) & INT32_MIN);
  return to_ints(v + floats_of(half));
}

inline Floats round_to_half(Floats v) {
  uint8_t halves[2 * lanes];
  float each[lanes];
  std::memcpy(each, &v, sizeof v);
  f32_row_to_f16(each, lanes, halves);
  f16_row_to_f32(halves, lanes, each);
  std::memcpy(&v, each, sizeof v);
  return v;
}

// table[index & 31] in each lane.
inline Floats look_up(const float (&table)[32], Ints index) {
#if defined(__AVX512F__)
  return (Floats)_mm512_permutex2var_ps(_mm512_loadu_ps(table), (__m512i)index, _mm512_loadu_ps(table + 16));
#elif defined(__AVX2__)
  __m256 part[4];
  for (int k = 0; k < 4; ++k) part[k] = _mm256_permutevar8x32_ps(_mm256_loadu_ps(table + 8 * k), (__m256i)index);
  const __m256 fourth = (__m256)(index << 28), fifth = (__m256)(index << 27); // their sign chooses
  return (Floats)_mm256_blendv_ps(_mm256_blendv_ps(part[0], part[1], fourth), _mm256_blendv_ps(part[2], part[3], fourth), fifth);
#else
  Floats v;
  for (int l = 0; l < lanes; ++l) v[l] = table[index[l] & 31];
  return v;
#endif
}

// Of every square of 2 * apart lanes of as many vectors, swaps the half above the diagonal with the one below.
template <int apart, class Vector, int... l>
inline void swap_halves(Vector* v, int n, std::integer_sequence<int, l...>) {
  for (int i = 0; i < n; ++i) {
    if (i & apart) continue;
    const Vector a = v[i], b = v[i + apart];
    v[i] = __builtin_shufflevector(a, b, (l & apart ? lanes + l - apart : l)...);
    v[i + apart] = __builtin_shufflevector(a, b, (l & apart ? lanes + l : l + apart)...);
  }
}
constexpr std::make_integer_sequence<int, lanes> every_lane;

// tile[i] holds weight i of every lane's block; n is a multiple of the lanes.
inline void load_tile(const float* const (&source)[lanes], int n, Floats* tile) {
  for (int i = 0; i < n; i += lanes) {
    Floats square[lanes];
    for (int l = 0; l < lanes; ++l) std::memcpy(square + l, source[l] + i, sizeof(Floats));
    swap_halves<1>(square, lanes, every_lane);
    swap_halves<2>(square, lanes, every_lane);
    if constexpr (lanes > 4) swap_halves<4>(square, lanes, every_lane);
    if constexpr (lanes > 8) swap_halves<8>(square, lanes, every_lane);
    std::memcpy(tile + i, square, sizeof square);
  }
}

// Where every lane's block goes.
struct Blocks {
  uint8_t* lane[lanes];

  void store_halves(int offset, Floats v) const {
    float each[lanes];
    uint8_t halves[2 * lanes];
    std::memcpy(each, &v, sizeof v);
    f32_row_to_f16(each, lanes, halves);
    for (int l = 0; l < lanes; ++l) std::memcpy(lane[l] + offset, halves + 2 * l, 2);
  }
  void store_byte(int offset, Ints v) const {
    for (int l = 0; l < lanes; ++l) lane[l][offset] = uint8_t(v[l]);
  }
  void store_halfwords(int offset, Ints v) const {
    for (int l = 0; l < lanes; ++l) {
      const auto halfword = uint16_t(v[l]);
      std::memcpy(lane[l] + offset, &halfword, 2);
    }
  }
  void store_words(int offset, Ints v) const {
    int32_t word[lanes];
    std::memcpy(word, &v, sizeof v);
    for (int l = 0; l < lanes; ++l) std::memcpy(lane[l] + offset, word + l, 4);
  }
  // bytes[i] (0 to 255) of n, a multiple of four, go to offset + i.
  void store_bytes(int offset, const Ints* bytes, int n) const {
    const auto word = [&](int i) { return bytes[i] | bytes[i + 1] << 8 | bytes[i + 2] << 16 | bytes[i + 3] << 24; };
    int i = 0;
    for (; i + 16 <= n; i += 16) { // four words of a lane side by side: lane 4k + j in part k of vector j
      Ints words[4] = {word(i), word(i + 4), word(i + 8), word(i + 12)};
      swap_halves<1>(words, 4, every_lane);
      swap_halves<2>(words, 4, every_lane);
      const auto* from = reinterpret_cast<const uint8_t*>(words);
      for (int l = 0; l < lanes; ++l)
        std::memcpy(lane[l] + offset + i, from + sizeof(Ints) * (l % 4) + 16 * (l / 4), 16);
    }
    for (; i < n; i += 4) store_words(offset + i, word(i));
  }
};

} // namespace
