#include "threads.h"

#include <pthread.h>
#include <sched.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstdio>
#include <mutex>
#include <thread>

namespace cvllm {
namespace {

// How long a thread looks for work before it sleeps. Operations of a step follow each other within some 10 us, and
// waking a thread takes longer than most of them.
constexpr auto kPatience = std::chrono::microseconds(200);

constexpr int kMostThreads = 32;

class Pool {
 public:
  explicit Pool(int threads) : threads_(threads) {
    for (int i = 1; i < threads; ++i) std::thread([this] { Serve(); }).detach();
  }

  int threads() const { return threads_; }

  void Run(int64_t count, Piece piece, const void* job) {
    std::unique_lock<std::mutex> owner(owner_, std::try_to_lock);
    if (threads_ == 1 || count < 2 || !owner.owns_lock()) {
      for (int64_t i = 0; i < count; ++i) piece(job, i);
      return;
    }
    count_ = count, piece_ = piece, job_ = job;
    next_.store(0, std::memory_order_relaxed);
    open_.store(true);
    round_.fetch_add(1);
    if (sleepers_.load() > 0) {
      std::lock_guard<std::mutex> lock(sleep_);
      awake_.notify_all();
    }
    Work();
    // whoever enters from now on sees that there is nothing, and whoever is inside has a piece
    open_.store(false);
    for (int64_t turn = 0; inside_.load() > 0; ++turn) Pause(turn);
  }

 private:
  void Work() {
    for (int64_t i; (i = next_.fetch_add(1, std::memory_order_relaxed)) < count_;) piece_(job_, i);
  }

  void Serve() {
    uint64_t seen = 0;
    for (;;) {
      const auto begin = std::chrono::steady_clock::now();
      for (int64_t turn = 0; round_.load() == seen; ++turn) {
        Pause(turn);
        if (turn % 64 == 63 && std::chrono::steady_clock::now() - begin > kPatience) Sleep(seen);
      }
      seen = round_.load();
      inside_.fetch_add(1);
      if (open_.load()) Work();
      inside_.fetch_sub(1);
    }
  }

  void Sleep(uint64_t seen) {
    std::unique_lock<std::mutex> lock(sleep_);
    sleepers_.fetch_add(1);
    awake_.wait(lock, [&] { return round_.load() != seen; });
    sleepers_.fetch_sub(1);
  }

  // Others that want this core get it.
  static void Pause(int64_t turn) {
    if (turn % 64 == 63) {
      sched_yield();
    } else {
      __builtin_ia32_pause();
    }
  }

  const int threads_;
  std::mutex owner_, sleep_;
  std::condition_variable awake_;
  int64_t count_ = 0;
  Piece piece_ = nullptr;
  const void* job_ = nullptr;
  alignas(64) std::atomic<uint64_t> round_{0};
  alignas(64) std::atomic<int64_t> next_{0};
  alignas(64) std::atomic<int> inside_{0};
  alignas(64) std::atomic<bool> open_{false};
  std::atomic<int> sleepers_{0};
};

std::atomic<Pool*> pool{nullptr};
std::mutex making;

// Processors that the container's limit amounts to: threads beyond it would spend its time waiting.
int Quota() {
  long quota = 0, period = 0;
  if (std::FILE* file = std::fopen("/sys/fs/cgroup/cpu.max", "r")) {
    if (std::fscanf(file, "%ld %ld", &quota, &period) != 2) quota = 0;  // "max": none
    std::fclose(file);
  }
  return quota > 0 && period > 0 ? static_cast<int>((quota + period - 1) / period) : kMostThreads;
}

int Available() {
  cpu_set_t cpus;
  const int found = sched_getaffinity(0, sizeof cpus, &cpus) == 0 ? CPU_COUNT(&cpus) : 1;
  return std::clamp(std::min(found, Quota()), 1, kMostThreads);
}

// Never destroyed: its threads may run until the process ends. A forked child has none of them and makes its own.
Pool& ThePool() {
  if (Pool* made = pool.load()) return *made;
  std::lock_guard<std::mutex> lock(making);
  if (pool.load() == nullptr) {
    static const int once = pthread_atfork(nullptr, nullptr, [] { pool.store(nullptr); });
    (void)once;
    pool.store(new Pool(Available()));
  }
  return *pool.load();
}

}  // namespace

void share_raw(int64_t count, Piece piece, const void* job) { ThePool().Run(count, piece, job); }

int threads() { return ThePool().threads(); }

}  // namespace cvllm
