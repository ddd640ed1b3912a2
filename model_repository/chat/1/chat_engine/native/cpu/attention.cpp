// Attention over the paged cache where it lies, and the writing of it, on a CPU.
//
// Flash Attention 2 (arXiv:2307.08691) over the blocks of PagedAttention (arXiv:2309.06180), in the tiles of tiles.py.
// A tile of one row multiplies each key with the few heads that share it. In a tile of many rows the rows stand side by
// side in the lanes of vectors, so that scores, softmax and sums need nothing across lanes.

#include <algorithm>
#include <cmath>
#include <type_traits>
#include <vector>

#include "vectors.h"

namespace chat_engine {
namespace {

// Of `Tile` in tiles.py.
struct Tile {
  int32_t row, rows, blocks, begin, end, part;
};

// One layer of a step; its mirror is `Attention` in cpu_kernels.py.
struct Attention {
  const void *q, *k, *v;
  void *keys, *values, *out;
  const Tile *narrow, *wide;
  const int32_t *positions, *slots, *parts, *blocks;
  float *partial, *weight;  // of decodes in parts: results `[parts, decodes, heads, value_dim]`, and their log-sum-exp
  int64_t q_row, q_head, k_row, k_head, v_row, v_head;  // strides in numbers
  int32_t rows, num_narrow, num_wide, decodes, kv_heads, group, key_dim, value_dim, block_size, window;
  int32_t bfloat16, threads;
  float scale;
};

constexpr int kKeys = 64;  // that a tile holds at a time
constexpr int kMostGroup = 8;  // heads that share a KV head, of a narrow tile
constexpr int kLine = 64;  // bytes
constexpr int kRegisters = kWidth == 16 ? 24 : 12;  // vectors that sums are kept in
constexpr int kLanes = 2 * kWidth;  // rows that a product of matrices takes at a time

template <class T>
struct Layer {
  const Attention& a;
  const int heads = a.kv_heads * a.group;

  const T* query(int row, int head) const { return (const T*)a.q + row * a.q_row + head * a.q_head; }
  T* result(int row, int head) const { return (T*)a.out + ((int64_t)row * heads + head) * a.value_dim; }

  // Calls `take(number, key, value)` for some keys of a tile.
  template <class Take>
  void each(const Tile& tile, int kv_head, int start, int count, Take take) const {
    const int32_t* block = a.blocks + tile.blocks + start / a.block_size;
    int place = start % a.block_size;
    for (int j = 0; j < count; ++block, place = 0) {
      const int64_t slot = (int64_t)*block * a.block_size + place;
      const int run = std::min(count - j, a.block_size - place);
      const T *key_of = key(slot, kv_head), *value_of = value(slot, kv_head);
      for (int i = 0; i < run; ++i, ++j, key_of += a.kv_heads * a.key_dim, value_of += a.kv_heads * a.value_dim)
        take(j, key_of, value_of);
    }
  }

  // Has the next keys brought into the cache of the core.
  void fetch(const Tile& tile, int kv_head, int start, int end) const {
    each(tile, kv_head, start, std::min(kKeys, end - start), [&](int, const T* key, const T* value) {
      for (int d = 0; d < a.key_dim; d += kLine / sizeof(T)) prefetch(key + d);
      for (int d = 0; d < a.value_dim; d += kLine / sizeof(T)) prefetch(value + d);
    });
  }

  T* key(int64_t slot, int kv_head) const { return (T*)a.keys + (slot * a.kv_heads + kv_head) * a.key_dim; }
  T* value(int64_t slot, int kv_head) const { return (T*)a.values + (slot * a.kv_heads + kv_head) * a.value_dim; }

  // Takes what a tile made for one row and head: sums weighted by e to the scores less the largest of them.
  void finish(const Tile& tile, int row, int head, const float* weighted, float most, float total) const {
    const float factor = total > 0 ? 1 / total : 0;
    if (tile.part < 0) {
      T* to = result(row, head);
      for (int d = 0; d < a.value_dim; d += kWidth)
        store_some(to + d, load(weighted + d) * factor, std::min(kWidth, a.value_dim - d));
      return;
    }
    const int64_t place = ((int64_t)tile.part * a.decodes + row) * heads + head;
    for (int d = 0; d < a.value_dim; ++d) a.partial[place * a.value_dim + d] = weighted[d] * factor;
    a.weight[place] = total > 0 ? most + std::log(total) : kNone;
  }
};

// ---- tiles of one row

// What the heads of a row have gathered so far, and room for keys and values.
struct Row {
  const int key_size, value_size;
  float *queries, *weighted;  // [heads, key_size], [heads, value_size]
  float *most, *total;        // [heads]
  float *keys, *values;       // [kKeys, key_size], [kKeys, value_size], widened

