// The operators behind the schemas of ops.cpp.
#pragma once

#include <torch/csrc/stable/tensor.h>

#include <optional>
#include <tuple>
#include <vector>

namespace hyperkern {

using OptionalTensor = std::optional<torch::stable::Tensor>;

// Rows and columns of a tile, the groups of warps with column sums of their own, and the blocks of a cluster, which
// divide cuts. `kernel`: 0 sums, 1 contract, 2 stored weights.
std::tuple<int64_t, int64_t, int64_t, int64_t> tile(
    const torch::stable::Tensor& x, int64_t kernel, int64_t dim, int64_t weight);

// Whether the library was built for a compute capability, 90 for 9.0.
bool runs_on(int64_t capability);

// Threads and dynamic shared memory of a block and the buffers of its ring, for operands of so many bytes: for reports
// and tests. `kind` is a weight of contract, a task of sums; `wgmma` names the kernels for sm_90a.
std::tuple<int64_t, int64_t, int64_t> block(int64_t kernel, int64_t bytes, int64_t dim, int64_t kind, bool wgmma);

// Sums of rows and columns, or weights: see sums_epilogue.cuh.
void sums(
    const torch::stable::Tensor& x, const torch::stable::Tensor& y, const OptionalTensor& row_terms,
    const OptionalTensor& col_terms, const OptionalTensor& row_ids, const OptionalTensor& col_ids, int64_t exclude,
    int64_t row_shift, int64_t views, const std::vector<int64_t>& sides, double scale, double offset, bool rounded,
    int64_t task_code, bool split, bool triangle, int64_t stripes, int64_t cuts, const torch::stable::Tensor& row,
    const OptionalTensor& row_second, const OptionalTensor& col, const OptionalTensor& weights);

// Weighted sums of rows in one pass: see contract_results.cuh.
void contract(
    const torch::stable::Tensor& x, const torch::stable::Tensor& y, const OptionalTensor& row_terms,
    const OptionalTensor& col_terms, const OptionalTensor& row_ids, const OptionalTensor& col_ids, int64_t exclude,
    int64_t row_shift, int64_t views, const std::vector<int64_t>& sides, double scale, double offset, bool rounded,
    int64_t weight_code, bool split, double out_scale, const torch::stable::Tensor& grad,
    const torch::stable::Tensor& sum, const OptionalTensor& value);

// Unit rows (batch, rows, D) of x and 1 / max(length, eps).
void normalize_rows(
    const torch::stable::Tensor& x, double eps, const torch::stable::Tensor& unit, const torch::stable::Tensor& rstd);

// dx = rstd (grad - <grad, unit> unit), finite where rstd is 1 / eps.
void normalize_rows_backward(
    const torch::stable::Tensor& grad, const torch::stable::Tensor& unit, const torch::stable::Tensor& rstd, double eps,
    const torch::stable::Tensor& dx);

// Alignment + uniformity of two views, before the pairs, after them, and backward: see align_uniform.cuh.
void prepare_views(
    const torch::stable::Tensor& x, const torch::stable::Tensor& y, double eps, double alpha,
    const torch::stable::Tensor& operand, const torch::stable::Tensor& align, const torch::stable::Tensor& zeros);

void combine(
    const torch::stable::Tensor& align, const torch::stable::Tensor& zeros, const torch::stable::Tensor& sums, double t,
    double align_weight, double uniform_weight, const torch::stable::Tensor& total, const torch::stable::Tensor& loss,
    const torch::stable::Tensor& alignment, const torch::stable::Tensor& uniformity);

void finish_views(
    const torch::stable::Tensor& x, const torch::stable::Tensor& y, const torch::stable::Tensor& grad,
    const torch::stable::Tensor& total, const OptionalTensor& of_loss, const OptionalTensor& of_alignment,
    const OptionalTensor& of_uniformity, double eps, double alpha, double t, double align_weight, double uniform_weight,
    const torch::stable::Tensor& dx, const torch::stable::Tensor& dy);

// Whole losses, but for the pairs: before them, between their sums and their weights, behind them. See loss_rows.cuh,
// loss_head.cuh.
void prepare_loss(
    const torch::stable::Tensor& x, const OptionalTensor& y, const OptionalTensor& queue, double eps, bool together,
    const OptionalTensor& scale, bool reciprocal, const OptionalTensor& bias, double bias_value, double unit,
    const torch::stable::Tensor& operand, const OptionalTensor& positives, const OptionalTensor& zeros,
    const torch::stable::Tensor& counted, const OptionalTensor& cleared, const OptionalTensor& terms,
    const OptionalTensor& kept_x, const OptionalTensor& kept_y, const OptionalTensor& kept_scale,
    const OptionalTensor& labels, const OptionalTensor& queue_labels, const OptionalTensor& classes);

void head(
    int64_t head_code, int64_t n, int64_t further, const torch::stable::Tensor& row, const OptionalTensor& top,
    const OptionalTensor& second, const std::vector<int64_t>& places, const OptionalTensor& positives, bool together,
    const OptionalTensor& scale, double scale_value, bool reciprocal, const OptionalTensor& bias, double bias_value,
    double unit, double share, double sigma, double gain, double t, const OptionalTensor& zeros,
    const OptionalTensor& terms, const OptionalTensor& weights, const OptionalTensor& total,
    const torch::stable::Tensor& loss, const torch::stable::Tensor& partials, const torch::stable::Tensor& counted);

void finish_loss(
    const torch::stable::Tensor& x, const OptionalTensor& y, const OptionalTensor& queue, bool together,
    const OptionalTensor& scale, double scale_value, bool reciprocal, const torch::stable::Tensor& grad,
    const OptionalTensor& sum, const std::vector<int64_t>& places, const OptionalTensor& weights,
    const OptionalTensor& total, const torch::stable::Tensor& of_loss, double share, double of_pairs,
    double of_zero_row, double eps, const OptionalTensor& dx, const OptionalTensor& dy, const OptionalTensor& dqueue,
    const OptionalTensor& of_scale, const OptionalTensor& of_bias, const OptionalTensor& partials,
    const torch::stable::Tensor& counted);

#ifdef HYPERKERN_EMULATED
// What the emulator is to be: the portable kernels (80) or those of sm_90a (90), its timing, whether it launches.
void emulate(int64_t capability, bool products_first, bool launches);
#endif

}  // namespace hyperkern
