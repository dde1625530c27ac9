#pragma once

// Deterministic test data, the same on every platform.

#include <cmath>
#include <cstdint>
#include <vector>

namespace cluster_attention::test {

/// Other data for every seed; 0, the start, is that of the plain test run.
inline uint64_t& data_seed() {
  static uint64_t seed = 0;
  return seed;
}
inline void set_data_seed(uint64_t seed) { data_seed() = seed; }

class Random {
 public:
  explicit Random(uint64_t seed)
      : state_(seed * 0x9E3779B97F4A7C15ull + 0x2545F4914F6CDD1Dull +
               data_seed() * 0xD6E8FEB86659FD93ull) {}

  uint64_t bits() {  // splitmix64
    state_ += 0x9E3779B97F4A7C15ull;
    uint64_t z = state_;
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9ull;
    z = (z ^ (z >> 27)) * 0x94D049BB133111EBull;
    return z ^ (z >> 31);
  }
  double uniform() { return static_cast<double>(bits() >> 11) * 0x1.0p-53; }
  /// In [0, bound).
  int64_t below(int64_t bound) {
    return static_cast<int64_t>(bits() % static_cast<uint64_t>(bound));
  }
  double normal() {
    const double radius = std::sqrt(-2.0 * std::log(1.0 - uniform()));
    return radius * std::cos(6.283185307179586 * uniform());
  }

 private:
  uint64_t state_;
};

/// What rows are made of: Gaussian values, or small integers, whose products and sums are exact in
/// float32 and full of ties.
enum class Fill { gaussian, integer };

inline std::vector<float> random_floats(int64_t count, uint64_t seed, Fill fill = Fill::gaussian) {
  Random random(seed);
  std::vector<float> values(static_cast<size_t>(count));
  for (float& value : values) {
    value = fill == Fill::gaussian ? static_cast<float>(random.normal())
                                   : static_cast<float>(random.below(5) - 2);
  }
  return values;
}

inline std::vector<int32_t> random_indices(int64_t count, int32_t low, int32_t high,
                                           uint64_t seed) {
  Random random(seed);
  std::vector<int32_t> values(static_cast<size_t>(count));
  for (int32_t& value : values) value = low + static_cast<int32_t>(random.below(high - low));
  return values;
}

/// Rows in tight groups around far centres; row i belongs to group i % groups.
inline std::vector<float> planted_clusters(int64_t rows, int64_t dim, int64_t groups,
                                           uint64_t seed) {
  Random random(seed);
  std::vector<float> centres(static_cast<size_t>(groups * dim));
  for (float& value : centres) value = static_cast<float>(10.0 * random.normal());
  std::vector<float> values(static_cast<size_t>(rows * dim));
  for (int64_t i = 0; i < rows; ++i) {
    for (int64_t d = 0; d < dim; ++d) {
      values[i * dim + d] =
          centres[i % groups * dim + d] + static_cast<float>(0.05 * random.normal());
    }
  }
  return values;
}

}  // namespace cluster_attention::test
