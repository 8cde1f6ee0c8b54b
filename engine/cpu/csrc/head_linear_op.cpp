#include "head_linear_op.h"

#include <algorithm>

#include "linear_op.h"

namespace lltool {

// Tokens that share the unpacking of a head's matrix, at least.
constexpr int64_t shared_unpacking = 64;

HeadLinearOp::HeadLinearOp(Buffer x, Buffer out, Matrix weight, int heads, Executor& e)
    : x_(x), out_(out), weight_(weight), heads_(heads), int8_(e.settings.int8 && e.kernels.can_multiply(weight.type)),
      tokens_at_once_((shared_unpacking + e.kernels.tokens_per_panel - 1) / e.kernels.tokens_per_panel * e.kernels.tokens_per_panel) {
  e.reserve_columns(weight.columns);
  e.reserve_rows(checked_mul(e.settings.threads, tokens_at_once_), weight.columns, int8_, !int8_);
}

// How tokens are multiplied depends on how many the batch has, not on how many the task has.
void HeadLinearOp::multiply(const Run& run, const Matrix& w, const float* x, int64_t tokens, float* to) const {
  const Executor& e = run.executor;
  const EngineKernels& k = e.kernels;
  const int64_t K = w.columns, panel = k.tokens_per_panel, place = run.worker.index * tokens_at_once_;
  const bool always = e.settings.deterministic, shorts = e.settings.int8 && k.can_multiply_shorts(K);
  void* scratch = e.scratch(run.worker.index);
  const Quantized quantized = e.quantized.token(place, padded(K));
  const Shortened shortened = e.shortened.token(place, padded(K));
  float* packed = e.packed + place * padded(K);
  if (int8_ && run.rows < panels_from) {
    for (int64_t t = 0; t < tokens; ++t) e.quantize_row(x + t * x_.width, K, quantized.token(t, padded(K)));
    return e.matvec(w, 0, w.rows, quantized, int(tokens), to, out_.width, scratch);
  }
  if (!int8_ && !always && run.rows < (shorts ? shorts_from : packed_from))
    return k.matvec_f32(w, 0, w.rows, x, x_.width, int(tokens), to, out_.width, scratch);
  for (int64_t t = 0; t < tokens; t += panel) {
    const int count = int(std::min(panel, tokens - t));
    const float* rows = x + t * x_.width;
    if (int8_)
      k.quantize_panel(rows, x_.width, count, K, quantized.token(t, K));
    else if (shorts)
      k.shorten_panel(rows, x_.width, count, K, shortened.token(t, K));
    else
      k.pack_panel(rows, x_.width, count, K, packed + t * K);
  }
  for (int64_t begin = 0, end; begin < w.rows; begin = end) {
    end = std::min<int64_t>(w.rows, begin + tile_rows);
    if (int8_)
      k.matmul(w, begin, end, quantized, tokens, to, out_.width, scratch);
    else if (shorts)
      k.matmul_shorts(w, begin, end, shortened, tokens, to, out_.width, scratch);
    else
      k.matmul_f32(w, begin, end, packed, tokens, to, out_.width, scratch);
  }
}

void HeadLinearOp::run(const Run& run) const {
  const Executor& e = run.executor;
  const int64_t from = x_.width / heads_, to = out_.width / heads_, parts = (run.rows + tokens_at_once_ - 1) / tokens_at_once_;
  run.worker.parallel(heads_ * parts, [&](int64_t i) {
    const int64_t head = i / parts, first = i % parts * tokens_at_once_, tokens = std::min(tokens_at_once_, run.rows - first);
    const float* x = e.at(x_) + first * x_.width + head * from;
    float* out = e.at(out_) + first * out_.width + head * to;
    Matrix w = weight_;
    w.data += head * w.rows * w.row_bytes;
    multiply(run, w, x, tokens, out);
    if (from == w.columns) return;
    for (int64_t t = 0; t < tokens; ++t) std::copy_n(x + t * x_.width + w.columns, from - w.columns, out + t * out_.width + w.rows);
  });
}

} // namespace lltool
