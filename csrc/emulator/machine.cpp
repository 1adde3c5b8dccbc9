#include "machine.h"

#include <csetjmp>
#include <cmath>
#include <cstring>
#include <deque>
#include <limits>
#include <map>
#include <memory>
#include <stdexcept>
#include <ucontext.h>
#include <vector>

namespace hyperkern::emulator {
namespace {

constexpr int kLanes = 32;
constexpr int kGroupThreads = 128;
constexpr size_t kStackBytes = 128 << 10;
constexpr size_t kMostShared = 228 << 10;
constexpr size_t kExchangeBytes = 32;

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
  unsigned char handed_in[kLanes * kExchangeBytes];
  unsigned char handed_out[kLanes * kExchangeBytes];
  int count = 0;
  uint64_t generation = 0;
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

struct Product {  // of a warpgroup
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
};

struct Warpgroup {
  std::deque<Product> products;  // not yet done
  uint64_t first = 0;            // number of the first of them: so many are done
  uint64_t complete = 0;         // so many have been issued by all threads
};

struct SmallCopy {
  uint32_t to;
  unsigned char bytes[16];
  bool valid;
  const void* from;
};

struct Thread {
  uint64_t issued = 0;              // wgmma instructions
  std::vector<uint64_t> committed;  // of them, at the end of each group
  std::vector<SmallCopy> open;      // cp.async of the group that is not committed
  std::deque<std::vector<SmallCopy>> groups;
};

Timing timing = Timing::kCopiesFirst;

struct Machine {
  std::vector<Fiber> fibers;
  std::vector<Warp> warps;
  std::vector<Warpgroup> warpgroups;
  std::vector<Thread> threads;
  NamedBarrier barriers[16];
  std::map<uint32_t, MBarrier> mbarriers;
  std::deque<Copy> copies;
  std::vector<unsigned char> memory;
  unsigned char* shared = nullptr;
  size_t shared_bytes = 0;
  int count = 0;
  int current = 0;
  int block = 0;
  jmp_buf scheduler;
  std::string error;
  const std::function<void()>* body = nullptr;
};

Machine machine;

[[noreturn]] void leave() { _longjmp(machine.scheduler, 1); }

[[noreturn]] void fail(const std::string& message) {
  machine.error =
      message + " (block " + std::to_string(machine.block) + ", thread " + std::to_string(machine.current) + ")";
  leave();
}

void require(bool condition, const char* message) {
  if (!condition) fail(message);
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

void enter() {
  (*machine.body)();
  machine.fibers[machine.current].finished = true;
  leave();
}

void resume(int index) {
  machine.current = index;
  Fiber& fiber = machine.fibers[index];
  if (_setjmp(machine.scheduler) != 0) return;
  if (fiber.started) _longjmp(fiber.state, 1);
  fiber.started = true;
  setcontext(&fiber.start);
}

Warpgroup& warpgroup() { return machine.warpgroups[machine.current / kGroupThreads]; }

unsigned char* at(uint32_t address, size_t bytes) {
  require(address + bytes <= machine.shared_bytes, "shared memory is accessed beyond its end");
  return machine.shared + address;
}

void settle(MBarrier& barrier) {
  if (barrier.pending == 0 && barrier.bytes == 0) {
    ++barrier.phase;
    barrier.pending = barrier.expected;
  }
}

MBarrier& mbarrier(uint32_t address) {
  const auto found = machine.mbarriers.find(address);
  require(found != machine.mbarriers.end(), "an mbarrier is used that was not initialised");
  return found->second;
}

// The TMA unit and wgmma permute 16-byte pieces by address: bits 4 to 6 are exchanged with bits 7 to 9.
uint32_t swizzle_128b(uint32_t address) { return address ^ ((address >> 7 & 7) << 4); }

void perform(const Copy& copy) {
  const TensorMap& map = copy.map;
  const int row_bytes = map.box[0] * map.element_bytes;
  require(row_bytes == 128 && copy.to % 1024 == 0, "a box of the TMA unit is 128 bytes wide and aligned to 1024");
  for (int r = 0; r < map.box[1]; ++r) {
    const int64_t row = copy.row + r;
    for (int e = 0; e < map.box[0]; ++e) {
      const int64_t column = copy.column + e;
      unsigned char* to = at(swizzle_128b(copy.to + r * row_bytes + e * map.element_bytes), map.element_bytes);
      const bool inside = column >= 0 && column < map.sizes[0] && row >= 0 && row < map.sizes[1] && copy.batch >= 0 &&
                          copy.batch < map.sizes[2];
      if (inside) {
        const unsigned char* from =
            map.base + copy.batch * map.strides[1] + row * map.strides[0] + column * map.element_bytes;
        std::memcpy(to, from, map.element_bytes);
      } else {
        std::memset(to, 0, map.element_bytes);
      }
    }
  }
  MBarrier& barrier = mbarrier(copy.barrier);
  barrier.bytes -= static_cast<int64_t>(row_bytes) * map.box[1];
  require(barrier.bytes >= 0, "more bytes arrive at an mbarrier than it expects");
  settle(barrier);
}

void perform(const SmallCopy& copy) {
  if (copy.valid) {
    std::memcpy(at(copy.to, 16), copy.from, 16);
  } else {
    std::memset(at(copy.to, 16), 0, 16);
  }
}

// Where a matrix descriptor puts an element: `line` counts along the 8-row groups' rows, `k` is the contracted index.
float element(uint64_t descriptor, int line, int k, bool transposed, Half type) {
  const uint32_t start = static_cast<uint32_t>(descriptor & 0x3fff) << 4;
  const uint32_t leading = static_cast<uint32_t>(descriptor >> 16 & 0x3fff) << 4;
  const uint32_t stride = static_cast<uint32_t>(descriptor >> 32 & 0x3fff) << 4;
  uint32_t offset;
  if (transposed) {
    offset = line / 64 * leading + line % 64 * 2 + k / 8 * stride + k % 8 * 128;
  } else {
    offset = line / 8 * stride + line % 8 * 128 + k * 2;
  }
  uint16_t bits;
  std::memcpy(&bits, at(swizzle_128b(start + offset), 2), 2);
  return widen(bits, type);
}

void perform(Product& product) {
  constexpr int kM = 64, kK = 16;
  const int n = product.n;
  static float a[kM][kK], b[kK][256];
  static float sum[256];
  require(product.b >> 62 == 1 && (product.transposed || product.a >> 62 == 1), "only the 128-byte swizzle is known");
  for (int m = 0; m < kM; ++m) {
    for (int k = 0; k < kK; ++k) {
      if (product.transposed) {
        // Lane 4 g + t of warp w holds rows 16 w + g and + 8, and of each the columns 2 t, 2 t + 1 and those + 8.
        const int lane = m % 8 * 4 + k % 8 / 2, reg = m % 16 / 8 + k / 8 * 2;
        const uint32_t pair = product.parts[m / 16 * kLanes + lane].registers[reg];
        a[m][k] = widen(static_cast<uint16_t>(k % 2 == 0 ? pair : pair >> 16), product.type);
      } else {
        a[m][k] = element(product.a, m, k, false, product.type);
      }
    }
  }
  for (int k = 0; k < kK; ++k) {
    for (int j = 0; j < n; ++j) b[k][j] = element(product.b, j, k, product.transposed, product.type);
  }
  for (auto& part : product.parts) {
    if (!part.initial.empty()) std::memcpy(part.d, part.initial.data(), part.initial.size() * sizeof(float));
  }
  for (int m = 0; m < kM; ++m) {
    std::memset(sum, 0, sizeof sum);
    for (int k = 0; k < kK; ++k) {
      for (int j = 0; j < n; ++j) sum[j] += a[m][k] * b[k][j];
    }
    for (int j = 0; j < n; ++j) {
      const int lane = m % 8 * 4 + j % 8 / 2;
      float& d = product.parts[m / 16 * kLanes + lane].d[j / 8 * 4 + m % 16 / 8 * 2 + j % 2];
      d = product.add ? d + sum[j] : sum[j];
    }
  }
}

void perform_products(Warpgroup& group, uint64_t upto) {
  while (group.first < upto) {
    perform(group.products.front());
    group.products.pop_front();
    ++group.first;
  }
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
    fiber.started = fiber.finished = false;
    fiber.counter = nullptr;
    getcontext(&fiber.start);
    fiber.start.uc_stack.ss_sp = fiber.stack.get();
    fiber.start.uc_stack.ss_size = kStackBytes;
    fiber.start.uc_link = nullptr;
    makecontext(&fiber.start, enter, 0);
  }
  const int warps = threads / kLanes;
  for (bool progress = true; progress;) {
    progress = false;
    for (int i = 0; i < warps; ++i) {
      // A warp runs as far as it can; which one comes first is open too.
      const int warp = timing == Timing::kCopiesFirst ? i : warps - 1 - i;
      for (bool again = true; again;) {
        again = false;
        for (int lane = 0; lane < kLanes; ++lane) {
          if (!m.fibers[warp * kLanes + lane].runnable()) continue;
          resume(warp * kLanes + lane);
          if (!m.error.empty()) throw std::runtime_error(m.error);
          again = progress = true;
        }
      }
    }
    if (!progress && !m.copies.empty()) {
      if (_setjmp(m.scheduler) == 0) perform(m.copies.front());
      if (!m.error.empty()) throw std::runtime_error(m.error);
      m.copies.pop_front();
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

const void* exchange(const void* value, size_t size) {
  Warp& warp = machine.warps[machine.current / kLanes];
  std::memcpy(warp.handed_in + machine.current % kLanes * size, value, size);
  if (++warp.count == kLanes) {
    std::memcpy(warp.handed_out, warp.handed_in, kLanes * size);
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

void cp_async(uint32_t to, const void* from, bool valid) {
  require(to % 16 == 0 && (!valid || reinterpret_cast<uintptr_t>(from) % 16 == 0), "cp.async is aligned to 16 bytes");
  const SmallCopy copy{to, {}, valid, from};
  if (timing == Timing::kCopiesFirst) {
    perform(copy);
  } else {
    machine.threads[machine.current].open.push_back(copy);
  }
}

void cp_async_commit_group() {
  Thread& thread = machine.threads[machine.current];
  thread.groups.push_back(std::move(thread.open));
  thread.open.clear();
}

void cp_async_wait_group(int pending) {
  Thread& thread = machine.threads[machine.current];
  while (static_cast<int>(thread.groups.size()) > pending) {
    for (const auto& copy : thread.groups.front()) perform(copy);
    thread.groups.pop_front();
  }
}

void cp_async_bulk_tensor(uint32_t to, const TensorMap* map, uint32_t barrier, int column, int row, int batch) {
  const Copy copy{to, *map, barrier, column, row, batch};
  if (timing == Timing::kCopiesFirst) {
    perform(copy);
  } else {
    machine.copies.push_back(copy);
  }
}

void wgmma(float* d, int n, Half type, const uint32_t* registers, uint64_t a, uint64_t b, bool add) {
  Warpgroup& group = warpgroup();
  Thread& thread = machine.threads[machine.current];
  const uint64_t index = thread.issued++ - group.first;
  if (index == group.products.size()) group.products.emplace_back();
  Product& product = group.products[index];
  if (product.issued == 0) {
    product.n = n;
    product.type = type;
    product.a = a;
    product.b = b;
    product.add = add;
    product.transposed = registers != nullptr;
  }
  require(
      product.n == n && product.a == a && product.b == b && product.add == add,
      "threads of a warpgroup disagree about a product");
  const int lane = machine.current % kGroupThreads;
  Product::Part& part = product.parts[lane];
  part.d = d;
  part.registers = registers;
  bool pending = false;
  for (uint64_t i = 0; i < index; ++i) pending = pending || group.products[i].parts[lane].d == d;
  if (!pending) {
    part.initial.assign(d, d + n / 2);
    // Until the wait nobody may look at them.
    for (int i = 0; i < n / 2; ++i) d[i] = std::numeric_limits<float>::quiet_NaN();
  }
  if (++product.issued == kGroupThreads) {
    ++group.complete;
    if (timing == Timing::kProductsFirst) perform_products(group, group.complete);
  }
}

void wgmma_commit_group() {
  Thread& thread = machine.threads[machine.current];
  thread.committed.push_back(thread.issued);
}

void wgmma_wait_group(int pending) {
  Thread& thread = machine.threads[machine.current];
  const int done = static_cast<int>(thread.committed.size()) - pending;
  if (done <= 0) return;
  Warpgroup& group = warpgroup();
  const uint64_t upto = thread.committed[done - 1];
  while (group.complete < upto) wait_while(&group.complete, group.complete, "the other warps of its warpgroup");
  perform_products(group, upto);
}

void mma_m16n8(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1, const Half* type) {
  struct Words {
    uint32_t a[4], b[2];
  };
  const Words mine{{a[0], a[1], a[2], a[3]}, {b0, b1}};
  const auto* words = static_cast<const Words*>(exchange(&mine, sizeof mine));
  const int lane = machine.current % kLanes;
  // Lane 4 g + t: rows g and g + 8 of the left operand, column g of the right one.
  for (int e = 0; e < 4; ++e) {
    const int m = lane / 4, high = e / 2, col = lane % 4 * 2 + e % 2;
    float sum = 0;
    for (int half = 0; half < 2; ++half) {
      for (int t = 0; t < 4; ++t) {
        const uint32_t left = words[m * 4 + t].a[high + 2 * half], right = words[col * 4 + t].b[half];
        if (type == nullptr) {  // the hardware ignores the last 13 bits
          const uint32_t l = left & 0xffffe000, r = right & 0xffffe000;
          float x, y;
          std::memcpy(&x, &l, 4);
          std::memcpy(&y, &r, 4);
          sum += x * y;
        } else {
          sum += widen(static_cast<uint16_t>(left), *type) * widen(static_cast<uint16_t>(right), *type);
          sum += widen(static_cast<uint16_t>(left >> 16), *type) * widen(static_cast<uint16_t>(right >> 16), *type);
        }
      }
    }
    d[e] += sum;
  }
}

float widen(uint16_t bits, Half type) {
  if (type == Half::kF16) {
    _Float16 x;
    std::memcpy(&x, &bits, sizeof x);
    return static_cast<float>(x);
  }
  const uint32_t wide = static_cast<uint32_t>(bits) << 16;
  float x;
  std::memcpy(&x, &wide, sizeof x);
  return x;
}

uint16_t narrow(float x, Half type) {
  uint16_t bits;
  if (type == Half::kF16) {
    const auto half = static_cast<_Float16>(x);
    std::memcpy(&bits, &half, sizeof bits);
    return bits;
  }
  if (std::isnan(x)) return 0x7fff;
  uint32_t wide;
  std::memcpy(&wide, &x, sizeof wide);
  return static_cast<uint16_t>((wide + 0x7fff + (wide >> 16 & 1)) >> 16);
}

}  // namespace hyperkern::emulator
