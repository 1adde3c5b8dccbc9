// Asynchronous copies into shared memory: cp.async and the TMA unit.
#include <cstring>

#include "state.h"

namespace hyperkern::emulator {
namespace {

void perform(const SmallCopy& copy) {
  if (copy.valid) {
    std::memcpy(at(copy.to, 16), copy.from, 16);
  } else {
    std::memset(at(copy.to, 16), 0, 16);
  }
}

}  // namespace

void perform(const Copy& copy) {
  require_running(copy.to);
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
  ++machine.copied;
  MBarrier& barrier = mbarrier(copy.barrier);
  barrier.bytes -= static_cast<int64_t>(row_bytes) * map.box[1];
  settle(barrier);
}

void cp_async(uint32_t to, const void* from, bool valid) {
  require(to % 16 == 0 && (!valid || reinterpret_cast<uintptr_t>(from) % 16 == 0), "cp.async is aligned to 16 bytes");
  const SmallCopy copy{to, valid, from};
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

void cp_async_bulk_tensor_multicast(
    uint32_t to, const TensorMap* map, uint32_t barrier, int column, int row, int batch, uint16_t ranks) {
  for (int rank = 0; rank < 16; ++rank) {
    if ((ranks >> rank & 1) == 0) continue;
    cp_async_bulk_tensor(mapa(to, rank), map, mapa(barrier, rank), column, row, batch);
  }
}

}  // namespace hyperkern::emulator
