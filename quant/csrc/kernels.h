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

// The common form of a quantized type (formats.h); zeros if the type is unknown.
struct CodedForm {
  int group = 0, zero = 0, max_code = 0;
  bool has_min = false;
};

struct QuantKernels {
  const char* isa; // the instruction set that the table was compiled for
  Layout (*layout)(int type);
  // Decodes n weights (whole blocks). Returns false if the type is unknown.
  bool (*decode)(int type, const uint8_t* blocks, int64_t n, float* out);
  CodedForm (*coded_form)(int type);
  // The codes of n weights (whole blocks), and a scale and a minimum for each group. Returns false if the type is unknown.
  bool (*unpack)(int type, const uint8_t* blocks, int64_t n, uint8_t* codes, float* scale, float* min);
  // Encodes rows of `columns` weights (whole blocks). `importance` is null or has `columns` entries.
  Fault (*encode)(int type, const float* x, int64_t rows, int64_t columns, const float* importance, uint8_t* out);
};

#define ROW(name, runs) extern const QuantKernels quant_##name;
LLTOOL_ISAS(ROW)
#undef ROW

} // namespace lltool
