// Products with weights and the operations fused with them; engine/program.py defines them.
#pragma once
#include "ops.h"

namespace lltool {

// From this many tokens on, unpacking a tile of the weight pays off; below, each row is read once for all tokens.
constexpr int64_t panels_from = 3;
// The same thresholds for float weights, with 14-bit or float activations.
constexpr int64_t shorts_from = 32, packed_from = 64;

class LinearOp : public Op {
public:
  struct Part {
    Buffer out;
    Matrix weight;
  };
  // Weights with the same number of rows. A thread multiplies the same rows of each, then runs `after` on the resulting
  // columns while they are in its cache.
  struct Group {
    std::vector<Part> parts;
    std::vector<std::unique_ptr<ColumnOp>> after;
    int64_t unit = 1; // columns that a thread must compute together
  };

  LinearOp(Buffer x, std::vector<Group> groups, std::unique_ptr<NormOp> norm, const Executor& executor);
  void add(std::unique_ptr<ColumnOp> op, size_t group);
  void finish(const Executor& executor) override;
  void run(const Run& run) const override;

private:
  // The activations for float weights: rows of floats, panels of 14 bits, or panels of floats.
  enum class Floats { rows, shorts, packed };
  // The layout of int8 activations: rows, one panel, or several panels.
  enum class Shape { rows, panel, panels };
  struct Way {
    Shape shape;
    Floats floats;
  };
  // The activations, in row layout or in panels.
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
    bool fused; // tasks hold whole units, so that they also run the operations of `after`
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
  std::unique_ptr<NormOp> norm_;      // null: x is not normed
  bool int8_ = false, floats_ = false; // which activations the parts need
};

} // namespace lltool
