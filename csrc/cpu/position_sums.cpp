// Sums by position of given rows: cuda/position_sums.cu on a CPU.

#include "cpu/position_sums.h"

namespace {

using cpu::Tensor;

void position_sums(const Tensor& token_loss, const Tensor& valid, const Tensor& correct, const Tensor& entropy,
                   const Tensor& count, const Tensor& loss_sum, const Tensor& loss_sq_sum, const Tensor& correct_sum,
                   const Tensor& entropy_sum) {
  operators::check_position_sums(token_loss, valid, correct, entropy, count, loss_sum, loss_sq_sum, correct_sum, entropy_sum);
  cpu::sum_by_position(token_loss.size(0), token_loss.size(1), cpu::pointer<float>(token_loss), cpu::pointer<bool>(valid),
                       cpu::pointer<bool>(correct), cpu::pointer<float>(entropy),
                       {count, loss_sum, loss_sq_sum, correct_sum, entropy_sum});
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(emergence_cpu, library) {
  library.def(POSITION_SUMS);
}

STABLE_TORCH_LIBRARY_IMPL(emergence_cpu, CPU, library) { library.impl("position_sums", TORCH_BOX(&position_sums)); }
