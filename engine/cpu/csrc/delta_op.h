// Linear attention by the gated delta rule, whose state has a fixed size; engine/operations/delta.py defines it.
#pragma once
#include <utility>

#include "executor.h"

namespace lltool {

class GatedDeltaOp : public Op {
public:
  // `rate` has a number for each head, of which beta has as many; `bias` is as wide as alpha.
  GatedDeltaOp(Buffer qkv, Buffer beta, Buffer alpha, Buffer out, int key_heads, int key_dim, bool tiled, std::vector<float> rate,
               std::vector<float> bias, Executor& executor);
  void run(const Run& run) const override;

private:
  Buffer qkv_, beta_, alpha_, out_;
  int key_heads_, key_dim_;
  bool tiled_;
  std::vector<float> rate_, bias_;
  int64_t head_floats_, state_; // of a head; offset in a slot
};

} // namespace lltool
