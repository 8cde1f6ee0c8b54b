// NEON with dot products of four bytes: four lanes.
#pragma once
#include "arm.h"

namespace {

constexpr const char* isa = "neon_dot";


template <int max_code> inline vi dot4(vi acc, vb w, vb x) { return vdotq_s32(acc, signed_codes<max_code>(w), (int8x16_t)x); }
template <int max_code, int N> inline void dot4_splat(vi (&acc)[N], vb w, const int8_t* x) {
  static_assert(N % 4 == 0);
  const int8x16_t a = signed_codes<max_code>(w);
  for (int t = 0; t < N; t += 4) // assembly: GCC 12 sorts the intrinsics by sum, so that each waits for the one before
    asm("sdot %0.4s, %4.16b, %5.4b[0]\n\tsdot %1.4s, %4.16b, %5.4b[1]\n\t"
        "sdot %2.4s, %4.16b, %5.4b[2]\n\tsdot %3.4s, %4.16b, %5.4b[3]"
        : "+w"(acc[t]), "+w"(acc[t + 1]), "+w"(acc[t + 2]), "+w"(acc[t + 3])
        : "w"(a), "w"(vld1q_s8(x + 4 * t)));
}

} // namespace

#include "portable.h"
