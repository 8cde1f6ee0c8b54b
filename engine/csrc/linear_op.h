// Products with weights, with what comes before and behind them; their meaning is in engine/program.py.
#pragma once
#include "ops.h"

namespace lltool {

class LinearOp : public Op {
public:
  struct Part {
    Buffer out;
    Matrix weight;
  };
  // Parts with the same number of rows, of which a thread multiplies the same rows, and what it does with these columns at
  // once, while they are in its cache.
  struct Group {
    std::vector<Part> parts;
    std::vector<std::unique_ptr<ColumnOp>> after;
    int64_t unit = 1; // columns that belong together
  };

  LinearOp(Buffer x, std::vector<Group> groups, std::unique_ptr<NormOp> norm, const Executor& executor);
  void add(std::unique_ptr<ColumnOp> op, size_t group);
  void finish(const Executor& executor) override;
  void run(const Run& run) const override;

private:
  // What float weights are multiplied with: rows as they are, panels of 14 bits, panels of floats.
  enum class Floats { rows, shorts, packed };
  // Of int8: rows, or panels.
  enum class Shape { rows, panel, panels };
  struct Way {
    Shape shape;
    Floats floats;
  };
  // What is multiplied: rows in row layout, or panels.
  struct Input {
    const float* floats;
    Quantized quantized;
  };
  struct Task {
    size_t group, part, end_part;
    int64_t begin, end; // rows
  };
  struct Tasks {
    std::vector<Task> list;
    bool finished; // a task has all that is needed for what comes behind
  };

  Input prepare_own(const Run& run) const;
  Input prepare(const Run& run, Way way) const;
  Floats floats_way(const Run& run) const;
  Shape shape_of(const Run& run) const;
  Tasks cut(const Executor& executor, Shape shape) const;
  void multiply(const Run& run, const Part& part, int64_t begin, int64_t end, Way way, const Input& in) const;

  Buffer x_;
  std::vector<Group> groups_;
  Tasks tasks_[3]; // for each Shape
  std::unique_ptr<NormOp> norm_;      // null: x is multiplied as it is
  bool int8_ = false, floats_ = false; // which activations the parts want
};

} // namespace lltool
