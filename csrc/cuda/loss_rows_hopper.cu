// Rows of logits -> statistics and the gradient of the loss, as loss_rows.cu (loss_rows.h has the mathematics), on Hopper.
//
// A block of threads stays, and takes every gridDim-th row. One warp copies the row into slots of shared memory; the others sweep
// over it twice, for the statistics and for the gradient. A slot is free for the next row once the second sweep has read it, so
// that memory has copies to make all the time, and every logit is read from it once.
#include "common/hopper.h"
#include "cuda/loss_rows.h"

namespace {

using namespace hopper;
using namespace rows_of_logits;

constexpr int kWarps = 16, kThreads = kWarps * kWarp;  // that compute
constexpr int kSlot = 16 << 10, kMostSlots = 14;       // bytes; what 227 KB hold

#if HOPPER_CODE

constexpr int kPacks = kSlot / 16 / kThreads;  // of a thread in a slot
constexpr int kTogether = 1;                   // the barrier of threads that compute

struct Slots {
  uint32_t base;
  int count;
  __device__ uint32_t slot(int i) const { return base + i * kSlot; }
  __device__ uint32_t full(int i) const { return base + count * kSlot + 16 * i; }
  __device__ uint32_t empty(int i) const { return full(i) + 8; }
};

template <typename Z>
__device__ __forceinline__ Pack<Z, 16 / sizeof(Z)> pack_at(uint32_t address) {
  const Pack<uint32_t, 4> bits = load_shared(address);
  Pack<Z, 16 / sizeof(Z)> pack;
  memcpy(&pack, &bits, 16);
  return pack;
}

template <typename Z>
__device__ __forceinline__ void produce(const Slots& slots, const Z* z, int64_t stride_z, const bool* valid, int64_t R, int bytes) {
  int n = 0;
  for (int64_t row = blockIdx.x; row < R; row += gridDim.x) {
    if (!load(valid + row)) continue;
    const unsigned char* from = reinterpret_cast<const unsigned char*>(z + row * stride_z);
    for (int i = 0; i < slots.count; ++i) {
      const int size = min(kSlot, bytes - i * kSlot);
      wait(slots.empty(i), (n & 1) ^ 1, "a row is read before the next one overwrites it (wait)");
      arrive_expecting(slots.full(i), size, "logits have arrived before they are read (bytes)");
      load_bytes(slots.slot(i), from + int64_t(i) * kSlot, size, slots.full(i));
    }
    ++n;
  }
}

// A slot's logits -> this thread's statistics. from: its first pack, column: of that. WHOLE: the slot does not reach beyond V.
template <bool WHOLE, typename Z>
__device__ __forceinline__ void add_slot(Online& mine, uint32_t from, int column, int V) {
  constexpr int N = 16 / sizeof(Z);
  float wide[kPacks * N];
#pragma unroll
  for (int k = 0; k < kPacks; ++k) {
    const int of_pack = column + k * kThreads * N;
    if (WHOLE || of_pack < V) {
      widen<false, WHOLE>(pack_at<Z>(from + k * kThreads * 16), of_pack, V, 0.0f, wide + k * N);
    } else {
#pragma unroll
      for (int j = 0; j < N; ++j) wide[k * N + j] = kLow;
    }
  }
  if (WHOLE || column < V) add(mine, wide);
}

// This thread's share of a row's statistics; every slot has arrived then. n: of the block's rows. whole: slots within V.
template <typename Z>
__device__ __forceinline__ Online share_of_row(const Slots& slots, int n, int V, int whole) {
  Online mine{kLow, 0.0f, 0.0f};
  uint32_t from = slots.base + threadIdx.x * 16;
  int column = threadIdx.x * (16 / sizeof(Z));
  for (int i = 0; i < slots.count; ++i, from += kSlot, column += kSlot / sizeof(Z)) {
    wait(slots.full(i), n & 1, "logits have arrived before they are read (wait)");
    if (i < whole)
      add_slot<true, Z>(mine, from, column, V);
    else
      add_slot<false, Z>(mine, from, column, V);
  }
  return mine;
}

// A slot's gradients. to: of the pack at `from`.
template <bool WHOLE, typename Z, typename DZ>
__device__ __forceinline__ void put_slot(DZ* to, uint32_t from, int column, int V, const Slope& slope) {
  constexpr int N = 16 / sizeof(Z), kNext = kThreads * N;
  Pack<Z, N> packs[kPacks];
#pragma unroll
  for (int k = 0; k < kPacks; ++k)
    if (WHOLE || column + k * kNext < V) packs[k] = pack_at<Z>(from + k * kThreads * 16);
#pragma unroll
  for (int k = 0; k < kPacks; ++k)
    if (WHOLE || column + k * kNext < V)
      store(reinterpret_cast<Pack<DZ, N>*>(to + k * kNext),
            gradient<false, WHOLE, Z, DZ, N>(packs[k], column + k * kNext, V, slope));
}

// The gradient of the row; its slots are free then.
template <typename Z, typename DZ>
__device__ __forceinline__ void put_gradient(const Slots& slots, DZ* dz, int V, int whole, const Slope& slope) {
  uint32_t from = slots.base + threadIdx.x * 16;
  int column = threadIdx.x * (16 / sizeof(Z));
  DZ* to = dz + column;
  for (int i = 0; i < slots.count; ++i, from += kSlot, column += kSlot / sizeof(Z), to += kSlot / sizeof(Z)) {
    if (i < whole)
      put_slot<true, Z>(to, from, column, V, slope);
    else
      put_slot<false, Z>(to, from, column, V, slope);
    // After stores of what was read: right behind the loads, a copy overwrote on an H100 what they had yet to read.
    sync_warp("a warp has read a slot before it says so");
    if (threadIdx.x % kWarp == 0) arrive(slots.empty(i), "a row is read before the next one overwrites it (arrival)");
  }
}

#endif

// As statistics_kernel of loss_rows.cu. bytes: of a row, a multiple of 16.
template <typename Z, typename DZ>
__global__ void __launch_bounds__(kThreads + kWarp, 1)
    rows_hopper(const Z* z, DZ* dz, int64_t stride_z, int64_t stride_dz, int64_t R, const int64_t* targets, const bool* valid,
                const float* scale, float* loss, float* top, float* log_total, bool* correct, float* entropy, int V, int bytes,
                float z_loss) {
#if HOPPER_CODE
  constexpr int N = 16 / sizeof(Z);
  TILES(memory);
  SHARED(Online, of_warp, 2 * kWarps);  // of this row and the last: one barrier a row is enough
  const Slots slots{memory, (bytes + kSlot - 1) / kSlot};
  const int whole = V / (kSlot / int(sizeof(Z)));
  if (threadIdx.x == 0) {
    for (int i = 0; i < slots.count; ++i) {
      mbarrier_init(slots.full(i), 1);
      mbarrier_init(slots.empty(i), kWarps);
    }
    fence_mbarrier_init("copies know of the mbarriers that they tell");
  }
  barrier("mbarriers are initialised before anybody waits for them");
  const int warp = uniform(threadIdx.x / kWarp), lane = threadIdx.x % kWarp;
  if (warp == kWarps) {
    if (lane == 0) produce(slots, z, stride_z, valid, R, bytes);
    return;
  }
  int n = 0;
  for (int64_t row = blockIdx.x; row < R; row += gridDim.x) {
    DZ* to = dz + row * stride_dz;
    if (!load(valid + row)) {
      if (threadIdx.x == 0) put_nothing(row, loss, top, log_total, correct, entropy);
      zero<DZ, N>(to, V, kThreads);
      continue;
    }
    const int64_t target = load(targets + row);
    Online mine = share_of_row<Z>(slots, n, V, whole);
    float z_target = -INFINITY;  // a target out of range gives an infinite loss and no access out of bounds
    if (threadIdx.x == 0 && target >= 0 && target < V) {
      const Pack<Z, N> pack = pack_at<Z>(memory + target / N * 16);
#pragma unroll
      for (int k = 0; k < N; ++k)
        if (target % N == k) z_target = to_float(pack.v[k]);
    }
    mine = over_warp(mine);
    if (lane == 0) of_warp[n % 2 * kWarps + warp] = mine;
    sync_some(kTogether, kThreads, "every warp's share of the row has arrived before it is added up");
    Online all = of_warp[n % 2 * kWarps];
    for (int other = 1; other < kWarps; ++other) all = merge(all, of_warp[n % 2 * kWarps + other]);
    const float log_of_total = logf(all.sum);
    if (threadIdx.x == 0) put(row, all, log_of_total, z_target, loss, top, log_total, correct, entropy);
    put_gradient<Z, DZ>(slots, to, V, whole,
                        {all.top, log_of_total, 2.0f * z_loss * (all.top + log_of_total), load(scale + row), 0.0f, column_of(target, V)});
    ++n;
  }
#endif
}

// ---- host ------------------------------------------------------------------------------------------------------------

// As loss_rows with a scale and without softcap, for rows of at most 14 slots: 57,344 logits in float32, 114,688 in 16 bits.
void loss_rows_hopper(const Tensor& z, const Tensor& dz, int64_t V, const Tensor& targets, const Tensor& valid, const Tensor& scale,
                      const Tensor& loss, const Tensor& top, const Tensor& log_total, const Tensor& correct,
                      const Tensor& entropy, double z_loss) {
  const int64_t R = z.size(0);
  if (R == 0) return;
  check_logits(z, dz, V);
  check_rows(R, targets, valid, {&scale, &loss, &top, &log_total, &entropy});
  glue::check_vector(correct, R, glue::ScalarType::Bool, "correct");
  glue::by_type(z, [&](auto of_z) {
    using Z = decltype(of_z);
    constexpr int N = 16 / sizeof(Z);
    const int64_t bytes = (V + N - 1) / N * 16, slots = (bytes + kSlot - 1) / kSlot;
    CHECK_INPUT(slots <= kMostSlots, "emergence_cuda: a row of ", V, " logits does not fit into shared memory");
    by_gradient_type<Z>(dz, [&](auto of_dz) {
      using DZ = decltype(of_dz);
      const int64_t blocks = std::min<int64_t>(R, glue::multiprocessors(z.get_device_index()));
      glue::launch(&rows_hopper<Z, DZ>, dim3(blocks), dim3(kThreads + kWarp), slots * (kSlot + 16), z,
                   {&z, &dz, &targets, &valid, &scale, &loss, &top, &log_total, &correct, &entropy}, glue::pointer<Z>(z),
                   glue::pointer<DZ>(dz), z.stride(0), dz.stride(0), R, glue::pointer<int64_t>(targets),
                   glue::pointer<bool>(valid), glue::pointer<float>(scale), glue::pointer<float>(loss), glue::pointer<float>(top),
                   glue::pointer<float>(log_total), glue::pointer<bool>(correct), glue::pointer<float>(entropy),
                   static_cast<int>(V), static_cast<int>(bytes), static_cast<float>(z_loss));
    });
  });
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(emergence_cuda, library) {
  library.def(
      "loss_rows_hopper(Tensor z, Tensor(a!) dz, int V, Tensor targets, Tensor valid, Tensor scale, Tensor(b!) loss, "
      "Tensor(c!) top, Tensor(d!) log_total, Tensor(e!) correct, Tensor(f!) entropy, float z_loss) -> ()");
}

STABLE_TORCH_LIBRARY_IMPL(emergence_cuda, KERNELS_DEVICE, library) {
  library.impl("loss_rows_hopper", TORCH_BOX(&loss_rows_hopper));
}
