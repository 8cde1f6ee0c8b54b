// The tables of the engine's kernels, one per instruction set. Sizes: K columns of a weight (the length of a dot
// product), T tokens. Rows of activations are contiguous float32.
#pragma once
#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <string>
#include <vector>

#include "checked.h"
#include "isas.h" // which CMake writes

namespace lltool {

constexpr int page_tokens = 64; // tokens in a page of the KV cache
constexpr int bias_padding = 16; // the most lanes of a vector: from any place in a table of biases, a vector can be loaded
constexpr int max_head_dim = 576, max_layers = 1 << 16, max_experts = 1 << 16, max_taps = 64;

// Columns of quantized activations in row layout; those after the weight's own columns are zero.
constexpr int64_t padded(int64_t columns) { return (columns + 127) / 128 * 128; }

// The types of the KV cache, with ggml's numbers.
enum class CacheType : int { f32 = 0, f16 = 1, q4_0 = 2, q8_0 = 8, bf16 = 30 };

constexpr bool is_cache_type(int type) {
  for (CacheType known : {CacheType::f32, CacheType::f16, CacheType::q4_0, CacheType::q8_0, CacheType::bf16})
    if (int(known) == type) return true;
  return false;
}
constexpr bool has_blocks(CacheType type) { return type == CacheType::q8_0 || type == CacheType::q4_0; }
// The dimensions that types with blocks transform together: the largest power of two that divides dim, and the dimensions of
// values if these are the beginnings of keys.
constexpr int64_t transformed_block(int64_t dim, int64_t value_dim = 0) { return (dim | value_dim) & -(dim | value_dim); }
constexpr int attention_width(int dim) { return (dim + 15) / 16 * 16; }
// Bytes of the keys or the values of a head in a page; types with blocks need a `dim` that is a multiple of 32, the
// others may hold `pairs` of int16 (cache-inl.h).
constexpr int64_t cache_bytes(CacheType type, int dim, bool pairs) {
  const int64_t n = int64_t(dim) * page_tokens;
  if (type == CacheType::q8_0) return n / 32 * 34;
  if (type == CacheType::q4_0) return n / 32 * 18;
  if (pairs) return page_tokens * (attention_width(dim) * 2 + 4);
  return type == CacheType::f32 ? n * 4 : n * 2;
}

// A weight matrix in the layout of the file.
struct Matrix {
  int type;
  int64_t rows, columns, row_bytes;
  const uint8_t* data;
};

// The most columns of a token that stay floats beside the int8 activations: a few columns are large, and would make the
// rounding of their neighbours worse.
constexpr int outlier_columns = 4;

// The columns of a panel that are outliers of any of its tokens; q is 0 in a token's own, and a token to which a column is no
// outlier has the value 0 there. A panel takes `items` items for each of its tokens.
struct Outliers {
  static constexpr int items = 64;
  int32_t* count;

  int32_t* columns() const { return count + 1; }
  float* values(int tokens) const { return reinterpret_cast<float*>(count + 1 + outlier_columns * tokens); } // (count, tokens)

  template <int panel> void set(const int32_t (*found)[outlier_columns], const int* counts, int tokens, const float* x, int64_t stride) const {
    static_assert(1 + outlier_columns * panel * (panel + 1) <= items * panel);
    int32_t *all = columns(), *end = all;
    for (int t = 0; t < tokens; ++t) end = std::copy(found[t], found[t] + counts[t], end);
    std::sort(all, end);
    end = std::unique(all, end);
    *count = int32_t(end - all);
    std::memset(values(panel), 0, size_t(*count) * panel * sizeof(float));
    for (int t = 0; t < tokens; ++t)
      for (int i = 0; i < counts[t]; ++i) {
        const int64_t place = std::lower_bound(all, end, found[t][i]) - all;
        values(panel)[place * panel + t] = x[t * stride + found[t][i]];
      }
  }
};

// Activations as int8: x[k] ~ scale * q[k], with a scale per 8 columns in row layout and per 32 in panel layout, and
// sums of q. In row layout a token is contiguous and K is padded; in panel layout `tokens_per_panel` tokens are
// interleaved in the order in which the matrix kernel reads them (see linear-inl.h). A token's rounding does not depend on
// the other tokens of its panel.
struct Quantized {
  int8_t* q;
  float* scale;
  int32_t* sum;
  Outliers outliers; // of a panel, or of a token for matvec_invariant

  // The position of token t, or of the panel that begins with it: a token takes at most K, K / 8 and K / 4 items.
  Quantized token(int64_t t, int64_t K) const {
    return {q + t * K, scale + t * (K / 8), sum + t * (K / 4), {outliers.count ? outliers.count + t * Outliers::items : nullptr}};
  }
};

// Activations as 14 bits in int16: x[k] ~ scale[k / 32] * q[k], in panels (floats-inl.h).
struct Shortened {
  int16_t* q;
  float* scale;

