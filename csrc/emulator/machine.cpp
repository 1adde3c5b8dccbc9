// The block of threads: fibers, their schedule, what passes between them, barriers.
#include <cstring>
#include <numeric>
#include <stdexcept>

#include "state.h"

namespace hyperkern::emulator {

Machine machine;
Timing timing = Timing::kCopiesFirst;

namespace {

constexpr size_t kMostShared = 228 << 10;

[[noreturn]] void leave() { _longjmp(machine.scheduler, 1); }

// A fiber serves all blocks: making one costs two system calls.
void enter() {
  for (;;) {
    (*machine.body)();
    Fiber& fiber = machine.fibers[machine.current];
    fiber.finished = true;
    if (_setjmp(fiber.state) == 0) leave();
  }
}

void resume(int index) {
  machine.current = index;
  Fiber& fiber = machine.fibers[index];
  if (_setjmp(machine.scheduler) != 0) return;
  if (fiber.started) _longjmp(fiber.state, 1);
  fiber.started = true;
  getcontext(&fiber.start);
  fiber.start.uc_stack.ss_sp = fiber.stack.get();
  fiber.start.uc_stack.ss_size = kStackBytes;
  fiber.start.uc_link = nullptr;
  makecontext(&fiber.start, enter, 0);
  setcontext(&fiber.start);
}

void run_block(int block, int threads, size_t shared_bytes) {
  Machine& m = machine;
  m.block = block;
  m.count = threads;
  m.shared_bytes = shared_bytes;
  std::memset(m.shared, 0xff, shared_bytes);
  if (static_cast<int>(m.fibers.size()) < threads) m.fibers.resize(threads);
  m.warps.assign(threads / kLanes, {});
  m.warpgroups.clear();
  m.warpgroups.resize((threads + kGroupThreads - 1) / kGroupThreads);
  m.threads.assign(threads, {});
  m.mbarriers.clear();
  m.copies.clear();
  m.error.clear();
  for (auto& barrier : m.barriers) barrier = {};
  for (int i = 0; i < threads; ++i) {
    Fiber& fiber = m.fibers[i];
    // One that an error stopped on its way starts again.
    fiber.started = fiber.started && fiber.finished;
    fiber.finished = false;
    fiber.counter = nullptr;
  }
  const int warps = threads / kLanes;
  std::vector<int> order(warps);
  std::iota(order.begin(), order.end(), 0);
  for (bool progress = true; progress;) {
    progress = false;
    // A warp runs as far as it can; which one comes first is open too.
    if (timing == Timing::kProductsFirst) {
      for (int i = warps - 1; i > 0; --i) std::swap(order[i], order[m.draw(i + 1)]);
    }
    for (const int warp : order) {
      bool& resting = m.warps[warp].resting;
      resting = false;
      for (bool again = true; again && !resting;) {
        again = false;
        for (int lane = 0; lane < kLanes && !resting; ++lane) {
          if (!m.fibers[warp * kLanes + lane].runnable()) continue;
          resume(warp * kLanes + lane);
          if (!m.error.empty()) throw std::runtime_error(m.error);
          again = progress = true;
        }
      }
    }
    if (!progress && !m.copies.empty()) {
      const auto copy = m.copies.begin() + static_cast<std::ptrdiff_t>(m.draw(m.copies.size()));
      if (_setjmp(m.scheduler) == 0) perform(*copy);
      if (!m.error.empty()) throw std::runtime_error(m.error);
      m.copies.erase(copy);
      progress = true;
    }
  }
  for (int i = 0; i < threads; ++i) {
    if (m.fibers[i].finished) continue;
    throw std::runtime_error(
        "deadlock: thread " + std::to_string(i) + " of block " + std::to_string(block) + " waits for " +
        m.fibers[i].reason);
  }
  for (const auto& barrier : m.barriers) {
    if (barrier.count != 0) throw std::runtime_error("a named barrier is left half full");
  }
  for (const auto& group : m.warpgroups) {
    if (!group.products.empty()) throw std::runtime_error("a block ends before its products");
  }
}

}  // namespace

void fail(const std::string& message) {
  machine.error =
      message + " (block " + std::to_string(machine.block) + ", thread " + std::to_string(machine.current) + ")";
  leave();
}

void wait_while(const uint64_t* counter, uint64_t value, const char* reason) {
  Fiber& fiber = machine.fibers[machine.current];
  while (*counter == value) {
    fiber.counter = counter;
    fiber.value = value;
    fiber.reason = reason;
    if (_setjmp(fiber.state) == 0) leave();
  }
  fiber.counter = nullptr;
}

void let_others_run() {
  machine.warps[machine.current / kLanes].resting = true;
  if (_setjmp(machine.fibers[machine.current].state) == 0) leave();
}

MBarrier& mbarrier(uint32_t address) {
  const auto found = machine.mbarriers.find(address);
  require(found != machine.mbarriers.end(), "an mbarrier is used that was not initialised");
  return found->second;
}

void settle(MBarrier& barrier) {
  if (barrier.pending == 0 && barrier.bytes == 0) {
    ++barrier.phase;
    barrier.pending = barrier.expected;
  }
}

void set_timing(Timing chosen) { timing = chosen; }

void run(int blocks, int threads, size_t shared_bytes, const std::function<void()>& body) {
  if (threads % kLanes != 0) throw std::runtime_error("a block has whole warps");
  if (shared_bytes > kMostShared) throw std::runtime_error("a block asks for more shared memory than there is");
  if (machine.memory.empty()) machine.memory.resize(kMostShared + 1024);
  machine.shared = machine.memory.data() + (1024 - reinterpret_cast<uintptr_t>(machine.memory.data()) % 1024) % 1024;
  machine.body = &body;
  for (int block = 0; block < blocks; ++block) run_block(block, threads, shared_bytes);
}

int thread() { return machine.current; }
int block() { return machine.block; }
unsigned char* shared_memory() { return machine.shared; }

uint32_t shared_address(const void* pointer) {
  return static_cast<uint32_t>(static_cast<const unsigned char*>(pointer) - machine.shared);
}

const void* exchange(const void* value, size_t size, void (*combine)(void*)) {
  Warp& warp = machine.warps[machine.current / kLanes];
  std::memcpy(warp.handed_in + machine.current % kLanes * size, value, size);
  if (++warp.count == kLanes) {
    std::memcpy(warp.handed_out, warp.handed_in, kLanes * size);
    if (combine != nullptr) combine(warp.handed_out);
    warp.count = 0;
    ++warp.generation;
  } else {
    wait_while(&warp.generation, warp.generation, "the other lanes of its warp");
  }
  return warp.handed_out;
}

void bar_arrive(int id, int threads) {
  NamedBarrier& barrier = machine.barriers[id];
  if (threads < 0) threads = machine.count;
  require(barrier.count == 0 || barrier.threads == threads, "threads disagree about the size of a named barrier");
  barrier.threads = threads;
  if (++barrier.count == threads) {
    barrier.count = 0;
    ++barrier.generation;
  }
}

void bar_sync(int id, int threads) {
  NamedBarrier& barrier = machine.barriers[id];
  const uint64_t generation = barrier.generation;
  bar_arrive(id, threads);
  wait_while(&barrier.generation, generation, "a named barrier");
}

void mbarrier_init(uint32_t address, int arrivals) {
  require(address % 8 == 0, "an mbarrier is aligned to 8 bytes");
  machine.mbarriers[address] = {arrivals, arrivals, 0, 0};
}

void mbarrier_arrive(uint32_t address, uint32_t bytes) {
  MBarrier& barrier = mbarrier(address);
  barrier.bytes += bytes;
  --barrier.pending;
  require(barrier.pending >= 0, "more threads arrive at an mbarrier than it expects");
  settle(barrier);
}

void mbarrier_wait(uint32_t address, uint32_t parity) {
  MBarrier& barrier = mbarrier(address);
  if ((barrier.phase & 1) == parity) wait_while(&barrier.phase, barrier.phase, "an mbarrier");
}

}  // namespace hyperkern::emulator
