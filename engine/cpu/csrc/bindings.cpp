#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/pair.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <algorithm>
#include <limits>
#include <stdexcept>

#include "attention_op.h"
#include "isa.h"
#include "low_rank_bindings.h"
#include "probe.h"
#include "recurrent_bindings.h"
#include "routing_bindings.h"
#include "sampling_bindings.h"
#include "session.h"
#include "streams_bindings.h"

namespace nb = nanobind;
using namespace lltool;

// A matrix of a linear with its output.
struct Product {
  Place out;
  int type;
  Bytes2 data;
  std::optional<Floats> bias;
  int part, parts; // of a stack: which of so many equal parts of each expert's rows
};

// A function of the table of kernels, with the weights and the number of columns of a unit.
struct Function {
  std::string name;
  std::optional<Floats> vector;
  double factor;
  int64_t unit;
};

static std::unique_ptr<FunctionOp> make_function(const Session& s, const Function& f, Place x, Place y, Place out) {
  const NamedFunction& known = s.executor.kernels.function(f.name);
  const int64_t weights = f.vector ? int64_t(f.vector->size()) : 0;
  require(f.unit > 0 && x.second % f.unit == 0 && y.second == x.second && out.second == x.second &&
              weights == checked_mul(known.vectors, f.unit) && (known.vectors > 0 ? y == x : f.unit == 1),
          "function: shapes do not agree");
  require_finite({f.factor});
  require(float(f.factor) >= known.least_factor, "function: the factor is too small");
  return std::make_unique<FunctionOp>(known, buffer(x), buffer(y), buffer(out), floats_or_none(f.vector), float(f.factor), f.unit);
}

static void add_function(Session& s, const Function& function, Place x, std::optional<Place> y, Place out, int group) {
  const auto lock = s.build();
  const Place second = y.value_or(x);
  auto op = make_function(s, function, x, second, out);
  s.check({x, second}, &out, group);
  s.add(std::move(op), {x, second}, &out, group);
}

static void add_linear(Session& s, Place x, const std::vector<std::vector<Product>>& groups, std::optional<Place> residual,
                       std::optional<Function> norm) {
  const auto lock = s.build();
  std::vector<LinearOp::Group> made(groups.size());
  std::vector<Place> outs;
  std::vector<int64_t> widths;
  require(!groups.empty(), "linear: no weight");
  for (size_t g = 0; g < groups.size(); ++g) {
    require(!groups[g].empty(), "linear: a group without a weight");
    widths.push_back(groups[g][0].out.second);
    for (const Product& p : groups[g]) {
      const int64_t rows = int64_t(p.data.shape(0));
      require(p.parts == 1 && p.part == 0 && rows == p.out.second && (!p.bias || int64_t(p.bias->size()) == rows) && rows == widths[g] &&
                  (!residual || residual->second == rows),
              "linear: shapes do not agree");
      require(p.out != x && (!residual || p.out != *residual) && std::find(outs.begin(), outs.end(), p.out) == outs.end(),
              "linear: an output in the place of an input or of another output");
      outs.push_back(p.out);
      if (p.bias) require_aligned(*p.bias);
      made[g].parts.push_back({buffer(p.out), s.matrix("linear", p.type, x.second, p.data)});
    }
  }
  std::unique_ptr<NormOp> before;
  if (norm) before = make_function(s, *norm, x, x, x);
  s.check({x}, nullptr, -1);
  if (residual) s.check({*residual}, nullptr, -1);
  for (const Place& out : outs) s.check({}, &out, -1);
  s.executor.reserve_columns(x.second);
  s.add_linear(std::make_unique<LinearOp>(buffer(x), std::move(made), std::move(before), s.executor), x, widths);
  const NamedFunction& add = s.executor.kernels.function("add");
  for (size_t g = 0; g < groups.size(); ++g)
    for (const Product& p : groups[g]) {
      const Buffer out = buffer(p.out);
      s.keep(p.data);
      s.made_by_linear(g, p.out, residual);
      if (p.bias) s.add(std::make_unique<FunctionOp>(add, out, out, out, floats(*p.bias), 0.0f, 1), {}, &p.out, int(g));
      if (residual)
        s.add(std::make_unique<FunctionOp>(add, out, buffer(*residual), out, std::vector<float>(), 0.0f, 1), {*residual}, &p.out, int(g));
    }
}

