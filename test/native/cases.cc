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

void walk_random_cases(uint64_t seed, int64_t count) {
  made.clear();
  Random random(seed);
  set_data_seed(seed);
  for (int64_t i = 0; i < count; ++i) {
    Case one{};
    one.name = "random-" + std::to_string(seed) + "-" + std::to_string(i);
    one.batch = 1 + random.below(3);
    one.heads = 1 + random.below(3);
    one.query_length = 1 + random.below(40);
    one.key_length = 1 + random.below(70);
    one.head_dim = 1 + random.below(20);
    one.value_dim = 1 + random.below(20);
    one.clusters = 1 + random.below(9);
    one.top_k = 1 + random.below(40);
    one.cluster_size = 1 + random.below(30);
    one.bits = 1 + random.below(64);
    one.layout = random.below(2) == 0 ? Layout::bhld : Layout::blhd;
    if (random.below(2) == 0) {
      one.query_lengths = random_lengths(random, one.batch, one.query_length);
      one.key_lengths = random_lengths(random, one.batch, one.key_length);
    }
    made.push_back(one);
  }
}

void walk_long_cases(uint64_t seed, int64_t count) {
  made.clear();
  Random random(seed);
  set_data_seed(seed);
  const auto length = [&] { return 1 + random.below(random.below(2) == 0 ? 130 : 1500); };
  // In fewer dimensions so many rows have near ties.
  const auto dim = [&] { return 8 + random.below(random.below(2) == 0 ? 63 : 253); };
  for (int64_t i = 0; i < count; ++i) {
    Case one{};
    one.name = "long-" + std::to_string(seed) + "-" + std::to_string(i);
    one.batch = 1;
    one.heads = 1 + random.below(2);
    one.query_length = length();
    one.key_length = length();
    one.head_dim = dim();
    one.value_dim = dim();
    one.clusters = 1 + random.below(80);
    one.top_k = 1 + random.below(200);
    one.cluster_size = 1 + random.below(300);
    one.bits = 1 + random.below(64);
    one.layout = random.below(2) == 0 ? Layout::bhld : Layout::blhd;
    if (random.below(4) == 0) {
      one.query_lengths = random_lengths(random, one.batch, one.query_length);
      one.key_lengths = random_lengths(random, one.batch, one.key_length);
    }
    one.name += ": " + std::to_string(one.query_length) + " x " + std::to_string(one.key_length) +
                ", D " + std::to_string(one.head_dim) + ", E " + std::to_string(one.value_dim);
    made.push_back(one);
  }
}

const Case& find_case(const std::string& name) {
  for (const Case& one : table()) {
    if (one.name == name) return one;
  }
  std::fprintf(stderr, "test/cases.json has no case \"%s\"\n", name.c_str());
  std::exit(1);
}

}  // namespace cluster_attention::test
