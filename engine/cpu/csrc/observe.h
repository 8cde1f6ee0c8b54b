// The observer of what matrices are multiplied with: it sums the squares of each column of an activation.
#pragma once
#include <algorithm>
#include <utility>
#include <vector>

#include "experts_op.h"

namespace lltool {

class ObserveOp : public Op {
public:
  // With `assignments`, each expert has sums of its own; `assigned`: x has a row for each assignment, not for each token.
  ObserveOp(Buffer x, const Assignments* assignments, bool assigned)
      : x_(x), assignments_(assignments), assigned_(assigned), sums_(size_t(checked_mul(experts(), x.width))), rows_(size_t(experts())) {}

  // A task sums its own columns over the rows in order, so that results do not depend on the number of threads.
  void run(const Run& run) const override {
    if (assignments_) return run.worker.parallel(experts(), [&](int64_t expert) { observe_expert(run, int(expert)); });
    if (run.worker.index == 0) rows_[0] += run.rows;
    run.worker.parallel(blocks(), [&](int64_t block) { add(run, run.executor.at(x_), run.rows, block, sums_.data()); });
  }

  int64_t experts() const { return assignments_ ? assignments_->experts : 1; }
  size_t width() const { return size_t(x_.width); }

  // Copies the sums and the numbers of rows that they cover, and resets them.
  void take(double* sums, int64_t* rows) {
    std::copy(sums_.begin(), sums_.end(), sums);
    std::copy(rows_.begin(), rows_.end(), rows);
    std::fill(sums_.begin(), sums_.end(), 0.0);
    std::fill(rows_.begin(), rows_.end(), 0);
  }

private:
  int64_t blocks() const { return (x_.width + observed_columns - 1) / observed_columns; }

  void add(const Run& run, const float* x, int64_t rows, int64_t block, double* sums) const {
    const int64_t begin = block * observed_columns, n = std::min(observed_columns, x_.width - begin);
    run.executor.kernels.add_squares(x + begin, x_.width, rows, n, sums + begin);
  }

  void observe_expert(const Run& run, int expert) const {
    const int64_t first = assignments_->first(expert), count = assignments_->count(expert), step = assigned_ ? count : 1;
    rows_[size_t(expert)] += count;
    for (int64_t slot = first; slot < first + count; slot += step) {
      const float* x = run.executor.at(x_) + (assigned_ ? slot : assignments_->token(slot)) * x_.width;
      for (int64_t block = 0; block < blocks(); ++block) add(run, x, step, block, sums_.data() + expert * x_.width);
    }
  }

  Buffer x_;
  const Assignments* assignments_; // null: a matrix without experts
  bool assigned_;
  mutable std::vector<double> sums_;
  mutable std::vector<int64_t> rows_;
};

} // namespace lltool