// A stack of matrices, one for each head; what they do not multiply of a head follows what they make.
static void add_head_linear(Session& s, Place x, Place out, int type, Bytes2 data, int heads, int64_t columns) {
  const auto lock = s.build();
  require(heads > 0 && heads <= max_experts && x.second % heads == 0 && out.second % heads == 0 && columns > 0 && columns <= x.second / heads,
          "head_linear: shapes do not agree");
  const Matrix weight = s.stack("head_linear", type, columns, data, heads);
  require(out.second / heads == weight.rows + x.second / heads - columns, "head_linear: shapes do not agree");
  require(out != x, "head_linear: the output in the place of an input");
  s.check({x}, &out, -1);
  s.keep(data);
  s.add_op(std::make_unique<HeadLinearOp>(buffer(x), buffer(out), weight, heads, s.executor));
  s.places.make(buffer(out));
}

static void add_concatenate(Session& s, Place x, Place y, Place out) {
  const auto lock = s.build();
  require(x.second + y.second == out.second && out != x && out != y, "concatenate: shapes do not agree");
  s.check({x, y}, &out, -1);
  s.add_row(std::make_unique<ConcatenateOp>(buffer(x), buffer(y), buffer(out)));
  s.places.make(buffer(out));
}

static void add_rope(Session& s, Place x, Place out, int head_dim, const std::vector<double>& frequencies, double magnitude,
                     bool interleaved, int first, int group) {
  const auto lock = s.build();
  require(head_dim > 0 && x.second % head_dim == 0 && out.second == x.second && first >= 0 && first <= head_dim &&
              2 * frequencies.size() <= size_t(head_dim - first),
          "rope: shapes do not agree");
  require_finite({magnitude});
  for (double frequency : frequencies) require_finite({frequency});
  s.require_body("rope: the head has no positions");
  s.check({x}, &out, group);
  const int table = s.executor.add_rope_table({frequencies.begin(), frequencies.end()}, float(magnitude));
  s.add(std::make_unique<RopeOp>(buffer(x), buffer(out), head_dim, first, table, interleaved), {x}, &out, group);
}

static void add_scale_by_position(Session& s, Place x, Place out, double factor, int length, int offset, int group) {
  const auto lock = s.build();
  require(out.second == x.second && length > 0 && offset >= 0, "scale_by_position: shapes do not agree");
  require_finite({factor});
  s.require_body("scale_by_position: the head has no positions");
  s.check({x}, &out, group);
  const NamedFunction& scale = s.executor.kernels.function("scale");
  s.add(std::make_unique<ScaleByPositionOp>(buffer(x), buffer(out), scale.run, factor, length, offset), {x}, &out, group);
}

