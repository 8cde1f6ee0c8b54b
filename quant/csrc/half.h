// Conversions of bfloat16.
#pragma once
#include LLTOOL_SIMD

namespace {

inline float bf16_to_f32(uint16_t h) { return bits_f32(uint32_t(h) << 16); }

// Rounds to nearest, ties to even; a NaN is made quiet instead of rounded, as in ggml.
inline uint16_t f32_to_bf16(float f) {
  const uint32_t bits = f32_bits(f);
  if ((bits & 0x7fffffff) > 0x7f800000) return uint16_t(bits >> 16 | 64);
  return uint16_t((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

} // namespace
