// Operations on elements, and on rows as a whole. `arena` holds all activations; buffers are places in it.

FUNCTION float sigmoid(float x) { return 0.5f + 0.5f * tanh(0.5f * x); }
FUNCTION float gelu_tanh(float x) { return 0.5f * x * (1 + tanh(0.7978845608f * (x + 0.044715f * x * x * x))); }
FUNCTION float gelu(float x) { return 0.5f * x * ERFC(-0.7071067812f * x); }

#define FOR_EACH(n) const int i = GROUP(0) * ITEMS(0) + ITEM(0); if (i < (n))

// out[i] = value, of x[i] and constants.
#define OF_ONE(name, value)                                                                                            \
  KERNEL name(GLOBAL float* arena, const int x_place, const int out, const int n, const float a, const float b,        \
              const float c) {                                                                                         \
    FOR_EACH(n) {                                                                                                      \
      const float x = arena[x_place + i];                                                                              \
      arena[out + i] = value;                                                                                          \
    }                                                                                                                  \
  }
OF_ONE(activate_silu, x * sigmoid(x))
OF_ONE(activate_sigmoid, sigmoid(x))
OF_ONE(activate_gelu_tanh, gelu_tanh(x))
OF_ONE(activate_gelu, gelu(x))
OF_ONE(activate_relu, FMAX(x, 0.0f))
OF_ONE(activate_relu_squared, FMAX(x, 0.0f) * FMAX(x, 0.0f))
OF_ONE(activate_tanh, tanh(x))
OF_ONE(xielu, (x > 0 ? a * x * x : b * (EXP1M(FMIN(x, -1e-6f)) - x)) + c * x)
OF_ONE(clamp_values, FMIN(FMAX(x, -a), a))
OF_ONE(scale_values, x * a)
OF_ONE(softcap, a * tanh(x / a))

#define OF_TWO(name, value)                                                                                            \
  KERNEL name(GLOBAL float* arena, const int x_place, const int y_place, const int out, const int n) {                 \
    FOR_EACH(n) {                                                                                                      \
      const float x = arena[x_place + i], y = arena[y_place + i];                                                      \
      arena[out + i] = value;                                                                                          \
    }                                                                                                                  \
  }
OF_TWO(add, x + y)
OF_TWO(product, x * y)
OF_TWO(gated_silu, x * sigmoid(x) * y)
OF_TWO(gated_sigmoid, sigmoid(x) * y)
OF_TWO(gated_gelu_tanh, gelu_tanh(x) * y)
OF_TWO(gated_gelu, gelu(x) * y)
OF_TWO(gated_swiglu_oai, FMIN(x, 7.0f) * sigmoid(1.702f * FMIN(x, 7.0f)) * (FMIN(FMAX(y, -7.0f), 7.0f) + 1))

// out = x * vector, in each row.
KERNEL multiply(GLOBAL float* arena, GLOBAL const float* vector, const int x, const int out, const int width, const int n) {
  FOR_EACH(n) arena[out + i] = arena[x + i] * vector[i % width];
}

// out = x + vector, in each row.
KERNEL add_vector(GLOBAL float* arena, GLOBAL const float* vector, const int x, const int out, const int width, const int n) {
  FOR_EACH(n) arena[out + i] = arena[x + i] + vector[i % width];
}

// out = x * factor[row].
KERNEL scale_rows(GLOBAL float* arena, GLOBAL const float* factor, const int x, const int out, const int width, const int n) {
  FOR_EACH(n) arena[out + i] = arena[x + i] * factor[i / width];
}

// Columns of x to columns of out; each has a stride of its own.
KERNEL copy_columns(GLOBAL float* arena, const int x, const int x_stride, const int out, const int out_stride,
                    const int columns, const int n) {
  FOR_EACH(n) arena[out + i / columns * out_stride + i % columns] = arena[x + i / columns * x_stride + i % columns];
}

// out = the rows of x that `rows` names; with `sequences`, the mean of all rows of the named row's sequence.
KERNEL select_rows(GLOBAL float* arena, GLOBAL const int* rows, const int x, const int out, const int width, const int n) {
  FOR_EACH(n) arena[out + i] = arena[x + rows[i / width] * width + i % width];
}
KERNEL select_means(GLOBAL float* arena, GLOBAL const int* rows, GLOBAL const int* sequences, const int tokens, const int x,
                    const int out, const int width, const int n) {
  FOR_EACH(n) {
    const int wanted = sequences[rows[i / width]];
    float sum = 0;
    int count = 0;
    for (int t = 0; t < tokens; ++t)
      if (sequences[t] == wanted) sum += arena[x + t * width + i % width], ++count;
    arena[out + i] = sum / (float)count;
  }
}

#define NORM_ITEMS 64
#define LARGEST_CODE 16256.0f // 127 * 128

