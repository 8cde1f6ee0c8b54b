// Loops at the limits of an instruction set, which the kernels are held against: products with all operands in registers,
// and plain reading.
#pragma once
#include "dot.h"

namespace {

constexpr int chains = 12; // sums that do not wait for each other: a product takes 4 cycles, and 2 begin in each

// Nothing is computed ahead of the place where the compiler no longer knows what v holds.
template <class V> inline void hide(V& v) {
#if defined(__AVX512VNNI__)
  asm volatile("" : "+v"(v));
#elif defined(__x86_64__)
  asm volatile("" : "+x"(v));
#else
  asm volatile("" : "+w"(v));
#endif
}

// acc[i] + the two products of 16 bits of lane i.
inline vi dot2(vi acc, vi w, vi x) {
#if defined(__AVX512VNNI__)
  asm("vpdpwssd %2, %1, %0" : "+v"(acc) : "v"(w), "v"(x));
  return acc;
#elif defined(__AVX2__)
  return acc + (vi)_mm256_madd_epi16((__m256i)w, (__m256i)x);
#else
  return acc + (w << 16 >> 16) * (x << 16 >> 16) + (w >> 16) * (x >> 16);
#endif
}

// Repeats sum = f(sum, a, b) for all chains.
template <class V, class Operand, class Product> inline void repeat(int64_t steps, Operand a, Operand b, Product f) {
  V sums[chains]{};
  for (int64_t i = 0; i < steps; ++i) {
#pragma GCC unroll 12
    for (V& sum : sums) {
      hide(a); // else chains would share one product
      sum = f(sum, a, b);
    }
  }
  for (V& sum : sums) hide(sum);
}

int64_t multiply_int8(int64_t steps) {
  repeat<vi>(steps, (vb)splat(0x01010101), (vb)splat(0x01010101), [](vi sum, vb a, vb b) { return dot4<127>(sum, a, b); });
  return steps * chains * lanes * 4;
}

int64_t multiply_int16(int64_t steps) {
  repeat<vi>(steps, splat(0x00010001), splat(0x00010001), [](vi sum, vi a, vi b) { return dot2(sum, a, b); });
  return steps * chains * lanes * 2;
}

int64_t multiply_float(int64_t steps) {
  repeat<vf>(steps, splat(1.0f), splat(0.5f), [](vf sum, vf a, vf b) { return sum + a * b; });
  return steps * chains * lanes;
}

// Reads four parts in turns: in pages of 4 KiB, at whose ends prefetching stops, one stream has two thirds of the speed.
int64_t read_memory(const uint8_t* data, int64_t bytes) {
  constexpr int64_t parts = 4, width = sizeof(vi);
  const int64_t part = bytes / parts / width * width;
  vi sums[parts]{};
  for (int64_t i = 0; i < part; i += width)
    for (int64_t j = 0; j < parts; ++j) sums[j] ^= load<vi>(data + j * part + i);
  for (vi& sum : sums) hide(sum);
  return parts * part;
}

} // namespace
