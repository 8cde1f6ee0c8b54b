// The token shift and the time mixing of RWKV 7; engine/operations/rwkv.py defines them.
#pragma once
#include <optional>
#include <utility>

#include "executor.h"

namespace lltool {

class TokenShiftOp : public Op {
public:
  // `weight` is (outs, width).
  TokenShiftOp(Buffer x, std::vector<Buffer> outs, std::vector<float> weight, Executor& executor)
      : x_(x), outs_(std::move(outs)), weight_(std::move(weight)), state_(executor.add_state(x.width)) {}
  void run(const Run& run) const override;

private:
  Buffer x_;
  std::vector<Buffer> outs_;
  std::vector<float> weight_;
  int64_t state_; // offset in a slot
};

class TimeMixOp : public Op {
public:
  struct Inputs {
    Buffer r, w, k, v, a;
    std::optional<Buffer> first, mix; // both or none
  };
  struct Weights {
    std::vector<float> k_k, k_a, r_k;
  };
  TimeMixOp(Inputs in, Buffer out, Buffer bonus, Weights weights, int64_t heads, Executor& executor)
      : in_(in), out_(out), bonus_(bonus), weights_(std::move(weights)), heads_(heads), dim_(out.width / heads),
        head_floats_(delta_floats(executor.kernels.lanes, dim_, dim_)), state_(executor.add_state(checked_mul(heads, head_floats_))) {}
  void run(const Run& run) const override;

private:
  Inputs in_;
  Buffer out_, bonus_;
  Weights weights_;
  int64_t heads_, dim_, head_floats_, state_; // floats of a head; offset in a slot
};

} // namespace lltool