// A work group takes a unit, a row or an equal part of it. The vectors have a value for each column of a unit.
KERNEL rms_norm(GLOBAL float* arena, GLOBAL const float* weight, const int has_weight, const int x, const int out,
                const int unit, const float eps) {
  LOCAL float room[NORM_ITEMS];
  const int item = ITEM(0), from = x + GROUP(0) * unit, to = out + GROUP(0) * unit;
  float squares = 0;
  for (int i = item; i < unit; i += NORM_ITEMS) squares += arena[from + i] * arena[from + i];
  const float factor = 1 / sqrt(sum_of_group(squares, room, item, NORM_ITEMS) / (float)unit + eps);
  for (int i = item; i < unit; i += NORM_ITEMS) arena[to + i] = arena[from + i] * factor * (has_weight ? weight[i] : 1);
}
KERNEL layer_norm(GLOBAL float* arena, GLOBAL const float* weight, const int has_weight, GLOBAL const float* bias,
                  const int has_bias, const int x, const int out, const int unit, const float eps) {
  LOCAL float room[NORM_ITEMS];
  const int item = ITEM(0), from = x + GROUP(0) * unit, to = out + GROUP(0) * unit;
  float sum = 0, squares = 0;
  for (int i = item; i < unit; i += NORM_ITEMS) sum += arena[from + i];
  const float mean = sum_of_group(sum, room, item, NORM_ITEMS) / (float)unit;
  for (int i = item; i < unit; i += NORM_ITEMS) squares += (arena[from + i] - mean) * (arena[from + i] - mean);
  const float factor = 1 / sqrt(sum_of_group(squares, room, item, NORM_ITEMS) / (float)unit + eps);
  for (int i = item; i < unit; i += NORM_ITEMS)
    arena[to + i] = (arena[from + i] - mean) * factor * (has_weight ? weight[i] : 1) + (has_bias ? bias[i] : 0);
}

// Rotates pairs of a head; `turns` has the cosine and the sine of each token and pair. A work item takes an element.
KERNEL rope(GLOBAL float* arena, GLOBAL const float* turns, const int x, const int out, const int head_dim,
            const int pairs, const int first, const int interleaved, const int width, const int n) {
  FOR_EACH(n) { // n counts pairs of elements, of which the first stand for both
    const int per_row = width / head_dim * (head_dim / 2 + head_dim % 2);
    const int half_dim = head_dim / 2 + head_dim % 2, token = i / per_row, head = i % per_row / half_dim, k = i % half_dim;
    const int from = x + token * width + head * head_dim, to = out + token * width + head * head_dim;
    // Pair k of the rotated part, then the elements outside of it, two at a time.
    if (k < pairs) {
      const int a = first + (interleaved ? 2 * k : k), b = interleaved ? a + 1 : a + pairs;
      const float cosine = turns[(token * pairs + k) * 2], sine = turns[(token * pairs + k) * 2 + 1];
      const float u = arena[from + a], v = arena[from + b];
      arena[to + a] = u * cosine - v * sine;
      arena[to + b] = u * sine + v * cosine;
    } else
      for (int side = 0; side < 2; ++side) {
        const int rest = 2 * (k - pairs) + side, at = rest < first ? rest : rest + 2 * pairs;
        if (at < head_dim) arena[to + at] = arena[from + at];
      }
  }
}

// Rounds chunks of 32 columns to 15 bits with a scale of their own, as 128 high + low, both int8, and sums the codes of each
// half. Rows are `stride` apart. A chunk has eight words of high codes, then eight of low ones.
KERNEL round_rows(GLOBAL const float* arena, GLOBAL uint* codes, GLOBAL float* scale, GLOBAL int* sums, const int x,
                  const int stride, const int chunks, const int n) {
  FOR_EACH(n) {
    const int from = x + i / chunks * stride + i % chunks * 32;
    float largest = 0;
    for (int k = 0; k < 32; ++k) largest = FMAX(largest, fabs(arena[from + k]));
    const float inverse = largest > 0 ? LARGEST_CODE / largest : 0;
    int sum[2] = {0, 0};
    for (int word = 0; word < 8; ++word) {
      uint highs = 0, lows = 0;
      for (int k = 0; k < 4; ++k) {
        const int code = (int)ROUND(arena[from + 4 * word + k] * inverse), high = (code + 64) >> 7;
        sum[word / 4] += code;
        highs |= ((uint)high & 255u) << 8 * k;
        lows |= ((uint)(code - 128 * high) & 255u) << 8 * k;
      }
      codes[i * 16 + word] = highs;
      codes[i * 16 + 8 + word] = lows;
    }
    scale[i] = largest / LARGEST_CODE;
    sums[2 * i] = sum[0];
    sums[2 * i + 1] = sum[1];
  }
}
