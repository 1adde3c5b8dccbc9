// What the parts of the emulator share: the state of the one cluster of blocks that runs, and how a thread waits.
#pragma once

#include <csetjmp>
#include <deque>
#include <map>
#include <memory>
#include <string>
#include <ucontext.h>
#include <vector>

#include "machine.h"

namespace hyperkern::emulator {

constexpr int kLanes = 32;
constexpr int kGroupThreads = 128;
constexpr size_t kStackBytes = 128 << 10;
constexpr size_t kExchangeBytes = 48;

// An address in shared memory names a block of the cluster by the first bit that the memory of one block has no use
// for: whoever takes all of it for an offset goes wrong.
constexpr int kRankShift = 18;
constexpr uint32_t kOffsetMask = (1u << kRankShift) - 1;

// A fiber waits while a counter has a value.
struct Fiber {
  std::unique_ptr<unsigned char[]> stack{new unsigned char[kStackBytes]};
  ucontext_t start;
  jmp_buf state;
  bool started = false;
  bool finished = false;
  const uint64_t* counter = nullptr;
  uint64_t value = 0;
  const char* reason = "";

  bool runnable() const { return !finished && (counter == nullptr || *counter != value); }
};

struct Warp {
  alignas(16) unsigned char handed_in[kLanes * kExchangeBytes];
  alignas(16) unsigned char handed_out[kLanes * kExchangeBytes];
  int count = 0;
  uint64_t generation = 0;
  bool resting = false;  // until the other warps have run
};

struct NamedBarrier {
  int count = 0;
  int threads = 0;
  uint64_t generation = 0;
};

struct MBarrier {
  int expected = 0;
  int pending = 0;
  int64_t bytes = 0;
  uint64_t phase = 0;
};

struct Copy {  // by the TMA unit
  uint32_t to;
  TensorMap map;
  uint32_t barrier;
  int column, row, batch;
};

struct Product {  // of a warpgroup; each of its warps has tensor cores of its own, which may be done at another time
  struct Part {
    float* d = nullptr;
    const uint32_t* registers = nullptr;
    std::vector<float> initial;  // of d, when no earlier product is still to write it
  };
  int n = 0;
  Half type = Half::kBf16;
  uint64_t a = 0, b = 0;
  bool add = false, transposed = false;
  Part parts[kGroupThreads];
  int issued = 0;
  bool done[kGroupThreads / kLanes] = {};
  std::vector<double> columns;  // of b, as they were after so many copies: by 8, the contracted index, and one of the 8
  uint64_t copies = 0;
};

struct Warpgroup {
  std::deque<Product> products;  // that a warp has not done yet
  uint64_t first = 0;            // number of the first of them: so many are done by all
  uint64_t complete = 0;         // so many have been issued by all threads
};

struct SmallCopy {
  uint32_t to;
  bool valid;
  const void* from;
};

struct Thread {
  uint64_t issued = 0;              // wgmma instructions
  bool fenced = false;              // since all of them were waited for
  std::vector<uint64_t> committed;  // of them, at the end of each group
  std::vector<SmallCopy> open;      // cp.async of the group that is not committed
  std::deque<std::vector<SmallCopy>> groups;
};

struct Block {
  NamedBarrier barriers[16];
  int running = 0;  // threads that have not exited
};

struct Machine {
  std::vector<Block> blocks;  // of the cluster; their threads, warps and warpgroups stand one block after the other
  NamedBarrier cluster_barrier;
  std::vector<Fiber> fibers;
  std::vector<Warp> warps;
  std::vector<Warpgroup> warpgroups;
  std::vector<Thread> threads;
  std::map<uint32_t, MBarrier> mbarriers;
  std::deque<Copy> copies;
  uint64_t copied = 0;  // so many boxes: nothing else changes what wgmma reads
  std::vector<unsigned char> memory;
  unsigned char* shared = nullptr;  // an address is an offset from here
  size_t shared_bytes = 0;          // of a block
  int count = 0;                    // of threads in a block
  int current = 0;                  // thread of the cluster
  int thread = 0, rank = 0;         // of the block, and which block it is
  int first_block = 0;
  jmp_buf scheduler;
  std::string error;
  const std::function<void()>* body = nullptr;
  uint32_t random = 1;

  // The next of a fixed series of numbers below `count`.
  size_t draw(size_t count) {
    random = random * 1664525 + 1013904223;
    return (random >> 8) % count;
  }
};

extern Machine machine;
extern Timing timing;

// Ends the block with an error.
[[noreturn]] void fail(const std::string& message);

inline void require(bool condition, const char* message) {
  if (!condition) fail(message);
}

// Lets the other threads run until the counter has another value.
void wait_while(const uint64_t* counter, uint64_t value, const char* reason);

inline unsigned char* at(uint32_t address, size_t bytes) {
  require((address & kOffsetMask) + bytes <= machine.shared_bytes, "shared memory is accessed beyond its end");
  return machine.shared + address;
}

// An offset in the shared memory of the block whose thread runs.
inline unsigned char* own_at(uint32_t offset, size_t bytes) {
  require(offset + bytes <= machine.shared_bytes, "shared memory is accessed beyond its end");
  return machine.shared + (machine.rank << kRankShift) + offset;
}

// For what comes from outside of the block that an address names.
void require_running(uint32_t address);

// The TMA unit and wgmma permute 16-byte pieces by address: bits 4 to 6 are exchanged with bits 7 to 9.
inline uint32_t swizzle_128b(uint32_t address) { return address ^ ((address >> 7 & 7) << 4); }

MBarrier& mbarrier(uint32_t address);

// Ends the phase of a barrier for which nothing is left to arrive.
void settle(MBarrier& barrier);

// A copy by the TMA unit, at the time when it takes effect.
void perform(const Copy& copy);

}  // namespace hyperkern::emulator
