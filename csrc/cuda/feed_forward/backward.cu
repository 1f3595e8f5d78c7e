// SwiGLU's gradient in the product before it, for Hopper: with dh = dy weight rounded to 16 bits and s = sigmoid(gate),
//
//   d_gate = dh up s (1 + gate (1 - s))        d_up = dh gate s
//
// See products.h. A consumer warpgroup has 64 columns of gate and up at a time in a slot, and writes their gradients over
// them. The thread of the first warpgroup that serves it stores these, and loads the next gate and up in their place: it is ahead
// by as many as there are slots. From one to the next a consumer leaves steps for that.

#include "cuda/feed_forward/products.h"

namespace {

using namespace hopper_feed_forward;

constexpr int kChunks = kColumns / 64;
template <int FORM>
constexpr int kSteps = FORM & kSpread ? 2 : FORM & kSlow ? 4 : 3;  // of a chunk; the first two work on it

#if HOPPER_CODE

// The chunk that a warpgroup begins with. Were it the same for all, they would read the same 128 of every 512 bytes at a time, and
// thus a part of the memory's channels.
template <int FORM>
__device__ __forceinline__ int start_of(int group) {
  return FORM & kRotated ? (blockIdx.x + 2 * group) % kChunks : 0;
}

template <int FORM, typename Tiles>
__device__ __forceinline__ void move_chunks(const Tiles& tiles, int group, const TensorMap& of_gate_up,
                                            const TensorMap& of_gradient, const Problem& problem, int start) {
  constexpr int kSlots = Tiles::kSlots;
  const int chunks = count_tiles<Tiles::kCluster>(problem) * kChunks;
  Walk<Tiles::kCluster> loads(problem), stores(problem);
  for (int i = 0; i < chunks + kSlots; ++i) {
    const int which = i % kSlots, phase = i / kSlots & 1;
    const uint32_t slot = tiles.slot(group, which);
    if (i >= kSlots) {
      const int column = stores.column * kColumns + (i - kSlots + start) % kChunks * 64, row = stores.row + group * 64;
      wait(tiles.done(group, which), phase ^ 1, "results are in shared memory before they are stored (wait)");
#pragma unroll
      for (int half = 0; half < 2; ++half)
        if (!(FORM & kNoStores))
          store_tile(of_gradient, slot + half * kSlab, column, row, half, 0);
      commit_stores("a chunk's stores are waited for");
      wait_stores<0>("results are read before the next gate and up overwrite them");
      if ((i - kSlots) % kChunks == kChunks - 1) stores.advance();
    }
    if (i < chunks) {
      const int column = loads.column * kColumns + (i + start) % kChunks * 64, row = loads.row + group * 64;
      const uint32_t ready = tiles.ready(group, which);
      if (FORM & kNoLoads)
        arrive(ready, "nothing is loaded");
      else
        arrive_expecting(ready, 2 * kSlab, "gate and up have arrived before they are read (bytes)");
#pragma unroll
      for (int half = 0; half < 2; ++half)
        if (!(FORM & kNoLoads))
          load_tile(slot + half * kSlab, of_gate_up, ready, column, row, half, 0);
      if (i % kChunks == kChunks - 1) loads.advance();
    }
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

// A quarter of chunk `chunk` of tile n, whose words come first.
template <typename T, typename Tiles>
__device__ __forceinline__ void put(const Tiles& tiles, int group, int chunk, int quarter, int n, const uint32_t (&words)[kWords]) {
  constexpr int kWordsOfChunk = kWords / kChunks, kAtOnce = kWordsOfChunk / 4;
  static_assert(kChunks % Tiles::kSlots == 0);
  const int which = chunk % Tiles::kSlots, use = n * (kChunks / Tiles::kSlots) + chunk / Tiles::kSlots;
  const uint32_t slot = tiles.slot(group, which);
  if (quarter == 0) wait(tiles.ready(group, which), use & 1, "gate and up have arrived before they are read (wait)");
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
  if (quarter == 3) finish_slot(tiles.done(group, which));
}

#endif

template <typename T, int STAGES, int SLOTS, int CLUSTER, int FORM>
__global__ void __launch_bounds__(kThreads, 1) CLUSTERS_OF(CLUSTER)
    linear_swiglu_backward_hopper(const __grid_constant__ TensorMap of_dy, const __grid_constant__ TensorMap of_weight,
                                  const __grid_constant__ TensorMap of_gate_up, const __grid_constant__ TensorMap of_gradient,
                                  const Problem problem) {
#if HOPPER_CODE
  using Tiles = Layout<STAGES, SLOTS, 2, CLUSTER>;
  TILES(memory);
  const Tiles tiles{memory};
  if (threadIdx.x == 0) init_mbarriers(tiles);
  if (CLUSTER > 1)
    sync_cluster("mbarriers of all blocks are initialised before anybody waits for them");
  else
    barrier("mbarriers are initialised before anybody waits for them");
  const int warpgroup = uniform(threadIdx.x / kGroup);
  if (warpgroup == 0) {
    give_registers<kForProducer>();
    const int warp = uniform(threadIdx.x / kWarp);
    if (threadIdx.x == 0) {
      produce(tiles, of_dy, problem, [&](int stage, int k, int column) {
        constexpr int kMine = kChunks / CLUSTER;
        const int first = CLUSTER > 1 ? rank_in_cluster() * kMine : 0;
#pragma unroll
        for (int i = first; i < first + kMine; ++i) {
          const uint32_t to = tiles.b(stage) + i * kSlab;
          if (CLUSTER > 1)
            load_tile_for_all(CLUSTER, to, of_weight, tiles.full(stage), column * kColumns + i * 64, k * kDepth, 0, 0);
          else
            load_tile(to, of_weight, tiles.full(stage), column * kColumns + i * 64, k * kDepth, 0, 0);
        }
      });
    } else if (threadIdx.x % kWarp == 0 && warp <= kConsumers) {
      move_chunks<FORM>(tiles, warp - 1, of_gate_up, of_gradient, problem, start_of<FORM>(warp - 1));
    }
  } else {
    take_registers<kForConsumers>();
    const int group = warpgroup - 1;
    consume<T, true, kChunks, kSteps<FORM>, false, false, (FORM & kSpread) != 0>(
        tiles, group, problem, [&](int chunk, int part, int n, const uint32_t(&words)[kWords]) {
          if (part < 4) put<T>(tiles, group, chunk, part, n, words);
        },
        start_of<FORM>(group));
  }
  if (CLUSTER > 1) sync_cluster("no block ends while another still reaches it");
#endif
}

// ---- host ------------------------------------------------------------------------------------------------------------

// dy (N, D), weight (D, F), gate_up and d_gate_up (N, 2F): rows of adjacent values, D and F multiples of 8.
void linear_swiglu_backward(const Tensor& dy, const Tensor& weight, const Tensor& gate_up, const Tensor& d_gate_up,
                            int64_t variant) {
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
    const auto run = [&](auto stages, auto slots, auto cluster, auto form, int together = 16) {
      using Tiles = Layout<stages(), slots(), 2, cluster()>;
      const Problem problem = problem_of<Tiles>(N, F, kColumns, D, kChunks * kSteps<form()>, together);
      glue::launch(&linear_swiglu_backward_hopper<E, stages(), slots(), cluster(), form()>, resident<Tiles>(problem, dy),
                   dim3(kThreads), Tiles::kBytes, dy, {&dy, &weight, &gate_up, &d_gate_up}, boxes_of_rows(dy, kRows),
                   boxes_of_rows(weight, kDepth), boxes_of_halves(gate_up, 64), boxes_of_halves(d_gate_up, 64), problem);
    };
    switch (variant) {
      case 0:
        return run(number<3>{}, number<2>{}, number<1>{}, number<0>{});
      case 31:
        return run(number<3>{}, number<2>{}, number<1>{}, number<kRotated>{});
      case 33:
        return run(number<4>{}, number<1>{}, number<1>{}, number<kRotated | kSlow>{});
      case 38:
        return run(number<3>{}, number<2>{}, number<1>{}, number<kRotated | kSpread>{});
#ifdef __CUDACC__
      case 17:
        return run(number<4>{}, number<1>{}, number<2>{}, number<kSlow>{});
      case 30:
        return run(number<4>{}, number<1>{}, number<2>{}, number<kRotated | kSlow>{});
      case 32:
        return run(number<3>{}, number<2>{}, number<2>{}, number<kRotated>{});
      case 34:
        return run(number<4>{}, number<1>{}, number<2>{}, number<kRotated | kSpread>{});
      case 35:
        return run(number<3>{}, number<2>{}, number<2>{}, number<kRotated | kSpread>{});
      case 36:
        return run(number<4>{}, number<1>{}, number<2>{}, number<kSpread>{});
      case 21:
        return run(number<3>{}, number<2>{}, number<1>{}, number<kNoStores>{});
      case 37:
        return run(number<3>{}, number<2>{}, number<1>{}, number<kNoStores | kRotated>{});
#endif
      default:
        CHECK_INPUT(false, "emergence_cuda: linear_swiglu_backward: no such variant");
    }
  });
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(emergence_cuda, library) {
  library.def(
      "linear_swiglu_backward(Tensor dy, Tensor weight, Tensor gate_up, Tensor(a!) d_gate_up, int variant) -> ()");
}

STABLE_TORCH_LIBRARY_IMPL(emergence_cuda, KERNELS_DEVICE, library) {
  library.impl("linear_swiglu_backward", TORCH_BOX(&linear_swiglu_backward));
}
