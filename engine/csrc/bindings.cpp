#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/pair.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/tuple.h>
#include <nanobind/stl/vector.h>

#include <algorithm>
#include <mutex>
#include <stdexcept>
#include <tuple>

#include "attention_op.h"
#include "isa.h"
#include "linear_op.h"
#include "observe.h"
#include "ops.h"
#include "probe.h"

namespace nb = nanobind;
using namespace lltool;

template <class T> using Array1 = nb::ndarray<const T, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using Bytes2 = nb::ndarray<const uint8_t, nb::ndim<2>, nb::c_contig, nb::device::cpu>;
using Tables = nb::ndarray<const int32_t, nb::ndim<2>, nb::c_contig, nb::device::cpu>;
using Rows = nb::ndarray<const float, nb::ndim<2>, nb::c_contig, nb::device::cpu>;
using Place = std::pair<int64_t, int64_t>; // offset, width

static Buffer buffer(Place p) { return {p.first, p.second}; }
static std::vector<float> floats(const Array1<float>& a) { return {a.data(), a.data() + a.size()}; }

static void require(bool fine, const char* wanted) {
  if (!fine) throw std::invalid_argument(wanted);
}

// The bytes stay where they are (usually in a mapped file): whoever makes the executor keeps them alive.
static Matrix matrix(int type, int64_t columns, const Bytes2& data) {
  return {type, int64_t(data.shape(0)), columns, int64_t(data.shape(1)), data.data()};
}

// An executor and the batch it works on: the arrays of a batch live until the next. Python's lock is released while it
// runs, so another thread may call; it is refused.
class Session {
public:
  explicit Session(const Settings& s) : executor(s) {}
  Executor executor;
  int64_t token_ids = 0; // rows of the embedding
  std::vector<ObserveOp*> observers; // the executor's
  LinearOp* linear = nullptr;        // the executor's last

  // To columns that the last linear makes, or to whole rows (group below 0).
  void add(std::unique_ptr<ColumnOp> op, int group) {
    require(group < 0 || linear, "a group of columns without a linear");
    if (group < 0)
      executor.add_row(std::move(op));
    else
      linear->add(std::move(op), size_t(group));
  }

  std::unique_lock<std::mutex> claim() {
    std::unique_lock<std::mutex> lock(busy_, std::try_to_lock);
    if (!lock) throw std::runtime_error("the executor is running in another thread");
    return lock;
  }

  void embed(Place out, int type, int64_t columns, Bytes2 data, float scale) {
    require(columns == out.second && executor.kernels.can_decode(type), "embed: rows as wide as the output, of a known type");
    token_ids = int64_t(data.shape(0));
    executor.add_row(std::make_unique<EmbedOp>(buffer(out), matrix(type, columns, data), scale));
  }

  void run(Array1<int32_t> ids, Array1<int32_t> positions, Array1<int32_t> sequences, Tables tables, Array1<int32_t> outputs) {
    const auto lock = claim();
    const size_t n = ids.size();
    if (n == 0 || n > size_t(executor.settings.max_batch) || positions.size() != n || sequences.size() != n || outputs.size() > n)
      throw std::invalid_argument("run: a batch of wrong size");
    for (size_t i = 0; i < n; ++i) {
      const bool fits = ids.data()[i] >= 0 && ids.data()[i] < token_ids && sequences.data()[i] >= 0 &&
                        size_t(sequences.data()[i]) < tables.shape(0) && positions.data()[i] >= 0 &&
                        size_t(positions.data()[i] / page_tokens) < tables.shape(1);
      if (!fits) throw std::invalid_argument("run: token " + std::to_string(i) + " is out of range");
    }
    for (size_t i = 0; i < tables.size(); ++i)
      if (tables.data()[i] < 0 || tables.data()[i] >= executor.settings.pages) throw std::invalid_argument("run: no such page");
    for (size_t i = 0; i < outputs.size(); ++i)
      if (outputs.data()[i] < 0 || size_t(outputs.data()[i]) >= n) throw std::invalid_argument("run: no such output row");
    ids_ = {ids.data(), ids.data() + n};
    positions_ = {positions.data(), positions.data() + n};
    sequences_ = {sequences.data(), sequences.data() + n};
    tables_ = {tables.data(), tables.data() + tables.size()};
    outputs_ = {outputs.data(), outputs.data() + outputs.size()};
    Batch batch;
    batch.tokens = int64_t(n);
    batch.outputs = int64_t(outputs_.size());
    batch.table_width = int64_t(tables.shape(1));
    batch.ids = ids_.data();
    batch.positions = positions_.data();
    batch.sequences = sequences_.data();
    batch.tables = tables_.data();
    batch.output_rows = outputs_.data();
    nb::gil_scoped_release release;
    executor.run(batch);
  }

private:
  std::mutex busy_;
  std::vector<int32_t> ids_, positions_, sequences_, tables_, outputs_;
};

using Part = std::tuple<Place, int, int64_t, Bytes2, Array1<float>>; // out, type, columns, weight, bias (empty: none)

