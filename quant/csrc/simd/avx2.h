// AVX2 with FMA and F16C: eight lanes.
#pragma once

namespace {

constexpr const char* isa = "avx2";
constexpr int lanes = 8, registers = 16;
constexpr int panel = 4; // the tokens that a matrix product takes at once
template <int max_code> constexpr int dot_bias = max_code <= 127 ? 0 : 128;

} // namespace

#include "vectors.h"
#include "x86.h"

namespace {

inline void f16_row_to_f32(const uint8_t* p, int64_t n, float* out) {
  int64_t i = 0;
  for (; i + 8 <= n; i += 8)
    _mm256_storeu_ps(out + i, _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p + 2 * i))));
  for (; i < n; ++i) out[i] = f16_to_f32(load_u16(p + 2 * i));
}
inline vf widen(const Float16* p) { return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))); }
// An intrinsic, because GCC uses several instructions where one does it.
inline vi widen(const int8_t* p) {
  return (vi)_mm256_cvtepi8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p)));
}

inline vf larger(vf a, vf b) { return (vf)_mm256_max_ps((__m256)a, (__m256)b); }
inline vf smaller(vf a, vf b) { return (vf)_mm256_min_ps((__m256)a, (__m256)b); }
inline vi to_nearest(vf a) { return (vi)_mm256_cvtps_epi32(a); }
inline __m128i nearest_shorts(vf v) {
  const __m256i whole = (__m256i)to_nearest(v);
  return _mm_packs_epi32(_mm256_castsi256_si128(whole), _mm256_extracti128_si256(whole, 1));
}
inline void store_rounded(int16_t* p, vf v) { store(p, nearest_shorts(v)); }
inline void store_rounded(int8_t* p, vf v) {
  const __m128i halves = nearest_shorts(v);
  _mm_storel_epi64(reinterpret_cast<__m128i*>(p), _mm_packs_epi16(halves, halves));
}

inline void transpose_fours(vi (&v)[4]) {
  const __m256i a = _mm256_unpacklo_epi32((__m256i)v[0], (__m256i)v[1]), b = _mm256_unpackhi_epi32((__m256i)v[0], (__m256i)v[1]);
  const __m256i c = _mm256_unpacklo_epi32((__m256i)v[2], (__m256i)v[3]), d = _mm256_unpackhi_epi32((__m256i)v[2], (__m256i)v[3]);
  v[0] = (vi)_mm256_unpacklo_epi64(a, c);
  v[1] = (vi)_mm256_unpackhi_epi64(a, c);
  v[2] = (vi)_mm256_unpacklo_epi64(b, d);
  v[3] = (vi)_mm256_unpackhi_epi64(b, d);
}
inline vf to_lanes(Floats4 v) { return _mm256_zextps128_ps256((__m128)v); }
inline vf to_lanes(Floats8 v) { return v; }
inline vf fused(vf a, vf b, vf c) { return _mm256_fmadd_ps(a, b, c); }
inline vi sum_fours(const vi (&v)[4]) {
  const auto add = [](__m256i a, __m256i b) { return _mm256_add_epi32(_mm256_unpacklo_epi32(a, b), _mm256_unpackhi_epi32(a, b)); };
  const __m256i a = add((__m256i)v[0], (__m256i)v[1]), b = add((__m256i)v[2], (__m256i)v[3]);
  return (vi)_mm256_add_epi32(_mm256_unpacklo_epi64(a, b), _mm256_unpackhi_epi64(a, b));
}
inline void transpose_parts(vf (&v)[2]) {
  const __m256 a = v[0];
  v[0] = _mm256_permute2f128_ps(a, v[1], 0x20);
  v[1] = _mm256_permute2f128_ps(a, v[1], 0x31);
}
inline bool any(vi mask) { return _mm256_movemask_ps((__m256)mask); }
inline vf highest_of_fours(vf v) {
  const auto most = [](vf a, vf b) { return a > b ? a : b; };
  v = most(v, _mm256_permute_ps(v, 0xb1));
  return most(v, _mm256_permute_ps(v, 0x4e));
}
inline vf look_up(const float (&table)[32], vi index) {
  __m256 part[4];
  for (int k = 0; k < 4; ++k) part[k] = _mm256_permutevar8x32_ps(_mm256_loadu_ps(table + 8 * k), (__m256i)index);
  const __m256 fourth = (__m256)(index << 28), fifth = (__m256)(index << 27); // their sign bits select
  return (vf)_mm256_blendv_ps(_mm256_blendv_ps(part[0], part[1], fourth), _mm256_blendv_ps(part[2], part[3], fourth), fifth);
}

