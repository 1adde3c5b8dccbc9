// The index math of csrc/layout.h against brute force. Prints the first thing that is wrong and fails.
#include "../../csrc/layout.h"

#include <cstdio>
#include <cstdlib>
#include <map>
#include <set>
#include <vector>

using namespace hyperkern;

#define CHECK(condition, ...)                                     \
  do {                                                            \
    if (!(condition)) {                                           \
      std::printf("%s:%d: %s: ", __FILE__, __LINE__, #condition); \
      std::printf(__VA_ARGS__);                                   \
      std::printf("\n");                                          \
      std::exit(1);                                               \
    }                                                             \
  } while (false)

// Every tile of every block of threads, by plain loops and by the cursor.
struct Visit {
  int i_block, i_tile;
};

std::vector<Visit> visits(const Schedule& s, int i_stripe, int i_cut) {
  std::vector<Visit> found;
  for (int round = 0; round < s.rounds(); ++round) {
    const int i_block = s.block(i_stripe, round);
    if (i_block >= s.blocks) continue;
    CHECK(i_block >= 0, "row block %d", i_block);
    const Range range = s.range(i_block, i_cut);
    for (int tile = range.begin; tile < range.end; tile += s.cuts) found.push_back({i_block, tile});
  }
  return found;
}

// Each block of threads has a place of its own. Those of a cluster visit neighbouring tiles of the same row block, in
// the same number of steps; column sums of a tile are those of one of them.
void check_places(const Schedule& s, int batch) {
  std::set<std::vector<int>> places;
  const int count = batch * s.stripes * s.cuts;
  for (int i = 0; i < count; ++i) {
    const Schedule::Place place = s.place(i);
    CHECK(
        place.i_stripe >= 0 && place.i_stripe < s.stripes && place.i_cut >= 0 && place.i_cut < s.cuts &&
            place.i_b >= 0 && place.i_b < batch,
        "block of threads %d", i);
    places.insert({place.i_stripe, place.i_cut, place.i_b});
    const auto own = visits(s, place.i_stripe, place.i_cut);
    for (const Visit& visit : own) CHECK(visit.i_tile % s.cuts == place.i_cut, "tile %d", visit.i_tile);
    if (i % s.cluster == 0) continue;
    const Schedule::Place before = s.place(i - 1);
    CHECK(before.i_stripe == place.i_stripe && before.i_b == place.i_b, "block of threads %d", i);
    const auto others = visits(s, before.i_stripe, before.i_cut);
    CHECK(own.size() == others.size(), "%zu and %zu steps of a cluster", others.size(), own.size());
    for (size_t step = 0; step < own.size(); ++step) {
      CHECK(
          own[step].i_block == others[step].i_block && own[step].i_tile == others[step].i_tile + 1, "step %zu of %d",
          step, i);
    }
  }
  CHECK(static_cast<int>(places.size()) == count, "%zu places of %d blocks of threads", places.size(), count);
}

void check_cursor(const Schedule& s, int i_stripe, int i_cut, const std::vector<Visit>& expected) {
  size_t i = 0;
  for (TileCursor cursor(s, i_stripe, i_cut); cursor.valid(); cursor.advance(), ++i) {
    CHECK(i < expected.size(), "the cursor goes on after %zu tiles", expected.size());
    CHECK(cursor.i_block == expected[i].i_block && cursor.tile() == expected[i].i_tile, "tile %zu", i);
  }
  CHECK(i == expected.size(), "the cursor ends after %zu of %zu tiles", i, expected.size());
}

// Each pair (row, column) counts once; with a triangle a mirrored tile counts for its transpose too.
void check_coverage(int m, int n, int block_m, int block_n, int stripes, int cuts, int cluster, bool triangle) {
  const int blocks = ceil_div(m, block_m), tiles = ceil_div(n, block_n);
  if (stripes > blocks) return;
  const Schedule s{blocks, tiles, stripes, cuts, block_m / block_n, cluster, triangle};
  check_places(s, 3);
  // Count in squares of gcd size: a tile is block_m x block_n, and a transposed one block_n x block_m.
  const int grid = ceil_div(m > n ? m : n, block_n);
  std::vector<int> count(static_cast<size_t>(grid) * grid, 0);
  const int rows_per_block = block_m / block_n;
  for (int i_stripe = 0; i_stripe < stripes; ++i_stripe) {
    for (int i_cut = 0; i_cut < cuts; ++i_cut) {
      const auto found = visits(s, i_stripe, i_cut);
      check_cursor(s, i_stripe, i_cut, found);
      for (const Visit& visit : found) {
        if (!s.has(visit.i_tile)) {
          CHECK(visit.i_tile % cluster != 0 && visit.i_tile == tiles, "a step without need to tile %d", visit.i_tile);
          continue;
        }
        CHECK(visit.i_tile < tiles && visit.i_block < blocks, "tile (%d, %d)", visit.i_block, visit.i_tile);
        for (int r = 0; r < rows_per_block; ++r) {
          const int row = visit.i_block * rows_per_block + r;
          if (row * block_n >= m) continue;
          ++count[static_cast<size_t>(row) * grid + visit.i_tile];
          if (s.mirrored(visit.i_block, visit.i_tile)) ++count[static_cast<size_t>(visit.i_tile) * grid + row];
        }
      }
    }
  }
  for (int row = 0; row * block_n < m; ++row) {
    for (int col = 0; col * block_n < n; ++col) {
      CHECK(
          count[static_cast<size_t>(row) * grid + col] == 1,
          "m %d n %d tile %d x %d stripes %d cuts %d cluster %d triangle %d: square (%d, %d) counts %d times", m, n,
          block_m, block_n, stripes, cuts, cluster, triangle, row, col, count[static_cast<size_t>(row) * grid + col]);
    }
  }
}

void check_schedules() {
  for (int block_m : {128, 256}) {
    for (int n = 1; n <= 1600; n += n < 520 ? 1 : 37) {
      for (int stripes : {1, 2, 3, 5}) {
        for (int cuts : {1, 2, 3, 7}) {
          check_coverage(n, n, block_m, 128, stripes, cuts, 1, true);
          check_coverage(n, (n * 7) % 1500 + 1, block_m, 128, stripes, cuts, 1, false);
          if (block_m != 256) continue;
          check_coverage(n, n, block_m, 128, stripes, 2 * cuts, 2, true);
          check_coverage(n, (n * 7) % 1500 + 1, block_m, 128, stripes, 2 * cuts, 2, false);
        }
      }
    }
  }
  // Two ranges of a cut never share a tile, however large.
  for (int tiles : {1, 7, 1000, 1 << 24}) {
    for (int cuts : {1, 3, 16, 1 << 20}) {
      int64_t sum = 0;
      int end = 0;
      for (int i = 0; i < cuts; ++i) {
        const Range range = cut_range(tiles, cuts, i);
        CHECK(range.begin == end && range.end >= range.begin, "cut %d of %d, %d tiles", i, cuts, tiles);
        end = range.end;
        sum += range.end - range.begin;
      }
      CHECK(sum == tiles && end == tiles, "%d cuts of %d tiles", cuts, tiles);
    }
  }
}

void check_fragments() {
  std::set<std::pair<int, int>> elements;
  for (int lane = 0; lane < kWarp; ++lane) {
    for (int e = 0; e < 4; ++e) {
      const int row = fragment_row(lane, e), col = fragment_col(lane, e);
      CHECK(row >= 0 && row < 16 && col >= 0 && col < 8, "lane %d element %d", lane, e);
      elements.insert({row, col});
    }
    // As the PTX manual writes it for the accumulators of m16n8 and m64nN.
    CHECK(fragment_row(lane, 0) == (lane >> 2) && fragment_row(lane, 2) == (lane >> 2) + 8, "lane %d", lane);
    CHECK(fragment_col(lane, 0) == (lane & 3) * 2 && fragment_col(lane, 3) == (lane & 3) * 2 + 1, "lane %d", lane);
  }
  CHECK(elements.size() == 16 * 8, "fragments hold %zu elements", elements.size());
}

void check_swizzle() {
  for (int rows : {16, 80, 96, 128, 256}) {
    std::set<uint32_t> seen;
    for (int row = 0; row < rows; ++row) {
      for (int byte = 0; byte < 512; ++byte) {
        const uint32_t offset = swizzled(rows, row, byte);
        CHECK(offset < static_cast<uint32_t>(rows) * 512, "row %d byte %d", row, byte);
        seen.insert(offset);
        // What the TMA unit does to the address within a panel: bits 4-6 are exchanged with bits 7-9.
        const uint32_t plain = static_cast<uint32_t>((byte / 128 * rows + row) * 128 + byte % 128);
        CHECK(offset == (plain ^ ((plain >> 7 & 7) << 4)), "row %d byte %d", row, byte);
      }
    }
    CHECK(seen.size() == static_cast<size_t>(rows) * 512, "rows %d: offsets collide", rows);
    // further_along is the address of a piece further on, for the bytes it is used with.
    for (int row = 0; row < rows; ++row) {
      for (int byte : {0, 4, 16, 28}) {
        for (int step = 0; step < 128; step += 32) {
          CHECK(
              further_along(swizzled(rows, row, byte), step) == swizzled(rows, row, byte + step), "row %d byte %d + %d",
              row, byte, step);
        }
      }
    }
  }
  // No two of the eight rows of a matrix that ldmatrix reads, nor of the rows and columns that a second tf32 product
  // reads at once, lie in one bank.
  for (int first = 0; first < 64; first += 8) {
    for (int byte = 0; byte < 128; byte += 16) {
      std::set<uint32_t> banks;
      for (int row = first; row < first + 8; ++row) banks.insert(swizzled(64, row, byte) % 128 / 16);
      CHECK(banks.size() == 8, "ldmatrix at row %d byte %d meets %zu banks", first, byte, banks.size());
    }
    for (int out = 0; out < 4; ++out) {
      std::set<uint32_t> banks;
      for (int lane = 0; lane < kWarp; ++lane) {
        banks.insert(swizzled(64, first + fragment_col(lane, 0), (out * 8 + lane / 4) * 4) % 128 / 4);
      }
      CHECK(banks.size() == 32, "a tf32 operand at row %d meets %zu banks", first, banks.size());
    }
  }
}

void check_ldmatrix() {
  // Lanes 8 i ... 8 i + 7 name the rows of matrix i. A left operand is 16 rows by 2 pieces, registers ordered by rows
  // first; two right operands are 8 rows by 2 pieces each, ordered by pieces first.
  for (int lane = 0; lane < kWarp; ++lane) {
    const int matrix = lane / 8, row = lane % 8;
    CHECK(left_row(lane) == matrix % 2 * 8 + row && left_byte(lane) == matrix / 2 * 16, "lane %d", lane);
    CHECK(right_row(lane) == matrix / 2 * 8 + row && right_byte(lane) == matrix % 2 * 16, "lane %d", lane);
  }
}

void check_diagonal() {
  for (int64_t shift : {-300, -129, -128, -1, 0, 1, 100, 128, 257}) {
    for (int row = 0; row < 512; row += 64) {
      for (int col = 0; col < 512; col += 32) {
        bool touches = false;
        for (int r = row; r < row + 64; ++r) touches = touches || (r + shift >= col && r + shift < col + 32);
        CHECK(
            touches_diagonal(row, 64, shift, col, 32) == touches, "row %d shift %lld col %d", row,
            static_cast<long long>(shift), col);
      }
    }
  }
  const int64_t far = int64_t{1} << 40;  // a shard of a very large batch
  CHECK(touches_diagonal(0, 64, far, 0, 64) == false, "far away");
  CHECK(touches_diagonal(1 << 30, 64, -(int64_t{1} << 30), 0, 64), "brought back");
}

int main() {
  check_fragments();
  check_swizzle();
  check_ldmatrix();
  check_diagonal();
  check_schedules();
  std::puts("ok");
}
