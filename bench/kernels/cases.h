#pragma once

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "native/core/context.h"
#include "native/core/status.h"

namespace cluster_attention::bench {

/// One kernel at one length, ready to run. The standard shape is B=1, H=8, D=E=64, Gaussian data.
struct Case {
  std::string kernel;
  double operations = 0.0;              // floating-point operations of one run
  std::function<Status(Context&)> run;  // through the dispatcher
  std::function<double()> error;        // relative L2 error of sampled rows against double
  double bound = 0.0;                   // of the error; 0: that of float32 at this length
  std::shared_ptr<void> storage;        // owns what run and error use
};

/// Case::bound where operands and weights are rounded to bfloat16.
constexpr double kBfloat16Bound = 0x1p-6;

/// Names that make_case() knows, in the order of the table.
const std::vector<std::string>& kernel_names();

/// kernel: empty name when unknown.
Case make_case(const std::string& kernel, int64_t length);

}  // namespace cluster_attention::bench