static std::unique_ptr<NormOp> make_norm(Place x, Place out, Array1<float> weight, float eps, int groups) {
  require(groups > 0 && int64_t(weight.size()) * groups == x.second && out.second == x.second, "norm: shapes do not agree");
  return std::make_unique<NormOp>(buffer(x), buffer(out), floats(weight), eps);
}

using Norm = std::tuple<Array1<float>, float, int>; // of the linear's x: weight, eps, groups

static void add_linear(Session& s, Place x, const std::vector<std::vector<Part>>& groups, std::optional<Place> residual,
                       std::optional<Norm> norm) {
  std::vector<LinearOp::Group> made(groups.size());
  for (size_t g = 0; g < groups.size(); ++g)
    for (const auto& [out, type, columns, data, bias] : groups[g]) {
      const int64_t rows = int64_t(data.shape(0));
      require(columns == x.second && rows == out.second && (bias.size() == 0 || int64_t(bias.size()) == rows) &&
                  rows == std::get<0>(groups[g][0]).second && (!residual || residual->second == rows),
              "linear: shapes do not agree");
      made[g].parts.push_back({buffer(out), matrix(type, columns, data)});
    }
  std::unique_ptr<NormOp> before;
  if (norm) before = make_norm(x, x, std::get<0>(*norm), std::get<1>(*norm), std::get<2>(*norm));
  auto op = std::make_unique<LinearOp>(buffer(x), std::move(made), std::move(before), s.executor);
  s.linear = op.get();
  s.executor.reserve_columns(x.second);
  s.executor.add(std::move(op));
  for (size_t g = 0; g < groups.size(); ++g)
    for (const auto& [out, type, columns, data, bias] : groups[g]) {
      if (bias.size()) s.add(std::make_unique<BiasOp>(buffer(out), floats(bias)), int(g));
      if (residual)
        s.add(std::make_unique<ElementwiseOp>(ElementwiseOp::Kind::add, buffer(out), buffer(*residual), buffer(out), 0.0f), int(g));
    }
}

static void add_attention(Session& s, Place q, Place k, Place v, Place out, int layer, int heads, int kv_heads, int head_dim,
                          float scale, int window, float softcap, Array1<float> sinks, std::pair<int, int> groups) {
  require(layer >= 0 && window >= 0 && head_dim > 0 && kv_heads > 0 && heads > 0 && heads % kv_heads == 0,
          "attention: wanted whole groups of heads");
  require(head_dim <= max_head_dim && heads / kv_heads <= attention_rows, "attention: a head or group is too large");
  require(q.second == int64_t(heads) * head_dim && out.second == q.second && k.second == int64_t(kv_heads) * head_dim &&
              v.second == k.second,
          "attention: shapes do not agree");
  require(sinks.size() == 0 || int64_t(sinks.size()) == heads, "attention: wanted a sink for each head or none");
  auto op = std::make_unique<AttentionOp>();
  op->q = buffer(q), op->out = buffer(out);
  op->layer = layer, op->heads = heads, op->kv_heads = kv_heads, op->head_dim = head_dim;
  op->scale = scale, op->window = window, op->softcap = softcap, op->sinks = floats(sinks);
  op->tiling = s.executor.add_tiling(heads / kv_heads, window);
  s.executor.add_cache_layer(layer, heads, kv_heads, head_dim);
  s.add(std::make_unique<StoreOp>(buffer(k), head_dim, layer, true), groups.first);
  s.add(std::make_unique<StoreOp>(buffer(v), head_dim, layer, false), groups.second);
  s.executor.add(std::move(op));
}

static ElementwiseOp::Kind kind_of(const std::string& name) {
  if (name == "silu") return ElementwiseOp::Kind::silu;
  if (name == "gelu_tanh") return ElementwiseOp::Kind::gelu_tanh;
  if (name == "add") return ElementwiseOp::Kind::add;
  if (name == "scale") return ElementwiseOp::Kind::scale;
  if (name == "softcap") return ElementwiseOp::Kind::softcap;
  throw std::invalid_argument("no elementwise operation '" + name + "'");
}

