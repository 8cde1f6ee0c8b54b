#include "experts_op.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>

#include "linear_op.h"

namespace lltool {

// ---- who multiplies what ----

Assignments::Assignments(int e, int u, const Executor& executor)
    : experts(e), used(u), tokens_per_panel_(executor.kernels.tokens_per_panel) {
  const int64_t slots = checked_mul(executor.settings.max_batch, used);
  require(slots <= std::numeric_limits<int32_t>::max(), "expert assignments of a batch have numbers of 32 bits");
  start_ = Memory<int32_t>(experts + 1);
  next_ = Memory<int32_t>(experts);
  active_ = Memory<int32_t>(experts);
  panel_start_ = Memory<int32_t>(experts);
  token_ = Memory<int32_t>(slots);
  slot_ = Memory<int32_t>(slots);
  for (const Memory<int32_t>* memory : {&start_, &panel_start_, &token_, &slot_}) std::fill_n(memory->data(), memory->size(), 0);
  panels_ = Memory<Panel>(most_panels(slots, experts, tokens_per_panel_));
}

void Assignments::sort(const int32_t* chosen, int64_t tokens) {
  int32_t *start = start_.data(), *next = next_.data();
  std::fill_n(start, experts + 1, 0);
  for (int64_t i = 0; i < tokens * used; ++i) ++start[chosen[i] + 1];
  std::partial_sum(start, start + experts + 1, start);
  std::copy_n(start, experts, next);
  for (int64_t i = 0; i < tokens * used; ++i) {
    const int32_t slot = next[chosen[i]]++;
    token_.data()[slot] = int32_t(i / used);
    slot_.data()[i] = slot;
  }
  active_count_ = panel_count_ = most_ = 0;
  for (int expert = 0; expert < experts; ++expert) {
    panel_start_.data()[expert] = int32_t(panel_count_);
    most_ = std::max(most_, count(expert));
    if (count(expert)) active_.data()[active_count_++] = expert;
    for (int64_t i = 0; i < count(expert); i += tokens_per_panel_)
      panels_.data()[panel_count_++] = {expert, first(expert) + i, int(std::min<int64_t>(tokens_per_panel_, count(expert) - i))};
  }
}

// ---- routing ----

// Finds the `used` largest of n numbers, of equal ones the first, and calls take(index, place) for each, largest first.
// NaN is chosen only where nothing else decides; no index is taken twice.
template <class Take> static void take_best(const float* order, float* taken, int n, int used, Take take) {
  std::fill_n(taken, n, 0.0f);
  for (int place = 0; place < used; ++place) {
    int best = -1;
    for (int i = 0; i < n; ++i)
      if (taken[i] == 0 && (best < 0 || order[i] > order[best])) best = i;
    taken[best] = 1;
    take(best, place);
  }
}

// Sets the scores outside of the best groups to -inf; a group counts as much as its best scores together.
void RouteOp::keep_groups(float* order, float* taken, float* best) const {
  const int size = assignments.experts / groups;
  for (int g = 0; g < groups; ++g) {
    best[g] = 0;
    take_best(order + g * size, taken, size, std::min(size, counted), [&](int i, int) { best[g] += order[g * size + i]; });
  }
  take_best(best, taken, groups, groups_used, [](int, int) {});
  for (int g = 0; g < groups; ++g)
    if (taken[g] == 0) std::fill_n(order + g * size, size, -std::numeric_limits<float>::infinity());
}

void RouteOp::choose_sparsely(const float* x, float* taken, int32_t* to, float* weight) const {
  constexpr float nearly = 0.02f; // relative to the larger of the logit and the best
  const int n = assignments.experts;
  take_best(x, taken, n, assignments.used, [&](int expert, int place) {
    const float best = x[expert];
    float sum = 1;
    for (int i = 0; i < n; ++i)
      if (taken[i] == 0 && !((best - x[i]) / std::max(std::abs(x[i]), best) > nearly)) sum += std::exp(x[i] - best);
    to[place] = expert;
    weight[place] = factor / sum;
  });
}

void RouteOp::choose(const Run& run, int64_t t) const {
  const Executor& e = run.executor;
  const int n = assignments.experts, used = assignments.used;
  const float* x = e.at(logits) + t * n;
  float* score = scores.data() + int64_t(run.worker.index) * 4 * n;
  float *order = score + n, *taken = order + n, *best = taken + n;
  int32_t* to = reinterpret_cast<int32_t*>(e.at(chosen)) + t * used;
  float* weight = e.at(weights) + t * used;
  if (scoring == Scoring::sparsemixer) return choose_sparsely(x, taken, to, weight);
  if (scoring == Scoring::sigmoid) {
    for (int i = 0; i < n; ++i) score[i] = 1.0f / (1.0f + std::exp(-x[i]));
  } else {
    const float top = *std::max_element(x, x + n);
    float sum = 0;
    for (int i = 0; i < n; ++i) sum += score[i] = std::exp(x[i] - top);
    for (int i = 0; i < n; ++i) score[i] /= sum;
  }
  for (int i = 0; i < n; ++i) order[i] = bias.empty() ? score[i] : score[i] + bias[size_t(i)];
  if (groups > 1) keep_groups(order, taken, best);
  float total = 0;
  take_best(order, taken, n, used, [&](int expert, int place) {
    to[place] = expert;
    total += weight[place] = score[expert];
  });
  const float scale = normalized ? factor / std::max(total, 1e-20f) : factor;
  for (int i = 0; i < used; ++i) weight[i] *= scales.empty() ? scale : scale * scales[size_t(to[i])];
}

void RouteOp::run(const Run& run) const {
  run.worker.parallel(run.rows, [&](int64_t t) { choose(run, t); });
  run.worker.parallel(1, [&](int64_t) {
    assignments.sort(reinterpret_cast<const int32_t*>(run.executor.at(chosen)), run.rows);
  });
}

// ---- products ----

ExpertsOp::ExpertsOp(Buffer x, bool assigned, const Assignments& assignments, std::vector<Part> parts, Activation activation,
                     Executor& executor)
    : x_(x), assigned_(assigned), assignments_(assignments), parts_(std::move(parts)), activation_(activation),
      add_(executor.kernels.function("add").run) {
  for (const Part& part : parts_) (is_int8(executor, part) ? int8_ : floats_) = true;
  executor.reserve_columns(x_.width);
  executor.reserve_rows(assignments_.most_panels() * executor.kernels.tokens_per_panel, x_.width, int8_, floats_);
}

// Float activations of all experts have one layout, because the layouts share their memory.
ExpertsOp::Way ExpertsOp::way_of(const Executor& e, int64_t tokens) const {
  const bool always = e.settings.deterministic, shorts = e.settings.int8 && e.kernels.can_multiply_shorts(x_.width);
  const bool rows = !floats_ || (!always && assignments_.most() < (shorts ? shorts_from : packed_from));
  return {(always && floats_) || tokens >= panels_from, rows ? Floats::rows : shorts ? Floats::shorts : Floats::packed};
}

const float* ExpertsOp::row(const Run& run, int64_t slot) const {
  return run.executor.at(x_) + (assigned_ ? slot : assignments_.token(slot)) * x_.width;
}

// The prepared activations of an expert begin at its first panel, and follow each other from there on.
int64_t ExpertsOp::place(const Run& run, int expert) const {
  return assignments_.first_panel(expert) * run.executor.kernels.tokens_per_panel;
}

ExpertsOp::Input ExpertsOp::input_of(const Run& run, int expert) const {
  const Executor& e = run.executor;
  const int64_t from = place(run, expert), K = padded(x_.width), tokens = assignments_.count(expert);
  const bool is_neighbours = assigned_ || tokens == 1, copied = way_of(e, tokens).floats != Floats::rows || !is_neighbours;
  return {copied ? e.packed + from * K : row(run, assignments_.first(expert)), e.quantized.token(from, K), e.shortened.token(from, K)};
}

void ExpertsOp::prepare(const Run& run, const Assignments::Panel& panel) const {
  const Executor& e = run.executor;
  const EngineKernels& k = e.kernels;
  const int64_t K = x_.width, before = panel.first - assignments_.first(panel.expert); // tokens of earlier panels
  const Way way = way_of(e, assignments_.count(panel.expert));
  const Input to = input_of(run, panel.expert);
  float* packed = e.packed + place(run, panel.expert) * padded(K) + before * K;
  const float* rows = row(run, panel.first);
  if (!assigned_ && assignments_.count(panel.expert) > 1) { // the tokens are no neighbours
    float* made = floats_ && way.floats == Floats::rows ? packed : reinterpret_cast<float*>(e.scratch(run.worker.index));
    for (int t = 0; t < panel.tokens; ++t) std::copy_n(row(run, panel.first + t), K, made + t * K);
    rows = made;
  }
  if (int8_ && !way.panels)
    for (int t = 0; t < panel.tokens; ++t) e.quantize_row(rows + t * K, K, to.quantized.token(t, padded(K)));
  if (int8_ && way.panels) k.quantize_panel(rows, K, panel.tokens, K, to.quantized.token(before, K));
  if (way.floats == Floats::shorts) k.shorten_panel(rows, K, panel.tokens, K, to.shortened.token(before, K));
  if (way.floats == Floats::packed) k.pack_panel(rows, K, panel.tokens, K, packed);
}

void ExpertsOp::multiply(const Run& run, int expert, int64_t begin, int64_t end, const Input& in) const {
  const Executor& e = run.executor;
  const EngineKernels& k = e.kernels;
  const int64_t T = assignments_.count(expert), first = assignments_.first(expert);
  const Way way = way_of(e, T);
  void* scratch = e.scratch(run.worker.index);
  for (const Part& part : parts_) {
    Matrix w = part.weight;
    const int64_t width = w.rows;
    w.data += expert * part.step;
    float* to = e.at(part.out) + first * width;
    const bool quantized = is_int8(e, part);
    if (quantized && !way.panels) {
      e.matvec(w, begin, end, in.quantized, int(T), to, width, scratch);
    } else if (!quantized && way.floats == Floats::rows) {
      k.matvec_f32(w, begin, end, in.floats, w.columns, int(T), to, width, scratch);
    } else if (quantized && T <= k.tokens_per_panel) {
      k.matmul(w, begin, end, in.quantized, T, to, width, scratch);
    } else {
      for (int64_t from = begin, stop; from < end; from = stop) {
        stop = std::min<int64_t>(end, from + tile_rows);
        if (quantized)
          k.matmul(w, from, stop, in.quantized, T, to, width, scratch);
        else if (way.floats == Floats::shorts)
          k.matmul_shorts(w, from, stop, in.shortened, T, to, width, scratch);
        else
          k.matmul_f32(w, from, stop, in.floats, T, to, width, scratch);
      }
    }
    if (part.bias.empty()) continue;
    const float* bias = part.bias.data() + expert * width + begin;
    for (float* row = to + begin; row < to + T * width; row += width) add_(row, bias, 0, end - begin, row);
  }
  if (!activation_.function) return;
  const int64_t width = parts_[0].weight.rows, from = first * width + begin;
  const float *one = e.at(parts_[0].out) + from, *two = e.at(parts_[1].out) + from;
  float* to = e.at(activation_.out) + from;
  for (int64_t t = 0; t < T; ++t) activation_.function(one + t * width, two + t * width, 0, end - begin, to + t * width);
}

void ExpertsOp::run(const Run& run) const {
  const Executor& e = run.executor;
  const Assignments& a = assignments_;
  // All experts of a single token read the same row: each thread prepares it for itself instead of waiting for another.
  const bool alone = run.rows == 1 && !assigned_ && !(floats_ && e.settings.deterministic);
  bool prepared = !alone;
  const Input own{e.at(x_), e.own_quantized(run.worker.index), {}};
  // A late thread must ask for as many tasks as the others did, so their number depends only on that of the tokens.
  const int64_t slots = run.rows * a.used, most_active = std::min<int64_t>(a.experts, slots), panel = e.kernels.tokens_per_panel;
  if (!alone)
    run.worker.parallel(Assignments::most_panels(slots, a.experts, panel), [&](int64_t i) {
      if (i < a.panel_count()) prepare(run, a.panel(i));
    });

  // As in LinearOp::cut: few tokens want long runs of memory, many want results that stay in the cache.
  const int64_t rows = parts_[0].weight.rows, threads = e.settings.threads, all = most_active * rows;
  const int64_t most = run.rows > panel ? std::min<int64_t>(all / (threads * 8), tile_rows) : all / (threads * 4);
  const int64_t size = std::min(rows, std::max<int64_t>(16, most / 16 * 16)), pieces = (rows + size - 1) / size;
  run.worker.parallel(most_active * pieces, [&](int64_t i) {
    if (i / pieces >= a.active_count()) return;
    const int expert = a.active(i / pieces);
    const int64_t begin = i % pieces * size, end = std::min(rows, begin + size);
    if (!prepared && int8_) e.quantize_row(own.floats, x_.width, own.quantized);
    prepared = true;
    multiply(run, expert, begin, end, alone ? own : input_of(run, expert));
  });
}

// ---- results ----

void WeighOp::row(const Run& run, int64_t t) const {
  const Executor& e = run.executor;
  const float* from = e.at(x) + t * x.width;
  for (int i = 0; i < assignments.used; ++i)
    scale(from, from, e.at(weights)[t * assignments.used + i], x.width, e.at(out) + assignments.slot(t, i) * out.width);
}

void CombineOp::row(const Run& run, int64_t t) const {
  const Executor& e = run.executor;
  float* to = e.at(out) + t * out.width;
  if (residual)
    std::copy_n(e.at(*residual) + t * out.width, out.width, to);
  else
    std::fill_n(to, out.width, 0.0f);
  for (int i = 0; i < assignments.used; ++i) {
    const float weight = weights ? e.at(*weights)[t * assignments.used + i] : 1.0f;
    add_scaled(to, e.at(x) + assignments.slot(t, i) * out.width, weight, out.width, to);
  }
}

void SharedGateOp::row(const Run& run, int64_t t) const {
  const Executor& e = run.executor;
  const Matrix w{0, 1, h.width, h.width * int64_t(sizeof(float)), reinterpret_cast<const uint8_t*>(weight.data())};
  float gate;
  e.kernels.matvec_f32(w, 0, 1, e.at(h) + t * h.width, h.width, 1, &gate, 1, e.scratch(run.worker.index));
  const float* from = e.at(x) + t * x.width;
  scale(from, from, 1.0f / (1.0f + std::exp(-gate)), x.width, e.at(out) + t * x.width);
}

} // namespace lltool
