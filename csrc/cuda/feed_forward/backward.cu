// SwiGLU's gradient in the product before it, for Hopper: with dh = dy weight rounded to 16 bits and s = sigmoid(gate),
//
//   d_gate = dh up s (1 + gate (1 - s))        d_up = dh gate s
//
// See products.h. A consumer warpgroup has 64 columns of gate and up at a time in its slot, works on them in two steps of the next tile
// and writes their gradients over them. The thread of the first warpgroup that serves it stores these, and loads the next gate and up
// in their place, in the steps until the consumer comes to them.

#include "cuda/feed_forward/products.h"

namespace {

using namespace hopper_feed_forward;

using Tiles = Layout<4, 1, 2>;  // stages, slots, slabs of a slot

constexpr int kChunks = kColumns / 64, kSteps = 2;  // of a tile; that work on one

#if HOPPER_CODE

// The chunk that a warpgroup begins with. Where it was the same for all, which go in step, memory was slower: all want the same 128 of
// every 512 bytes of a row at a time.
__device__ __forceinline__ int start_of(int group) { return int(blockIdx.x + 2 * group) % kChunks; }

__device__ __forceinline__ void move_chunks(const Tiles& tiles, int group, const TensorMap& of_gate_up,
                                            const TensorMap& of_gradient, const Problem& problem) {
  const uint32_t slot = tiles.slot(group, 0), ready = tiles.ready(group, 0), done = tiles.done(group, 0);
  int column = 0, row = 0;
  Walk walk(problem);
  for (int i = 0;; ++i) {
    if (i > 0) {
      wait(done, (i - 1) & 1, "results are in shared memory before they are stored (wait)");
#pragma unroll
      for (int half = 0; half < 2; ++half) store_tile(of_gradient, slot + half * kSlab, column, row, half, 0);
      commit_stores("a chunk's stores are waited for");
      wait_stores<0>("results are read before the next gate and up overwrite them");
    }
    if (!walk.more()) return;
    column = walk.column * kColumns + (i + start_of(group)) % kChunks * 64;
    row = walk.row + group * 64;
    arrive_expecting(ready, 2 * kSlab, "gate and up have arrived before they are read (bytes)");
#pragma unroll
    for (int half = 0; half < 2; ++half) load_tile(slot + half * kSlab, of_gate_up, ready, column, row, half, 0);
    if (i % kChunks == kChunks - 1) walk.advance();
  }
}

// Two gates and ups become their gradients.
template <typename T>
__device__ __forceinline__ void differentiate(uint32_t upstream, uint32_t& gates, uint32_t& ups) {
  float d_gate[2], d_up[2];
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    const float dh = unpacked<T>(upstream, i), gate = unpacked<T>(gates, i), up = unpacked<T>(ups, i), s = sigmoid(gate);
    d_gate[i] = dh * s * up * (1.0f + gate * (1.0f - s));
    d_up[i] = dh * s * gate;
  }
  gates = packed<T>(d_gate[0], d_gate[1]);
  ups = packed<T>(d_up[0], d_up[1]);
}

// A quarter of the words of a chunk, the how manyth of its tile, which are in front.
template <typename T>
__device__ __forceinline__ void put(const Tiles& tiles, int group, int chunk, int quarter, const uint32_t (&words)[kWords]) {
  constexpr int kAtOnce = kWords / kChunks / (2 * kSteps);
  static_assert(Tiles::kSlots == 1 && kChunks % 2 == 0);  // so a chunk's phase is the same in every tile
  const uint32_t slot = tiles.slot(group, 0);
  if (quarter == 0) wait(tiles.ready(group, 0), chunk & 1, "gate and up have arrived before they are read (wait)");
  const int first = quarter * kAtOnce;
  uint32_t gates[kAtOnce], ups[kAtOnce];
#pragma unroll
  for (int i = 0; i < kAtOnce; ++i) {
    gates[i] = load_shared_word(slot + word_in_slab(first + i));
    ups[i] = load_shared_word(slot + kSlab + word_in_slab(first + i));
  }
#pragma unroll
  for (int i = 0; i < kAtOnce; ++i) {
    differentiate<T>(words[first + i], gates[i], ups[i]);
    store_shared(slot + word_in_slab(first + i), gates[i]);
    store_shared(slot + kSlab + word_in_slab(first + i), ups[i]);
  }
  if (quarter == 2 * kSteps - 1) finish_slot(tiles.done(group, 0));
}

