// The operations of the engine, one table an instruction set. Sizes: K columns of a weight (the length of a dot
// product), T tokens. Rows of activations are float32, contiguous.
#pragma once
#include <cstddef>
#include <cstdint>
#include <string>

namespace lltool {

constexpr int page_tokens = 64; // tokens in a page of the KV cache
constexpr int max_head_dim = 512;

// Columns of quantized activations in row layout; those past the weight's own are zero.
constexpr int64_t padded(int64_t columns) { return (columns + 127) / 128 * 128; }

// What the KV cache holds, by ggml's numbers.
enum class CacheType : int { f32 = 0, f16 = 1, q4_0 = 2, q8_0 = 8, bf16 = 30 };

constexpr bool has_blocks(CacheType type) { return type == CacheType::q8_0 || type == CacheType::q4_0; }
// Bytes of n values, of a multiple of 32 where there are blocks.
constexpr int64_t cache_bytes(CacheType type, int64_t n) {
  switch (type) {
  case CacheType::f32: return n * 4;
  case CacheType::q8_0: return n / 32 * 34;
  case CacheType::q4_0: return n / 32 * 18;
  default: return n * 2;
  }
}

// A weight matrix as it lies in the file.
struct Matrix {
  int type;
  int64_t rows, columns, row_bytes;
  const uint8_t* data;
};

// Columns of a panel that are kept as floats beside the int8 activations: a few large ones, nearly the same for all tokens,
// would spoil the rounding of their neighbours.
constexpr int outlier_columns = 8;

// Activations as int8: x[k] ~ scale * q[k] with a scale for 8 columns in row layout and for 32 in panel layout, and sums of
// q. In row layout a token is contiguous, and K padded; in panel layout `tokens_per_panel` tokens are interleaved as the
// matrix kernel reads them (see linear-inl.h).
struct Quantized {
  int8_t* q;
  float* scale;
  int32_t* sum;
  // Panel layout: (outlier_columns, tokens_per_panel) values, then the columns, as int32; q is 0 there. Null: there are none,
  // and no token's rounding depends on others.
  float* outliers;

  // Where token t begins, or the panel that begins with it: a token takes K, K / 8, K / 4 and 16 items at most.
  Quantized token(int64_t t, int64_t K) const {
    return {q + t * K, scale + t * (K / 8), sum + t * (K / 4), outliers ? outliers + t * 16 : nullptr};
  }
};

// Activations as 14 bits in int16: x[k] ~ scale[k / 32] * q[k], in panels (floats-inl.h).
struct Shortened {
  int16_t* q;
  float* scale;

  Shortened token(int64_t t, int64_t K) const { return {q + t * K, scale + t * (K / 32)}; }
};

struct AttentionTask {
  const float* q;     // (tokens, group, head_dim)
  float* out;         // as q
  int64_t row_stride; // floats between tokens in q and out
  int tokens;         // consecutive positions of one sequence
  int first_position;
  int group;    // query heads a kv head; q and out point at the first
  int head_dim;
  float scale, softcap;
  int window;
  int first_page, end_page; // which of the sequence's pages
  const int32_t* pages;     // their ids, from the sequence's first
  const uint8_t *k_pages, *v_pages; // this layer's and kv head's first page
  int64_t page_stride;              // bytes between pages
  CacheType k_type, v_type;
  const float* sinks; // null, or a logit a head of the group that takes weight and has no value
  bool exact;         // multiply in float32
  bool tiled;         // in the way that gives a row the same bits whatever other rows there are
  float* scratch;                // attention_scratch(...) floats
  float* partial; // null, or where sums over a part of the keys go instead of `out`: attention_partial(...) floats a row
};

// The largest of a row of logits: where it stands first, and ln(sum(e^(x - value))).
struct Peak {
  int64_t place;
  float value;
  double log_mass;
};

struct Comparison {
  Peak x, y;
  double divergence; // of softmax(y) from softmax(x)
};

// Loops for probe.cpp; each returns what it did, in multiply-adds or bytes.
struct Probes {
  int64_t (*multiply_int8)(int64_t steps);
  int64_t (*multiply_int16)(int64_t steps);
  int64_t (*multiply_float)(int64_t steps);
  int64_t (*read)(const uint8_t* data, int64_t bytes);
};

struct EngineKernels {
  int lanes;            // rows of a weight tile
  int tokens_per_panel; // tokens the matrix kernels take at once

  bool (*can_multiply)(int type);  // int8 kernels exist (quantized types)
  bool (*can_decode)(int type);
  void (*decode_row)(int type, const uint8_t* row, int64_t columns, float* out);

