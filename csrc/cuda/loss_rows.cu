// Rows of logits -> loss, log-sum-exp, top-1, entropy, and the gradient of the loss, in place. One block per row.
//
// With top = max_v z_v, e_v = exp(z_v - top), total = sum e_v and y the target:
//
//   loss       = (top - z_y) + log total        two small numbers where the model is confident; lse - z_y would cancel
//   entropy    = log total - sum e_v (z_v - top) / total
//   correct    = [z_y = top]                    no argmax is needed; a tie with the target counts
//   dz_v       = w * (p_v (1 + 2 c lse) - [v = y]),  p = e / total,  of  w * (loss + c * lse^2), lse = top + log total
//   dz_y       = w * ((p_y - 1) + 2 c lse p_y)  in float32 before any rounding: p - 1 of a rounded p is all error
//
// Top and total come from one sweep (Milakov and Gimelshein, arXiv 1805.02867): a thread keeps the maximum m so far, and
// s = sum exp(z - m) and d = sum exp(z - m) (z - m). A larger maximum m' scales them by f = exp(m - m'):
//
//   s' = s f,   d' = (d + s (m - m')) f         since z - m' = (z - m) + (m - m')
//
// The row is read from global memory once where it fits into shared memory (`kept` columns); the rest is read again, mostly
// from the L2 cache. A copy of the row moves as many bytes, so copy bandwidth is the upper bound.
//
// Every sum has a fixed order: the same bits in every run.

#include "common/torch_glue.h"

using namespace portable;

