// Half-precision numbers.
#pragma once

namespace {

// Conversions round to nearest, ties to even.
template <class = void> inline float f16_to_f32(uint16_t h) {
  const uint32_t sign = uint32_t(h & 0x8000) << 16, exponent = (h >> 10) & 31, mantissa = h & 0x3ff;
  if (exponent == 31) return bits_f32(sign | 0x7f800000 | mantissa << 13);
  if (exponent) return bits_f32(sign | (exponent + 112) << 23 | mantissa << 13);
  const float subnormal = float(mantissa) * bits_f32(0x33800000); // mantissa * 2^-24, exact
  return bits_f32(sign | f32_bits(subnormal));
}
template <class = void> inline uint16_t f32_to_f16(float f) {
  const uint32_t bits = f32_bits(f), sign = bits >> 16 & 0x8000, magnitude = bits & 0x7fffffff;
  if (magnitude > 0x7f800000) return uint16_t(sign | 0x7e00 | (magnitude >> 13 & 0x3ff)); // NaN stays NaN
  if (magnitude >= 0x477ff000) return uint16_t(sign | 0x7c00); // rounds past 65504
  if (magnitude < 0x38800000) { // subnormal or zero: the addition rounds at 2^-24
    const float shifted = bits_f32(magnitude) + 0.5f;
    return uint16_t(sign | (f32_bits(shifted) - 0x3f000000));
  }
  return uint16_t(sign | ((magnitude - 0x38000000 + 0xfff + (magnitude >> 13 & 1)) >> 13));
}
inline float load_f16(const uint8_t* p) { return f16_to_f32(load_u16(p)); }
// Convert n consecutive numbers.
template <class = void> inline void f16_row_to_f32(const uint8_t* p, int64_t n, float* out) {
  for (int64_t i = 0; i < n; ++i) out[i] = f16_to_f32(load_u16(p + 2 * i));
}
template <class = void> inline void f32_row_to_f16(const float* x, int64_t n, uint8_t* out) {
  for (int64_t i = 0; i < n; ++i) store(out + 2 * i, f32_to_f16(x[i]));
}

} // namespace
