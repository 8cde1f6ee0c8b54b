// The executor behind the Python bindings: it checks all arguments, so that kernels need not.
#pragma once
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>

#include <algorithm>
#include <atomic>
#include <cmath>
#include <limits>
#include <map>
#include <memory>
#include <optional>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "experts_op.h"
#include "head_linear_op.h"
#include "linear_op.h"
#include "low_rank_op.h"
#include "observe.h"
#include "ops.h"
#include "places.h"
#include "pool.h"

namespace lltool {

namespace nb = nanobind;

template <class T, int rank = 1> using Array = nb::ndarray<T, nb::ndim<rank>, nb::c_contig, nb::device::cpu>;
template <class T> using Array1 = Array<const T>;
using Floats = Array1<float>;
using Bytes2 = Array<const uint8_t, 2>;
using Tables = Array<const int32_t, 2>;
using Rows = Array<const float, 2>;
using Place = std::pair<int64_t, int64_t>; // offset, width

inline Buffer buffer(Place p) { return {p.first, p.second}; }

inline std::vector<float> floats(const Array1<float>& a) {
  require_aligned(a);
  return {a.data(), a.data() + a.size()};
}

inline std::vector<float> floats_or_none(const std::optional<Floats>& a) { return a ? floats(*a) : std::vector<float>(); }

// For settings and factors only: NaN and infinity in weights give useless numbers, but do no harm.
inline void require_finite(std::initializer_list<double> numbers) {
  for (double x : numbers)
    require(std::abs(x) <= double(std::numeric_limits<float>::max()), "a number that is infinite, NaN or no float32");
}

inline void require_team(const Team& team) {
  require(!team.empty(), "a team has at least one thread");
  require(team.size() <= size_t(max_threads), "a team has at most 4096 threads");
  for (const auto& cpus : team)
    for (int cpu : cpus) require(cpu >= 0 && cpu < 1024, "processors have numbers from 0 to 1023");
}
inline void require_poll(int poll) { require(poll >= 0 && poll <= 100, "poll is 0 to 100"); }

inline Settings checked(Settings s, int k_type, int v_type) {
  require_team(s.decode), require_team(s.batch);
  s.threads = int(std::max(s.decode.size(), s.batch.size()));
  require_poll(s.poll);
  require(s.max_batch >= 1 && s.max_batch <= 1 << 24, "max_batch is 1 to 2^24 tokens");
  require(s.head_rows >= 1 && s.head_rows <= s.max_batch, "head_rows is 1 to max_batch");
  require(s.arena_width >= 1 && s.vocabulary >= 1 && s.pages >= 1, "arena_width, vocabulary and pages are at least 1");
  require(s.pages <= std::numeric_limits<int32_t>::max(), "pages have numbers of 32 bits");
  require(s.slots >= 0 && s.slots <= std::numeric_limits<int32_t>::max(), "slots have numbers of 32 bits");
  checked_mul(s.arena_width, s.max_batch, sizeof(float));
  checked_mul(s.vocabulary, s.head_rows, sizeof(float));
  require(is_cache_type(k_type) && is_cache_type(v_type), "k_type and v_type are F32, F16, BF16, Q8_0 or Q4_0");
  s.k_type = CacheType(k_type), s.v_type = CacheType(v_type);
  return s;
}

// The right to run, which one thread holds at a time. A thread that held it when the process forked does not exist in
// the child.
class Claim {
public:
  explicit Claim(std::atomic<long>& runs_in) : runs_in_(runs_in) {
    const long here = current_process();
    long found = runs_in.load();
    if (found == here) found = 0;
    if (!runs_in.compare_exchange_strong(found, here)) throw std::runtime_error("the executor is running in another thread");
  }
  ~Claim() { runs_in_ = 0; }
  Claim(const Claim&) = delete;

private:
  std::atomic<long>& runs_in_;
};

// An executor and its current batch: the arrays of a batch live until the next one, those of weights as long as the
// executor. Python's lock is released during a run; another thread that calls meanwhile gets an error.
class Session {
  // Declared first, so that they outlive the executor, which reads them in place.
  std::vector<Bytes2> weights_;
  std::map<int64_t, std::unique_ptr<Assignments>> assignments_; // by the place of the choice

public:
  explicit Session(const Settings& s) : executor(s), places(s.arena_width, s.vocabulary) {}
  Executor executor;
  Places places;
  std::vector<ObserveOp*> observers; // owned by the executor
  const std::shared_ptr<LowRankSpace> low_rank_space = std::make_shared<LowRankSpace>();
  int adapters = 0; // whose factors operations have

