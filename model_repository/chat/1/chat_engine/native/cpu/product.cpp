// Products with the weights of linear layers: rows `[rows, inputs]` by weights `[outputs, inputs]`, on a CPU.
//
// Weights may be kept in fewer bits than what they are multiplied with: they become floats on their way into registers.
// An output is summed up in the same order whatever the number of rows, so it does not depend on its neighbours.

#include <algorithm>
#include <type_traits>

#include "vectors.h"

namespace chat_engine {
namespace {

// Mirror of `Product` in cpu_products.py.
struct Product {
  const void *x, *weight, *bias;  // the bias may be null
  const float* scales;  // of the outputs; null: none
  void* out;
  int64_t rows, x_row, out_row;  // strides in numbers
  int32_t inputs, outputs, form, bfloat16, threads;
};

constexpr int kPanel = 2 * kWidth;  // outputs whose weights stand side by side
constexpr int kRows = kWidth == 16 ? 12 : 6;  // that registers hold the sums of, for one panel
constexpr int kDeep = 256;  // inputs that are summed up in registers before their sum is added to the others
constexpr int kChunk = 16 * kRows;  // rows for which weights are made floats once
constexpr int kLine = 64;  // bytes
constexpr int kAhead = 1024;  // bytes that weights are fetched before they are needed
constexpr int kTasks = 16;  // for each thread, so that one that is interrupted leaves its work to others
constexpr int64_t kWorthThreads = 1 << 17;  // products

// The forms of a panel: for some inputs at a time, the weights of all its outputs.
struct Floats {
  static constexpr int kInputs = 1, kBytes = kPanel * 4;
  static void take(const char* at, Vector (&w)[kInputs][2]) {
    w[0][0] = load((const float*)at);
    w[0][1] = load((const float*)at + kWidth);
  }
};

// Each lane of 32 bits holds those of two outputs.
struct Halved {
  static constexpr int kInputs = 1, kBytes = kPanel * 2;
  static void take(const char* at, Vector (&w)[kInputs][2]) {
    Bits both;
    std::memcpy(&both, at, sizeof(both));
    w[0][0] = (Vector)(both << 16);
    w[0][1] = (Vector)(both & 0xffff0000u);
  }
};

// Each lane of 32 bits holds those of two outputs for two inputs.
struct Bytes {
  static constexpr int kInputs = 2, kBytes = kPanel * 2;
  static void take(const char* at, Vector (&w)[kInputs][2]) {
    Ints four;
    std::memcpy(&four, at, sizeof(four));
    w[0][0] = __builtin_convertvector(four << 24 >> 24, Vector);
    w[0][1] = __builtin_convertvector(four << 16 >> 24, Vector);
    w[1][0] = __builtin_convertvector(four << 8 >> 24, Vector);
    w[1][1] = __builtin_convertvector(four >> 24, Vector);
  }
};

template <int R, int P>
using Sums = Vector[P][R][2];

// Sums of R rows and P panels over `count` inputs. Number k of row r is `x[r * by_row + k * by_input]`.
template <class Form, int R, int P>
inline void multiply(const float* x, int64_t by_row, int64_t by_input, const char* panel, int64_t by_panel, int count,
                     Sums<R, P>& sums) {
  for (int p = 0; p < P; ++p)
    for (int r = 0; r < R; ++r) sums[p][r][0] = sums[p][r][1] = Vector{};
  for (int k = 0; k < count; k += Form::kInputs, panel += Form::kBytes)
#pragma GCC unroll 4
    for (int p = 0; p < P; ++p) {
      const char* at = panel + p * by_panel;
      if (P > 1) prefetch(at + kAhead);  // with more rows the processor is soon enough by itself
      Vector w[Form::kInputs][2];
      Form::take(at, w);
#pragma GCC unroll 2
      for (int i = 0; i < Form::kInputs; ++i)
#pragma GCC unroll 12
        for (int r = 0; r < R; ++r) {
          const Vector v = broadcast(x[r * by_row + (k + i) * by_input]);
          sums[p][r][0] += v * w[i][0];
          sums[p][r][1] += v * w[i][1];
        }
    }
}

// Calls `take(begin, rows)` for blocks of about as many rows.
template <class Take>
inline void each_block(int count, Take take) {
  const int blocks = (count + kRows - 1) / kRows;
  for (int b = 0; b < blocks; ++b) take(count * b / blocks, count * (b + 1) / blocks - count * b / blocks);
}

class Task {
 public:
  Task(const Product& t, const float* x, int64_t x_row) : t_(t), x_(x), x_row_(x_row) {}

