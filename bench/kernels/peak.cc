#include "bench/kernels/peak.h"

#include <algorithm>
#include <chrono>
#include <cstring>
#include <memory>
#include <thread>
#include <vector>

#include "native/simd/simd.h"

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace cluster_attention::bench {

namespace {

constexpr int64_t kRounds = 20'000'000;
constexpr int kChains = 12;  // enough independent chains to hide the latency of two units

#if defined(__x86_64__)
__attribute__((target("avx512f"))) double fma_avx512() {
  __m512 sum[kChains];
  for (int i = 0; i < kChains; ++i) sum[i] = _mm512_set1_ps(static_cast<float>(i));
  const __m512 factor = _mm512_set1_ps(0.999f);
  for (int64_t r = 0; r < kRounds; ++r) {
#pragma GCC unroll 12
    for (int i = 0; i < kChains; ++i) sum[i] = _mm512_fmadd_ps(sum[i], factor, factor);
  }
  for (int i = 1; i < kChains; ++i) sum[0] = _mm512_add_ps(sum[0], sum[i]);  // none is dead
  volatile float sink = _mm512_cvtss_f32(sum[0]);
  (void)sink;
  return 2.0 * 16 * kChains * static_cast<double>(kRounds);
}

__attribute__((target("avx2,fma"))) double fma_avx2() {
  __m256 sum[kChains];
  for (int i = 0; i < kChains; ++i) sum[i] = _mm256_set1_ps(static_cast<float>(i));
  const __m256 factor = _mm256_set1_ps(0.999f);
  for (int64_t r = 0; r < kRounds; ++r) {
#pragma GCC unroll 12
    for (int i = 0; i < kChains; ++i) sum[i] = _mm256_fmadd_ps(sum[i], factor, factor);
  }
  for (int i = 1; i < kChains; ++i) sum[0] = _mm256_add_ps(sum[0], sum[i]);  // none is dead
  volatile float sink = _mm256_cvtss_f32(sum[0]);
  (void)sink;
  return 2.0 * 8 * kChains * static_cast<double>(kRounds);
}
#endif

double multiply_add_plain() {
  float sum[kChains * 4];
  for (int i = 0; i < kChains * 4; ++i) sum[i] = static_cast<float>(i);
  for (int64_t r = 0; r < kRounds; ++r) {
    for (int i = 0; i < kChains * 4; ++i) sum[i] = sum[i] * 0.999f + 0.999f;
  }
  for (int i = 1; i < kChains * 4; ++i) sum[0] += sum[i];  // none is dead
  volatile float sink = sum[0];
  (void)sink;
  return 2.0 * 4 * kChains * static_cast<double>(kRounds);
}

double operations() {
#if defined(__x86_64__)
  if (std::strncmp(instruction_set(), "avx512", 6) == 0) return fma_avx512();
  if (std::strcmp(instruction_set(), "avx2") == 0) return fma_avx2();
#endif
  return multiply_add_plain();
}

template <typename Work>
double per_second(int threads, Work&& work) {
  double best = 0.0;
  for (int round = 0; round < 3; ++round) {
    std::vector<double> done(static_cast<size_t>(threads));
    std::vector<std::thread> helpers;
    const auto start = std::chrono::steady_clock::now();
    for (int t = 1; t < threads; ++t) {
      helpers.emplace_back([&done, &work, t] { done[static_cast<size_t>(t)] = work(t); });
    }
    done[0] = work(0);
    for (std::thread& helper : helpers) helper.join();
    const std::chrono::duration<double> elapsed = std::chrono::steady_clock::now() - start;
    double total = 0.0;
    for (double amount : done) total += amount;
    best = std::max(best, total / elapsed.count());
  }
  return best;
}

}  // namespace

double measure_peak_gflops(int threads) {
  return per_second(threads, [](int) { return operations(); }) * 1e-9;
}

}  // namespace cluster_attention::bench
