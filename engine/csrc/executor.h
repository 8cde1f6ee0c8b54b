// Runs a Program (engine/program.py): the operations are added once, then every batch is one call.
#pragma once
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "kernels.h"
#include "pool.h"

namespace lltool {

// Asks for large pages, where the system has them: a cache that is read through is read half as fast in small ones. What
// has room for a whole batch stays in small ones, as of large ones a few tokens would touch all.
constexpr size_t large_page = size_t(2) << 20;
void advise_large_pages(void* data, size_t bytes);

// Memory that is taken once and touched only when used.
template <class T> class Memory {
public:
  Memory() = default;
  explicit Memory(size_t n) : size_(n) {
    data_ = static_cast<T*>(::operator new(n * sizeof(T), alignment()));
  }
  Memory(Memory&& other) noexcept : data_(other.data_), size_(other.size_) { other.data_ = nullptr; }
  Memory& operator=(Memory&& other) noexcept {
    std::swap(data_, other.data_);
    std::swap(size_, other.size_);
    return *this;
  }
  ~Memory() { ::operator delete(data_, alignment()); }
  T* data() const { return data_; }
  size_t size() const { return size_; }

private:
  std::align_val_t alignment() const { return std::align_val_t(size_ * sizeof(T) >= large_page ? large_page : 64); }
  T* data_ = nullptr;
  size_t size_ = 0;
};

// An activation: float32 rows of `width`, at `offset` floats a row of the arena (or in the logits when offset < 0).
struct Buffer {
  int64_t offset, width;
};

struct Settings {
  std::string isa;
  int threads, max_batch, head_rows;
  int64_t arena_width, vocabulary, pages;
  bool int8;
  CacheType k_type, v_type;
  bool deterministic; // a token's results do not depend on the batch it is in
  Team decode, batch; // for one token, and for several; `threads` is the size of the larger
  int poll;
};

// The tokens of one call. `tables` is (sequences, table_width) page ids.
struct Batch {
  int64_t tokens = 0, outputs = 0, table_width = 0;
  const int32_t *ids, *positions, *sequences, *tables, *output_rows;
};

// Consecutive positions of one sequence in a batch.
struct Segment {
  int64_t row;
  int tokens, position, sequence;
};

// Keys that some tokens of a segment see, as one task of attention a key/value head: of `parts` tasks for these tokens the
// one with number `part`, and pages [first_page, end_page) of the sequence.
struct Piece {
  int64_t row;
  int tokens, position, sequence, part, parts, first_page, end_page;
};

// Batches of up to so many tokens share out the keys of one token as well, in parts of so many pages: a head that reads a
// long text alone would keep the other threads waiting. Parts do not depend on the number of threads.
constexpr int few_tokens = 8, part_pages = 4;

class Executor;

constexpr int compared_columns = 7;

// What an operation sees while it runs: `rows` is T for the body and the size of the block in the head.
struct Run {
  Executor& executor;
  const Batch& batch;
  int64_t rows, first_output;
  Pool::Worker& worker;
};

struct Op {
  virtual ~Op() = default;
  virtual void finish(const Executor&) {}     // once, when all operations are there
  virtual void run(const Run& run) const = 0; // called by every thread; at most three phases
};

// An operation whose row t of output needs only row t of input. Neighbours of this kind run as one phase, row by row:
// a barrier less each, and the row is still in the cache.
struct RowOp : Op {
  virtual void row(const Run& run, int64_t t) const = 0;
  void run(const Run& run) const override {
    run.worker.parallel(run.rows, [&](int64_t t) { row(run, t); });
  }
};

// A row operation whose columns need those of the same unit (a head, or each itself) and no others.
struct ColumnOp : RowOp {
  const int64_t width, unit; // columns of a row, and how many of them belong together
  ColumnOp(int64_t w, int64_t u) : width(w), unit(u) {}
  virtual void columns(const Run& run, int64_t t, int64_t begin, int64_t end) const = 0; // whole units
  void row(const Run& run, int64_t t) const override { columns(run, t, 0, width); }
};

// Row operations that run together.
struct RowOps : RowOp {
  std::vector<std::unique_ptr<RowOp>> ops;
  void row(const Run& run, int64_t t) const override {
    for (const auto& op : ops) op->row(run, t);
  }
};

class Executor {
public:
  explicit Executor(const Settings& settings);

