// NEON, which every 64-bit ARM processor has: four lanes.
#pragma once
#include "arm.h"

namespace {

constexpr const char* isa = "neon";


template <int max_code> inline vi dot4(vi acc, vb w, vb x) {
  const int8x16_t a = signed_codes<max_code>(w), b = (int8x16_t)x; // pairs of products fit 16 bits
  const int16x8_t low = vmull_s8(vget_low_s8(a), vget_low_s8(b)), high = vmull_high_s8(a, b);
  return vpadalq_s16(acc, vpaddq_s16(low, high));
}

} // namespace

#include "portable.h"
