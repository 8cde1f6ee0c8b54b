#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/pair.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/tuple.h>
#include <nanobind/stl/vector.h>

#include <algorithm>
#include <array>
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

// Throws std::invalid_argument unless the array has `wanted` items a row, or is not there and none are wanted.
template <class Plane> static void require_plane(const std::optional<Plane>& plane, int64_t rows, int64_t wanted) {
  if (!plane) return;
  lltool::require(int64_t(plane->shape(0)) == rows && int64_t(plane->shape(1)) == wanted, "planes: shapes do not agree");
  lltool::require_aligned(*plane);
}

static void planes(int type, Array<const uint8_t, 2> blocks, std::optional<Array<uint8_t, 2>> fours,
                   std::optional<Array<uint8_t, 2>> twos, std::optional<Array<uint8_t, 2>> ones,
                   std::optional<Array<uint8_t, 2>> eights, std::optional<Array<const uint8_t, 1>> table,
                   Array<float, 2> scale, std::optional<Array<float, 2>> min, int threads) {
  const auto* chosen = kernels;
  const lltool::CodedForm form = chosen->coded_form(type);
  const int64_t rows = int64_t(blocks.shape(0)), width = int64_t(blocks.shape(1));
  lltool::require(form.group > 0, "planes: the type has no codes");
  lltool::require_threads(threads);
  const int64_t columns = lltool::checked_mul(int64_t(scale.shape(1)), form.group), groups = columns / form.group;
  lltool::require_row("planes", type, chosen->layout(type), columns, width);
  lltool::require(columns % 32 == 0 && int64_t(scale.shape(0)) == rows, "planes: shapes do not agree");
  lltool::require(!form.has_min || min, "planes: the type has minima");
  lltool::require_aligned(scale);
  require_plane(fours, rows, columns / 2);
  require_plane(twos, rows, columns / 4);
  require_plane(ones, rows, columns / 8);
  require_plane(eights, rows, columns);
  require_plane(min, rows, groups);
  // The number that is stored for a code: its place in the table, or the code itself.
  std::array<uint8_t, 256> stored{};
  for (int code = 0; code < 256; ++code) stored[size_t(code)] = uint8_t(code);
  if (table)
    for (size_t i = table->shape(0); i-- > 0;) stored[table->data()[i]] = uint8_t(i);
  nb::gil_scoped_release release;
  lltool::share_rows(rows, chunk_of(columns), threads, [&](int64_t first, int64_t last) {
    std::vector<uint8_t> unpacked(static_cast<size_t>(columns));
    std::vector<float> unused(static_cast<size_t>(groups));
    for (int64_t row = first; row < last; ++row) {
      float* minima = min ? min->data() + row * groups : unused.data();
      chosen->unpack(type, blocks.data() + row * width, columns, unpacked.data(), scale.data() + row * groups, minima);
      for (auto& code : unpacked) code = stored[code];
      for (int64_t at = 0; at < columns; at += 32) {
        const uint8_t* codes = unpacked.data() + at;
        int shift = 0; // the bits that the planes before this one hold
        if (fours) {
          uint8_t* out = fours->data() + (row * columns + at) / 2;
          for (int i = 0; i < 16; ++i) out[i] = uint8_t((codes[i] & 15) | (codes[16 + i] & 15) << 4);
          shift = 4;
        }
        if (twos) {
          uint8_t* out = twos->data() + (row * columns + at) / 4;
          const auto pair = [&](int i) { return codes[i] >> shift & 3; };
          for (int i = 0; i < 8; ++i) out[i] = uint8_t(pair(i) | pair(8 + i) << 2 | pair(16 + i) << 4 | pair(24 + i) << 6);
          shift += 2;
        }
        if (ones) {
          uint8_t* out = ones->data() + (row * columns + at) / 8;
          for (int i = 0; i < 4; ++i) {
            int byte = 0;
            for (int k = 0; k < 8; ++k) byte |= (codes[4 * k + i] >> shift & 1) << k;
            out[i] = uint8_t(byte);
          }
        }
        if (eights) std::copy_n(codes, 32, eights->data() + row * columns + at);
      }
    }
  });
}

static std::optional<std::tuple<int, int, int, bool>> coded_form(int type) {
  const lltool::CodedForm form = kernels->coded_form(type);
  if (!form.group) return {};
  return std::tuple{form.group, form.zero, form.max_code, form.has_min};
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
  m.def("coded_form", &coded_form, nb::arg("type"),
        "Of a quantized type: the weights of a group, the code of 0, the largest code, and whether groups have a minimum.");
  m.def("planes", &planes, nb::arg("type"), nb::arg("blocks").noconvert(), nb::arg("fours").none().noconvert(),
        nb::arg("twos").none().noconvert(), nb::arg("ones").none().noconvert(), nb::arg("eights").none().noconvert(),
        nb::arg("table").none().noconvert(), nb::arg("scale").noconvert(), nb::arg("min").none().noconvert(),
        nb::arg("threads"),
        "Splits the codes of rows into planes of 4, 2 and 1 bits, or whole bytes, and writes the groups' scales and minima.\n\n"
        "Of 32 codes, byte i of a plane of 4 bits has codes i and 16 + i; of 2 bits, codes i, 8 + i, 16 + i and 24 + i; of\n"
        "1 bit, codes 4 k + i. Lowest bits are in the widest plane. A `table` of codes stores their places in it instead.");
  m.def("can_encode", &can_encode, nb::arg("type"));
  m.def("needs_importance", &needs_importance, nb::arg("type"), "Whether `encode` requires importance for this type.");
  m.def("encode", &encode, nb::arg("type"), nb::arg("values").noconvert(), nb::arg("importance").none().noconvert(),
        nb::arg("out").noconvert(), nb::arg("threads"),
        "Returns None, or the first row that cannot be encoded and the reason: 'not finite' or 'too large'.");
}
