#pragma once

// The case table of test/cases.json.

#include <string>
#include <vector>

#include "native/core/tensor.h"

namespace cluster_attention::test {

struct Case {
  std::string name;
  int64_t batch;
  int64_t heads;
  int64_t query_length;
  int64_t key_length;
  int64_t head_dim;
  int64_t value_dim;
  int64_t clusters;
  int64_t top_k;
  int64_t cluster_size;
  int64_t bits;
  Layout layout;
  std::vector<int32_t> query_lengths;  // empty: all rows are real
  std::vector<int32_t> key_lengths;

  /// The size options as the callers clamp them.
  int64_t clamped_top_k() const { return top_k < key_length ? top_k : key_length; }
  int64_t clamped_cluster_size() const {
    return cluster_size < key_length ? cluster_size : key_length;
  }
};

/// What the tests walk over: the table, unless other cases were made.
const std::vector<Case>& cases();
/// One case for every size from 1 to `last`: lengths and dims of that size, in turn with all
/// layouts, with and without padding.
void walk_sizes(int64_t last);
/// `count` cases of random shapes, and other data for each seed.
void walk_random_cases(uint64_t seed, int64_t count);
/// The same of longer sequences and wider rows, which pass the tiles of any kernel several times.
void walk_long_cases(uint64_t seed, int64_t count);
/// Whether one of them was called.
bool made_cases();
/// The case of the table of that name.
const Case& find_case(const std::string& name);

}  // namespace cluster_attention::test
