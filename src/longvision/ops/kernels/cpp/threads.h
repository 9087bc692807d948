// Tasks over threads: those of the OpenMP runtime that torch has loaded, or our own (pool.h). A second OpenMP runtime
// would spin against torch's: a quarter of the time of a small model. So the kernels link to none; they are handed the
// functions of torch's.
#pragma once
#include <cstdint>

constexpr int64_t ENOUGH = 8;  // tasks for each thread, so that few wait for the last one

#ifdef SIMULATED_THREADS  // benchmarks/threads.py: the same names, in a header of its own
#include SIMULATED_THREADS
#else
#include <algorithm>
#include <chrono>
#include <new>
#include <vector>

#include "pool.h"

// How a runtime starts its team. GNU's, which LLVM's and Intel's know too, except on Windows:
typedef void (*GompParallel)(void (*)(void*), void*, unsigned threads, unsigned flags);
// And theirs, with what it takes to say how many threads:
typedef void (*KmpcFork)(void* place, int32_t arguments, void (*)(int32_t*, int32_t*, ...), ...);
typedef int32_t (*KmpcThread)(void* place);
typedef void (*KmpcThreads)(void* place, int32_t thread, int32_t threads);

struct Runtime {
  GompParallel gomp_parallel;
  KmpcFork kmpc_fork;
  KmpcThread kmpc_thread;
  KmpcThreads kmpc_threads;
};
static Runtime runtime{};

struct KmpcPlace {  // ident_t of LLVM's kmp.h
  int32_t reserved, flags, unused[2];
  const char* source;
};

static void kmpc_task(int32_t*, int32_t*, void (*work)(void*), void* data) { work(data); }

static bool has_team() { return runtime.gomp_parallel || runtime.kmpc_fork; }

static void run_team(void (*work)(void*), void* data, int64_t threads) {
  if (runtime.gomp_parallel) return runtime.gomp_parallel(work, data, unsigned(threads), 0);
  static KmpcPlace place{0, 2, {0, 0}, ";unknown;unknown;0;0;;"};
  runtime.kmpc_threads(&place, runtime.kmpc_thread(&place), int32_t(threads));
  runtime.kmpc_fork(&place, 2, reinterpret_cast<void (*)(int32_t*, int32_t*, ...)>(kmpc_task), work, data);
}

// A team ends together: where something else is using a processor, the caller waits for a thread that does not run. Once
// it was kept waiting it turns to our own threads, for longer each time that it finds the team late again.
class Patience {
 public:
  typedef std::chrono::steady_clock Clock;
  typedef std::chrono::microseconds Time;

  bool trusts_team() const { return Clock::now() >= until; }

  // `waited` for the team after the caller's own last task, the longest of which took `longest`.
  void learn(Time waited, Time longest) {
    if (waited <= 2 * longest + LATE) rest = std::max(rest / 2, SHORTEST);
    else until = Clock::now() + rest, rest = std::min(2 * rest, LONGEST);
  }

 private:
  static constexpr Time LATE{500}, SHORTEST{20000}, LONGEST{640000};
  Clock::time_point until{};
  Time rest = SHORTEST;
};

static Patience& patience() {  // of this thread
  thread_local Patience own;
  return own;
}

static Pool& pool() {
  thread_local Pool own;
  return own;
}

// body(task) for each task. Which thread takes which task is left to chance: no result may depend on it.
// Throws std::bad_alloc where a body found no memory: a thread that let it pass would end the process.
template <class Body>
static void parallel(int64_t tasks, int64_t threads, Body body) {
  typedef Patience::Clock Clock;
  struct Team {
    std::atomic<int64_t> next;
    int64_t tasks;
    Body* body;
    std::atomic<bool> failed;
    std::thread::id caller;
    Clock::time_point ended;
    Clock::duration longest;
  } team{{0}, tasks, &body, {false}, std::this_thread::get_id(), {}, {}};
  auto work = [](void* data) {
    Team& team = *static_cast<Team*>(data);
    bool timed = team.caller == std::this_thread::get_id();
    Clock::time_point begun = timed ? Clock::now() : Clock::time_point{};
    try {
      for (int64_t task; (task = team.next++) < team.tasks;) {
        (*team.body)(task);
        if (!timed) continue;
        team.ended = Clock::now();
        team.longest = std::max(team.longest, team.ended - begun), begun = team.ended;
      }
    } catch (...) {
      team.failed = true;
    }
  };
  if (threads <= 1 || tasks <= 1) {
    work(&team);
  } else if (has_team() && patience().trusts_team()) {
    team.ended = Clock::now();
    run_team(work, &team, threads);  // always all: a team that shrinks ends threads
    auto time = [](Clock::duration d) { return std::chrono::duration_cast<Patience::Time>(d); };
    patience().learn(time(Clock::now() - team.ended), time(team.longest));
  } else {
    pool().run(work, &team, std::min(threads, tasks));
  }
  if (team.failed) throw std::bad_alloc();
}
#endif