template <int stride> inline vf spread_halves(const uint8_t* p) {
  const __m256i pick = _mm256_setr_epi32(0, 0, 0, 0, 1, 1, 1, 1);
  return _mm256_permutevar8x32_ps(_mm256_castps128_ps256(halves_of_blocks<2, stride>(p)), pick);
}
inline vf gather_halves(const uint8_t* p, int64_t stride) {
  const auto four = [&](int i) { return int64_t(words_of_blocks<4>(p + 4 * i * stride, stride)); };
  return _mm256_cvtph_ps(_mm_set_epi64x(four(1), four(0)));
}

inline void columns_of_rows(const float* p, int64_t stride, vf (&v)[1]) {
  const auto row = [&](int r) { return int64_t(load<uint64_t>(p + r * stride)); };
  v[0] = _mm256_permutevar8x32_ps((__m256)_mm256_setr_epi64x(row(0), row(1), row(2), row(3)), _mm256_setr_epi32(0, 2, 4, 6, 1, 3, 5, 7));
}
inline void columns_of_rows(const float* p, int64_t stride, vf (&v)[2]) {
  const auto rows = [&](int r) {
    return _mm256_insertf128_ps(_mm256_castps128_ps256(_mm_loadu_ps(p + r * stride)), _mm_loadu_ps(p + (r + 1) * stride), 1);
  };
  const __m256 a = rows(0), b = rows(2);
  const __m256i pick = _mm256_setr_epi32(0, 4, 2, 6, 1, 5, 3, 7);
  v[0] = _mm256_permutevar8x32_ps(_mm256_shuffle_ps(a, b, 0x88), pick);
  v[1] = _mm256_permutevar8x32_ps(_mm256_shuffle_ps(a, b, 0xdd), pick);
}
inline vf gather_halves(const uint8_t* const (&rows)[4], int64_t at, int64_t stride) {
  const auto four = [&](int j) { return halves_of_rows(rows, at + j * stride); };
  return _mm256_cvtph_ps(_mm_set_epi64x(four(1), four(0)));
}
inline void gather_half_pairs(const uint8_t* const (&rows)[4], int64_t at, int64_t stride, vf& first, vf& second) {
  const __m256i pairs = _mm256_inserti128_si256(_mm256_castsi128_si256(words_of_rows(rows, at)), words_of_rows(rows, at + stride), 1);
  const __m256i packed = _mm256_packus_epi32(_mm256_and_si256(pairs, _mm256_set1_epi32(0xffff)), _mm256_srli_epi32(pairs, 16));
  const __m256i halves = _mm256_permute4x64_epi64(packed, 0xd8);
  first = _mm256_cvtph_ps(_mm256_castsi256_si128(halves));
  second = _mm256_cvtph_ps(_mm256_extracti128_si256(halves, 1));
}

template <int max_code> inline vi dot4(vi acc, vb w, vb x) {
  __m256i u = (__m256i)w, s = (__m256i)x;
  if constexpr (max_code > 127) { // |w - 128| times x with the sign of w - 128: pairs of products fit 16 bits
    const __m256i v = _mm256_xor_si256(u, _mm256_set1_epi8(-128));
    u = _mm256_abs_epi8(v);
    s = _mm256_sign_epi8(s, v);
  }
  return acc + (vi)_mm256_madd_epi16(_mm256_maddubs_epi16(u, s), _mm256_set1_epi16(1));
}
// The number of pairs of products whose sum fits 16 bits, at most four: more take too many registers.
template <int max_code> constexpr int pairs_together = max_code <= 31 ? 4 : max_code <= 63 ? 2 : 1;
template <int max_code>
inline std::enable_if_t<(pairs_together<max_code> > 1), vi> dot4(vi acc, const vb (&w)[2], const vb (&x)[2]) {
  const __m256i first = _mm256_maddubs_epi16((__m256i)w[0], (__m256i)x[0]), second = _mm256_maddubs_epi16((__m256i)w[1], (__m256i)x[1]);
  return acc + (vi)_mm256_madd_epi16(_mm256_add_epi16(first, second), _mm256_set1_epi16(1));
}
template <int max_code, int count, int N, class Code>
inline std::enable_if_t<(pairs_together<max_code> > 1)> dot4_splat_each(vi (&acc)[N], Code code, const int8_t* x) {
  constexpr int together = pairs_together<max_code> < count ? pairs_together<max_code> : count;
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
}
// The sum wraps: places of the cache without a token are multiplied too, and such sums are masked afterwards.
inline vi dot2(vi acc, vi w, vi x) { return (vi)((vu)acc + (vu)_mm256_madd_epi16((__m256i)w, (__m256i)x)); }
inline vi dot2_splat(vi acc, vi w, const int16_t* x) { return dot2(acc, w, splat(load<int32_t>(x))); }

} // namespace

#include "portable.h"