// Without v, a value is the beginning of its key. Unless it `stores`, an attention before it has stored these keys and values.
static void add_attention(Session& s, Place q, Place k, std::optional<Place> v, Place out, int layer, int heads, int kv_heads, int head_dim,
                          double scale, int window, int chunk, double softcap, std::optional<Floats> sinks, std::optional<Floats> slopes,
                          std::optional<Floats> common_key, std::optional<Floats> biases, bool stores, bool causal, std::pair<int, int> groups) {
  const auto lock = s.build();
  require(layer >= 0 && window >= 0 && chunk >= 0 && head_dim > 0 && kv_heads > 0 && heads > 0 && heads % kv_heads == 0,
          "attention: wanted whole groups of heads");
  require(layer < max_layers && head_dim <= max_head_dim && heads / kv_heads <= attention_rows,
          "attention: a layer's number, a head or a group is too large");
  const int64_t value_dim = out.second / heads;
  require(value_dim > 0 && value_dim <= max_head_dim, "attention: a head of values is too large, or there is none");
  require(q.second == int64_t(heads) * head_dim && k.second == int64_t(kv_heads) * head_dim &&
              (v ? v->second == kv_heads * value_dim : value_dim <= head_dim) && out.second == heads * value_dim,
          "attention: shapes do not agree");
  require(!sinks || int64_t(sinks->size()) == heads, "attention: wanted a sink for each head or none");
  require(!slopes || int64_t(slopes->size()) == heads, "attention: wanted a slope for each head or none");
  constexpr int64_t least_biases = 1 + bias_padding;
  require(!biases || (int64_t(biases->size()) % heads == 0 && int64_t(biases->size()) / heads >= least_biases &&
                      (int64_t(biases->size()) / heads - least_biases) % 2 == 0),
          "attention: wanted as many biases of keys before as of keys after a query");
  require(!common_key || int64_t(common_key->size()) == k.second, "attention: wanted a common key of all heads or none");
  require_finite({scale, softcap});
  require(softcap >= 0, "attention: softcap is negative");
  s.require_body("attention: the head has no positions");
  s.check({q}, &out, -1);
  s.check({k}, nullptr, groups.first);
  if (v) s.check({*v}, nullptr, groups.second);
  require(out != q && out != k && (!v || out != *v), "attention: the output in the place of an input");
  auto op = std::make_unique<AttentionOp>();
  op->q = buffer(q), op->out = buffer(out);
  op->layer = layer, op->heads = heads, op->kv_heads = kv_heads, op->head_dim = head_dim, op->value_dim = int(value_dim);
  op->scale = float(scale), op->softcap = float(softcap), op->sinks = floats_or_none(sinks), op->slopes = floats_or_none(slopes);
  op->biases = floats_or_none(biases);
  if (biases) op->bias_reach = int((int64_t(biases->size()) / heads - least_biases) / 2);
  op->values_are_keys = !v;
  op->window = causal || window == 0 ? window : window / 2 + 1; // with its own position, as for causal attention
  op->ahead = causal ? 0 : window ? window / 2 : std::numeric_limits<int>::max();
  s.executor.add_cache_layer(layer, heads, kv_heads, head_dim, int(value_dim), !v, !causal, stores);
  op->tiling = s.executor.add_tiling(heads / kv_heads, op->window, op->ahead, chunk);
  const int64_t block = transformed_block(head_dim, v ? 0 : value_dim);
  if (stores) s.add(std::make_unique<StoreOp>(buffer(k), head_dim, layer, true, block, floats_or_none(common_key)), {k}, nullptr, groups.first);
  if (stores && v)
    s.add(std::make_unique<StoreOp>(buffer(*v), int(value_dim), layer, false, transformed_block(value_dim), std::vector<float>()), {*v},
          nullptr, groups.second);
  s.add_op(std::move(op));
  s.places.make(buffer(out));
}

// Buffers of assignments have `used` rows for each token, and a place as wide as all of them.
static void add_experts(Session& s, Place x, bool assigned, Place chosen, const std::vector<Product>& products,
                        std::optional<Function> activation, std::optional<Place> out) {
  const auto lock = s.build();
  s.require_body("experts: the head has no experts");
  const Assignments& a = s.assignments(chosen);
  const int64_t rows = assigned ? a.used : 1;
  require(x.second % rows == 0 && !products.empty(), "experts: shapes do not agree");
  const Buffer from{x.first, x.second / rows};
  std::vector<ExpertsOp::Part> parts;
  std::vector<Place> outs;
  for (const Product& p : products) {
    Matrix weight = s.stack("experts", p.type, from.width, p.data, a.experts);
    const int64_t step = weight.rows * weight.row_bytes;
    require(p.parts >= 1 && p.part >= 0 && p.part < p.parts && weight.rows % p.parts == 0, "experts: wanted one of equal parts");
    weight.rows /= p.parts;
    weight.data += p.part * weight.rows * weight.row_bytes;
    require(p.out.second == weight.rows * a.used && p.out.second == products[0].out.second &&
                (!p.bias || int64_t(p.bias->size()) == weight.rows * a.experts),
            "experts: shapes do not agree");
    require(p.out != x && p.out != chosen && std::find(outs.begin(), outs.end(), p.out) == outs.end(),
            "experts: an output in the place of an input or of another output");
    outs.push_back(p.out);
    parts.push_back({{p.out.first, weight.rows}, weight, step, floats_or_none(p.bias)});
  }
  ExpertsOp::Activation after;
  require(activation.has_value() == out.has_value(), "experts: an activation and its output belong together");
  if (activation) {
    const NamedFunction& known = s.executor.kernels.function(activation->name);
    require(parts.size() == 2 && known.vectors == 0 && !activation->vector && out->second == outs[0].second && *out != x && *out != chosen,
            "experts: shapes do not agree");
    after = {known.run, {out->first, parts[0].weight.rows}};
    outs.push_back(*out);
  }
  s.check({x}, nullptr, -1);
  for (const Place& made : outs) s.check({}, &made, -1);
  for (const Product& p : products) s.keep(p.data);
  s.add_op(std::make_unique<ExpertsOp>(from, assigned, a, std::move(parts), after, s.executor));
  for (const Place& made : outs) s.places.make(buffer(made));
}

