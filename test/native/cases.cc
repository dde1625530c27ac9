#include "test/native/cases.h"

#include <cstdio>
#include <cstdlib>

#include "test/native/data.h"

namespace cluster_attention::test {

namespace {

const std::vector<Case>& table() {
  static const std::vector<Case> cases = {
#include "cases.inc"
  };
  return cases;
}

std::vector<Case> made;

std::vector<int32_t> random_lengths(Random& random, int64_t batch, int64_t most) {
  std::vector<int32_t> lengths;
  for (int64_t b = 0; b < batch; ++b) {
    lengths.push_back(static_cast<int32_t>(random.below(most + 1)));
  }
  return lengths;
}

}  // namespace

bool made_cases() { return !made.empty(); }

const std::vector<Case>& cases() { return made.empty() ? table() : made; }

void walk_sizes(int64_t last) {
  Random random(1);
  made.clear();
  const auto half_at_least = [&](int64_t batch, int64_t most) {
    std::vector<int32_t> lengths = random_lengths(random, batch, most / 2);
    for (int32_t& length : lengths) length = static_cast<int32_t>(most - length);
    return lengths;
  };
  for (int64_t n = 1; n <= last; ++n) {
    Case one{};
    one.name = "size-" + std::to_string(n);
    one.batch = 1 + n % 2;
    one.heads = 1 + (n % 3 == 0);
    one.query_length = n % 5 == 0 ? 131 - n : n;
    one.key_length = n;
    one.head_dim = n;
    one.value_dim = 1 + (n + 40) % 130;
    one.clusters = 1 + n % 9;
    one.top_k = 1 + n % 35;
    one.cluster_size = 1 + n % 37;
    one.bits = 1 + n * 7 % 64;
    one.layout = n % 4 < 2 ? Layout::bhld : Layout::blhd;
    if (n % 3 == 1) {
      one.query_lengths = half_at_least(one.batch, one.query_length);
      one.key_lengths = half_at_least(one.batch, one.key_length);
    }
    made.push_back(one);
  }
}

namespace {

/// What random cases are drawn from: at most so much of each, one of so many with padding.
struct Ranges {
  const char* name;
  int64_t batch;
  int64_t heads;
  int64_t clusters;
  int64_t top_k;
  int64_t cluster_size;
  int64_t padded;
};

template <typename QueryLength, typename KeyLength, typename Dim>
void walk_drawn(const Ranges& ranges, Random& random, uint64_t seed, int64_t count,
                QueryLength query_length, KeyLength key_length, Dim dim) {
  made.clear();
  set_data_seed(seed);
  for (int64_t i = 0; i < count; ++i) {
    Case one{};
    one.batch = ranges.batch > 1 ? 1 + random.below(ranges.batch) : 1;
    one.heads = 1 + random.below(ranges.heads);
    one.query_length = query_length();
    one.key_length = key_length();
    one.head_dim = dim();
    one.value_dim = dim();
    one.clusters = 1 + random.below(ranges.clusters);
    one.top_k = 1 + random.below(ranges.top_k);
    one.cluster_size = 1 + random.below(ranges.cluster_size);
    one.bits = 1 + random.below(64);
    one.layout = random.below(2) == 0 ? Layout::bhld : Layout::blhd;
    if (random.below(ranges.padded) == 0) {
      one.query_lengths = random_lengths(random, one.batch, one.query_length);
      one.key_lengths = random_lengths(random, one.batch, one.key_length);
    }
    one.name = std::string(ranges.name) + "-" + std::to_string(seed) + "-" + std::to_string(i) +
               ": " + std::to_string(one.query_length) + " x " + std::to_string(one.key_length) +
               ", D " + std::to_string(one.head_dim) + ", E " + std::to_string(one.value_dim);
    made.push_back(one);
  }
}

}  // namespace

void walk_random_cases(uint64_t seed, int64_t count) {
  Random random(seed);
  walk_drawn(
      {"random", 3, 3, 9, 40, 30, 2}, random, seed, count, [&] { return 1 + random.below(40); },
      [&] { return 1 + random.below(70); }, [&] { return 1 + random.below(20); });
}

void walk_long_cases(uint64_t seed, int64_t count) {
  Random random(seed);
  const auto length = [&] { return 1 + random.below(random.below(2) == 0 ? 130 : 1500); };
  // In fewer dimensions so many rows have near ties.
  const auto dim = [&] { return 8 + random.below(random.below(2) == 0 ? 63 : 253); };
  walk_drawn({"long", 1, 2, 80, 200, 300, 4}, random, seed, count, length, length, dim);
}

const Case& find_case(const std::string& name) {
  for (const Case& one : table()) {
    if (one.name == name) return one;
  }
  std::fprintf(stderr, "test/cases.json has no case \"%s\"\n", name.c_str());
  std::exit(1);
}

}  // namespace cluster_attention::test