  Row(int heads, int key_size, int value_size) : key_size(key_size), value_size(value_size) {
    queries = scratch((heads + kKeys) * (key_size + value_size) + 2 * padded(heads));
    weighted = queries + heads * key_size;
    keys = weighted + heads * value_size;
    values = keys + kKeys * key_size;
    most = values + kKeys * value_size;
    total = most + padded(heads);
    std::fill_n(weighted, heads * value_size, 0.0f);
    std::fill_n(most, heads, kNone);
    std::fill_n(total, heads, 0.0f);
  }

  // Takes scores of a head, of which the first `count` are real, and leaves their weights.
  void weigh(float* scores, int count, int head) {
    Vector highest = load(scores);
    for (int j = kWidth; j < count; j += kWidth) highest = larger(highest, load(scores + j));
    const float before = most[head], now = std::max(before, largest(highest));
    Vector sum_of = Vector{};
    for (int j = 0; j < count; j += kWidth) {
      const Vector e = exponential(load(scores + j) - now);
      store(scores + j, e);
      sum_of += e;
    }
    if (now != before) {
      const float kept = before == kNone ? 0 : std::exp(before - now);
      float* sums_of = weighted + head * value_size;
      for (int d = 0; d < value_size; d += kWidth) store(sums_of + d, load(sums_of + d) * kept);
      total[head] *= kept;
    }
    total[head] += sum(sum_of);
    most[head] = now;
  }
};

// Adds to `weighted` the values of `count` keys, for `kVectors` vectors of each.
template <class T, int kHeads, int kVectors>
void gather(float* weighted, int value_size, const T* const* values, int d, const float (*weights)[kKeys], int count) {
  Vector sum_of[kHeads][kVectors];
#pragma GCC unroll 8
  for (int h = 0; h < kHeads; ++h)
#pragma GCC unroll 8
    for (int i = 0; i < kVectors; ++i) sum_of[h][i] = load(weighted + h * value_size + d + i * kWidth);
  for (int j = 0; j < count; ++j)
#pragma GCC unroll 8
    for (int i = 0; i < kVectors; ++i) {
      const Vector value = load(values[j] + d + i * kWidth);
#pragma GCC unroll 8
      for (int h = 0; h < kHeads; ++h) sum_of[h][i] += value * weights[h][j];
    }
#pragma GCC unroll 8
  for (int h = 0; h < kHeads; ++h)
#pragma GCC unroll 8
    for (int i = 0; i < kVectors; ++i) store(weighted + h * value_size + d + i * kWidth, sum_of[h][i]);
}

// The products of `kWidth` keys with `kHeads` queries, `kSize` numbers each; 0: `size`.
template <int kHeads, int kSize>
void score(float (*scores)[kKeys], int first, const float* queries, const float* keys, int size) {
  if constexpr (kSize) size = kSize;
  for (int h = 0; h < kHeads; ++h) {
    Vector products[kWidth];
#pragma GCC unroll 16
    for (int i = 0; i < kWidth; ++i) {
      products[i] = load(queries + h * size) * load(keys + i * size);
#pragma GCC unroll 16
      for (int d = kWidth; d < size; d += kWidth)
        products[i] += load(queries + h * size + d) * load(keys + i * size + d);
    }
    store(scores[h] + first, sums(products));
  }
}

// Takes `count` keys for the heads of a row from `head` on, which share a KV head.
template <class T, int kHeads, int kSize>
void take(const Layer<T>& layer, const Tile& tile, int kv_head, int head, int start, int count, Row& row) {
  const Attention& a = layer.a;
  const int key_size = row.key_size, value_size = row.value_size;
  const T* values[kKeys];
  layer.each(tile, kv_head, start, count, [&](int j, const T* key, const T* value) {
    widen(row.keys + j * key_size, key, a.key_dim);
    values[j] = value;
  });
  float scores[kHeads][kKeys];
  for (int j = 0; j < count; j += kWidth)
    score<kHeads, kSize>(scores, j, row.queries + head * key_size, row.keys + j * key_size, key_size);
  for (int h = 0; h < kHeads; ++h) {
    std::fill(scores[h] + count, scores[h] + (count + kWidth - 1) / kWidth * kWidth, kNone);
    row.weigh(scores[h], count, head + h);
  }
  float* weighted = row.weighted + head * value_size;
  if (a.value_dim == value_size) {
    constexpr int kVectors = std::max(1, std::min(4, kRegisters / kHeads));
    int d = 0;
    for (; d + kVectors * kWidth <= value_size; d += kVectors * kWidth)
      gather<T, kHeads, kVectors>(weighted, value_size, values, d, scores, count);
    for (; d < value_size; d += kWidth) gather<T, kHeads, 1>(weighted, value_size, values, d, scores, count);
    return;
  }
  const float* widened[kKeys];
  for (int j = 0; j < count; ++j) {
    widen(row.values + j * value_size, values[j], a.value_dim);
    widened[j] = row.values + j * value_size;
  }
  for (int d = 0; d < value_size; d += kWidth)
    gather<float, kHeads, 1>(weighted, value_size, widened, d, scores, count);
}

template <class T, int kHeads>
void take(const Layer<T>& layer, const Tile& tile, int kv_head, int head, int start, int count, Row& row) {
  switch (layer.a.key_dim) {
    case 64: return take<T, kHeads, 64>(layer, tile, kv_head, head, start, count, row);
    case 128: return take<T, kHeads, 128>(layer, tile, kv_head, head, start, count, row);
    default: return take<T, kHeads, 0>(layer, tile, kv_head, head, start, count, row);
  }
}

template <class T>
void narrow_tile(const Layer<T>& layer, const Tile& tile) {
  const Attention& a = layer.a;
  Row row(layer.heads, padded(a.key_dim), padded(a.value_dim));
  for (int head = 0; head < layer.heads; ++head) {
    float* query = row.queries + head * row.key_size;
    widen(query, layer.query(tile.row, head), a.key_dim);
    for (int d = 0; d < row.key_size; d += kWidth) store(query + d, load(query + d) * a.scale);
  }
  const int position = a.positions[tile.row];
  const int begin = a.window ? std::max(tile.begin, position - a.window + 1) : tile.begin;
  const int end = std::min(tile.end, position + 1);
  for (int start = begin; start < end; start += kKeys) {
    const int count = std::min(kKeys, end - start);
    for (int kv_head = 0; kv_head < a.kv_heads; ++kv_head) {
      layer.fetch(tile, kv_head, start + count, end);
      for (int head = kv_head * a.group, left = a.group; left;) {
        const int heads = std::min(kMostGroup, left);
        switch (heads) {
          case 8: take<T, 8>(layer, tile, kv_head, head, start, count, row); break;
          case 7: take<T, 7>(layer, tile, kv_head, head, start, count, row); break;
          case 6: take<T, 6>(layer, tile, kv_head, head, start, count, row); break;
          case 5: take<T, 5>(layer, tile, kv_head, head, start, count, row); break;
          case 4: take<T, 4>(layer, tile, kv_head, head, start, count, row); break;
          case 3: take<T, 3>(layer, tile, kv_head, head, start, count, row); break;
          case 2: take<T, 2>(layer, tile, kv_head, head, start, count, row); break;
          default: take<T, 1>(layer, tile, kv_head, head, start, count, row);
        }
        head += heads, left -= heads;
      }
    }
  }
  for (int head = 0; head < layer.heads; ++head)
    layer.finish(tile, tile.row, head, row.weighted + head * row.value_size, row.most[head], row.total[head]);
}

// ---- tiles of many rows

// Rows of a product that stay in registers.
constexpr int kRows = kWidth == 16 ? 8 : 4;

// Adds to `c[i][lane]` the sum over k of `a[i * by_row + k * by_k] * b[k][lane]`, for `kLanes` lanes of rows that are
// `lanes` long. `Products::fused(sum, x, y)` adds one product; `a` and `b` may be pairs of numbers.
template <class Products, class A>
void multiply(float* c, const A* a, int64_t by_row, int64_t by_k, const A* b, int rows, int depth, int lanes) {
  int i = 0;
  for (; i + kRows <= rows; i += kRows) {
    Vector sum_of[kRows][2];
#pragma GCC unroll 8
    for (int r = 0; r < kRows; ++r)
      sum_of[r][0] = load(c + (i + r) * lanes), sum_of[r][1] = load(c + (i + r) * lanes + kWidth);
    for (int k = 0; k < depth; ++k) {
      const Vector left = load((const float*)(b + k * lanes)), right = load((const float*)(b + k * lanes + kWidth));
#pragma GCC unroll 8
      for (int r = 0; r < kRows; ++r) {
        const A x = a[(i + r) * by_row + k * by_k];
        sum_of[r][0] = Products::fused(sum_of[r][0], x, left), sum_of[r][1] = Products::fused(sum_of[r][1], x, right);
      }
    }
#pragma GCC unroll 8
    for (int r = 0; r < kRows; ++r)
      store(c + (i + r) * lanes, sum_of[r][0]), store(c + (i + r) * lanes + kWidth, sum_of[r][1]);
  }
  for (; i < rows; ++i) {
    Vector left = load(c + i * lanes), right = load(c + i * lanes + kWidth);
    for (int k = 0; k < depth; ++k) {
      const A x = a[i * by_row + k * by_k];
      left = Products::fused(left, x, load((const float*)(b + k * lanes)));
      right = Products::fused(right, x, load((const float*)(b + k * lanes + kWidth)));
    }
    store(c + i * lanes, left), store(c + i * lanes + kWidth, right);
  }
}

// The products of a tile in float32, for numbers of any type.
template <class T>
struct Widened {
  const int key_dim, value_dim, key_size, value_size, lanes;
  float *queries, *keys, *values;  // [key_size, lanes], [kKeys, key_size], [kKeys, value_size]

