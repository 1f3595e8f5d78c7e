// Sums over the batch at each position, in a fixed order and in double, for the `positions` tables.
//
// A thread owns a position and loops over the batch, so accesses are coalesced and the order of sums is fixed. The batch of a
// micro-step is short (1 to 64), so it is not split.

#include "common/torch_glue.h"

using namespace portable;

namespace {

// token_loss, entropy (B, T) float32; valid, correct (B, T) bool -> (T,) each.
__global__ void position_sums_kernel(const float* token_loss, const bool* valid, const bool* correct, const float* entropy,
                                     int64_t* count, double* loss_sum, double* loss_sq_sum, int64_t* correct_sum,
                                     double* entropy_sum, int64_t B, int64_t T) {
  const int64_t t = int64_t(blockIdx.x) * blockDim.x + threadIdx.x;
  if (t >= T) return;
  int64_t tokens = 0, hits = 0;
  double sum = 0.0, squares = 0.0, entropies = 0.0;
#pragma unroll 4
  for (int64_t b = 0; b < B; ++b) {
    const int64_t i = b * T + t;
    const double loss = load(token_loss + i);
    tokens += load(valid + i);
    hits += load(correct + i);
    sum += loss;
    squares += loss * loss;
    entropies += load(entropy + i);
  }
  store(count + t, tokens);
  store(loss_sum + t, sum);
  store(loss_sq_sum + t, squares);
  store(correct_sum + t, hits);
  store(entropy_sum + t, entropies);
}

using glue::Tensor;

void position_sums(const Tensor& token_loss, const Tensor& valid, const Tensor& correct, const Tensor& entropy,
                   const Tensor& count, const Tensor& loss_sum, const Tensor& loss_sq_sum, const Tensor& correct_sum,
                   const Tensor& entropy_sum) {
  operators::check_position_sums(token_loss, valid, correct, entropy, count, loss_sum, loss_sq_sum, correct_sum, entropy_sum);
  const int64_t B = token_loss.size(0), T = token_loss.size(1);
  if (T == 0) return;
  const int threads = 64;  // few positions: rather more blocks
  glue::launch(&position_sums_kernel, dim3(glue::divide_up(T, threads)), dim3(threads), 0, token_loss,
               {&token_loss, &valid, &correct, &entropy, &count, &loss_sum, &loss_sq_sum, &correct_sum, &entropy_sum},
               glue::pointer<float>(token_loss), glue::pointer<bool>(valid), glue::pointer<bool>(correct),
               glue::pointer<float>(entropy), glue::pointer<int64_t>(count), glue::pointer<double>(loss_sum),
               glue::pointer<double>(loss_sq_sum), glue::pointer<int64_t>(correct_sum), glue::pointer<double>(entropy_sum),
               B, T);
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(emergence_cuda, library) {
  library.def(POSITION_SUMS);
}

STABLE_TORCH_LIBRARY_IMPL(emergence_cuda, KERNELS_DEVICE, library) {
  library.impl("position_sums", TORCH_BOX(&position_sums));
}
