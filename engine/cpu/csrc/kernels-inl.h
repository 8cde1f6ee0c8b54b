// Compiled once per instruction set: LLTOOL_TABLE is the name of the table that the including file defines.
#include <cmath>

#include "attention-inl.h"
#include "compare-inl.h"
#include "delta-inl.h"
#include "floats-inl.h"
#include "invariant-inl.h"
#include "low_rank-inl.h"
#include "observe-inl.h"
#include "probe-inl.h"
#include "rotate-inl.h"
#include "rwkv-inl.h"
#include "sample-inl.h"
#include "scan-inl.h"

namespace {

// Applies f to whole vectors of x and y; the tail is copied to padded arrays first.
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

struct Moments {
  float mean, variance;
};

// The mean is subtracted before squares are summed, so that they do not cancel.
Moments moments(const float* x, int64_t n) {
  vf acc{};
  int64_t i = 0;
  for (; i + lanes <= n; i += lanes) acc += load<vf>(x + i);
  float total = sum_of(acc);
  for (; i < n; ++i) total += x[i];
  const float mean = total / float(n);
  acc = vf{};
  for (i = 0; i + lanes <= n; i += lanes) acc += (load<vf>(x + i) - mean) * (load<vf>(x + i) - mean);
  float squares = sum_of(acc);
  for (; i < n; ++i) squares += (x[i] - mean) * (x[i] - mean);
  return {mean, squares / float(n)};
}

// `weight` are n weights and n biases.
void layer_norm(const float* x, const float* weight, float eps, int64_t n, float* out) {
  const auto [mean, variance] = moments(x, n);
  const float scale = 1.0f / std::sqrt(variance + eps);
  map(x, weight, n, out, [mean = mean, scale](vf v, vf w) { return (v - mean) * scale * w; });
  map(out, weight + n, n, out, [](vf v, vf b) { return v + b; });
}

// max(x - cutoff, 0), where the cutoff is the mean of x and `deviations` standard deviations.
void sparsify(const float* x, const float* weight, float deviations, int64_t n, float* out) {
  const auto [mean, variance] = moments(x, n);
  const float cutoff = mean + deviations * std::sqrt(variance);
  map(x, weight, n, out, [cutoff](vf v, vf w) { return max(v - cutoff, splat(0.0f)) * w; });
}

void multiply(const float* x, const float* weight, float, int64_t n, float* out) {
  map(x, weight, n, out, [](vf v, vf w) { return v * w; });
}

void product(const float* x, const float* y, float, int64_t n, float* out) {
  map(x, y, n, out, [](vf v, vf w) { return v * w; });
}

void silu(const float* gate, const float* up, float, int64_t n, float* out) {
  map(gate, up, n, out, [](vf g, vf u) { return g / (exp(-g) + 1.0f) * u; });
}

// 0.5 x (1 + tanh(sqrt(2 / pi) (x + 0.044715 x^3)))
inline vf gelu_tanh_of(vf x) { return x * 0.5f * (tanh((x + x * x * x * 0.044715f) * 0.79788456f) + 1.0f); }

// x Phi(x), with Abramowitz and Stegun's approximation 7.1.26 of the error function, to 1.5e-7.
inline vf gelu_of(vf x) {
  const vf z = abs(x) * 0.70710678f, t = 1.0f / (z * 0.3275911f + 1.0f);
  vf p = t * 1.061405429f - 1.453152027f;
  p = p * t + 1.421413741f;
  p = p * t - 0.284496736f;
  p = p * t + 0.254829592f;
  const vf tail = p * t * exp(-(z * z)) * 0.5f;
  return x < 0.0f ? x * tail : x - x * tail;
}

inline vf relu_of(vf x) { return max(x, splat(0.0f)); }
inline vf relu_squared_of(vf x) { return relu_of(x) * relu_of(x); }

void gelu_tanh(const float* gate, const float* up, float, int64_t n, float* out) {
  map(gate, up, n, out, [](vf g, vf u) { return gelu_tanh_of(g) * u; });
}

void gelu(const float* gate, const float* up, float, int64_t n, float* out) {
  map(gate, up, n, out, [](vf g, vf u) { return gelu_of(g) * u; });
}

template <vf of(vf)> void activate(const float* x, const float*, float, int64_t n, float* out) {
  map(x, x, n, out, [](vf v, vf) { return of(v); });
}

// Of the n weights twice, the first are the layer's scale of positive and of negative inputs; the factor is the slope.
void xielu(const float* x, const float* weight, float slope, int64_t n, float* out) {
  const float positive = weight[0], negative = weight[n];
  map(x, x, n, out, [=](vf v, vf) {
    return v > 0.0f ? v * v * positive + v * slope : (exp(min(v, splat(-1e-6f))) - 1.0f - v) * negative + v * slope;
  });
}

// gpt-oss: both sides are clamped, and 1 is added to `up`.
void swiglu_oai(const float* gate, const float* up, float, int64_t n, float* out) {
  constexpr float limit = 7.0f, slope = 1.702f;
  map(gate, up, n, out, [](vf g, vf u) {
    g = min(g, splat(limit));
    u = min(max(u, splat(-limit)), splat(limit));
    return g / (exp(g * -slope) + 1.0f) * (u + 1.0f);
  });
}

void sigmoid(const float* gate, const float* up, float, int64_t n, float* out) {
  map(gate, up, n, out, [](vf g, vf u) { return u / (exp(-g) + 1.0f); });
}

void clamp(const float* x, const float*, float limit, int64_t n, float* out) {
  map(x, x, n, out, [limit](vf v, vf) { return min(max(v, splat(-limit)), splat(limit)); });
}

void softcap(const float* x, const float*, float cap, int64_t n, float* out) {
  map(x, x, n, out, [cap](vf v, vf) { return tanh(v * (1.0f / cap)) * cap; });
}

void add(const float* x, const float* y, float, int64_t n, float* out) {
  map(x, y, n, out, [](vf a, vf b) { return a + b; });
}

void add_scaled(const float* x, const float* y, float factor, int64_t n, float* out) {
  map(x, y, n, out, [factor](vf a, vf b) { return a + b * factor; });
}

void scale(const float* x, const float*, float factor, int64_t n, float* out) {
  map(x, x, n, out, [factor](vf v, vf) { return v * factor; });
}

constexpr lltool::NamedFunction functions[] = {
    {"rms_norm", rms_norm, 1, 0.0f},
    {"layer_norm", layer_norm, 2, 0.0f},
    {"sparsify", sparsify, 1, -INFINITY},
    {"multiply", multiply, 1, -INFINITY},
    {"product", product, 0, -INFINITY},
    {"silu", silu, 0, -INFINITY},
    {"gelu_tanh", gelu_tanh, 0, -INFINITY},
    {"swiglu_oai", swiglu_oai, 0, -INFINITY},
    {"gelu", gelu, 0, -INFINITY},
    {"sigmoid", sigmoid, 0, -INFINITY},
    {"activate_gelu_tanh", activate<gelu_tanh_of>, 0, -INFINITY},
    {"activate_gelu", activate<gelu_of>, 0, -INFINITY},
    {"activate_relu_squared", activate<relu_squared_of>, 0, -INFINITY},
    {"activate_tanh", activate<tanh>, 0, -INFINITY},
    {"activate_sigmoid", activate<sigmoid_of>, 0, -INFINITY},
    {"add_vector", add, 1, -INFINITY},
    {"activate_relu", activate<relu_of>, 0, -INFINITY},
    {"xielu", xielu, 2, -INFINITY},
    {"clamp", clamp, 0, 0.0f},
    {"add", add, 0, -INFINITY},
    {"add_scaled", add_scaled, 0, -INFINITY},
    {"scale", scale, 0, -INFINITY},
    {"softcap", softcap, 0, -INFINITY},
    {},
};

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
#pragma GCC diagnostic error "-Wmissing-field-initializers"
const EngineKernels LLTOOL_TABLE = {
    .isa = isa,
    .lanes = lanes,
    .tokens_per_panel = panel,
    .multiplies_pairs = multiplies_pairs,
    .layout = layout,
    .can_multiply = can_multiply,
    .can_decode = can_decode,
    .decode_row = decode_row,
    .quantize_row = quantize_row,
    .quantize_invariant = quantize_invariant,
    .quantize_panel = quantize_panel,
    .pack_panel = pack_panel,
    .matvec = matvec,
    .matvec_invariant = matvec_invariant,
    .matvec_f32 = matvec_f32,
    .matmul = matmul,
    .matmul_f32 = matmul_f32,
    .can_multiply_shorts = can_multiply_shorts,
    .shorten_panel = shorten_panel,
    .matmul_shorts = matmul_shorts,
    .functions = functions,
    .log_sum_exp = log_sum_exp,
    .compare = compare,
    .block_maxima = block_maxima,
    .sum_exp = sum_exp,
    .attention = attention,
    .merge_attention = merge_attention,
    .store_cache = store_cache,
    .convolve = convolve,
    .selective_scan = selective_scan,
    .scan = scan,
    .gated_delta = gated_delta,
    .token_shift = token_shift,
    .time_mix = time_mix,
    .low_rank_down = low_rank_down,
    .low_rank_up = low_rank_up,
    .add_squares = add_squares,
    .rotate_halves = rotate_halves,
    .rotate_pairs = rotate_pairs,
    .probes = {.multiply_int8 = multiply_int8, .multiply_int16 = multiply_int16, .multiply_float = multiply_float, .read = read_memory},
};
}
