// The small vocabulary that kernels are written in: vectors, and with dot.h their dot products of bytes. Vector types are the
// compiler's own (GCC and Clang extensions), so that a new instruction set is a width and `dot4`, nothing else.
#pragma once
#include <cstdint>
#include <cstring>
#if defined(__AVX2__)
#include <immintrin.h>
#elif defined(LLTOOL_NEON)
#include <arm_neon.h>
#endif

#include "formats/bits.h"
#include "half.h"

namespace {

#if defined(__AVX512VNNI__)
constexpr int lanes = 16, panel = 12; // 12 int and 12 float accumulators leave 8 of 32 registers
#elif defined(__AVX2__)
constexpr int lanes = 8, panel = 4;
#elif defined(LLTOOL_NEON)
constexpr int lanes = 4, panel = 12;
#else
constexpr int lanes = 4, panel = 4;
#endif
#if defined(__AVX512VNNI__) || defined(LLTOOL_NEON)
constexpr int registers = 32;
#else
constexpr int registers = 16;
#endif

typedef float vf __attribute__((vector_size(lanes * 4)));
typedef int32_t vi __attribute__((vector_size(lanes * 4)));
typedef uint32_t vu __attribute__((vector_size(lanes * 4)));
typedef uint8_t vb __attribute__((vector_size(lanes * 4)));

template <class V, class T> inline V load(const T* p) {
  V v;
  std::memcpy(&v, p, sizeof(V));
  return v;
}
template <class V, class T> inline void store(T* p, V v) { std::memcpy(p, &v, sizeof(V)); }
// Keeps GCC from holding an array in registers.
template <class T, int n> inline void keep_in_memory(T (&array)[n]) { asm("" : "+m"(array)); }
// The first `count` items at p; the other lanes are zero.
template <int count> inline vi load_first(const int32_t* p) {
#if defined(__AVX512VNNI__)
  return (vi)_mm512_maskz_loadu_epi32((1 << count) - 1, p);
#else
  vi v{};
  std::memcpy(&v, p, count * 4);
  return v;
#endif
}
struct Float16 {
  uint16_t bits;
};
struct Brain16 {
  uint16_t bits;
};

// `lanes` items of memory in the lanes of a vector.
inline vf widen(const float* p) { return load<vf>(p); }
inline vf widen(const Float16* p) {
#if defined(__AVX512VNNI__)
  return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
#elif defined(__AVX2__)
  return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
#elif defined(LLTOOL_NEON)
  return vcvt_f32_f16(load<float16x4_t>(p));
#else
  vf v;
  for (int i = 0; i < lanes; ++i) v[i] = f16_to_f32(p[i].bits);
  return v;
#endif
}
inline vf widen(const Brain16* p) {
#if defined(__AVX512VNNI__)
  return (vf)_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p))), 16);
#else
  typedef uint16_t halves __attribute__((vector_size(lanes * 2)));
  return (vf)(__builtin_convertvector(load<halves>(p), vu) << 16);
#endif
}
// GCC takes several steps for what is one instruction.
inline vi widen(const int8_t* p) {
#if defined(__AVX512VNNI__)
  return (vi)_mm512_cvtepi8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
#elif defined(__AVX2__)
  return (vi)_mm256_cvtepi8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p)));
#else
  typedef int8_t bytes __attribute__((vector_size(lanes)));
  return __builtin_convertvector(load<bytes>(p), vi);
#endif
}

inline vf splat(float x) { return x - vf{}; }
inline vi splat(int32_t x) { return x - vi{}; }
inline vf to_float(vi v) { return __builtin_convertvector(v, vf); }
inline vi to_int(vf v) { return __builtin_convertvector(v, vi); }
#if defined(LLTOOL_NEON)
inline vf max(vf a, vf b) { return vmaxnmq_f32(a, b); }
inline vf min(vf a, vf b) { return vminnmq_f32(a, b); }
#else
inline vf max(vf a, vf b) { return a > b ? a : b; }
inline vf min(vf a, vf b) { return a < b ? a : b; }
#endif
inline vf abs(vf a) { return (vf)((vi)a & 0x7fffffff); }
// Rounds to the nearest integer, |x| < 2^22.
#if defined(LLTOOL_NEON)
inline vf round(vf a) { return vrndnq_f32(a); }
#else
inline vf round(vf a) { return (a + 12582912.0f) - 12582912.0f; }
#endif

