// Rows of logits -> loss, log-sum-exp, top-1, entropy, and the gradient of the loss: what the kernels share.
//
// With top = max_v z_v, e_v = exp(z_v - top), total = sum e_v and y the target:
//
//   loss       = (top - z_y) + log total        two small numbers where the model is confident; lse - z_y would cancel
//   entropy    = log total - sum e_v (z_v - top) / total         never negative: total >= 1, every summand <= 0
//   correct    = [z_y = top]                    no argmax is needed; a tie with the target counts
//   dz_v       = w * (p_v (1 + 2 c lse) - [v = y]),  p = e / total,  of  w * (loss + c * lse^2), lse = top + log total
//   dz_y       = w * ((p_y - 1) + 2 c lse p_y)  in float32 before any rounding: p - 1 of a rounded p is all error
//
// Top and total come from one sweep (Milakov and Gimelshein, arXiv 1805.02867): a thread keeps the maximum m so far, and
// s = sum exp(z - m) and d = sum exp(z - m) (z - m). A larger maximum m' scales them by f = exp(m - m'):
//
//   s' = s f,   d' = (d + s (m - m')) f         since z - m' = (z - m) + (m - m')
//
// Every sum has a fixed order: the same bits in every run.
#pragma once

#include <initializer_list>

#include "common/torch_glue.h"

