// Index math: where an element lies and which tile is computed when. For host and device, tested on the CPU.
#pragma once

#include <cstdint>

#ifdef __CUDACC__
#define HYPERKERN_HOST_DEVICE __host__ __device__ __forceinline__
#else
#define HYPERKERN_HOST_DEVICE inline
#endif

namespace hyperkern {

constexpr int kWarp = 32;
constexpr int kWarpgroup = 128;

// A tile in shared memory is a row of panels, each 128 bytes wide: the longest run that the swizzle of the TMA unit and
// of wgmma knows.
constexpr int kPanelBytes = 128;

HYPERKERN_HOST_DEVICE constexpr int ceil_div(int64_t count, int size) {
  return static_cast<int>((count + size - 1) / size);
}

// ---- fragments ----------------------------------------------------------------------------------------------------

// The accumulators of mma.m16n8 and of wgmma.m64nN: a lane holds four elements of each 16 x 8 piece.
HYPERKERN_HOST_DEVICE constexpr int fragment_row(int lane, int element) { return lane / 4 + element / 2 * 8; }

HYPERKERN_HOST_DEVICE constexpr int fragment_col(int lane, int element) { return lane % 4 * 2 + element % 2; }

// ---- shared memory ------------------------------------------------------------------------------------------------

// Offset in bytes of a byte of a row, in a tile of `rows` rows whose address is a multiple of 1024. Within a panel the
// 16-byte pieces of row r are permuted by r % 8, so that the same piece of eight rows lies in eight different banks.
HYPERKERN_HOST_DEVICE constexpr uint32_t swizzled(int rows, int row, int byte) {
  const int panel = byte / kPanelBytes;
  const int piece = (byte % kPanelBytes / 16) ^ (row % 8);
  return static_cast<uint32_t>((panel * rows + row) * kPanelBytes + piece * 16 + byte % 16);
}

// The address of the piece that lies `bytes` further along a row, from that of a piece whose offset in the panel has
// none of the bits of `bytes`; a multiple of 16, less than 128.
HYPERKERN_HOST_DEVICE constexpr uint32_t further_along(uint32_t address, int bytes) {
  return address ^ static_cast<uint32_t>(bytes);
}

// Which row and which byte of a row a lane names to ldmatrix.x4, relative to the 16 x 32-byte piece of a left operand;
// the four matrices come in the order of the registers of an mma operand.
HYPERKERN_HOST_DEVICE constexpr int left_row(int lane) { return lane % 16; }

HYPERKERN_HOST_DEVICE constexpr int left_byte(int lane) { return lane / 16 * 16; }

// The same for two neighbouring right operands, eight rows each.
HYPERKERN_HOST_DEVICE constexpr int right_row(int lane) { return lane % 8 + lane / 16 * 8; }

HYPERKERN_HOST_DEVICE constexpr int right_byte(int lane) { return lane / 8 % 2 * 16; }

// ---- schedule -----------------------------------------------------------------------------------------------------

struct Range {
  int begin;
  int end;
};

// Part `i_cut` of `tiles` column tiles cut into `cuts` ranges of nearly one size.
HYPERKERN_HOST_DEVICE constexpr Range cut_range(int tiles, int cuts, int i_cut) {
  return {
      static_cast<int>(static_cast<int64_t>(i_cut) * tiles / cuts),
      static_cast<int>(static_cast<int64_t>(i_cut + 1) * tiles / cuts)};
}

// Which tiles a block of threads visits: the row blocks of one stripe, and of each the column tiles of one cut. With a
// triangle (y = x) row block i starts at its own square; what lies right of the square stands for its mirror image too.
// What runs at the same time are neighbours, in rows and in columns: they find one another's operands in L2.
struct Schedule {
  int blocks;   // of rows
  int tiles;    // of columns
  int stripes;  // a stripe has every stripes-th row block
  int cuts;     // a cut has every cuts-th column tile, of all row blocks the same ones
  int square;   // column tiles per row block: block_m / block_n
  int cluster;  // blocks of threads that visit the same row block, of neighbouring cuts; divides cuts and square, or 1
  bool triangle;

  // Where a block of threads works. Those of a cluster are next to each other.
  struct Place {
    int i_stripe, i_cut, i_b;
  };

  HYPERKERN_HOST_DEVICE Place place(int i) const {
    const int among = i / cluster;
    return {among % stripes, among / stripes % (cuts / cluster) * cluster + i % cluster, i / stripes / cuts};
  }

  HYPERKERN_HOST_DEVICE int rounds() const { return ceil_div(blocks, stripes); }

  // The row block of a round, or `blocks` and more for none. Every other round runs backwards: with a triangle the row
  // blocks near the top have more tiles.
  HYPERKERN_HOST_DEVICE int block(int i_stripe, int round) const {
    return round * stripes + (round % 2 == 0 ? i_stripe : stripes - 1 - i_stripe);
  }

  // In steps of `cuts`. A cluster takes as many steps with each of its blocks: the last one may find no tile there.
  HYPERKERN_HOST_DEVICE Range range(int i_block, int i_cut) const {
    const int first = triangle ? i_block * square : 0;
    return {first + (i_cut + cuts - first % cuts) % cuts, ceil_div(tiles, cluster) * cluster};
  }

  HYPERKERN_HOST_DEVICE bool has(int i_tile) const { return i_tile < tiles; }

  HYPERKERN_HOST_DEVICE bool mirrored(int i_block, int i_tile) const {
    return triangle && i_tile >= (i_block + 1) * square;
  }
};

// Walks over the tiles of a block of threads, without the row blocks that have none: what the loads run ahead by.
struct TileCursor {
  Schedule schedule;
  int i_stripe;
  int i_cut;
  int round = -1;
  int i_block = 0;
  Range range = {0, 0};

  HYPERKERN_HOST_DEVICE TileCursor(const Schedule& schedule, int i_stripe, int i_cut)
      : schedule(schedule), i_stripe(i_stripe), i_cut(i_cut) {
    settle();
  }

  HYPERKERN_HOST_DEVICE bool valid() const { return round < schedule.rounds(); }

  HYPERKERN_HOST_DEVICE int tile() const { return range.begin; }

  HYPERKERN_HOST_DEVICE void advance() {
    range.begin += schedule.cuts;
    settle();
  }

 private:
  HYPERKERN_HOST_DEVICE void settle() {
    while (range.begin >= range.end && ++round < schedule.rounds()) {
      i_block = schedule.block(i_stripe, round);
      range = i_block < schedule.blocks ? schedule.range(i_block, i_cut) : Range{0, 0};
    }
  }
};

// ---- exclusion ----------------------------------------------------------------------------------------------------

// Whether a tile holds a pair whose global indices agree: row r excludes column r + shift.
HYPERKERN_HOST_DEVICE constexpr bool touches_diagonal(int64_t row, int rows, int64_t shift, int64_t col, int cols) {
  return row + shift < col + cols && col < row + rows + shift;
}

}  // namespace hyperkern
