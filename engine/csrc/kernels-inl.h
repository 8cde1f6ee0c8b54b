// Compiled once an instruction set: LLTOOL_TABLE names the table that the including file defines.
#include <cmath>

#include "attention-inl.h"
#include "compare-inl.h"
#include "floats-inl.h"
#include "observe-inl.h"
#include "probe-inl.h"
#include "rotate-inl.h"

namespace {

// Applies f to whole vectors of x (and y); the tail goes through a padded copy.
template <class Function> inline void map(const float* x, const float* y, int64_t n, float* out, Function f) {
  int64_t i = 0;
  for (; i + lanes <= n; i += lanes) store(out + i, f(load<vf>(x + i), load<vf>(y + i)));
  if (i == n) return;
  float a[lanes] = {}, b[lanes] = {}, c[lanes];
  std::memcpy(a, x + i, size_t(n - i) * 4);
  std::memcpy(b, y + i, size_t(n - i) * 4);
  store(c, f(load<vf>(a), load<vf>(b)));
  std::memcpy(out + i, c, size_t(n - i) * 4);
}

void rms_norm(const float* x, const float* weight, float eps, int64_t n, float* out) {
  vf acc{};
  int64_t i = 0;
  for (; i + lanes <= n; i += lanes) acc += load<vf>(x + i) * load<vf>(x + i);
  float squares = sum_of(acc);
  for (; i < n; ++i) squares += x[i] * x[i];
  const float scale = 1.0f / std::sqrt(squares / float(n) + eps);
  map(x, weight, n, out, [scale](vf v, vf w) { return v * scale * w; });
}

void gated(int activation, const float* gate, const float* up, int64_t n, float* out) {
  if (activation == 0)
    map(gate, up, n, out, [](vf g, vf u) { return g / (exp(-g) + 1.0f) * u; });
  else // 0.5 g (1 + tanh(sqrt(2 / pi) (g + 0.044715 g^3)))
    map(gate, up, n, out, [](vf g, vf u) {
      return g * 0.5f * (tanh((g + g * g * g * 0.044715f) * 0.79788456f) + 1.0f) * u;
    });
}

void softcap(const float* x, float cap, int64_t n, float* out) {
  map(x, x, n, out, [cap](vf v, vf) { return tanh(v * (1.0f / cap)) * cap; });
}

void add(const float* x, const float* y, int64_t n, float* out) {
  map(x, y, n, out, [](vf a, vf b) { return a + b; });
}

void scale(const float* x, float factor, int64_t n, float* out) {
  map(x, x, n, out, [factor](vf v, vf) { return v * factor; });
}

double log_sum_exp(const float* x, int64_t n) {
  vf high = splat(-INFINITY);
  int64_t i = 0;
  for (; i + lanes <= n; i += lanes) high = max(high, load<vf>(x + i));
  float top = highest(high);
  for (int64_t j = i; j < n; ++j) top = x[j] > top ? x[j] : top;
  double total = 0;
  for (i = 0; i + lanes <= n;) { // float sums of at most 64 vectors, then double
    vf part{};
    for (int k = 0; k < 64 && i + lanes <= n; ++k, i += lanes) part += exp(load<vf>(x + i) - top);
    total += sum_of(part);
  }
  for (; i < n; ++i) total += std::exp(x[i] - top);
  return double(top) + std::log(total);
}

} // namespace

namespace lltool {
const EngineKernels LLTOOL_TABLE = {
    lanes,      panel,         can_multiply, can_decode, decode_row,      quantize_row, quantize_panel, pack_panel, matvec,
    matvec_f32, matmul,        matmul_f32,   can_multiply_shorts, shorten_panel, matmul_shorts, rms_norm,   gated,           softcap,      log_sum_exp,    compare,    attention,
    merge_attention, store_cache, add_squares, add, scale, rotate_halves, rotate_pairs,
    {multiply_int8, multiply_int16, multiply_float, read_memory},
};
}
