// Hopper's asynchronous instructions (sm_90a): mbarriers, clusters, copies of tiles by TMA (wgmma.h: products). Thin wrappers of one
// PTX instruction each; without nvcc, emulated after the PTX ISA (emulate_hopper.h). Section names are the PTX ISA's.
//
// Shared memory is addressed by 32 bits, as in the instructions. Every operation that orders threads states its reason.
#pragma once

#include <type_traits>

#include "common/portable.h"

#ifdef __CUDACC__
#include <cuda.h>  // types only: the driver is not linked

using TensorMap = CUtensorMap;
// Dynamic shared memory from a multiple of 1024 on, which is the period of the 128-byte swizzle.
#define TILES(name)                                               \
  extern __shared__ __align__(1024) unsigned char name##_bytes[]; \
  const uint32_t name = static_cast<uint32_t>(__cvta_generic_to_shared(name##_bytes))
#else
#include "emulator/emulate_hopper.h"

using emulate::TensorMap;
#define TILES(name) const uint32_t name = emulate::Hopper::kBase
#endif

// Other architectures' passes compile empty bodies: these instructions exist on sm_90a only.
#if !defined(__CUDACC__) || defined(__CUDA_ARCH_FEAT_SM90_ALL)
#define HOPPER_CODE 1
#else
#define HOPPER_CODE 0
#endif

// Of a kernel: blocks of a cluster. Other architectures' passes do not know the attribute.
#if defined(__CUDACC__) && (!defined(__CUDA_ARCH__) || defined(__CUDA_ARCH_FEAT_SM90_ALL))
#define CLUSTERS_OF(blocks) __cluster_dims__(blocks, 1, 1)
#else
#define CLUSTERS_OF(blocks)
#endif

namespace hopper {

using namespace portable;

constexpr int kGroup = 128;       // threads of a warpgroup
constexpr int kSwizzleRow = 128;  // bytes of a row of a tile; a wider matrix is cut into slabs of this width

#if HOPPER_CODE

// ---- numbers ---------------------------------------------------------------------------------------------------------

__device__ __forceinline__ float as_float(uint32_t bits) {
#ifdef __CUDACC__
  return __uint_as_float(bits);
#else
  float value;
  std::memcpy(&value, &bits, 4);
  return value;
#endif
}

// The first or second of packed()'s values.
template <typename T>
__device__ __forceinline__ float unpacked(uint32_t both, int which) {
  if constexpr (std::is_same_v<T, bf16>) return as_float(which ? both & 0xffff0000u : both << 16);
  T halves[2];
  memcpy(halves, &both, 4);
  return to_float(halves[which]);
}

// 1 / x by the special-function unit: 1 ulp; results below 2^-126 become 0.
__device__ __forceinline__ float reciprocal_fast(float x) {
#ifdef __CUDACC__
  float y;
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
#else
  return 1.0f / x;
#endif
}

// ---- threads ---------------------------------------------------------------------------------------------------------

// The same value in all lanes, made visible to the compiler: branches on it do not diverge.
__device__ __forceinline__ int uniform(int value) {
#ifdef __CUDACC__
  return __shfl_sync(0xffffffffu, value, 0);
#else
  return value;
#endif
}

// The same value, of which the compiler knows nothing: what depends on it is computed where it is needed, instead of before a loop
// and kept in registers.
__device__ __forceinline__ int recomputed(int value) {
#ifdef __CUDACC__
  asm volatile("" : "+r"(value));
#endif
  return value;
}

// `count` threads, in whole warps, meet at barrier `id` (1 to 15; __syncthreads is 0): those that wait, and those that only
// arrive ("bar, barrier").
__device__ __forceinline__ void sync_some(int id, int count, [[maybe_unused]] const char* race) {
#ifdef __CUDACC__
  asm volatile("bar.sync %0, %1;" ::"r"(id), "r"(count) : "memory");
#else
  emulate::Machine::get().named_barrier(id, count, true, race);
#endif
}

__device__ __forceinline__ void arrive_some(int id, int count, [[maybe_unused]] const char* race) {
#ifdef __CUDACC__
  asm volatile("bar.arrive %0, %1;" ::"r"(id), "r"(count) : "memory");
#else
  emulate::Machine::get().named_barrier(id, count, false, race);
#endif
}

// Orders the memory accesses of the threads of a warp before and after.
__device__ __forceinline__ void sync_warp([[maybe_unused]] const char* race) {
#ifdef __CUDACC__
  __syncwarp();
#else
  emulate::Machine::get().warp_barrier(race);
#endif
}

// Registers of each thread from here on ("setmaxnreg"): a warpgroup releases some, another waits for them.
template <int COUNT>
__device__ __forceinline__ void give_registers() {
  static_assert(COUNT % 8 == 0 && COUNT >= 24 && COUNT <= 256);
#ifdef __CUDACC__
  asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(COUNT));
#endif
}

template <int COUNT>
__device__ __forceinline__ void take_registers() {
  static_assert(COUNT % 8 == 0 && COUNT >= 24 && COUNT <= 256);
#ifdef __CUDACC__
  asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(COUNT));
#endif
}

// ---- mbarriers ("Parallel Synchronization and Communication Instructions: mbarrier") -----------------------------------

// 8 bytes of shared memory. A phase completes with `arrivals` arrivals and all bytes that were expected.
__device__ __forceinline__ void mbarrier_init(uint32_t mbarrier, int arrivals) {
#ifdef __CUDACC__
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(mbarrier), "r"(arrivals) : "memory");
#else
  emulate::Hopper::get().make(mbarrier, arrivals);
#endif
}