#endif

template <typename T>
__global__ void __launch_bounds__(kThreads, 1) CLUSTERS_OF(kCluster)
    linear_swiglu_backward_hopper(const __grid_constant__ TensorMap of_dy, const __grid_constant__ TensorMap of_weight,
                                  const __grid_constant__ TensorMap of_gate_up, const __grid_constant__ TensorMap of_gradient,
                                  const Problem problem) {
#if HOPPER_CODE
  TILES(memory);
  const Tiles tiles{memory};
  run(
      tiles, of_dy, problem,
      [&](int stage, int k, int column) {
        constexpr int kMine = kChunks / kCluster;
        const int first = rank_in_cluster() * kMine;
#pragma unroll
        for (int slab = first; slab < first + kMine; ++slab) {
          load_tile_for_all(kCluster, tiles.b(stage) + slab * kSlab, of_weight, tiles.full(stage), column * kColumns + slab * 64,
                            k * kDepth, 0, 0);
        }
      },
      [&](int group) { move_chunks(tiles, group, of_gate_up, of_gradient, problem); },
      [&](int group) {
        consume<T, true, kChunks, kSteps, kSpread>(
            tiles, group, problem,
            [&](int chunk, int part, int, const uint32_t(&words)[kWords]) { put<T>(tiles, group, chunk, part, words); },
            start_of(group));
      });
#endif
}

// ---- host ------------------------------------------------------------------------------------------------------------

// dy (N, D), weight (D, F), gate_up and d_gate_up (N, 2F): rows of adjacent values, D and F multiples of 8.
void linear_swiglu_backward(const Tensor& dy, const Tensor& weight, const Tensor& gate_up, const Tensor& d_gate_up) {
  CHECK_INPUT(dy.dim() == 2 && weight.dim() == 2, "emergence_cuda: linear_swiglu_backward: dy and weight must be matrices");
  const int64_t N = dy.size(0), D = dy.size(1), F = weight.size(1);
  CHECK_INPUT(D > 0 && F > 0 && D % 8 == 0 && F % 8 == 0,
                  "emergence_cuda: linear_swiglu_backward: features must be multiples of 8 on both sides");
  check_rows(dy, dy, N, D, "dy");
  check_rows(weight, dy, D, F, "weight");
  check_rows(gate_up, dy, N, 2 * F, "gate_up");
  check_rows(d_gate_up, dy, N, 2 * F, "d_gate_up");
  if (N == 0) return;
  by_type(dy, [&](auto of_dy) {
    using E = decltype(of_dy);
    const Problem problem = problem_of(N, F, kColumns, D, kChunks * kSteps);
    glue::launch(&linear_swiglu_backward_hopper<E>, resident(problem, dy), dim3(kThreads), Tiles::kBytes, dy,
                 {&dy, &weight, &gate_up, &d_gate_up}, boxes_of_rows(dy, kRows), boxes_of_rows(weight, kDepth),
                 boxes_of_halves(gate_up, 64), boxes_of_halves(d_gate_up, 64), problem);
  });
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(emergence_cuda, library) {
  library.def(
      "linear_swiglu_backward(Tensor dy, Tensor weight, Tensor gate_up, Tensor(a!) d_gate_up) -> ()");
}

STABLE_TORCH_LIBRARY_IMPL(emergence_cuda, KERNELS_DEVICE, library) {
  library.impl("linear_swiglu_backward", TORCH_BOX(&linear_swiglu_backward));
}
