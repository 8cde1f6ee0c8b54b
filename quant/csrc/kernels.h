// The operations of this module, as one table per instruction set.
#pragma once
#include <cstdint>

#include "checked.h"
#include "isas.h" // which CMake writes

namespace lltool {

// The first row that cannot be encoded, and the reason. The last two reasons apply to every row.
struct Fault {
  int64_t row = -1;
  enum { none, not_finite, too_large, needs_importance, unknown_type } reason = none;
};

struct QuantKernels {
  const char* isa; // the instruction set that the table was compiled for
  Layout (*layout)(int type);
  // Decodes n weights (whole blocks). Returns false if the type is unknown.
  bool (*decode)(int type, const uint8_t* blocks, int64_t n, float* out);
  // Encodes rows of `columns` weights (whole blocks). `importance` is null or has `columns` entries.
  Fault (*encode)(int type, const float* x, int64_t rows, int64_t columns, const float* importance, uint8_t* out);
};

#define ROW(name, runs) extern const QuantKernels quant_##name;
LLTOOL_ISAS(ROW)
#undef ROW

} // namespace lltool
