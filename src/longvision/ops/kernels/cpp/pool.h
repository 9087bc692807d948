// Threads of our own, for where torch has none to lend, or where those keep the caller waiting. They sleep between
// calls, and nobody waits for one that has not begun: a processor that something else is using is done without.
#pragma once
#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <memory>
#include <mutex>
#include <system_error>
#include <thread>
#if defined(__x86_64__) || defined(_M_X64)
#include <immintrin.h>
#endif
#ifndef _WIN32
#include <unistd.h>
#endif

static inline void pause_thread() {
#if defined(__x86_64__) || defined(_M_X64)
  _mm_pause();
#elif defined(__aarch64__)
  __asm__ volatile("yield");
#endif
}

constexpr int SPINS = 2000;  // some 30 microseconds: a call has many parallel parts, close behind each other

class Pool {
 public:
  // work(data) on the caller and on as many others as come in before the caller has ended.
  void run(void (*work)(void*), void* data, int64_t threads) {
    grow(threads - 1);
    shared->work = work, shared->data = data, shared->places = threads - 1;
    shared->state.fetch_add(OPEN);  // nobody is inside, and it was closed: now it is open
    if (shared->asleep) {
      std::lock_guard<std::mutex> hold(shared->lock);
      shared->wake.notify_all();
    }
    work(data);
    shared->state.fetch_add(OPEN);  // closed
    for (int spin = 0; shared->inside(); spin++) {
      if (spin < SPINS) {
        pause_thread();
        continue;
      }
      std::unique_lock<std::mutex> hold(shared->lock);  // a worker may need this processor to come to its end
      shared->caller_waits = true;
      shared->left.wait(hold, [&] { return !shared->inside(); });
      shared->caller_waits = false;
    }
  }

  ~Pool() {
    if (!shared || !is_owner()) return;
    std::lock_guard<std::mutex> hold(shared->lock);
    shared->ended = true;
    shared->wake.notify_all();
  }

 private:
  // `state` counts the threads inside in its lower half; each opening and each closing adds one to its upper half, so
  // that it is odd while there is work.
  static constexpr uint64_t OPEN = uint64_t(1) << 32;

  struct Shared {
    std::atomic<uint64_t> state{0};
    void (*work)(void*);
    void* data;
    std::atomic<int64_t> places{0};  // for others than the caller: there may be more threads from an earlier call
    std::mutex lock;
    std::condition_variable wake, left;
    std::atomic<int> asleep{0};
    std::atomic<bool> caller_waits{false};
    bool ended = false;

    bool inside() const { return uint32_t(state.load()) != 0; }
    static bool open(uint64_t seen) { return seen >> 32 & 1; }

    bool enter(uint64_t seen) { return open(seen) && state.compare_exchange_strong(seen, seen + 1); }

    void leave() {
      if (uint32_t(state.fetch_sub(1)) > 1 || !caller_waits) return;
      std::lock_guard<std::mutex> hold(lock);
      left.notify_all();
    }

    // Until there is work that it has not seen, or the end. -> whether there is work
    bool wait(uint64_t done) {
      auto fresh = [&] { return open(state.load()) && state.load() >> 32 != done; };
      for (int spin = 0; spin < SPINS; spin++, pause_thread())
        if (fresh()) return true;
      std::unique_lock<std::mutex> hold(lock);
      asleep++;
      wake.wait(hold, [&] { return ended || fresh(); });
      asleep--;
      return !ended;
    }
  };

  static void serve(std::shared_ptr<Shared> shared) {
    for (uint64_t done = 0; shared->wait(done);) {
      uint64_t seen = shared->state.load();
      if (!shared->enter(seen)) continue;
      if (shared->places-- > 0) shared->work(shared->data);
      done = seen >> 32;
      shared->leave();
    }
  }

  // A process that forked has none of its parent's threads.
  void grow(int64_t wanted) {
    if (shared && !is_owner()) {
      new std::shared_ptr<Shared>(shared);  // its lock may be held by a thread that is not there: left alone
      shared.reset(), started = 0;
    }
    if (!shared) shared = std::make_shared<Shared>(), owner = process();
    for (; started < wanted; started++) {
      try {
        std::thread(serve, shared).detach();
      } catch (const std::system_error&) {  // no thread more: those that there are do it
        return;
      }
    }
  }

  static int64_t process() {
#ifdef _WIN32
    return 0;  // does not fork
#else
    return getpid();
#endif
  }

  bool is_owner() const { return owner == process(); }

  std::shared_ptr<Shared> shared;
  int64_t started = 0, owner = 0;
};
