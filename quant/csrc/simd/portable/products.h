// Dot products of bytes and of 16-bit integers.
#pragma once

namespace {

// acc[i] + sum of (w[4i+j] - dot_bias<max_code>) * x[4i+j] over j < 4; w unsigned <= max_code, x signed, not -128. The bias
// is for sets that multiply only signed bytes; it is free if a multiple of the sum of x is added anyway. Here it must be 0.
template <int max_code, class V, class Bytes> inline V dot4(V acc, Bytes w, Bytes x) {
  typedef int16_t half __attribute__((vector_size(lanes * 4)));
  const half even = ((half)w & 255) * ((half)x << 8 >> 8), odd = (half)((vu)w >> 8 & 0x00ff00ff) * ((half)x >> 8);
  return acc + ((vi)even << 16 >> 16) + ((vi)even >> 16) + ((vi)odd << 16 >> 16) + ((vi)odd >> 16);
}
// acc plus the dot products w[0] * x[0] and w[1] * x[1].
template <int max_code, class V, class Bytes> inline V dot4(V acc, const Bytes (&w)[2], const Bytes (&x)[2]) {
  return dot4<max_code>(dot4<max_code>(acc, w[0], x[0]), w[1], x[1]);
}
// dot4 with the same four bytes of x in every lane.
template <int max_code, class V, class Bytes> inline V dot4_splat(V acc, Bytes w, const int8_t* x) {
  return dot4<max_code>(acc, w, (Bytes)splat(load<int32_t>(x)));
}
// dot4_splat for N sums, each with four bytes of x.
template <int max_code, class V, int N, class Bytes> inline void dot4_splat(V (&acc)[N], Bytes w, const int8_t* x) {
  for (int t = 0; t < N; ++t) acc[t] = dot4_splat<max_code>(acc[t], w, x + 4 * t);
}
// Adds to N sums the products of `count` vectors of weights, code(0) and so on, each with four bytes of x per sum.
template <int max_code, int count, class V, int N, class Code> inline void dot4_splat_each(V (&acc)[N], Code code, const int8_t* x) {
#pragma GCC unroll 8
  for (int i = 0; i < count; ++i) dot4_splat<max_code>(acc, code(i), x + 4 * i * panel);
}

// acc[i] plus the two products of 16-bit integers in lane i.
template <class = void> inline vi dot2(vi acc, vi w, vi x) {
  return acc + (w << 16 >> 16) * (x << 16 >> 16) + (w >> 16) * (x >> 16);
}
// The same with the two integers at x in every lane.
template <class = void> inline vi dot2_splat(vi acc, vi w, const int16_t* x) {
  const int32_t two = load<int32_t>(x);
  return acc + (w << 16 >> 16) * (int32_t(uint32_t(two) << 16) >> 16) + (w >> 16) * (two >> 16);
}

// Makes the compiler forget the value of v, so that it computes nothing that depends on v in advance.
template <class V> inline void hide(V& v) {
#if defined(__x86_64__)
  asm volatile("" : "+v"(v));
#else
  asm volatile("" : "+w"(v));
#endif
}

} // namespace