  Claim claim() { return Claim(runs_in_); }
  auto build() { // for adding an operation
    if (executor.is_finished()) throw std::runtime_error("the executor is finished: no operation can be added");
    return claim();
  }
  auto ready() {
    if (!executor.is_finished()) throw std::runtime_error("the executor is not finished: nothing can run yet");
    return claim();
  }

  void require_body(const char* wanted) const { require(!places.in_head(), wanted); }

  // Checks the arguments of an operation before it is added; `group` is a column group of the last linear, or below 0.
  void check(std::initializer_list<Place> read, const Place* out, int group) const {
    require(group < 0 || linear_, "a group of columns without a linear just before");
    std::vector<Buffer> inputs;
    for (Place p : read) {
      places.require_made(buffer(p));
      inputs.push_back(buffer(p));
    }
    if (out) places.require_free(buffer(*out));
    if (group < 0) return;
    const Buffer written = out ? buffer(*out) : Buffer{};
    columns_.require_apart(size_t(group), inputs, out ? &written : nullptr);
  }

  // Adds a checked operation, to a column group of the last linear or to whole rows.
  void add(std::unique_ptr<ColumnOp> op, std::initializer_list<Place> read, const Place* out, int group) {
    if (group < 0) {
      add_row(std::move(op));
    } else {
      linear_->add(std::move(op), size_t(group));
      for (Place p : read) columns_.read(size_t(group), buffer(p));
      if (out) columns_.write(size_t(group), buffer(*out));
    }
    if (out) places.make(buffer(*out));
  }
  void add_row(std::unique_ptr<RowOp> op) {
    executor.add_row(std::move(op));
    linear_ = nullptr;
  }
  void add_op(std::unique_ptr<Op> op) {
    executor.add(std::move(op));
    linear_ = nullptr;
  }
  void add_linear(std::unique_ptr<LinearOp> op, Place x, const std::vector<int64_t>& widths) {
    LinearOp* made = op.get();
    add_op(std::move(op));
    linear_ = made;
    columns_ = GroupPlaces(buffer(x), widths);
  }

  void made_by_linear(size_t group, Place out, std::optional<Place> residual) {
    places.make(buffer(out));
    columns_.write(group, buffer(out));
    if (residual) columns_.read(group, buffer(*residual));
  }

  Matrix matrix(const char* where, int type, int64_t columns, const Bytes2& data) const {
    const EngineKernels& k = executor.kernels;
    require_row(where, type, k.can_decode(type) ? k.layout(type) : Layout{}, columns, int64_t(data.shape(1)));
    require(columns > 0 && data.shape(0) > 0, "a matrix without weights");
    return {type, int64_t(data.shape(0)), columns, int64_t(data.shape(1)), data.data()};
  }
  // A stack of `experts` matrices, as the first of them.
  Matrix stack(const char* where, int type, int64_t columns, const Bytes2& data, int experts) const {
    Matrix whole = matrix(where, type, columns, data);
    require(whole.rows % experts == 0, "a stack that does not have a matrix for each expert");
    whole.rows /= experts;
    return whole;
  }

  // What the last route with its choice at this place decides, for operations that read it.
  const Assignments& assignments(Place chosen) const {
    check({chosen}, nullptr, -1);
    const auto found = assignments_.find(chosen.first);
    require(found != assignments_.end() && found->second->used == chosen.second, "no route has made this choice of experts");
    return *found->second;
  }
  // For a route; all routes with one place share it, since their choices are not needed at the same time.
  Assignments& assign(Place chosen, int64_t experts) {
    std::unique_ptr<Assignments>& found = assignments_[chosen.first];
    if (!found) found = std::make_unique<Assignments>(int(experts), int(chosen.second), executor);
    require(found->experts == experts && found->used == chosen.second, "routes with one place choose the same number of experts");
    return *found;
  }

