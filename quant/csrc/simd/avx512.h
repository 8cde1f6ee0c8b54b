// AVX-512 with byte and word instructions and VNNI: 16 lanes.
#pragma once

namespace {

constexpr const char* isa = "avx512";
constexpr int lanes = 16, registers = 32;
constexpr int panel = 12; // the tokens that a matrix product takes at once: 12 int and 12 float sums leave 8 registers
template <int max_code> constexpr int dot_bias = 0;

} // namespace

#include "vectors.h"
#include "x86.h"

namespace {

static_assert(__AVX512VNNI__, "the compiler does not check the instructions in assembly");

inline void f16_row_to_f32(const uint8_t* p, int64_t n, float* out) {
  int64_t i = 0;
  for (; i + 16 <= n; i += 16)
    _mm512_storeu_ps(out + i, _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p + 2 * i))));
  for (; i < n; ++i) out[i] = f16_to_f32(load_u16(p + 2 * i));
}
inline vf widen(const Float16* p) { return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p))); }
inline vf widen(const Brain16* p) {
  return (vf)_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p))), 16);
}
// An intrinsic, because GCC uses several instructions where one does it.
inline vi widen(const int8_t* p) { return (vi)_mm512_cvtepi8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))); }
template <int count> inline vi load_first(const int32_t* p) { return (vi)_mm512_maskz_loadu_epi32((1 << count) - 1, p); }

inline vf larger(vf a, vf b) { return (vf)_mm512_max_ps((__m512)a, (__m512)b); }
inline vf smaller(vf a, vf b) { return (vf)_mm512_min_ps((__m512)a, (__m512)b); }
inline vi to_nearest(vf a) { return (vi)_mm512_cvtps_epi32(a); }

inline void transpose_fours(vi (&v)[4]) {
  const __m512i a = _mm512_unpacklo_epi32((__m512i)v[0], (__m512i)v[1]), b = _mm512_unpackhi_epi32((__m512i)v[0], (__m512i)v[1]);
  const __m512i c = _mm512_unpacklo_epi32((__m512i)v[2], (__m512i)v[3]), d = _mm512_unpackhi_epi32((__m512i)v[2], (__m512i)v[3]);
  v[0] = (vi)_mm512_unpacklo_epi64(a, c);
  v[1] = (vi)_mm512_unpackhi_epi64(a, c);
  v[2] = (vi)_mm512_unpacklo_epi64(b, d);
  v[3] = (vi)_mm512_unpackhi_epi64(b, d);
}
inline vf to_lanes(Floats4 v) { return _mm512_zextps128_ps512((__m128)v); }
inline vf to_lanes(Floats8 v) { return _mm512_zextps256_ps512((__m256)v); }
inline vf fused(vf a, vf b, vf c) { return _mm512_fmadd_ps(a, b, c); }
inline vi sum_fours(const vi (&v)[4]) {
  const auto add = [](__m512i a, __m512i b) { return _mm512_add_epi32(_mm512_unpacklo_epi32(a, b), _mm512_unpackhi_epi32(a, b)); };
  const __m512i a = add((__m512i)v[0], (__m512i)v[1]), b = add((__m512i)v[2], (__m512i)v[3]);
  return (vi)_mm512_add_epi32(_mm512_unpacklo_epi64(a, b), _mm512_unpackhi_epi64(a, b));
}
inline void transpose_parts(vf (&v)[4]) {
  const __m512 a = _mm512_shuffle_f32x4(v[0], v[1], 0x44), b = _mm512_shuffle_f32x4(v[0], v[1], 0xee);
  const __m512 c = _mm512_shuffle_f32x4(v[2], v[3], 0x44), d = _mm512_shuffle_f32x4(v[2], v[3], 0xee);
  v[0] = _mm512_shuffle_f32x4(a, c, 0x88);
  v[1] = _mm512_shuffle_f32x4(a, c, 0xdd);
  v[2] = _mm512_shuffle_f32x4(b, d, 0x88);
  v[3] = _mm512_shuffle_f32x4(b, d, 0xdd);
}
inline float sum_of(vf v) { return _mm512_reduce_add_ps(v); }
inline float highest(vf v) { return _mm512_reduce_max_ps(v); }
inline bool any(vi mask) { return _mm512_test_epi32_mask((__m512i)mask, (__m512i)mask); }
inline vf highest_of_fours(vf v) {
  const auto most = [](vf a, vf b) { return a > b ? a : b; };
  v = most(v, _mm512_permute_ps(v, 0xb1));
  return most(v, _mm512_permute_ps(v, 0x4e));
}
inline vf look_up(const float (&table)[32], vi index) {
  return (vf)_mm512_permutex2var_ps(_mm512_loadu_ps(table), (__m512i)index, _mm512_loadu_ps(table + 16));
}