  Shortened token(int64_t t, int64_t K) const { return {q + t * K, scale + t * (K / 32)}; }
};

struct AttentionTask {
  const float* q;                 // (tokens, group, head_dim)
  float* out;                     // (tokens, group, value_dim)
  int64_t row_stride, out_stride; // floats between tokens in q, and in out
  int tokens;         // consecutive positions of one sequence
  int first_position;
  int keys;  // of the sequence that are stored
  int ahead; // positions after its own that a query sees
  int group;    // query heads per kv head; q and out point to the first
  int head_dim, value_dim; // of queries and keys, and of values
  float scale, softcap;
  int window;
  int first_key;            // the keys before it are hidden from all of the tokens
  int first_page, end_page; // the range of the sequence's pages to read
  const int32_t* pages;     // ids of the sequence's pages, from the first one on
  const uint8_t *k_pages, *v_pages; // page 0 of this layer and kv head; v_pages is null if values are the beginnings of keys
  int64_t page_stride;              // bytes between pages
  CacheType k_type, v_type;
  const float* sinks; // null, or for each head of the group the logit of a key without a value
  const float* slopes; // null, or for each head of the group what a score loses for each position between query and key
  const float* biases; // null, or for each head of the group what a score gains by the distance from query to key
  int bias_reach;      // a head has biases of -reach to reach + bias_padding; beyond them lie more of the outermost
  bool pairs;         // multiply pairs of int16, which types without blocks hold then, not floats
  float* scratch;                // attention_scratch(...) floats
  float* partial; // null, or the output instead of `out` for a part of the keys: attention_partial(...) floats per row
};

// The biases of a head, from that of distance 0 on; before them are those of negative distances, from key to query.
inline const float* biases_of(const AttentionTask& t, int head) {
  return t.biases + int64_t(head) * (2 * t.bias_reach + 1 + bias_padding) + t.bias_reach;
}

// A causal convolution of each column of some tokens of a sequence: out[t] = the sum of weight[k] x[t - taps + 1 + k].
struct ConvolutionTask {
  const float* x;
  float* out;
  int64_t tokens, columns, stride; // floats between tokens in x and out, and between rows of weight and state
  int taps;
  const float* weight; // (taps, columns)
  const float* bias;   // null, or (columns,)
  bool silu;           // apply it to the sum
  float* state;        // (taps - 1, columns): the inputs just before the first token, then those just before the next one
};

// The selective scan of some columns over tokens of a sequence (engine/operations/scan.py).
struct SelectiveScanTask {
  const float *x, *dt;
  const float *b, *c; // (tokens, states)
  float* out;
  int64_t tokens, columns, stride, states; // stride: floats between tokens in x, dt and out
  const float* a;                          // (states, columns), times log2(e)
  const float* d;
  float* state;         // (states, columns)
  int64_t state_stride; // floats between rows of a and state, which are readable to whole vectors
};

// The scan of a head of a state-space dual model over tokens of a sequence; strides are floats between tokens.
struct ScanTask {
  const float *x, *b, *c, *dt; // columns, states, states and one number of a token
  float* out;
  int64_t x_stride, bc_stride, dt_stride, out_stride;
  int64_t tokens, columns, states;
  float a, d, dt_bias;
  float* state;         // (states, columns)
  int64_t state_stride; // floats between rows, which hold whole vectors
};

// The state of a head of linear attention is in tiles of so many of its columns; a tile has a row for each dimension of the
// keys, and zeros up to a multiple of four.
constexpr int delta_tile(int lanes) { return 2 * lanes; }
constexpr int64_t delta_rows(int64_t key_dim) { return (key_dim + 3) / 4 * 4; }
constexpr int64_t delta_floats(int lanes, int64_t key_dim, int64_t value_dim) {
  return (value_dim + delta_tile(lanes) - 1) / delta_tile(lanes) * delta_tile(lanes) * delta_rows(key_dim);
}
constexpr int max_delta_dim = 256; // of keys
constexpr float delta_epsilon = 1e-6f; // is added to the squared lengths of queries and keys

// One head of the gated delta rule (engine/operations/delta.py), for consecutive tokens of a sequence. Pointers are to the
// first token, and each is followed by its floats between tokens.
struct DeltaTask {
  const float *q, *k, *v; // of this head
  int64_t stride;
  const float* beta;
  int64_t beta_stride;
  const float* alpha; // one number, or one for each dimension of the key
  int64_t alpha_stride, alpha_width;
  float rate;
  const float* bias;
  float* out;
  int64_t out_stride;
  int64_t tokens, key_dim, value_dim;
  float* state; // delta_floats
};

constexpr int max_shifts = 8;

// The token shift of some columns (engine/operations/rwkv.py) over tokens of a sequence.
struct TokenShiftTask {
  const float* x;
  float* outs[max_shifts];
  int count; // of outs
  int64_t tokens, columns, stride; // floats between tokens in x and outs, and between rows of the weight
  const float* weight;             // (count, columns)
  float* state;                    // (columns,): x just before the first token, then that of the last one
};

constexpr float fastest_decay = 0.60653066f; // e^-0.5
constexpr float least_length = 1e-12f;       // that the direction of a removed key is divided by

// One head of RWKV 7's time mixing (engine/operations/rwkv.py), for consecutive tokens of a sequence. All rows of a token are
// `stride` floats after those of the one before.
struct TimeMixTask {
  const float *r, *w, *k, *v, *a;
  const float *first, *mix; // null: v is the value
  const float *k_k, *k_a, *r_k;
  float *out, *bonus;
  int64_t stride, tokens, dim;
  float* state; // delta_floats
};

// The types of the factors of adapters, with ggml's numbers.
enum class FactorType : int { f32 = 0, f16 = 1, bf16 = 30 };
constexpr int64_t factor_bytes(FactorType type) { return type == FactorType::f32 ? 4 : 2; }

// x @ down: `down` is (columns, rank), with a rank of whole vectors; `out` has a row of `rank` for each row of x.
struct LowRankDown {
  FactorType type;
  const uint8_t* down;
  int64_t columns, rank;
};

// Columns [begin, end) of out += h @ up, where `up` is (rank, columns) and rows of h are `stride` floats apart.
struct LowRankUp {
  FactorType type;
  const uint8_t* up;
  int64_t rank, columns, stride, begin, end;
};

// The largest logit of a row: its first place, its value, and ln(sum(e^(x - value))) over the row.
struct Peak {
  int64_t place;
  float value;
  double log_mass;
};

struct Comparison {
  Peak x, y;
  double divergence; // of softmax(y) from softmax(x)
};

// Loops for probe.cpp; each returns its amount of work in multiply-adds or bytes.
struct Probes {
  int64_t (*multiply_int8)(int64_t steps);
  int64_t (*multiply_int16)(int64_t steps);
  int64_t (*multiply_float)(int64_t steps);
  int64_t (*read)(const uint8_t* data, int64_t bytes);
};

// A function of columns: out = f(x, y, factor) for n columns of a row, where some need no y or no factor; `out` may be x.
using ColumnFunction = void(const float* x, const float* y, float factor, int64_t n, float* out);

struct NamedFunction {
  const char* name;
  ColumnFunction* run;
  // 0: each column is computed from the same column of x and y. Else n is a whole unit, such as what a norm covers, and
  // y holds this many vectors of n weights.
  int vectors;
  float least_factor;
};

// Each entry is filled by its name (kernels-inl.h).
struct EngineKernels {
  const char* isa;      // the instruction set that the table was compiled for
  int lanes;            // rows of a weight tile
  int tokens_per_panel; // tokens that the matrix kernels process at once
  bool multiplies_pairs; // attention can multiply pairs of int16

