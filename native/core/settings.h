#pragma once

#include <cstdint>

namespace cluster_attention {

enum class NonFinite : int32_t { error, propagate };
enum class Precision : int32_t { float32, bfloat16 };

/// What every operation can be asked for, beside its problem.
struct CallSettings {
  NonFinite non_finite = NonFinite::error;
  Precision precision = Precision::float32;
};

}  // namespace cluster_attention
