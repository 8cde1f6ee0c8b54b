// The operations of a Program; their meaning is in engine/program.py.
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

struct NormOp : RowOp {
  Buffer x, out;
  std::vector<float> weight;
  float eps;
  int groups;
  NormOp(Buffer x_, Buffer o, std::vector<float> w, float e, int g) : x(x_), out(o), weight(std::move(w)), eps(e), groups(g) {}
  void row(const Run& run, int64_t t) const override;
};

struct LinearOp : Op {
  struct Part {
    Buffer out;
    Matrix weight;
    std::vector<float> bias; // empty: none
  };
  Buffer x;
  std::vector<Part> parts;
  bool has_residual;
  Buffer residual;
  bool int8, floats; // which activations the parts want
  LinearOp(Buffer x_, std::vector<Part> p, bool has, Buffer r, const Executor& executor);
  void run(const Run& run) const override;

private:
  void prepare(const Run& run, bool panels) const;
  void multiply(const Run& run, const Part& part, int64_t begin, int64_t end, bool panels, Quantized few) const;
};

struct RopeOp : RowOp {
  Buffer x, out;
  int head_dim, table;
  bool interleaved;
  RopeOp(Buffer x_, Buffer o, int d, int t, bool i) : x(x_), out(o), head_dim(d), table(t), interleaved(i) {}
  void row(const Run& run, int64_t t) const override;
};

// Operations on each element: out = f(x, y), row by row.
struct ElementwiseOp : RowOp {
  enum class Kind { silu, gelu_tanh, add, scale, softcap };
  Kind kind;
  Buffer x, y, out;
  float factor;
  ElementwiseOp(Kind k, Buffer x_, Buffer y_, Buffer o, float f) : kind(k), x(x_), y(y_), out(o), factor(f) {}
  void row(const Run& run, int64_t t) const override;
};

struct SelectOp : RowOp {
  Buffer x, out;
  SelectOp(Buffer x_, Buffer o) : x(x_), out(o) {}
  void row(const Run& run, int64_t t) const override;
};

} // namespace lltool
