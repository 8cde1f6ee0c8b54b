// The functions of vectors that all instruction sets share, on top of a set's own vocabulary.
#pragma once
#include LLTOOL_SIMD

namespace {

constexpr bool multiplies_pairs = lanes > 4; // there is an instruction for dot2; without one, floats are as fast

// Reduces all lanes of v[i] with `combine` to lane i: a transposition that combines its two halves in each round.
template <class Combine> inline vf reduce_each(vf (&v)[lanes], Combine combine) {
#pragma GCC unroll 4
  for (int n = lanes / 2; n > 0; n /= 2)
    for (int i = 0; i < n; ++i)
      v[i] = combine((vf)zip_low((vi)v[i], (vi)v[i + n]), (vf)zip_high((vi)v[i], (vi)v[i + n]));
  return v[0];
}

// e^x to 2 ulp: x = n ln2 + r, a degree-6 polynomial in r, 2^n by exponent bits (Cephes' expf range reduction).
inline vf exp(vf x) {
  x = min(max(x, splat(-87.3f)), splat(88.3f));
  const vf n = round(x * 1.44269504f);
  const vf r = (x - n * 0.693359375f) - n * -2.12194440e-4f;
  vf p = r * 1.9875691500e-4f + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = p * r * r + r + 1.0f;
  return (vf)((vi)p + (to_int(n) << 23));
}
// 2^x to 2 ulp for x <= 0; exactly 0 below -127, where the bits of the exponent become 0.
inline vf exp2(vf x) {
  x = max(x, splat(-127.0f));
  const vf shifted = x + 12582912.0f; // its lowest bits are the nearest integer
  const vf r = x - (shifted - 12582912.0f);
  vf p = r * 1.32647271e-3f + 9.67151265e-3f;
  p = p * r + 5.55073374e-2f;
  p = p * r + 2.40222421e-1f;
  p = p * r + 6.93146978e-1f;
  p = p * r + 1.0f;
  return (vf)((vi)p + ((vi)shifted << 23));
}
// Small arguments use Cephes' polynomial (no cancellation), larger ones e^2x.
inline vf tanh(vf x) {
  const vf z = x * x, e = exp(min(max(x, splat(-10.0f)), splat(10.0f)) * 2.0f);
  vf p = z * -5.70498872745e-3f + 2.06390887954e-2f;
  p = p * z - 5.37397155531e-2f;
  p = p * z + 1.33314422036e-1f;
  p = p * z - 3.33332819422e-1f;
  return abs(x) < 0.625f ? p * z * x + x : (e - 1.0f) / (e + 1.0f);
}

// ln(1 + e^x), without cancellation: ln(1 + u) = 2 artanh(u / (2 + u)), whose series is short for u <= 1.
inline vf softplus(vf x) {
  const vf u = exp(-abs(x)), z = u / (u + 2.0f), s = z * z;
  vf p = s * (1.0f / 13) + 1.0f / 11;
  p = p * s + 1.0f / 9;
  p = p * s + 1.0f / 7;
  p = p * s + 1.0f / 5;
  p = p * s + 1.0f / 3;
  p = p * s + 1.0f;
  return max(x, splat(0.0f)) + p * z * 2.0f;
}

} // namespace