namespace {

// Partial statistics of a row, of a thread, a warp or the block.
struct Online {
  float top, sum, dot;
};

__device__ __forceinline__ Online merge(Online a, Online b) {
  const float top = fmaxf(a.top, b.top);
  const float fa = exp_fast(a.top - top), fb = exp_fast(b.top - top);
  return {top, a.sum * fa + b.sum * fb, (a.dot + a.sum * (a.top - top)) * fa + (b.dot + b.sum * (b.top - top)) * fb};
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

// softcap * tanh(z / softcap); 0 stands for none.
template <bool SOFTCAP>
__device__ __forceinline__ float capped(float z, float softcap) {
  return SOFTCAP ? softcap * tanhf(z / softcap) : z;
}

// A pack of a row as float32, kLow beyond its end.
template <bool SOFTCAP, typename Z, int N>
__device__ __forceinline__ void widen(const Pack<Z, N>& pack, int column, int V, float softcap, float (&z)[N]) {
#pragma unroll
  for (int i = 0; i < N; ++i) z[i] = column + i < V ? capped<SOFTCAP>(to_float(pack.v[i]), softcap) : kLow;
}

// The factors of a logit's gradient.
struct Slope {
  float top, log_total, pull, scale, softcap;
  int64_t target;
};

template <bool SOFTCAP, typename Z, typename DZ, int N>
__device__ __forceinline__ Pack<DZ, N> gradient(const Pack<Z, N>& pack, int column, int V, const Slope& s) {
  float z[N];
  widen<SOFTCAP>(pack, column, V, s.softcap, z);
  Pack<DZ, N> out;
#pragma unroll
  for (int i = 0; i < N; ++i) {
    const float p = exp_fast((z[i] - s.top) - s.log_total);
    float dz = ((column + i == s.target ? p - 1.0f : p) + s.pull * p) * s.scale;
    if (SOFTCAP) {  // d capped / d z = 1 - tanh^2
      const float t = z[i] / s.softcap;
      dz *= 1.0f - t * t;
    }
    out.v[i] = from_float<DZ>(column + i < V ? dz : 0.0f);
  }
  return out;
}

// The gradient of the columns from `first` on, read from global memory and written over it. Gradients may be narrower than
// logits, and then column c lies where column c / 2 of the logits lay, which another thread may not have read yet. In an
// iteration all read, then all write; writes are at or before the iteration's reads.
template <bool SOFTCAP, typename Z, typename DZ, int N>
__device__ __forceinline__ void overwrite(const Z* z, DZ* dz, int first, int V, const Slope& s) {
  const int step = blockDim.x * N;
  for (int start = first; start < V; start += step) {
    const int column = start + threadIdx.x * N;
    Pack<Z, N> pack{};
    if (column < V) pack = load(reinterpret_cast<const Pack<Z, N>*>(z + column));
    if (sizeof(DZ) < sizeof(Z)) barrier("logits read before narrower gradients overwrite them");
    if (column < V) store(reinterpret_cast<Pack<DZ, N>*>(dz + column), gradient<SOFTCAP, Z, DZ, N>(pack, column, V, s));
  }
}

template <typename DZ, int N>
__device__ __forceinline__ void zero(DZ* dz, int V) {
  Pack<DZ, N> none;
#pragma unroll
  for (int i = 0; i < N; ++i) none.v[i] = from_float<DZ>(0.0f);
  for (int column = threadIdx.x * N; column < V; column += blockDim.x * N)
    store(reinterpret_cast<Pack<DZ, N>*>(dz + column), none);
}

// Rows are `stride` elements apart, 16-byte aligned, and reach to a whole pack: what lies beyond V is read, and zeroed.
// scale: w of each row, or null: statistics only. kept: columns held in shared memory, a multiple of blockDim.x * N.
template <typename Z, typename DZ, bool SOFTCAP, bool GRADIENT>
__global__ void __launch_bounds__(1024) statistics_kernel(
    const Z* z, DZ* dz, int64_t stride_z, int64_t stride_dz, const int64_t* targets, const bool* valid, const float* scale,
    float* loss, float* top, float* log_total, bool* correct, float* entropy, int V, int kept, float z_loss, float softcap) {
  constexpr int N = 16 / sizeof(Z);
  using Logits = Pack<Z, N>;
  DYNAMIC_SHARED(Logits, held);
  SHARED(Online, of_warp, 32);
  const int64_t row = blockIdx.x;
  z += row * stride_z;
  if (GRADIENT) dz += row * stride_dz;
  if (!load(valid + row)) {
    if (threadIdx.x == 0) {
      store(loss + row, 0.0f);
      store(top + row, 0.0f);
      store(log_total + row, 0.0f);
      if (correct) store(correct + row, false);
      if (entropy) store(entropy + row, 0.0f);
    }
    if (GRADIENT) zero<DZ, N>(dz, V);
    return;
  }
  const int64_t target = load(targets + row);
  // Read before anything is overwritten. A target out of range gives an infinite loss and no access out of bounds.
  const bool known = target >= 0 && target < V;
  const float z_target = known ? capped<SOFTCAP>(to_float(load(z + target)), softcap) : -INFINITY;

  Online mine{kLow, 0.0f, 0.0f};
  const int step = blockDim.x * N;
#pragma unroll 4
  for (int column = threadIdx.x * N; column < V; column += step) {
    const Logits pack = load(reinterpret_cast<const Logits*>(z + column));
    if (GRADIENT && column < kept) held[column / N] = pack;  // read back by the thread that wrote it
    float wide[N];
    widen<SOFTCAP>(pack, column, V, softcap, wide);
    add(mine, wide);
  }
#pragma unroll
  for (int bits = kWarp / 2; bits > 0; bits /= 2)
    mine = merge(mine, {from_lane_xor(mine.top, bits), from_lane_xor(mine.sum, bits), from_lane_xor(mine.dot, bits)});
  if (threadIdx.x % kWarp == 0) of_warp[threadIdx.x / kWarp] = mine;
  barrier("every warp's share of the row has arrived before it is added up, and the row read before it is overwritten");
  Online all = of_warp[0];
  for (unsigned warp = 1; warp < blockDim.x / kWarp; ++warp) all = merge(all, of_warp[warp]);
  const float log_of_total = logf(all.sum);
  if (threadIdx.x == 0) {
    store(loss + row, (all.top - z_target) + log_of_total);
    store(top + row, all.top);
    store(log_total + row, log_of_total);
    if (correct) store(correct + row, z_target == all.top);
    if (entropy) store(entropy + row, fmaxf(log_of_total - all.dot / all.sum, 0.0f));
  }
  if (!GRADIENT) return;

  const Slope slope{all.top, log_of_total, 2.0f * z_loss * (all.top + log_of_total), load(scale + row), softcap, target};
  for (int column = threadIdx.x * N; column < V && column < kept; column += step)
    store(reinterpret_cast<Pack<DZ, N>*>(dz + column), gradient<SOFTCAP, Z, DZ, N>(held[column / N], column, V, slope));
  overwrite<SOFTCAP, Z, DZ, N>(z, dz, kept, V, slope);
}

// The gradient, from given top and log total (the logits were recomputed).
template <typename Z, typename DZ, bool SOFTCAP>
__global__ void __launch_bounds__(1024) gradient_kernel(
    const Z* z, DZ* dz, int64_t stride_z, int64_t stride_dz, const int64_t* targets, const bool* valid, const float* scale,
    const float* top, const float* log_total, int V, float z_loss, float softcap) {
  constexpr int N = 16 / sizeof(Z);
  const int64_t row = blockIdx.x;
  z += row * stride_z;
  dz += row * stride_dz;
  if (!load(valid + row)) return zero<DZ, N>(dz, V);
  const float of_top = load(top + row), of_total = load(log_total + row);
  const Slope slope{of_top, of_total, 2.0f * z_loss * (of_top + of_total), load(scale + row), softcap, load(targets + row)};
  overwrite<SOFTCAP, Z, DZ, N>(z, dz, 0, V, slope);
}

// ---- host ------------------------------------------------------------------------------------------------------------

using glue::Tensor;

// About four packs a thread, so that small vocabularies do not idle most of a block.
int threads_for(int64_t V, int N) {
  int threads = 128;
  while (threads < 512 && threads * N * 4 < V) threads *= 2;
  return threads;
}

void check_logits(const Tensor& z, const Tensor& dz, int64_t V) {
  const int64_t R = z.size(0), packed = 16 / static_cast<int64_t>(z.element_size());
  const auto rows_of_packs = [&](const Tensor& t) {
    return t.dim() == 2 && t.size(0) == R && t.size(1) >= (V + packed - 1) / packed * packed && t.stride(1) == 1 &&
           (R < 2 || t.stride(0) % packed == 0) && glue::aligned(t.data_ptr(), 16);
  };
  CHECK_INPUT(V > 0 && V < (int64_t(1) << 31) - (1 << 16) && rows_of_packs(z) && rows_of_packs(dz),
                  "emergence_cuda: logits and their gradients must be (rows, vocabulary rounded up to 16 bytes), adjacent "
                  "columns, rows at multiples of 16 bytes");
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

// z (R, S), of which V <= S columns are logits -> loss, top, log_total, entropy (R,) float32 and correct (R,) bool, 0 where
// not valid; with `scale`, dz (R, S), which may be the memory of z. z_loss has no part in `loss`. softcap 0: none.
void loss_rows(const Tensor& z, const Tensor& dz, int64_t V, const Tensor& targets, const Tensor& valid, std::optional<Tensor> scale,
               const Tensor& loss, const Tensor& top, const Tensor& log_total, std::optional<Tensor> correct,
               std::optional<Tensor> entropy, double z_loss, double softcap) {
  const int64_t R = z.size(0);
  if (R == 0) return;
  check_logits(z, dz, V);
  glue::check_vector(targets, R, glue::ScalarType::Long, "targets");
  glue::check_vector(valid, R, glue::ScalarType::Bool, "valid");
  for (const Tensor* out : {&loss, &top, &log_total}) glue::check_vector(*out, R, glue::ScalarType::Float, "statistics");
  if (correct) glue::check_vector(*correct, R, glue::ScalarType::Bool, "correct");
  if (entropy) glue::check_vector(*entropy, R, glue::ScalarType::Float, "entropy");
  if (scale) glue::check_vector(*scale, R, glue::ScalarType::Float, "scale");
  CHECK_INPUT(!(scale && softcap != 0.0), "emergence_cuda: a softcap with the gradient in one sweep is not offered");
  glue::by_type(z, [&](auto of_z) {
    using Z = decltype(of_z);
    constexpr int N = 16 / sizeof(Z);
    const int threads = threads_for(V, N);
    // Two blocks a multiprocessor: one loads while the other writes. 2 KB are left for static shared memory.
    const int64_t room = glue::shared_bytes_per_multiprocessor(z.get_device_index()) / 2 - (2 << 10);
    const int64_t step = int64_t(threads) * N;
    const int64_t kept = scale ? std::min((V + step - 1) / step, room / int64_t(step * sizeof(Z))) * step : 0;
    const size_t shared = kept * sizeof(Z);
    auto run = [&](auto kernel, auto of_dz) {
      using DZ = decltype(of_dz);
      glue::launch(kernel, dim3(R), dim3(threads), shared, z,
                   {&z, &dz, &targets, &valid, glue::given(scale), &loss, &top, &log_total, glue::given(correct),
                    glue::given(entropy)},
                   glue::pointer<Z>(z), glue::pointer<DZ>(dz), z.stride(0), dz.stride(0), glue::pointer<int64_t>(targets),
                   glue::pointer<bool>(valid), glue::pointer<float>(scale), glue::pointer<float>(loss),
                   glue::pointer<float>(top), glue::pointer<float>(log_total), glue::pointer<bool>(correct),
                   glue::pointer<float>(entropy), static_cast<int>(V), static_cast<int>(kept), static_cast<float>(z_loss),
                   static_cast<float>(softcap));
    };
    if (scale)
      by_gradient_type<Z>(dz, [&](auto of_dz) { run(&statistics_kernel<Z, decltype(of_dz), false, true>, of_dz); });
    else if (softcap != 0.0)
      run(&statistics_kernel<Z, Z, true, false>, Z{});
    else
      run(&statistics_kernel<Z, Z, false, false>, Z{});
  });
}

// z (R, S), top, log_total, scale (R,) float32 -> dz (R, S) of sum scale * (loss + z_loss * lse^2), which may be the memory
// of z; zeros where not valid.
void loss_rows_gradient(const Tensor& z, const Tensor& dz, int64_t V, const Tensor& targets, const Tensor& valid, const Tensor& scale,
                        const Tensor& top, const Tensor& log_total, double z_loss, double softcap) {
  const int64_t R = z.size(0);
  if (R == 0) return;
  check_logits(z, dz, V);
  glue::check_vector(targets, R, glue::ScalarType::Long, "targets");
  glue::check_vector(valid, R, glue::ScalarType::Bool, "valid");
  for (const Tensor* in : {&scale, &top, &log_total}) glue::check_vector(*in, R, glue::ScalarType::Float, "statistics");
  glue::by_type(z, [&](auto of_z) {
    using Z = decltype(of_z);
    by_gradient_type<Z>(dz, [&](auto of_dz) {
      using DZ = decltype(of_dz);
      auto run = [&](auto kernel) {
        glue::launch(kernel, dim3(R), dim3(threads_for(V, 16 / sizeof(Z))), 0, z,
                     {&z, &dz, &targets, &valid, &scale, &top, &log_total}, glue::pointer<Z>(z), glue::pointer<DZ>(dz),
                     z.stride(0), dz.stride(0), glue::pointer<int64_t>(targets), glue::pointer<bool>(valid),
                     glue::pointer<float>(scale), glue::pointer<float>(top), glue::pointer<float>(log_total),
                     static_cast<int>(V), static_cast<float>(z_loss), static_cast<float>(softcap));
      };
      if (softcap != 0.0)
        run(&gradient_kernel<Z, DZ, true>);
      else
        run(&gradient_kernel<Z, DZ, false>);
    });
  });
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(emergence_cuda, library) {
  library.def(LOSS_ROWS);
  library.def(LOSS_ROWS_GRADIENT);
}

STABLE_TORCH_LIBRARY_IMPL(emergence_cuda, KERNELS_DEVICE, library) {
  library.impl("loss_rows", TORCH_BOX(&loss_rows));
  library.impl("loss_rows_gradient", TORCH_BOX(&loss_rows_gradient));
}
