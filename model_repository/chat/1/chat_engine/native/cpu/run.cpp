// Calls recorded before, one after the other; see recording.py.

#include <cstdint>

namespace {

// Mirror of `_CallOfC` in recording.py.
struct Call {
  void (*function)(const void*);
  const void* told;
};

}  // namespace

extern "C" void chat_engine_run(const Call* calls, int64_t count) {
  for (; count; --count, ++calls) calls->function(calls->told);
}
