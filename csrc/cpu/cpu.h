// Shared by the CPU's kernels: float32 only, threads of torch's pool, vectorised by the compiler.
//
// A function marked CLONED is compiled for several generations of x86-64 and the fastest supported one is chosen when the
// library is loaded, so that one build serves a cluster of different nodes. Loops marked `omp simd` may be vectorised although
// that changes the order of sums; the order is fixed for a given CPU.
#pragma once

#include "common/operators.h"

#include <algorithm>
#include <array>
#include <bit>
#include <cmath>
#include <cstdint>
#include <cstring>

#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)
#define CLONED __attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))
#else
#define CLONED
#endif

namespace cpu {

using operators::check_vector;
using operators::pointer;
using operators::ScalarType;
using operators::Tensor;

// exp(x) for x <= 0, within 2 ulp; 0 below -87. In a form that vectorises: x = n ln 2 + r, |r| <= ln 2 / 2, and
// exp(x) = 2^n exp(r) with Taylor's polynomial, whose 8th term is below 6e-9.
// Of a float, or of a vector of them with Int a vector of as many int32_t.
template <typename Float, typename Int>
inline __attribute__((always_inline)) Float exponential(Float x) {
  constexpr float kRounder = 12582912.0f;  // 1.5 * 2^23: what is added to it is rounded to an integer
  const Float shifted = x * 1.44269504088896341f + kRounder;
  const Float n = shifted - kRounder;
  const Float r = (x - n * 0.693145751953125f) - n * 1.42860682030941723e-6f;  // ln 2 in two parts: n times the first is exact
  Float p = 1.3814599603657884e-3f * r + 8.368717164654843e-3f;
  p = p * r + 4.166838805356467e-2f;
  p = p * r + 1.666652062936716e-1f;
  p = p * r + 4.999999344768402e-1f;
  p = p * r + 1.0f;
  p = p * r + 1.0f;
  const Int n_bits = std::bit_cast<Int>(shifted);  // its low bits are n
  const Float result = p * std::bit_cast<Float>((n_bits + 127) << 23);
  return x < -87.0f ? Float{} : result;  // a NaN stays one
}

inline float exp_negative(float x) { return exponential<float, int32_t>(x); }

// Four vectors' worth of maxima side by side: one maximum waits for the one before, and GCC leaves that loop scalar. NaNs are
// ignored.
inline float maximum(const float* values, int64_t count) {
  constexpr int kLanes = 64;
  float of_lane[kLanes];
  std::fill(of_lane, of_lane + kLanes, -INFINITY);
  int64_t i = 0;
  for (; i + kLanes <= count; i += kLanes)
    for (int lane = 0; lane < kLanes; ++lane)
      of_lane[lane] = of_lane[lane] < values[i + lane] ? values[i + lane] : of_lane[lane];
  for (; i < count; ++i) of_lane[0] = std::max(of_lane[0], values[i]);
  for (int width = kLanes / 2; width > 0; width /= 2)
    for (int lane = 0; lane < width; ++lane) of_lane[lane] = std::max(of_lane[lane], of_lane[lane + width]);
  return of_lane[0];
}

// The R pairs (x[i], x[i + R]) turned by their angles (back for sign -1) -> out, which may be x; the rest of D features copied.
inline __attribute__((always_inline)) void turn(const float* x, const float* cos, const float* sin, float sign, int64_t R,
                                                int64_t D, float* out) {
#pragma omp simd
  for (int64_t i = 0; i < R; ++i) {
    const float first = x[i], second = x[i + R], s = sign * sin[i];
    out[i] = first * cos[i] - second * s;
    out[i + R] = second * cos[i] + first * s;
  }
  if (x != out) std::copy(x + 2 * R, x + D, out + 2 * R);
}

// (rows, columns) float32 with adjacent columns.
inline void check_rows(const Tensor& tensor, int64_t rows, int64_t columns, const char* name) {
  CHECK_INPUT(tensor.dim() == 2 && tensor.size(0) == rows && tensor.size(1) >= columns &&
                      (tensor.stride(1) == 1 || tensor.size(1) == 1) && tensor.scalar_type() == ScalarType::Float,
                  "emergence_cpu: ", name, " must be float32 (", rows, ", ", columns, ") with adjacent columns");
}

// Rows of a result must not overlap: threads write them.
inline void check_apart(const Tensor& out) {
  CHECK_INPUT(out.size(0) < 2 || out.stride(0) >= out.size(1), "emergence_cpu: the result's rows overlap");
}

// Rows that are worth a thread: about 16k values.
inline int64_t grain(int64_t columns) { return std::max<int64_t>(1, (16 << 10) / std::max<int64_t>(1, columns)); }

}  // namespace cpu
