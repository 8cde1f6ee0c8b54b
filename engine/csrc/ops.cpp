#include "ops.h"

#include <algorithm>
#include <cstring>
#include <stdexcept>

namespace lltool {

// From this many tokens on it pays to unpack a tile of the weight; below, each row is read once for all tokens.
constexpr int64_t panels_from = 5;

void EmbedOp::row(const Run& run, int64_t t) const {
  float* to = run.executor.at(out) + t * out.width;
  const uint8_t* from = weight.data + run.batch.ids[t] * weight.row_bytes;
  run.executor.kernels.decode_row(weight.type, from, weight.columns, to);
  if (scale != 1.0f)
    for (int64_t i = 0; i < out.width; ++i) to[i] *= scale;
}

void NormOp::row(const Run& run, int64_t t) const {
  const float* from = run.executor.at(x) + t * x.width;
  float* to = run.executor.at(out) + t * x.width;
  const int64_t n = x.width / groups;
  for (int g = 0; g < groups; ++g) run.executor.kernels.rms_norm(from + g * n, weight.data(), eps, n, to + g * n);
}

LinearOp::LinearOp(Buffer x_, std::vector<Part> p, bool has, Buffer r, const Executor& executor)
    : x(x_), parts(std::move(p)), has_residual(has), residual(r), int8(false), floats(false) {
  for (const Part& part : parts) {
    const bool quantized = executor.settings.int8 && executor.kernels.can_multiply(part.weight.type);
    if (!quantized && !executor.kernels.can_decode(part.weight.type))
      throw std::invalid_argument("no kernel for tensors of type " + std::to_string(part.weight.type));
    (quantized ? int8 : floats) = true;
  }
}

void LinearOp::prepare(const Run& run, bool panels) const {
  Executor& e = run.executor;
  const int64_t T = run.rows, K = x.width;
  const int panel = e.kernels.tokens_per_panel;
  const float* from = e.at(x);
  if (!panels) {
    if (!int8) return; // the float kernels read x as it is
    run.worker.parallel(T, [&](int64_t t) {
      e.kernels.quantize_row(from + t * K, K, e.quantized.token(t, padded(K)));
    });
    return;
  }
  const int64_t most = panel_tokens(T, panel);
  run.worker.parallel((T + panel - 1) / panel, [&](int64_t p) {
    const int tokens = int(std::min(most, T - p * most));
    const float* rows = from + p * most * K;
    if (int8) e.kernels.quantize_panel(rows, K, tokens, K, e.quantized.token(p * panel, K));
    if (floats) e.kernels.pack_panel(rows, K, tokens, K, e.packed + p * panel * K);
  });
}

void LinearOp::multiply(const Run& run, const Part& part, int64_t begin, int64_t end, bool panels, Quantized few) const {
  Executor& e = run.executor;
  const EngineKernels& k = e.kernels;
  const bool quantized = e.settings.int8 && k.can_multiply(part.weight.type);
  const int64_t T = run.rows, width = part.out.width;
  float* to = e.at(part.out);
  void* scratch = e.scratch(run.worker.index);
  if (panels && quantized)
    k.matmul(part.weight, begin, end, e.quantized, T, to, width, scratch);
  else if (panels)
    k.matmul_f32(part.weight, begin, end, e.packed, T, to, width, scratch);
  else if (quantized)
    k.matvec(part.weight, begin, end, few, int(T), to, width, scratch);
  else
    k.matvec_f32(part.weight, begin, end, e.at(x), x.width, int(T), to, width, scratch);
  for (int64_t t = 0; t < T; ++t) {
    if (!part.bias.empty())
      for (int64_t i = begin; i < end; ++i) to[t * width + i] += part.bias[size_t(i)];
    if (has_residual) {
      const float* add = e.at(residual) + t * width;
      for (int64_t i = begin; i < end; ++i) to[t * width + i] += add[i];
    }
  }
}

void LinearOp::run(const Run& run) const {
  Executor& e = run.executor;
  const int64_t T = run.rows;
  const bool panels = T >= panels_from || e.settings.deterministic;
  const bool alone = T == 1 && !panels; // one row is rounded sooner by every thread than waited for
  Quantized few = alone ? e.own_quantized(run.worker.index) : e.quantized;
  bool prepared = !alone || !int8;
  if (!alone) prepare(run, panels);
  int64_t rows = 0;
  for (const Part& part : parts) rows += part.weight.rows;
  // Chunks small enough to even out the threads, large enough to be worth fetching; a matmul unpacks whole tiles.
  const int64_t unit = panels ? e.kernels.lanes : 8, most = panels ? tile_rows : 256;
  const int64_t share = rows / (int64_t(e.settings.threads) * 8) / unit * unit;
  const int64_t chunk = std::clamp<int64_t>(share, unit, most);
  int64_t chunks = 0;
  for (const Part& part : parts) chunks += (part.weight.rows + chunk - 1) / chunk;
  run.worker.parallel(chunks, [&](int64_t c) {
    if (!prepared) e.kernels.quantize_row(e.at(x), x.width, few);
    prepared = true;
    for (const Part& part : parts) {
      const int64_t n = (part.weight.rows + chunk - 1) / chunk;
      if (c < n) {
        multiply(run, part, c * chunk, std::min(part.weight.rows, (c + 1) * chunk), panels, few);
        return;
      }
      c -= n;
    }
  });
}

void RopeOp::row(const Run& run, int64_t t) const {
  const Executor::RopeTable& rope = run.executor.ropes[size_t(table)];
  const int64_t pairs = int64_t(rope.frequencies.size()), heads = x.width / head_dim;
  const int64_t step = interleaved ? 2 : 1, other = interleaved ? 1 : pairs;
  const float *cosine = rope.cosine.data() + t * pairs, *sine = rope.sine.data() + t * pairs;
  for (int64_t h = 0; h < heads; ++h) {
    const float* a = run.executor.at(x) + t * x.width + h * head_dim;
    float* b = run.executor.at(out) + t * x.width + h * head_dim;
    for (int64_t i = 0; i < pairs; ++i) {
      const float first = a[i * step], second = a[i * step + other];
      b[i * step] = first * cosine[i] - second * sine[i];
      b[i * step + other] = first * sine[i] + second * cosine[i];
    }
    if (a != b) std::copy(a + 2 * pairs, a + head_dim, b + 2 * pairs);
  }
}

void ElementwiseOp::row(const Run& run, int64_t t) const {
  const Executor& e = run.executor;
  const int64_t n = out.width;
  const float *a = e.at(x) + t * n, *b = e.at(y) + t * n;
  float* to = e.at(out) + t * n;
  switch (kind) {
  case Kind::silu: e.kernels.gated(0, a, b, n, to); return;
  case Kind::gelu_tanh: e.kernels.gated(1, a, b, n, to); return;
  case Kind::softcap: e.kernels.softcap(a, factor, n, to); return;
  case Kind::add:
    for (int64_t i = 0; i < n; ++i) to[i] = a[i] + b[i];
    return;
  case Kind::scale:
    for (int64_t i = 0; i < n; ++i) to[i] = a[i] * factor;
    return;
  }
}

void SelectOp::row(const Run& run, int64_t r) const {
  const int64_t from = run.batch.output_rows[run.first_output + r];
  std::copy_n(run.executor.at(x) + from * x.width, x.width, run.executor.at(out) + r * x.width);
}

} // namespace lltool
