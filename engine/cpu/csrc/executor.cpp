#include "executor.h"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstring>
#include <stdexcept>
#include <utility>

#if defined(__linux__)
#include <sys/mman.h>
#endif

#include "isa.h"

namespace lltool {

void advise_large_pages([[maybe_unused]] void* data, [[maybe_unused]] size_t bytes) {
#if defined(__linux__)
  madvise(data, bytes, MADV_HUGEPAGE); // only advice: it fails without effect on a system without large pages
#endif
}

#define ROW(name, runs) &engine_##name,
static const EngineKernels* const tables[] = {LLTOOL_ISAS(ROW)};
#undef ROW

std::vector<std::string> built_isas() { return names_of(tables); }

const EngineKernels& kernels_for(const std::string& name) { return table_of(tables, name); }

const NamedFunction& EngineKernels::function(const std::string& name) const {
  for (const NamedFunction* known = functions; known->name; ++known)
    if (name == known->name) return *known;
  throw std::invalid_argument("no function '" + name + "'");
}

Executor::Executor(const Settings& s) : settings(s), kernels(kernels_for(s.isa)), pairs(s.int8 && kernels.multiplies_pairs) {}

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
  const int64_t n = checked_mul(settings.max_batch, frequencies.size());
  ropes.push_back({std::move(frequencies), magnitude, Memory<float>(n), Memory<float>(n)});
  return int(ropes.size()) - 1;
}

void Executor::add_cache_layer(int layer, int heads, int kv_heads, int head_dim, int value_dim, bool values_are_keys, bool shared,
                               bool stores) {
  const CacheType v_type = values_are_keys ? settings.k_type : settings.v_type;
  if ((has_blocks(settings.k_type) && head_dim % 32) || (has_blocks(v_type) && value_dim % 32))
    throw std::invalid_argument("a cache type with blocks wants heads of a multiple of 32");
  if (cache.size() <= size_t(layer)) cache.resize(size_t(layer) + 1);
  CacheLayer& c = cache[size_t(layer)];
  const int64_t k_bytes = cache_bytes(settings.k_type, head_dim, pairs);
  const int64_t v_bytes = values_are_keys ? 0 : cache_bytes(v_type, value_dim, pairs);
  const bool is_same = c.kv_heads == kv_heads && c.k_bytes == k_bytes && c.v_bytes == v_bytes;
  if (!stores && !is_same) throw std::invalid_argument("layer " + std::to_string(layer) + " has stored no keys of these shapes");
  if (c.kv_heads && stores && !(is_same && shared && c.shared))
    throw std::invalid_argument("layer " + std::to_string(layer) + " has two attentions");
  attention_floats_ = std::max(attention_floats_, attention_scratch(std::max(head_dim, value_dim)));
  const int64_t parts = settings.pages / part_pages + 2, tokens = std::min(settings.max_batch, few_tokens);
  const int64_t partials = checked_mul(parts, tokens, heads, attention_partial(value_dim));
  partial_floats_ = std::max(partial_floats_, size_t(partials));
  if (c.kv_heads) return;
  c = {shared, kv_heads, k_bytes, v_bytes, page_bytes};
  const int64_t more = checked_mul(kv_heads, k_bytes + v_bytes);
  checked_mul(settings.pages, page_bytes + more, 2); // twice, so that later additions cannot overflow
  page_bytes += more;
}

int Executor::add_tiling(int group, int window, int ahead, int chunk) {
  const int tokens = std::max(1, attention_rows / group);
  for (size_t i = 0; i < tilings.size(); ++i) {
    const Tiling& t = tilings[i];
    if (t.tokens == tokens && t.window == window && t.ahead == ahead && t.chunk == chunk) return int(i);
  }
  tilings.push_back({tokens, window, ahead, chunk, {}});
  return int(tilings.size()) - 1;
}

