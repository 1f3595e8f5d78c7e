// Rows of logits -> statistics and the gradient of the loss, in place (loss_rows.h has the mathematics). One block per row.
//
// The row is read from global memory once where it fits into shared memory (`kept` columns); the rest is read again, mostly
// from the L2 cache. A copy of the row moves as many bytes, so copy bandwidth is the upper bound.
#include "cuda/loss_rows.h"

namespace {

using namespace rows_of_logits;

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
    if (threadIdx.x == 0) put_nothing(row, loss, top, log_total, correct, entropy);
    if (GRADIENT) zero<DZ, N>(dz, V, blockDim.x);
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
  mine = over_warp(mine);
  if (threadIdx.x % kWarp == 0) of_warp[threadIdx.x / kWarp] = mine;
  barrier("every warp's share of the row has arrived before it is added up, and the row read before it is overwritten");
  Online all = of_warp[0];
  for (unsigned warp = 1; warp < blockDim.x / kWarp; ++warp) all = merge(all, of_warp[warp]);
  const float log_of_total = logf(all.sum);
  if (threadIdx.x == 0) put(row, all, log_of_total, z_target, loss, top, log_total, correct, entropy);
  if (!GRADIENT) return;

  const Slope slope{all.top, log_of_total, 2.0f * z_loss * (all.top + log_of_total), load(scale + row), softcap,
                    column_of(target, V)};
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
  if (!load(valid + row)) return zero<DZ, N>(dz, V, blockDim.x);
  const float of_top = load(top + row), of_total = load(log_total + row);
  const Slope slope{of_top, of_total, 2.0f * z_loss * (of_top + of_total), load(scale + row), softcap,
                    column_of(load(targets + row), V)};
  overwrite<SOFTCAP, Z, DZ, N>(z, dz, 0, V, slope);
}

// ---- host ------------------------------------------------------------------------------------------------------------

// About four packs a thread, so that small vocabularies do not idle most of a block.
int threads_for(int64_t V, int N) {
  int threads = 128;
  while (threads < 512 && threads * N * 4 < V) threads *= 2;
  return threads;
}

// z (R, S), of which V <= S columns are logits -> loss, top, log_total, entropy (R,) float32 and correct (R,) bool, 0 where
// not valid; with `scale`, dz (R, S), which may be the memory of z. z_loss has no part in `loss`. softcap 0: none.
void loss_rows(const Tensor& z, const Tensor& dz, int64_t V, const Tensor& targets, const Tensor& valid, std::optional<Tensor> scale,
               const Tensor& loss, const Tensor& top, const Tensor& log_total, std::optional<Tensor> correct,
               std::optional<Tensor> entropy, double z_loss, double softcap) {
  const int64_t R = z.size(0);
  if (R == 0) return;
  check_logits(z, dz, V);
  check_rows(R, targets, valid, {&loss, &top, &log_total});
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
  check_rows(R, targets, valid, {&scale, &top, &log_total});
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
