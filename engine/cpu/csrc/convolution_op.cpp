#include "convolution_op.h"

#include <algorithm>

namespace lltool {

void ConvolutionOp::run(const Run& run) const {
  Executor& e = run.executor;
  const int64_t width = x_.width, block = 64; // columns of a task: four lines of the cache
  const int64_t blocks = (width + block - 1) / block;
  const std::vector<Segment>& segments = e.segments();
  run.worker.parallel(int64_t(segments.size()) * blocks, [&](int64_t i) {
    const Segment& s = segments[size_t(i / blocks)];
    const int64_t first = i % blocks * block;
    ConvolutionTask task{};
    task.x = e.at(x_) + s.row * width + first;
    task.out = e.at(out_) + s.row * width + first;
    task.tokens = s.tokens;
    task.columns = std::min(block, width - first);
    task.stride = width;
    task.taps = taps_;
    task.weight = weight_.data() + first;
    task.bias = bias_.empty() ? nullptr : bias_.data() + first;
    task.silu = silu_;
    task.state = e.state(s, state_) + first;
    e.kernels.convolve(task);
  });
}

} // namespace lltool
