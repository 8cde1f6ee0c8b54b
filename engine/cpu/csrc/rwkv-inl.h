// The token shift and the time mixing of RWKV 7; kernels.h defines the tasks.
#pragma once
#include "delta-inl.h"

namespace {

void token_shift(const lltool::TokenShiftTask& task) {
  const int64_t n = task.columns;
  for (int64_t t = 0; t < task.tokens; ++t) {
    const float *x = task.x + t * task.stride, *before = t > 0 ? x - task.stride : task.state;
    for (int64_t c = 0; c < n; c += lanes) {
      const vf now = load_some(x + c, n - c), step = load_some(before + c, n - c) - now;
      for (int i = 0; i < task.count; ++i)
        store_some(task.outs[i] + t * task.stride + c, now + step * load_some(task.weight + i * task.stride + c, n - c), n - c);
    }
  }
  std::memcpy(task.state, task.x + (task.tokens - 1) * task.stride, size_t(n) * 4);
}

// What a token does to the state of a head: it decays, loses `gain` times what `read` finds in it, and takes up `key` times
// the value.
struct MixedToken {
  float read[lltool::max_delta_dim], gain[lltool::max_delta_dim], key[lltool::max_delta_dim], query[lltool::max_delta_dim],
      decay[lltool::max_delta_dim], value[lltool::max_delta_dim];
};

// A tile of the state, as in delta_step.
inline void mix_step(float* state, int64_t rows, const MixedToken& token, const float* v, float* out) {
  constexpr int sums = 4, tile = tile_vectors * lanes;
  vf found[sums][tile_vectors] = {}, given[sums][tile_vectors] = {}, lost[tile_vectors], taken[tile_vectors];
  for (int64_t i = 0; i < rows; i += sums)
    for (int s = 0; s < sums; ++s)
      for (int j = 0; j < tile_vectors; ++j) found[s][j] += load<vf>(state + (i + s) * tile + j * lanes) * token.read[i + s];
  for (int j = 0; j < tile_vectors; ++j) {
    lost[j] = (found[0][j] + found[1][j]) + (found[2][j] + found[3][j]);
    taken[j] = load<vf>(v + j * lanes);
  }
  for (int64_t i = 0; i < rows; i += sums)
    for (int s = 0; s < sums; ++s)
      for (int j = 0; j < tile_vectors; ++j) {
        float* at = state + (i + s) * tile + j * lanes;
        const vf next = load<vf>(at) * token.decay[i + s] - lost[j] * token.gain[i + s] + taken[j] * token.key[i + s];
        store(at, next);
        given[s][j] += next * token.query[i + s];
      }
  for (int j = 0; j < tile_vectors; ++j)
    store(out + j * lanes, (given[0][j] + given[1][j]) + (given[2][j] + given[3][j]));
}

inline vf sigmoid_of(vf x) { return 1.0f / (exp(-x) + 1.0f); }

// Fills the token's numbers from row `at` of the task's inputs, and zeros up to `rows`; returns the sum of r * key * r_k.
inline float prepare_mixed(const lltool::TimeMixTask& task, int64_t at, int64_t rows, MixedToken& token) {
  const int64_t n = task.dim;
  vf squares{}, sum{};
  for (int64_t i = 0; i < n; i += lanes) {
    const int64_t left = n - i;
    const vf k = load_some(task.k + at + i, left), removed = k * load_some(task.k_k + i, left), r = load_some(task.r + at + i, left);
    const vf rate = sigmoid_of(load_some(task.a + at + i, left)), key = k * ((rate - 1.0f) * load_some(task.k_a + i, left) + 1.0f);
    const vf decay = exp(sigmoid_of(load_some(task.w + at + i, left)) * -lltool::fastest_decay);
    vf value = load_some(task.v + at + i, left);
    if (task.first) value = value + (load_some(task.first + at + i, left) - value) * sigmoid_of(load_some(task.mix + at + i, left));
    squares += removed * removed;
    sum += r * key * load_some(task.r_k + i, left);
    store_some(token.read + i, removed, left);
    store_some(token.gain + i, rate, left);
    store_some(token.key + i, key, left);
    store_some(token.query + i, r, left);
    store_some(token.decay + i, decay, left);
    store_some(token.value + i, value, left);
  }
  const float scale = 1.0f / std::fmax(std::sqrt(sum_of(squares)), lltool::least_length);
  for (int64_t i = 0; i < n; ++i) token.gain[i] *= token.read[i] *= scale;
  for (int64_t i = n; i < rows; ++i) token.read[i] = token.gain[i] = token.key[i] = token.query[i] = token.decay[i] = 0;
  return sum_of(sum);
}

void time_mix(const lltool::TimeMixTask& task) {
  constexpr int block = 8, tile = tile_vectors * lanes; // tokens that pass over a tile while it is in the cache
  const int64_t rows = lltool::delta_rows(task.dim), n = task.dim;
  MixedToken tokens[block];
  for (int64_t first = 0; first < task.tokens; first += block) {
    const int count = int(task.tokens - first < block ? task.tokens - first : block);
    for (int t = 0; t < count; ++t) {
      const int64_t at = (first + t) * task.stride;
      const float factor = prepare_mixed(task, at, rows, tokens[t]);
      for (int64_t i = 0; i < n; ++i) task.bonus[at + i] = factor * tokens[t].value[i];
    }
    for (int64_t column = 0; column < n; column += tile) {
      const size_t bytes = size_t(n - column < tile ? n - column : tile) * sizeof(float);
      for (int t = 0; t < count; ++t) {
        float v[tile] = {}, out[tile];
        std::memcpy(v, tokens[t].value + column, bytes);
        mix_step(task.state + column * rows, rows, tokens[t], v, out);
        std::memcpy(task.out + (first + t) * task.stride + column, out, bytes);
      }
    }
  }
}

} // namespace
