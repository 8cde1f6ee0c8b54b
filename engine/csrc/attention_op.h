// Attention over the paged cache, and what stores into it; their meaning is in engine/program.py.
#pragma once
#include "executor.h"

namespace lltool {

// Keys of the batch, or values, go into the cache.
struct StoreOp : ColumnOp {
  Buffer x;
  int layer;
  bool keys;
  StoreOp(Buffer x_, int head_dim, int l, bool k) : ColumnOp(x_.width, head_dim), x(x_), layer(l), keys(k) {}
  void columns(const Run& run, int64_t t, int64_t begin, int64_t end) const override;
};

struct AttentionOp : Op {
  Buffer q, out;
  int layer, heads, kv_heads, head_dim, window, tiling;
  float scale, softcap;
  std::vector<float> sinks; // one a head, or none
  void run(const Run& run) const override;

private:
  AttentionTask task(const Run& run, const Piece& piece, int64_t head) const;
};

} // namespace lltool