// The nearest integers, of two the even one, |x| < 2^22.
inline vi to_nearest(vf a) {
#if defined(__AVX512VNNI__)
  return (vi)_mm512_cvtps_epi32(a);
#elif defined(__AVX2__)
  return (vi)_mm256_cvtps_epi32(a);
#elif defined(LLTOOL_NEON)
  return vcvtnq_s32_f32(a);
#else
  return to_int(round(a));
#endif
}

// Writes numbers, rounded to the nearest, as integers that hold them.
template <class Integer> inline void store_rounded(Integer* p, vf v) {
#if defined(LLTOOL_NEON)
  const int16x4_t halves = vmovn_s32(to_nearest(v));
  if constexpr (sizeof(Integer) == 2) return store(p, halves);
  if constexpr (sizeof(Integer) == 1) return vst1_lane_s32(reinterpret_cast<int32_t*>(p), (int32x2_t)vmovn_s16(vcombine_s16(halves, halves)), 0);
#endif
#if defined(__AVX2__) && !defined(__AVX512VNNI__)
  const __m256i whole = (__m256i)to_nearest(v);
  const __m128i halves = _mm_packs_epi32(_mm256_castsi256_si128(whole), _mm256_extracti128_si256(whole, 1));
  if constexpr (sizeof(Integer) == 2) return store(p, halves);
  if constexpr (sizeof(Integer) == 1) return _mm_storel_epi64(reinterpret_cast<__m128i*>(p), _mm_packs_epi16(halves, halves));
#endif
  typedef Integer narrow __attribute__((vector_size(lanes * sizeof(Integer))));
  store(p, __builtin_convertvector(to_nearest(v), narrow));
}

// The lower and upper halves of a and b, lane by lane in turns.
inline vi zip_low(vi a, vi b) {
#if defined(__AVX512VNNI__)
  return __builtin_shufflevector(a, b, 0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);
#elif defined(__AVX2__)
  return __builtin_shufflevector(a, b, 0, 8, 1, 9, 2, 10, 3, 11);
#else
  return __builtin_shufflevector(a, b, 0, 4, 1, 5);
#endif
}
inline vi zip_high(vi a, vi b) {
#if defined(__AVX512VNNI__)
  return __builtin_shufflevector(a, b, 8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31);
#elif defined(__AVX2__)
  return __builtin_shufflevector(a, b, 4, 12, 5, 13, 6, 14, 7, 15);
#else
  return __builtin_shufflevector(a, b, 2, 6, 3, 7);
#endif
}
// Each round moves the highest bit of a lane's (row, column) to the end; after as many as a row number has they are swapped.
inline void transpose(vi (&v)[lanes]) {
#pragma GCC unroll 4
  for (int round = 1; round < lanes; round *= 2) {
    vi next[lanes];
    for (int i = 0; i < lanes / 2; ++i) {
      next[2 * i] = zip_low(v[i], v[i + lanes / 2]);
      next[2 * i + 1] = zip_high(v[i], v[i + lanes / 2]);
    }
    for (int i = 0; i < lanes; ++i) v[i] = next[i];
  }
}

