// The operations of a Program that go row by row; their meaning is in engine/program.py.
#pragma once
#include "executor.h"

namespace lltool {

struct EmbedOp : RowOp {
  Buffer out;
  Matrix weight;
  float scale;
  EmbedOp(Buffer o, Matrix w, float s) : out(o), weight(w), scale(s) {}
  void row(const Run& run, int64_t t) const override;
};

struct NormOp : ColumnOp {
  Buffer x, out;
  std::vector<float> weight;
  float eps;
  NormOp(Buffer x_, Buffer o, std::vector<float> w, float e) : ColumnOp(o.width, int64_t(w.size())), x(x_), out(o), weight(std::move(w)), eps(e) {}
  void columns(const Run& run, int64_t t, int64_t begin, int64_t end) const override;
  void normalize(const Run& run, int64_t t, float* to) const; // a row to another place than `out`

private:
  void normalize(const Run& run, const float* from, float* to, int64_t n) const;
};

struct RopeOp : ColumnOp {
  Buffer x, out;
  int table;
  bool interleaved;
  RopeOp(Buffer x_, Buffer o, int head_dim, int t, bool i) : ColumnOp(o.width, head_dim), x(x_), out(o), table(t), interleaved(i) {}
  void columns(const Run& run, int64_t t, int64_t begin, int64_t end) const override;
};

// Operations on each element: out = f(x, y), row by row.
struct ElementwiseOp : ColumnOp {
  enum class Kind { silu, gelu_tanh, add, scale, softcap };
  Kind kind;
  Buffer x, y, out;
  float factor;
  ElementwiseOp(Kind k, Buffer x_, Buffer y_, Buffer o, float f) : ColumnOp(o.width, 1), kind(k), x(x_), y(y_), out(o), factor(f) {}
  void columns(const Run& run, int64_t t, int64_t begin, int64_t end) const override;
};

// x += bias.
struct BiasOp : ColumnOp {
  Buffer x;
  std::vector<float> bias;
  BiasOp(Buffer x_, std::vector<float> b) : ColumnOp(x_.width, 1), x(x_), bias(std::move(b)) {}
  void columns(const Run& run, int64_t t, int64_t begin, int64_t end) const override;
};

struct SelectOp : RowOp {
  Buffer x, out;
  SelectOp(Buffer x_, Buffer o) : x(x_), out(o) {}
  void row(const Run& run, int64_t t) const override;
};

} // namespace lltool
