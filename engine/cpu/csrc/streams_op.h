// The operations of residual streams and what makes them alike; engine/operations/streams.py defines them.
#pragma once
#include "ops.h"

namespace lltool {

// out = y + C z, where y is `outer` streams, z is `inner` streams, and a row of C has a number for each pair.
struct MixStreamsOp : RowOp {
  Buffer y, z, coefficients, out;
  int outer, inner;
  float shift; // added to each coefficient
  ColumnFunction* add_scaled;
  MixStreamsOp(Buffer y_, Buffer z_, Buffer c, Buffer o, int n, int m, float s, ColumnFunction* f)
      : y(y_), z(z_), coefficients(c), out(o), outer(n), inner(m), shift(s), add_scaled(f) {}
  void row(const Run& run, int64_t t) const override;
};

// Each of `streams` parts of x, scaled to the magnitude of y.
struct MatchMagnitudeOp : RowOp {
  Buffer x, y, out;
  int streams;
  float least; // mean square of x that is divided by
  ColumnFunction* scale;
  MatchMagnitudeOp(Buffer x_, Buffer y_, Buffer o, int n, float l, ColumnFunction* f)
      : x(x_), y(y_), out(o), streams(n), least(l), scale(f) {}
  void row(const Run& run, int64_t t) const override;
};

} // namespace lltool
