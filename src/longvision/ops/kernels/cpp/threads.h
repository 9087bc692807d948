// Tasks over the threads of torch's own pool. A second OpenMP runtime would spin against torch's: a quarter of the
// time of a small model. So the kernels link to none; they are handed the fork of the runtime that torch has loaded.
#pragma once
#include <atomic>
#include <cstdint>
#include <thread>
#include <vector>

typedef void (*Fork)(void (*)(void*), void*, unsigned threads, unsigned flags);  // GOMP_parallel
static Fork fork_team = nullptr;

// body(task) for each task. Which thread takes which task is left to chance: no result may depend on it.
template <class Body>
static void parallel(int64_t tasks, int64_t threads, Body body) {
  struct Team {
    std::atomic<int64_t> next;
    int64_t tasks;
    Body* body;
  } team{{0}, tasks, &body};
  auto work = [](void* data) {
    Team& team = *static_cast<Team*>(data);
    for (int64_t task; (task = team.next++) < team.tasks;) (*team.body)(task);
  };
  if (threads <= 1 || tasks <= 1) return work(&team);
  if (fork_team) return fork_team(work, &team, unsigned(threads), 0);  // always all: a team that shrinks ends threads
  std::vector<std::thread> others;
  for (int64_t i = 1; i < threads && i < tasks; i++) others.emplace_back(work, &team);
  work(&team);
  for (std::thread& other : others) other.join();
}
