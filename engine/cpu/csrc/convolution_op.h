// Causal convolutions, whose last inputs are a state of fixed size; engine/operations/convolution.py defines them.
#pragma once
#include <utility>

#include "executor.h"

namespace lltool {

class ConvolutionOp : public Op {
public:
  // `weight` is (taps, width), `bias` (width,) or empty.
  ConvolutionOp(Buffer x, Buffer out, int taps, std::vector<float> weight, std::vector<float> bias, bool silu, Executor& executor)
      : x_(x), out_(out), taps_(taps), weight_(std::move(weight)), bias_(std::move(bias)), silu_(silu),
        state_(executor.add_state((taps - 1) * x.width)) {}
  void run(const Run& run) const override;

private:
  Buffer x_, out_;
  int taps_;
  std::vector<float> weight_, bias_;
  bool silu_;
  int64_t state_; // offset in a slot
};

} // namespace lltool
