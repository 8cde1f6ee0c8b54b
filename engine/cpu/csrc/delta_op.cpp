#include "delta_op.h"

namespace lltool {

GatedDeltaOp::GatedDeltaOp(Buffer qkv, Buffer beta, Buffer alpha, Buffer out, int key_heads, int key_dim, bool tiled,
                           std::vector<float> rate, std::vector<float> bias, Executor& executor)
    : qkv_(qkv), beta_(beta), alpha_(alpha), out_(out), key_heads_(key_heads), key_dim_(key_dim), tiled_(tiled),
      rate_(std::move(rate)), bias_(std::move(bias)),
      head_floats_(delta_floats(executor.kernels.lanes, key_dim, out.width / beta.width)),
      state_(executor.add_state(checked_mul(beta.width, head_floats_))) {}

void GatedDeltaOp::run(const Run& run) const {
  Executor& e = run.executor;
  const int64_t heads = beta_.width, value_dim = out_.width / heads, alpha_width = alpha_.width / heads;
  const std::vector<Segment>& segments = e.segments();
  run.worker.parallel(int64_t(segments.size()) * heads, [&](int64_t i) {
    const Segment& s = segments[size_t(i / heads)];
    const int64_t head = i % heads, key_head = tiled_ ? head % key_heads_ : head / (heads / key_heads_);
    const float* row = e.at(qkv_) + s.row * qkv_.width;
    DeltaTask task{};
    task.q = row + key_head * key_dim_;
    task.k = row + (key_heads_ + key_head) * key_dim_;
    task.v = row + 2 * key_heads_ * key_dim_ + head * value_dim;
    task.stride = qkv_.width;
    task.beta = e.at(beta_) + s.row * heads + head;
    task.beta_stride = heads;
    task.alpha = e.at(alpha_) + s.row * alpha_.width + head * alpha_width;
    task.alpha_stride = alpha_.width;
    task.alpha_width = alpha_width;
    task.rate = rate_[size_t(head)];
    task.bias = bias_.data() + head * alpha_width;
    task.out = e.at(out_) + s.row * out_.width + head * value_dim;
    task.out_stride = out_.width;
    task.tokens = s.tokens;
    task.key_dim = key_dim_;
    task.value_dim = value_dim;
    task.state = e.state(s, state_) + head * head_floats_;
    e.kernels.gated_delta(task);
  });
}

} // namespace lltool
