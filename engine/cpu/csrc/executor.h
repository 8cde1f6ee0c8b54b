// Runs a Program (engine/program.py): the operations are added once, then every batch is one call.
#pragma once
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "kernels.h"
#include "pool.h"

namespace lltool {

// Asks for large pages if the system has them: reading a whole cache is half as fast with small ones. Buffers with room
// for a whole batch keep small pages, because a few tokens would touch all of their large ones.
constexpr size_t large_page = size_t(2) << 20;
void advise_large_pages(void* data, size_t bytes);

// Memory that is allocated once and touched only when it is used.
template <class T> class Memory {
public:
  Memory() = default;
  explicit Memory(int64_t n) : size_(size_t(checked_mul(n, sizeof(T)) / int64_t(sizeof(T)))) {
    data_ = static_cast<T*>(::operator new(size_ * sizeof(T), alignment()));
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

// An activation: float32 rows of `width`, at `offset` floats per row of the arena (in the logits if offset < 0).
struct Buffer {
  int64_t offset, width;
  bool operator==(const Buffer& other) const { return offset == other.offset && width == other.width; }
};

struct Settings {
  std::string isa;
  int threads, max_batch, head_rows;
  int64_t arena_width, vocabulary, pages, slots;
  bool int8;
  CacheType k_type, v_type;
  bool deterministic; // one or two tokens are computed with the bits that they have among more, few with float weights as many
  Team decode, batch; // for one token, and for several; `threads` is the larger size of the two
  int poll;
};

// The tokens of one call. `tables` is (sequences, table_width) page ids; `slots` are the sequences' slots, or null if the
// program has no states of fixed size.
struct Batch {
  int64_t tokens = 0, outputs = 0, table_width = 0;
  const int32_t *ids, *positions, *sequences, *tables, *output_rows, *slots, *types;
  // The scales of adapters, (sequence_count, adapters); null: all are 0.
  const float* scales = nullptr;
  int64_t sequence_count = 0, adapters = 0;
};

// Consecutive positions of one sequence in a batch. If the program has slots, a sequence has one segment in a batch.
struct Segment {
  int64_t row;
  int tokens, position, sequence;
};

// An attention task, one per key/value head: some tokens of a segment with pages [first_page, end_page) of their
// keys, of which `keys` are stored, and they see none before `first_key`. The keys of these tokens are shared out to `parts`
// tasks, of which this is number `part`.
struct Piece {
  int64_t row;
  int tokens, position, sequence, keys, part, parts, first_page, end_page, first_key;
};

// In batches of at most few_tokens, threads also share the keys of a token, a part each: otherwise the others would wait
// for one that reads a long text.
constexpr int few_tokens = 8;

class Executor;

constexpr int compared_columns = 7;

// The arguments of a running operation; `rows` is T in the body and the size of the block in the head.
struct Run {
  Executor& executor;
  const Batch& batch;
  int64_t rows, first_output;
  Pool::Worker& worker;
};

struct Op {
  virtual ~Op() = default;
  virtual void finish(const Executor&) {}     // called once, after all operations were added
  virtual void run(const Run& run) const = 0; // called by every thread; uses at most three phases
};

// An operation whose row t of output needs only row t of input. Consecutive ones run as one phase, row by row, which
// saves a barrier for each and finds the row still in the cache.
struct RowOp : Op {
  virtual void row(const Run& run, int64_t t) const = 0;
  void run(const Run& run) const override {
    run.worker.parallel(run.rows, [&](int64_t t) { row(run, t); });
  }
};

// A row operation whose columns need only the columns of the same unit (a head, or a single column).
struct ColumnOp : RowOp {
  const int64_t width, unit; // columns of a row, and columns of a unit
  ColumnOp(int64_t w, int64_t u) : width(w), unit(u) {}
  virtual void columns(const Run& run, int64_t t, int64_t begin, int64_t end) const = 0; // whole units
  void row(const Run& run, int64_t t) const override { columns(run, t, 0, width); }
};

// Consecutive row operations, run together.
struct RowOps : RowOp {
  std::vector<std::unique_ptr<RowOp>> ops;
  void row(const Run& run, int64_t t) const override {
    for (const auto& op : ops) op->row(run, t);
  }
};

class Executor {
public:
  explicit Executor(const Settings& settings);

  // The caller must have checked each operation, and must not add one after finish().
  void add(std::unique_ptr<Op> op);
  void add_row(std::unique_ptr<RowOp> op); // joins the row operations just before it
  void begin_head();
  int add_rope_table(std::vector<float> frequencies, float magnitude);
  // With `values_are_keys`, values take no room. A `shared` layer's memory can be taken in turn by attentions of the same
  // shapes. An attention that does not store reads what one before it has stored.
  void add_cache_layer(int layer, int heads, int kv_heads, int head_dim, int value_dim, bool values_are_keys, bool shared, bool stores);
  int add_tiling(int group, int window, int ahead, int chunk);
  // Adds a part of `floats` numbers to each slot, for an operation that keeps a state of fixed size; returns its offset.
  int64_t add_state(int64_t floats);
  void reserve_columns(int64_t K); // for a linear that reads K columns of its input
  // For prepared activations of more rows than a batch has, of K columns each.
  void reserve_rows(int64_t rows, int64_t K, bool int8, bool floats);
  void finish();                   // allocates all memory
  bool is_finished() const { return pool_ != nullptr; }

  void run(const Batch& batch);                   // the body, and the head if one block holds all outputs
  const float* logits(int64_t start, int64_t stop); // (stop - start, vocabulary), of the last batch
  void score(int64_t start, int64_t count, const int32_t* targets, double* out); // log probability of each row's target
  // Compares at most a block of output rows from `start` on with `base` (count, vocabulary); writes seven columns per
  // row to `out`, in the order of engine/reference/compare.py.
  void compare(int64_t start, int64_t count, const float* base, const int32_t* targets, double* out);
  void copy_page(int64_t source, int64_t target);
  void copy_slot(int64_t source, int64_t target);
  // The bytes of a page or slot, `page_bytes` or `slot_bytes()`, in this executor's own layout.
  uint8_t* page_data(int64_t page);
  uint8_t* slot_data(int64_t number);
  int64_t slot_bytes() const { return slot_floats * int64_t(sizeof(float)); }

  // The number of operations; row operations that run together count as one.
  size_t operations() const { return ops_.size(); }
  // Nanoseconds of each operation since the last call, until all threads had finished it. The first call returns zeros
  // and turns timing on.
  std::vector<int64_t> take_times();

  struct RopeTable {
    std::vector<float> frequencies;
    float magnitude;
    Memory<float> cosine, sine; // (max_batch, frequencies)
  };
  // A layer's part of a page: the keys of each head (layout in cache-inl.h), then the values. A page holds all layers:
  // a short text needs little memory, and a page is copied at once.
  struct CacheLayer {
    bool shared = false;
    int kv_heads = 0;
    int64_t k_bytes = 0, v_bytes = 0; // of a head
    int64_t offset = 0;
  };

  // How attentions with `tokens` per task, this `window` and `ahead`, or `chunk`, split the running batch into tasks.
  struct Tiling {
    int tokens, window, ahead, chunk;
    std::vector<Piece> pieces;
  };

  const std::vector<Segment>& segments() const { return segments_; } // of the running batch
  // A part of the slot of the segment's sequence: the state before the segment's tokens, all zero at position 0. The
  // operation that added the part leaves the state after the tokens there.
  float* state(const Segment& s, int64_t offset) const { return slot(batch_.slots[s.sequence]) + offset; }

  uint8_t* keys(const CacheLayer& c, int64_t page) const { return cache_.data() + page * page_bytes + c.offset; }
  uint8_t* values(const CacheLayer& c, int64_t page) const { return keys(c, page) + c.kv_heads * c.k_bytes; }
  float* at(Buffer b) const { return b.offset < 0 ? logits_.data() : arena_.data() + b.offset * settings.max_batch; }
  uint8_t* scratch(int thread) const { return scratch_.data() + size_t(thread) * scratch_bytes_; }
  float* partials() const { return partials_.data(); }
  float* attention_space(int thread) const { return attention_.data() + size_t(thread) * attention_floats_; }

  const Settings settings;
  const EngineKernels& kernels;
  const bool pairs; // attention multiplies pairs of int16
  // For one or two tokens.
  decltype(EngineKernels::quantize_row) const quantize_row = settings.deterministic ? kernels.quantize_invariant : kernels.quantize_row;
  decltype(EngineKernels::matvec) const matvec = settings.deterministic ? kernels.matvec_invariant : kernels.matvec;
  std::vector<RopeTable> ropes;
  std::vector<CacheLayer> cache;
  int64_t page_bytes = 0, slot_floats = 0;
  std::vector<Tiling> tilings;
  Quantized quantized{};         // activations of the running linear, shared by the threads
  float* packed = nullptr;
  Shortened shortened{}; // in the same memory as `packed`
  // Space for one token, private to a thread.
  Quantized own_quantized(int thread) const;
  int64_t own_bytes() const { return columns_ / 2 * 5 + Outliers::items * 4; }
  float* own_row(int thread) const { return own_rows_.data() + int64_t(thread) * columns_; }

private:
  const Team& team(int64_t rows) const { return rows == 1 ? settings.decode : settings.batch; }
  void run_ops(size_t begin, size_t end, const Run& run);
  void cut_pieces(const std::vector<Segment>& segments, Tiling& tiling) const;
  void check_rows(int64_t start, int64_t count) const;
  void check_targets(int64_t count, const int32_t* targets) const;
  void fill_ropes(Pool::Worker& worker, const Batch& batch);
  void clear_new_states(Pool::Worker& worker) const;
  float* slot(int64_t number) const { return slots_.data() + number * slot_floats; }

  std::vector<std::unique_ptr<Op>> ops_;
  std::vector<int64_t> times_; // empty: timing is off
  size_t head_ = 0;
  RowOps* open_ = nullptr; // the row operations that the next one joins; null: none
  std::shared_ptr<Pool> pool_; // that of the process
  Memory<float> arena_, logits_, attention_, partials_, packed_, own_rows_, slots_;
  Memory<uint8_t> scratch_, own_, cache_;
  Memory<int8_t> q_;
  Memory<float> q_scale_;
  Memory<int32_t> q_sum_, outliers_;
  int64_t columns_ = 64;
  int64_t quantized_rows_ = 0, quantized_items_ = 0, packed_items_ = 0; // that were reserved beyond those of a batch
  std::vector<Segment> segments_; // of the running batch
  size_t scratch_bytes_ = 0, attention_floats_ = 0, partial_floats_ = 0;
  Batch batch_{};
  int64_t head_start_ = 0, head_stop_ = 0;
};

} // namespace lltool
