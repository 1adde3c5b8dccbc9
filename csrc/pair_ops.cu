// The pairwise operators: their arguments are checked and handed to a kernel.
#include "checks.h"
#include "ops.h"
#include "pair_kernels.h"

#include <vector>

namespace hyperkern {
namespace {

// What cp.async and the TMA unit ask of an operand.
Matrix operand(const Tensor& x, const char* name) {
  HYPERKERN_REQUIRE(x.dim() == 3, name, " must have shape (batch, rows, D), got ", shape_of(x));
  const auto type = x.scalar_type();
  HYPERKERN_REQUIRE(
      type == ScalarType::BFloat16 || type == ScalarType::Half || type == ScalarType::Float, name,
      " must be bfloat16, float16 or float32, got ", name_of(type));
  const int64_t bytes = type == ScalarType::Float ? 4 : 2;
  const auto* data = static_cast<const unsigned char*>(x.const_data_ptr());
  HYPERKERN_REQUIRE(
      x.stride(2) == 1 && (x.size(0) == 1 || x.stride(0) > 0) && (x.size(1) == 1 || x.stride(1) > 0) &&
          x.size(2) * bytes % 16 == 0 && x.stride(1) * bytes % 16 == 0 && x.stride(0) * bytes % 16 == 0 &&
          reinterpret_cast<uintptr_t>(data) % 16 == 0,
      name, " must have rows that are contiguous, not expanded, and start and end at multiples of 16 bytes; got shape ",
      shape_of(x), " with strides (", x.stride(0), ", ", x.stride(1), ", ", x.stride(2), ")");
  // The TMA unit knows no stride of 0, and of a batch of one nobody reads it.
  const int64_t stride_b = x.size(0) == 1 ? x.size(1) * x.stride(1) : x.stride(0);
  return {data, stride_b * bytes, x.stride(1) * bytes, to_int(x.size(0), name), to_int(x.size(1), name)};
}

void check_operands(const Tensor& x, const Tensor& y) {
  check_device(x, "x");
  check_same_device(y, "y", x);
  check_type(y, "y", x.scalar_type());
  HYPERKERN_REQUIRE(x.dim() == 3, "x must have shape (batch, rows, D), got ", shape_of(x));
  HYPERKERN_REQUIRE(
      y.dim() == 3 && y.size(0) == x.size(0) && y.size(2) == x.size(2), "y must have shape (", x.size(0), ", N, ",
      x.size(2), "), got ", shape_of(y));
  HYPERKERN_REQUIRE(x.size(2) > 0 && y.size(1) > 0, "y must not be empty, got ", shape_of(y));
}

const float* terms(const OptionalTensor& terms, const char* name, const Tensor& as, int64_t count, int64_t length) {
  if (!terms.has_value()) return nullptr;
  check_same_device(*terms, name, as);
  check_type(*terms, name, ScalarType::Float);
  HYPERKERN_REQUIRE(
      terms->dim() == 3 && terms->size(0) == as.size(0) && terms->size(1) >= count && terms->size(2) >= length &&
          terms->stride(2) == 1,
      name, " must have shape (", as.size(0), ", at least ", count, ", at least ", length,
      ") with contiguous rows, got ", shape_of(*terms));
  return static_cast<const float*>(terms->const_data_ptr());
}

const int64_t* ids(const OptionalTensor& ids, const char* name, const Tensor& as, int64_t length, bool wanted) {
  if (!wanted) return nullptr;
  HYPERKERN_REQUIRE(ids.has_value(), name, " is missing, which this exclusion, or these classes, compare");
  check_same_device(*ids, name, as);
  check_type(*ids, name, ScalarType::Long);
  check_shape(*ids, name, as.size(0), length);
  HYPERKERN_REQUIRE(length < 2 || ids->stride(1) == 1, name, " must have contiguous rows");
  return static_cast<const int64_t*>(ids->const_data_ptr());
}

constexpr size_t kSideNumbers = 6;  // of each of the sides of a grid

struct Terms {
  const OptionalTensor &row_terms, &col_terms, &row_ids, &col_ids;
};

// How many vectors of terms a weight reads.
constexpr int64_t kRowTerms[] = {2, 2, 3, 1, 6}, kColTerms[] = {0, 2, 3, 1, 4};

// Tiles cover more than the last column; of all that they cover the terms must be readable, pairs of them at once.
Pairs make_pairs(
    const Tensor& x, const Tensor& y, const Terms& from, int64_t exclude, int64_t row_shift, int64_t views,
    double scale, double offset, bool rounded, int64_t row_count, int64_t col_count, const std::vector<int64_t>& sides,
    int tile_cols, bool classes) {
  HYPERKERN_REQUIRE(exclude >= 0 && exclude <= 2, "exclude must be 0 (none), 1 (self) or 2 (same id), got ", exclude);
  // A tile off the diagonal has no pair of a group: tiles start at even rows and columns.
  HYPERKERN_REQUIRE(
      views == 1 || (views == 2 && row_shift == 0), "views must be 1, or 2 without a row_shift, got ", views);
  Pairs pairs{};
  pairs.group_bits = static_cast<int>(views) - 1;
  pairs.exclude = static_cast<Exclude>(exclude);
  pairs.batch = to_int(x.size(0), "the batch size");
  pairs.m = to_int(x.size(1), "the number of rows");
  pairs.n = to_int(y.size(1), "the number of columns");
  pairs.last_id = pairs.m - 1;
  pairs.dim = to_int(x.size(2), "D");
  // Behind an odd number of rows the terms of the next side start one later.
  const bool whole = sides.size() == kSideNumbers && sides[0] == 0 && sides[1] == 0;
  const int64_t rows = x.size(1) + (whole ? 0 : 1);
  const int64_t cols =
      whole ? static_cast<int64_t>(ceil_div(y.size(1), tile_cols)) * tile_cols : y.size(1) + 1 + tile_cols;
  HYPERKERN_REQUIRE(cols <= INT32_MAX - 1024 && pairs.m <= INT32_MAX - 1024, "there are too many rows or columns");
  pairs.row_shift = row_shift;
  pairs.scale = static_cast<float>(scale);
  pairs.offset = static_cast<float>(offset);
  pairs.rounded = rounded;
  pairs.row_terms = terms(from.row_terms, "row_terms", x, row_count, rows);
  pairs.col_terms = terms(from.col_terms, "col_terms", x, col_count, cols);
  if (pairs.row_terms != nullptr) {
    pairs.row_terms_stride_b = from.row_terms->stride(0);
    pairs.row_terms_stride_t = from.row_terms->stride(1);
  }
  if (pairs.col_terms != nullptr) {
    pairs.col_terms_stride_b = from.col_terms->stride(0);
    pairs.col_terms_stride_t = from.col_terms->stride(1);
    HYPERKERN_REQUIRE(
        pairs.col_terms_stride_b % 2 == 0 && pairs.col_terms_stride_t % 2 == 0 &&
            reinterpret_cast<uintptr_t>(pairs.col_terms) % 8 == 0,
        "col_terms must start its rows at multiples of 8 bytes");
  }
  const bool by_id = pairs.exclude == Exclude::kSameId;
  HYPERKERN_REQUIRE(
      !classes || (!by_id && views == 1), "classes take the place of other ids, and rows are no views of one another");
  pairs.row_ids = ids(from.row_ids, "row_ids", x, x.size(1), by_id || classes);
  pairs.col_ids = ids(from.col_ids, "col_ids", x, y.size(1), by_id || classes);
  if (by_id || classes) {
    pairs.row_ids_stride_b = from.row_ids->stride(0);
    pairs.col_ids_stride_b = from.col_ids->stride(0);
  }
  return pairs;
}

// Six numbers for each side, see Side and SideGrid: the last one is into how many ranges its columns are cut.
Sides make_sides(
    const Pairs& pairs, const Tensor& x, const Tensor& y, const std::vector<int64_t>& numbers, Weight weight) {
  const size_t count = numbers.size() / kSideNumbers;
  HYPERKERN_REQUIRE(
      numbers.size() % kSideNumbers == 0 && count >= 1 && count <= kMostSides,
      "sides has six numbers for each of at most ", kMostSides, ", got ", numbers.size());
  Sides sides{};
  sides.problems = pairs.batch;
  HYPERKERN_REQUIRE(count == 1 || pairs.exclude != Exclude::kSameId, "sides have no ids");
  for (size_t i = 0; i < count; ++i) {
    const int64_t* from = &numbers[i * kSideNumbers];
    Side& side = sides.side[i];
    side = {
        to_int(from[0], "the first row of a side"), to_int(from[1], "the first column of a side"),
        to_int(from[2], "the rows of a side"), to_int(from[3], "the columns of a side"), from[4] != 0};
    HYPERKERN_REQUIRE(
        from[0] + from[2] <= x.size(1) && from[1] + from[3] <= y.size(1), "side ", i, " is not within the rows of x ",
        shape_of(x), " and y ", shape_of(y));
    HYPERKERN_REQUIRE(
        side.excludes || weight == Weight::kExp || pairs.exclude == Exclude::kNone,
        "only exponentials have sides that exclude nothing beside others");
    HYPERKERN_REQUIRE(from[5] >= 1, "cuts must be at least 1, got ", from[5]);
  }
  return sides;
}

// How the sides are shared out among blocks of threads; returns the rows of all results.
int64_t set_grids(ContractArgs& args, const std::vector<int64_t>& numbers, int rows) {
  int64_t blocks = 0, results = 0;
  for (size_t i = 0; i < kMostSides; ++i) {
    SideGrid& grid = args.grids[i];
    grid = {1, 1, INT32_MAX, 0};
    if (i * kSideNumbers >= numbers.size()) continue;
    const Side& side = args.sides.side[i];
    const int64_t cuts = numbers[i * kSideNumbers + 5];
    grid = {ceil_div(side.m, rows), to_int(cuts, "cuts"), static_cast<int>(blocks), results};
    const int64_t problems = static_cast<int64_t>(args.sides.problems) * grid.blocks;
    HYPERKERN_REQUIRE(
        problems <= (INT32_MAX - blocks) / cuts, "there are too many blocks of threads: ", args.sides.problems,
        " problems times ", grid.blocks, " times ", cuts, " cuts");
    blocks += problems * cuts;
    results += cuts * args.sides.problems * side.m;
  }
  args.grid = static_cast<int>(blocks);
  return results;
}

// A grid has at most 2^31 - 1 blocks; the launchers multiply in 32 bits.
void check_grid(const Pairs& pairs, int parts, int cuts) {
  HYPERKERN_REQUIRE(
      static_cast<int64_t>(pairs.batch) * parts <= INT32_MAX / cuts,
      "there are too many blocks of threads: ", pairs.batch, " problems times ", parts, " times ", cuts, " cuts");
}

bool takes_wgmma(const Tensor& x) { return x.scalar_type() != ScalarType::Float && has_wgmma(x); }

// Calls `function` with the operand type of x: float32 is multiplied in one tf32 product or, `split`, in three.
template <class Function>
void with_operand(const Tensor& x, bool split, const Function& function) {
  switch (x.scalar_type()) {
    case ScalarType::BFloat16: return function(Bf16{});
    case ScalarType::Half: return function(Fp16{});
    default: return split ? function(Fp32{}) : function(Tf32{});
  }
}

}  // namespace

#ifdef HYPERKERN_EMULATED
void emulate(int64_t capability, bool products_first, bool launches) {
  HYPERKERN_REQUIRE(capability == 80 || capability == 90, "capability must be 80 or 90, got ", capability);
  emulated_capability = static_cast<int>(capability);
  emulated_launches = launches;
  emulator::set_timing(products_first ? emulator::Timing::kProductsFirst : emulator::Timing::kCopiesFirst);
}
#endif

std::tuple<int64_t, int64_t, int64_t, int64_t> tile(const Tensor& x, int64_t kernel, int64_t dim, int64_t weight) {
  check_device(x, "x");
  HYPERKERN_REQUIRE(
      kernel >= 0 && kernel <= 2, "kernel must be 0 (sums), 1 (contract) or 2 (stored weights), got ", kernel);
  HYPERKERN_REQUIRE(weight >= 0 && weight <= 4, "weight must be between 0 and 4, got ", weight);
  const int bytes = x.scalar_type() == ScalarType::Float ? 4 : 2;
  const TileSize size =
      kernel == 1 ? contract_tile(bytes, to_int(dim, "D"), static_cast<Weight>(weight), takes_wgmma(x))
                  : sums_tile(to_int(dim * bytes, "D"), kernel == 0 ? Task::kSumExp : Task::kStoreExp, takes_wgmma(x));
  return {size.rows, size.cols, size.groups, size.cluster};
}

bool runs_on(int64_t capability) { return has_code_for(to_int(capability, "capability")); }

std::tuple<int64_t, int64_t, int64_t> block(int64_t kernel, int64_t bytes, int64_t dim, int64_t kind, bool wgmma) {
  HYPERKERN_REQUIRE(kernel == 0 || kernel == 1, "kernel must be 0 (sums) or 1 (contract), got ", kernel);
  HYPERKERN_REQUIRE(bytes == 4 || bytes == 2, "operands have 2 or 4 bytes, got ", bytes);
  HYPERKERN_REQUIRE(kind >= 0 && kind <= (kernel == 0 ? 8 : 4), "there is no task or weight ", kind);
  const int size = static_cast<int>(bytes);
  const TileSize tile = kernel == 0 ? sums_tile(to_int(dim, "D") * size, static_cast<Task>(kind), wgmma)
                                    : contract_tile(size, to_int(dim, "D"), static_cast<Weight>(kind), wgmma);
  return {tile.threads, tile.shared_bytes, tile.stages};
}

void sums(
    const Tensor& x, const Tensor& y, const OptionalTensor& row_terms, const OptionalTensor& col_terms,
    const OptionalTensor& row_ids, const OptionalTensor& col_ids, int64_t exclude, int64_t row_shift, int64_t views,
    const std::vector<int64_t>& sides, double scale, double offset, bool rounded, int64_t task_code, bool split,
    bool triangle, int64_t stripes, int64_t cuts, const Tensor& row, const OptionalTensor& row_second,
    const OptionalTensor& col, const OptionalTensor& weights) {
  check_operands(x, y);
  HYPERKERN_REQUIRE(task_code >= 0 && task_code <= 8, "task must be between 0 and 8, got ", task_code);
  const Task task = static_cast<Task>(task_code);
  const bool wgmma = takes_wgmma(x);
  const int bytes = x.scalar_type() == ScalarType::Float ? 4 : 2;
  const TileSize size = sums_tile(to_int(x.size(2) * bytes, "D"), task, wgmma);
  SumsArgs args{};
  Schedule& schedule = args.schedule;
  schedule.square = size.rows / size.cols;
  schedule.cluster = size.cluster;
  schedule.triangle = triangle;
  schedule.stripes = to_int(stripes, "stripes");
  schedule.cuts = to_int(cuts, "cuts");
  HYPERKERN_REQUIRE(!triangle || !stores(task), "weights are stored of whole panels, not of a triangle");
  args.pairs = make_pairs(
      x, y, {row_terms, col_terms, row_ids, col_ids}, exclude, row_shift, views, scale, offset, rounded,
      stores(task) ? kRowTerms[static_cast<int>(weight_of(task))] : 1,
      stores(task) ? kColTerms[static_cast<int>(weight_of(task))] : 1, sides, size.cols,
      task == Task::kSumClasses || task == Task::kStoreClasses);
  args.sides = make_sides(args.pairs, x, y, sides, weight_of(task));
  args.pairs.m = args.sides.side[0].m;
  args.pairs.n = args.sides.side[0].n;
  args.pairs.batch = to_int(static_cast<int64_t>(sides.size() / kSideNumbers) * x.size(0), "the batch size");
  for (int i = 1; i < kMostSides; ++i) {
    const Side &first = args.sides.side[0], &other = args.sides.side[i];
    HYPERKERN_REQUIRE(
        other.m == 0 || (other.m == first.m && other.n == first.n), "the sides of sums have one size, got ", first.m,
        " x ", first.n, " and ", other.m, " x ", other.n);
  }
  schedule.blocks = ceil_div(args.pairs.m, size.rows);
  schedule.tiles = ceil_div(args.pairs.n, size.cols);
  HYPERKERN_REQUIRE(!triangle || args.pairs.m == args.pairs.n, "a triangle has as many rows as columns");
  HYPERKERN_REQUIRE(
      schedule.stripes >= 1 && schedule.stripes <= schedule.blocks && schedule.cuts >= 1,
      "stripes must be between 1 and the number of row blocks (", schedule.blocks, ") and cuts at least 1, got ",
      stripes, " and ", cuts);
  check_grid(args.pairs, schedule.stripes, schedule.cuts);
  HYPERKERN_REQUIRE(
      !stores(task) || task == Task::kStoreExp || args.pairs.col_terms != nullptr, "task ", task_code,
      " needs col_terms");
  HYPERKERN_REQUIRE(
      !stores(task) || !is_two(weight_of(task)) || args.pairs.row_terms != nullptr, "task ", task_code,
      " needs row_terms");
  const Matrix x_rows = operand(x, "x"), y_rows = operand(y, "y");
  const int64_t results = static_cast<int64_t>(row_results(task)) * args.pairs.batch;
  args.row = result(row, "row", x, cuts, results, args.pairs.m);
  HYPERKERN_REQUIRE(row_second.has_value() || !has_second(task), "task ", task_code, " needs row_second");
  if (has_second(task)) args.row_second = result(*row_second, "row_second", x, cuts, results, args.pairs.m);
  if (col.has_value()) {
    HYPERKERN_REQUIRE(!is_running(task), "a running maximum has no column sums");
    args.col = result(*col, "col", x, stripes * size.groups, args.pairs.batch, args.pairs.n);
  }
  HYPERKERN_REQUIRE(
      weights.has_value() == stores(task), "weights are given to the tasks that store them, and only to them");
  if (weights.has_value()) {
    HYPERKERN_REQUIRE(
        args.pairs.batch == x.size(0) && args.pairs.m == x.size(1) && args.pairs.n == y.size(1),
        "weights are stored of all rows and columns, not of sides");
    check_same_device(*weights, "weights", x);
    check_type(*weights, "weights", x.scalar_type());
    check_shape(*weights, "weights", x.size(0), x.size(1), y.size(1));
    args.weights = weights->mutable_data_ptr();
    HYPERKERN_REQUIRE(
        (y.size(1) < 2 || weights->stride(2) == 1) && weights->stride(1) * bytes % 16 == 0 &&
            weights->stride(0) * bytes % 16 == 0 && reinterpret_cast<uintptr_t>(args.weights) % 16 == 0 &&
            weights->stride(1) >= y.size(1),
        "weights must have rows that start at multiples of 16 bytes");
    args.weights_stride_b = weights->stride(0);
    args.weights_stride_m = weights->stride(1);
  }
  HYPERKERN_REQUIRE(
      schedule.cuts % size.cluster == 0, "cuts must be a multiple of the ", size.cluster,
      " blocks of threads of a cluster, got ", cuts);
  if (x.size(0) == 0 || schedule.blocks == 0) return;
  const DeviceGuard guard(x);
  const Stream stream = current_stream(x);
  with_operand(x, split, [&](auto type) { launch_sums<decltype(type)>(args, task, x_rows, y_rows, wgmma, stream); });
}

void contract(
    const Tensor& x, const Tensor& y, const OptionalTensor& row_terms, const OptionalTensor& col_terms,
    const OptionalTensor& row_ids, const OptionalTensor& col_ids, int64_t exclude, int64_t row_shift, int64_t views,
    const std::vector<int64_t>& sides, double scale, double offset, bool rounded, int64_t weight_code, bool split,
    double out_scale, const Tensor& grad, const Tensor& sum, const OptionalTensor& value) {
  check_operands(x, y);
  HYPERKERN_REQUIRE(weight_code >= 0 && weight_code <= 4, "weight must be between 0 and 4, got ", weight_code);
  const Weight weight = static_cast<Weight>(weight_code);
  HYPERKERN_REQUIRE(x.size(2) <= kMostContractDim, "D must be at most ", kMostContractDim, ", got ", x.size(2));
  const bool wgmma = takes_wgmma(x);
  const int bytes = x.scalar_type() == ScalarType::Float ? 4 : 2;
  const TileSize size = contract_tile(bytes, static_cast<int>(x.size(2)), weight, wgmma);
  ContractArgs args{};
  args.out_scale = static_cast<float>(out_scale);
  args.pairs = make_pairs(
      x, y, {row_terms, col_terms, row_ids, col_ids}, exclude, row_shift, views, scale, offset, rounded,
      kRowTerms[weight_code], kColTerms[weight_code], sides, size.cols, weight == Weight::kClasses);
  args.sides = make_sides(args.pairs, x, y, sides, weight);
  const int64_t results = set_grids(args, sides, size.rows);
  HYPERKERN_REQUIRE(
      weight == Weight::kExp || args.pairs.col_terms != nullptr, "weight ", weight_code, " needs col_terms");
  HYPERKERN_REQUIRE(!is_two(weight) || args.pairs.row_terms != nullptr, "weight ", weight_code, " needs row_terms");
  const Matrix x_rows = operand(x, "x"), y_rows = operand(y, "y");
  args.grad = result(grad, "grad", x, results, x.size(2));
  args.sum = result(sum, "sum", x, results);
  HYPERKERN_REQUIRE(value.has_value() || weight != Weight::kSoftplus, "softplus needs value");
  if (weight == Weight::kSoftplus) args.value = result(*value, "value", x, results);
  if (args.grid == 0) return;
  const DeviceGuard guard(x);
  const Stream stream = current_stream(x);
  with_operand(
      x, split, [&](auto type) { launch_contract<decltype(type)>(args, weight, x_rows, y_rows, wgmma, stream); });
}

}  // namespace hyperkern
