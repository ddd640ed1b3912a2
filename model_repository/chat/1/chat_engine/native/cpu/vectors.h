// Vectors of floats as wide as the processor's registers, by the vector extensions of GCC and Clang.
#pragma once

#include <cstdint>
#include <cstring>
#include <limits>
#include <vector>

#if defined(__AVX512BF16__)
#include <immintrin.h>
#endif

namespace chat_engine {

#if defined(__AVX512F__)
constexpr int kWidth = 16;
#elif defined(__AVX__)
constexpr int kWidth = 8;
#else
constexpr int kWidth = 4;
#endif

typedef float Vector __attribute__((vector_size(kWidth * sizeof(float))));
typedef int32_t Ints __attribute__((vector_size(kWidth * sizeof(int32_t))));
typedef uint32_t Bits __attribute__((vector_size(kWidth * sizeof(uint32_t))));
typedef uint16_t Halves __attribute__((vector_size(kWidth * sizeof(uint16_t))));

constexpr float kNone = -std::numeric_limits<float>::infinity();

struct Bfloat16 {
  uint16_t bits;
};

// GCC 12 takes a function that does nothing but `__builtin_prefetch` for one without effect, and drops its calls.
inline void prefetch(const void* at) {
#if defined(__x86_64__)
  asm volatile("prefetcht0 %0" : : "m"(*(const char*)at));
#else
  __builtin_prefetch(at);
#endif
}

// Where a whole line is about to be written: it would have to be read first, which takes as long.
inline void prefetch_to_write(void* at) {
#if defined(__x86_64__)
  asm volatile("prefetchw %0" : : "m"(*(char*)at));  // does nothing on processors that do not have it
#else
  __builtin_prefetch(at, 1);
#endif
}

// Less nothing is x itself; plus nothing would be an addition, as it makes 0 of -0.
inline Vector broadcast(float x) { return x - Vector{}; }

inline Vector load(const float* from) {
  Vector x;
  std::memcpy(&x, from, sizeof(x));
  return x;
}

inline Vector load(const Bfloat16* from) {
  Halves halves;
  std::memcpy(&halves, from, sizeof(halves));
  return (Vector)(__builtin_convertvector(halves, Bits) << 16);
}

// The first `count` of them; the others are zero.
template <class T>
inline Vector load_some(const T* from, int count) {
  T padded[kWidth] = {};
  std::memcpy(padded, from, count * sizeof(T));
  return load(padded);
}

inline void store(float* to, Vector x) { std::memcpy(to, &x, sizeof(x)); }

// As bfloat16, to nearest, ties to even; a NaN stays one.
inline Bits rounded_bits(Vector x) {
  const Bits bits = (Bits)x;
  return x == x ? (bits + 0x7fff + ((bits >> 16) & 1)) >> 16 : Bits{} + 0x7fc0;
}

inline void store(Bfloat16* to, Vector x) {
  const Halves halves = __builtin_convertvector(rounded_bits(x), Halves);
  std::memcpy(to, &halves, sizeof(halves));
}

template <class T>
inline void store_some(T* to, Vector x, int count) {
  T padded[kWidth];
  store(padded, x);
  std::memcpy(to, padded, count * sizeof(T));
}

inline Vector larger(Vector a, Vector b) { return a > b ? a : b; }

inline float largest(Vector x) {
  float most = x[0];
  for (int i = 1; i < kWidth; ++i) most = x[i] > most ? x[i] : most;
  return most;
}

inline float sum(Vector x) {
  float total = 0;
  for (int i = 0; i < kWidth; ++i) total += x[i];
  return total;
}

inline Ints counting() {
  Ints x;
  for (int i = 0; i < kWidth; ++i) x[i] = i;
  return x;
}

// Lane `i` of the result is the sum of `x[i]`: pairs are added, and two vectors become one, until one is left.
inline Vector sums(Vector (&x)[kWidth]) {
  Ints even, odd;
  for (int i = 0; i < kWidth; ++i) even[i] = 2 * i, odd[i] = 2 * i + 1;
#pragma GCC unroll 4
  for (int count = kWidth / 2; count; count /= 2)
#pragma GCC unroll 8
    for (int i = 0; i < count; ++i)
      x[i] = __builtin_shuffle(x[2 * i], x[2 * i + 1], even) + __builtin_shuffle(x[2 * i], x[2 * i + 1], odd);
  return x[0];
}

// e to the x, for x not above 0; 0 for what float32 cannot hold. To 2 units in the last place (Cephes, expf).
inline Vector exponential(Vector x) {
  const float least = -87.0f, round = 12582912.0f;  // 1.5 * 2^23: adding it rounds to an integer
  Vector bounded = larger(x, broadcast(least));
  Vector whole = (bounded * 1.44269504f + round) - round;
  Vector r = bounded - whole * 0.693359375f;
  r = r - whole * -2.12194440e-4f;
  Vector p = broadcast(1.9875691500e-4f);
  p = p * r + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = p * r * r + r + 1.0f;
  Vector power = (Vector)((__builtin_convertvector(whole, Ints) + 127) << 23);
  return x < least ? Vector{} : p * power;
}

// Memory of a thread, which stays for its next work; each source file has its own.
static inline float* scratch(size_t count) {
  thread_local std::vector<float> memory;
  if (memory.size() < count + kWidth) memory.resize(count + kWidth);
  const auto address = (uintptr_t)memory.data(), size = sizeof(Vector);
  return (float*)((address + size - 1) / size * size);
}

inline int padded(int dim) { return (dim + kWidth - 1) / kWidth * kWidth; }

template <class T>
void widen(float* to, const T* from, int dim) {
  int d = 0;
  for (; d + kWidth <= dim; d += kWidth) store(to + d, load(from + d));
  if (d < dim) store(to + d, load_some(from + d, dim - d));
}

}  // namespace chat_engine
