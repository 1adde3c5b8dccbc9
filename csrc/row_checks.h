// What the row-wise operators ask of tensors of rows, and the piece of a row that suits them.
#pragma once

#include "checks.h"
#include "rows.cuh"

namespace hyperkern {

inline Element element_of(const Tensor& x, const char* name) {
  switch (x.scalar_type()) {
    case ScalarType::Float: return Element::kFloat32;
    case ScalarType::BFloat16: return Element::kBFloat16;
    case ScalarType::Half: return Element::kFloat16;
    default: fail(name, " must be bfloat16, float16 or float32, got ", name_of(x.scalar_type()));
  }
}

inline int bytes_of(Element type) { return type == Element::kFloat32 ? 4 : 2; }

inline bool is_aligned(const void* data, Element type) {
  return reinterpret_cast<uintptr_t>(data) % (4 * bytes_of(type)) == 0;
}

// Four neighbours at a time, as long as every tensor allows it.
inline void restrict_access(Access& access, const InputRows& rows) {
  access.vector = access.vector && access.dim % 4 == 0 && rows.stride_d == 1 && rows.stride_m % 4 == 0 &&
                  rows.stride_b % 4 == 0 && is_aligned(rows.data, rows.type);
}

inline void restrict_access(Access& access, const OutputRows& rows) {
  access.vector = access.vector && rows.width % 4 == 0 && is_aligned(rows.data, rows.type);
}

inline InputRows input_rows(const Tensor& x, const char* name) {
  HYPERKERN_REQUIRE(x.dim() == 3, name, " must have shape (batch, rows, D), got ", shape_of(x));
  return {x.const_data_ptr(), element_of(x, name), x.stride(0), x.stride(1), x.stride(2)};
}

// Features are (rows, D) or (batch, rows, D), all of a call alike.
inline InputRows feature_rows(const Tensor& x, const char* name) {
  if (x.dim() != 2) return input_rows(x, name);
  return {x.const_data_ptr(), element_of(x, name), 0, x.stride(0), x.stride(1)};
}

inline int64_t dim_of(const Tensor& x) { return x.size(x.dim() - 1); }

// Raises unless there are so many rows of features like those of x.
inline void check_features(const Tensor& rows, const char* name, const Tensor& x, int64_t count) {
  check_same_device(rows, name, x);
  if (x.dim() == 2) return check_shape(rows, name, count, dim_of(x));
  check_shape(rows, name, x.size(0), count, dim_of(x));
}

inline OutputRows output_rows(const Tensor& x, const char* name) {
  HYPERKERN_REQUIRE(x.is_contiguous(), name, " must be contiguous");
  return {x.mutable_data_ptr(), element_of(x, name), static_cast<int>(x.size(x.dim() - 1))};
}

inline const float* contiguous_input(const Tensor& x, const char* name, const Tensor& as) {
  check_same_device(x, name, as);
  check_type(x, name, ScalarType::Float);
  HYPERKERN_REQUIRE(x.is_contiguous(), name, " must be contiguous");
  return static_cast<const float*>(x.const_data_ptr());
}

inline Access access_of(const Tensor& x) {
  HYPERKERN_REQUIRE(x.size(2) <= INT32_MAX - 1024, "D must be at most 2^31 - 1025, got ", x.size(2));
  return {static_cast<int>(x.size(2)), true};
}

inline int row_blocks(int64_t problems, int64_t rows) {
  const int64_t blocks = (rows + kRowWarps - 1) / kRowWarps * problems;
  HYPERKERN_REQUIRE(blocks <= INT32_MAX, "there are too many rows: ", problems, " times ", rows);
  return static_cast<int>(blocks);
}

// The smallest piece that holds a row, of at most `kMostChunks` chunks.
template <int kMostChunks = 8, class Function>
void with_piece(int dim, const Function& function) {
  if (dim <= Piece<1, false>::kElements) return function(Piece<1, false>{});
  if (dim <= Piece<2, false>::kElements) return function(Piece<2, false>{});
  if (dim <= Piece<4, false>::kElements) return function(Piece<4, false>{});
  if constexpr (kMostChunks >= 8) {
    if (dim <= Piece<8, false>::kElements) return function(Piece<8, false>{});
  }
  function(Piece<4, true>{});
}

}  // namespace hyperkern