void Executor::cut_pieces(const std::vector<Segment>& segments, Tiling& tiling) const {
  tiling.pieces.clear();
  const bool is_shared = batch_.tokens <= few_tokens && settings.threads > 1;
  for (const Segment& s : segments) {
    const int keys = s.position + s.tokens;
    for (int first = 0, n; first < s.tokens; first += n) {
      const int position = s.position + first, in_chunk = tiling.chunk ? position % tiling.chunk : 0;
      n = std::min(tiling.tokens, s.tokens - first);
      if (tiling.chunk) n = std::min(n, tiling.chunk - in_chunk);
      Piece p{s.row + first, n, position, s.sequence, keys, 0, 1, 0, 0, tiling.chunk ? position - in_chunk : 0};
      const int in_window = tiling.window && position >= tiling.window ? position - tiling.window + 1 : 0;
      const int start = std::max(in_window, p.first_key) / page_tokens;
      const int own = p.position + p.tokens - 1, last = own + std::min(tiling.ahead, keys - 1 - own);
      const int end = last / page_tokens + 1, before = start / part_pages; // whole parts
      if (is_shared) p.parts = (end - 1) / part_pages + 1 - before;
      for (; p.part < p.parts; ++p.part) {
        p.first_page = std::max(start, (before + p.part) * part_pages);
        p.end_page = p.part + 1 == p.parts ? end : (before + p.part + 1) * part_pages;
        tiling.pieces.push_back(p);
      }
    }
  }
}

int64_t Executor::add_state(int64_t floats) {
  if (settings.slots < 1) throw std::invalid_argument("an operation with a state of fixed size in an executor without slots");
  checked_mul(floats, 2 * sizeof(float)); // twice, so that additions cannot overflow
  const int64_t offset = slot_floats, more = (floats + 15) / 16 * 16; // whole lines of the cache
  checked_mul(settings.slots, offset + more, 2 * sizeof(float));
  slot_floats += more;
  return offset;
}

void Executor::reserve_columns(int64_t K) { columns_ = std::max(columns_, padded(K)); }

void Executor::reserve_rows(int64_t rows, int64_t K, bool int8, bool floats) {
  const int64_t items = checked_mul(rows, padded(K));
  if (int8) quantized_rows_ = std::max(quantized_rows_, rows), quantized_items_ = std::max(quantized_items_, items);
  if (floats) packed_items_ = std::max(packed_items_, items);
}

void Executor::finish() {
  const int64_t panel = kernels.tokens_per_panel, rows = (settings.max_batch + panel - 1) / panel * panel, threads = settings.threads;
  const int64_t of_batch = checked_mul(rows, columns_), whole_vectors = 16; // which kernels read past the last row
  const int64_t items = std::max(of_batch, quantized_items_), floats = std::max(of_batch, packed_items_);
  arena_ = Memory<float>(checked_mul(settings.arena_width, settings.max_batch) + whole_vectors);
  logits_ = Memory<float>(checked_mul(settings.head_rows, settings.vocabulary) + whole_vectors);
  q_ = Memory<int8_t>(items);
  q_scale_ = Memory<float>(items / 8);
  q_sum_ = Memory<int32_t>(items / 4);
  packed_ = Memory<float>(floats);
  outliers_ = Memory<int32_t>(checked_mul(std::max(rows, quantized_rows_), Outliers::items));
  quantized = {q_.data(), q_scale_.data(), q_sum_.data(), {outliers_.data()}};
  packed = packed_.data();
  shortened = {reinterpret_cast<int16_t*>(packed), packed + floats / 2};
  scratch_bytes_ = matmul_scratch(columns_);
  scratch_ = Memory<uint8_t>(checked_mul(scratch_bytes_, threads));
  own_ = Memory<uint8_t>(checked_mul(threads, own_bytes()));
  own_rows_ = Memory<float>(checked_mul(threads, columns_));
  cache_ = Memory<uint8_t>(checked_mul(settings.pages, page_bytes) + 64);
  advise_large_pages(cache_.data(), cache_.size());
  slots_ = Memory<float>(checked_mul(settings.slots, slot_floats));
  attention_ = Memory<float>(checked_mul(attention_floats_, threads));
  partials_ = Memory<float>(int64_t(partial_floats_));
  for (const auto& op : ops_) op->finish(*this);
  const std::shared_ptr<Pool> pool = Pool::of_process();
  pool->reserve(settings.threads, 3 + 3 * int(ops_.size()));
  pool_ = pool;
}

