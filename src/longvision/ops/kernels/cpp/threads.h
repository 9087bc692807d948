// Tasks over the threads of torch's own pool. A second OpenMP runtime would spin against torch's: a quarter of the
// time of a small model. So the kernels link to none; they are handed the fork of the runtime that torch has loaded.
#pragma once
#include <atomic>
#include <cstdint>
#include <new>
#include <system_error>
#include <thread>
#include <vector>

typedef void (*Fork)(void (*)(void*), void*, unsigned threads, unsigned flags);  // GOMP_parallel
static Fork fork_team = nullptr;

// body(task) for each task. Which thread takes which task is left to chance: no result may depend on it.
// Throws std::bad_alloc where a body found no memory: a thread that let it pass would end the process.
template <class Body>
static void parallel(int64_t tasks, int64_t threads, Body body) {
  struct Team {
    std::atomic<int64_t> next;
    int64_t tasks;
    Body* body;
    std::atomic<bool> failed;
  } team{{0}, tasks, &body, {false}};
  auto work = [](void* data) {
    Team& team = *static_cast<Team*>(data);
    try {
      for (int64_t task; (task = team.next++) < team.tasks;) (*team.body)(task);
    } catch (...) {
      team.failed = true;
    }
  };
  if (threads <= 1 || tasks <= 1) {
    work(&team);
  } else if (fork_team) {
    fork_team(work, &team, unsigned(threads), 0);  // always all: a team that shrinks ends threads
  } else {
    std::vector<std::thread> others;
    others.reserve(threads);
    try {
      for (int64_t i = 1; i < threads && i < tasks; i++) others.emplace_back(work, &team);
    } catch (const std::system_error&) {  // no thread more: those that there are do it
    }
    work(&team);
    for (std::thread& other : others) other.join();
  }
  if (team.failed) throw std::bad_alloc();
}
