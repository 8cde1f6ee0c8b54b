#include "ops.h"

#include <algorithm>
#include <cmath>

namespace lltool {

void EmbedOp::row(const Run& run, int64_t t) const {
  const EngineKernels& k = run.executor.kernels;
  float* to = run.executor.at(out) + t * out.width;
  const int64_t from = (run.batch.*by)[t];
  k.decode_row(weight.type, weight.data + from * weight.row_bytes, weight.columns, to);
  if (factor != 1.0f) scale(to, to, factor, out.width, to);
}

void FunctionOp::columns(const Run& run, int64_t t, int64_t begin, int64_t end) const {
  compute(run, t, begin, end, run.executor.at(out) + t * width + begin);
}

void FunctionOp::normalize(const Run& run, int64_t t, float* to) const { compute(run, t, 0, width, to); }

void FunctionOp::compute(const Run& run, int64_t t, int64_t begin, int64_t end, float* to) const {
  const float* from = run.executor.at(x) + t * width + begin;
  if (function.vectors == 0) {
    const float* second = vector.empty() ? run.executor.at(y) + t * width + begin : vector.data() + begin;
    return function.run(from, second, factor, end - begin, to);
  }
  for (int64_t i = 0; i < end - begin; i += unit) function.run(from + i, vector.data(), factor, unit, to + i);
}

void RopeOp::columns(const Run& run, int64_t t, int64_t begin, int64_t end) const {
  const Executor& e = run.executor;
  const Executor::RopeTable& rope = e.ropes[size_t(table)];
  const int64_t pairs = int64_t(rope.frequencies.size());
  const float *cosine = rope.cosine.data() + t * pairs, *sine = rope.sine.data() + t * pairs;
  for (int64_t head = t * width + begin; head < t * width + end; head += unit) {
    const float* from = e.at(x) + head;
    float* to = e.at(out) + head;
    (interleaved ? e.kernels.rotate_pairs : e.kernels.rotate_halves)(from + first, cosine, sine, pairs, to + first);
    if (from == to) continue;
    std::copy_n(from, first, to);
    std::copy(from + first + 2 * pairs, from + unit, to + first + 2 * pairs);
  }
}

void SplitOp::row(const Run& run, int64_t t) const {
  const float* from = run.executor.at(x) + t * x.width;
  for (int64_t g = 0; g < groups; ++g)
    for (const Buffer& out : outs) {
      const int64_t n = out.width / groups;
      std::copy_n(from, n, run.executor.at(out) + t * out.width + g * n);
      from += n;
    }
}

void ScaleByPositionOp::columns(const Run& run, int64_t t, int64_t begin, int64_t end) const {
  const int64_t passed = (int64_t(run.batch.positions[t]) + offset) / length, first = t * width + begin;
  const float by = float(1 + factor * std::log1p(double(passed)));
  const float* from = run.executor.at(x) + first;
  scale(from, from, by, end - begin, run.executor.at(out) + first);
}

void ConcatenateOp::row(const Run& run, int64_t t) const {
  float* to = run.executor.at(out) + t * out.width;
  std::copy_n(run.executor.at(x) + t * x.width, x.width, to);
  std::copy_n(run.executor.at(y) + t * y.width, y.width, to + x.width);
}

void SelectOp::row(const Run& run, int64_t r) const {
  const Batch& b = run.batch;
  const int64_t from = b.output_rows[run.first_output + r];
  const float* rows = run.executor.at(x);
  float* to = run.executor.at(out) + r * x.width;
  if (!mean) {
    std::copy_n(rows + from * x.width, x.width, to);
    return;
  }
  int64_t begin = from, end = from + 1; // of the sequence's tokens, which follow one another
  while (begin > 0 && b.sequences[begin - 1] == b.sequences[from]) --begin;
  while (end < b.tokens && b.sequences[end] == b.sequences[from]) ++end;
  std::copy_n(rows + begin * x.width, x.width, to);
  for (int64_t t = begin + 1; t < end; ++t) add(to, rows + t * x.width, 0, x.width, to);
  scale(to, to, 1.0f / float(end - begin), x.width, to);
}

} // namespace lltool
