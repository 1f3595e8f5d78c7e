// Descriptors of tensors for TMA (cuTensorMapEncodeTiled): host code. The driver's function is looked up at first use, so
// that the library loads on machines without a driver.
#pragma once

#include <atomic>

#include "common/hopper.h"
#include "common/torch_glue.h"

namespace hopper {

#ifdef __CUDACC__
using Encode = CUresult (*)(CUtensorMap*, CUtensorMapDataType, cuuint32_t, void*, const cuuint64_t*, const cuuint64_t*,
                            const cuuint32_t*, const cuuint32_t*, CUtensorMapInterleave, CUtensorMapSwizzle,
                            CUtensorMapL2promotion, CUtensorMapFloatOOBfill);

// The driver's cuTensorMapEncodeTiled: from the runtime that this process' tensors use, else by the library's name. Only
// success is cached: on an H100 one process of fourteen once failed to find it by name, and would never have looked again.
inline Encode encoder() {
  static std::atomic<Encode> known{nullptr};
  Encode encode = known.load();
  if (encode != nullptr) return encode;
  constexpr const char* kName = "cuTensorMapEncodeTiled";
  void* found = nullptr;
  cudaDriverEntryPointQueryResult status = cudaDriverEntryPointSymbolNotFound;
#if CUDART_VERSION >= 12050
  const cudaError_t error = cudaGetDriverEntryPointByVersion(kName, &found, 12000, cudaEnableDefault, &status);
#else
  const cudaError_t error = cudaGetDriverEntryPoint(kName, &found, cudaEnableDefault, &status);
#endif
  if (error != cudaSuccess || status != cudaDriverEntryPointSuccess) {
    (void)cudaGetLastError();
    found = nullptr;
  }
  if (found == nullptr)
    if (void* driver = dlopen("libcuda.so.1", RTLD_LAZY)) found = dlsym(driver, kName);
  const char* said = found == nullptr ? dlerror() : nullptr;
  CHECK_INPUT(found != nullptr, "emergence_cuda: no cuTensorMapEncodeTiled: the runtime says ", int(error), " and ",
                  int(status), ", the loader ", said != nullptr ? said : "nothing");
  encode = reinterpret_cast<Encode>(found);
  known.store(encode);
  return encode;
}
#endif

// Boxes of 64 adjacent values by `rows` rows, in 128-byte swizzle, of a tensor of four dimensions, or of a part of it: its sizes, the
// adjacent one first, and the strides of the others in elements. Coordinates of a copy are in the order of the sizes.
struct Extent {
  int64_t sizes[4], strides[3];
};

inline TensorMap boxes_of(const glue::Tensor& t, const Extent& extent, int rows) {
  constexpr int kElement = 2, kSlab = kSwizzleRow / kElement;
  // The stride of a dimension of size 1 is irrelevant, and may be one that TMA rejects.
  const auto bytes = [&](int d) { return extent.sizes[d + 1] > 1 ? extent.strides[d] * kElement : int64_t(kSwizzleRow); };
  for (int d = 0; d < 3; ++d)
    CHECK_INPUT(bytes(d) > 0 && bytes(d) % 16 == 0, "emergence_cuda: strides must be multiples of 16 bytes, not 0");
  CHECK_INPUT(t.stride(t.dim() - 1) == 1 && glue::aligned(t.data_ptr(), 16),
                  "emergence_cuda: features must be adjacent, and tensors start at a multiple of 16 bytes");
  const glue::OnDevice bound(t);
#ifdef __CUDACC__
  const Encode encode = encoder();
  cuuint64_t sizes[4], strides[3];
  for (int d = 0; d < 4; ++d) sizes[d] = cuuint64_t(extent.sizes[d]);
  for (int d = 0; d < 3; ++d) strides[d] = cuuint64_t(bytes(d));
  const cuuint32_t box[4] = {kSlab, cuuint32_t(rows), 1, 1}, steps[4] = {1, 1, 1, 1};
  TensorMap map;
  const CUresult result = encode(
      &map, t.scalar_type() == glue::ScalarType::Half ? CU_TENSOR_MAP_DATA_TYPE_FLOAT16 : CU_TENSOR_MAP_DATA_TYPE_BFLOAT16, 4,
      t.data_ptr(), sizes, strides, box, steps, CU_TENSOR_MAP_INTERLEAVE_NONE, CU_TENSOR_MAP_SWIZZLE_128B,
      CU_TENSOR_MAP_L2_PROMOTION_L2_256B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  CHECK_INPUT(result == CUDA_SUCCESS, "emergence_cuda: cuTensorMapEncodeTiled says ", int(result));
  return map;
#else
  CHECK_INPUT(emulate::Context::bound > 0, "emergence_cuda: cuTensorMapEncodeTiled says 201");
  return {static_cast<unsigned char*>(t.data_ptr()),
          {extent.sizes[0], extent.sizes[1], extent.sizes[2], extent.sizes[3]},
          {kElement, bytes(0), bytes(1), bytes(2)},
          {kSlab, rows, 1, 1},
          kElement};
#endif
}

// Tiles of (batch, positions, heads, features): `rows` positions of 64 features of one head.
// Coordinates of a load: feature, position, head, batch.
inline TensorMap tiles_of(const glue::Tensor& t, int rows) {
  return boxes_of(t, {{t.size(3), t.size(1), t.size(2), t.size(0)}, {t.stride(1), t.stride(2), t.stride(0)}}, rows);
}

}  // namespace hopper
