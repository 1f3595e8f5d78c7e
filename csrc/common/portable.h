// The dialect of the kernels: CUDA, or, without nvcc, the same source on a CPU (emulate.h, for tests).
//
// All traffic with global memory goes through load() and store(), with shared memory through SHARED arrays, and every
// barrier states the race that it prevents. On a GPU these are the plain operations; the emulator checks them.
#pragma once

#include <cstddef>
#include <cstdint>
#include <type_traits>

#ifdef __CUDACC__
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

using bf16 = __nv_bfloat16;
using f16 = __half;

#define SHARED(type, name, count) __shared__ type name[count]
#define DYNAMIC_SHARED(type, name)                           \
  extern __shared__ __align__(16) unsigned char name##_bytes[]; \
  type* name = reinterpret_cast<type*>(name##_bytes)

#else
#include "emulator/emulate.h"

struct bf16 {
  uint16_t bits;
};
using f16 = _Float16;

#define SHARED(type, name, count)        \
  static type name##_data[count];        \
  emulate::Shared<type> name(name##_data, count)
#define DYNAMIC_SHARED(type, name) auto name = emulate::dynamic_shared<type>()
#endif

namespace portable {

constexpr int kWarp = 32;
constexpr float kLow = -1.0e30f;  // value of masked entries; finite, so that 0 * kLow is 0
constexpr float kLog2e = 1.4426950408889634f;

// ---- numbers ---------------------------------------------------------------------------------------------------------

__device__ __forceinline__ float to_float(float x) { return x; }

template <typename T>
__device__ __forceinline__ T from_float(float x);

template <>
__device__ __forceinline__ float from_float<float>(float x) {
  return x;
}

#ifdef __CUDACC__
__device__ __forceinline__ float to_float(bf16 x) { return __bfloat162float(x); }
__device__ __forceinline__ float to_float(f16 x) { return __half2float(x); }
template <>
__device__ __forceinline__ bf16 from_float<bf16>(float x) {
  return __float2bfloat16_rn(x);
}
template <>
__device__ __forceinline__ f16 from_float<f16>(float x) {
  return __float2half_rn(x);
}
__device__ __forceinline__ float reciprocal_root(float x) { return rsqrtf(x); }
#else
inline float to_float(bf16 x) {
  const uint32_t bits = uint32_t(x.bits) << 16;
  float value;
  std::memcpy(&value, &bits, 4);
  return value;
}
inline float to_float(f16 x) { return float(x); }
template <>
inline bf16 from_float<bf16>(float x) {
  uint32_t bits;
  std::memcpy(&bits, &x, 4);
  if (x != x) return {0x7fc0};
  return {uint16_t((bits + 0x7fff + (bits >> 16 & 1)) >> 16)};  // to the nearest, ties to even
}
template <>
inline f16 from_float<f16>(float x) {
  return f16(x);
}
inline float reciprocal_root(float x) { return 1.0f / std::sqrt(x); }
#endif

// exp2 by the special-function unit: 2 ulp; results below 2^-126 become 0.
__device__ __forceinline__ float exp2_fast(float x) {
#ifdef __CUDACC__
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
#else
  return std::exp2(x);
#endif
}

// exp: 2 ulp near 0, relative error 2^-24 |x| below; the callers' x is never positive. __expf would keep results below 2^-126,
// for three instructions more.
__device__ __forceinline__ float exp_fast(float x) { return exp2_fast(x * kLog2e); }

// Two values rounded to T, as registers hold them: the first in the low half.
template <typename T>
__device__ __forceinline__ uint32_t packed(float low, float high) {
#ifdef __CUDACC__
  std::conditional_t<std::is_same_v<T, bf16>, __nv_bfloat162, __half2> both;
  if constexpr (std::is_same_v<T, bf16>)
    both = __floats2bfloat162_rn(low, high);
  else
    both = __floats2half2_rn(low, high);
#else
  const T both[2] = {from_float<T>(low), from_float<T>(high)};
#endif
  uint32_t bits;
  memcpy(&bits, &both, 4);
  return bits;
}

// ---- memory ----------------------------------------------------------------------------------------------------------

// N values in one access; 16 bytes are the widest that a thread can issue.
template <typename T, int N>
struct alignas(sizeof(T) * N) Pack {
  T v[N];
};

template <typename T>
__device__ __forceinline__ T load(const T* address) {
#ifndef __CUDACC__
  emulate::Machine::get().global(address, sizeof(T), false);
#endif
  return *address;
}

template <typename T>
__device__ __forceinline__ void store(T* address, const T& value) {
#ifndef __CUDACC__
  emulate::Machine::get().global(address, sizeof(T), true);
#endif
  *address = value;
}

// The same in one instruction. Left to the compiler, four 16-bit values of a Pack were stored one by one.
template <typename T, int N>
__device__ __forceinline__ void store(Pack<T, N>* address, const Pack<T, N>& value) {
#ifdef __CUDACC__
  if constexpr (sizeof(value) == 8 || sizeof(value) == 16) {
    uint32_t bits[sizeof(value) / 4];
    memcpy(bits, &value, sizeof(value));
    const auto to = __cvta_generic_to_global(address);
    if constexpr (sizeof(value) == 8)
      asm volatile("st.global.v2.b32 [%0], {%1, %2};" ::"l"(to), "r"(bits[0]), "r"(bits[1]) : "memory");
    else
      asm volatile("st.global.v4.b32 [%0], {%1, %2, %3, %4};" ::"l"(to), "r"(bits[0]), "r"(bits[1]), "r"(bits[2]), "r"(bits[3])
                   : "memory");
  } else {
    *address = value;
  }
#else
  emulate::Machine::get().global(address, sizeof(value), true);
  *address = value;
#endif
}

// Adds in global memory, in no order among concurrent additions.
__device__ __forceinline__ void add_global(float* address, float value) {
#ifdef __CUDACC__
  asm volatile("red.relaxed.gpu.global.add.f32 [%0], %1;" ::"l"(__cvta_generic_to_global(address)), "f"(value) : "memory");
#else
  emulate::Machine::get().adds(address, 4);
  *address += value;
#endif
}

// From here on memory is read again, instead of registers keeping what was read.
__device__ __forceinline__ void forget_loads() {
#ifdef __CUDACC__
  asm volatile("" ::: "memory");
#endif
}

// ---- threads ---------------------------------------------------------------------------------------------------------

// All threads of the block. `race`: the race without it.
__device__ __forceinline__ void barrier([[maybe_unused]] const char* race) {
#ifdef __CUDACC__
  __syncthreads();
#else
  emulate::Machine::get().barrier(race);
#endif
}

// `count` threads of the block, in whole warps, that meet at barrier `id` (1 to 15).
__device__ __forceinline__ void barrier_among(int id, int count, [[maybe_unused]] const char* race) {
#ifdef __CUDACC__
  asm volatile("bar.sync %0, %1;" ::"r"(id), "r"(count) : "memory");
#else
  emulate::Machine::get().named_barrier(id, count, true, race);
#endif
}

// The value of the lane whose number differs in `bits`; all 32 lanes take part.
__device__ __forceinline__ float from_lane_xor(float value, int bits) {
#ifdef __CUDACC__
  return __shfl_xor_sync(0xffffffffu, value, bits);
#else
  uint64_t raw = 0;
  std::memcpy(&raw, &value, 4);
  raw = emulate::Machine::get().shuffle(raw, int(threadIdx.x % kWarp) ^ bits);
  std::memcpy(&value, &raw, 4);
  return value;
#endif
}

// Every lane gets the sum, and the same one: a butterfly adds the same pairs on all of them.
__device__ __forceinline__ float warp_sum(float value) {
#pragma unroll
  for (int bits = kWarp / 2; bits > 0; bits /= 2) value += from_lane_xor(value, bits);
  return value;
}

}  // namespace portable
