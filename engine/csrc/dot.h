// Dot products of bytes and of 16-bit integers: what an instruction set is chosen for.
#pragma once
#include "vector.h"

namespace {

// acc[i] + sum over the four bytes j of lane i of (w[4i+j] - dot_bias<max_code>) * x[4i+j]: w unsigned, at most max_code; x signed,
// not -128. There is a bias where only signed bytes multiply; it costs nothing where a multiple of the sum of x is added anyway.
#if defined(LLTOOL_NEON) || (defined(__AVX2__) && !defined(__AVX512VNNI__))
template <int max_code> constexpr int dot_bias = max_code <= 127 ? 0 : 128;
#else
template <int max_code> constexpr int dot_bias = 0;
#endif
#if defined(__AVX512VNNI__)
template <int max_code> inline vi dot4(vi acc, vb w, vb x) {
  // As assembly: GCC 12 copies the accumulator around the intrinsic.
  asm("vpdpbusd %2, %1, %0" : "+v"(acc) : "v"(w), "vm"(x));
  return acc;
}
// The same four bytes of x for every lane.
template <int max_code> inline vi dot4_splat(vi acc, vb w, const int8_t* x) {
  asm("vpdpbusd %2%{1to16%}, %1, %0" : "+v"(acc) : "v"(w), "m"(*(const int32_t*)x));
  return acc;
}
#elif defined(__AVX2__)
template <int max_code> inline vi dot4(vi acc, vb w, vb x) {
  __m256i u = (__m256i)w, s = (__m256i)x;
  if constexpr (max_code > 127) { // |w - 128|, and x with its sign: pairs of products fit 16 bits
    const __m256i v = _mm256_xor_si256(u, _mm256_set1_epi8(-128));
    u = _mm256_abs_epi8(v);
    s = _mm256_sign_epi8(s, v);
  }
  return acc + (vi)_mm256_madd_epi16(_mm256_maddubs_epi16(u, s), _mm256_set1_epi16(1));
}
#elif defined(LLTOOL_NEON)
template <int max_code> inline int8x16_t signed_codes(vb w) { return (int8x16_t)(w ^ dot_bias<max_code>); }
#if defined(__ARM_FEATURE_DOTPROD)
template <int max_code> inline vi dot4(vi acc, vb w, vb x) { return vdotq_s32(acc, signed_codes<max_code>(w), (int8x16_t)x); }
#else
template <int max_code> inline vi dot4(vi acc, vb w, vb x) {
  const int8x16_t a = signed_codes<max_code>(w), b = (int8x16_t)x; // pairs of products fit 16 bits
  const int16x8_t low = vmull_s8(vget_low_s8(a), vget_low_s8(b)), high = vmull_high_s8(a, b);
  return vpadalq_s16(acc, vpaddq_s16(low, high));
}
#endif
#else
template <int max_code> inline vi dot4(vi acc, vb w, vb x) {
  typedef int16_t half __attribute__((vector_size(lanes * 4)));
  const half even = ((half)w & 255) * ((half)x << 8 >> 8), odd = (half)((vu)w >> 8 & 0x00ff00ff) * ((half)x >> 8);
  return acc + ((vi)even << 16 >> 16) + ((vi)even >> 16) + ((vi)odd << 16 >> 16) + ((vi)odd >> 16);
}
#endif
#if !defined(__AVX512VNNI__)
template <int max_code> inline vi dot4_splat(vi acc, vb w, const int8_t* x) {
  int32_t four;
  std::memcpy(&four, x, 4);
  return dot4<max_code>(acc, w, (vb)splat(four));
}
#endif
// Four bytes of x for each of N sums.
template <int max_code, int N> inline void dot4_splat(vi (&acc)[N], vb w, const int8_t* x) {
#if defined(__ARM_FEATURE_DOTPROD)
  static_assert(N % 4 == 0);
  const int8x16_t a = signed_codes<max_code>(w);
  for (int t = 0; t < N; t += 4) // as assembly: GCC 12 sorts the intrinsics by sum, each waiting for the one before
    asm("sdot %0.4s, %4.16b, %5.4b[0]\n\tsdot %1.4s, %4.16b, %5.4b[1]\n\t"
        "sdot %2.4s, %4.16b, %5.4b[2]\n\tsdot %3.4s, %4.16b, %5.4b[3]"
        : "+w"(acc[t]), "+w"(acc[t + 1]), "+w"(acc[t + 2]), "+w"(acc[t + 3])
        : "w"(a), "w"(vld1q_s8(x + 4 * t)));
#else
  for (int t = 0; t < N; ++t) acc[t] = dot4_splat<max_code>(acc[t], w, x + 4 * t);
#endif
}

#if defined(__AVX2__) && !defined(__AVX512VNNI__)
// So many pairs of products are summed in 16 bits, which they fit; more than four take too many registers.
template <int max_code> constexpr int pairs_together = max_code <= 31 ? 4 : max_code <= 63 ? 2 : 1;
#endif

// acc + w[0] times x[0] + w[1] times x[1].
template <int max_code> inline vi dot4(vi acc, const vb (&w)[2], const vb (&x)[2]) {
#if defined(__AVX2__) && !defined(__AVX512VNNI__)
  if constexpr (pairs_together<max_code> > 1) {
    const __m256i first = _mm256_maddubs_epi16((__m256i)w[0], (__m256i)x[0]), second = _mm256_maddubs_epi16((__m256i)w[1], (__m256i)x[1]);
    return acc + (vi)_mm256_madd_epi16(_mm256_add_epi16(first, second), _mm256_set1_epi16(1));
  }
#endif
  return dot4<max_code>(dot4<max_code>(acc, w[0], x[0]), w[1], x[1]);
}

// `count` vectors of weights, code(0) and so on, times four bytes of x each for each of N sums.
template <int max_code, int count, int N, class Code> inline void dot4_splat_each(vi (&acc)[N], Code code, const int8_t* x) {
#if defined(__AVX2__) && !defined(__AVX512VNNI__)
  constexpr int together = pairs_together<max_code> < count ? pairs_together<max_code> : count;
  if constexpr (together > 1) {
#pragma GCC unroll 4
    for (int from = 0; from < count; from += together) {
      __m256i sum[N];
#pragma GCC unroll 8
      for (int i = 0; i < together; ++i) {
        const __m256i w = (__m256i)code(from + i);
#pragma GCC unroll 4
        for (int t = 0; t < N; ++t) {
          const __m256i pairs = _mm256_maddubs_epi16(w, (__m256i)splat(load<int32_t>(x + 4 * ((from + i) * panel + t))));
          sum[t] = i ? _mm256_add_epi16(sum[t], pairs) : pairs;
        }
      }
#pragma GCC unroll 4
      for (int t = 0; t < N; ++t) acc[t] += (vi)_mm256_madd_epi16(sum[t], _mm256_set1_epi16(1));
    }
    return;
  }
#endif
#pragma GCC unroll 8
  for (int i = 0; i < count; ++i) dot4_splat<max_code>(acc, code(i), x + 4 * i * panel);
}

constexpr bool multiplies_pairs = lanes > 4; // by an instruction; else floats are as fast
// acc[i] + the sum of both int16 of lane i of w times those at x.
inline vi dot2_splat(vi acc, vi w, const int16_t* x) {
#if defined(__AVX512VNNI__)
  asm("vpdpwssd %2%{1to16%}, %1, %0" : "+v"(acc) : "v"(w), "m"(*(const int32_t*)x));
  return acc;
#else
  int32_t two;
  std::memcpy(&two, x, 4);
#if defined(__AVX2__)
  return acc + (vi)_mm256_madd_epi16((__m256i)w, _mm256_set1_epi32(two));
#else
  return acc + (w << 16 >> 16) * (int32_t(uint32_t(two) << 16) >> 16) + (w >> 16) * (two >> 16);
#endif
#endif
}

} // namespace
