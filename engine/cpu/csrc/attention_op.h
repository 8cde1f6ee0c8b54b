// Attention over the paged cache and the storing of keys and values; engine/operations/ defines them.
#pragma once
#include "executor.h"

namespace lltool {

// Stores the keys or the values of the batch in the cache, after subtracting the common key.
struct StoreOp : ColumnOp {
  Buffer x;
  int layer;
  bool keys;
  int64_t block;             // the dimensions that cache types with blocks transform together
  std::vector<float> common; // the common key of all heads, or empty
  StoreOp(Buffer x_, int dim, int l, bool k, int64_t b, std::vector<float> c)
      : ColumnOp(x_.width, dim), x(x_), layer(l), keys(k), block(b), common(std::move(c)) {}
  void columns(const Run& run, int64_t t, int64_t begin, int64_t end) const override;
};

struct AttentionOp : Op {
  Buffer q, out;
  int layer, heads, kv_heads, head_dim, value_dim, window, ahead, tiling; // `tiling` knows the chunk
  bool values_are_keys; // a value is the beginning of its key
  float scale, softcap;
  std::vector<float> sinks, slopes; // one per head, or empty
  std::vector<float> biases;        // (heads, 2 bias_reach + 1 + bias_padding), or empty
  int bias_reach = 0;
  void run(const Run& run) const override;

private:
  AttentionTask task(const Run& run, const Piece& piece, int64_t head) const;
};

} // namespace lltool