namespace rows_of_logits {

using namespace portable;

// Partial statistics of a row, of a thread, a warp or the block.
struct Online {
  float top, sum, dot;
};

__device__ __forceinline__ Online merge(Online a, Online b) {
  const float top = fmaxf(a.top, b.top);
  const float fa = exp_fast(a.top - top), fb = exp_fast(b.top - top);
  return {top, a.sum * fa + b.sum * fb, (a.dot + a.sum * (a.top - top)) * fa + (b.dot + b.sum * (b.top - top)) * fb};
}

// Over the lanes of a warp; all get it.
__device__ __forceinline__ Online over_warp(Online mine) {
#pragma unroll
  for (int bits = kWarp / 2; bits > 0; bits /= 2)
    mine = merge(mine, {from_lane_xor(mine.top, bits), from_lane_xor(mine.sum, bits), from_lane_xor(mine.dot, bits)});
  return mine;
}

template <int N>
__device__ __forceinline__ void add(Online& o, const float (&z)[N]) {
  float top = z[0];
#pragma unroll
  for (int i = 1; i < N; ++i) top = fmaxf(top, z[i]);
  if (top > o.top) {
    const float gap = o.top - top, factor = exp_fast(gap);
    o.dot = (o.dot + o.sum * gap) * factor;
    o.sum *= factor;
    o.top = top;
  }
#pragma unroll
  for (int i = 0; i < N; ++i) {
    const float t = z[i] - o.top, e = exp_fast(t);
    o.sum += e;
    o.dot += e * t;
  }
}

// A row's results; correct and entropy may be null.
__device__ __forceinline__ void put(int64_t row, const Online& all, float log_of_total, float z_target, float* loss, float* top,
                                    float* log_total, bool* correct, float* entropy) {
  store(loss + row, (all.top - z_target) + log_of_total);
  store(top + row, all.top);
  store(log_total + row, log_of_total);
  if (correct) store(correct + row, z_target == all.top);
  if (entropy) store(entropy + row, log_of_total - all.dot / all.sum);
}

// Those of an ignored row.
__device__ __forceinline__ void put_nothing(int64_t row, float* loss, float* top, float* log_total, bool* correct, float* entropy) {
  store(loss + row, 0.0f);
  store(top + row, 0.0f);
  store(log_total + row, 0.0f);
  if (correct) store(correct + row, false);
  if (entropy) store(entropy + row, 0.0f);
}

// softcap * tanh(z / softcap); 0 stands for none.
template <bool SOFTCAP>
__device__ __forceinline__ float capped(float z, float softcap) {
  return SOFTCAP ? softcap * tanhf(z / softcap) : z;
}

// A pack of a row as float32, kLow beyond its end; WHOLE: the pack does not reach beyond.
template <bool SOFTCAP, bool WHOLE, typename Z, int N>
__device__ __forceinline__ void widen(const Pack<Z, N>& pack, int column, int V, float softcap, float* z) {
#pragma unroll
  for (int i = 0; i < N; ++i) z[i] = WHOLE || column + i < V ? capped<SOFTCAP>(to_float(pack.v[i]), softcap) : kLow;
}

// The same where that is not known: a test a pack, not one a logit.
template <bool SOFTCAP, typename Z, int N>
__device__ __forceinline__ void widen(const Pack<Z, N>& pack, int column, int V, float softcap, float* z) {
  if (column + N <= V)
    widen<SOFTCAP, true>(pack, column, V, softcap, z);
  else
    widen<SOFTCAP, false>(pack, column, V, softcap, z);
}

// A target as a column; -1 where it is out of range.
__device__ __forceinline__ int column_of(int64_t target, int V) { return target >= 0 && target < V ? int(target) : -1; }

// The factors of a logit's gradient.
struct Slope {
  float top, log_total, pull, scale, softcap;
  int target;  // -1: none of the columns
};

template <bool SOFTCAP, bool WHOLE, typename Z, typename DZ, int N>
__device__ __forceinline__ Pack<DZ, N> gradient(const Pack<Z, N>& pack, int column, int V, const Slope& s) {
  float z[N];
  widen<SOFTCAP, WHOLE>(pack, column, V, s.softcap, z);
  const float log2_total = s.log_total * kLog2e, factor = s.scale + s.pull * s.scale;
  float dz[N];
#pragma unroll
  for (int i = 0; i < N; ++i) dz[i] = exp2_fast((z[i] - s.top) * kLog2e - log2_total) * factor;
  if (unsigned(s.target - column) < unsigned(N)) {
#pragma unroll
    for (int i = 0; i < N; ++i) {
      const float p = exp2_fast((z[i] - s.top) * kLog2e - log2_total);
      if (column + i == s.target) dz[i] = ((p - 1.0f) + s.pull * p) * s.scale;
    }
  }
  if (SOFTCAP) {  // d capped / d z = 1 - tanh^2
#pragma unroll
    for (int i = 0; i < N; ++i) {
      const float t = z[i] / s.softcap;
      dz[i] *= 1.0f - t * t;
    }
  }
  Pack<DZ, N> out;
#pragma unroll
  for (int i = 0; i < N; ++i) out.v[i] = from_float<DZ>(WHOLE || column + i < V ? dz[i] : 0.0f);
  return out;
}

template <bool SOFTCAP, typename Z, typename DZ, int N>
__device__ __forceinline__ Pack<DZ, N> gradient(const Pack<Z, N>& pack, int column, int V, const Slope& s) {
  return column + N <= V ? gradient<SOFTCAP, true, Z, DZ, N>(pack, column, V, s)
                         : gradient<SOFTCAP, false, Z, DZ, N>(pack, column, V, s);
}

template <typename DZ, int N>
__device__ __forceinline__ void zero(DZ* dz, int V, int threads) {
  Pack<DZ, N> none;
#pragma unroll
  for (int i = 0; i < N; ++i) none.v[i] = from_float<DZ>(0.0f);
  for (int column = threadIdx.x * N; column < V; column += threads * N)
    store(reinterpret_cast<Pack<DZ, N>*>(dz + column), none);
}

// ---- host ------------------------------------------------------------------------------------------------------------

using glue::Tensor;

inline void check_logits(const Tensor& z, const Tensor& dz, int64_t V) {
  const int64_t R = z.size(0), packed = 16 / static_cast<int64_t>(z.element_size());
  const auto rows_of_packs = [&](const Tensor& t) {
    return t.dim() == 2 && t.size(0) == R && t.size(1) >= (V + packed - 1) / packed * packed && t.stride(1) == 1 &&
           (R < 2 || t.stride(0) % packed == 0) && glue::aligned(t.data_ptr(), 16);
  };
  CHECK_INPUT(V > 0 && V < (int64_t(1) << 31) - (1 << 16) && rows_of_packs(z) && rows_of_packs(dz),
                  "emergence_cuda: logits and their gradients must be (rows, vocabulary rounded up to 16 bytes), adjacent "
                  "columns, rows at multiples of 16 bytes");
}

inline void check_rows(int64_t R, const Tensor& targets, const Tensor& valid, std::initializer_list<const Tensor*> statistics) {
  glue::check_vector(targets, R, glue::ScalarType::Long, "targets");
  glue::check_vector(valid, R, glue::ScalarType::Bool, "valid");
  for (const Tensor* row : statistics) glue::check_vector(*row, R, glue::ScalarType::Float, "statistics");
}

// Gradients are as wide as the logits, or 16 bits beside float32 logits.
template <typename Z, typename F>
void by_gradient_type(const Tensor& dz, F&& f) {
  if (dz.scalar_type() == glue::scalar_type<Z>::value) return f(Z{});
  if constexpr (sizeof(Z) == 4) {
    if (dz.scalar_type() == glue::ScalarType::BFloat16) return f(bf16{});
    if (dz.scalar_type() == glue::ScalarType::Half) return f(f16{});
  }
  CHECK_INPUT(false, "emergence_cuda: gradients of logits must have their type, or 16 bits beside float32");
}

}  // namespace rows_of_logits
