// What NEON with and without dot products shares.
#pragma once
#include <arm_neon.h>

namespace {

constexpr int lanes = 4, registers = 32;
constexpr int panel = 12; // the tokens that a matrix product takes at once
template <int max_code> constexpr int dot_bias = max_code <= 127 ? 0 : 128;

} // namespace

#include "vectors.h"

namespace {

inline float f16_to_f32(uint16_t h) { return load<__fp16>(&h); }
inline uint16_t f32_to_f16(float f) {
  const auto half = __fp16(f);
  return load<uint16_t>(&half);
}
inline void f16_row_to_f32(const uint8_t* p, int64_t n, float* out) {
  int64_t i = 0;
  for (; i + 4 <= n; i += 4) vst1q_f32(out + i, vcvt_f32_f16((float16x4_t)vld1_u8(p + 2 * i)));
  for (; i < n; ++i) out[i] = f16_to_f32(load_u16(p + 2 * i));
}
inline void f32_row_to_f16(const float* x, int64_t n, uint8_t* out) {
  int64_t i = 0;
  for (; i + 4 <= n; i += 4) vst1_u8(out + 2 * i, (uint8x8_t)vcvt_f16_f32(vld1q_f32(x + i)));
  for (; i < n; ++i) store(out + 2 * i, f32_to_f16(x[i]));
}
inline vf widen(const Float16* p) { return vcvt_f32_f16(load<float16x4_t>(p)); }

// If one is NaN, the result is the other.
inline vf max(vf a, vf b) { return vmaxnmq_f32(a, b); }
inline vf min(vf a, vf b) { return vminnmq_f32(a, b); }
inline vf square_root(vf x) { return vsqrtq_f32(x); }
inline vf round(vf a) { return vrndnq_f32(a); }
inline vi to_nearest(vf a) { return vcvtnq_s32_f32(a); }
inline void store_rounded(int16_t* p, vf v) { store(p, vmovn_s32(to_nearest(v))); }
inline void store_rounded(int8_t* p, vf v) {
  const int16x4_t halves = vmovn_s32(to_nearest(v));
  vst1_lane_s32(reinterpret_cast<int32_t*>(p), (int32x2_t)vmovn_s16(vcombine_s16(halves, halves)), 0);
}

inline float sum_of(vf v) { return vaddvq_f32(v); }
inline float highest(vf v) { return vmaxnmvq_f32(v); }
inline bool any(vi mask) { return vmaxvq_u32((uint32x4_t)mask); }
template <int first, int stride> inline vf spread(const float* s) { return vld1q_dup_f32(s + first); }
inline vf fused(vf a, vf b, vf c) { return vfmaq_f32(c, a, b); }
inline vi sum_fours(const vi (&v)[4]) { return vpaddq_s32(vpaddq_s32(v[0], v[1]), vpaddq_s32(v[2], v[3])); }

inline Words2 look_up_bytes(const uint8_t (&table)[16], Words2 v) {
  return (Words2)vqtbl1q_u8((uint8x16_t)load<Words2>(table), (uint8x16_t)v);
}
inline Words2 add_fifth_bits(Words2 codes, uint64_t bits) {
  const auto picked = vcombine_u8(vdup_n_u8(uint8_t(bits)), vdup_n_u8(uint8_t(bits >> 8)));
  return codes | ((Words2)vtstq_u8(picked, (uint8x16_t)(0x8040201008040201 - Words2{})) & 16 * every_byte);
}
template <class Byte> inline Floats8 widen(uint64_t bytes) {
  const int16x8_t v = Byte(-1) < 0 ? vmovl_s8((int8x8_t)bytes) : (int16x8_t)vmovl_u8((uint8x8_t)bytes);
  const float32x4_t parts[2] = {vcvtq_f32_s32(vmovl_s16(vget_low_s16(v))), vcvtq_f32_s32(vmovl_high_s16(v))};
  return load<Floats8>(parts);
}

template <int max_code> inline int8x16_t signed_codes(vb w) { return (int8x16_t)(w ^ dot_bias<max_code>); }

} // namespace