  static size_t room(const Attention& a, int lanes) {
    return padded(a.key_dim) * (lanes + kKeys) + padded(a.value_dim) * kKeys;
  }

  Widened(const Attention& a, int lanes, float* memory)
      : key_dim(a.key_dim), value_dim(a.value_dim), key_size(padded(a.key_dim)), value_size(padded(a.value_dim)),
        lanes(lanes), queries(memory), keys(queries + key_size * lanes), values(keys + kKeys * key_size) {
    std::fill_n(queries, key_size * lanes, 0.0f);
  }

  void take_query(int lane, const T* query) {
    widen(keys, query, key_dim);
    for (int d = 0; d < key_dim; ++d) queries[d * lanes + lane] = keys[d];
  }

  void take_key(int j, const T* key, const T* value) {
    widen(keys + j * key_size, key, key_dim);
    widen(values + j * value_size, value, value_dim);
  }

  static Vector fused(Vector sum, float x, Vector y) { return sum + x * y; }

  void score(float* scores, int count) const {
    for (int m = 0; m < lanes; m += kLanes)
      multiply<Widened>(scores + m, keys, key_size, 1, queries + m, count, key_dim, lanes);
  }

  void gather(float* weighted, float* weights, int count) const {
    for (int m = 0; m < lanes; m += kLanes)
      multiply<Widened>(weighted + m, values, 1, value_size, weights + m, value_dim, count, lanes);
  }
};

#if defined(__AVX512BF16__)
// The same by products of two bfloat16 at once, added up in float32. Weights are rounded to bfloat16 for it.
struct Paired {
  using Pair = uint32_t;
  const int key_dim, value_dim, key_pairs, value_size, lanes;
  Pair *queries, *keys, *values;  // [key_pairs, lanes], [kKeys, key_pairs], [kKeys / 2, value_size]