  void keep(const Bytes2& data) { weights_.push_back(data); }
  int64_t token_ids() const { return token_ids_; }

  void embed(Place out, int type, Bytes2 data, double scale, const std::string& by) {
    const auto lock = build();
    require_finite({scale});
    require_body("embed: the head has no tokens");
    check({}, &out, -1);
    const Matrix weight = matrix("embed", type, out.second, data);
    keep(data);
    require(by == "token" || by == "position" || by == "type", "embed: wanted rows by token, position or type");
    int64_t& limit = by == "position" ? positions_ : by == "type" ? types_ : token_ids_;
    limit = std::min(limit, weight.rows);
    const auto chosen = by == "position" ? &Batch::positions : by == "type" ? &Batch::types : &Batch::ids;
    add_row(std::make_unique<EmbedOp>(buffer(out), weight, executor.kernels.function("scale").run, float(scale), chosen));
    places.make(buffer(out));
  }

  void split(Place x, const std::vector<Place>& outs, int64_t groups) {
    const auto lock = build();
    int64_t width = 0;
    std::vector<Buffer> to;
    require(groups >= 1 && !outs.empty(), "split: no part");
    for (Place out : outs) {
      require(out.second >= groups && out.second % groups == 0 && out.second <= x.second - width && out != x, "split: shapes do not agree");
      require(std::count(outs.begin(), outs.end(), out) == 1, "split: two parts in one place");
      check({x}, &out, -1);
      width += out.second;
      to.push_back(buffer(out));
    }
    require(width == x.second, "split: shapes do not agree");
    add_row(std::make_unique<SplitOp>(buffer(x), std::move(to), groups));
    for (Place out : outs) places.make(buffer(out));
  }

  void select(Place x, Place out, bool mean) {
    const auto lock = build();
    require(x.second == out.second && x != out, "select: shapes do not agree");
    require_body("select: the head begins once");
    check({x}, nullptr, -1);
    places.begin_head(buffer(x));
    places.require_free(buffer(out));
    executor.begin_head();
    add_row(std::make_unique<SelectOp>(buffer(x), buffer(out), mean, executor.kernels));
    places.make(buffer(out));
  }

  void finish() {
    const auto lock = build();
    require(places.has_logits(), "finish: no operation has made logits");
    nb::gil_scoped_release release; // it may wait for the pool, which another model is using
    executor.finish();
  }

