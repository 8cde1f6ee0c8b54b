// Mixtures of experts: the choice of a token's experts, and the sum of their results.

FUNCTION float score_of(GLOBAL const float* logits, int expert, int scoring, float most, float sum) {
  return scoring == 0 ? exp(logits[expert] - most) / sum : sigmoid(logits[expert]);
}

// One work item takes a token. `scoring` is 0 (softmax), 1 (sigmoid) or 2 (sparsemixer); `order` has room for `experts`
// floats a token, from which those that were taken, or are in a group that does not count, are struck out.
KERNEL route(GLOBAL float* arena, GLOBAL float* order_of_all, GLOBAL const float* bias, const int has_bias,
             GLOBAL const float* scales, const int has_scales, const int logits_place,
             const int chosen, const int weights, const int experts, const int used, const int scoring, const int normalized,
             const float factor, const int groups, const int groups_used, const int counted, const int tokens) {
  FOR_EACH(tokens) {
    GLOBAL const float* logits = arena + logits_place + (long)i * experts;
    GLOBAL float* order = order_of_all + (long)i * experts;
    GLOBAL float* shares = arena + weights + (long)i * used;
    float most = -INFINITE, sum = 0;
    for (int e = 0; e < experts; ++e) most = FMAX(most, logits[e]);
    if (scoring == 0)
      for (int e = 0; e < experts; ++e) sum += exp(logits[e] - most);
    for (int e = 0; e < experts; ++e)
      order[e] = scoring == 2 ? logits[e] : score_of(logits, e, scoring, most, sum) + (has_bias ? bias[e] : 0);

    // Groups: from the best group on, `groups_used` of them stay. A group counts as much as its `counted` best experts.
    if (groups > 1) {
      const int size = experts / groups;
      for (int struck = groups - groups_used; struck > 0; --struck) {
        int worst = -1;
        float least = INFINITE;
        for (int g = 0; g < groups; ++g) {
          float worth = 0, bound = INFINITE;
          int at_bound = -1;
          for (int k = 0; k < counted; ++k) { // the k-th best: the first below the bound in the order (value, index)
            float best = -INFINITE;
            int place = -1;
            for (int e = g * size; e < (g + 1) * size; ++e)
              if ((order[e] < bound || (order[e] == bound && e > at_bound)) && order[e] > best) best = order[e], place = e;
            worth += best, bound = best, at_bound = place;
          }
          if (worth > -INFINITE && worth <= least) least = worth, worst = g; // of equal groups the first one stays
        }
        for (int e = worst * size; worst >= 0 && e < (worst + 1) * size; ++e) order[e] = -INFINITE;
      }
    }

    float total = 0;
    for (int place = 0; place < used; ++place) {
      int best = 0;
      for (int e = 1; e < experts; ++e)
        if (order[e] > order[best]) best = e;
      const float top = order[best];
      float share = 0;
      if (scoring == 2) { // of the experts that remain, those with nearly as large a logit share a softmax
        for (int e = 0; e < experts; ++e)
          if (order[e] > -INFINITE && !((top - logits[e]) / FMAX(fabs(logits[e]), top) > 0.02f)) share += exp(order[e] - top);
        share = 1 / share;
      } else
        share = score_of(logits, best, scoring, most, sum);
      arena[chosen + i * used + place] = AS_FLOAT(best);
      shares[place] = share;
      total += share;
      order[best] = -INFINITE;
    }
    for (int place = 0; place < used; ++place) {
      shares[place] *= normalized && scoring != 2 ? factor / FMAX(total, 1e-20f) : factor;
      if (has_scales) shares[place] *= scales[AS_INT(arena[chosen + i * used + place])];
    }
  }
}

// out, a row for each expert of a token, = the token's row times the expert's weight.
KERNEL weigh(GLOBAL float* arena, const int x, const int weights, const int out, const int width, const int used, const int n) {
  FOR_EACH(n) arena[out + i] = arena[x + i / width / used * width + i % width] * arena[weights + i / width];
}

// out = the sum of a token's rows, times their weights if `weights` >= 0, and the residual if it is >= 0.
KERNEL combine(GLOBAL float* arena, const int x, const int weights, const int residual, const int out, const int width,
               const int used, const int n) {
  FOR_EACH(n) {
    float sum = 0;
    for (int k = 0; k < used; ++k) {
      const int row = i / width * used + k;
      sum += arena[x + row * width + i % width] * (weights < 0 ? 1 : arena[weights + row]);
    }
    arena[out + i] = sum + (residual < 0 ? 0 : arena[residual + i]);
  }
}

// out = x * sigmoid(h @ weight): a work group takes a row.
KERNEL shared_gate(GLOBAL float* arena, GLOBAL const float* weight, const int x, const int h, const int out,
                   const int x_width, const int h_width) {
  LOCAL float room[NORM_ITEMS];
  const int item = ITEM(0), row = GROUP(0);
  float sum = 0;
  for (int i = item; i < h_width; i += NORM_ITEMS) sum += arena[h + row * h_width + i] * weight[i];
  const float gate = sigmoid(sum_of_group(sum, room, item, NORM_ITEMS));
  for (int i = item; i < x_width; i += NORM_ITEMS) arena[out + row * x_width + i] = arena[x + row * x_width + i] * gate;
}