  // All rows, few, by panels from `first`.
  template <class Form, int R, int P>
  void few(int first) const {
    const int64_t by_panel = panel_bytes<Form>();
    const char* panel = (const char*)t_.weight + first * by_panel;
    Sums<R, P> total, sums;
    for (int k = 0; k < t_.inputs; k += kDeep) {
      const char* from = panel + (int64_t)k / Form::kInputs * Form::kBytes;
      multiply<Form, R, P>(x_ + k, x_row_, 1, from, by_panel, std::min(kDeep, t_.inputs - k), k ? sums : total);
      if (k) add<R, P>(sums, total);
    }
    for (int p = 0; p < P; ++p) finish(0, R, first + p, total[p]);
  }

  // Writes the numbers of `rows` neighbours input by input, so that they are read as they lie.
  void lay_out(int64_t row, int rows, float* to) const {
    for (int r = 0; r < rows; ++r)
      for (int k = 0; k < t_.inputs; ++k) to[k * rows + r] = x_[(row + r) * x_row_ + k];
  }

  // Rows from `row`, many, by one panel; `laid_out` has them in blocks, `floats` holds kDeep inputs of the panel, and
  // `totals` the sums of kChunk rows. What comes next is fetched meanwhile: the weights behind these, or the outputs.
  template <class Form>
  void many(int panel, int64_t row, int count, const float* laid_out, float* floats, Vector (*totals)[2]) const {
    const char* at = (const char*)t_.weight + panel * panel_bytes<Form>();
    const int64_t size = t_.bfloat16 ? sizeof(Bfloat16) : sizeof(float), by_row = t_.out_row * size;
    char* outputs = (char*)t_.out + row * by_row + panel * kPanel * size;
    for (int k = 0; k < t_.inputs; k += kDeep) {
      const int deep = std::min(kDeep, t_.inputs - k);
      const char* from = at + (int64_t)k / Form::kInputs * Form::kBytes;
      const char* made = as_floats<Form>(from, deep, floats);
      const int bytes = deep / Form::kInputs * Form::kBytes, lines = bytes / kLine;
      const bool last = k + kDeep >= t_.inputs;
      each_block(count, [&](int begin, int rows) {
        for (int r = begin; last && r < begin + rows; ++r) {
          prefetch_to_write(outputs + r * by_row);
          if (kPanel * sizeof(float) > kLine) prefetch_to_write(outputs + r * by_row + kLine);
        }
        for (int i = begin * lines / count; i < (begin + rows) * lines / count; ++i) prefetch(from + bytes + i * kLine);
        block(laid_out + (int64_t)begin * t_.inputs + k * rows, rows, made, deep, totals + begin, k == 0);
      });
    }
    finish(row, count, panel, totals);
  }

 private:
  template <class Form>
  int64_t panel_bytes() const {
    return (int64_t)(t_.inputs + Form::kInputs - 1) / Form::kInputs * Form::kBytes;
  }

  template <int R, int P>
  static void add(const Sums<R, P>& sums, Sums<R, P>& total) {
    for (int p = 0; p < P; ++p)
      for (int r = 0; r < R; ++r) total[p][r][0] += sums[p][r][0], total[p][r][1] += sums[p][r][1];
  }

  template <class Form>
  static const char* as_floats(const char* from, int count, float* floats) {
    if (std::is_same<Form, Floats>::value) return from;
    float* to = floats;
    for (int k = 0; k < count; k += Form::kInputs, from += Form::kBytes) {
      Vector w[Form::kInputs][2];
      Form::take(from, w);
      for (int i = 0; i < Form::kInputs; ++i, to += kPanel) store(to, w[i][0]), store(to + kWidth, w[i][1]);
    }
    return (const char*)floats;
  }

  void block(const float* x, int rows, const char* floats, int deep, Vector (*totals)[2], bool first) const {
    switch (rows) {
#define ROWS(R) \
  case R: return fixed<R>(x, floats, deep, totals, first);
      ROWS(1) ROWS(2) ROWS(3) ROWS(4) ROWS(5) ROWS(6)
#if defined(__AVX512F__)
      ROWS(7) ROWS(8) ROWS(9) ROWS(10) ROWS(11) ROWS(12)
#endif
#undef ROWS
    }
  }

  template <int R>
  void fixed(const float* x, const char* floats, int deep, Vector (*totals)[2], bool first) const {
    Sums<R, 1> sums;
    multiply<Floats, R, 1>(x, 1, R, floats, 0, deep, sums);
    for (int r = 0; r < R; ++r)
      for (int i = 0; i < 2; ++i) totals[r][i] = first ? sums[0][r][i] : totals[r][i] + sums[0][r][i];
  }

  // Rows from `row`, whose sums are complete.
  void finish(int64_t row, int rows, int panel, const Vector (*sums)[2]) const {
    t_.bfloat16 ? write<Bfloat16>(row, rows, panel, sums) : write<float>(row, rows, panel, sums);
  }