  void run(Array1<int32_t> ids, Array1<int32_t> positions, Array1<int32_t> sequences, Tables tables, Array1<int32_t> outputs,
           Array1<int32_t> slots, std::optional<Array1<int32_t>> types, std::optional<Rows> scales) {
    const auto lock = ready();
    const size_t n = ids.size();
    if (n == 0 || n > size_t(executor.settings.max_batch) || positions.size() != n || sequences.size() != n || outputs.size() > n)
      throw std::invalid_argument("run: a batch of wrong size");
    for (const auto* array : {&ids, &positions, &sequences, &outputs, &slots}) require_aligned(*array);
    require_aligned(tables);
    if (types) require_aligned(*types);
    require(!types || types->size() == n, "run: wanted a type for each token");
    for (size_t i = 0; types && i < n; ++i) require(types->data()[i] >= 0 && types->data()[i] < types_, "run: no such type of tokens");
    for (size_t i = 0; i < n; ++i) {
      const bool fits = ids.data()[i] >= 0 && ids.data()[i] < token_ids_ && sequences.data()[i] >= 0 &&
                        size_t(sequences.data()[i]) < tables.shape(0) && positions.data()[i] >= 0 && positions.data()[i] < positions_ &&
                        size_t(positions.data()[i] / page_tokens) < tables.shape(1) &&
                        positions.data()[i] < std::numeric_limits<int32_t>::max() - executor.settings.max_batch;
      if (!fits) throw std::invalid_argument("run: token " + std::to_string(i) + " is out of range");
    }
    for (size_t i = 0; i < tables.size(); ++i)
      if (tables.data()[i] < 0 || tables.data()[i] >= executor.settings.pages) throw std::invalid_argument("run: no such page");
    for (size_t i = 0; i < outputs.size(); ++i)
      if (outputs.data()[i] < 0 || size_t(outputs.data()[i]) >= n) throw std::invalid_argument("run: no such output row");
    if (executor.slot_floats > 0) {
      if (slots.size() != tables.shape(0)) throw std::invalid_argument("run: wanted a slot for each sequence");
      for (size_t i = 0; i < slots.size(); ++i)
        if (slots.data()[i] < 0 || slots.data()[i] >= executor.settings.slots) throw std::invalid_argument("run: no such slot");
    }
    require(!scales || (scales->shape(0) == tables.shape(0) && int(scales->shape(1)) >= adapters), "run: wanted a scale of each adapter for each sequence");
    if (scales) require_aligned(*scales);
    Arrays arrays{copy(ids), copy(positions), copy(sequences), {tables.data(), tables.data() + tables.size()}, copy(outputs), copy(slots),
                  types ? copy(*types) : std::vector<int32_t>(n),
                  scales ? std::vector<float>(scales->data(), scales->data() + scales->size()) : std::vector<float>()};
    Batch batch;
    batch.tokens = int64_t(n);
    batch.outputs = int64_t(arrays.outputs.size());
    batch.table_width = int64_t(tables.shape(1));
    batch.ids = arrays.ids.data();
    batch.positions = arrays.positions.data();
    batch.sequences = arrays.sequences.data();
    batch.tables = arrays.tables.data();
    batch.output_rows = arrays.outputs.data();
    batch.slots = arrays.slots.data();
    batch.types = arrays.types.data();
    batch.scales = scales ? arrays.scales.data() : nullptr;
    batch.sequence_count = int64_t(tables.shape(0));
    batch.adapters = scales ? int64_t(scales->shape(1)) : 0;
    require_own_places(batch);
    if (executor.slot_floats > 0) require_own_slots(batch, arrays.slots);
    arrays_ = std::move(arrays);
    nb::gil_scoped_release release;
    executor.run(batch);
  }

private:
  static std::vector<int32_t> copy(const Array1<int32_t>& a) { return {a.data(), a.data() + a.size()}; }

  // Two threads could write two tokens with the same place in the cache at once.
  void require_own_places(const Batch& batch) const {
    if (executor.page_bytes == 0 || batch.tokens == 1) return;
    std::vector<int64_t> taken;
    for (int64_t t = 0; t < batch.tokens; ++t) {
      const int32_t position = batch.positions[t];
      const int64_t page = batch.tables[batch.sequences[t] * batch.table_width + position / page_tokens];
      taken.push_back(page * page_tokens + position % page_tokens);
    }
    std::sort(taken.begin(), taken.end());
    require(std::adjacent_find(taken.begin(), taken.end()) == taken.end(), "run: two tokens in one place of the cache");
  }

  // A slot has one state, which follows a sequence from token to token.
  static void require_own_slots(const Batch& batch, std::vector<int32_t> slots) {
    std::sort(slots.begin(), slots.end());
    require(std::adjacent_find(slots.begin(), slots.end()) == slots.end(), "run: two sequences in one slot");
    std::vector<bool> seen(slots.size());
    for (int64_t t = 0; t < batch.tokens; ++t) {
      const size_t sequence = size_t(batch.sequences[t]);
      const bool follows = t > 0 && batch.sequences[t - 1] == batch.sequences[t] && batch.positions[t - 1] + 1 == batch.positions[t];
      require(follows || !seen[sequence], "run: the tokens of a sequence with a slot are not in order");
      seen[sequence] = true;
    }
  }

  std::atomic<long> runs_in_{0}; // id of the process that runs it; 0: none
  int64_t token_ids_ = std::numeric_limits<int32_t>::max(); // rows of the embedding
  int64_t positions_ = std::numeric_limits<int32_t>::max(); // rows of the embedding of positions
  int64_t types_ = std::numeric_limits<int32_t>::max();     // rows of the embedding of types
  LinearOp* linear_ = nullptr;                              // the executor's last operation, if that is a linear
  GroupPlaces columns_;                                     // the places that its groups use
  struct Arrays {
    std::vector<int32_t> ids, positions, sequences, tables, outputs, slots, types;
    std::vector<float> scales;
  } arrays_;
};

} // namespace lltool
