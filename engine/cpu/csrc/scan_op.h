// Scans of state-space models; engine/operations/scan.py defines them.
#pragma once
#include <utility>

#include "executor.h"

namespace lltool {

// States are stored with their columns padded to whole vectors of every instruction set.
constexpr int64_t padded_columns(int64_t columns) { return (columns + 15) / 16 * 16; }

class SelectiveScanOp : public Op {
public:
  // `a` is (states, width), `d` (width,).
  SelectiveScanOp(Buffer x, Buffer dt, Buffer b, Buffer c, Buffer out, const std::vector<float>& a, std::vector<float> d, Executor& executor);
  void run(const Run& run) const override;

private:
  Buffer x_, dt_, b_, c_, out_;
  std::vector<float> a_, d_; // a: (states, padded width), times log2(e)
  int64_t state_;            // offset in a slot
};

class ScanOp : public Op {
public:
  // `a`, `d` and `dt_bias` have a number for each head.
  ScanOp(Buffer xbc, Buffer dt, Buffer out, int64_t groups, std::vector<float> a, std::vector<float> d, std::vector<float> dt_bias,
         Executor& executor);
  void run(const Run& run) const override;

private:
  int64_t heads() const { return int64_t(a_.size()); }
  int64_t head_floats() const { return states_ * padded_columns(out_.width / heads()); }

  Buffer xbc_, dt_, out_;
  int64_t groups_, states_;
  std::vector<float> a_, d_, dt_bias_;
  int64_t state_; // offset in a slot
};

} // namespace lltool
