// The operations of a Program that work row by row; engine/operations/ defines them.
#pragma once
#include "executor.h"

namespace lltool {

// The rows of a matrix that the tokens' ids choose, or their positions or types.
struct EmbedOp : RowOp {
  Buffer out;
  Matrix weight;
  ColumnFunction* scale;
  float factor;
  const int32_t* Batch::*by;
  EmbedOp(Buffer o, Matrix w, ColumnFunction* s, float f, const int32_t* Batch::*b) : out(o), weight(w), scale(s), factor(f), by(b) {}
  void row(const Run& run, int64_t t) const override;
};

// out = f(x, y, factor). y is a buffer or, if not empty, `vector`: one value a column, or the weights of every unit.
struct FunctionOp : ColumnOp {
  const NamedFunction& function;
  Buffer x, y, out;
  std::vector<float> vector;
  float factor;
  FunctionOp(const NamedFunction& f, Buffer x_, Buffer y_, Buffer o, std::vector<float> v, float factor_, int64_t unit)
      : ColumnOp(o.width, unit), function(f), x(x_), y(y_), out(o), vector(std::move(v)), factor(factor_) {}
  void columns(const Run& run, int64_t t, int64_t begin, int64_t end) const override;
  void normalize(const Run& run, int64_t t, float* to) const; // writes row t to `to` instead of `out`

private:
  void compute(const Run& run, int64_t t, int64_t begin, int64_t end, float* to) const;
};
using NormOp = FunctionOp; // of the input of a linear

struct RopeOp : ColumnOp {
  Buffer x, out;
  int first, table; // the first rotated dimension of a head
  bool interleaved;
  RopeOp(Buffer x_, Buffer o, int head_dim, int f, int t, bool i)
      : ColumnOp(o.width, head_dim), x(x_), out(o), first(f), table(t), interleaved(i) {}
  void columns(const Run& run, int64_t t, int64_t begin, int64_t end) const override;
};

// Copies columns of x to each of `outs`, in each of `groups` equal parts of a row.
struct SplitOp : RowOp {
  Buffer x;
  std::vector<Buffer> outs;
  int64_t groups;
  SplitOp(Buffer x_, std::vector<Buffer> o, int64_t g) : x(x_), outs(std::move(o)), groups(g) {}
  void row(const Run& run, int64_t t) const override;
};

// out = x * (1 + factor * ln(1 + floor((position + offset) / length))).
struct ScaleByPositionOp : ColumnOp {
  Buffer x, out;
  ColumnFunction* scale;
  double factor;
  int length, offset;
  ScaleByPositionOp(Buffer x_, Buffer o, ColumnFunction* s, double f, int l, int first)
      : ColumnOp(o.width, 1), x(x_), out(o), scale(s), factor(f), length(l), offset(first) {}
  void columns(const Run& run, int64_t t, int64_t begin, int64_t end) const override;
};

// out = x, then y.
struct ConcatenateOp : RowOp {
  Buffer x, y, out;
  ConcatenateOp(Buffer x_, Buffer y_, Buffer o) : x(x_), y(y_), out(o) {}
  void row(const Run& run, int64_t t) const override;
};

// The rows of the tokens whose outputs are wanted, or the means of the rows of their sequences in the batch.
struct SelectOp : RowOp {
  Buffer x, out;
  bool mean;
  ColumnFunction *add, *scale;
  SelectOp(Buffer x_, Buffer o, bool m, const EngineKernels& kernels)
      : x(x_), out(o), mean(m), add(kernels.function("add").run), scale(kernels.function("scale").run) {}
  void row(const Run& run, int64_t t) const override;
};

} // namespace lltool
