#include "attention_op.h"

#include <algorithm>

namespace lltool {

void StoreOp::columns(const Run& run, int64_t t, int64_t begin, int64_t end) const {
  const Executor& e = run.executor;
  const Executor::CacheLayer& c = e.cache[size_t(layer)];
  const Batch& b = run.batch;
  const int32_t position = b.positions[t], slot = position % page_tokens;
  const int64_t page = b.tables[b.sequences[t] * b.table_width + position / page_tokens];
  const CacheType type = keys ? e.settings.k_type : e.settings.v_type;
  uint8_t* head = keys ? e.keys(c, page) : e.values(c, page);
  float rest[max_head_dim];
  for (int64_t column = begin; column < end; column += unit) {
    const float* from = e.at(x) + t * width + column;
    if (!common.empty()) {
      for (int64_t i = 0; i < unit; ++i) rest[i] = from[i] - common[size_t(column + i)];
      from = rest;
    }
    e.kernels.store_cache(type, e.pairs, from, unit, block, head + column / unit * (keys ? c.k_bytes : c.v_bytes), slot, keys);
  }
}

AttentionTask AttentionOp::task(const Run& run, const Piece& piece, int64_t head) const {
  Executor& e = run.executor;
  const Executor::CacheLayer& c = e.cache[size_t(layer)];
  const int group = heads / kv_heads;
  AttentionTask task{};
  task.q = e.at(q) + piece.row * q.width + head * group * head_dim;
  task.out = e.at(out) + piece.row * out.width + head * group * value_dim;
  task.row_stride = q.width;
  task.out_stride = out.width;
  task.tokens = piece.tokens;
  task.first_position = piece.position;
  task.keys = piece.keys;
  task.ahead = ahead;
  task.group = group;
  task.head_dim = head_dim;
  task.value_dim = value_dim;
  task.scale = scale;
  task.softcap = softcap;
  task.window = window;
  task.first_key = piece.first_key;
  task.first_page = piece.first_page;
  task.end_page = piece.end_page;
  task.pages = run.batch.tables + piece.sequence * run.batch.table_width;
  task.k_pages = e.keys(c, 0) + head * c.k_bytes;
  task.v_pages = values_are_keys ? nullptr : e.values(c, 0) + head * c.v_bytes;
  task.page_stride = e.page_bytes;
  task.k_type = e.settings.k_type;
  task.v_type = e.settings.v_type;
  task.sinks = sinks.empty() ? nullptr : sinks.data() + head * group;
  task.slopes = slopes.empty() ? nullptr : slopes.data() + head * group;
  task.biases = biases.empty() ? nullptr : biases.data() + head * group * (2 * bias_reach + 1 + bias_padding);
  task.bias_reach = bias_reach;
  task.pairs = e.pairs;
  task.scratch = e.attention_space(run.worker.index);
  return task;
}

void AttentionOp::run(const Run& run) const {
  Executor& e = run.executor;
  const std::vector<Piece>& pieces = e.tilings[size_t(tiling)].pieces;
  // Partial results are (parts, tokens x heads of the batch); the rows of a task are contiguous.
  const int64_t row_floats = int64_t(attention_partial(value_dim)), part_floats = run.rows * heads * row_floats;
  const auto place = [&](const Piece& piece, int64_t head) {
    return e.partials() + (piece.row * heads + head * piece.tokens * (heads / kv_heads)) * row_floats;
  };
  run.worker.parallel(int64_t(pieces.size()) * kv_heads, [&](int64_t i) {
    const Piece& piece = pieces[size_t(i / kv_heads)];
    AttentionTask t = task(run, piece, i % kv_heads);
    if (piece.parts > 1) t.partial = place(piece, i % kv_heads) + piece.part * part_floats;
    e.kernels.attention(t);
  });
  if (std::none_of(pieces.begin(), pieces.end(), [](const Piece& p) { return p.parts > 1; })) return;
  run.worker.parallel(int64_t(pieces.size()) * kv_heads, [&](int64_t i) {
    const Piece& piece = pieces[size_t(i / kv_heads)];
    if (piece.parts > 1 && piece.part == 0)
      e.kernels.merge_attention(task(run, piece, i % kv_heads), place(piece, i % kv_heads), piece.parts, part_floats);
  });
}

} // namespace lltool
