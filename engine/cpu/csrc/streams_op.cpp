#include "streams_op.h"

#include <algorithm>
#include <cmath>

namespace lltool {

void MixStreamsOp::row(const Run& run, int64_t t) const {
  const Executor& e = run.executor;
  const int64_t width = out.width / outer;
  const float *from = e.at(z) + t * z.width, *by = e.at(coefficients) + t * coefficients.width;
  float* to = e.at(out) + t * out.width;
  std::copy_n(e.at(y) + t * y.width, y.width, to);
  for (int j = 0; j < outer; ++j, to += width)
    for (int i = 0; i < inner; ++i) add_scaled(to, from + i * width, *by++ + shift, width, to);
}

static double mean_square(const float* x, int64_t n) {
  double sum = 0;
  for (int64_t i = 0; i < n; ++i) sum += double(x[i]) * double(x[i]);
  return sum / double(n);
}

void MatchMagnitudeOp::row(const Run& run, int64_t t) const {
  const Executor& e = run.executor;
  const double wanted = mean_square(e.at(y) + t * y.width, y.width);
  for (int i = 0; i < streams; ++i) {
    const float* from = e.at(x) + t * x.width + i * y.width;
    const double found = std::max(mean_square(from, y.width), double(least));
    scale(from, from, float(std::sqrt(wanted / found)), y.width, e.at(out) + t * out.width + i * y.width);
  }
}

} // namespace lltool
