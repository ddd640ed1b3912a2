// What stands between the matrix products of a layer, each in one pass over its rows.

#include <algorithm>
#include <cmath>

#include "vectors.h"

namespace chat_engine {
namespace {

// Their mirrors are in elementwise.py. Strides are in numbers.
struct Norm {
  const void *x, *weight;
  void* out;
  int64_t rows;
  int32_t dim;
  float eps;
  int32_t bfloat16, threads;
};

struct Rotary {
  const void *q, *k, *cos, *sin;
  void *q_out, *k_out;
  int64_t q_row, q_head, k_row, k_head;
  int32_t rows, q_heads, k_heads, dim, bfloat16, threads;
};

struct Gate {
  const void *x, *y;
  void* out;
  int64_t x_row, y_row, rows;
  int32_t dim, bfloat16, threads;
};

struct Sum {
  const void *x, *y;
  void* out;
  int64_t count;
  int32_t bfloat16, threads;
};

// Fewer numbers than these are not worth waking other threads.
constexpr int64_t kWorthThreads = 1 << 18;

int threads_for(int64_t numbers, int threads) { return numbers < kWorthThreads ? 1 : threads; }

template <class T, class Compute>
inline void in_vectors(int dim, Compute compute) {
  int d = 0;
  for (; d + kWidth <= dim; d += kWidth) compute(d, kWidth);
  if (d < dim) compute(d, dim - d);
}

template <class T>
inline Vector some(const T* from, int count) {
  return count == kWidth ? load(from) : load_some(from, count);
}

template <class T>
inline void put(T* to, Vector x, int count) {
  count == kWidth ? store(to, x) : store_some(to, x, count);
}

inline Vector rounded(Vector x, const Bfloat16*) {
  Bfloat16 halves[kWidth];
  store(halves, x);
  return load(halves);
}

inline Vector rounded(Vector x, const float*) { return x; }

// Root mean square layer normalisation (arXiv:1910.07467), rounded before it is scaled, as transformers does.
template <class T>
void rms_norm(const Norm& t, int threads) {
#pragma omp parallel for num_threads(threads) schedule(static) if (threads > 1)
  for (int64_t row = 0; row < t.rows; ++row) {
    const T *from = (const T*)t.x + row * t.dim, *weight = (const T*)t.weight;
    T* to = (T*)t.out + row * t.dim;
    Vector squares = Vector{};
    in_vectors<T>(t.dim, [&](int d, int count) {
      const Vector v = some(from + d, count);
      squares += v * v;
    });
    const float factor = 1 / std::sqrt(sum(squares) / t.dim + t.eps);
    in_vectors<T>(t.dim, [&](int d, int count) {
      put(to + d, rounded(some(from + d, count) * factor, from) * some(weight + d, count), count);
    });
  }
}

// Rotary position embedding (arXiv:2104.09864) of the heads of one row, whose halves rotate together.
template <class T>
void rotate(const T* from, int64_t by_head, const T* cos, const T* sin, T* to, int heads, int dim) {
  const int half = dim / 2;
  for (int head = 0; head < heads; ++head, from += by_head, to += dim)
    in_vectors<T>(half, [&](int d, int count) {
      const Vector a = some(from + d, count), b = some(from + half + d, count);
      put(to + d, a * some(cos + d, count) - b * some(sin + d, count), count);
      put(to + half + d, b * some(cos + half + d, count) + a * some(sin + half + d, count), count);
    });
}

template <class T>
void rotate(const Rotary& t, int threads) {
#pragma omp parallel for num_threads(threads) schedule(static) if (threads > 1)
  for (int64_t row = 0; row < t.rows; ++row) {
    const T *cos = (const T*)t.cos + row * t.dim, *sin = (const T*)t.sin + row * t.dim;
    T *q = (T*)t.q_out + row * t.q_heads * t.dim, *k = (T*)t.k_out + row * t.k_heads * t.dim;
    rotate((const T*)t.q + row * t.q_row, t.q_head, cos, sin, q, t.q_heads, t.dim);
    rotate((const T*)t.k + row * t.k_row, t.k_head, cos, sin, k, t.k_heads, t.dim);
  }
}

// x / (1 + e^-x) * y, of rows that may stand in wider ones.
template <class T>
void silu_times(const Gate& t, int threads) {
#pragma omp parallel for num_threads(threads) schedule(static) if (threads > 1)
  for (int64_t row = 0; row < t.rows; ++row) {
    const T *x = (const T*)t.x + row * t.x_row, *y = (const T*)t.y + row * t.y_row;
    T* to = (T*)t.out + row * t.dim;
    in_vectors<T>(t.dim, [&](int d, int count) {
      const Vector v = some(x + d, count);
      // e to no more than 0, so that nothing overflows.
      const Vector e = exponential(v < 0 ? v : -v);
      const Vector sigmoid = (v < 0 ? e : Vector{} + 1) / (1 + e);
      put(to + d, rounded(v * sigmoid, x) * some(y + d, count), count);
    });
  }
}

template <class T>
void add(const Sum& t, int threads) {
  constexpr int kPart = 4096;
#pragma omp parallel for num_threads(threads) schedule(static) if (threads > 1)
  for (int64_t i = 0; i < t.count; i += kPart)
    in_vectors<T>(std::min<int64_t>(kPart, t.count - i), [&](int d, int count) {
      put((T*)t.out + i + d, some((const T*)t.x + i + d, count) + some((const T*)t.y + i + d, count), count);
    });
}

}  // namespace
}  // namespace chat_engine

using namespace chat_engine;

extern "C" {

void chat_engine_rms_norm(const Norm* t) {
  (t->bfloat16 ? rms_norm<Bfloat16> : rms_norm<float>)(*t, threads_for(t->rows * t->dim, t->threads));
}

void chat_engine_rotate(const Rotary* t) {
  const int64_t numbers = (int64_t)t->rows * (t->q_heads + t->k_heads) * t->dim;
  t->bfloat16 ? rotate<Bfloat16>(*t, threads_for(numbers, t->threads))
              : rotate<float>(*t, threads_for(numbers, t->threads));
}

void chat_engine_silu_times(const Gate* t) {
  (t->bfloat16 ? silu_times<Bfloat16> : silu_times<float>)(*t, threads_for(t->rows * t->dim, t->threads));
}

void chat_engine_add(const Sum* t) {
  (t->bfloat16 ? add<Bfloat16> : add<float>)(*t, threads_for(t->count, t->threads));
}

}  // extern "C"
