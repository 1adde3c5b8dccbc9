// What the weights of pairs are made of, number by number, against double. Prints the first thing that is wrong and
// fails.
#include "../../csrc/pair_tile.cuh"

#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <limits>

using namespace hyperkern;

#define CHECK(condition, ...)                                     \
  do {                                                            \
    if (!(condition)) {                                           \
      std::printf("%s:%d: %s: ", __FILE__, __LINE__, #condition); \
      std::printf(__VA_ARGS__);                                   \
      std::printf("\n");                                          \
      std::exit(1);                                               \
    }                                                             \
  } while (false)

constexpr float kInf = std::numeric_limits<float>::infinity(), kNan = std::numeric_limits<float>::quiet_NaN();

// Exponentials below the smallest normal number are 0.
void check_close(const char* what, float l, float found, double wanted, double relative) {
  CHECK(
      std::fabs(found - wanted) <= relative * wanted + 1.8e-38, "%s of %.9g is %.9g and not %.17g: off by %.3g", what,
      l, found, wanted, found / wanted - 1);
}

// `per_logit`: what a logit of 1 costs by the rounding of its exponent.
template <bool kLog2Units>
void check_softplus(double value_error, double derivative_error, double per_logit) {
  const double unit = kLog2Units ? std::log(2.0) : 1.0;
  // Every 997th number up to 2^20.
  for (uint32_t bits = 0; bits < 0x49800000u; bits += 997) {
    for (const float l : {ptx::as_float(bits), -ptx::as_float(bits)}) {
      float derivative;
      const float value = softplus<kLog2Units>(l, derivative);
      const double x = unit * l, e = std::exp(-std::fabs(x));
      const double rounding = per_logit * std::fabs(x);
      check_close("softplus", l, value, (std::fmax(x, 0.0) + std::log1p(e)) / unit, value_error + rounding);
      check_close("its derivative", l, derivative, (x < 0 ? e : 1.0) / (1.0 + e), derivative_error + rounding);
    }
  }
  float derivative;
  CHECK(softplus<kLog2Units>(-kInf, derivative) == 0.0f && derivative == 0.0f, "a pair that is left out");
  CHECK(softplus<kLog2Units>(kInf, derivative) == kInf && derivative == 1.0f, "an infinite logit");
  CHECK(std::isnan(softplus<kLog2Units>(kNan, derivative)) && std::isnan(derivative), "nan is lost");
}

void check_exp2() {
  for (uint32_t bits = 0; bits < 0x43000000u; bits += 97) {
    for (const float x : {ptx::as_float(bits), -ptx::as_float(bits)}) {
      if (x > 126.5f) continue;
      check_close("the power", x, exp2_by_polynomial(x), std::exp2(static_cast<double>(x)), 2.3e-7);
    }
  }
  // What is left out adds nothing at all, whatever its logit was.
  for (const float x : {-127.0f, -127.5f, -128.0f, -1000.0f, -1e30f, -kInf}) {
    CHECK(exp2_by_polynomial(x) == 0.0f, "the power of %g is not 0", x);
  }
  for (const float x : {kNan, kInf}) CHECK(!std::isfinite(exp2_by_polynomial(x)), "%g is lost", x);
}

int main() {
  check_exp2();
  check_softplus<true>(3.6e-7, 3e-7, 6e-8);
  check_softplus<false>(2.2e-7, 2e-7, 1.4e-7);
  std::printf("ok\n");
  return 0;
}