// The same for each four vectors' four lanes: lane 4j + i of v[k] changes places with lane 4j + k of v[i].
inline void transpose_fours(vi (&v)[4]) {
#if defined(__AVX512VNNI__)
  const __m512i a = _mm512_unpacklo_epi32((__m512i)v[0], (__m512i)v[1]), b = _mm512_unpackhi_epi32((__m512i)v[0], (__m512i)v[1]);
  const __m512i c = _mm512_unpacklo_epi32((__m512i)v[2], (__m512i)v[3]), d = _mm512_unpackhi_epi32((__m512i)v[2], (__m512i)v[3]);
  v[0] = (vi)_mm512_unpacklo_epi64(a, c);
  v[1] = (vi)_mm512_unpackhi_epi64(a, c);
  v[2] = (vi)_mm512_unpacklo_epi64(b, d);
  v[3] = (vi)_mm512_unpackhi_epi64(b, d);
#elif defined(__AVX2__)
  const __m256i a = _mm256_unpacklo_epi32((__m256i)v[0], (__m256i)v[1]), b = _mm256_unpackhi_epi32((__m256i)v[0], (__m256i)v[1]);
  const __m256i c = _mm256_unpacklo_epi32((__m256i)v[2], (__m256i)v[3]), d = _mm256_unpackhi_epi32((__m256i)v[2], (__m256i)v[3]);
  v[0] = (vi)_mm256_unpacklo_epi64(a, c);
  v[1] = (vi)_mm256_unpackhi_epi64(a, c);
  v[2] = (vi)_mm256_unpacklo_epi64(b, d);
  v[3] = (vi)_mm256_unpackhi_epi64(b, d);
#else
  transpose(v);
#endif
}

// Lane i is what `combine` makes of all lanes of v[i]: a transposition that keeps the combined half of each round.
template <class Combine> inline vf reduce_each(vf (&v)[lanes], Combine combine) {
#pragma GCC unroll 4
  for (int n = lanes / 2; n > 0; n /= 2)
    for (int i = 0; i < n; ++i)
      v[i] = combine((vf)zip_low((vi)v[i], (vi)v[i + n]), (vf)zip_high((vi)v[i], (vi)v[i + n]));
  return v[0];
}

// Up to eight floats as lanes with the same sum.
template <class V> inline vf to_lanes(V v) {
#if defined(__AVX512VNNI__)
  if constexpr (sizeof(V) == 16) return _mm512_zextps128_ps512((__m128)v);
  if constexpr (sizeof(V) == 32) return _mm512_zextps256_ps512((__m256)v);
#elif defined(__AVX2__)
  if constexpr (sizeof(V) == 16) return _mm256_zextps128_ps256((__m128)v);
  if constexpr (sizeof(V) == 32) return v;
#endif
  vf sum{};
  for (int i = 0; i < int(sizeof(V) / 4); ++i) sum[i % lanes] += v[i];
  return sum;
}

inline float sum_of(vf v) {
#if defined(__AVX512VNNI__)
  return _mm512_reduce_add_ps(v);
#elif defined(LLTOOL_NEON)
  return vaddvq_f32(v);
#else
  float s = 0;
  for (int i = 0; i < lanes; ++i) s += v[i];
  return s;
#endif
}
inline float highest(vf v) {
#if defined(__AVX512VNNI__)
  return _mm512_reduce_max_ps(v);
#elif defined(LLTOOL_NEON)
  return vmaxnmvq_f32(v);
#else
  float m = v[0];
  for (int i = 1; i < lanes; ++i) m = v[i] > m ? v[i] : m;
  return m;
#endif
}

// Each four lanes: their largest.
inline vf highest_of_fours(vf v) {
#if defined(__AVX512VNNI__)
  v = max(v, _mm512_permute_ps(v, 0xb1));
  return max(v, _mm512_permute_ps(v, 0x4e));
#elif defined(__AVX2__)
  v = max(v, _mm256_permute_ps(v, 0xb1));
  return max(v, _mm256_permute_ps(v, 0x4e));
#else
  return splat(highest(v));
#endif
}

// Four lanes each of s[first], s[first + stride], and so on, of stride * lanes / 4 floats.
template <int first, int stride> inline vf spread(const float* s) {
#if defined(__AVX512VNNI__)
  constexpr int a = first, b = a + stride, c = b + stride, d = c + stride;
  const __m512i pick = _mm512_setr_epi32(a, a, a, a, b, b, b, b, c, c, c, c, d, d, d, d);
  if constexpr (stride == 1) return _mm512_permutexvar_ps(pick, _mm512_castps128_ps512(_mm_loadu_ps(s)));
  return _mm512_permutexvar_ps(pick, _mm512_castps256_ps512(_mm256_loadu_ps(s)));
#elif defined(LLTOOL_NEON)
  return vld1q_dup_f32(s + first);
#else
  vf v;
  for (int i = 0; i < lanes; ++i) v[i] = s[first + i / 4 * stride];
  return v;
#endif
}

