// The paged cache of keys and values, and attention over it. KEY_TYPE and VALUE_TYPE are 0 (float), 1 (half) or 2 (bfloat16).

#define PAGE 64
#define ITEMS_OF_QUERY 64 // work items of a work group, which takes a head of one token: each has a key of a page
#define MOST_PARTS 10     // a work item sums up every ITEMS_OF_QUERY-th element of a value

FUNCTION float cached(GLOBAL const uchar* cache, int type, long i) {
  return type == 0 ? ((GLOBAL const float*)cache)[i] : type == 1 ? HALF_AT(cache, i) : bf16_to_float(((GLOBAL const ushort*)cache)[i]);
}

// Stores rows of `width` floats at the cache's places of their tokens.
KERNEL store(GLOBAL const float* arena, GLOBAL uchar* cache, GLOBAL const int* places, const int x, const int width,
             const int type, const int n) {
  FOR_EACH(n) {
    const long to = (long)places[i / width] * width + i % width;
    const float value = arena[x + i];
    if (type == 0)
      ((GLOBAL float*)cache)[to] = value;
    else if (type == 1)
      STORE_HALF(value, cache, to);
    else
      ((GLOBAL ushort*)cache)[to] = float_to_bf16(value);
  }
}

// The pages of a token's sequence begin at `starts` in `tables`; `ends` is the position after the last that it can see.
// `before` and `after` are how far a query sees, -1 without end. Values are `value_stride` elements apart for each head.
KERNEL attend(GLOBAL float* arena, GLOBAL const uchar* keys, GLOBAL const uchar* values, GLOBAL const int* positions,
              GLOBAL const int* starts, GLOBAL const int* ends, GLOBAL const int* tables, GLOBAL const float* sinks,
              GLOBAL const float* slopes, const int has_sinks, const int has_slopes, const int q,
              const int out, const int heads, const int kv_heads, const int head_dim, const int value_dim,
              const int value_stride, const int key_type, const int value_type, const float scale, const float cap,
              const int before, const int after, const int chunk) {
  LOCAL float query[HEAD_DIM];
  LOCAL float shares[ITEMS_OF_QUERY];
  LOCAL float room[ITEMS_OF_QUERY];
  const int item = ITEM(0), head = GROUP(0), token = GROUP(1), kv_head = head / (heads / kv_heads);
  const int position = positions[token];
  GLOBAL const int* pages = tables + starts[token];
  int first = before < 0 ? 0 : position - before, end = after < 0 ? ends[token] : position + after + 1;
  if (end > ends[token]) end = ends[token];
  if (chunk && first < position - position % chunk) first = position - position % chunk;
  if (first < 0) first = 0;
  for (int d = item; d < head_dim; d += ITEMS_OF_QUERY) query[d] = arena[q + (token * heads + head) * head_dim + d];
  BARRIER;

  float most = has_sinks ? sinks[head] : -INFINITE, total = has_sinks ? 1 : 0, sums[MOST_PARTS];
  for (int part = 0; part < MOST_PARTS; ++part) sums[part] = 0;
  for (int page = first / PAGE; page * PAGE < end; ++page) {
    const int seen = page * PAGE + item;
    const long row = (long)pages[page] * PAGE + item;
    float score = -INFINITE;
    if (seen >= first && seen < end) {
      const long from = (row * kv_heads + kv_head) * head_dim;
      score = 0;
      for (int d = 0; d < head_dim; ++d) score += query[d] * cached(keys, key_type, from + d);
      score *= scale;
      if (cap > 0) score = cap * tanh(score / cap);
      if (has_slopes) score -= slopes[head] * (float)(position > seen ? position - seen : seen - position);
    }
    const float larger = FMAX(most, max_of_group(score, room, item, ITEMS_OF_QUERY)), shrink = exp(most - larger);
    const float share = score == -INFINITE ? 0 : exp(score - larger);
    shares[item] = share;
    total = total * shrink + sum_of_group(share, room, item, ITEMS_OF_QUERY);
    most = larger;
    const int begin = first > page * PAGE ? first - page * PAGE : 0, stop = end - page * PAGE < PAGE ? end - page * PAGE : PAGE;
    for (int part = 0; part * ITEMS_OF_QUERY + item < value_dim; ++part) {
      float sum = sums[part] * shrink;
      for (int j = begin; j < stop; ++j) {
        const long from = (((long)pages[page] * PAGE + j) * kv_heads + kv_head) * value_stride;
        sum += shares[j] * cached(values, value_type, from + part * ITEMS_OF_QUERY + item);
      }
      sums[part] = sum;
    }
    BARRIER;
  }
  for (int part = 0; part * ITEMS_OF_QUERY + item < value_dim; ++part)
    arena[out + (token * heads + head) * value_dim + part * ITEMS_OF_QUERY + item] = sums[part] / total;
}
