#include "rwkv_op.h"

#include <algorithm>

namespace lltool {

void TokenShiftOp::run(const Run& run) const {
  Executor& e = run.executor;
  const int64_t width = x_.width, block = 64; // columns of a task: four lines of the cache
  const int64_t blocks = (width + block - 1) / block;
  const std::vector<Segment>& segments = e.segments();
  run.worker.parallel(int64_t(segments.size()) * blocks, [&](int64_t i) {
    const Segment& s = segments[size_t(i / blocks)];
    const int64_t first = i % blocks * block, row = s.row * width + first;
    TokenShiftTask task{};
    task.x = e.at(x_) + row;
    for (Buffer out : outs_) task.outs[task.count++] = e.at(out) + row;
    task.tokens = s.tokens;
    task.columns = std::min(block, width - first);
    task.stride = width;
    task.weight = weight_.data() + first;
    task.state = e.state(s, state_) + first;
    e.kernels.token_shift(task);
  });
}

void TimeMixOp::run(const Run& run) const {
  Executor& e = run.executor;
  const std::vector<Segment>& segments = e.segments();
  run.worker.parallel(int64_t(segments.size()) * heads_, [&](int64_t i) {
    const Segment& s = segments[size_t(i / heads_)];
    const int64_t head = i % heads_, column = head * dim_, row = s.row * out_.width + column;
    TimeMixTask task{};
    task.r = e.at(in_.r) + row;
    task.w = e.at(in_.w) + row;
    task.k = e.at(in_.k) + row;
    task.v = e.at(in_.v) + row;
    task.a = e.at(in_.a) + row;
    if (in_.first) {
      task.first = e.at(*in_.first) + row;
      task.mix = e.at(*in_.mix) + row;
    }
    task.k_k = weights_.k_k.data() + column;
    task.k_a = weights_.k_a.data() + column;
    task.r_k = weights_.r_k.data() + column;
    task.out = e.at(out_) + row;
    task.bonus = e.at(bonus_) + row;
    task.stride = out_.width;
    task.tokens = s.tokens;
    task.dim = dim_;
    task.state = e.state(s, state_) + head * head_floats_;
    e.kernels.time_mix(task);
  });
}

} // namespace lltool
