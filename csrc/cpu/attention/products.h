// Products of small float32 matrices, out of registers: C (+)= A B.
//
// GCC's vector types: W floats a vector, R rows and two vectors of columns a tile. A's elements are broadcast, so A may have any
// strides; B is packed into panels of two vectors' width, a panel's rows one after the other.
#pragma once

#include "cpu/cpu.h"

#define INLINED inline __attribute__((always_inline))

namespace cpu {

template <int W>
struct Vector {
  typedef float type __attribute__((vector_size(4 * W), aligned(4), may_alias));
  typedef int32_t integers __attribute__((vector_size(4 * W), aligned(4), may_alias));
};

// Rows are padded to a multiple of this, for every R divides it.
constexpr int64_t kRows = 8;

// The sum, or the greatest, of a vector's lanes, by halves.
template <int W, typename Combine>
INLINED float reduced(typename Vector<W>::type lanes, const Combine& combine) {
  if constexpr (W == 1) {
    return lanes[0];
  } else {
    typename Vector<W / 2>::type halves[2];
    std::memcpy(halves, &lanes, sizeof(lanes));
    return reduced<W / 2>(combine(halves[0], halves[1]), combine);
  }
}

inline int64_t padded(int64_t size, int64_t multiple) { return (size + multiple - 1) / multiple * multiple; }

// A tile's columns: those of a panel.
template <int W>
constexpr int64_t panel() {
  return 2 * W;
}

// An (M, K) matrix at any strides.
struct Elements {
  const float* data;
  int64_t row, column;
};

template <int W, int R>
INLINED void tile(const Elements& a, const float* b, float* c, int64_t stride_c, int64_t K, bool add) {
  using Lanes = typename Vector<W>::type;
  Lanes sum[R][2];
  for (int r = 0; r < R; ++r)
    for (int n = 0; n < 2; ++n) sum[r][n] = add ? *reinterpret_cast<const Lanes*>(c + r * stride_c + n * W) : Lanes{};
  for (int64_t k = 0; k < K; ++k) {
    const Lanes first = *reinterpret_cast<const Lanes*>(b + k * 2 * W);
    const Lanes second = *reinterpret_cast<const Lanes*>(b + k * 2 * W + W);
    const float* column = a.data + k * a.column;
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) {
      const float value = column[r * a.row];
      sum[r][0] += value * first;
      sum[r][1] += value * second;
    }
  }
  for (int r = 0; r < R; ++r)
    for (int n = 0; n < 2; ++n) *reinterpret_cast<Lanes*>(c + r * stride_c + n * W) = sum[r][n];
}

// M is a multiple of kRows, N of the panel's width. b: panels of `height` rows, multiplied from `first` on. span(m): the columns
// [begin, end) beyond which rows m to m + R - 1 of A are zero.
template <int W, int R, typename Span>
INLINED void product(const Elements& a, const float* b, int64_t height, int64_t first, float* c, int64_t stride_c, int64_t M,
                     int64_t N, const Span& span, bool add) {
  for (int64_t m = 0; m < M; m += R) {
    const auto [begin, end] = span(m);
    const Elements rows{a.data + m * a.row + begin * a.column, a.row, a.column};
    const float* from = b + (first + begin) * panel<W>();
    for (int64_t n = 0; n < N; n += panel<W>()) tile<W, R>(rows, from + n * height, c + m * stride_c + n, stride_c, end - begin, add);
  }
}

// x (rows, columns) with adjacent columns -> panels of columns, the last one filled up with zeros.
template <int W>
INLINED void pack(const float* x, int64_t stride, int64_t rows, int64_t columns, float factor, float* out) {
  for (int64_t n = 0; n < columns; n += panel<W>()) {
    const int64_t count = std::min(panel<W>(), columns - n);
    for (int64_t r = 0; r < rows; ++r, out += panel<W>()) {
      for (int64_t i = 0; i < count; ++i) out[i] = factor * x[r * stride + n + i];
      for (int64_t i = count; i < panel<W>(); ++i) out[i] = 0.0f;
    }
  }
}

// Four rows of x -> four columns of out.
INLINED void transpose_four(const float* x, int64_t stride, int64_t columns, float* out, int64_t stride_out) {
  using Four = Vector<4>::type;
  int64_t c = 0;
  for (; c + 4 <= columns; c += 4) {
    Four row[4];
    for (int r = 0; r < 4; ++r) row[r] = *reinterpret_cast<const Four*>(x + r * stride + c);
    const Four a = __builtin_shufflevector(row[0], row[1], 0, 4, 1, 5), b = __builtin_shufflevector(row[2], row[3], 0, 4, 1, 5);
    const Four d = __builtin_shufflevector(row[0], row[1], 2, 6, 3, 7), e = __builtin_shufflevector(row[2], row[3], 2, 6, 3, 7);
    Four* columns_out[4];
    for (int k = 0; k < 4; ++k) columns_out[k] = reinterpret_cast<Four*>(out + (c + k) * stride_out);
    *columns_out[0] = __builtin_shufflevector(a, b, 0, 1, 4, 5);
    *columns_out[1] = __builtin_shufflevector(a, b, 2, 3, 6, 7);
    *columns_out[2] = __builtin_shufflevector(d, e, 0, 1, 4, 5);
    *columns_out[3] = __builtin_shufflevector(d, e, 2, 3, 6, 7);
  }
  for (; c < columns; ++c)
    for (int r = 0; r < 4; ++r) out[c * stride_out + r] = x[r * stride + c];
}

// pack of x transposed: panels of x's rows.
template <int W>
INLINED void pack_transposed(const float* x, int64_t stride, int64_t rows, int64_t columns, float* out) {
  for (int64_t n = 0; n < rows; n += panel<W>(), out += columns * panel<W>()) {
    const int64_t count = std::min(panel<W>(), rows - n);
    int64_t i = 0;
    for (; i + 4 <= count; i += 4) transpose_four(x + (n + i) * stride, stride, columns, out + i, panel<W>());
    for (; i < count; ++i)
      for (int64_t c = 0; c < columns; ++c) out[c * panel<W>() + i] = x[(n + i) * stride + c];
    for (int64_t c = 0; c < columns; ++c)
      for (int64_t rest = count; rest < panel<W>(); ++rest) out[c * panel<W>() + rest] = 0.0f;
  }
}

}  // namespace cpu