Quantized Executor::own_quantized(int thread) const {
  uint8_t* p = own_.data() + thread * own_bytes();
  float* scale = reinterpret_cast<float*>(p + columns_);
  int32_t* sum = reinterpret_cast<int32_t*>(scale + columns_ / 8);
  return {reinterpret_cast<int8_t*>(p), scale, sum, {sum + columns_ / 4}};
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

void Executor::clear_new_states(Pool::Worker& worker) const {
  const auto is_new = [](const Segment& s) { return s.position == 0; };
  if (slot_floats == 0 || std::none_of(segments_.begin(), segments_.end(), is_new)) return;
  constexpr int64_t block = 1 << 14; // floats
  const int64_t blocks = (slot_floats + block - 1) / block;
  worker.parallel(int64_t(segments_.size()) * blocks, [&](int64_t i) {
    const Segment& s = segments_[size_t(i / blocks)];
    const int64_t begin = i % blocks * block, end = std::min(begin + block, slot_floats);
    if (is_new(s)) std::fill(state(s, begin), state(s, end), 0.0f);
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
  head_start_ = head_stop_ = 0; // even if the run fails, the logits of the last batch are invalid
  const bool with_head = batch.outputs > 0 && batch.outputs <= settings.head_rows;
  pool_->run(team(batch.tokens), settings.poll, [&](Pool::Worker& worker) {
    fill_ropes(worker, batch);
    clear_new_states(worker);
    const Run body{*this, batch, batch.tokens, 0, worker};
    run_ops(0, head_, body);
    if (!with_head) return;
    const Run head{*this, batch, batch.outputs, 0, worker};
    run_ops(head_, ops_.size(), head);
  });
  head_stop_ = with_head ? batch.outputs : 0;
}

const float* Executor::logits(int64_t start, int64_t stop) {
  if (start < 0 || stop > batch_.outputs || start >= stop || stop - start > settings.head_rows)
    throw std::invalid_argument("logits: no such block of rows");
  if (start < head_start_ || stop > head_stop_) {
    head_start_ = head_stop_ = 0;
    pool_->run(team(stop - start), settings.poll, [&](Pool::Worker& worker) {
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

void Executor::check_rows(int64_t start, int64_t count) const {
  if (start < 0 || count < 0 || start > batch_.outputs || count > batch_.outputs - start)
    throw std::invalid_argument("the last batch has no such rows of logits");
}

void Executor::score(int64_t start, int64_t count, const int32_t* targets, double* out) {
  check_rows(start, count);
  check_targets(count, targets);
  const int64_t stop = start + count;
  const int64_t n = settings.vocabulary;
  for (int64_t block = start; block < stop; block += settings.head_rows) {
    const int64_t end = std::min<int64_t>(stop, block + settings.head_rows);
    const float* rows = logits(block, end);
    pool_->run(team(end - block), settings.poll, [&](Pool::Worker& worker) {
      worker.parallel(end - block, [&](int64_t i) {
        const float* x = rows + i * n;
        out[block - start + i] = double(x[targets[block - start + i]]) - kernels.log_sum_exp(x, n);
      });
    });
  }
}

void Executor::compare(int64_t start, int64_t count, const float* base, const int32_t* targets, double* out) {
  check_rows(start, count);
  check_targets(count, targets);
  const int64_t stop = start + count;
  const int64_t n = settings.vocabulary;
  const float* rows = logits(start, stop);
  pool_->run(team(stop - start), settings.poll, [&](Pool::Worker& worker) {
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
  if (source == target) return;
  std::memcpy(cache_.data() + target * page_bytes, cache_.data() + source * page_bytes, size_t(page_bytes));
}

uint8_t* Executor::page_data(int64_t page) {
  if (page < 0 || page >= settings.pages) throw std::invalid_argument("page_data: no such page");
  return cache_.data() + page * page_bytes;
}

uint8_t* Executor::slot_data(int64_t number) {
  if (number < 0 || number >= settings.slots) throw std::invalid_argument("slot_data: no such slot");
  return reinterpret_cast<uint8_t*>(slot(number));
}

void Executor::copy_slot(int64_t source, int64_t target) {
  if (source < 0 || target < 0 || source >= settings.slots || target >= settings.slots)
    throw std::invalid_argument("copy_slot: no such slot");
  if (source != target) std::copy_n(slot(source), slot_floats, slot(target));
}

} // namespace lltool
