#include "low_rank_op.h"

#include <algorithm>

namespace lltool {

constexpr int strip_rows = 16;        // rows of a task
constexpr int64_t strip_columns = 512; // columns of a task

LowRankOp::LowRankOp(Buffer x, std::vector<Buffer> outs, std::vector<LowRankUpdate> updates, const Assignments* assignments, bool assigned,
                     bool in_head, std::shared_ptr<LowRankSpace> space, Executor& executor)
    : x_(x), outs_(std::move(outs)), updates_(std::move(updates)), assignments_(assignments), assigned_(assigned), in_head_(in_head),
      space_(std::move(space)) {
  require(executor.kernels.tokens_per_panel <= strip_rows, "low_rank: a panel has more rows than a task");
  most_rows_ = in_head ? executor.settings.head_rows : executor.settings.max_batch * (assignments ? assignments->used : 1);
  int64_t floats = 0;
  for (const LowRankUpdate& update : updates_) floats += checked_mul(most_rows_, update.padded);
  space_->floats = std::max(space_->floats, floats);
}

// A late thread asks again after the next routing, so the number depends on the number of tokens alone.
int64_t LowRankOp::strips(const Run& run) const {
  if (!assignments_) return (run.rows + strip_rows - 1) / strip_rows;
  return Assignments::most_panels(run.rows * assignments_->used, assignments_->experts, run.executor.kernels.tokens_per_panel);
}

LowRankOp::Strip LowRankOp::strip(const Run& run, int64_t i) const {
  if (!assignments_) return {i * strip_rows, int(std::min<int64_t>(strip_rows, run.rows - i * strip_rows)), 0};
  if (i >= assignments_->panel_count()) return {0, 0, 0};
  const Assignments::Panel& panel = assignments_->panel(i);
  return {panel.first, panel.tokens, panel.expert};
}

int64_t LowRankOp::token(const Run& run, int64_t row) const {
  return assignments_ ? assignments_->token(row) : in_head_ ? run.batch.output_rows[run.first_output + row] : row;
}

bool LowRankOp::is_active(const Run& run, const LowRankUpdate& update) const {
  const Batch& batch = run.batch;
  for (int64_t s = 0; batch.scales && s < batch.sequence_count; ++s)
    if (batch.scales[s * batch.adapters + update.adapter] != 0) return true;
  return false;
}

float* LowRankOp::results(const Run&, size_t update) const {
  float* from = space_->data();
  for (size_t i = 0; i < update; ++i) from += most_rows_ * updates_[i].padded;
  return from;
}

void LowRankOp::multiply_down(const Run& run, const Strip& strip, size_t number) const {
  const LowRankUpdate& update = updates_[number];
  const Executor& e = run.executor;
  const int64_t of_expert = x_.width * update.padded * factor_bytes(update.type);
  const LowRankDown task{update.type, update.down + strip.expert * of_expert, x_.width, update.padded};
  float* made = results(run, number) + strip.first * update.padded;
  for (int t = 0; t < strip.count;) { // runs of rows that have the adapter
    const float* rows[strip_rows];
    float scales[strip_rows];
    int count = 0;
    for (; t + count < strip.count && count < strip_rows; ++count) {
      const int64_t row = strip.first + t + count, from = token(run, row);
      scales[count] = adapter_scale(run.batch, from, update.adapter) * update.factor;
      if (scales[count] == 0) break;
      rows[count] = e.at(x_) + (assignments_ && !assigned_ ? from : row) * x_.width;
    }
    e.kernels.low_rank_down(task, count, rows, made + t * update.padded);
    for (int i = 0; i < count; ++i)
      for (int64_t r = 0; r < update.rank; ++r) made[(t + i) * update.padded + r] *= scales[i];
    t += std::max(count, 1);
  }
}

void LowRankOp::multiply_up(const Run& run, const Strip& strip, size_t number, int64_t begin, int64_t end) const {
  const LowRankUpdate& update = updates_[number];
  const Buffer out = outs_[update.output];
  const int64_t of_expert = update.rank * out.width * factor_bytes(update.type);
  const LowRankUp task{update.type, update.up + strip.expert * of_expert, update.rank, out.width, update.padded, begin, end};
  const float* made = results(run, number) + strip.first * update.padded;
  for (int t = 0; t < strip.count;) {
    float* rows[strip_rows];
    int count = 0;
    for (; t + count < strip.count && count < strip_rows; ++count) {
      const int64_t row = strip.first + t + count;
      if (adapter_scale(run.batch, token(run, row), update.adapter) * update.factor == 0) break;
      rows[count] = run.executor.at(out) + row * out.width;
    }
    run.executor.kernels.low_rank_up(task, count, made + t * update.padded, rows);
    t += std::max(count, 1);
  }
}

void LowRankOp::run(const Run& run) const {
  std::vector<size_t> active;
  for (size_t i = 0; i < updates_.size(); ++i)
    if (is_active(run, updates_[i])) active.push_back(i);
  if (active.empty()) return;
  const int64_t count = strips(run);
  run.worker.parallel(count * int64_t(active.size()), [&](int64_t i) {
    multiply_down(run, strip(run, i % count), active[size_t(i / count)]);
  });
  int64_t blocks = 0;
  for (const Buffer& out : outs_) blocks += (out.width + strip_columns - 1) / strip_columns;
  run.worker.parallel(count * blocks, [&](int64_t i) {
    int64_t block = i / count;
    size_t output = 0;
    for (int64_t n; block >= (n = (outs_[output].width + strip_columns - 1) / strip_columns); ++output) block -= n;
    const int64_t begin = block * strip_columns, end = std::min(begin + strip_columns, outs_[output].width);
    const Strip rows = strip(run, i % count);
    for (size_t number : active)
      if (updates_[number].output == output) multiply_up(run, rows, number, begin, end);
  });
}

void LowRankEmbedOp::row(const Run& run, int64_t t) const {
  const Executor& e = run.executor;
  float *made = e.own_row(run.worker.index), *to = e.at(out) + t * out.width;
  for (const LowRankUpdate& update : updates) {
    const float scale = adapter_scale(run.batch, t, update.adapter) * update.factor;
    if (scale == 0) continue;
    const uint8_t* from = update.down + int64_t(run.batch.ids[t]) * update.padded * factor_bytes(update.type);
    e.kernels.decode_row(int(update.type), from, update.padded, made);
    for (int64_t r = 0; r < update.rank; ++r) made[r] *= scale;
    e.kernels.low_rank_up({update.type, update.up, update.rank, out.width, update.padded, 0, out.width}, 1, made, &to);
  }
}

} // namespace lltool
