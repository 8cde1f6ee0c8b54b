// The operations of this module, one table an instruction set.
#pragma once
#include <cstdint>

namespace lltool {

// Why a row could not be encoded; `row` is the first such. The last two hold for any row.
struct Fault {
  int64_t row = -1;
  enum { none, not_finite, too_large, needs_importance, unknown_type } reason = none;
};

struct QuantKernels {
  // Decodes n weights (whole blocks). False when the type is not known.
  bool (*decode)(int type, const uint8_t* blocks, int64_t n, float* out);
  // Encodes rows of `columns` weights (whole blocks). `importance` is null or has `columns` entries.
  Fault (*encode)(int type, const float* x, int64_t rows, int64_t columns, const float* importance, uint8_t* out);
};

extern const QuantKernels quant_scalar, quant_avx2, quant_avx512, quant_neon;

} // namespace lltool
