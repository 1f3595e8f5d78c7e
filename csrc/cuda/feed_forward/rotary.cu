// The projection to attention's queries, keys and values with the rotary embedding of the first two, for Hopper:
// qkv = x weight^T, where the pairs (i, i + R) of the features of a head are turned (kernels/emergence_kernels/rotary). See products.h.
//
// Both of a pair are in one thread's registers. They are rounded first, turned in float32, and rounded again, as by two operations.
// A consumer warpgroup writes 64 columns after another to its slots, and its thread of the first warpgroup stores them.

#include "cuda/feed_forward/slabs.h"

namespace {

using namespace hopper_feed_forward;

constexpr int kSlabs = kColumns / 64, kParts = 4 * kSlabs;
// cos, sin (T, R); columns from `turned` on, of values, pass.
struct Angles {
  const float *cos, *sin;
  int T, turned;
};

#if HOPPER_CODE

// Two neighbours of a head's feature, and those R features further (`second`: or before), by their angles.
template <typename T>
__device__ __forceinline__ uint32_t turned(uint32_t mine, uint32_t other, bool second, const Pack<float, 2>& cos,
                                           const Pack<float, 2>& sin) {
  float out[2];
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    const float across = unpacked<T>(other, i) * sin.v[i];
    out[i] = unpacked<T>(mine, i) * cos.v[i] + (second ? across : -across);
  }
  return packed<T>(out[0], out[1]);
}

constexpr int kOfSlab = kWords / kSlabs, kAtOnce = kOfSlab / 4;  // words: of a slab, of a part

// The head's first feature of the eight that word i of a slab is among.
template <int D>
__device__ __forceinline__ int feature_of(int slab, int i) {
  return (slab * 64 + i / 2 * 8) % D;
}

// The angles of a part, which are loaded while the part before is worked on.
struct Turns {
  Pack<float, 2> cos[kAtOnce], sin[kAtOnce];
};

// Those of part `part` of the tile whose first row and column these are.
template <int D, int R>
__device__ __forceinline__ void fetch(Turns& turns, const Angles& angles, int group, int part, int row0, int column0) {
  const int slab = part / 4, lane = threadIdx.x % kWarp;
  const int row = row0 + group * 64 + threadIdx.x % kGroup / kWarp * 16 + lane / 4;
  if (column0 + slab * 64 >= angles.turned) return;
#pragma unroll
  for (int k = 0; k < kAtOnce; ++k) {
    const int i = part % 4 * kAtOnce + k, feature = feature_of<D>(slab, i);
    if (feature >= 2 * R) continue;
    const int64_t at = int64_t((row + i % 2 * 8) % angles.T) * R + feature % R + lane % 4 * 2;
    turns.cos[k] = load(reinterpret_cast<const Pack<float, 2>*>(angles.cos + at));
    turns.sin[k] = load(reinterpret_cast<const Pack<float, 2>*>(angles.sin + at));
  }
}

// A part of tile n, a quarter of a slab, goes to its slot.
template <typename T, int D, int R, typename Tiles>
__device__ __forceinline__ void put(const Tiles& tiles, int group, int part, int n, int column0, const Angles& angles,
                                    const Turns& turns, const uint32_t (&words)[kWords]) {
  static_assert(kSlabs % Tiles::kSlots == 0 && R % 8 == 0 && kColumns % D == 0);
  const int slab = part / 4, which = slab % Tiles::kSlots, use = n * (kSlabs / Tiles::kSlots) + slab / Tiles::kSlots;
  const uint32_t to = tiles.slot(group, which);
  const bool turn = column0 + slab * 64 < angles.turned;
  if (part % 4 == 0) wait(tiles.ready(group, which), (use & 1) ^ 1, "results are read before others overwrite them (wait)");
#pragma unroll
  for (int k = 0; k < kAtOnce; ++k) {
    const int i = part % 4 * kAtOnce + k, word = slab * kOfSlab + i, feature = feature_of<D>(slab, i);
    const bool second = feature >= R;  // of a pair, which is R / 4 words apart
    uint32_t value = words[word];
    if (feature < 2 * R && turn)
      value = turned<T>(value, words[(second ? word - R / 4 : word + R / 4) % kWords], second, turns.cos[k], turns.sin[k]);
    store_shared(to + word_in_slab(i), value);
  }
  if (part % 4 == 3) finish_slot(tiles.done(group, which));
}

#endif

