// Sums over the batch at each position, in order and in double: cuda/position_sums.cu on a CPU.

#include "cpu/cpu.h"

namespace {

using cpu::Tensor;

void position_sums(const Tensor& token_loss, const Tensor& valid, const Tensor& correct, const Tensor& entropy,
                   const Tensor& count, const Tensor& loss_sum, const Tensor& loss_sq_sum, const Tensor& correct_sum,
                   const Tensor& entropy_sum) {
  operators::check_position_sums(token_loss, valid, correct, entropy, count, loss_sum, loss_sq_sum, correct_sum, entropy_sum);
  const int64_t B = token_loss.size(0), T = token_loss.size(1);
  int64_t *tokens = cpu::pointer<int64_t>(count), *hits = cpu::pointer<int64_t>(correct_sum);
  double *sum = cpu::pointer<double>(loss_sum), *squares = cpu::pointer<double>(loss_sq_sum);
  double* entropies = cpu::pointer<double>(entropy_sum);
  std::fill(tokens, tokens + T, 0);
  std::fill(hits, hits + T, 0);
  for (double* out : {sum, squares, entropies}) std::fill(out, out + T, 0.0);
  for (int64_t b = 0; b < B; ++b) {
    const float *losses = cpu::pointer<float>(token_loss) + b * T, *e = cpu::pointer<float>(entropy) + b * T;
    const bool *is_valid = cpu::pointer<bool>(valid) + b * T, *is_correct = cpu::pointer<bool>(correct) + b * T;
    for (int64_t t = 0; t < T; ++t) {
      const double loss = losses[t];
      tokens[t] += is_valid[t];
      hits[t] += is_correct[t];
      sum[t] += loss;
      squares[t] += loss * loss;
      entropies[t] += e[t];
    }
  }
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(emergence_cpu, library) {
  library.def(POSITION_SUMS);
}

STABLE_TORCH_LIBRARY_IMPL(emergence_cpu, CPU, library) { library.impl("position_sums", TORCH_BOX(&position_sums)); }