// By the thread that initialised them, before copies use them.
__device__ __forceinline__ void fence_mbarrier_init([[maybe_unused]] const char* race) {
#ifdef __CUDACC__
  asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
#else
  emulate::Hopper::get().fence_made(race);
#endif
}

// Loads of shared memory have happened where something depended on them; a copy that this lets in may overtake others.
__device__ __forceinline__ void arrive(uint32_t mbarrier, [[maybe_unused]] const char* race) {
#ifdef __CUDACC__
  asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(mbarrier) : "memory");
#else
  emulate::Hopper::get().arrive(mbarrier, 0, race);
#endif
}

// Arrives, and has this phase wait for so many bytes of copies.
__device__ __forceinline__ void arrive_expecting(uint32_t mbarrier, uint32_t bytes, [[maybe_unused]] const char* race) {
#ifdef __CUDACC__
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(mbarrier), "r"(bytes) : "memory");
#else
  emulate::Hopper::get().arrive(mbarrier, bytes, race);
#endif
}

// Until the phase of this parity is complete. Phases count from 0; of a fresh mbarrier, parity 1 is complete.
__device__ __forceinline__ void wait(uint32_t mbarrier, uint32_t parity, [[maybe_unused]] const char* race) {
#ifdef __CUDACC__
  uint32_t complete = 0;
  while (!complete)
    asm volatile(
        "{\n"
        ".reg .pred p;\n"
        "mbarrier.try_wait.parity.shared::cta.b64 p, [%1], %2;\n"
        "selp.u32 %0, 1, 0, p;\n"
        "}"
        : "=r"(complete)
        : "r"(mbarrier), "r"(parity)
        : "memory");
#else
  emulate::Hopper::get().wait(mbarrier, parity, race);
#endif
}

// ---- clusters: blocks that run together and reach each other's shared memory ("Cluster of Cooperative Thread Arrays"). In the
// emulator each block is a cluster of its own. ---------------------------------------------------------------------------

