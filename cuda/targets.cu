#include <cstdlib>
#include <cstring>

#include "cuda/targets.h"

namespace cluster_attention::cuda {

bool runs_on(const char* targets, int32_t major, int32_t minor) {
  for (const char* at = targets; *at != '\0';) {
    char* end = nullptr;
    const long version = std::strtol(at, &end, 10);
    if (end == at) return false;
    const int32_t target_major = static_cast<int32_t>(version / 10);
    const int32_t target_minor = static_cast<int32_t>(version % 10);
    const bool newer = major > target_major || (major == target_major && minor >= target_minor);
    const bool same = major == target_major && minor == target_minor;
    const bool only_this = *end == 'a';
    if (only_this) ++end;
    const bool translated = std::strncmp(end, "-ptx", 4) == 0;
    if (only_this ? same : newer && (translated || major == target_major)) return true;
    at = std::strchr(end, ';');
    if (at == nullptr) return false;
    ++at;
  }
  return false;
}

const char* compiled_targets() { return CA_CUDA_TARGETS; }

}  // namespace cluster_attention::cuda