  void add(std::unique_ptr<Op> op);
  void add_row(std::unique_ptr<RowOp> op); // joins the neighbour before it
  void begin_head();
  int add_rope_table(std::vector<float> frequencies, float magnitude);
  void add_cache_layer(int layer, int heads, int kv_heads, int head_dim);
  int add_tiling(int group, int window);
  void reserve_columns(int64_t K); // a linear reads K columns of its input
  void finish();                   // takes all memory

  void run(const Batch& batch);                   // body, and the head where one block holds all outputs
  const float* logits(int64_t start, int64_t stop); // (stop - start, vocabulary), of the last batch
  void score(int64_t start, int64_t stop, const int32_t* targets, double* out); // log probability of each row's target
  // Output rows [start, stop), a block at most, against `base` (stop - start, vocabulary): seven columns of out a row, in
  // the order of engine/compare.py.
  void compare(int64_t start, int64_t stop, const float* base, const int32_t* targets, double* out);
  void copy_page(int64_t source, int64_t target);

  // Operations in the order of their running; row operations that run together count as one.
  size_t operations() const { return ops_.size(); }
  // Nanoseconds that each took since the last call, up to the moment all threads were done. The first call gives zeros: from
  // then on the clock is read.
  std::vector<int64_t> take_times();

  struct RopeTable {
    std::vector<float> frequencies;
    float magnitude;
    Memory<float> cosine, sine; // (max_batch, frequencies)
  };
  // A layer's part of a page: keys of each head, laid out as cache-inl.h says, then values. The layers of a page lie together,
  // so that a short text needs little memory and a page is one copy.
  struct CacheLayer {
    int kv_heads = 0, head_dim = 0;
    int64_t k_bytes = 0, v_bytes = 0; // of a head
    int64_t offset = 0;
  };

  // How attentions with so many tokens a task, and with that window, share out the running batch.
  struct Tiling {
    int tokens, window;
    std::vector<Piece> pieces;
  };

  uint8_t* keys(const CacheLayer& c, int64_t page) const { return cache_.data() + page * page_bytes + c.offset; }
  uint8_t* values(const CacheLayer& c, int64_t page) const { return keys(c, page) + c.kv_heads * c.k_bytes; }
  float* at(Buffer b) const { return b.offset < 0 ? logits_.data() : arena_.data() + b.offset * settings.max_batch; }
  uint8_t* scratch(int thread) const { return scratch_.data() + size_t(thread) * scratch_bytes_; }
  float* partials() const { return partials_.data(); }
  float* attention_space(int thread) const { return attention_.data() + size_t(thread) * attention_floats_; }

  const Settings settings;
  const EngineKernels& kernels;
  std::vector<RopeTable> ropes;
  std::vector<CacheLayer> cache;
  int64_t page_bytes = 0;
  std::vector<Tiling> tilings;
  Quantized quantized{};         // activations of the running linear, shared by the threads
  float* packed = nullptr;
  Shortened shortened{}; // in the same place
  // One token, a thread's own.
  Quantized own_quantized(int thread) const;
  float* own_row(int thread) const { return own_rows_.data() + int64_t(thread) * columns_; }

private:
  const Team& team(int64_t rows) const { return rows == 1 ? settings.decode : settings.batch; }
  void run_ops(size_t begin, size_t end, const Run& run);
  void cut_pieces(const std::vector<Segment>& segments, Tiling& tiling) const;
  void check_targets(int64_t count, const int32_t* targets) const;
  void fill_ropes(Pool::Worker& worker, const Batch& batch);

  std::vector<std::unique_ptr<Op>> ops_;
  std::vector<int64_t> times_; // empty: nobody asked
  size_t head_ = 0;
  RowOps* open_ = nullptr; // the group that the next row operation joins
  std::unique_ptr<Pool> pool_;
  Memory<float> arena_, logits_, attention_, partials_, packed_, own_rows_;
  Memory<uint8_t> scratch_, own_, cache_;
  Memory<int8_t> q_;
  Memory<float> q_scale_, outliers_;
  Memory<int32_t> q_sum_;
  int64_t columns_ = 64;
  std::vector<Segment> segments_; // of the running batch
  size_t scratch_bytes_ = 0, attention_floats_ = 0, partial_floats_ = 0;
  Batch batch_{};
  int64_t head_start_ = 0, head_stop_ = 0;
};

} // namespace lltool
