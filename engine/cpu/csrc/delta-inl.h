// Linear attention by the delta rule; kernels.h defines the task.
#pragma once
#include "convolution-inl.h"

namespace {

constexpr int tile_vectors = lltool::delta_tile(lanes) / lanes;

// Lets a tile of the state, (rows, delta_tile), decay; adds `key` times what `v` differs from what `read` finds in the
// state; gives what `query` then finds. Rows are a multiple of four, so that four sums hide each other's latency; the order
// in which they are added does not depend on the batch. `decay` is one number, or one for each row.
template <bool each_decays>
inline void delta_step(float* state, int64_t rows, const float* read, const float* key, const float* query, const float* decay,
                       float strength, const float* v, float* out) {
  constexpr int sums = 4, tile = tile_vectors * lanes;
  vf found[sums][tile_vectors] = {}, given[sums][tile_vectors] = {}, change[tile_vectors];
  for (int64_t i = 0; i < rows; i += sums)
    for (int s = 0; s < sums; ++s)
      for (int j = 0; j < tile_vectors; ++j) found[s][j] += load<vf>(state + (i + s) * tile + j * lanes) * read[i + s];
  for (int j = 0; j < tile_vectors; ++j)
    change[j] = (load<vf>(v + j * lanes) - ((found[0][j] + found[1][j]) + (found[2][j] + found[3][j]))) * strength;
  for (int64_t i = 0; i < rows; i += sums)
    for (int s = 0; s < sums; ++s)
      for (int j = 0; j < tile_vectors; ++j) {
        float* at = state + (i + s) * tile + j * lanes;
        const vf next = load<vf>(at) * decay[each_decays ? i + s : 0] + change[j] * key[i + s];
        store(at, next);
        given[s][j] += next * query[i + s];
      }
  for (int j = 0; j < tile_vectors; ++j)
    store(out + j * lanes, (given[0][j] + given[1][j]) + (given[2][j] + given[3][j]));
}

// Writes x * scale to `out`, and zeros up to `rows`; the scale divides x by its length and by `divisor`.
inline void unit_vector(const float* x, int64_t n, float divisor, int64_t rows, float* out) {
  vf squares{};
  int64_t i = 0;
  for (; i + lanes <= n; i += lanes) squares += load<vf>(x + i) * load<vf>(x + i);
  float sum = sum_of(squares);
  for (; i < n; ++i) sum += x[i] * x[i];
  const float scale = 1.0f / (std::sqrt(sum + lltool::delta_epsilon) * divisor);
  for (i = 0; i < n; ++i) out[i] = x[i] * scale;
  for (; i < rows; ++i) out[i] = 0;
}

void gated_delta(const lltool::DeltaTask& task) {
  constexpr int block = 8, tile = tile_vectors * lanes; // tokens that pass over a tile while it is in the cache
  const int64_t rows = lltool::delta_rows(task.key_dim), n = task.key_dim;
  const bool each_decays = task.alpha_width > 1;
  struct Token {
    float read[lltool::max_delta_dim], key[lltool::max_delta_dim], query[lltool::max_delta_dim], decay[lltool::max_delta_dim];
    float strength;
  };
  Token tokens[block];
  for (int64_t first = 0; first < task.tokens; first += block) {
    const int count = int(task.tokens - first < block ? task.tokens - first : block);
    for (int t = 0; t < count; ++t) {
      Token& token = tokens[t];
      const int64_t row = first + t;
      unit_vector(task.q + row * task.stride, n, std::sqrt(float(n)), rows, token.query);
      unit_vector(task.k + row * task.stride, n, 1.0f, rows, token.key);
      const float* alpha = task.alpha + row * task.alpha_stride;
      for (int64_t i = 0; i < task.alpha_width; i += lanes) {
        const int64_t left = task.alpha_width - i;
        store_some(token.decay + i, exp(softplus(load_some(alpha + i, left) + load_some(task.bias + i, left)) * task.rate), left);
      }
      for (int64_t i = each_decays ? n : 1; i < rows; ++i) token.decay[i] = each_decays ? 1.0f : token.decay[0];
      for (int64_t i = 0; i < rows; ++i) token.read[i] = token.key[i] * token.decay[i];
      token.strength = 1.0f / (1.0f + std::exp(-task.beta[row * task.beta_stride]));
    }
    for (int64_t column = 0; column < task.value_dim; column += tile) {
      const size_t bytes = size_t(task.value_dim - column < tile ? task.value_dim - column : tile) * sizeof(float);
      float* state = task.state + column * rows;
      for (int t = 0; t < count; ++t) {
        const Token& token = tokens[t];
        float v[tile] = {}, out[tile];
        std::memcpy(v, task.v + (first + t) * task.stride + column, bytes);
        const auto step = each_decays ? delta_step<true> : delta_step<false>;
        step(state, rows, token.read, token.key, token.query, token.decay, token.strength, v, out);
        std::memcpy(task.out + (first + t) * task.out_stride + column, out, bytes);
      }
    }
  }
}

} // namespace
