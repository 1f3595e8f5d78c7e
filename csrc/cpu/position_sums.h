// Sums over the batch at each position, in order and in double.
#pragma once

#include "cpu/cpu.h"

namespace cpu {

// Of B x T tokens; each output has T.
struct PositionSums {
  int64_t *count, *correct;
  double *loss, *loss_sq, *entropy;

  PositionSums(const Tensor& count, const Tensor& loss, const Tensor& loss_sq, const Tensor& correct, const Tensor& entropy)
      : count(pointer<int64_t>(count)), correct(pointer<int64_t>(correct)), loss(pointer<double>(loss)),
        loss_sq(pointer<double>(loss_sq)), entropy(pointer<double>(entropy)) {}
};

inline void sum_by_position(int64_t B, int64_t T, const float* losses, const bool* valid, const bool* correct,
                            const float* entropies, const PositionSums& sums) {
  for (int64_t* out : {sums.count, sums.correct}) std::fill(out, out + T, 0);
  for (double* out : {sums.loss, sums.loss_sq, sums.entropy}) std::fill(out, out + T, 0.0);
  for (int64_t b = 0, n = 0; b < B; ++b)
    for (int64_t t = 0; t < T; ++t, ++n) {
      const double loss = losses[n];
      sums.count[t] += valid[n];
      sums.correct[t] += correct[n];
      sums.loss[t] += loss;
      sums.loss_sq[t] += loss * loss;
      sums.entropy[t] += entropies[n];
    }
}

}  // namespace cpu
