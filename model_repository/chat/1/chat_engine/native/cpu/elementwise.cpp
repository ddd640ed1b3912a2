// What stands between the matrix products of a layer, each in one pass over its rows.

#include <algorithm>
#include <cmath>

#include "vectors.h"

namespace chat_engine {
namespace {

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
void rms_norm(const T* x, const T* weight, T* out, int64_t rows, int dim, float eps, int threads) {
#pragma omp parallel for num_threads(threads) schedule(static) if (threads > 1)
  for (int64_t row = 0; row < rows; ++row) {
    const T* from = x + row * dim;
    T* to = out + row * dim;
    Vector squares = Vector{};
    in_vectors<T>(dim, [&](int d, int count) {
      const Vector v = some(from + d, count);
      squares += v * v;
    });
    const float factor = 1 / std::sqrt(sum(squares) / dim + eps);
    in_vectors<T>(dim, [&](int d, int count) {
      put(to + d, rounded(some(from + d, count) * factor, from) * some(weight + d, count), count);
    });
  }
}

// Rotary position embedding (arXiv:2104.09864) of one tensor `[rows, heads, dim]`, whose halves rotate together.
template <class T>
void rotate(const T* x, int64_t by_row, int64_t by_head, const T* cos, const T* sin, T* out, int row, int heads,
            int dim) {
  const int half = dim / 2;
  cos += (int64_t)row * dim, sin += (int64_t)row * dim;
  for (int head = 0; head < heads; ++head) {
    const T* from = x + row * by_row + head * by_head;
    T* to = out + ((int64_t)row * heads + head) * dim;
    in_vectors<T>(half, [&](int d, int count) {
      const Vector a = some(from + d, count), b = some(from + half + d, count);
      put(to + d, a * some(cos + d, count) - b * some(sin + d, count), count);
      put(to + half + d, b * some(cos + half + d, count) + a * some(sin + half + d, count), count);
    });
  }
}

// x / (1 + e^-x) * y, of rows that may stand in wider ones.
template <class T>
void silu_times(const T* x, int64_t x_row, const T* y, int64_t y_row, T* out, int64_t rows, int dim, int threads) {
#pragma omp parallel for num_threads(threads) schedule(static) if (threads > 1)
  for (int64_t row = 0; row < rows; ++row)
    in_vectors<T>(dim, [&](int d, int count) {
      const Vector v = some(x + row * x_row + d, count);
      // e to no more than 0, so that nothing overflows.
      const Vector e = exponential(v < 0 ? v : -v);
      const Vector sigmoid = (v < 0 ? e : Vector{} + 1) / (1 + e);
      put(out + row * dim + d, rounded(v * sigmoid, x) * some(y + row * y_row + d, count), count);
    });
}

template <class T>
void rotate_both(const void* q, const void* k, const void* cos, const void* sin, void* q_out, void* k_out,
                 int64_t q_row, int64_t q_head, int64_t k_row, int64_t k_head, int rows, int q_heads, int k_heads,
                 int dim, int threads) {
#pragma omp parallel for num_threads(threads) schedule(static) if (threads > 1)
  for (int row = 0; row < rows; ++row) {
    rotate((const T*)q, q_row, q_head, (const T*)cos, (const T*)sin, (T*)q_out, row, q_heads, dim);
    rotate((const T*)k, k_row, k_head, (const T*)cos, (const T*)sin, (T*)k_out, row, k_heads, dim);
  }
}

}  // namespace
}  // namespace chat_engine

using chat_engine::Bfloat16;
using chat_engine::threads_for;

extern "C" {

void chat_engine_rms_norm(const void* x, const void* weight, void* out, int64_t rows, int32_t dim, float eps,
                          int32_t bfloat16, int32_t threads) {
  threads = threads_for(rows * dim, threads);
  if (bfloat16)
    chat_engine::rms_norm((const Bfloat16*)x, (const Bfloat16*)weight, (Bfloat16*)out, rows, dim, eps, threads);
  else
    chat_engine::rms_norm((const float*)x, (const float*)weight, (float*)out, rows, dim, eps, threads);
}

void chat_engine_rotate(const void* q, const void* k, const void* cos, const void* sin, void* q_out, void* k_out,
                        int64_t q_row, int64_t q_head, int64_t k_row, int64_t k_head, int32_t rows, int32_t q_heads,
                        int32_t k_heads, int32_t dim, int32_t bfloat16, int32_t threads) {
  threads = threads_for((int64_t)rows * (q_heads + k_heads) * dim, threads);
  const auto both = bfloat16 ? chat_engine::rotate_both<Bfloat16> : chat_engine::rotate_both<float>;
  both(q, k, cos, sin, q_out, k_out, q_row, q_head, k_row, k_head, rows, q_heads, k_heads, dim, threads);
}

void chat_engine_silu_times(const void* x, int64_t x_row, const void* y, int64_t y_row, void* out, int64_t rows,
                            int32_t dim, int32_t bfloat16, int32_t threads) {
  threads = threads_for(rows * dim, threads);
  if (bfloat16)
    chat_engine::silu_times((const Bfloat16*)x, x_row, (const Bfloat16*)y, y_row, (Bfloat16*)out, rows, dim, threads);
  else
    chat_engine::silu_times((const float*)x, x_row, (const float*)y, y_row, (float*)out, rows, dim, threads);
}

}  // extern "C"