NB_MODULE(_native, m) {
  m.attr("PAGE_TOKENS") = page_tokens;
  m.attr("MAX_HEAD_DIM") = max_head_dim;
  m.attr("MAX_GROUP") = attention_rows; // query heads a key/value head
  m.def("available_isas", &available_isas, "Instruction sets this processor can run, best first.");
  m.def("probe_read", [](const std::string& isa, int threads, Array1<uint8_t> data, double seconds) {
    nb::gil_scoped_release release;
    return probe_read(isa, threads, data.data(), int64_t(data.size()), seconds);
  }, nb::arg("isa"), nb::arg("threads"), nb::arg("data"), nb::arg("seconds"), "Bytes a second.");
  m.def("probe_multiply", [](const std::string& isa, int threads, const std::string& kind, double seconds) {
    nb::gil_scoped_release release;
    return probe_multiply(isa, threads, kind, seconds);
  }, nb::arg("isa"), nb::arg("threads"), nb::arg("kind"), nb::arg("seconds"), "Multiply-adds a second of int8, int16 or float32.");
  nb::class_<Session>(m, "Executor")
      .def(
          "__init__",
          [](Session* self, const std::string& isa, Team decode, Team batch, int poll, int max_batch, int head_rows,
             int64_t arena_width, int64_t vocabulary, int64_t pages, bool int8, int k_type, int v_type, bool deterministic) {
            require(!decode.empty() && !batch.empty(), "a team has at least one thread");
            const int threads = int(std::max(decode.size(), batch.size()));
            new (self) Session(Settings{isa, threads, max_batch, head_rows, arena_width, vocabulary, pages, int8,
                                        CacheType(k_type), CacheType(v_type), deterministic, std::move(decode),
                                        std::move(batch), poll});
          },
          nb::kw_only(), nb::arg("isa"), nb::arg("decode"), nb::arg("batch"), nb::arg("poll"), nb::arg("max_batch"),
          nb::arg("head_rows"), nb::arg("arena_width"), nb::arg("vocabulary"), nb::arg("pages"), nb::arg("int8"),
          nb::arg("k_type"), nb::arg("v_type"), nb::arg("deterministic"))
      .def("embed", &Session::embed)
      .def("norm", [](Session& s, Place x, Place out, Array1<float> weight, float eps, int groups, int group) {
        s.add(make_norm(x, out, weight, eps, groups), group);
      })
      .def("linear", &add_linear, nb::arg("x"), nb::arg("groups"), nb::arg("residual").none(), nb::arg("norm").none())
      .def("rope", [](Session& s, Place x, Place out, int head_dim, std::vector<float> frequencies, float magnitude, bool interleaved,
                      int group) {
        require(head_dim > 0 && x.second % head_dim == 0 && out.second == x.second && 2 * int64_t(frequencies.size()) <= head_dim,
                "rope: shapes do not agree");
        const int table = s.executor.add_rope_table(std::move(frequencies), magnitude);
        s.add(std::make_unique<RopeOp>(buffer(x), buffer(out), head_dim, table, interleaved), group);
      })
      .def("attention", &add_attention)
      .def("elementwise", [](Session& s, const std::string& kind, Place x, Place y, Place out, float factor, int group) {
        require(x.second == out.second && y.second == out.second, "elementwise: shapes do not agree");
        s.add(std::make_unique<ElementwiseOp>(kind_of(kind), buffer(x), buffer(y), buffer(out), factor), group);
      })
      .def("select", [](Session& s, Place x, Place out) {
        require(x.second == out.second, "select: shapes do not agree");
        s.executor.begin_head();
        s.executor.add_row(std::make_unique<SelectOp>(buffer(x), buffer(out)));
      })
      .def("observe", [](Session& s, Place x) {
        auto op = std::make_unique<ObserveOp>(buffer(x));
        s.observers.push_back(op.get());
        s.executor.add(std::move(op));
      })
      .def("take_sums", [](Session& s, size_t observer, nb::ndarray<double, nb::ndim<1>, nb::c_contig> out) {
        require(observer < s.observers.size() && out.size() == s.observers[observer]->width(), "take_sums: shapes do not agree");
        const auto lock = s.claim();
        return s.observers[observer]->take(out.data());
      })
      .def("operations", [](Session& s) { return s.executor.operations(); })
      .def("take_times", [](Session& s) {
        const auto lock = s.claim();
        return s.executor.take_times();
      })
      .def("finish", [](Session& s) { s.executor.finish(); })
      .def("run", &Session::run)
      .def("logits", [](Session& s, int64_t start, int64_t stop) {
        const auto lock = s.claim();
        const float* rows;
        {
          nb::gil_scoped_release release;
          rows = s.executor.logits(start, stop);
        }
        return nb::ndarray<const float, nb::numpy, nb::ndim<2>>(
            rows, {size_t(stop - start), size_t(s.executor.settings.vocabulary)}, nb::find(s));
      })
      .def("score", [](Session& s, int64_t start, Array1<int32_t> targets, nb::ndarray<double, nb::ndim<1>, nb::c_contig> out) {
        require(out.size() == targets.size(), "score: sizes do not agree");
        const auto lock = s.claim();
        nb::gil_scoped_release release;
        s.executor.score(start, start + int64_t(targets.size()), targets.data(), out.data());
      })
      .def("compare", [](Session& s, int64_t start, Rows base, Array1<int32_t> targets,
                         nb::ndarray<double, nb::ndim<2>, nb::c_contig, nb::device::cpu> out) {
        const size_t rows = targets.size();
        require(base.shape(0) == rows && int64_t(base.shape(1)) == s.executor.settings.vocabulary && out.shape(0) == rows &&
                    out.shape(1) == compared_columns,
                "compare: shapes do not agree");
        const auto lock = s.claim();
        nb::gil_scoped_release release;
        s.executor.compare(start, start + int64_t(rows), base.data(), targets.data(), out.data());
      })
      .def("copy_page", [](Session& s, int64_t source, int64_t target) {
        const auto lock = s.claim();
        s.executor.copy_page(source, target);
      });
}
