// Sums of the squares of activations, column by column.
#pragma once
#include <cstdint>

#include "kernels.h"

namespace {

using lltool::observed_columns;

void add_squares(const float* x, int64_t stride, int64_t rows, int64_t n, double* sums) {
  constexpr int64_t block = 64; // rows that are summed in float before they are added to the double sums
  for (int64_t first = 0; first < rows; first += block) {
    const int64_t last = first + block < rows ? first + block : rows;
    float part[observed_columns] = {};
    for (int64_t t = first; t < last; ++t) {
      const float* row = x + t * stride;
      if (n == observed_columns) // a length that is known at compile time
        for (int64_t i = 0; i < observed_columns; ++i) part[i] += row[i] * row[i];
      else
        for (int64_t i = 0; i < n; ++i) part[i] += row[i] * row[i];
    }
    for (int64_t i = 0; i < n; ++i) sums[i] += double(part[i]);
  }
}

} // namespace
