// What matrices are multiplied with: the sum of the squares of each column of an activation.
#pragma once
#include <algorithm>
#include <utility>
#include <vector>

#include "executor.h"

namespace lltool {

class ObserveOp : public Op {
public:
  explicit ObserveOp(Buffer x) : x_(x), sums_(size_t(x.width)) {}

  // A task has its own columns and takes the rows in order, so that sums do not depend on the number of threads.
  void run(const Run& run) const override {
    if (run.worker.index == 0) rows_ += run.rows;
    run.worker.parallel((x_.width + observed_columns - 1) / observed_columns, [&](int64_t task) {
      const int64_t begin = task * observed_columns, n = std::min(observed_columns, x_.width - begin);
      run.executor.kernels.add_squares(run.executor.at(x_) + begin, x_.width, run.rows, n, sums_.data() + begin);
    });
  }

  size_t width() const { return sums_.size(); }

  // Hands over the sums and begins anew; returns how many rows they are of.
  int64_t take(double* out) {
    std::copy(sums_.begin(), sums_.end(), out);
    std::fill(sums_.begin(), sums_.end(), 0.0);
    return std::exchange(rows_, 0);
  }

private:
  Buffer x_;
  mutable std::vector<double> sums_;
  mutable int64_t rows_ = 0;
};

} // namespace lltool
