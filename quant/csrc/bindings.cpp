#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/pair.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <algorithm>
#include <cmath>
#include <mutex>
#include <optional>
#include <stdexcept>

#include "checked.h"
#include "formats/codebooks.h"
#include "isa.h"
#include "kernels.h"
#include "together.h"

namespace nb = nanobind;

#define ROW(name, runs) &lltool::quant_##name,
static const lltool::QuantKernels* const tables[] = {LLTOOL_ISAS(ROW)};
#undef ROW
static const lltool::QuantKernels* kernels = &lltool::quant_scalar; // accessed only while holding the GIL

static void select_isa(const std::string& name) {
  kernels = &lltool::table_of(tables, name);
}

template <class T, int rank> using Array = nb::ndarray<T, nb::ndim<rank>, nb::c_contig, nb::device::cpu>;

// The number of rows that a thread takes at once, for about 128 thousand weights.
static int64_t chunk_of(int64_t columns) { return std::max<int64_t>(1, (1 << 17) / std::max<int64_t>(1, columns)); }

static void decode(int type, Array<const uint8_t, 2> blocks, Array<float, 2> out, int threads) {
  const auto* chosen = kernels;
  const int64_t rows = int64_t(out.shape(0)), columns = int64_t(out.shape(1)), width = int64_t(blocks.shape(1));
  lltool::require_threads(threads);
  lltool::require_aligned(out);
  lltool::require_row("decode", type, chosen->layout(type), columns, width);
  lltool::require(int64_t(blocks.shape(0)) == rows, "decode: shapes do not agree");
  nb::gil_scoped_release release;
  lltool::share_rows(rows, chunk_of(columns), threads, [&](int64_t first, int64_t last) {
    chosen->decode(type, blocks.data() + first * width, (last - first) * columns, out.data() + first * columns);
  });
}

static std::optional<std::pair<int64_t, int64_t>> layout(int type) {
  const lltool::Layout found = kernels->layout(type);
  if (!found.block) return {};
  return std::pair{found.block, found.bytes};
}

static auto fault_of_no_rows(int type) { return kernels->encode(type, nullptr, 0, 0, nullptr, nullptr).reason; }
static bool can_encode(int type) { return fault_of_no_rows(type) != lltool::Fault::unknown_type; }
static bool needs_importance(int type) { return fault_of_no_rows(type) == lltool::Fault::needs_importance; }

// Returns nothing, or the first row that cannot be encoded and the reason.
static std::optional<std::pair<int64_t, std::string>> encode(int type, Array<const float, 2> values,
                                                             std::optional<Array<const float, 1>> importance,
                                                             Array<uint8_t, 2> out, int threads) {
  const auto* chosen = kernels;
  const int64_t rows = int64_t(values.shape(0)), columns = int64_t(values.shape(1)), width = int64_t(out.shape(1));
  lltool::require_threads(threads);
  lltool::require_aligned(values);
  if (!can_encode(type) || (!importance && needs_importance(type)))
    throw std::invalid_argument("encode: no native encoder of type " + std::to_string(type) + ", or none without importance");
  lltool::require_row("encode", type, chosen->layout(type), columns, width);
  lltool::require(int64_t(out.shape(0)) == rows && (!importance || int64_t(importance->size()) == columns),
                  "encode: shapes do not agree");
  if (importance) {
    lltool::require_aligned(*importance);
    const float* all = importance->data();
    lltool::require(std::all_of(all, all + columns, [](float x) { return x >= 0 && std::isfinite(x); }),
                    "encode: importance is negative, infinite or NaN");
  }
  lltool::Fault worst;
  std::mutex mutex;
  {
    nb::gil_scoped_release release;
    const float* important = importance ? importance->data() : nullptr;
    lltool::share_rows(rows, chunk_of(columns), threads, [&](int64_t first, int64_t last) {
      const auto fault = chosen->encode(type, values.data() + first * columns, last - first, columns, important,
                                         out.data() + first * width);
      if (fault.reason == lltool::Fault::none) return;
      const std::lock_guard lock(mutex);
      if (worst.reason == lltool::Fault::none || first + fault.row < worst.row)
        worst = {first + fault.row, fault.reason};
    });
  }
  if (worst.reason == lltool::Fault::none) return {};
  return std::pair{worst.row, worst.reason == lltool::Fault::not_finite ? "not finite" : "too large"};
}

template <class Word, int N> static nb::object codebook_of(const Book<Word, N>& book) {
  const auto* values = reinterpret_cast<const uint8_t*>(book.entry);
  return nb::cast(nb::ndarray<nb::numpy, const uint8_t, nb::ndim<2>>(values, {size_t(N), sizeof(Word)}, nb::handle()));
}

static nb::object codebook(const std::string& name) {
  if (name == "iq1") return codebook_of(book_iq1);
  if (name == "iq2_xxs") return codebook_of(book_iq2_xxs);
  if (name == "iq2_xs") return codebook_of(book_iq2_xs);
  if (name == "iq2_s") return codebook_of(book_iq2_s);
  if (name == "iq3_xxs") return codebook_of(book_iq3_xxs);
  if (name == "iq3_s") return codebook_of(book_iq3_s);
  throw std::invalid_argument("no codebook is named " + name);
}

NB_MODULE(_native, m) {
  m.def("available_isas", &lltool::available_isas, "The instruction sets that this processor can run, best first.");
  m.def("built_isas", [] { return lltool::names_of(tables); }, "The instruction sets that this module contains, best first.");
  m.def("select_isa", &select_isa, nb::arg("name"));
  m.def("codebook", &codebook, nb::arg("name"),
        "The entries of an IQ codebook, uint8 (entries, weights); for IQ1, in eighths above -1.",
        nb::sig("def codebook(name: str) -> NDArray[numpy.uint8]"));
  m.def("layout", &layout, nb::arg("type"),
        "The weights and the bytes of a block, or None for a type that this module does not decode.");
  m.def("decode", &decode, nb::arg("type"), nb::arg("blocks").noconvert(), nb::arg("out").noconvert(), nb::arg("threads"));
  m.def("can_encode", &can_encode, nb::arg("type"));
  m.def("needs_importance", &needs_importance, nb::arg("type"), "Whether `encode` requires importance for this type.");
  m.def("encode", &encode, nb::arg("type"), nb::arg("values").noconvert(), nb::arg("importance").none().noconvert(),
        nb::arg("out").noconvert(), nb::arg("threads"),
        "Returns None, or the first row that cannot be encoded and the reason: 'not finite' or 'too large'.");
}
