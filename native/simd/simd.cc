#include "native/simd/simd.h"

#include <algorithm>
#include <atomic>
#include <cstdlib>
#include <cstring>
#include <functional>

#include "native/simd/targets.h"
#include "native/simd/tile_registers.h"

namespace cluster_attention {

namespace {

struct Target {
  const Simd* table;
  bool offered;
};

constexpr int kMaximumTargets = 6;

/// All targets of this build, best first, with whether the processor offers them.
struct Targets {
  Target target[kMaximumTargets];
  int count = 0;
  char names[96] = "";

  void add(const Simd& table, bool offered) {
    target[count++] = {&table, offered};
    if (!offered) return;
    if (names[0] != '\0') std::strcat(names, ",");
    std::strcat(names, table.name);
  }

  Targets() {
#if defined(__x86_64__)
    const bool avx512 = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                        __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") &&
                        __builtin_cpu_supports("avx512cd") && __builtin_cpu_supports("bmi2");
    const bool vpopcnt = avx512 && __builtin_cpu_supports("avx512vpopcntdq");
    add(simd_avx512_amx(), vpopcnt && request_tile_registers());
    // Zen 4: others have these instructions at the rate of float32 ones or below it.
    add(simd_avx512_bf16(),
        vpopcnt && __builtin_cpu_supports("avx512bf16") && __builtin_cpu_is("amdfam19h"));
    add(simd_avx512_vpopcnt(), vpopcnt);
    add(simd_avx512(), avx512);
    add(simd_avx2(), __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
                         __builtin_cpu_supports("bmi2"));
#endif
    add(simd_baseline(), true);
  }

  const Simd* find(const char* name) const {
    for (int i = 0; i < count; ++i) {
      if (target[i].offered && std::strcmp(target[i].table->name, name) == 0) {
        return target[i].table;
      }
    }
    return nullptr;
  }

  const Simd* best() const {
    for (int i = 0; i < count; ++i) {
      if (target[i].offered) return target[i].table;
    }
    return nullptr;
  }
};

const Targets& targets() {
  static const Targets all;
  return all;
}

const Simd* initial_target() {
  const char* wanted = std::getenv("CLUSTER_ATTENTION_INSTRUCTION_SET");
  const Simd* table = wanted != nullptr ? targets().find(wanted) : nullptr;
  return table != nullptr ? table : targets().best();
}

std::atomic<const Simd*>& current() {
  static std::atomic<const Simd*> table{initial_target()};
  return table;
}

}  // namespace

const Simd& simd() { return *current().load(std::memory_order_relaxed); }

const char* instruction_set() { return simd().name; }

const char* available_instruction_sets() { return targets().names; }

bool set_instruction_set(const char* name) {
  const Simd* table = targets().find(name);
  if (table == nullptr) return false;
  set_simd(*table);
  return true;
}

void set_simd(const Simd& table) { current().store(&table, std::memory_order_relaxed); }

float prune_candidates(Candidate* candidates, int32_t* count, int64_t k) {
  std::nth_element(candidates, candidates + k - 1, candidates + *count, std::greater<Candidate>());
  *count = static_cast<int32_t>(k);
  return candidate_score(candidates[k - 1]);
}

}  // namespace cluster_attention