__device__ __forceinline__ int rank_in_cluster() {
#ifdef __CUDACC__
  int rank;
  asm volatile("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
  return rank;
#else
  return 0;
#endif
}

// All threads of the cluster.
__device__ __forceinline__ void sync_cluster([[maybe_unused]] const char* race) {
#ifdef __CUDACC__
  asm volatile("barrier.cluster.arrive.release;\nbarrier.cluster.wait.acquire;" ::: "memory");
#else
  barrier(race);
#endif
}

// At the mbarrier of this address in the shared memory of the cluster's block `rank`.
__device__ __forceinline__ void arrive_at(uint32_t mbarrier, [[maybe_unused]] int rank, [[maybe_unused]] const char* race) {
#ifdef __CUDACC__
  asm volatile(
      "{\n"
      ".reg .b32 remote;\n"
      "mapa.shared::cluster.u32 remote, %0, %1;\n"
      "mbarrier.arrive.shared::cluster.b64 _, [remote];\n"
      "}" ::"r"(mbarrier),
      "r"(rank)
      : "memory");
#else
  arrive(mbarrier, race);
#endif
}

// ---- copies ("cp.async.bulk.tensor", "Swizzling Modes") -------------------------------------------------------

__device__ __forceinline__ void prefetch([[maybe_unused]] const TensorMap& map) {
#ifdef __CUDACC__
  asm volatile("prefetch.tensormap [%0];" ::"l"(&map) : "memory");
#endif
}

// A box of the map's tensor from the given coordinates on, into shared memory, zeros outside of the tensor. One thread issues
// it. The whole box's bytes count at the mbarrier. Row r of 128 bytes lies at to + 128 r, its 16 bytes c at c ^ (r % 8).
__device__ __forceinline__ void load_tile(uint32_t to, const TensorMap& map, uint32_t mbarrier, int c0, int c1, int c2, int c3) {
#ifdef __CUDACC__
  asm volatile(
      "cp.async.bulk.tensor.4d.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1, {%3, %4, %5, %6}], [%2];" ::"r"(
          to),
      "l"(&map), "r"(mbarrier), "r"(c0), "r"(c1), "r"(c2), "r"(c3)
      : "memory");
#else
  emulate::Hopper::get().load(to, map, mbarrier, {c0, c1, c2, c3});
#endif
}

// The same for all blocks of a cluster of `blocks`, to the same address, and counted at the mbarrier of each.
__device__ __forceinline__ void load_tile_for_all([[maybe_unused]] int blocks, uint32_t to, const TensorMap& map, uint32_t mbarrier,
                                                  int c0, int c1, int c2, int c3) {
#ifdef __CUDACC__
  asm volatile(
      "cp.async.bulk.tensor.4d.shared::cluster.global.mbarrier::complete_tx::bytes.multicast::cluster [%0], [%1, {%3, %4, %5, "
      "%6}], [%2], %7;" ::"r"(to),
      "l"(&map), "r"(mbarrier), "r"(c0), "r"(c1), "r"(c2), "r"(c3), "h"(uint16_t((1 << blocks) - 1))
      : "memory");
#else
  load_tile(to, map, mbarrier, c0, c1, c2, c3);
#endif
}

// A box of shared memory, laid out as load_tile does it, into the map's tensor; what is outside of that is left out.
__device__ __forceinline__ void store_tile(const TensorMap& map, uint32_t from, int c0, int c1, int c2, int c3) {
#ifdef __CUDACC__
  asm volatile("cp.async.bulk.tensor.4d.global.shared::cta.bulk_group [%0, {%2, %3, %4, %5}], [%1];" ::"l"(&map), "r"(from),
               "r"(c0), "r"(c1), "r"(c2), "r"(c3)
               : "memory");
#else
  emulate::Hopper::get().store(from, map, {c0, c1, c2, c3});
#endif
}

// Ends a group of this thread's stores ("cp.async.bulk.commit_group").
__device__ __forceinline__ void commit_stores([[maybe_unused]] const char* race) {
#ifdef __CUDACC__
  asm volatile("cp.async.bulk.commit_group;" ::: "memory");
#else
  emulate::Hopper::get().commit_stores(race);
#endif
}

// Waits until at most LEFT of this thread's groups have yet to read shared memory ("cp.async.bulk.wait_group.read").
template <int LEFT>
__device__ __forceinline__ void wait_stores([[maybe_unused]] const char* race) {
#ifdef __CUDACC__
  asm volatile("cp.async.bulk.wait_group.read %0;" ::"n"(LEFT) : "memory");
#else
  emulate::Hopper::get().wait_stores(LEFT, race);
#endif
}

// So many bytes, a multiple of 16 from a multiple of 16 to one ("cp.async.bulk").
__device__ __forceinline__ void load_bytes(uint32_t to, const void* from, uint32_t bytes, uint32_t mbarrier) {
#ifdef __CUDACC__
  asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::"r"(to),
               "l"(__cvta_generic_to_global(from)), "r"(bytes), "r"(mbarrier)
               : "memory");
#else
  emulate::Hopper::get().load_bytes(to, static_cast<const unsigned char*>(from), bytes, mbarrier);
#endif
}

