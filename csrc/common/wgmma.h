// Hopper's products (sm_90a): wgmma on matrices in shared memory or registers, as common/hopper.h wraps the other instructions.
#pragma once

#include "common/hopper.h"

namespace hopper {

#if HOPPER_CODE

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