  Layout (*layout)(int type);
  bool (*can_multiply)(int type);  // whether int8 kernels exist (quantized types)
  bool (*can_decode)(int type);
  void (*decode_row)(int type, const uint8_t* row, int64_t columns, float* out);

  void (*quantize_row)(const float* x, int64_t K, Quantized out);
  // The same rounding as in a panel, in a row layout of its own for matvec_invariant.
  void (*quantize_invariant)(const float* x, int64_t K, Quantized out);
  // Quantizes up to tokens_per_panel tokens to panel layout; rows are `stride` floats apart, missing tokens are zero.
  void (*quantize_panel)(const float* x, int64_t stride, int tokens, int64_t K, Quantized out);
  // The same for the float kernels; out is (K, tokens_per_panel).
  void (*pack_panel)(const float* x, int64_t stride, int tokens, int64_t K, float* out);

  // Computes out[t][row] for rows [begin, end) and one or two tokens in row layout (q of token t is at q + t * K).
  void (*matvec)(const Matrix& w, int64_t begin, int64_t end, Quantized x, int tokens, float* out, int64_t stride, void* scratch);
  // The same for quantize_invariant: the results have the bits of those of matmul, at most of matvec's speed.
  void (*matvec_invariant)(const Matrix& w, int64_t begin, int64_t end, Quantized x, int tokens, float* out, int64_t stride, void* scratch);
  void (*matvec_f32)(const Matrix& w, int64_t begin, int64_t end, const float* x, int64_t x_stride, int tokens, float* out,
                     int64_t stride, void* scratch);

