// The feed-forward layer's first product and SwiGLU, for Hopper: gate_up = x weight^T, y = silu(gate) up. See products.h.
//
// A tile has the gate and the up of the same 128 features, loaded next to each other, so that a thread has both in registers.
// They are rounded first, and y is computed in float32 from what they are rounded to. A consumer warpgroup writes 64 columns
// of one after another, gate, up and y, to its slots, and its thread of the first warpgroup stores them.

#include "cuda/feed_forward/slabs.h"

namespace {

using namespace hopper_feed_forward;

using Tiles = Layout<4, 2, 1>;  // stages, slots, slabs of a slot

constexpr int kFeatures = kColumns / 2;  // of a tile
constexpr int kHalves = kFeatures / 64, kSteps = 3;  // of a tile; in which one is written: gate, up, and quarters of y

#if HOPPER_CODE

constexpr int kKinds = 3;  // gate, up, y
constexpr int kSlabs = kFeatures / 64 * kKinds;

template <typename T>
__device__ __forceinline__ uint32_t activated(uint32_t gates, uint32_t ups) {
  float y[2];
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    const float gate = unpacked<T>(gates, i);
    y[i] = gate * sigmoid(gate) * unpacked<T>(ups, i);
  }
  return packed<T>(y[0], y[1]);
}

// Part of a half of tile n's results: see kHalves. words: its gates, then its ups.
template <typename T>
__device__ __forceinline__ void put(const Tiles& tiles, int group, int half, int part, int n, const uint32_t (&words)[kWords]) {
  constexpr int kOfSlab = kWords / 4;
  static_assert(kSlabs % Tiles::kSlots == 0);
  const int kind = min(part, 2), quarter = part - 2;
  const int j = half * kKinds + kind, which = j % Tiles::kSlots, use = n * (kSlabs / Tiles::kSlots) + j / Tiles::kSlots;
  const uint32_t to = tiles.slot(group, which);
  if (quarter <= 0) wait(tiles.ready(group, which), (use & 1) ^ 1, "results are read before others overwrite them (wait)");
  if (kind < 2) {
#pragma unroll
    for (int i = 0; i < kOfSlab; ++i) store_shared(to + word_in_slab(i), words[kind * kOfSlab + i]);
  } else {
#pragma unroll
    for (int i = quarter * (kOfSlab / 4); i < (quarter + 1) * (kOfSlab / 4); ++i)
      store_shared(to + word_in_slab(i), activated<T>(words[i], words[kOfSlab + i]));
  }
  if (kind < 2 || quarter == 3) finish_slot(tiles.done(group, which));
}

#endif

template <typename T>
__global__ void __launch_bounds__(kThreads, 1) CLUSTERS_OF(kCluster)
    linear_swiglu_hopper(const __grid_constant__ TensorMap of_x, const __grid_constant__ TensorMap of_weight,
                         const __grid_constant__ TensorMap of_gate_up, const __grid_constant__ TensorMap of_y,
                         const Problem problem) {
#if HOPPER_CODE
  TILES(memory);
  const Tiles tiles{memory};
  run(
      tiles, of_x, problem,
      [&](int stage, int k, int column) {
        constexpr int kMine = 2 / kCluster;
#pragma unroll
        for (int i = 0; i < kMine; ++i) {
          const int half = rank_in_cluster() * kMine + i;
          load_tile_for_all(kCluster, tiles.b(stage) + half * (kB / 2), of_weight, tiles.full(stage), k * kDepth,
                            column * kFeatures, half, 0);
        }
      },
      [&](int group) {
        store_slabs<kSlabs>(tiles, group, problem, [&](const Walk& walk, int j, uint32_t slot) {
          const int kind = j % kKinds, column = walk.column * kFeatures + j / kKinds * 64;
          store_tile(kind == 2 ? of_y : of_gate_up, slot, column, walk.row + group * 64, kind % 2, 0);
        });
      },
      [&](int group) {
        consume<T, false, kHalves, kSteps, kPaired>(
            tiles, group, problem, [&](int half, int part, int n, const uint32_t(&words)[kWords]) {
              put<T>(tiles, group, half, part, n, words);
            });
      });
#endif
}

// ---- host ------------------------------------------------------------------------------------------------------------

// x (N, K), weight (2F, K) with the gate's features first, gate_up (N, 2F), y (N, F): rows of adjacent values, K and F multiples
// of 8.
void linear_swiglu(const Tensor& x, const Tensor& weight, const Tensor& gate_up, const Tensor& y) {
  CHECK_INPUT(x.dim() == 2 && weight.dim() == 2, "emergence_cuda: linear_swiglu: x and weight must be matrices");
  const int64_t N = x.size(0), K = x.size(1), F = weight.size(0) / 2;
  CHECK_INPUT(K > 0 && F > 0 && K % 8 == 0 && F % 8 == 0,
                  "emergence_cuda: linear_swiglu: features must be multiples of 8 on both sides");
  check_rows(x, x, N, K, "x");
  check_rows(weight, x, 2 * F, K, "weight");
  check_rows(gate_up, x, N, 2 * F, "gate_up");
  check_rows(y, x, N, F, "y");
  if (N == 0) return;
  by_type(x, [&](auto of_x) {
    using E = decltype(of_x);
    const Problem problem = problem_of(N, F, kFeatures, K, kHalves * kSteps);
    glue::launch(&linear_swiglu_hopper<E>, resident(problem, x), dim3(kThreads), Tiles::kBytes, x,
                 {&x, &weight, &gate_up, &y}, boxes_of_rows(x, kRows), boxes_of_stacked(weight, kFeatures),
                 boxes_of_halves(gate_up, 64), boxes_of_rows(y, 64), problem);
  });
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(emergence_cuda, library) {
  library.def("linear_swiglu(Tensor x, Tensor weight, Tensor(a!) gate_up, Tensor(b!) y) -> ()");
}

STABLE_TORCH_LIBRARY_IMPL(emergence_cuda, KERNELS_DEVICE, library) {
  library.impl("linear_swiglu", TORCH_BOX(&linear_swiglu));
}
