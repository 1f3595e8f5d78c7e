// Hopper's asynchronous instructions (sm_90a): mbarriers, copies of tiles by TMA, warpgroup products. Thin wrappers of one
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

// ---- products ("Asynchronous Warpgroup Level Matrix Instructions") -----------------------------------------------------

// Matrices of 16-bit numbers in tiles of 128-byte swizzle ("Matrix Descriptor Format": bits 0-13 address, 16-29 leading and
// 32-45 stride offset, each / 16, 62-63 the swizzle). An instruction takes 16 steps of k.
//
// Rows of k: k is adjacent. Rows come in groups of eight, 1024 bytes apart; the leading offset is ignored. 16 steps of k
// further is 32 bytes further, since the swizzle applies to the whole address.
__device__ __forceinline__ uint64_t rows_of_k(uint32_t address) {
  return uint64_t(address & 0x3ffff) >> 4 | uint64_t(1) << 16 | uint64_t(1024 >> 4) << 32 | uint64_t(1) << 62;
}

// Columns of k ("MN-major", transposed): a row of 64 m or n for each k. Eight k are 1024 bytes; 64 m or n further is `slab`.
__device__ __forceinline__ uint64_t columns_of_k(uint32_t address, uint32_t slab) {
  return uint64_t(address & 0x3ffff) >> 4 | uint64_t(slab >> 4) << 16 | uint64_t(1024 >> 4) << 32 | uint64_t(1) << 62;
}

// Before the first product, and wherever registers of products were used by anything else since.
__device__ __forceinline__ void fence_products([[maybe_unused]] const char* race) {
#ifdef __CUDACC__
  asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
#else
  emulate::Hopper::get().fence_registers(race);
#endif
}

// Ends a group of products.
__device__ __forceinline__ void commit_products([[maybe_unused]] const char* race) {
#ifdef __CUDACC__
  asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
#else
  emulate::Hopper::get().commit(race);
#endif
}

// Waits until at most LEFT groups are pending; results of the others can be read, and their operands overwritten.
template <int LEFT>
__device__ __forceinline__ void wait_products([[maybe_unused]] const char* race) {
#ifdef __CUDACC__
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(LEFT) : "memory");
#else
  emulate::Hopper::get().wait_products(LEFT, race);
#endif
}

// Tells the compiler that an asynchronous product may have these registers: no use of them moves across.
template <int N>
__device__ __forceinline__ void hold([[maybe_unused]] float (&registers)[N]) {
#ifdef __CUDACC__
#pragma unroll
  for (int i = 0; i < N; ++i) asm volatile("" : "+f"(registers[i])::"memory");
#endif
}

// Tells the assembler that `never_negative` is computed before what follows, which is a wait: it would move the wait up, for
// nothing seems to need what is computed during it. A branch on the result keeps the order, and is never taken.
__device__ __forceinline__ void settle([[maybe_unused]] float never_negative) {
#ifdef __CUDACC__
  if (never_negative < 0.0f) __nanosleep(0);
#endif
}

template <int N>
__device__ __forceinline__ void settle([[maybe_unused]] const float (&never_negative)[N]) {
#ifdef __CUDACC__
  float sum = 0.0f;
#pragma unroll
  for (int i = 0; i < N; ++i) sum += never_negative[i];
  settle(sum);
#endif
}

// d (64, N) = a (64, 16) b (16, N), + d where `add`. Of warp w's 16 rows lane l has, in d[i], row l / 4 + i / 2 % 2 * 8 and
// column i / 4 * 8 + l % 4 * 2 + i % 2 ("Register Fragments for wgmma.mma_async.m64nNk16").
template <typename T, int N>
struct Products;

#ifdef __CUDACC__
#define HOPPER_32 \
  "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, " \
  "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31"
#define HOPPER_64 \
  "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, " \
  "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, " \
  "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, " \
  "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63"
#define HOPPER_128 \
  "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, " \
  "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, " \
  "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, " \
  "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63, " \
  "%64, %65, %66, %67, %68, %69, %70, %71, %72, %73, %74, %75, %76, %77, %78, %79, " \
  "%80, %81, %82, %83, %84, %85, %86, %87, %88, %89, %90, %91, %92, %93, %94, %95, " \
  "%96, %97, %98, %99, %100, %101, %102, %103, %104, %105, %106, %107, %108, %109, %110, %111, " \
  "%112, %113, %114, %115, %116, %117, %118, %119, %120, %121, %122, %123, %124, %125, %126, %127"