  void (*quantize_row)(const float* x, int64_t K, Quantized out);
  // Panel layout of up to tokens_per_panel tokens, rows `stride` floats apart; missing tokens become zero.
  void (*quantize_panel)(const float* x, int64_t stride, int tokens, int64_t K, Quantized out);
  // The same for the float kernels: out is (K, tokens_per_panel).
  void (*pack_panel)(const float* x, int64_t stride, int tokens, int64_t K, float* out);

  // out[t][row] for rows [begin, end) and one or two tokens in row layout (q of token t at q + t * K, and so on).
  void (*matvec)(const Matrix& w, int64_t begin, int64_t end, Quantized x, int tokens, float* out, int64_t stride, void* scratch);
  void (*matvec_f32)(const Matrix& w, int64_t begin, int64_t end, const float* x, int64_t x_stride, int tokens, float* out,
                     int64_t stride, void* scratch);

  // out[t][row] for rows [begin, end), of more than one panel at most tile_rows, over all panels of T tokens.
  void (*matmul)(const Matrix& w, int64_t begin, int64_t end, Quantized x, int64_t T, float* out, int64_t stride, void* scratch);
  void (*matmul_f32)(const Matrix& w, int64_t begin, int64_t end, const float* panels, int64_t T, float* out, int64_t stride,
                     void* scratch);

  // For float weights (can_decode, not can_multiply) of so many columns: as matmul, on panels of shortened activations.
  bool (*can_multiply_shorts)(int64_t columns);
  void (*shorten_panel)(const float* x, int64_t stride, int tokens, int64_t K, Shortened out);
  void (*matmul_shorts)(const Matrix& w, int64_t begin, int64_t end, Shortened x, int64_t T, float* out, int64_t stride,
                        void* scratch);

  void (*rms_norm)(const float* x, const float* weight, float eps, int64_t n, float* out);
  void (*gated)(int activation, const float* gate, const float* up, int64_t n, float* out); // 0 silu, 1 gelu (tanh)
  void (*softcap)(const float* x, float cap, int64_t n, float* out);
  // log(sum(exp(x))), for scoring.
  double (*log_sum_exp)(const float* x, int64_t n);
  Comparison (*compare)(const float* x, const float* y, int64_t n);

  void (*attention)(const AttentionTask& task);
  // out of the task, from `count` partial results of it that lie `stride` floats apart.
  void (*merge_attention)(const AttentionTask& task, const float* parts, int count, int64_t stride);
  // A token's key or value, of one head, into its slot of a page.
  void (*store_cache)(CacheType type, const float* x, int64_t dim, void* page, int slot, bool is_key);

  // sums[i] += x[t][i]^2 over all rows t, for n <= observed_columns columns; rows are `stride` floats apart.
  void (*add_squares)(const float* x, int64_t stride, int64_t rows, int64_t n, double* sums);

  // Element by element; `out` may be an input.
  void (*add)(const float* x, const float* y, int64_t n, float* out);
  void (*scale)(const float* x, float factor, int64_t n, float* out);
  // Turns pairs of a head, element i with element i + pairs, or 2i with 2i + 1; `out` may be x.
  void (*rotate_halves)(const float* x, const float* cosine, const float* sine, int64_t pairs, float* out);
  void (*rotate_pairs)(const float* x, const float* cosine, const float* sine, int64_t pairs, float* out);

  Probes probes;
};

constexpr int64_t observed_columns = 64; // that an observer's task sums up: four cache lines of a row

constexpr int tile_rows = 64; // rows that are unpacked at once for more than one panel

// Scratch bytes a thread needs for weights of at most K columns (padded). matmul_f32 has the most: 32 rows and one as floats.
// matmul has 64 rows of codes with their scales and a panel's terms, K (64 3/2 + 6); matvec 2 tokens of 7/4 K and a row.
constexpr size_t matmul_scratch(int64_t K) { return size_t(K) * 4 * 33 + 4096; }
constexpr int attention_rows = 128; // query rows (tokens x heads of a group) a task may have
constexpr int attention_width(int head_dim) { return (head_dim + 15) / 16 * 16; }
// Outputs, running maximum and sum of a row.
constexpr size_t attention_partial(int head_dim) { return size_t(attention_width(head_dim)) + 2; }
// Floats for attention: a page decoded, its keys and values converted; queries and results of the rows; scores of 64 rows, and
// ten numbers a row or key.
constexpr size_t attention_scratch(int head_dim) {
  return size_t(attention_width(head_dim)) * (3 * page_tokens + 2 * attention_rows) + 64 * page_tokens + 10 * attention_rows;
}

extern const EngineKernels engine_scalar, engine_avx2, engine_avx512, engine_neon, engine_neon_dot;

// Throws std::invalid_argument for a name that is none of available_isas().
const EngineKernels& kernels_for(const std::string& isa);

} // namespace lltool
