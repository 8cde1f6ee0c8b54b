#include "executor.h"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstring>
#include <limits>
#include <stdexcept>
#include <utility>

#if defined(__linux__)
#include <sys/mman.h>
#endif

#include "isa.h"

namespace lltool {

void advise_large_pages([[maybe_unused]] void* data, [[maybe_unused]] size_t bytes) {
#if defined(__linux__)
  madvise(data, bytes, MADV_HUGEPAGE); // an advice: a system without them says no, and nothing changes
#endif
}

const EngineKernels& kernels_for(const std::string& name) {
  switch (find_isa(name)) {
#if defined(LLTOOL_X86)
  case Isa::avx512: return engine_avx512;
  case Isa::avx2: return engine_avx2;
#elif defined(LLTOOL_ARM64)
  case Isa::neon_dot: return engine_neon_dot;
  case Isa::neon: return engine_neon;
#endif
  default: return engine_scalar;
  }
}

Executor::Executor(const Settings& s) : settings(s), kernels(kernels_for(s.isa)) {}

void Executor::add(std::unique_ptr<Op> op) {
  ops_.push_back(std::move(op));
  open_ = nullptr;
}

void Executor::add_row(std::unique_ptr<RowOp> op) {
  if (!open_) {
    auto group = std::make_unique<RowOps>();
    open_ = group.get();
    ops_.push_back(std::move(group));
  }
  open_->ops.push_back(std::move(op));
}

void Executor::begin_head() {
  head_ = ops_.size();
  open_ = nullptr;
}

int Executor::add_rope_table(std::vector<float> frequencies, float magnitude) {
  for (size_t i = 0; i < ropes.size(); ++i)
    if (ropes[i].frequencies == frequencies && ropes[i].magnitude == magnitude) return int(i);
  const size_t n = size_t(settings.max_batch) * frequencies.size();
  ropes.push_back({std::move(frequencies), magnitude, Memory<float>(n), Memory<float>(n)});
  return int(ropes.size()) - 1;
}

void Executor::add_cache_layer(int layer, int heads, int kv_heads, int head_dim) {
  if (cache.size() <= size_t(layer)) cache.resize(size_t(layer) + 1);
  CacheLayer& c = cache[size_t(layer)];
  if (c.kv_heads) throw std::invalid_argument("layer " + std::to_string(layer) + " has two attentions");
  c.kv_heads = kv_heads;
  c.head_dim = head_dim;
  if ((has_blocks(settings.k_type) || has_blocks(settings.v_type)) && head_dim % 32)
    throw std::invalid_argument("a cache type with blocks wants heads of a multiple of 32");
  c.k_bytes = cache_bytes(settings.k_type, int64_t(head_dim) * page_tokens);
  c.v_bytes = cache_bytes(settings.v_type, int64_t(head_dim) * page_tokens);
  c.offset = page_bytes;
  page_bytes += kv_heads * (c.k_bytes + c.v_bytes);
  attention_floats_ = std::max(attention_floats_, attention_scratch(head_dim));
  const size_t parts = size_t(settings.pages / part_pages) + 2, tokens = size_t(std::min(settings.max_batch, few_tokens));
  partial_floats_ = std::max(partial_floats_, parts * tokens * size_t(heads) * attention_partial(head_dim));
}

int Executor::add_tiling(int group, int window) {
  const int tokens = std::max(1, attention_rows / group);
  for (size_t i = 0; i < tilings.size(); ++i)
    if (tilings[i].tokens == tokens && tilings[i].window == window) return int(i);
  tilings.push_back({tokens, window, {}});
  return int(tilings.size()) - 1;
}

void Executor::cut_pieces(const std::vector<Segment>& segments, Tiling& tiling) const {
  tiling.pieces.clear();
  const int part = batch_.tokens <= few_tokens && !settings.deterministic ? part_pages : std::numeric_limits<int>::max();
  for (const Segment& s : segments) {
    for (int first = 0; first < s.tokens; first += tiling.tokens) {
      Piece p{s.row + first, std::min(tiling.tokens, s.tokens - first), s.position + first, s.sequence, 0, 1, 0, 0};
      const int start = tiling.window && p.position >= tiling.window ? (p.position - tiling.window + 1) / page_tokens : 0;
      const int end = (p.position + p.tokens - 1) / page_tokens + 1;
      p.parts = (end - start - 1) / part + 1;
      for (; p.part < p.parts; ++p.part) {
        p.first_page = start + p.part * part;
        p.end_page = p.part + 1 == p.parts ? end : p.first_page + part;
        tiling.pieces.push_back(p);
      }
    }
  }
}

void Executor::reserve_columns(int64_t K) { columns_ = std::max(columns_, padded(K)); }

void Executor::finish() {
  const int panel = kernels.tokens_per_panel;
  const size_t rows = size_t((settings.max_batch + panel - 1) / panel * panel), columns = size_t(columns_);
  const size_t threads = size_t(settings.threads);
  arena_ = Memory<float>(size_t(settings.arena_width) * size_t(settings.max_batch));
  logits_ = Memory<float>(size_t(settings.head_rows) * size_t(settings.vocabulary));
  q_ = Memory<int8_t>(rows * columns);
  q_scale_ = Memory<float>(rows * columns / 8);
  q_sum_ = Memory<int32_t>(rows * columns / 4);
  packed_ = Memory<float>(rows * columns);
  outliers_ = Memory<float>(rows * 16);
  quantized = {q_.data(), q_scale_.data(), q_sum_.data(), settings.deterministic ? nullptr : outliers_.data()};
  packed = packed_.data();
  shortened = {reinterpret_cast<int16_t*>(packed), packed + rows * columns / 2};
  scratch_bytes_ = matmul_scratch(columns_);
  scratch_ = Memory<uint8_t>(scratch_bytes_ * threads);
  own_ = Memory<uint8_t>(threads * columns * 5 / 2);
  own_rows_ = Memory<float>(threads * columns);
  cache_ = Memory<uint8_t>(size_t(settings.pages * page_bytes) + 64); // kernels read whole vectors
  advise_large_pages(cache_.data(), cache_.size());
  attention_ = Memory<float>(attention_floats_ * threads);
  partials_ = Memory<float>(partial_floats_);
  for (const auto& op : ops_) op->finish(*this);
  pool_ = std::make_unique<Pool>(settings.threads, 2 + 3 * int(ops_.size()), settings.poll);
}

Quantized Executor::own_quantized(int thread) const {
  uint8_t* p = own_.data() + int64_t(thread) * columns_ * 5 / 2;
  float* scale = reinterpret_cast<float*>(p + columns_);
  return {reinterpret_cast<int8_t*>(p), scale, reinterpret_cast<int32_t*>(scale + columns_ / 8), nullptr};
}

void Executor::fill_ropes(Pool::Worker& worker, const Batch& batch) {
  worker.parallel(batch.tokens, [&](int64_t t) {
    for (auto& rope : ropes) {
      const size_t n = rope.frequencies.size(), row = size_t(t) * n;
      for (size_t i = 0; i < n; ++i) {
        const double angle = double(batch.positions[t]) * double(rope.frequencies[i]);
        rope.cosine.data()[row + i] = float(std::cos(angle)) * rope.magnitude;
        rope.sine.data()[row + i] = float(std::sin(angle)) * rope.magnitude;
      }
    }
  });
}

void Executor::run_ops(size_t begin, size_t end, const Run& run) {
  using Clock = std::chrono::steady_clock;
  const bool timed = !times_.empty() && run.worker.index == 0;
  Clock::time_point start{};
  if (timed) start = Clock::now();
  for (size_t i = begin; i < end; ++i) {
    ops_[i]->run(run);
    if (!timed) continue;
    const Clock::time_point now = Clock::now();
    times_[i] += std::chrono::duration_cast<std::chrono::nanoseconds>(now - start).count();
    start = now;
  }
}

std::vector<int64_t> Executor::take_times() {
  times_.resize(ops_.size());
  return std::exchange(times_, std::vector<int64_t>(ops_.size()));
}

void Executor::run(const Batch& batch) {
  batch_ = batch;
  segments_.clear();
  for (int64_t t = 0; t < batch.tokens; ++t) {
    if (!segments_.empty()) {
      Segment& s = segments_.back();
      if (s.sequence == batch.sequences[t] && s.position + s.tokens == batch.positions[t]) {
        ++s.tokens;
        continue;
      }
    }
    segments_.push_back({t, 1, batch.positions[t], batch.sequences[t]});
  }
  for (Tiling& tiling : tilings) cut_pieces(segments_, tiling);
  const bool with_head = batch.outputs > 0 && batch.outputs <= settings.head_rows;
  pool_->run(team(batch.tokens), [&](Pool::Worker& worker) {
    fill_ropes(worker, batch);
    const Run body{*this, batch, batch.tokens, 0, worker};
    run_ops(0, head_, body);
    if (!with_head) return;
    const Run head{*this, batch, batch.outputs, 0, worker};
    run_ops(head_, ops_.size(), head);
  });
  head_start_ = 0;
  head_stop_ = with_head ? batch.outputs : 0;
}

const float* Executor::logits(int64_t start, int64_t stop) {
  if (start < 0 || stop > batch_.outputs || start >= stop || stop - start > settings.head_rows)
    throw std::invalid_argument("logits: no such block of rows");
  if (start < head_start_ || stop > head_stop_) {
    pool_->run(team(stop - start), [&](Pool::Worker& worker) {
      const Run head{*this, batch_, stop - start, start, worker};
      run_ops(head_, ops_.size(), head);
    });
    head_start_ = start;
    head_stop_ = stop;
  }
  return logits_.data() + (start - head_start_) * settings.vocabulary;
}

void Executor::check_targets(int64_t count, const int32_t* targets) const {
  for (int64_t i = 0; i < count; ++i)
    if (targets[i] < 0 || targets[i] >= settings.vocabulary) throw std::invalid_argument("score: no such token");
}

void Executor::score(int64_t start, int64_t stop, const int32_t* targets, double* out) {
  check_targets(stop - start, targets);
  const int64_t n = settings.vocabulary;
  for (int64_t block = start; block < stop; block += settings.head_rows) {
    const int64_t end = std::min<int64_t>(stop, block + settings.head_rows);
    const float* rows = logits(block, end);
    pool_->run(team(end - block), [&](Pool::Worker& worker) {
      worker.parallel(end - block, [&](int64_t i) {
        const float* x = rows + i * n;
        out[block - start + i] = double(x[targets[block - start + i]]) - kernels.log_sum_exp(x, n);
      });
    });
  }
}

void Executor::compare(int64_t start, int64_t stop, const float* base, const int32_t* targets, double* out) {
  check_targets(stop - start, targets);
  const int64_t n = settings.vocabulary;
  const float* rows = logits(start, stop);
  pool_->run(team(stop - start), [&](Pool::Worker& worker) {
    worker.parallel(stop - start, [&](int64_t i) {
      const float *x = base + i * n, *y = rows + i * n;
      const Comparison c = kernels.compare(x, y, n);
      const double base_log = double(x[targets[i]]) - c.x.value - c.x.log_mass, log = double(y[targets[i]]) - c.y.value - c.y.log_mass;
      const double columns[] = {c.divergence, base_log, log, double(c.x.place), double(c.y.place), -c.x.log_mass, -c.y.log_mass};
      std::memcpy(out + i * compared_columns, columns, sizeof columns);
    });
  });
}

void Executor::copy_page(int64_t source, int64_t target) {
  if (source < 0 || target < 0 || source >= settings.pages || target >= settings.pages)
    throw std::invalid_argument("copy_page: no such page");
  std::memcpy(cache_.data() + target * page_bytes, cache_.data() + source * page_bytes, size_t(page_bytes));
}

} // namespace lltool
