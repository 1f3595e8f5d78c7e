// Rows of logits -> loss, log-sum-exp, top-1, entropy, and the gradient in place, on a CPU. The formulas, and the
// arguments, are those of cuda/loss_rows.cu. A row stays in the L1 cache for three passes: maximum;
// exponentials, their sum and their product with z; gradient.
//
// position_loss is all that the training loss is beside its products, for rows that are there at once: a CPU's step of a small
// model is as long as the number of its operations.

#include "cpu/position_sums.h"

#include <limits>
#include <memory>

namespace {

using cpu::ScalarType;
using cpu::Tensor;

struct Rows {
  float* z;
  float* dz;  // may be z
  int64_t stride_z, stride_dz, V;
  const int64_t* targets;
  const bool* valid;
  const float* scale;  // null: no gradient
  float *loss, *top, *log_total;
  bool* correct;
  float* entropy;
  float z_loss, softcap;
};

// Columns whose exponentials are summed in float32 before they are added to the row's sum, in double: this keeps the sum over a
// large vocabulary accurate.
constexpr int64_t kBlock = 512;

inline float capped(float z, float softcap) { return softcap == 0.0f ? z : softcap * std::tanh(z / softcap); }

CLONED void statistics(const Rows& rows, int64_t begin, int64_t end) {
  const int64_t V = rows.V;
  for (int64_t r = begin; r < end; ++r) {
    const float* z = rows.z + r * rows.stride_z;
    float* dz = rows.scale ? rows.dz + r * rows.stride_dz : nullptr;
    const int64_t target = rows.targets[r];
    float loss = 0.0f, top = 0.0f, log_total = 0.0f, entropy = 0.0f;
    bool correct = false;
    if (rows.valid[r]) {
      const bool known = target >= 0 && target < V;
      const float z_target = known ? capped(z[target], rows.softcap) : -INFINITY;
      top = -INFINITY;
      double total = 0.0, dot = 0.0;
      if (rows.softcap != 0.0f) {
        for (int64_t v = 0; v < V; ++v) top = std::max(top, capped(z[v], rows.softcap));
        for (int64_t v = 0; v < V; ++v) {
          const float t = capped(z[v], rows.softcap) - top, e = cpu::exp_negative(t);
          total += e;
          dot += e * t;
        }
      } else {
        top = cpu::maximum(z, V);
        for (int64_t block = 0; block < V; block += kBlock) {
          const int64_t stop = std::min(V, block + kBlock);
          float sum = 0.0f, product = 0.0f;
          if (dz) {
#pragma omp simd reduction(+ : sum, product)
            for (int64_t v = block; v < stop; ++v) {
              const float t = z[v] - top, e = cpu::exp_negative(t);
              dz[v] = e;
              sum += e;
              product += e * t;
            }
          } else {
#pragma omp simd reduction(+ : sum, product)
            for (int64_t v = block; v < stop; ++v) {
              const float t = z[v] - top, e = cpu::exp_negative(t);
              sum += e;
              product += e * t;
            }
          }
          total += sum;
          dot += product;
        }
      }
      log_total = float(std::log(total));
      loss = (top - z_target) + log_total;
      correct = z_target == top;
      entropy = log_total - float(dot / total);
      if (dz) {
        const float pull = 2.0f * rows.z_loss * (top + log_total), scale = rows.scale[r];
        const float p_target = known ? float(dz[target] / total) : 0.0f;
        const float factor = float(scale * (1.0f + pull) / total);
#pragma omp simd
        for (int64_t v = 0; v < V; ++v) dz[v] *= factor;
        if (known) dz[target] = scale * ((p_target - 1.0f) + pull * p_target);
      }
    } else if (dz) {
      std::fill(dz, dz + V, 0.0f);
    }
    rows.loss[r] = loss;
    rows.top[r] = top;
    rows.log_total[r] = log_total;
    if (rows.correct) rows.correct[r] = correct;
    if (rows.entropy) rows.entropy[r] = entropy;
  }
}

// The gradient, from given top and log total.
CLONED void gradient(const Rows& rows, int64_t begin, int64_t end) {
  for (int64_t r = begin; r < end; ++r) {
    const float* z = rows.z + r * rows.stride_z;
    float* dz = rows.dz + r * rows.stride_dz;
    if (!rows.valid[r]) {
      std::fill(dz, dz + rows.V, 0.0f);
      continue;
    }
    const float top = rows.top[r], log_total = rows.log_total[r], scale = rows.scale[r];
    const float pull = 2.0f * rows.z_loss * (top + log_total);
    const int64_t target = rows.targets[r];
    if (rows.softcap != 0.0f) {
      for (int64_t v = 0; v < rows.V; ++v) {
        const float t = std::tanh(z[v] / rows.softcap), p = cpu::exp_negative((rows.softcap * t - top) - log_total);
        dz[v] = ((v == target ? p - 1.0f : p) + pull * p) * scale * (1.0f - t * t);
      }
      continue;
    }
    const bool known = target >= 0 && target < rows.V;
    const float z_target = known ? z[target] : 0.0f, factor = scale * (1.0f + pull);
#pragma omp simd
    for (int64_t v = 0; v < rows.V; ++v) dz[v] = cpu::exp_negative((z[v] - top) - log_total) * factor;
    if (known) {
      const float p = cpu::exp_negative((z_target - top) - log_total);
      dz[target] = scale * ((p - 1.0f) + pull * p);
    }
  }
}

Rows checked(const Tensor& z, const Tensor& dz, int64_t V, const Tensor& targets, const Tensor& valid,
             const std::optional<Tensor>& scale, const Tensor& loss, const Tensor& top, const Tensor& log_total,
             const std::optional<Tensor>& correct, const std::optional<Tensor>& entropy, double z_loss, double softcap) {
  const int64_t R = z.size(0);
  cpu::check_rows(z, R, V, "logits");
  cpu::check_rows(dz, R, V, "gradients of logits");
  cpu::check_apart(dz);
  cpu::check_vector(targets, R, ScalarType::Long, "targets");
  cpu::check_vector(valid, R, ScalarType::Bool, "valid");
  for (const Tensor* t : {&loss, &top, &log_total}) cpu::check_vector(*t, R, ScalarType::Float, "statistics");
  if (scale) cpu::check_vector(*scale, R, ScalarType::Float, "scale");
  if (correct) cpu::check_vector(*correct, R, ScalarType::Bool, "correct");
  if (entropy) cpu::check_vector(*entropy, R, ScalarType::Float, "entropy");
  return {cpu::pointer<float>(z),       cpu::pointer<float>(dz),        z.stride(0),
          dz.stride(0),                 V,                              cpu::pointer<int64_t>(targets),
          cpu::pointer<bool>(valid),    cpu::pointer<float>(scale),     cpu::pointer<float>(loss),
          cpu::pointer<float>(top),     cpu::pointer<float>(log_total), cpu::pointer<bool>(correct),
          cpu::pointer<float>(entropy), float(z_loss),                  float(softcap)};
}

void loss_rows(const Tensor& z, const Tensor& dz, int64_t V, const Tensor& targets, const Tensor& valid,
               std::optional<Tensor> scale, const Tensor& loss, const Tensor& top, const Tensor& log_total,
               std::optional<Tensor> correct, std::optional<Tensor> entropy, double z_loss, double softcap) {
  CHECK_INPUT(!(scale && softcap != 0.0), "emergence_cpu: a softcap with the gradient in one sweep is not offered");
  const Rows rows = checked(z, dz, V, targets, valid, scale, loss, top, log_total, correct, entropy, z_loss, softcap);
  torch::stable::parallel_for(0, z.size(0), cpu::grain(V), [&](int64_t begin, int64_t end) { statistics(rows, begin, end); });
}

void loss_rows_gradient(const Tensor& z, const Tensor& dz, int64_t V, const Tensor& targets, const Tensor& valid,
                        const Tensor& scale, const Tensor& top, const Tensor& log_total, double z_loss, double softcap) {
  const Rows rows = checked(z, dz, V, targets, valid, scale, top, top, log_total, {}, {}, z_loss, softcap);
  torch::stable::parallel_for(0, z.size(0), cpu::grain(V), [&](int64_t begin, int64_t end) { gradient(rows, begin, end); });
}

// Logits z (N, V or more columns) float32 of N = B x T tokens, targets (N,) int64, weights (N,) float64 or none -> token losses
// (N,) float32, the loss, a float32, and sums by position (T,); with `gradient` z becomes that of the loss. Other targets than
// `ignored` are in [0, V).
void position_loss(const Tensor& z, int64_t V, const Tensor& targets, std::optional<Tensor> weights, int64_t ignored,
                   double z_loss, bool gradient, const Tensor& token_loss, const Tensor& loss, const Tensor& count,
                   const Tensor& loss_sum, const Tensor& loss_sq_sum, const Tensor& correct_sum, const Tensor& entropy_sum) {
  const int64_t N = z.size(0), T = count.numel();
  CHECK_INPUT(T > 0 ? N % T == 0 : N == 0, "emergence_cpu: ", N, " rows are no sequences of ", T, " positions");
  cpu::check_rows(z, N, V, "logits");
  if (gradient) cpu::check_apart(z);
  cpu::check_vector(targets, N, ScalarType::Long, "targets");
  if (weights) cpu::check_vector(*weights, N, ScalarType::Double, "weights");
  cpu::check_vector(token_loss, N, ScalarType::Float, "token losses");
  cpu::check_vector(loss, 1, ScalarType::Float, "loss");
  for (const Tensor* t : {&count, &correct_sum}) cpu::check_vector(*t, T, ScalarType::Long, "counts");
  for (const Tensor* t : {&loss_sum, &loss_sq_sum, &entropy_sum}) cpu::check_vector(*t, T, ScalarType::Double, "sums");

  const auto floats = std::make_unique<float[]>(4 * N);
  const auto flags = std::make_unique<bool[]>(2 * N);
  float *scale = floats.get(), *top = scale + N, *log_total = top + N, *entropy = log_total + N;
  bool *valid = flags.get(), *correct = valid + N;
  const int64_t* target = cpu::pointer<int64_t>(targets);
  const double* weight = cpu::pointer<double>(weights);
  double all = 0.0;
  for (int64_t n = 0; n < N; ++n) {
    valid[n] = target[n] != ignored;
    if (valid[n]) all += weight ? weight[n] : 1.0;
  }
  all = std::max(all, std::numeric_limits<double>::min());  // all 0 stay so
  const auto share = [&](int64_t n) { return valid[n] ? (weight ? weight[n] : 1.0) / all : 0.0; };
  for (int64_t n = 0; n < N; ++n) scale[n] = float(share(n));

  float *data = cpu::pointer<float>(z), *losses = cpu::pointer<float>(token_loss);
  const Rows rows{data,  data,   z.stride(0), z.stride(0), V,       target,  valid,         gradient ? scale : nullptr,
                  losses, top, log_total,  correct,     entropy, float(z_loss), 0.0f};
  torch::stable::parallel_for(0, N, cpu::grain(V), [&](int64_t begin, int64_t end) { statistics(rows, begin, end); });
  double sum = 0.0;
  for (int64_t n = 0; n < N; ++n) {
    const float lse = top[n] + log_total[n];
    sum += share(n) * (z_loss ? losses[n] + float(z_loss) * lse * lse : losses[n]);
  }
  *cpu::pointer<float>(loss) = float(sum);
  if (T > 0)
    cpu::sum_by_position(N / T, T, losses, valid, correct, entropy, {count, loss_sum, loss_sq_sum, correct_sum, entropy_sum});
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(emergence_cpu, library) {
  library.def(
      "position_loss(Tensor(a!) z, int V, Tensor targets, Tensor? weights, int ignored, float z_loss, bool gradient, "
      "Tensor(b!) token_loss, Tensor(c!) loss, Tensor(d!) count, Tensor(e!) loss_sum, Tensor(f!) loss_sq_sum, "
      "Tensor(g!) correct_sum, Tensor(h!) entropy_sum) -> ()");
  library.def(LOSS_ROWS);
  library.def(LOSS_ROWS_GRADIENT);
}

STABLE_TORCH_LIBRARY_IMPL(emergence_cpu, CPU, library) {
  library.impl("position_loss", TORCH_BOX(&position_loss));
  library.impl("loss_rows", TORCH_BOX(&loss_rows));
  library.impl("loss_rows_gradient", TORCH_BOX(&loss_rows_gradient));
}