#define HOPPER_4(i) "+f"(d[i]), "+f"(d[i + 1]), "+f"(d[i + 2]), "+f"(d[i + 3])
#define HOPPER_16(i) HOPPER_4(i), HOPPER_4(i + 4), HOPPER_4(i + 8), HOPPER_4(i + 12)
#define HOPPER_OUT_32 HOPPER_16(0), HOPPER_16(16)
#define HOPPER_OUT_64 HOPPER_OUT_32, HOPPER_16(32), HOPPER_16(48)
#define HOPPER_OUT_128 HOPPER_OUT_64, HOPPER_16(64), HOPPER_16(80), HOPPER_16(96), HOPPER_16(112)

// Operands after the R registers of d: a and b, whether to add, signs of a and b, whether they are transposed.
#define HOPPER_PRODUCTS(T, N, R, kind, p1, p2, p3, p4, p5, p6, p7)                                                             \
  template <>                                                                                                              \
  struct Products<T, N> {                                                                                                  \
    template <int TRANSPOSED_A, int TRANSPOSED_B>                                                                          \
    static __device__ __forceinline__ void shared(float (&d)[R], uint64_t a, uint64_t b, int add) {                        \
      asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, %" p3 ", 0;\nwgmma.mma_async.sync.aligned.m64n" #N "k16.f32." kind    \
                   "." kind " {" HOPPER_##R "}, %" p1 ", %" p2 ", p, 1, 1, %" p4 ", %" p5 ";\n}"                           \
                   : HOPPER_OUT_##R                                                                                        \
                   : "l"(a), "l"(b), "r"(add), "n"(TRANSPOSED_A), "n"(TRANSPOSED_B));                                      \
    }                                                                                                                      \
    template <int TRANSPOSED_B>                                                                                            \
    static __device__ __forceinline__ void registers(float (&d)[R], const uint32_t (&a)[4], uint64_t b, int add) {         \
      asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, %" p6 ", 0;\nwgmma.mma_async.sync.aligned.m64n" #N "k16.f32." kind    \
                   "." kind " {" HOPPER_##R "}, {%" p1 ", %" p2 ", %" p3 ", %" p4 "}, %" p5 ", p, 1, 1, %" p7 ";\n}"       \
                   : HOPPER_OUT_##R                                                                                        \
                   : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(add), "n"(TRANSPOSED_B));                     \
    }                                                                                                                      \
  }
HOPPER_PRODUCTS(bf16, 64, 32, "bf16", "32", "33", "34", "35", "36", "37", "38");
HOPPER_PRODUCTS(f16, 64, 32, "f16", "32", "33", "34", "35", "36", "37", "38");
HOPPER_PRODUCTS(bf16, 128, 64, "bf16", "64", "65", "66", "67", "68", "69", "70");
HOPPER_PRODUCTS(f16, 128, 64, "f16", "64", "65", "66", "67", "68", "69", "70");
HOPPER_PRODUCTS(bf16, 256, 128, "bf16", "128", "129", "130", "131", "132", "133", "134");
HOPPER_PRODUCTS(f16, 256, 128, "f16", "128", "129", "130", "131", "132", "133", "134");

#else

template <typename T, int N>
struct Products {
  static float convert(const unsigned char* bytes) {
    T value;
    std::memcpy(&value, bytes, sizeof(T));
    return to_float(value);
  }
  template <int TRANSPOSED_A, int TRANSPOSED_B>
  static void shared(float (&d)[N / 2], uint64_t a, uint64_t b, int add) {
    emulate::Hopper::get().issue({d, nullptr, a, b, N, TRANSPOSED_A != 0, TRANSPOSED_B != 0, add != 0, &convert});
  }
  template <int TRANSPOSED_B>
  static void registers(float (&d)[N / 2], const uint32_t (&a)[4], uint64_t b, int add) {
    emulate::Hopper::get().issue({d, a, 0, b, N, false, TRANSPOSED_B != 0, add != 0, &convert});
  }
};

#endif
#endif  // HOPPER_CODE

}  // namespace hopper
