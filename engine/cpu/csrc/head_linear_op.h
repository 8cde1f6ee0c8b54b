// Products of each head with a matrix of its own; HeadLinear in engine/operations/linear.py defines them.
#pragma once
#include "ops.h"

namespace lltool {

// A task multiplies the matrix of one head with some tokens, whose activations it prepares for itself.
class HeadLinearOp : public Op {
public:
  // `weight` is the matrix of the first head; the others follow.
  HeadLinearOp(Buffer x, Buffer out, Matrix weight, int heads, Executor& executor);
  void run(const Run& run) const override;

private:
  void multiply(const Run& run, const Matrix& w, const float* x, int64_t tokens, float* to) const;

  Buffer x_, out_;
  Matrix weight_;
  int heads_;
  bool int8_;
  int64_t tokens_at_once_; // whole panels
};

} // namespace lltool