  // Computes out[t][row] for rows [begin, end) and all panels of T tokens; with several panels, at most tile_rows rows.
  void (*matmul)(const Matrix& w, int64_t begin, int64_t end, Quantized x, int64_t T, float* out, int64_t stride, void* scratch);
  void (*matmul_f32)(const Matrix& w, int64_t begin, int64_t end, const float* panels, int64_t T, float* out, int64_t stride,
                     void* scratch);

  // Like matmul, with panels of shortened activations, for float weights (can_decode, not can_multiply) of K columns.
  bool (*can_multiply_shorts)(int64_t columns);
  void (*shorten_panel)(const float* x, int64_t stride, int tokens, int64_t K, Shortened out);
  void (*matmul_shorts)(const Matrix& w, int64_t begin, int64_t end, Shortened x, int64_t T, float* out, int64_t stride,
                        void* scratch);

  const NamedFunction* functions; // ends with one without a name
  // Returns log(sum(exp(x))), for scoring.
  double (*log_sum_exp)(const float* x, int64_t n);
  Comparison (*compare)(const float* x, const float* y, int64_t n);
  // For sampling; see sample-inl.h.
  bool (*block_maxima)(const float* x, int64_t n, float* out);
  double (*sum_exp)(const float* x, int64_t n, float top, float factor);

  void (*attention)(const AttentionTask& task);
  // Computes the task's `out` from `count` partial results, which are `stride` floats apart.
  void (*merge_attention)(const AttentionTask& task, const float* parts, int count, int64_t stride);
  // Stores a token's key or value of one head in its slot of a page; types with blocks transform `block` dimensions at a time.
  void (*store_cache)(CacheType type, bool pairs, const float* x, int64_t dim, int64_t block, void* page, int slot, bool is_key);

  void (*convolve)(const ConvolutionTask& task);
  void (*selective_scan)(const SelectiveScanTask& task);
  void (*scan)(const ScanTask& task);
  void (*gated_delta)(const DeltaTask& task);
  void (*token_shift)(const TokenShiftTask& task);
  void (*time_mix)(const TimeMixTask& task);

  void (*low_rank_down)(const LowRankDown& task, int rows, const float* const* x, float* out);
  void (*low_rank_up)(const LowRankUp& task, int rows, const float* h, float* const* out);

  // sums[i] += x[t][i]^2 over all rows t, for n <= observed_columns columns; rows are `stride` floats apart.
  void (*add_squares)(const float* x, int64_t stride, int64_t rows, int64_t n, double* sums);

  // Rotates pairs of a head: element i with element i + pairs, or 2i with 2i + 1; `out` may be x.
  void (*rotate_halves)(const float* x, const float* cosine, const float* sine, int64_t pairs, float* out);
  void (*rotate_pairs)(const float* x, const float* cosine, const float* sine, int64_t pairs, float* out);

  Probes probes;

  // Throws std::invalid_argument for a name that is not in the table.
  const NamedFunction& function(const std::string& name) const;
};

constexpr int64_t sample_block = 64; // logits of which sampling first takes the largest

constexpr int64_t observed_columns = 64; // columns that a task of an observer sums: four cache lines of a row

constexpr int tile_rows = 64; // rows that are unpacked at once if there are several panels

// Scratch bytes per thread for weights of at most K (padded) columns. matmul_f32 needs the most, 33 rows of floats;
// matmul needs 64 rows of codes with scales and a panel's terms, K (64 3/2 + 6); matvec 2 tokens of 7/4 K and a row,
// matvec_invariant about 20 K.
constexpr size_t matmul_scratch(int64_t K) { return size_t(K) * 4 * 33 + 4096; }
constexpr int attention_rows = 128; // most query rows (tokens x heads of a group) of a task
// Floats of a row's partial result: outputs, running maximum and sum.
constexpr size_t attention_partial(int value_dim) { return size_t(attention_width(value_dim)) + 2; }
// Scratch floats for attention: keys and values of a page as they are multiplied, queries and results of the rows;
// `widest` is the larger of head_dim and value_dim.
constexpr size_t attention_scratch(int widest) {
  return size_t(attention_width(widest)) * (2 * page_tokens + 2 * attention_rows);
}
// Keys of a sequence are reduced in parts of so many pages, whichever threads do it.
constexpr int part_pages = 4;

#define ROW(name, runs) extern const EngineKernels engine_##name;
LLTOOL_ISAS(ROW)
#undef ROW

std::vector<std::string> built_isas(); // the instruction sets that these kernels were compiled for, best first

// Throws std::invalid_argument for a name that is not in available_isas().
const EngineKernels& kernels_for(const std::string& isa);

} // namespace lltool