#if defined(__AVX2__)
// The half at p and those of the next blocks of `stride` bytes, n of at most four; the rest is zero.
template <int n, int stride> inline __m128 halves_of_blocks(const uint8_t* p) {
  return _mm_cvtph_ps(_mm_cvtsi64_si128(int64_t(words_of_blocks<n>(p, stride))));
}
#endif
// As many of them as V has floats.
template <class V, int stride> inline V first_halves(const uint8_t* p) {
  constexpr int n = sizeof(V) / 4;
  V v;
#if defined(__AVX2__)
  const __m128 halves = halves_of_blocks<n, stride>(p);
  std::memcpy(&v, &halves, sizeof v);
#else
  for (int i = 0; i < n; ++i) v[i] = load_f16(p + i * stride);
#endif
  return v;
}
// Four lanes each of them.
template <int stride> inline vf spread_halves(const uint8_t* p) {
#if defined(__AVX512VNNI__)
  const __m512i pick = _mm512_setr_epi32(0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2, 3, 3, 3, 3);
  return _mm512_permutexvar_ps(pick, _mm512_castps128_ps512(halves_of_blocks<4, stride>(p)));
#elif defined(__AVX2__)
  const __m256i pick = _mm256_setr_epi32(0, 0, 0, 0, 1, 1, 1, 1);
  return _mm256_permutevar8x32_ps(_mm256_castps128_ps256(halves_of_blocks<2, stride>(p)), pick);
#else
  return splat(load_f16(p));
#endif
}

// The halves at p and each `stride` bytes on, a lane each.
inline vf gather_halves(const uint8_t* p, int64_t stride) {
  const auto four = [&](int i) { return int64_t(words_of_blocks<4>(p + 4 * i * stride, stride)); };
#if defined(__AVX512VNNI__)
  return _mm512_cvtph_ps(_mm256_setr_epi64x(four(0), four(1), four(2), four(3)));
#elif defined(__AVX2__)
  return _mm256_cvtph_ps(_mm_set_epi64x(four(1), four(0)));
#else
  const int64_t words = four(0);
  Float16 halves[4];
  std::memcpy(halves, &words, sizeof halves);
  return widen(halves);
#endif
}

// e^x to 2 ulp: x = n ln2 + r, a degree-6 polynomial in r, 2^n by exponent bits (Cephes' expf range reduction).
inline vf exp(vf x) {
  x = min(max(x, splat(-87.3f)), splat(88.3f));
  const vf n = round(x * 1.44269504f);
  const vf r = (x - n * 0.693359375f) - n * -2.12194440e-4f;
  vf p = r * 1.9875691500e-4f + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = p * r * r + r + 1.0f;
  return (vf)((vi)p + (to_int(n) << 23));
}
// 2^x to 2 ulp for x <= 0; exactly 0 below -127, where the exponent's bits come to nothing.
inline vf exp2(vf x) {
  x = max(x, splat(-127.0f));
  const vf shifted = x + 12582912.0f; // its lowest bits are the nearest integer
  const vf r = x - (shifted - 12582912.0f);
  vf p = r * 1.32647271e-3f + 9.67151265e-3f;
  p = p * r + 5.55073374e-2f;
  p = p * r + 2.40222421e-1f;
  p = p * r + 6.93146978e-1f;
  p = p * r + 1.0f;
  return (vf)((vi)p + ((vi)shifted << 23));
}
// Small arguments by Cephes' polynomial (no cancellation), the rest through e^2x.
inline vf tanh(vf x) {
  const vf z = x * x, e = exp(min(max(x, splat(-10.0f)), splat(10.0f)) * 2.0f);
  vf p = z * -5.70498872745e-3f + 2.06390887954e-2f;
  p = p * z - 5.37397155531e-2f;
  p = p * z + 1.33314422036e-1f;
  p = p * z - 3.33332819422e-1f;
  return abs(x) < 0.625f ? p * z * x + x : (e - 1.0f) / (e + 1.0f);
}

} // namespace
