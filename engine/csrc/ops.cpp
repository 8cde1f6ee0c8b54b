#include "ops.h"

#include <algorithm>
#include <cstring>
#include <stdexcept>

namespace lltool {

// From this many tokens on it pays to unpack a tile of the weight; below, each row is read once for all tokens.
constexpr int64_t panels_from = 5;

void EmbedOp::row(const Run& run, int64_t t) const {
  float* to = run.executor.at(out) + t * out.width;
  const uint8_t* from = weight.data + run.batch.ids[t] * weight.row_bytes;
  run.executor.kernels.decode_row(weight.type, from, weight.columns, to);
  if (scale != 1.0f)
    for (int64_t i = 0; i < out.width; ++i) to[i] *= scale;
}

void NormOp::row(const Run& run, int64_t t) const {
  const float* from = run.executor.at(x) + t * x.width;
  float* to = run.executor.at(out) + t * x.width;
  const int64_t n = x.width / groups;
  for (int g = 0; g < groups; ++g) run.executor.kernels.rms_norm(from + g * n, weight.data(), eps, n, to + g * n);
}

LinearOp::LinearOp(Buffer x_, std::vector<Part> p, bool has, Buffer r, const Executor& executor)
    : x(x_), parts(std::move(p)), has_residual(has), residual(r), int8(false), floats(false) {
  for (const Part& part : parts) {
    const bool quantized = executor.settings.int8 && executor.kernels.can_multiply(part.weight.type);
    if (!quantized && !executor.kernels.can_decode(part.weight.type))
      throw std::invalid_argument("no kernel for tensors of type " + std::to_string(part.weight.type));
    (quantized ? int8 : floats) = true;
  }
}

void LinearOp::prepare(const Run& run, bool panels) const {
  Executor& e = run.executor;
  const int64_t T = run.rows, K = x.width;
  const int panel = e.kernels.tokens_per_panel;
  const float* from = e.at(x);
  if (!panels) {
    if (!int8) return; // the float kernels read x as it is
    run.worker.parallel(T, [&](int64_t t) {
      e.kernels.quantize_row(from + t * K, K, e.quantized.token(t, padded(K)));
    });
    return;
  }
  const int64_t most = panel_tokens(T, panel);
  run.worker.parallel((T + panel - 1) / panel, [&](int64_t p) {
    const int tokens = int(std::min(most, T - p * most));
    const float* rows = from + p * most * K;
    if (int8) e.kernels.quantize_panel(rows, K, tokens, K, e.quantized.token(p * panel, K));
    if (floats) e.kernels.pack_panel(rows, K, tokens, K, e.packed + p * panel * K);
  });
}

void LinearOp::multiply(const Run& run, const Part& part, int64_t begin, int64_t end, bool panels, Quantized few) const {
  Executor& e = run.executor;
  const EngineKernels& k = e.kernels;
  const bool quantized = e.settings.int8 && k.can_multiply(part.weight.type);
  const int64_t T = run.rows, width = part.out.width;
  float* to = e.at(part.out);
  void* scratch = e.scratch(run.worker.index);
  if (panels && quantized)
    k.matmul(part.weight, begin, end, e.quantized, T, to, width, scratch);
  else if (panels)
    k.matmul_f32(part.weight, begin, end, e.packed, T, to, width, scratch);
  else if (quantized)
    k.matvec(part.weight, begin, end, few, int(T), to, width, scratch);
  else
    k.matvec_f32(part.weight, begin, end, e.at(x), x.width, int(T), to, width, scratch);
  for (int64_t t = 0; t < T; ++t) {
    if (!part.bias.empty())
      for (int64_t i = begin; i < end; ++i) to[t * width + i] += part.bias[size_t(i)];
    if (has_residual) {
      const float* add = e.at(residual) + t * width;
      for (int64_t i = begin; i < end; ++i) to[t * width + i] += add[i];
    }
  }
}

void LinearOp::run(const Run& run) const {
  Executor& e = run.executor;
  const int64_t T = run.rows;
  const bool panels = T >= panels_from;
  const bool alone = T == 1; // one row is rounded sooner by every thread than waited for
  Quantized few = alone ? e.own_quantized(run.worker.index) : e.quantized;
  bool prepared = !alone || !int8;
  if (!alone) prepare(run, panels);
  int64_t rows = 0;
  for (const Part& part : parts) rows += part.weight.rows;
  // Chunks small enough to even out the threads, large enough to be worth fetching; a matmul unpacks whole tiles.
  const int64_t unit = panels ? e.kernels.lanes : 8, most = panels ? tile_rows : 256;
  const int64_t share = rows / (int64_t(e.settings.threads) * 8) / unit * unit;
  const int64_t chunk = std::clamp<int64_t>(share, unit, most);
  int64_t chunks = 0;
  for (const Part& part : parts) chunks += (part.weight.rows + chunk - 1) / chunk;
  run.worker.parallel(chunks, [&](int64_t c) {
    if (!prepared) e.kernels.quantize_row(e.at(x), x.width, few);
    prepared = true;
    for (const Part& part : parts) {
      const int64_t n = (part.weight.rows + chunk - 1) / chunk;
      if (c < n) {
        multiply(run, part, c * chunk, std::min(part.weight.rows, (c + 1) * chunk), panels, few);
        return;
      }
      c -= n;
    }
  });
}

void RopeOp::row(const Run& run, int64_t t) const {
  const Executor::RopeTable& rope = run.executor.ropes[size_t(table)];
  const int64_t pairs = int64_t(rope.frequencies.size()), heads = x.width / head_dim;
  const int64_t step = interleaved ? 2 : 1, other = interleaved ? 1 : pairs;
  const float *cosine = rope.cosine.data() + t * pairs, *sine = rope.sine.data() + t * pairs;
  for (int64_t h = 0; h < heads; ++h) {
    const float* a = run.executor.at(x) + t * x.width + h * head_dim;
    float* b = run.executor.at(out) + t * x.width + h * head_dim;
    for (int64_t i = 0; i < pairs; ++i) {
      const float first = a[i * step], second = a[i * step + other];
      b[i * step] = first * cosine[i] - second * sine[i];
      b[i * step + other] = first * sine[i] + second * cosine[i];
    }
    if (a != b) std::copy(a + 2 * pairs, a + head_dim, b + 2 * pairs);
  }
}

void StoreOp::row(const Run& run, int64_t t) const {
  Executor& e = run.executor;
  const Executor::CacheLayer& c = e.cache[size_t(layer)];
  const Batch& b = run.batch;
  const int32_t position = b.positions[t], slot = position % page_tokens;
  const int64_t page = b.tables[b.sequences[t] * b.table_width + position / page_tokens], dim = c.head_dim;
  const float *key = e.at(k) + t * k.width, *value = e.at(v) + t * v.width;
  for (int64_t h = 0; h < c.kv_heads; ++h, key += dim, value += dim) {
    const int64_t base = page * c.page_elements + h * dim * page_tokens, ki = base + slot, vi = base + slot * dim;
    if (e.settings.half_cache) {
      e.kernels.store_half(key, dim, reinterpret_cast<uint16_t*>(c.k.data()) + ki, page_tokens);
      e.kernels.store_half(value, dim, reinterpret_cast<uint16_t*>(c.v.data()) + vi, 1);
    } else {
      float *ks = reinterpret_cast<float*>(c.k.data()) + ki, *vs = reinterpret_cast<float*>(c.v.data()) + vi;
      for (int64_t d = 0; d < dim; ++d) ks[d * page_tokens] = key[d];
      std::copy_n(value, dim, vs);
    }
  }
}

AttentionTask AttentionOp::task(const Run& run, const Piece& piece, int64_t head) const {
  Executor& e = run.executor;
  const Executor::CacheLayer& c = e.cache[size_t(layer)];
  const int group = heads / kv_heads, element = e.settings.half_cache ? 2 : 4;
  AttentionTask task{};
  task.q = e.at(q) + piece.row * q.width + head * group * head_dim;
  task.out = e.at(out) + piece.row * out.width + head * group * head_dim;
  task.row_stride = q.width;
  task.tokens = piece.tokens;
  task.first_position = piece.position;
  task.group = group;
  task.head_dim = head_dim;
  task.scale = scale;
  task.softcap = softcap;
  task.window = window;
  task.first_page = piece.first_page;
  task.end_page = piece.end_page;
  task.pages = run.batch.tables + piece.sequence * run.batch.table_width;
  task.k_pages = c.k.data() + head * head_dim * page_tokens * element;
  task.v_pages = c.v.data() + head * head_dim * page_tokens * element;
  task.page_stride = c.page_elements;
  task.half = e.settings.half_cache;
  task.scratch = e.attention_space(run.worker.index);
  return task;
}

void AttentionOp::run(const Run& run) const {
  Executor& e = run.executor;
  const std::vector<Piece>& pieces = e.tilings[size_t(tiling)].pieces;
  // Partial results: (parts, tokens x heads of the batch); a task's rows lie together.
  const int64_t row_floats = int64_t(attention_partial(head_dim)), part_floats = run.rows * heads * row_floats;
  const auto place = [&](const Piece& piece, int64_t head) {
    return e.partials() + (piece.row * heads + head * piece.tokens * (heads / kv_heads)) * row_floats;
  };
  run.worker.parallel(int64_t(pieces.size()) * kv_heads, [&](int64_t i) {
    const Piece& piece = pieces[size_t(i / kv_heads)];
    AttentionTask t = task(run, piece, i % kv_heads);
    if (piece.parts > 1) t.partial = place(piece, i % kv_heads) + piece.part * part_floats;
    e.kernels.attention(t);
  });
  if (run.rows > few_tokens) return;
  run.worker.parallel(int64_t(pieces.size()) * kv_heads, [&](int64_t i) {
    const Piece& piece = pieces[size_t(i / kv_heads)];
    if (piece.parts > 1 && piece.part == 0)
      e.kernels.merge_attention(task(run, piece, i % kv_heads), place(piece, i % kv_heads), piece.parts, part_floats);
  });
}

void ElementwiseOp::row(const Run& run, int64_t t) const {
  const Executor& e = run.executor;
  const int64_t n = out.width;
  const float *a = e.at(x) + t * n, *b = e.at(y) + t * n;
  float* to = e.at(out) + t * n;
  switch (kind) {
  case Kind::silu: e.kernels.gated(0, a, b, n, to); return;
  case Kind::gelu_tanh: e.kernels.gated(1, a, b, n, to); return;
  case Kind::softcap: e.kernels.softcap(a, factor, n, to); return;
  case Kind::add:
    for (int64_t i = 0; i < n; ++i) to[i] = a[i] + b[i];
    return;
  case Kind::scale:
    for (int64_t i = 0; i < n; ++i) to[i] = a[i] * factor;
    return;
  }
}

void SelectOp::row(const Run& run, int64_t r) const {
  const int64_t from = run.batch.output_rows[run.first_output + r];
  std::copy_n(run.executor.at(x) + from * x.width, x.width, run.executor.at(out) + r * x.width);
}

} // namespace lltool
