// Tensor cores of sm_80 and later, and asynchronous copies of operands: thin wrappers of PTX instructions. Without nvcc these
// instructions are emulated, with the layouts that the PTX ISA documents; tests/kernels/harness/tensor_cores_check.cpp checks those.
//
// A warp multiplies A (16, 16) by B (16, 8) and adds to C (16, 8). With g = lane / 4 and t = lane % 4 a lane holds
//
//   A   4 registers of two 16-bit values:  (g, 2t..) (g + 8, 2t..) (g, 2t + 8..) (g + 8, 2t + 8..)      (row, column)
//   B   2 registers of two 16-bit values:  (2t.., g) (2t + 8.., g)
//   C   4 floats:                          (g, 2t) (g, 2t + 1) (g + 8, 2t) (g + 8, 2t + 1)
//
// so C, rounded and packed, is laid out as the half of an A 16 columns wide: two of them make one, without a shuffle.
// Shared memory is an array of Chunks, 16 bytes each: what an instruction reads of a row, or a thread copies, at once.
#pragma once

#include <type_traits>

#include "common/portable.h"

#ifndef __CUDACC__
#include "emulator/emulate_tensor_cores.h"
#endif

namespace tensor_cores {

using namespace portable;

template <typename T>
using Chunk = Pack<T, 16 / sizeof(T)>;

#ifdef __CUDACC__
__device__ __forceinline__ uint32_t shared_address(const void* pointer) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(pointer));
}
#endif

// ---- instructions of a warp ------------------------------------------------------------------------------------------

// Four matrices of 8 rows of 8 values. Lane 8 m + r names row r of matrix m. Register m of a lane gets of matrix m the values
// (g, 2t) and (g, 2t + 1), or, transposed, (2t, g) and (2t + 1, g).
template <bool TRANSPOSED, typename Array>
__device__ __forceinline__ void load_matrices(uint32_t (&to)[4], Array& from, int chunk) {
#ifdef __CUDACC__
  const uint32_t address = shared_address(&from[chunk]);
  if constexpr (TRANSPOSED)
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
                 : "r"(address)
                 : "memory");
  else
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
                 : "r"(address)
                 : "memory");
#else
  emulate::load_matrices(to, from[chunk].pointer, TRANSPOSED);
#endif
}

// c += a b; products of 16-bit values are exact, the sums are in float32.
template <typename T>
__device__ __forceinline__ void multiply_add(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
#ifdef __CUDACC__
  if constexpr (std::is_same_v<T, bf16>)
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
  else
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
#else
  emulate::multiply_add(c, a, b0, b1, [](uint16_t bits) {
    T value;
    std::memcpy(&value, &bits, 2);
    return to_float(value);
  });
#endif
}

// ---- asynchronous copies --------------------------------------------------------------------------------------------

// 16 bytes from global to shared memory, past the L1 cache; zeros where `there` is false, and then `from` is not read.
template <typename Array, typename T>
__device__ __forceinline__ void copy_async(Array& to, int chunk, const T* from, bool there) {
#ifdef __CUDACC__
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;"
               :
               : "r"(shared_address(&to[chunk])), "l"(from), "r"(there ? 16 : 0)
               : "memory");
#else
  emulate::copy_async(to[chunk].pointer, from, there);
#endif
}

// The copies since the last call become a group.
__device__ __forceinline__ void commit_copies() {
#ifdef __CUDACC__
  asm volatile("cp.async.commit_group;" : : : "memory");
#else
  emulate::commit_copies();
#endif
}

// All of this thread's groups but the last N have landed. Copies of other threads also need a barrier.
template <int N>
__device__ __forceinline__ void wait_for_copies([[maybe_unused]] const char* race) {
#ifdef __CUDACC__
  asm volatile("cp.async.wait_group %0;" : : "n"(N) : "memory");
#else
  emulate::wait_for_copies(N, race);
#endif
}

// ---- shared memory ---------------------------------------------------------------------------------------------------

// Writes the values 2 i and 2 i + 1 of a chunk.
template <typename Array>
__device__ __forceinline__ void store_pair(Array& to, int chunk, int i, uint32_t bits) {
#ifdef __CUDACC__
  reinterpret_cast<uint32_t*>(&to[chunk])[i] = bits;
#else
  auto* address = reinterpret_cast<unsigned char*>(to[chunk].pointer) + 4 * i;
  emulate::Machine::get().touch(address, 4, true, true);
  std::memcpy(address, &bits, 4);
#endif
}

}  // namespace tensor_cores
