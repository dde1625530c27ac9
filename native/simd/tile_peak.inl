// The multiply-add rate of this instruction set, for benchmarks.

float multiply_adds(float start, int64_t repeats) {
  Vec sum[kMultiplyAddChains];
  for (int i = 0; i < kMultiplyAddChains; ++i) sum[i] = broadcast(start + static_cast<float>(i));
  const Vec factor = broadcast(0.999f);
  for (int64_t r = 0; r < repeats; ++r) {
#pragma GCC unroll 12
    for (int i = 0; i < kMultiplyAddChains; ++i) sum[i] = fma(sum[i], factor, factor);
  }
  for (int i = 1; i < kMultiplyAddChains; ++i) sum[0] += sum[i];  // none is dead
  return sum[0][0];
}