  template <class T>
  void write(int64_t row, int rows, int panel, const Vector (*sums)[2]) const {
    const int first = panel * kPanel, by_row = t_.out_row;
    T* out = (T*)t_.out + row * by_row + first;
    for (int i = 0; i < 2; ++i, out += kWidth) {
      const int output = first + i * kWidth, count = std::min(kWidth, t_.outputs - output);
      if (count <= 0) return;
      const Vector scale = t_.scales ? load_some(t_.scales + output, count) : Vector{};
      const Vector bias = t_.bias ? load_some((const T*)t_.bias + output, count) : Vector{};
      for (int r = 0; r < rows; ++r) {
        Vector x = sums[r][i];
        if (t_.scales) x *= scale;
        if (t_.bias) x += bias;
        T* to = out + r * by_row;
        count == kWidth ? store(to, x) : store_some(to, x, count);
      }
    }
  }

  const Product& t_;
  const float* x_;
  const int64_t x_row_;
};

template <class Form, int R>
void few(const Task& task, int panels, int threads) {
  constexpr int P = R == 1 ? 4 : 2 * R <= kRows ? 2 : 1;
  const int groups = (panels + P - 1) / P, some = std::max(1, groups / (threads * kTasks));
#pragma omp parallel for num_threads(threads) schedule(dynamic, some) if (threads > 1)
  for (int group = 0; group < groups; ++group) {
    const int first = group * P;
    if (first + P <= panels)
      task.few<Form, R, P>(first);
    else
      for (int p = first; p < panels; ++p) task.few<Form, R, 1>(p);
  }
}

template <class Form>
void many(const Product& t, const Task& task, float* laid_out, int panels, int threads) {
  const int64_t chunks = (t.rows + kChunk - 1) / kChunk, tasks = chunks * panels;
  const int64_t some = std::max<int64_t>(1, std::min<int64_t>(tasks / (threads * kTasks), 16));
  const auto begin_of = [&](int64_t chunk) { return t.rows * chunk / chunks; };
#pragma omp parallel num_threads(threads) if (threads > 1)
  {
    alignas(kLine) float floats[kDeep * kPanel];
    alignas(kLine) Vector totals[kChunk][2];
#pragma omp for schedule(dynamic)
    for (int64_t chunk = 0; chunk < chunks; ++chunk)
      each_block(begin_of(chunk + 1) - begin_of(chunk), [&](int begin, int rows) {
        const int64_t row = begin_of(chunk) + begin;
        task.lay_out(row, rows, laid_out + row * t.inputs);
      });
#pragma omp for schedule(dynamic, some)
    for (int64_t i = 0; i < tasks; ++i) {
      const int64_t row = begin_of(i / panels), end = begin_of(i / panels + 1);
      task.many<Form>(i % panels, row, end - row, laid_out + row * t.inputs, floats, totals);
    }
  }
}

template <class Form>
void product(const Product& t) {
  const int64_t numbers = t.rows * t.inputs;
  float* laid_out = scratch(2 * numbers + kWidth);  // the last row is widened in whole vectors
  const float* x = (const float*)t.x;
  int64_t x_row = t.x_row;
  if (t.bfloat16) {
    float* floats = laid_out + numbers;
    for (int64_t row = 0; row < t.rows; ++row)
      widen(floats + row * t.inputs, (const Bfloat16*)t.x + row * t.x_row, t.inputs);
    x = floats, x_row = t.inputs;
  }
  const Task task(t, x, x_row);
  const int panels = (t.outputs + kPanel - 1) / kPanel;
  const int threads = t.rows * t.inputs * t.outputs < kWorthThreads ? 1 : t.threads;
  switch (t.rows) {
#define ROWS(R) \
  case R: return few<Form, R>(task, panels, threads);
    ROWS(1) ROWS(2) ROWS(3) ROWS(4) ROWS(5) ROWS(6)
#if defined(__AVX512F__)
    ROWS(7) ROWS(8) ROWS(9) ROWS(10) ROWS(11) ROWS(12)
#endif
#undef ROWS
  }
  many<Form>(t, task, laid_out, panels, threads);
}

}  // namespace
}  // namespace chat_engine

extern "C" {

// Outputs of a panel, half of which stand in one vector.
int32_t chat_engine_panel() { return chat_engine::kPanel; }

// Inputs must be even where the form is of bytes.
void chat_engine_product(const chat_engine::Product* t) {
  const auto by = {chat_engine::product<chat_engine::Floats>, chat_engine::product<chat_engine::Halved>,
                   chat_engine::product<chat_engine::Bytes>};
  by.begin()[t->form](*t);
}

}  // extern "C"