// This thread's stores to shared memory, before wgmma or copies read them ("Async proxy"). A barrier must follow.
__device__ __forceinline__ void fence_async([[maybe_unused]] const char* race) {
#ifdef __CUDACC__
  asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
#else
  emulate::Hopper::get().fence_async(race);
#endif
}

// ---- shared memory by address ------------------------------------------------------------------------------------------

// Where 16 bytes lie in a tile of 128-byte swizzle, which starts at a multiple of 1024.
__device__ __forceinline__ uint32_t in_tile(uint32_t tile, int row, int chunk) {
  return tile + row * kSwizzleRow + ((chunk ^ (row & 7)) << 4);
}

__device__ __forceinline__ void store_shared(uint32_t address, uint32_t value) {
#ifdef __CUDACC__
  asm volatile("st.shared.b32 [%0], %1;" ::"r"(address), "r"(value) : "memory");
#else
  unsigned char* at = emulate::Hopper::shared(address, 4);
  emulate::Machine::get().touch(at, 4, true, true);
  std::memcpy(at, &value, 4);
#endif
}

__device__ __forceinline__ uint32_t load_shared_word(uint32_t address) {
  uint32_t value;
#ifdef __CUDACC__
  asm volatile("ld.shared.b32 %0, [%1];" : "=r"(value) : "r"(address) : "memory");
#else
  unsigned char* at = emulate::Hopper::shared(address, 4);
  emulate::Machine::get().touch(at, 4, false, true);
  std::memcpy(&value, at, 4);
#endif
  return value;
}

__device__ __forceinline__ Pack<uint32_t, 4> load_shared(uint32_t address) {
  Pack<uint32_t, 4> out;
#ifdef __CUDACC__
  asm volatile("ld.shared.v4.b32 {%0, %1, %2, %3}, [%4];"
               : "=r"(out.v[0]), "=r"(out.v[1]), "=r"(out.v[2]), "=r"(out.v[3])
               : "r"(address)
               : "memory");
#else
  unsigned char* at = emulate::Hopper::shared(address, 16);
  emulate::Machine::get().touch(at, 16, false, true);
  std::memcpy(&out, at, 16);
#endif
  return out;
}

// ---- additions to global memory ("red", "atom") --------------------------------------------------------------------------------

// Adds to four neighbours, from a multiple of 16 bytes on, in no order among concurrent additions.
__device__ __forceinline__ void add_global(float* to, const Pack<float, 4>& values) {
#ifdef __CUDACC__
  asm volatile("red.relaxed.gpu.global.add.v4.f32 [%0], {%1, %2, %3, %4};" ::"l"(__cvta_generic_to_global(to)),
               "f"(values.v[0]), "f"(values.v[1]), "f"(values.v[2]), "f"(values.v[3])
               : "memory");
#else
  emulate::Machine::get().adds(to, 16);
  for (int i = 0; i < 4; ++i) to[i] += values.v[i];
#endif
}

// Counts one up, in no order among concurrent counts ("atom"). -> what it was.
__device__ __forceinline__ int count_global(int* counter) {
#ifdef __CUDACC__
  int before;
  asm volatile("atom.relaxed.gpu.global.add.u32 %0, [%1], 1;"
               : "=r"(before)
               : "l"(__cvta_generic_to_global(counter))
               : "memory");
  return before;
#else
  emulate::Machine::get().adds(counter, 4);
  return (*counter)++;
#endif
}

#endif  // HOPPER_CODE

}  // namespace hopper
