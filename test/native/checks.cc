#include "test/native/checks.h"

#include <cmath>
#include <cstring>

namespace cluster_attention::test {

std::string describe(const Status& status) {
  static const char* const kNames[] = {
      "ok",          "out_of_memory",    "cancelled",  "non_finite",
      "overflow",    "out_of_range",     "duplicate",  "shape_mismatch",
      "unsupported", "cuda_unavailable", "device_lost"};
  std::string text = kNames[static_cast<int>(status.code)];
  if (status.argument != nullptr) text += std::string(" ") + status.argument;
  if (status.index >= 0) text += "[" + std::to_string(status.index) + "]";
  return text;
}

float round_to_bfloat16(float value) {
  if (!std::isfinite(value)) return value;
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  bits += 0x7fff + (bits >> 16 & 1);
  bits &= 0xffff0000;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

void round_in_place(const RoundedInputs& inputs) {
  for (const auto& [data, count] : inputs) {
    for (int64_t i = 0; i < count; ++i) data[i] = round_to_bfloat16(data[i]);
  }
}

}  // namespace cluster_attention::test
