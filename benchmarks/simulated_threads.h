// In place of threads (src/longvision/ops/kernels/cpp/threads.h): tasks run one after the other, each is timed, and given
// to the thread that would be free first.
#pragma once
#include <algorithm>
#include <chrono>
#include <vector>

struct Runtime {
  void* functions[4];
};
static Runtime runtime{};
static double busy_s = 0, span_s = 0;  // of all threads together; until the last one has ended

extern "C" void take_times(double* busy, double* span) { *busy = busy_s, *span = span_s, busy_s = span_s = 0; }

template <class Body>
static void parallel(int64_t tasks, int64_t threads, Body body) {
  std::vector<double> free_at(std::max<int64_t>(1, threads));
  for (int64_t task = 0; task < tasks; task++) {
    auto begun = std::chrono::steady_clock::now();
    body(task);
    double took = std::chrono::duration<double>(std::chrono::steady_clock::now() - begun).count();
    *std::min_element(free_at.begin(), free_at.end()) += took, busy_s += took;
  }
  span_s += *std::max_element(free_at.begin(), free_at.end());
}
