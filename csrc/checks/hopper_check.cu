// One product by TMA and wgmma in each form that the kernels use: for tests of hopper.h, in the emulator and on a GPU.
//
// d (64, N) = a b, or d = a b + 2 d: a (64, 64) or, transposed, (64 k, 64); b (N, 64 k) or, transposed, (64 k, N), N = 64,
// 128 or 256. a gets into shared memory by a copy, or by threads' stores, or it is loaded into registers.

#include "common/tensor_map.h"
#include "common/wgmma.h"

namespace {

using namespace hopper;

enum Way : int { kByCopy, kByThreads, kInRegisters };

constexpr int kA = 64 * kSwizzleRow, kB = 4 * kA;

template <typename T, int N, bool TRANSPOSED_A, bool TRANSPOSED_B, int WAY>
__global__ void __launch_bounds__(kGroup)
    product_kernel(const __grid_constant__ TensorMap of_a, const __grid_constant__ TensorMap of_b, const T* a, float* d) {
#if HOPPER_CODE
  TILES(memory);
  const uint32_t to_a = memory, to_b = memory + kA, mbarrier = memory + kA + kB;
  if (threadIdx.x == 0) {
    mbarrier_init(mbarrier, 1);
    fence_mbarrier_init("check: copies know of the mbarrier");
  }
  barrier("check: the mbarrier is initialised before anybody waits for it");
  if (threadIdx.x == 0) {
    arrive_expecting(mbarrier, (WAY == kByCopy ? kA : 0) + N * kSwizzleRow,
                     "check: matrices have arrived before they are multiplied (bytes)");
    if (WAY == kByCopy) load_tile(to_a, of_a, mbarrier, 0, 0, 0, 0);
    if (TRANSPOSED_B)
      for (int slab = 0; slab < N / 64; ++slab) load_tile(to_b + slab * kA, of_b, mbarrier, slab * 64, 0, 0, 0);
    else
      load_tile(to_b, of_b, mbarrier, 0, 0, 0, 0);
  }
  if (WAY == kByThreads) {
    for (int i = threadIdx.x; i < 64 * 32; i += kGroup)
      store_shared(in_tile(to_a, i / 32, i % 32 / 4) + i % 4 * 4,
                   packed<T>(to_float(load(a + 2 * i)), to_float(load(a + 2 * i + 1))));
    fence_async("check: threads' stores reach the asynchronous proxy");
    barrier("check: every thread's stores have arrived before they are multiplied");
  }
  wait(mbarrier, 0, "check: matrices have arrived before they are multiplied (wait)");
  const int lane = threadIdx.x % kWarp, row0 = threadIdx.x / kWarp * 16 + lane / 4, column0 = lane % 4 * 2;
  float sums[N / 2];
#pragma unroll
  for (int i = 0; i < N / 2; ++i) sums[i] = 2.0f * load(d + (row0 + i / 2 % 2 * 8) * N + i / 4 * 8 + column0 + i % 2);
  uint32_t fragments[4][4];
  if (WAY == kInRegisters)
#pragma unroll
    for (int step = 0; step < 4; ++step)
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const T* at = a + (row0 + i % 2 * 8) * 64 + step * 16 + i / 2 * 8 + column0;
        fragments[step][i] = packed<T>(to_float(load(at)), to_float(load(at + 1)));
      }
  hold(sums);
  fence_products("check: registers are settled before products take them");
#pragma unroll
  for (int step = 0; step < 4; ++step) {
    const uint64_t left = TRANSPOSED_A ? columns_of_k(to_a + step * 16 * kSwizzleRow, kA) : rows_of_k(to_a + step * 32);
    const uint64_t right = TRANSPOSED_B ? columns_of_k(to_b + step * 16 * kSwizzleRow, kA) : rows_of_k(to_b + step * 32);
    if constexpr (WAY == kInRegisters)
      Products<T, N>::template registers<TRANSPOSED_B>(sums, fragments[step], right, true);
    else
      Products<T, N>::template shared<TRANSPOSED_A, TRANSPOSED_B>(sums, left, right, true);
  }
  commit_products("check: products are waited for as a group");
  wait_products<0>("check: products have arrived before they are stored");
  hold(sums);
#pragma unroll
  for (int i = 0; i < N / 2; ++i) store(d + (row0 + i / 2 % 2 * 8) * N + i / 4 * 8 + column0 + i % 2, sums[i]);
#endif
}

// ---- host ------------------------------------------------------------------------------------------------------------

using glue::Tensor;

// a (1, 64, 1, 64), b (1, N, 1, 64) or transposed (1, 64, 1, N), d (64, N) float32.
void product(const Tensor& a, const Tensor& b, const Tensor& d, bool transposed_a, bool transposed_b, int64_t way) {
  const int64_t N = d.size(1);
  CHECK_INPUT((N == 64 || N == 128 || N == 256) && d.size(0) == 64 && d.is_contiguous() && way >= kByCopy && way <= kInRegisters &&
                      !(transposed_a && way == kInRegisters) &&
                      a.scalar_type() == b.scalar_type() && a.is_contiguous() && a.numel() == 64 * 64 && b.numel() == 64 * N,
                  "emergence_cuda: hopper_product: shapes");
  const auto flag = [](bool value, auto&& f) { return value ? f(std::true_type{}) : f(std::false_type{}); };
  const auto run = [&](auto of_a, auto n) {
    using T = decltype(of_a);
    flag(transposed_a, [&](auto ta) {
      flag(transposed_b, [&](auto tb) {
        const auto in_way = [&](auto w) {
          if constexpr (!(ta() && w() == kInRegisters))
            glue::launch(&product_kernel<T, n(), ta(), tb(), w()>, dim3(1), dim3(kGroup), kA + kB + 8, a, {&a, &b, &d},
                         tiles_of(a, 64), tiles_of(b, tb() ? 64 : n()), glue::pointer<T>(a), glue::pointer<float>(d));
        };
        if (way == kByCopy) return in_way(std::integral_constant<int, kByCopy>{});
        if (way == kByThreads) return in_way(std::integral_constant<int, kByThreads>{});
        in_way(std::integral_constant<int, kInRegisters>{});
      });
    });
  };
  const auto by_columns = [&](auto of_a) {
    if (N == 64)
      run(of_a, std::integral_constant<int, 64>{});
    else if (N == 128)
      run(of_a, std::integral_constant<int, 128>{});
    else
      run(of_a, std::integral_constant<int, 256>{});
  };
  if (a.scalar_type() == glue::ScalarType::BFloat16) return by_columns(bf16{});
  by_columns(f16{});
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(emergence_cuda, library) {
  library.def("hopper_product(Tensor a, Tensor b, Tensor(a!) d, bool transposed_a, bool transposed_b, int way) -> ()");
}

STABLE_TORCH_LIBRARY_IMPL(emergence_cuda, KERNELS_DEVICE, library) {
  library.impl("hopper_product", TORCH_BOX(&product));
}
