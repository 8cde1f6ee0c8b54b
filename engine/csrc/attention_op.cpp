#include "attention_op.h"

#include <algorithm>

namespace lltool {

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

} // namespace lltool
