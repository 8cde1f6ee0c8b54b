// Arithmetic on lanes of 32 bits.
#pragma once

namespace {

// Loads `lanes` items into a vector, converted to 32 bits each.
template <class = void> inline vf widen(const float* p) { return load<vf>(p); }
template <class = void> inline vf widen(const Float16* p) {
  vf v;
  for (int i = 0; i < lanes; ++i) v[i] = f16_to_f32(p[i].bits);
  return v;
}
template <class = void> inline vf widen(const Brain16* p) {
  typedef uint16_t halves __attribute__((vector_size(lanes * 2)));
  return (vf)(__builtin_convertvector(load<halves>(p), vu) << 16);
}
template <class = void> inline vi widen(const int8_t* p) {
  typedef int8_t bytes __attribute__((vector_size(lanes)));
  return __builtin_convertvector(load<bytes>(p), vi);
}
// The first `count` items at p; the other lanes are zero.
template <int count, class Int> inline vi load_first(const Int* p) {
  vi v{};
  std::memcpy(&v, p, count * 4);
  return v;
}

// If either is NaN, the result is one of the two.
template <class = void> inline vf max(vf a, vf b) { return a > b ? a : b; }
template <class = void> inline vf min(vf a, vf b) { return a < b ? a : b; }
// If either is NaN, the result is b.
template <class = void> inline vf larger(vf a, vf b) { return a > b ? a : b; }
template <class = void> inline vf smaller(vf a, vf b) { return a < b ? a : b; }
// a b + c, rounded once if the set has an instruction for it.
template <class V> inline V fused(V a, V b, V c) { return a * b + c; }
template <class = void> inline vf square_root(vf v) {
  float each[lanes];
  std::memcpy(each, &v, sizeof v);
  for (int l = 0; l < lanes; ++l) each[l] = __builtin_sqrtf(each[l]);
  std::memcpy(&v, each, sizeof v);
  return v;
}
// Rounds to the nearest integer, |x| < 2^22.
template <class = void> inline vf round(vf a) { return (a + 12582912.0f) - 12582912.0f; }
// The nearest integers, ties to even, |x| < 2^22.
template <class = void> inline vi to_nearest(vf a) { return to_int(round(a)); }
// Rounds towards zero; values that do not fit become INT_MIN, as on x86.
template <class = void> inline vi to_ints(vf v) {
#if defined(__aarch64__) // the conversion of ARM processors saturates instead
  return abs(v) < 2147483648.0f ? __builtin_convertvector(v, vi) : vi{} + INT32_MIN;
#else
  return __builtin_convertvector(v, vi);
#endif
}
// Rounds to the nearest and stores as Integer, which must hold the results.
template <class Integer> inline void store_rounded(Integer* p, vf v) {
  typedef Integer narrow __attribute__((vector_size(lanes * sizeof(Integer))));
  store(p, __builtin_convertvector(to_nearest(v), narrow));
}

// Transposes each 4 x 4 block of lanes: lane 4j + i of v[k] changes places with lane 4j + k of v[i].
template <class V> inline void transpose_fours(V (&v)[4]) {
  if constexpr (lanes == 4) {
    transpose(v);
  } else {
    V out[4];
    for (int k = 0; k < 4; ++k)
      for (int lane = 0; lane < lanes; ++lane) out[k][lane] = v[lane % 4][lane / 4 * 4 + k];
    for (int k = 0; k < 4; ++k) v[k] = out[k];
  }
}
// Up to eight floats as a vector with the same sum.
template <class V> inline vf to_lanes(V v) {
  vf sum{};
  for (int i = 0; i < int(sizeof(V) / 4); ++i) sum[i % lanes] += v[i];
  return sum;
}
// The sum of lanes 4j to 4j + 3 of v[i], in lane 4j + i.
template <class V> inline V sum_fours(const V (&v)[4]) {
  V sum;
  for (int i = 0; i < lanes; ++i) {
    const V& from = v[i % 4];
    const int first = i / 4 * 4;
    sum[i] = from[first] + from[first + 1] + from[first + 2] + from[first + 3];
  }
  return sum;
}
// Transposes parts of four lanes: part j of v[k] changes places with part k of v[j].
template <class V> inline void transpose_parts(V (&v)[lanes / 4]) {
  V out[lanes / 4];
  for (int k = 0; k < lanes / 4; ++k)
    for (int lane = 0; lane < lanes; ++lane) out[k][lane] = v[lane / 4][4 * k + lane % 4];
  for (int k = 0; k < lanes / 4; ++k) v[k] = out[k];
}
template <class = void> inline float sum_of(vf v) {
  float s = 0;
  for (int i = 0; i < lanes; ++i) s += v[i];
  return s;
}
template <class = void> inline float highest(vf v) {
  float m = v[0];
  for (int i = 1; i < lanes; ++i) m = v[i] > m ? v[i] : m;
  return m;
}
// Whether any lane of a comparison's result is set.
template <class = void> inline bool any(vi mask) {
  int32_t found = mask[0];
  for (int l = 1; l < lanes; ++l) found |= mask[l];
  return found;
}
// Sets each group of four lanes to the group's largest value.
template <class = void> inline vf highest_of_fours(vf v) {
  if constexpr (lanes == 4) return splat(highest(v));
  for (int i = 0; i < lanes; i += 4) {
    float m = v[i];
    for (int j = 1; j < 4; ++j) m = v[i + j] > m ? v[i + j] : m;
    for (int j = 0; j < 4; ++j) v[i + j] = m;
  }
  return v;
}
// table[index & 31] in each lane.
template <class = void> inline vf look_up(const float (&table)[32], vi index) {
  vf v;
  for (int l = 0; l < lanes; ++l) v[l] = table[index[l] & 31];
  return v;
}

// Repeats each of s[first], s[first + stride] and so on in four lanes; s has stride * lanes / 4 floats.
template <int first, int stride, class Float> inline vf spread(const Float* s) {
  vf v;
  for (int i = 0; i < lanes; ++i) v[i] = s[first + i / 4 * stride];
  return v;
}
// The halves at p, p + stride and so on, as many as V has floats.
template <class V, int stride, class Byte> inline V first_halves(const Byte* p) {
  V v;
  for (int i = 0; i < int(sizeof(V) / 4); ++i) v[i] = load_f16(p + i * stride);
  return v;
}
// The same halves, each repeated in four lanes.
template <int stride, class Byte> inline vf spread_halves(const Byte* p) {
  if constexpr (lanes == 4) return splat(load_f16(p));
  vf v;
  for (int i = 0; i < lanes; ++i) v[i] = load_f16(p + i / 4 * stride);
  return v;
}
// The halves at p, p + stride and so on, one per lane.
template <class = void> inline vf gather_halves(const uint8_t* p, int64_t stride) {
  Float16 halves[lanes];
  for (int i = 0; i < lanes; i += 4) store(halves + i, words_of_blocks<4>(p + i * stride, stride));
  return widen(halves);
}
// Of four rows, `stride` floats apart: p[r * stride + n j + k] in lane 4j + r of v[k], where n is one or two.
template <int n, class V> inline void columns_of_rows(const float* p, int64_t stride, V (&v)[n]) {
  for (int k = 0; k < n; ++k)
    for (int i = 0; i < lanes; ++i) v[k][i] = p[i % 4 * stride + i / 4 * n + k];
}
// In lane 4j + r, the half at `at` + j * stride in row r. The loads are scalar as above.
template <class = void> inline vf gather_halves(const uint8_t* const (&rows)[4], int64_t at, int64_t stride) {
  Float16 halves[lanes];
  for (int j = 0; j < lanes; j += 4, at += stride) {
    uint64_t words = 0;
    for (int r = 0; r < 4; ++r) words |= uint64_t(load_u16(rows[r] + at)) << 16 * r;
    store(halves + j, words);
  }
  return widen(halves);
}
// The same, and the half after each.
template <class Byte> inline void gather_half_pairs(const Byte* const (&rows)[4], int64_t at, int64_t stride, vf& first, vf& second) {
  first = gather_halves(rows, at, stride);
  second = gather_halves(rows, at + 2, stride);
}

} // namespace