  static size_t room(const Attention& a, int lanes) {
    return padded(a.key_dim) * (lanes + kKeys) + padded(a.value_dim) * kKeys;
  }

  Paired(const Attention& a, int lanes, float* memory)
      : key_dim(a.key_dim), value_dim(a.value_dim), key_pairs(padded(a.key_dim) / 2), value_size(padded(a.value_dim)),
        lanes(lanes), queries((Pair*)memory), keys(queries + key_pairs * lanes), values(keys + kKeys * key_pairs) {
    std::memset(queries, 0, (key_pairs * (lanes + kKeys) + value_size * kKeys / 2) * sizeof(Pair));
  }

  void take_query(int lane, const Bfloat16* query) {
    std::memcpy(keys, query, key_dim * sizeof(Bfloat16));
    for (int d = 0; d < key_pairs; ++d) queries[d * lanes + lane] = keys[d];
  }

  void take_key(int j, const Bfloat16* key, const Bfloat16* value) {
    std::memcpy(keys + j * key_pairs, key, key_dim * sizeof(Bfloat16));
    Pair* to = values + j / 2 * value_size;
    for (int d = 0; d < value_dim; ++d) to[d] = j % 2 ? (to[d] & 0xffff) | value[d].bits << 16 : value[d].bits;
  }