template <int first, int stride> inline vf spread(const float* s) {
  constexpr int a = first, b = a + stride, c = b + stride, d = c + stride;
  const __m512i pick = _mm512_setr_epi32(a, a, a, a, b, b, b, b, c, c, c, c, d, d, d, d);
  if constexpr (stride == 1) return _mm512_permutexvar_ps(pick, _mm512_castps128_ps512(_mm_loadu_ps(s)));
  return _mm512_permutexvar_ps(pick, _mm512_castps256_ps512(_mm256_loadu_ps(s)));
}
template <int stride> inline vf spread_halves(const uint8_t* p) {
  const __m512i pick = _mm512_setr_epi32(0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2, 3, 3, 3, 3);
  return _mm512_permutexvar_ps(pick, _mm512_castps128_ps512(halves_of_blocks<4, stride>(p)));
}
inline vf gather_halves(const uint8_t* p, int64_t stride) {
  const auto four = [&](int i) { return int64_t(words_of_blocks<4>(p + 4 * i * stride, stride)); };
  return _mm512_cvtph_ps(_mm256_setr_epi64x(four(0), four(1), four(2), four(3)));
}

inline void columns_of_rows(const float* p, int64_t stride, vf (&v)[1]) {
  const __m512i pick = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
  const auto row = [&](int r) { return _mm_loadu_ps(p + r * stride); };
  const __m256 a = _mm256_insertf128_ps(_mm256_castps128_ps256(row(0)), row(1), 1);
  const __m256 b = _mm256_insertf128_ps(_mm256_castps128_ps256(row(2)), row(3), 1);
  v[0] = _mm512_permutexvar_ps(pick, _mm512_insertf32x8(_mm512_castps256_ps512(a), b, 1));
}
inline void columns_of_rows(const float* p, int64_t stride, vf (&v)[2]) {
  const auto rows = [&](int r) {
    return _mm512_insertf32x8(_mm512_castps256_ps512(_mm256_loadu_ps(p + r * stride)), _mm256_loadu_ps(p + (r + 1) * stride), 1);
  };
  const __m512 a = rows(0), b = rows(2);
  const __m512i pick = _mm512_setr_epi32(0, 8, 16, 24, 2, 10, 18, 26, 4, 12, 20, 28, 6, 14, 22, 30);
  v[0] = _mm512_permutex2var_ps(a, pick, b);
  v[1] = _mm512_permutex2var_ps(a, _mm512_add_epi32(pick, _mm512_set1_epi32(1)), b);
}
inline vf gather_halves(const uint8_t* const (&rows)[4], int64_t at, int64_t stride) {
  const auto four = [&](int j) { return halves_of_rows(rows, at + j * stride); };
  return _mm512_cvtph_ps(_mm256_setr_epi64x(four(0), four(1), four(2), four(3)));
}
inline void gather_half_pairs(const uint8_t* const (&rows)[4], int64_t at, int64_t stride, vf& first, vf& second) {
  const auto two = [&](int64_t from) {
    return _mm256_inserti128_si256(_mm256_castsi128_si256(words_of_rows(rows, from)), words_of_rows(rows, from + stride), 1);
  };
  const __m512i pairs = _mm512_inserti64x4(_mm512_castsi256_si512(two(at)), two(at + 2 * stride), 1);
  first = _mm512_cvtph_ps(_mm512_cvtepi32_epi16(pairs));
  second = _mm512_cvtph_ps(_mm512_cvtepi32_epi16(_mm512_srli_epi32(pairs, 16)));
}

