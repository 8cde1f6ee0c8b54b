// Attention over the paged cache, and what stores into it; their meaning is in engine/program.py.
#pragma once
#include "executor.h"

namespace lltool {

// Keys and values of the batch go into the cache.
struct StoreOp : RowOp {
  Buffer k, v;
  int layer;
  StoreOp(Buffer k_, Buffer v_, int l) : k(k_), v(v_), layer(l) {}
  void row(const Run& run, int64_t t) const override;
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
