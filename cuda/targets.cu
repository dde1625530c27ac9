#include <algorithm>
#include <cstdlib>
#include <cstring>

#include "cuda/targets.h"

namespace cluster_attention::cuda {

int32_t code_for(const char* targets, int32_t major, int32_t minor) {
  int32_t newest = 0;
  for (const char* at = targets; *at != '\0';) {
    char* end = nullptr;
    const long version = std::strtol(at, &end, 10);
    if (end == at) return newest;
    const int32_t target_major = static_cast<int32_t>(version / 10);
    const int32_t target_minor = static_cast<int32_t>(version % 10);
    const bool newer = major > target_major || (major == target_major && minor >= target_minor);
    const bool same = major == target_major && minor == target_minor;
    const bool only_this = *end == 'a';
    if (only_this) ++end;
    const bool translated = std::strncmp(end, "-ptx", 4) == 0;
    if (only_this ? same : newer && (translated || major == target_major)) {
      newest = std::max(newest, static_cast<int32_t>(version));
    }
    at = std::strchr(end, ',');
    if (at == nullptr) return newest;
    ++at;
  }
  return newest;
}

bool runs_on(const char* targets, int32_t major, int32_t minor) {
  return code_for(targets, major, minor) > 0;
}

const char* compiled_targets() { return CA_CUDA_TARGETS; }

}  // namespace cluster_attention::cuda