inline Words8 join(Words4 a, Words4 b) {
  return (Words8)_mm512_inserti64x4(_mm512_castsi256_si512((__m256i)a), (__m256i)b, 1);
}
template <> inline Words8 repeat<Words8>(Words2 v) { return (Words8)_mm512_broadcast_i32x4((__m128i)v); }
inline Words8 rotate_left(Words8 v, Words8 bits) { return (Words8)_mm512_rolv_epi64((__m512i)v, (__m512i)bits); }
inline Words8 look_up_bytes(const uint8_t (&table)[16], Words8 v) {
  return (Words8)_mm512_shuffle_epi8((__m512i)repeat<Words8>(load<Words2>(table)), (__m512i)v);
}
inline Words8 add_fifth_bits(Words8 codes, uint64_t bits) { // the bits can be used as a mask register
  return codes | (Words8)_mm512_maskz_mov_epi8(bits, _mm512_set1_epi8(16));
}
// One vector load per row is faster than two scalar loads.
inline void add_fifth_bits_of_rows(Words8& low, Words8& high, const uint8_t* p, int64_t stride) {
  const __m512i bits = (__m512i)join(join(load<Words2>(p), p + stride), join(load<Words2>(p + 2 * stride), p + 3 * stride));
  const __m512i bit = _mm512_set1_epi64(int64_t(0x8040201008040201)), fifth = _mm512_set1_epi8(16);
  const auto add = [&](Words8 codes, int byte) {
    const __m512i place = _mm512_broadcast_i32x4(_mm_set_epi64x(int64_t((byte + 1) * every_byte), int64_t(byte * every_byte)));
    const __mmask64 set = _mm512_test_epi8_mask(_mm512_shuffle_epi8(bits, place), bit);
    return (Words8)_mm512_mask_add_epi8((__m512i)codes, set, (__m512i)codes, fifth);
  };
  low = add(low, 0);
  high = add(high, 2);
}
// Intrinsics, because GCC 12 moves the parts of a shuffle through memory.
inline void store_groups(uint8_t* codes, Words8 low, Words8 high) {
  const __m512i a = (__m512i)low, b = (__m512i)high;
  _mm512_storeu_si512(codes, _mm512_permutex2var_epi64(a, _mm512_setr_epi64(0, 1, 8, 9, 2, 3, 10, 11), b));
  _mm512_storeu_si512(codes + 64, _mm512_permutex2var_epi64(a, _mm512_setr_epi64(4, 5, 12, 13, 6, 7, 14, 15), b));
}

// Assembly, because GCC 12 copies the accumulator around the intrinsics.
template <int max_code> inline vi dot4(vi acc, vb w, vb x) {
  asm("vpdpbusd %2, %1, %0" : "+v"(acc) : "v"(w), "vm"(x));
  return acc;
}
template <int max_code> inline vi dot4_splat(vi acc, vb w, const int8_t* x) {
  asm("vpdpbusd %2%{1to16%}, %1, %0" : "+v"(acc) : "v"(w), "m"(*(const int32_t*)x));
  return acc;
}
inline vi dot2(vi acc, vi w, vi x) {
  asm("vpdpwssd %2, %1, %0" : "+v"(acc) : "v"(w), "v"(x));
  return acc;
}
inline vi dot2_splat(vi acc, vi w, const int16_t* x) {
  asm("vpdpwssd %2%{1to16%}, %1, %0" : "+v"(acc) : "v"(w), "m"(*(const int32_t*)x));
  return acc;
}

} // namespace

#include "portable.h"