  static Vector fused(Vector sum, Pair x, Vector y) {
    return (Vector)_mm512_dpbf16_ps((__m512)sum, (__m512bh)_mm512_set1_epi32(x), (__m512bh)(__m512)y);
  }

  void score(float* scores, int count) const {
    for (int m = 0; m < lanes; m += kLanes)
      multiply<Paired>(scores + m, keys, key_pairs, 1, queries + m, count, (key_dim + 1) / 2, lanes);
  }

  void gather(float* weighted, float* weights, int count) const {
    const int pairs = (count + 1) / 2;
    Pair* paired = (Pair*)weights;
    for (int j = 0; j < pairs; ++j)
      for (int m = 0; m < lanes; m += kWidth) {
        const Vector first = load(weights + 2 * j * lanes + m);
        const Vector second = 2 * j + 1 < count ? load(weights + (2 * j + 1) * lanes + m) : Vector{};
        store((float*)paired + j * lanes + m, (Vector)(rounded_bits(second) << 16 | rounded_bits(first)));
      }
    for (int m = 0; m < lanes; m += kLanes)
      multiply<Paired>(weighted + m, values, 1, value_size, paired + m, value_dim, pairs, lanes);
  }
};
#endif

template <class T, class Products>
void wide_tile(const Layer<T>& layer, const Tile& tile, int kv_head) {
  const Attention& a = layer.a;
  const int queries = tile.rows * a.group, lanes = (queries + kLanes - 1) / kLanes * kLanes;
  const int value_size = padded(a.value_dim);
  float* memory = scratch((value_size + kKeys + 3) * lanes + value_size + Products::room(a, lanes));
  float* weighted = memory;                       // [value_size, lanes]
  float* scores = weighted + value_size * lanes;  // [kKeys, lanes]
  float* most = scores + kKeys * lanes;           // [lanes], as the next two
  float* total = most + lanes;
  int32_t* position = (int32_t*)(total + lanes);
  float* row_of = total + 2 * lanes;  // [value_size]
  Products products(a, lanes, row_of + value_size);
  std::fill_n(weighted, value_size * lanes, 0.0f);
  std::fill_n(most, lanes, kNone);
  std::fill_n(total, lanes, 0.0f);
  const int lowest = a.positions[tile.row], highest = a.positions[tile.row + tile.rows - 1];
  for (int m = 0; m < lanes; ++m) {
    position[m] = m < queries ? a.positions[tile.row + m / a.group] : highest;
    if (m < queries) products.take_query(m, layer.query(tile.row + m / a.group, kv_head * a.group + m % a.group));
  }
  const int begin = a.window ? std::max(tile.begin, lowest - a.window + 1) : tile.begin;
  const int end = std::min(tile.end, highest + 1);
  for (int start = begin; start < end; start += kKeys) {
    const int count = std::min(kKeys, end - start);
    layer.each(tile, kv_head, start, count,
               [&](int j, const T* key, const T* value) { products.take_key(j, key, value); });
    layer.fetch(tile, kv_head, start + count, end);
    std::fill_n(scores, count * lanes, 0.0f);
    products.score(scores, count);
    const bool all_seen = start + count - 1 <= lowest && (!a.window || start > highest - a.window);
    for (int m = 0; m < lanes; m += kWidth) {
      Ints at;
      std::memcpy(&at, position + m, sizeof(at));
      const Vector before = load(most + m);
      Vector now = before;
      for (int j = 0; j < count; ++j) {
        Vector score = load(scores + j * lanes + m) * a.scale;
        if (!all_seen) {
          const Ints seen = (at >= start + j) & (a.window ? at < start + j + a.window : Ints{} - 1);
          score = seen ? score : broadcast(kNone);
        }
        store(scores + j * lanes + m, score);
        now = larger(now, score);
      }
      const Vector base = now == kNone ? Vector{} : now;  // a row may see none of these keys, nor any before
      Vector sum_of = Vector{};
      for (int j = 0; j < count; ++j) {
        const Vector e = exponential(load(scores + j * lanes + m) - base);
        store(scores + j * lanes + m, e);
        sum_of += e;
      }
      const Vector kept = exponential(before - base);
      store(total + m, load(total + m) * kept + sum_of);
      store(most + m, now);
      for (int d = 0; d < a.value_dim; ++d)
        store(weighted + d * lanes + m, load(weighted + d * lanes + m) * kept);
    }
    products.gather(weighted, scores, count);
  }
  for (int m = 0; m < queries; ++m) {
    for (int d = 0; d < a.value_dim; ++d) row_of[d] = weighted[d * lanes + m];
    layer.finish(tile, tile.row + m / a.group, kv_head * a.group + m % a.group, row_of, most[m], total[m]);
  }
}

template <class T>
void wide_tile(const Layer<T>& layer, const Tile& tile, int kv_head) {
#if defined(__AVX512BF16__)
  if constexpr (std::is_same_v<T, Bfloat16>) return wide_tile<T, Paired>(layer, tile, kv_head);
#endif
  wide_tile<T, Widened<T>>(layer, tile, kv_head);
}

// ---- the whole layer

template <class T>
void write(const Layer<T>& layer, int row) {
  const Attention& a = layer.a;
  if (a.slots[row] < 0) return;
  for (int head = 0; head < a.kv_heads; ++head) {
    std::copy_n((const T*)a.k + row * a.k_row + head * a.k_head, a.key_dim, layer.key(a.slots[row], head));
    std::copy_n((const T*)a.v + row * a.v_row + head * a.v_head, a.value_dim, layer.value(a.slots[row], head));
  }
}

// Puts the parts of a decode together by their log-sum-exp.
template <class T>
void merge(const Layer<T>& layer, int row, int head) {
  const Attention& a = layer.a;
  const auto place = [&](int part) { return ((int64_t)part * a.decodes + row) * layer.heads + head; };
  float most = kNone, total = 0;
  for (int part = 0; part < a.parts[row]; ++part) most = std::max(most, a.weight[place(part)]);
  for (int part = 0; part < a.parts[row]; ++part) total += std::exp(a.weight[place(part)] - most);
  float* made = scratch(padded(a.value_dim));
  std::fill_n(made, a.value_dim, 0.0f);
  for (int part = 0; part < a.parts[row]; ++part) {
    const float factor = std::exp(a.weight[place(part)] - most) / total;
    for (int d = 0; d < a.value_dim; ++d) made[d] += factor * a.partial[place(part) * a.value_dim + d];
  }
  for (int d = 0; d < a.value_dim; d += kWidth)
    store_some(layer.result(row, head) + d, load(made + d), std::min(kWidth, a.value_dim - d));
}

template <class T>
void attend(const Attention& a) {
  const Layer<T> layer{a};
  const int wide = a.num_wide * a.kv_heads, decodes = a.decodes * layer.heads;
#pragma omp parallel num_threads(a.threads) if (a.threads > 1)
  {
#pragma omp for schedule(static)
    for (int row = 0; row < a.rows; ++row) write(layer, row);
#pragma omp for schedule(dynamic) nowait
    for (int i = 0; i < wide; ++i)
      if (a.wide[i / a.kv_heads].rows) wide_tile(layer, a.wide[i / a.kv_heads], i % a.kv_heads);
#pragma omp for schedule(dynamic)
    for (int i = 0; i < a.num_narrow; ++i)
      if (a.narrow[i].rows) narrow_tile(layer, a.narrow[i]);
#pragma omp for schedule(static)
    for (int i = 0; i < decodes; ++i)
      if (a.parts[i / layer.heads]) merge(layer, i / layer.heads, i % layer.heads);
  }
}

}  // namespace
}  // namespace chat_engine

extern "C" void chat_engine_attend(const chat_engine::Attention* a) {
  a->bfloat16 ? chat_engine::attend<chat_engine::Bfloat16>(*a) : chat_engine::attend<float>(*a);
}
