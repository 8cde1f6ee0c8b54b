// Loops that reach the limits of an instruction set, for comparison with the kernels: products with all operands in
// registers, and plain reading.
#pragma once
#include "vector.h"

namespace {

constexpr int chains = 12; // independent sums: a product takes 4 cycles, and 2 begin in each cycle

// Repeats sum = f(sum, a, b) for all chains.
template <class V, class Operand, class Product> inline void repeat(int64_t steps, Operand a, Operand b, Product f) {
  V sums[chains]{};
  for (int64_t i = 0; i < steps; ++i) {
#pragma GCC unroll 12
    for (V& sum : sums) {
      hide(a); // otherwise the chains would share one product
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

// Reads four parts alternately: prefetching stops at the ends of 4 KiB pages, so one stream has 2/3 of the speed.
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