static void add_observer(Session& s, Place x, std::optional<Place> chosen, bool assigned) {
  const auto lock = s.build();
  s.check({x}, nullptr, -1);
  const Assignments* a = chosen ? &s.assignments(*chosen) : nullptr;
  const int64_t rows = a && assigned ? a->used : 1;
  require(x.second % rows == 0, "observe: shapes do not agree");
  auto op = std::make_unique<ObserveOp>(Buffer{x.first, x.second / rows}, a, assigned);
  s.observers.push_back(op.get());
  s.add_op(std::move(op));
}

NB_MODULE(_native, m) {
  m.attr("PAGE_TOKENS") = page_tokens;
  m.attr("MAX_HEAD_DIM") = max_head_dim;
  m.attr("MAX_DELTA_DIM") = max_delta_dim;
  m.attr("MAX_GROUP") = attention_rows; // query heads per key/value head
  m.attr("BIAS_PADDING") = bias_padding;
  m.def("available_isas", &available_isas, "Instruction sets this processor can run, best first.");
  m.def("built_isas", &built_isas, "Instruction sets that this module was compiled for, best first.");
  m.def("probe_read", [](const std::string& isa, int threads, Array1<uint8_t> data, double seconds) {
    nb::gil_scoped_release release;
    return probe_read(isa, threads, data.data(), int64_t(data.size()), seconds);
  }, nb::arg("isa"), nb::arg("threads"), nb::arg("data").noconvert(), nb::arg("seconds"), "Bytes a second.");
  m.def("probe_multiply", [](const std::string& isa, int threads, const std::string& kind, double seconds) {
    nb::gil_scoped_release release;
    return probe_multiply(isa, threads, kind, seconds);
  }, nb::arg("isa"), nb::arg("threads"), nb::arg("kind"), nb::arg("seconds"), "Multiply-adds a second of int8, int16 or float32.");
  nb::class_<Product>(m, "Product")
      .def(nb::init<Place, int, Bytes2, std::optional<Floats>, int, int>(), nb::kw_only(), nb::arg("out"), nb::arg("type"),
           nb::arg("data").noconvert(), nb::arg("bias").noconvert() = nb::none(), nb::arg("part") = 0, nb::arg("parts") = 1);
  nb::class_<Function>(m, "Function")
      .def(nb::init<std::string, std::optional<Floats>, double, int64_t>(), nb::kw_only(), nb::arg("name"),
           nb::arg("vector").noconvert() = nb::none(), nb::arg("factor") = 0.0, nb::arg("unit") = 1);
  bind_sampling(m);
  nb::class_<Session> executor(m, "Executor");
  bind_recurrent(executor);
  bind_streams(executor);
  bind_routing(executor);
  bind_low_rank(m, executor);
  executor
      .def(
          "__init__",
          [](Session* self, const std::string& isa, Team decode, Team batch, int poll, int max_batch, int head_rows,
             int64_t arena_width, int64_t vocabulary, int64_t pages, int64_t slots, bool int8, int k_type, int v_type, bool deterministic) {
            new (self) Session(checked(Settings{isa, 0, max_batch, head_rows, arena_width, vocabulary, pages, slots, int8, {}, {},
                                                deterministic, std::move(decode), std::move(batch), poll}, k_type, v_type));
          },
          nb::kw_only(), nb::arg("isa"), nb::arg("decode"), nb::arg("batch"), nb::arg("poll"), nb::arg("max_batch"),
          nb::arg("head_rows"), nb::arg("arena_width"), nb::arg("vocabulary"), nb::arg("pages"), nb::arg("slots"), nb::arg("int8"),
          nb::arg("k_type"), nb::arg("v_type"), nb::arg("deterministic"))
      // An operation is added by its name, with named arguments.
      .def("embed", &Session::embed, nb::kw_only(), nb::arg("out"), nb::arg("type"), nb::arg("data").noconvert(), nb::arg("scale"),
           nb::arg("by") = "token")
      .def("function", &add_function, nb::kw_only(), nb::arg("function").noconvert(), nb::arg("x"), nb::arg("y") = nb::none(),
           nb::arg("out"), nb::arg("group") = -1)
      .def("linear", &add_linear, nb::kw_only(), nb::arg("x"), nb::arg("groups").noconvert(), nb::arg("residual") = nb::none(),
           nb::arg("norm").noconvert() = nb::none())
      .def("head_linear", &add_head_linear, nb::kw_only(), nb::arg("x"), nb::arg("out"), nb::arg("type"), nb::arg("data").noconvert(),
           nb::arg("heads"), nb::arg("columns"))
      .def("concatenate", &add_concatenate, nb::kw_only(), nb::arg("x"), nb::arg("y"), nb::arg("out"))
      .def("rope", &add_rope, nb::kw_only(), nb::arg("x"), nb::arg("out"), nb::arg("head_dim"), nb::arg("frequencies"),
           nb::arg("magnitude"), nb::arg("interleaved"), nb::arg("first") = 0, nb::arg("group") = -1)
      .def("scale_by_position", &add_scale_by_position, nb::kw_only(), nb::arg("x"), nb::arg("out"), nb::arg("factor"),
           nb::arg("length"), nb::arg("offset") = 0, nb::arg("group") = -1)
      .def("attention", &add_attention, nb::kw_only(), nb::arg("q"), nb::arg("k"), nb::arg("v").none(), nb::arg("out"), nb::arg("layer"),
           nb::arg("heads"), nb::arg("kv_heads"), nb::arg("head_dim"), nb::arg("scale"), nb::arg("window") = 0, nb::arg("chunk") = 0,
           nb::arg("softcap") = 0.0, nb::arg("sinks").noconvert() = nb::none(), nb::arg("slopes").noconvert() = nb::none(),
           nb::arg("common_key").noconvert() = nb::none(), nb::arg("biases").noconvert() = nb::none(), nb::arg("stores") = true,
           nb::arg("causal") = true,
           nb::arg("groups") = std::pair<int, int>(-1, -1))
      .def("select", &Session::select, nb::kw_only(), nb::arg("x"), nb::arg("out"), nb::arg("mean") = false)
      .def("experts", &add_experts, nb::kw_only(), nb::arg("x"), nb::arg("assigned"), nb::arg("chosen"), nb::arg("products").noconvert(),
           nb::arg("activation").noconvert() = nb::none(), nb::arg("out") = nb::none())
      .def("split", &Session::split, nb::kw_only(), nb::arg("x"), nb::arg("outs"), nb::arg("groups"))
      .def("observe", &add_observer, nb::kw_only(), nb::arg("x"), nb::arg("chosen") = nb::none(), nb::arg("assigned") = false)
      .def("take_sums", [](Session& s, size_t observer, Array<double, 2> sums, Array<int64_t> rows) {
        const auto lock = s.claim();
        require(observer < s.observers.size() && sums.shape(1) == s.observers[observer]->width() &&
                    int64_t(sums.shape(0)) == s.observers[observer]->experts() && rows.size() == sums.shape(0),
                "take_sums: shapes do not agree");
        require_aligned(sums), require_aligned(rows);
        s.observers[observer]->take(sums.data(), rows.data());
      }, nb::arg("observer"), nb::arg("sums").noconvert(), nb::arg("rows").noconvert())
      .def("operations", [](Session& s) {
        const auto lock = s.claim();
        return s.executor.operations();
      })
      .def("take_times", [](Session& s) {
        const auto lock = s.ready();
        return s.executor.take_times();
      })
      .def("finish", &Session::finish)
      .def("run", &Session::run, nb::arg("ids").noconvert(), nb::arg("positions").noconvert(), nb::arg("sequences").noconvert(),
           nb::arg("tables").noconvert(), nb::arg("outputs").noconvert(), nb::arg("slots").noconvert(),
           nb::arg("types").noconvert() = nb::none(), nb::arg("scales").noconvert() = nb::none())
      .def("logits", [](Session& s, int64_t start, int64_t stop) {
        const auto lock = s.ready();
        const float* rows;
        {
          nb::gil_scoped_release release;
          rows = s.executor.logits(start, stop);
        }
        return nb::ndarray<const float, nb::numpy, nb::ndim<2>>(
            rows, {size_t(stop - start), size_t(s.executor.settings.vocabulary)}, nb::find(s));
      }, nb::arg("start"), nb::arg("stop"))
      .def("score", [](Session& s, int64_t start, Array1<int32_t> targets, Array<double> out) {
        const auto lock = s.ready();
        require(out.size() == targets.size(), "score: sizes do not agree");
        require_aligned(targets), require_aligned(out);
        nb::gil_scoped_release release;
        s.executor.score(start, int64_t(targets.size()), targets.data(), out.data());
      }, nb::arg("start"), nb::arg("targets").noconvert(), nb::arg("out").noconvert())
      .def("compare", [](Session& s, int64_t start, Rows base, Array1<int32_t> targets, Array<double, 2> out) {
        const auto lock = s.ready();
        const size_t rows = targets.size();
        require(base.shape(0) == rows && int64_t(base.shape(1)) == s.executor.settings.vocabulary && out.shape(0) == rows &&
                    out.shape(1) == compared_columns,
                "compare: shapes do not agree");
        require_aligned(base), require_aligned(targets), require_aligned(out);
        nb::gil_scoped_release release;
        s.executor.compare(start, int64_t(rows), base.data(), targets.data(), out.data());
      }, nb::arg("start"), nb::arg("base").noconvert(), nb::arg("targets").noconvert(), nb::arg("out").noconvert())
      .def("copy_page", [](Session& s, int64_t source, int64_t target) {
        const auto lock = s.ready();
        s.executor.copy_page(source, target);
      }, nb::arg("source"), nb::arg("target"))
      .def("copy_slot", [](Session& s, int64_t source, int64_t target) {
        const auto lock = s.ready();
        s.executor.copy_slot(source, target);
      }, nb::arg("source"), nb::arg("target"))
      .def("page_bytes", [](Session& s) { return s.executor.page_bytes; })
      .def("slot_bytes", [](Session& s) { return s.executor.slot_bytes(); })
      .def("read_page", [](Session& s, int64_t page) {
        const auto lock = s.ready();
        return nb::bytes(s.executor.page_data(page), size_t(s.executor.page_bytes));
      }, nb::arg("page"))
      .def("read_slot", [](Session& s, int64_t slot) {
        const auto lock = s.ready();
        return nb::bytes(s.executor.slot_data(slot), size_t(s.executor.slot_bytes()));
      }, nb::arg("slot"))
      .def("write_page", [](Session& s, int64_t page, nb::bytes data) {
        const auto lock = s.ready();
        require(int64_t(data.size()) == s.executor.page_bytes, "write_page: the bytes of a page");
        std::memcpy(s.executor.page_data(page), data.data(), data.size());
      }, nb::arg("page"), nb::arg("data"))
      .def("write_slot", [](Session& s, int64_t slot, nb::bytes data) {
        const auto lock = s.ready();
        require(int64_t(data.size()) == s.executor.slot_bytes(), "write_slot: the bytes of a slot");
        std::memcpy(s.executor.slot_data(slot), data.data(), data.size());
      }, nb::arg("slot"), nb::arg("data"));
}
