#include "low_rank_bindings.h"

#include <nanobind/stl/optional.h>
#include <nanobind/stl/pair.h>
#include <nanobind/stl/vector.h>

#include "low_rank_op.h"

namespace lltool {

namespace {

// The factors as Python gives them, as bytes: `down` is (columns, padded), `up` (rank, columns of the output); of a stack, the
// rows of all experts follow one another.
struct Factors {
  int adapter;
  double factor;
  int64_t output;
  int type;
  Bytes2 down, up;
};

} // namespace

static LowRankUpdate checked(Session& s, const Factors& f, int64_t inputs, const std::vector<Place>& outs, int64_t experts) {
  require(f.type == int(FactorType::f32) || f.type == int(FactorType::f16) || f.type == int(FactorType::bf16), "low_rank: no such type");
  const FactorType type = FactorType(f.type);
  const int64_t size = factor_bytes(type), padded = int64_t(f.down.shape(1)) / size;
  require(int64_t(f.down.shape(1)) % size == 0, "low_rank: rows that end within a number");
  require(f.adapter >= 0 && f.adapter < max_adapters, "low_rank: adapters have numbers from 0 to 65535");
  require(f.output >= 0 && size_t(f.output) < outs.size(), "low_rank: no such output");
  require(padded > 0 && padded % low_rank_unit == 0 && f.up.shape(0) > 0 && int64_t(f.up.shape(0)) % experts == 0, "low_rank: no such rank");
  const int64_t rank = int64_t(f.up.shape(0)) / experts;
  require(rank <= padded && int64_t(f.down.shape(0)) == checked_mul(inputs, experts) &&
              int64_t(f.up.shape(1)) == checked_mul(outs[size_t(f.output)].second, size),
          "low_rank: shapes do not agree");
  require_finite({f.factor});
  s.keep(f.down), s.keep(f.up);
  s.adapters = std::max(s.adapters, f.adapter + 1);
  return {f.adapter, float(f.factor), size_t(f.output), type, f.down.data(), f.up.data(), rank, padded};
}

static void add_low_rank(Session& s, Place x, std::vector<Place> outs, const std::vector<Factors*>& updates, std::optional<Place> chosen,
                         bool assigned) {
  const auto lock = s.build();
  require(!outs.empty() && !updates.empty(), "low_rank: nothing to add");
  require(chosen || !assigned, "low_rank: rows of assignments without a choice of experts");
  if (chosen) s.require_body("low_rank: the head has no experts");
  const Assignments* a = chosen ? &s.assignments(*chosen) : nullptr;
  const int64_t of_x = assigned ? a->used : 1, of_out = a ? a->used : 1;
  require(x.second % of_x == 0, "low_rank: shapes do not agree");
  s.check({x}, nullptr, -1);
  std::vector<Buffer> rows;
  std::vector<Place> each;
  for (Place out : outs) {
    require(out != x && out.second % of_out == 0, "low_rank: shapes do not agree");
    s.check({out}, &out, -1);
    each.emplace_back(out.first, out.second / of_out);
    rows.push_back(buffer(each.back()));
  }
  std::vector<LowRankUpdate> checked_updates;
  for (const Factors* f : updates) {
    require(f != nullptr, "low_rank: no factors");
    checked_updates.push_back(checked(s, *f, x.second / of_x, each, a ? a->experts : 1));
  }
  s.add_op(std::make_unique<LowRankOp>(Buffer{x.first, x.second / of_x}, std::move(rows), std::move(checked_updates), a, assigned,
                                       s.places.in_head(), s.low_rank_space, s.executor));
}

static void add_low_rank_embed(Session& s, Place out, const std::vector<Factors*>& updates) {
  const auto lock = s.build();
  s.require_body("low_rank_embed: the head has no tokens");
  s.check({out}, &out, -1);
  std::vector<LowRankUpdate> checked_updates;
  for (const Factors* f : updates) {
    require(f != nullptr, "low_rank_embed: no factors");
    require(int64_t(f->down.shape(0)) >= s.token_ids(), "low_rank_embed: wanted a row for each token");
    checked_updates.push_back(checked(s, *f, int64_t(f->down.shape(0)), {out}, 1));
    s.executor.reserve_columns(checked_updates.back().padded);
  }
  s.add_row(std::make_unique<LowRankEmbedOp>(buffer(out), std::move(checked_updates)));
}

void bind_low_rank(nb::module_& m, nb::class_<Session>& executor) {
  m.attr("LOW_RANK_UNIT") = low_rank_unit;
  nb::class_<Factors>(m, "Factors")
      .def(
          "__init__",
          [](Factors* self, int adapter, double factor, int64_t output, int type, Bytes2 down, Bytes2 up) {
            new (self) Factors{adapter, factor, output, type, down, up};
          },
          nb::kw_only(), nb::arg("adapter"), nb::arg("factor"), nb::arg("output"), nb::arg("type"), nb::arg("down").noconvert(), nb::arg("up").noconvert());
  executor
      .def("low_rank", &add_low_rank, nb::kw_only(), nb::arg("x"), nb::arg("outs"), nb::arg("updates").noconvert(),
           nb::arg("chosen") = nb::none(), nb::arg("assigned") = false)
      .def("low_rank_embed", &add_low_rank_embed, nb::kw_only(), nb::arg("out"), nb::arg("updates").noconvert());
}

} // namespace lltool
