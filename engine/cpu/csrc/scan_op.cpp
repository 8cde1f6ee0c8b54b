#include "scan_op.h"

#include <algorithm>

namespace lltool {

SelectiveScanOp::SelectiveScanOp(Buffer x, Buffer dt, Buffer b, Buffer c, Buffer out, const std::vector<float>& a, std::vector<float> d,
                                 Executor& executor)
    : x_(x), dt_(dt), b_(b), c_(c), out_(out), a_(size_t(checked_mul(b.width, padded_columns(x.width)))), d_(std::move(d)),
      state_(executor.add_state(int64_t(a_.size()))) {
  constexpr float log2_e = 1.44269504f;
  for (int64_t n = 0; n < b.width; ++n)
    for (int64_t i = 0; i < x.width; ++i) a_[size_t(n * padded_columns(x.width) + i)] = a[size_t(n * x.width + i)] * log2_e;
}

void SelectiveScanOp::run(const Run& run) const {
  Executor& e = run.executor;
  const int64_t width = x_.width, block = 64; // columns of a task: four lines of the cache
  const int64_t blocks = (width + block - 1) / block;
  const std::vector<Segment>& segments = e.segments();
  run.worker.parallel(int64_t(segments.size()) * blocks, [&](int64_t i) {
    const Segment& s = segments[size_t(i / blocks)];
    const int64_t first = i % blocks * block, row = s.row * width + first;
    SelectiveScanTask task{};
    task.x = e.at(x_) + row;
    task.dt = e.at(dt_) + row;
    task.b = e.at(b_) + s.row * b_.width;
    task.c = e.at(c_) + s.row * c_.width;
    task.out = e.at(out_) + row;
    task.tokens = s.tokens;
    task.columns = std::min(block, width - first);
    task.stride = width;
    task.states = b_.width;
    task.a = a_.data() + first;
    task.d = d_.data() + first;
    task.state = e.state(s, state_) + first;
    task.state_stride = padded_columns(width);
    e.kernels.selective_scan(task);
  });
}

ScanOp::ScanOp(Buffer xbc, Buffer dt, Buffer out, int64_t groups, std::vector<float> a, std::vector<float> d, std::vector<float> dt_bias,
               Executor& executor)
    : xbc_(xbc), dt_(dt), out_(out), groups_(groups), states_((xbc.width - out.width) / (2 * groups)), a_(std::move(a)), d_(std::move(d)),
      dt_bias_(std::move(dt_bias)), state_(executor.add_state(checked_mul(heads(), head_floats()))) {}

void ScanOp::run(const Run& run) const {
  Executor& e = run.executor;
  const int64_t columns = out_.width / heads();
  const std::vector<Segment>& segments = e.segments();
  run.worker.parallel(int64_t(segments.size()) * heads(), [&](int64_t i) {
    const Segment& s = segments[size_t(i / heads())];
    const int64_t head = i % heads(), group = head / (heads() / groups_);
    const float* row = e.at(xbc_) + s.row * xbc_.width;
    ScanTask task{};
    task.x = row + head * columns;
    task.b = row + out_.width + group * states_;
    task.c = task.b + groups_ * states_;
    task.dt = e.at(dt_) + s.row * dt_.width + head;
    task.out = e.at(out_) + s.row * out_.width + head * columns;
    task.x_stride = task.bc_stride = xbc_.width;
    task.dt_stride = dt_.width;
    task.out_stride = out_.width;
    task.tokens = s.tokens;
    task.columns = columns;
    task.states = states_;
    task.a = a_[size_t(head)];
    task.d = d_[size_t(head)];
    task.dt_bias = dt_bias_[size_t(head)];
    task.state = e.state(s, state_) + head * head_floats();
    task.state_stride = padded_columns(columns);
    e.kernels.scan(task);
  });
}

} // namespace lltool