template <typename T, int D, int R>
__global__ void __launch_bounds__(kThreads, 1) CLUSTERS_OF(kCluster)
    linear_rotary_hopper(const __grid_constant__ TensorMap of_x, const __grid_constant__ TensorMap of_weight,
                         const __grid_constant__ TensorMap of_qkv, const Angles angles, const Problem problem) {
#if HOPPER_CODE
  using Tiles = Layout<4, 2, 1>;
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
                            column * kColumns + half * (kColumns / 2), 0, 0);
        }
      },
      [&](int group) {
        store_slabs<kSlabs>(tiles, group, problem, [&](const Walk& walk, int j, uint32_t slot) {
          store_tile(of_qkv, slot, walk.column * kColumns + j * 64, walk.row + group * 64, 0, 0);
        });
      },
      [&](int group) {
        Walk walk(problem);
        Turns turns;
        fetch<D, R>(turns, angles, group, 0, walk.row, walk.column * kColumns);
        consume<T, false, 1, kParts / 2, kInOrder>(
            tiles, group, problem, [&](int, int part, int n, const uint32_t(&words)[kWords]) {
              const Turns now = turns;
              const int column0 = walk.column * kColumns;
              if (part == kParts - 1) walk.advance();
              fetch<D, R>(turns, angles, group, (part + 1) % kParts, walk.row, walk.column * kColumns);
              put<T, D, R>(tiles, group, part, n, column0, angles, now, words);
            });
      });
#endif
}

// ---- host ------------------------------------------------------------------------------------------------------------

// x (N, K), weight (E, K), qkv (N, E): rows of adjacent values, E heads of D features, K and E multiples of 8. cos, sin (T, R)
// float32: row n of x is at position n % T. The first `heads` heads are turned.
void linear_rotary(const Tensor& x, const Tensor& weight, const Tensor& cos, const Tensor& sin, const Tensor& qkv, int64_t heads,
                   int64_t D) {
  CHECK_INPUT(x.dim() == 2 && weight.dim() == 2 && cos.dim() == 2, "emergence_cuda: linear_rotary: x, weight and cos must be matrices");
  const int64_t N = x.size(0), K = x.size(1), E = weight.size(0), T = cos.size(0), R = cos.size(1);
  CHECK_INPUT(K > 0 && K % 8 == 0 && (D == 64 || D == 128) && (2 * R == D || 4 * R == D) && E > 0 && E % D == 0 && heads * D <= E,
                  "emergence_cuda: linear_rotary: heads of 64 or 128 features, of which all or half are turned");
  CHECK_INPUT(T > 0 && N % T == 0, "emergence_cuda: linear_rotary: rows must be whole sequences of ", T, " positions");
  check_rows(x, x, N, K, "x");
  check_rows(weight, x, E, K, "weight");
  check_rows(qkv, x, N, E, "qkv");
  for (const Tensor* angle : {&cos, &sin}) {
    glue::check_vector(*angle, T * R, glue::ScalarType::Float, "cos and sin");
    CHECK_INPUT(glue::aligned(angle->data_ptr(), 8), "emergence_cuda: linear_rotary: cos and sin must start at a multiple of 8 bytes");
  }
  if (N == 0) return;
  const Angles angles{glue::pointer<float>(cos), glue::pointer<float>(sin), int(T), int(heads * D)};
  by_type(x, [&](auto of_x) {
    using X = decltype(of_x);
    const auto run = [&](auto d, auto r) {
      using Tiles = Layout<4, 2, 1>;
      const Problem problem = problem_of(N, E, kColumns, K, kParts / 2);
      glue::launch(&linear_rotary_hopper<X, d(), r()>, resident(problem, x), dim3(kThreads), Tiles::kBytes, x,
                   {&x, &weight, &cos, &sin, &qkv}, boxes_of_rows(x, kRows), boxes_of_rows(weight, kColumns / 2),
                   boxes_of_rows(qkv, 64), angles, problem);
    };
    const auto by_pairs = [&](auto d) {
      if (2 * R == D) return run(d, number<d() / 2>{});
      run(d, number<d() / 4>{});
    };
    if (D == 64) return by_pairs(number<64>{});
    by_pairs(number<128>{});
  });
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(emergence_cuda, library) {
  library.def(
      "linear_rotary(Tensor x, Tensor weight, Tensor cos, Tensor sin, Tensor(a!) qkv, int heads, int head_dim) -> ()");
}

STABLE_TORCH_LIBRARY_IMPL(emergence_cuda, KERNELS_DEVICE, library) {
  library.impl("linear_rotary", TORCH_BOX(&linear_rotary));
}
