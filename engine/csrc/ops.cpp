#include "ops.h"

#include <algorithm>

namespace lltool {

void EmbedOp::row(const Run& run, int64_t t) const {
  const EngineKernels& k = run.executor.kernels;
  float* to = run.executor.at(out) + t * out.width;
  k.decode_row(weight.type, weight.data + run.batch.ids[t] * weight.row_bytes, weight.columns, to);
  if (scale != 1.0f) k.scale(to, scale, out.width, to);
}

void NormOp::columns(const Run& run, int64_t t, int64_t begin, int64_t end) const {
  const Executor& e = run.executor;
  normalize(run, e.at(x) + t * width + begin, e.at(out) + t * width + begin, end - begin);
}

void NormOp::normalize(const Run& run, int64_t t, float* to) const {
  normalize(run, run.executor.at(x) + t * width, to, width);
}

void NormOp::normalize(const Run& run, const float* from, float* to, int64_t n) const {
  for (int64_t i = 0; i < n; i += unit) run.executor.kernels.rms_norm(from + i, weight.data(), eps, unit, to + i);
}

void RopeOp::columns(const Run& run, int64_t t, int64_t begin, int64_t end) const {
  const Executor& e = run.executor;
  const Executor::RopeTable& rope = e.ropes[size_t(table)];
  const int64_t pairs = int64_t(rope.frequencies.size());
  const float *cosine = rope.cosine.data() + t * pairs, *sine = rope.sine.data() + t * pairs;
  for (int64_t head = t * width + begin; head < t * width + end; head += unit) {
    const float* from = e.at(x) + head;
    float* to = e.at(out) + head;
    (interleaved ? e.kernels.rotate_pairs : e.kernels.rotate_halves)(from, cosine, sine, pairs, to);
    if (from != to) std::copy(from + 2 * pairs, from + unit, to + 2 * pairs);
  }
}

void ElementwiseOp::columns(const Run& run, int64_t t, int64_t begin, int64_t end) const {
  const Executor& e = run.executor;
  const EngineKernels& k = e.kernels;
  const int64_t at = t * width + begin, n = end - begin;
  const float *a = e.at(x) + at, *b = e.at(y) + at;
  float* to = e.at(out) + at;
  switch (kind) {
  case Kind::silu: k.gated(0, a, b, n, to); return;
  case Kind::gelu_tanh: k.gated(1, a, b, n, to); return;
  case Kind::add: k.add(a, b, n, to); return;
  case Kind::scale: k.scale(a, factor, n, to); return;
  case Kind::softcap: k.softcap(a, factor, n, to); return;
  }
}

void BiasOp::columns(const Run& run, int64_t t, int64_t begin, int64_t end) const {
  float* to = run.executor.at(x) + t * width + begin;
  run.executor.kernels.add(to, bias.data() + begin, end - begin, to);
}

void SelectOp::row(const Run& run, int64_t r) const {
  const int64_t from = run.batch.output_rows[run.first_output + r];
  std::copy_n(run.executor.at(x) + from * x.width, x.width, run.executor.at(out) + r * x.width);
}

} // namespace lltool
