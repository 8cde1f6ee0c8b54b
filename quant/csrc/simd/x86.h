// What AVX2 and AVX-512 share: F16C, and vectors of 16 and 32 bytes.
#pragma once
#include <immintrin.h>

namespace {

inline float f16_to_f32(uint16_t h) { return _cvtsh_ss(h); }
inline uint16_t f32_to_f16(float f) { return uint16_t(_cvtss_sh(f, 0)); }
inline void f32_row_to_f16(const float* x, int64_t n, uint8_t* out) {
  int64_t i = 0;
  for (; i + 8 <= n; i += 8)
    _mm_storeu_si128(reinterpret_cast<__m128i*>(out + 2 * i), _mm256_cvtps_ph(_mm256_loadu_ps(x + i), 0));
  for (; i < n; ++i) store(out + 2 * i, f32_to_f16(x[i]));
}
// The halves at p, p + stride and so on, n of them (at most four), as floats; the rest is zero.
template <int n, int stride> inline __m128 halves_of_blocks(const uint8_t* p) {
  return _mm_cvtph_ps(_mm_cvtsi64_si128(int64_t(words_of_blocks<n>(p, stride))));
}
template <class V, int stride> inline V first_halves(const uint8_t* p) {
  const __m128 halves = halves_of_blocks<sizeof(V) / 4, stride>(p);
  V v;
  std::memcpy(&v, &halves, sizeof v);
  return v;
}

// The halves at `at` in four rows. The assembly keeps GCC from gathering them in vectors, whose ports limit the kernels.
inline int64_t halves_of_rows(const uint8_t* const (&rows)[4], int64_t at) {
  uint64_t words = 0;
  for (int r = 0; r < 4; ++r) words |= uint64_t(load_u16(rows[r] + at)) << 16 * r;
  asm("" : "+r"(words));
  return int64_t(words);
}
// The 32 bits at `at` in four rows.
inline __m128i words_of_rows(const uint8_t* const (&rows)[4], int64_t at) {
  __m128i v = _mm_cvtsi32_si128(int(load_u32(rows[0] + at)));
  v = _mm_insert_epi32(v, int(load_u32(rows[1] + at)), 1);
  v = _mm_insert_epi32(v, int(load_u32(rows[2] + at)), 2);
  return _mm_insert_epi32(v, int(load_u32(rows[3] + at)), 3);
}

// GCC would load the vector for each use, and each load of an unaligned block costs two.
template <class V> inline V load_once(const uint8_t* p) {
  V v = load<V>(p);
  asm("" : "+v"(v));
  return v;
}
// Intrinsics, because GCC 12 would load and move too often.
inline Words4 join(Words2 v, const uint8_t* next) {
  return (Words4)_mm256_inserti128_si256(_mm256_castsi128_si256((__m128i)v), (__m128i)load<Words2>(next), 1);
}
template <> inline Words4 repeat<Words4>(Words2 v) { return (Words4)_mm256_broadcastsi128_si256((__m128i)v); }
inline Words2 look_up_bytes(const uint8_t (&table)[16], Words2 v) {
  return (Words2)_mm_shuffle_epi8((__m128i)load<Words2>(table), (__m128i)v);
}
inline Words4 look_up_bytes(const uint8_t (&table)[16], Words4 v) {
  return (Words4)_mm256_shuffle_epi8((__m256i)repeat<Words4>(load<Words2>(table)), (__m256i)v);
}
inline Words4 add_fifth_bits(Words4 codes, uint64_t bits) {
  const __m256i byte_of_code = _mm256_setr_epi64x(0, every_byte, 2 * every_byte, 3 * every_byte);
  const Words4 bit = 0x8040201008040201 - Words4{};
  const Words4 picked = (Words4)_mm256_shuffle_epi8(_mm256_set1_epi64x(int64_t(bits)), byte_of_code) & bit;
  return codes | ((Words4)((Bytes32)picked == (Bytes32)bit) & 16 * every_byte);
}

template <class Byte> inline Floats8 widen(uint64_t bytes) {
  const __m128i v = _mm_cvtsi64_si128(int64_t(bytes));
  return _mm256_cvtepi32_ps(Byte(-1) < 0 ? _mm256_cvtepi8_epi32(v) : _mm256_cvtepu8_epi32(v));
}
inline Floats8 pick(Floats8 table, Ints8 index) { return (Floats8)_mm256_permutevar8x32_ps((__m256)table, (__m256i)index); }
inline float least_of(Floats8 v) {
  __m128 four = _mm_min_ps(_mm256_castps256_ps128((__m256)v), _mm256_extractf128_ps((__m256)v, 1));
  four = _mm_min_ps(four, _mm_movehl_ps(four, four));
  return _mm_cvtss_f32(_mm_min_ss(four, _mm_movehdup_ps(four)));
}
inline int find(Floats8 v, float x) {
  return __builtin_ctz(uint32_t(_mm256_movemask_ps(_mm256_cmp_ps((__m256)v, _mm256_set1_ps(x), _CMP_EQ_OQ))) | 256);
}

} // namespace
