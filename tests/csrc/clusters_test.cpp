// The sums kernel whose rows stream, two blocks of threads in a cluster, against plain loops: ragged sizes, an odd
// number of column tiles, cuts and stripes, triangles, column sums and stored weights, in both timings.
#include "../../csrc/pair_kernels.cuh"

#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <stdexcept>
#include <vector>

using namespace hyperkern;
using emulator::Timing;

#define CHECK(condition, ...)                                     \
  do {                                                            \
    if (!(condition)) {                                           \
      std::printf("%s:%d: %s: ", __FILE__, __LINE__, #condition); \
      std::printf(__VA_ARGS__);                                   \
      std::printf("\n");                                          \
      std::exit(1);                                               \
    }                                                             \
  } while (false)

struct Case {
  int m, n, dim, batch, stripes, cuts;
  bool triangle, cols, excludes;
};

constexpr float kScale = 0.25f;

struct Rows16 {
  int batch, rows, dim;
  std::vector<uint16_t> data;

  Rows16(int batch, int rows, int dim, uint32_t seed) : batch(batch), rows(rows), dim(dim), data(batch * rows * dim) {
    for (auto& x : data) {
      seed = seed * 1664525 + 1013904223;
      x = emulator::narrow(static_cast<float>(seed >> 8) / (1 << 23) - 1, emulator::Half::kBf16);
    }
  }

  Matrix matrix() const {
    const int64_t row_bytes = 2LL * dim;
    return {reinterpret_cast<const unsigned char*>(data.data()), row_bytes * rows, row_bytes, batch, rows};
  }

  float at(int i_b, int row, int k) const {
    return emulator::widen(data[(static_cast<size_t>(i_b) * rows + row) * dim + k], emulator::Half::kBf16);
  }
};

template <Task kTask>
void check(const Case& c, Timing timing) {
  const Rows16 x(c.batch, c.m, c.dim, 7), other(c.batch, c.n, c.dim, 99);
  const Rows16& y = c.triangle ? x : other;
  const TileSize size = sums_tile(c.dim * Bf16::kBytes, kTask, true);
  CHECK(size.cluster == 2, "rows of %d elements are resident", c.dim);
  SumsArgs args{};
  Pairs& pairs = args.pairs;
  pairs.m = c.m;
  pairs.n = c.n;
  pairs.dim = c.dim;
  pairs.batch = c.batch;
  pairs.last_id = c.m - 1;
  pairs.exclude = c.excludes ? Exclude::kSelf : Exclude::kNone;
  pairs.scale = kScale;
  args.sides.problems = c.batch;
  args.sides.side[0] = {0, 0, c.m, c.n, true};
  args.schedule = {ceil_div(c.m, size.rows),
                   ceil_div(c.n, size.cols),
                   c.stripes,
                   c.cuts,
                   size.rows / size.cols,
                   size.cluster,
                   c.triangle};
  std::vector<float> row(static_cast<size_t>(c.cuts) * c.batch * c.m, NAN), second(row.size(), NAN);
  std::vector<float> col(static_cast<size_t>(c.stripes) * size.groups * c.batch * c.n, 0.0f);
  const int stride = ceil_div(c.n, 8) * 8;
  std::vector<uint16_t> weights(static_cast<size_t>(c.batch) * c.m * stride, 0x7fc0);
  args.row = row.data();
  args.row_second = second.data();
  if (c.cols) args.col = col.data();
  args.weights = weights.data();
  args.weights_stride_m = stride;
  args.weights_stride_b = static_cast<int64_t>(c.m) * stride;

  emulator::set_timing(timing);
  try {
    launch_sums_task<Bf16, kTask>(args, x.matrix(), y.matrix(), true, nullptr);
  } catch (const std::runtime_error& error) {
    CHECK(false, "%d x %d x %d: %s", c.m, c.n, c.dim, error.what());
  }

  const auto close = [&](double found, double want, const char* what, int i_b, int i) {
    CHECK(
        std::fabs(found - want) <= 2e-4 * (1 + std::fabs(want)),
        "%d x %d x %d, stripes %d, cuts %d, triangle %d: %s %d of problem %d is %g, not %g", c.m, c.n, c.dim, c.stripes,
        c.cuts, c.triangle, what, i, i_b, found, want);
  };
  for (int i_b = 0; i_b < c.batch; ++i_b) {
    std::vector<double> of_rows(c.m, 0.0), of_cols(c.n, 0.0);
    for (int i = 0; i < c.m; ++i) {
      for (int j = 0; j < c.n; ++j) {
        double dot = 0;
        for (int k = 0; k < c.dim; ++k) dot += static_cast<double>(x.at(i_b, i, k)) * y.at(i_b, j, k);
        const double weight = c.excludes && i == j ? 0 : std::exp2(kScale * dot);
        of_rows[i] += weight;
        of_cols[j] += weight;
        if (!stores(kTask)) continue;
        const uint16_t bits = weights[(static_cast<size_t>(i_b) * c.m + i) * stride + j];
        const float found = emulator::widen(bits, emulator::Half::kBf16);
        CHECK(std::fabs(found - weight) <= 4e-3 * weight, "the weight of (%d, %d) is %g, not %g", i, j, found, weight);
      }
    }
    std::vector<double> found_cols(c.n, 0.0);
    for (int part = 0; part < c.stripes * size.groups; ++part) {
      for (int j = 0; j < c.n; ++j) found_cols[j] += col[(static_cast<size_t>(part) * c.batch + i_b) * c.n + j];
    }
    double total = 0;
    for (int i = 0; i < c.m; ++i) {
      double found = 0;
      for (int i_cut = 0; i_cut < c.cuts; ++i_cut) {
        const size_t at = (static_cast<size_t>(i_cut) * c.batch + i_b) * c.m + i;
        found += kTask == Task::kSumRunning ? (row[at] == 0 ? 0 : row[at] * std::exp2(second[at])) : row[at];
      }
      total += found;
      // A triangle has the rest of a row in its column, or where nobody asks for columns twice in other rows.
      if (!c.triangle || c.cols) close(found + (c.triangle ? found_cols[i] : 0), of_rows[i], "row", i_b, i);
    }
    double want = 0;
    for (const double sum : of_rows) want += sum;
    if (c.triangle && !c.cols) close(total / want, 1, "total", i_b, 0);
    if (c.cols && !c.triangle) {
      for (int j = 0; j < c.n; ++j) close(found_cols[j], of_cols[j], "column", i_b, j);
    }
  }
}

int main() {
  for (const Timing timing : {Timing::kCopiesFirst, Timing::kProductsFirst}) {
    // One tile: the second block of the cluster has none.
    check<Task::kSumExp>({5, 7, 264, 1, 1, 2, false, true, false}, timing);
    // Three rounds of panels in a ring of four, an odd number of tiles, two problems.
    check<Task::kSumExp>({70, 300, 776, 2, 1, 2, false, true, true}, timing);
    // More cuts than tiles; several row blocks, in one stripe and in two.
    check<Task::kSumExp>({300, 130, 264, 1, 2, 6, false, true, false}, timing);
    check<Task::kSumExp>({520, 400, 264, 1, 2, 2, false, true, false}, timing);
    check<Task::kSumRunning>({150, 400, 320, 1, 1, 4, false, false, true}, timing);
    // Triangles: the total, and with the columns that are the rest of the rows.
    check<Task::kSumExp>({530, 530, 264, 1, 2, 4, true, false, true}, timing);
    check<Task::kSumExp>({650, 650, 264, 1, 1, 2, true, true, true}, timing);
    // Weights are stored of rows of any length.
    check<Task::kStoreExp>({70, 300, 72, 2, 1, 2, false, true, true}, timing);
    check<Task::kStoreExp>({270, 140, 328, 1, 1, 4, false, false, false}, timing);
  }
  std::puts("ok");
}
