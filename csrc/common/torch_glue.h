// Between torch's stable ABI and the kernels: checks, the current stream, launches. Host code only.
//
// Only torch/csrc/stable is included, so that one binary works with every torch from 2.10 on and every Python. Outputs are
// allocated by the caller (*/compiled.py), so that the code depends only on the geometry of tensors.
#pragma once

#include <torch/csrc/stable/accelerator.h>

#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "common/operators.h"
#include "common/portable.h"

#ifdef __CUDACC__
#include <dlfcn.h>
#define KERNELS_DEVICE CUDA
#else
#define KERNELS_DEVICE CPU
#endif

namespace glue {

using operators::check_vector;
using operators::pointer;
using operators::ScalarType;
using operators::Tensor;

template <typename T>
struct scalar_type;
template <>
struct scalar_type<float> {
  static constexpr ScalarType value = ScalarType::Float;
};
template <>
struct scalar_type<bf16> {
  static constexpr ScalarType value = ScalarType::BFloat16;
};
template <>
struct scalar_type<f16> {
  static constexpr ScalarType value = ScalarType::Half;
};

// Calls f(T{}) for the tensor's floating-point type.
template <typename F>
void by_type(const Tensor& tensor, F&& f) {
  switch (tensor.scalar_type()) {
    case ScalarType::Float:
      return f(float{});
    case ScalarType::BFloat16:
      return f(bf16{});
    case ScalarType::Half:
      return f(f16{});
    default:
      CHECK_INPUT(false, "emergence_cuda: float32, bfloat16 or float16 expected");
  }
}

inline bool aligned(const void* pointer, size_t bytes) { return reinterpret_cast<uintptr_t>(pointer) % bytes == 0; }

inline unsigned divide_up(int64_t a, int64_t b) { return static_cast<unsigned>((a + b - 1) / b); }

#ifdef __CUDACC__

inline void check_cuda(cudaError_t error, const char* what) {
  CHECK_INPUT(error == cudaSuccess, "emergence_cuda: ", what, ": ", cudaGetErrorString(error));
}

// The function is in libtorch_cuda, missing in a CPU-only torch: looked up at first use, so that the library loads there.
inline cudaStream_t current_stream(int32_t device) {
  using Getter = int32_t (*)(int32_t, void**);
  static const Getter getter = [] {
    void* library = dlopen("libtorch_cuda.so", RTLD_LAZY | RTLD_NOLOAD);
    return library ? reinterpret_cast<Getter>(dlsym(library, "aoti_torch_get_current_cuda_stream")) : nullptr;
  }();
  CHECK_INPUT(getter != nullptr, "emergence_cuda: this torch has no CUDA");
  void* stream = nullptr;
  CHECK_INPUT(getter(device, &stream) == 0, "emergence_cuda: no current stream");
  return static_cast<cudaStream_t>(stream);
}

inline int multiprocessors(int32_t device) {
  int count = 0;
  check_cuda(cudaDeviceGetAttribute(&count, cudaDevAttrMultiProcessorCount, device), "device attributes");
  return count;
}

inline int shared_bytes_per_multiprocessor(int32_t device) {
  int bytes = 0;
  check_cuda(cudaDeviceGetAttribute(&bytes, cudaDevAttrMaxSharedMemoryPerMultiprocessor, device), "device attributes");
  return bytes;
}

// While it lives the device of `on` is current and its context bound to this thread, as functions of the driver require. torch's
// guard binds none where the device is current already, as in autograd's thread in the first backward pass of a process.
class OnDevice {
 public:
  explicit OnDevice(const Tensor& on) : guard_(on.get_device_index()) { check_cuda(cudaSetDevice(on.get_device_index()), "context"); }

 private:
  torch::stable::accelerator::DeviceGuard guard_;
};

// Launches on the device and current stream of `on`. `tensors`: all that the kernel accesses (checked by the emulator).
template <typename... Params, typename... Args>
void launch(void (*kernel)(Params...), dim3 grid, dim3 block, size_t shared_bytes, const Tensor& on,
            const std::vector<const Tensor*>&, Args... args) {
  const OnDevice bound(on);
  // More than 48 KB needs an attribute, and static shared memory counts too: hence well below that.
  if (shared_bytes > (32 << 10))
    check_cuda(cudaFuncSetAttribute(reinterpret_cast<const void*>(kernel), cudaFuncAttributeMaxDynamicSharedMemorySize,
                                    static_cast<int>(shared_bytes)),
               "shared memory");
  kernel<<<grid, block, shared_bytes, current_stream(on.get_device_index())>>>(static_cast<Params>(args)...);
  check_cuda(cudaGetLastError(), "launch");
}

#else

// Few enough for persistent kernels to loop more than once.
inline int multiprocessors(int32_t) {
  const char* count = std::getenv("EMERGENCE_EMULATE_MULTIPROCESSORS");
  return count ? std::atoi(count) : 3;
}

// So that a row of some hundred columns is kept in part, and both paths are tested.
inline int shared_bytes_per_multiprocessor(int32_t) { return 8 << 10; }

struct OnDevice : emulate::Context {
  explicit OnDevice(const Tensor&) {}
};

template <typename... Params, typename... Args>
void launch(void (*kernel)(Params...), dim3 grid, dim3 block, size_t shared_bytes, const Tensor&,
            const std::vector<const Tensor*>& tensors, Args... args) {
  std::vector<emulate::Range> ranges;
  for (const Tensor* tensor : tensors) {
    if (tensor == nullptr || tensor->numel() == 0) continue;
    int64_t last = 0;
    for (int64_t d = 0; d < tensor->dim(); ++d) last += (tensor->size(d) - 1) * tensor->stride(d);
    ranges.push_back({tensor->data_ptr(), size_t(last + 1) * tensor->element_size()});
  }
  if (emulate::elsewhere) {
    const std::tuple<Params...> held{static_cast<Params>(args)...};
    const unsigned shape[6] = {grid.x, grid.y, grid.z, block.x, block.y, block.z};
    const size_t sizes[] = {sizeof(Params)...};
    const char* failure = std::apply(
        [&](const auto&... values) {
          const void* pointers[] = {&values...};
          return emulate::elsewhere(reinterpret_cast<const void*>(kernel), shape, shared_bytes, ranges.data(), ranges.size(),
                                    pointers, sizes, sizeof...(Params));
        },
        held);
    if (failure) throw std::runtime_error(failure);
    return;
  }
  emulate::run(grid, block, shared_bytes, ranges, [&] { kernel(static_cast<Params>(args)...); });
}

#endif

inline const Tensor* given(const std::optional<Tensor>& tensor) { return tensor ? &*tensor : nullptr; }

}  // namespace glue
