// The threads of a cluster: fibers, their schedule, what passes between them, barriers.
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

// Ends the phase of the cluster's barrier if all threads that have not exited are there.
void settle_cluster() {
  int running = 0;
  for (const Block& block : machine.blocks) running += block.running;
  NamedBarrier& barrier = machine.cluster_barrier;
  if (barrier.count == 0 || barrier.count < running) return;
  barrier.count = 0;
  ++barrier.generation;
}

// A fiber serves all blocks: making one costs two system calls.
void enter() {
  for (;;) {
    (*machine.body)();
    Fiber& fiber = machine.fibers[machine.current];
    fiber.finished = true;
    --machine.blocks[machine.rank].running;
    settle_cluster();
    if (_setjmp(fiber.state) == 0) leave();
  }
}

void resume(int index) {
  machine.current = index;
  machine.thread = index % machine.count;
  machine.rank = index / machine.count;
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

// Runs the warps of a block as far as they can without the others; whether there was anything to run.
bool run_block(int rank) {
  Machine& m = machine;
  const int warps = m.count / kLanes;
  std::vector<int> order(warps);
  std::iota(order.begin(), order.end(), rank * warps);
  bool any = false;
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
          again = progress = any = true;
        }
      }
    }
  }
  return any;
}

void run_cluster(int first_block, int block_threads, size_t shared_bytes, int cluster) {
  Machine& m = machine;
  const int threads = cluster * block_threads;
  m.first_block = first_block;
  m.count = block_threads;
  m.shared_bytes = shared_bytes;
  for (int rank = 0; rank < cluster; ++rank) std::memset(m.shared + (rank << kRankShift), 0xff, shared_bytes);
  if (static_cast<int>(m.fibers.size()) < threads) m.fibers.resize(threads);
  m.warps.assign(threads / kLanes, {});
  m.warpgroups.clear();
  m.warpgroups.resize((threads + kGroupThreads - 1) / kGroupThreads);
  m.threads.assign(threads, {});
  m.blocks.assign(cluster, {});
  for (Block& block : m.blocks) block.running = block_threads;
  m.cluster_barrier = {};
  m.mbarriers.clear();
  m.copies.clear();
  m.error.clear();
  for (int i = 0; i < threads; ++i) {
    Fiber& fiber = m.fibers[i];
    // One that an error stopped on its way starts again.
    fiber.started = fiber.started && fiber.finished;
    fiber.finished = false;
    fiber.counter = nullptr;
  }
  for (bool progress = true; progress;) {
    progress = false;
    // The blocks are as far from one another as they can be.
    for (int rank = 0; rank < cluster; ++rank) progress = run_block(rank) || progress;
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
        "deadlock: thread " + std::to_string(i % block_threads) + " of block " +
        std::to_string(first_block + i / block_threads) + " waits for " + m.fibers[i].reason);
  }
  for (const Block& block : m.blocks) {
    for (const auto& barrier : block.barriers) {
      if (barrier.count != 0) throw std::runtime_error("a named barrier is left half full");
    }
  }
  for (const auto& [address, barrier] : m.mbarriers) {
    if (barrier.bytes != 0) throw std::runtime_error("an mbarrier is left with other bytes than it expects");
  }
  for (const auto& group : m.warpgroups) {
    if (!group.products.empty()) throw std::runtime_error("a block ends before its products");
  }
}

}  // namespace

