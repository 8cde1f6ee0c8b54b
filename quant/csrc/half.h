// Half-precision loads. The only place where number conversion depends on what the target has.
#pragma once
#include <cstdint>
#include <cstring>
#if defined(__F16C__)
#include <immintrin.h>
#elif defined(LLTOOL_NEON)
#include <arm_neon.h>
#endif

namespace {

inline float bits_f32(uint32_t bits) {
  float f;
  std::memcpy(&f, &bits, 4);
  return f;
}
inline uint32_t f32_bits(float f) {
  uint32_t bits;
  std::memcpy(&bits, &f, 4);
  return bits;
}

inline float f16_to_f32(uint16_t h) {
#if defined(__F16C__)
  return _cvtsh_ss(h);
#elif defined(LLTOOL_NEON)
  __fp16 half;
  std::memcpy(&half, &h, 2);
  return half;
#else
  const uint32_t sign = uint32_t(h & 0x8000) << 16, exponent = (h >> 10) & 31, mantissa = h & 0x3ff;
  if (exponent == 31) return bits_f32(sign | 0x7f800000 | mantissa << 13);
  if (exponent) return bits_f32(sign | (exponent + 112) << 23 | mantissa << 13);
  const float subnormal = float(mantissa) * bits_f32(0x33800000); // mantissa * 2^-24, exact
  return bits_f32(sign | f32_bits(subnormal));
#endif
}

// Round to nearest, ties to even, as the hardware does.
inline uint16_t f32_to_f16(float f) {
#if defined(__F16C__)
  return uint16_t(_cvtss_sh(f, 0));
#elif defined(LLTOOL_NEON)
  const auto half = __fp16(f);
  uint16_t h;
  std::memcpy(&h, &half, 2);
  return h;
#else
  const uint32_t bits = f32_bits(f), sign = bits >> 16 & 0x8000, magnitude = bits & 0x7fffffff;
  if (magnitude > 0x7f800000) return uint16_t(sign | 0x7e00 | (magnitude >> 13 & 0x3ff)); // NaN stays NaN
  if (magnitude >= 0x477ff000) return uint16_t(sign | 0x7c00); // rounds past 65504
  if (magnitude < 0x38800000) { // subnormal or zero: the addition rounds at 2^-24
    const float shifted = bits_f32(magnitude) + 0.5f;
    return uint16_t(sign | (f32_bits(shifted) - 0x3f000000));
  }
  return uint16_t(sign | ((magnitude - 0x38000000 + 0xfff + (magnitude >> 13 & 1)) >> 13));
#endif
}

inline float bf16_to_f32(uint16_t h) { return bits_f32(uint32_t(h) << 16); }

// Ties to even; NaN is made quiet and not rounded (ggml does the same).
inline uint16_t f32_to_bf16(float f) {
  const uint32_t bits = f32_bits(f);
  if ((bits & 0x7fffffff) > 0x7f800000) return uint16_t(bits >> 16 | 64);
  return uint16_t((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

inline uint16_t load_u16(const uint8_t* p) {
  uint16_t v;
  std::memcpy(&v, p, 2);
  return v;
}
inline uint32_t load_u32(const uint8_t* p) {
  uint32_t v;
  std::memcpy(&v, p, 4);
  return v;
}
// n consecutive halves.
inline void f16_row_to_f32(const uint8_t* p, int64_t n, float* out) {
  int64_t i = 0;
#if defined(__AVX512F__)
  for (; i + 16 <= n; i += 16)
    _mm512_storeu_ps(out + i, _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p + 2 * i))));
#elif defined(__F16C__)
  for (; i + 8 <= n; i += 8)
    _mm256_storeu_ps(out + i, _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p + 2 * i))));
#elif defined(LLTOOL_NEON)
  for (; i + 4 <= n; i += 4) vst1q_f32(out + i, vcvt_f32_f16((float16x4_t)vld1_u8(p + 2 * i)));
#endif
  for (; i < n; ++i) out[i] = f16_to_f32(load_u16(p + 2 * i));
}
inline void f32_row_to_f16(const float* x, int64_t n, uint8_t* out) {
  int64_t i = 0;
#if defined(__F16C__)
  for (; i + 8 <= n; i += 8)
    _mm_storeu_si128(reinterpret_cast<__m128i*>(out + 2 * i), _mm256_cvtps_ph(_mm256_loadu_ps(x + i), 0));
#elif defined(LLTOOL_NEON)
  for (; i + 4 <= n; i += 4) vst1_u8(out + 2 * i, (uint8x8_t)vcvt_f16_f32(vld1q_f32(x + i)));
#endif
  for (; i < n; ++i) {
    const uint16_t half = f32_to_f16(x[i]);
    std::memcpy(out + 2 * i, &half, 2);
  }
}
inline float load_f16(const uint8_t* p) { return f16_to_f32(load_u16(p)); }

} // namespace