void fail(const std::string& message) {
  machine.error = message + " (block " + std::to_string(block()) + ", thread " + std::to_string(machine.thread) + ")";
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

void require_running(uint32_t address) {
  require((address >> kRankShift) < machine.blocks.size(), "a cluster has no block of that rank");
  require(machine.blocks[address >> kRankShift].running > 0, "a block is reached that has ended");
}

MBarrier& mbarrier(uint32_t address) {
  const auto found = machine.mbarriers.find(address);
  require(found != machine.mbarriers.end(), "an mbarrier is used that was not initialised");
  return found->second;
}

void settle(MBarrier& barrier) {
  // Bytes may come before somebody expects them, as long as the phase waits for that thread.
  require(barrier.bytes >= 0 || barrier.pending > 0, "more bytes arrive at an mbarrier than it expects");
  if (barrier.pending == 0 && barrier.bytes == 0) {
    ++barrier.phase;
    barrier.pending = barrier.expected;
  }
}

void set_timing(Timing chosen) { timing = chosen; }

void run(int blocks, int threads, size_t shared_bytes, const std::function<void()>& body, int cluster) {
  if (threads % (cluster > 1 ? kGroupThreads : kLanes) != 0) {
    throw std::runtime_error("a block has whole warps, and one of a cluster whole warpgroups");
  }
  if (blocks % cluster != 0) throw std::runtime_error("a grid has whole clusters");
  if (shared_bytes > kMostShared) throw std::runtime_error("a block asks for more shared memory than there is");
  const size_t bytes = (static_cast<size_t>(cluster) << kRankShift) + 1024;
  if (machine.memory.size() < bytes) machine.memory.resize(bytes);
  machine.shared = machine.memory.data() + (1024 - reinterpret_cast<uintptr_t>(machine.memory.data()) % 1024) % 1024;
  machine.body = &body;
  for (int block = 0; block < blocks; block += cluster) run_cluster(block, threads, shared_bytes, cluster);
}

int thread() { return machine.thread; }
int block() { return machine.first_block + machine.rank; }
unsigned char* shared_memory() { return machine.shared + (machine.rank << kRankShift); }
const unsigned char* shared_at(uint32_t address) { return machine.shared + address; }

uint32_t shared_address(const void* pointer) {
  return static_cast<uint32_t>(static_cast<const unsigned char*>(pointer) - machine.shared);
}

int cluster_rank() { return machine.rank; }

uint32_t mapa(uint32_t address, int rank) {
  return (address & kOffsetMask) | static_cast<uint32_t>(rank) << kRankShift;
}

void cluster_sync() {
  NamedBarrier& barrier = machine.cluster_barrier;
  const uint64_t generation = barrier.generation;
  ++barrier.count;
  settle_cluster();
  wait_while(&barrier.generation, generation, "the barrier of its cluster");
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
  NamedBarrier& barrier = machine.blocks[machine.rank].barriers[id];
  if (threads < 0) threads = machine.count;
  require(barrier.count == 0 || barrier.threads == threads, "threads disagree about the size of a named barrier");
  barrier.threads = threads;
  if (++barrier.count == threads) {
    barrier.count = 0;
    ++barrier.generation;
  }
}

void bar_sync(int id, int threads) {
  NamedBarrier& barrier = machine.blocks[machine.rank].barriers[id];
  const uint64_t generation = barrier.generation;
  bar_arrive(id, threads);
  wait_while(&barrier.generation, generation, "a named barrier");
}

namespace {

MBarrier& own_mbarrier(uint32_t address) {
  require(static_cast<int>(address >> kRankShift) == machine.rank, "an mbarrier is taken for one of this block");
  return mbarrier(address);
}

void arrive(MBarrier& barrier, uint32_t bytes) {
  barrier.bytes += bytes;
  --barrier.pending;
  require(barrier.pending >= 0, "more threads arrive at an mbarrier than it expects");
  settle(barrier);
}

}  // namespace

void mbarrier_init(uint32_t address, int arrivals) {
  require(address % 8 == 0, "an mbarrier is aligned to 8 bytes");
  machine.mbarriers[address] = {arrivals, arrivals, 0, 0};
}

void mbarrier_arrive(uint32_t address, uint32_t bytes) { arrive(own_mbarrier(address), bytes); }

void mbarrier_arrive_cluster(uint32_t address, uint32_t bytes) {
  require_running(address);
  arrive(mbarrier(address), bytes);
}

void mbarrier_wait(uint32_t address, uint32_t parity) {
  MBarrier& barrier = own_mbarrier(address);
  if ((barrier.phase & 1) == parity) wait_while(&barrier.phase, barrier.phase, "an mbarrier");
}

}  // namespace hyperkern::emulator
