#pragma once

// Sizes around the tiles of the kernels, 64 rows by 64 columns.

#include <array>
#include <vector>

#include "test/native/cases.h"

namespace cluster_attention::test {

/// Of centroid attention: several tiles of centroids, several parts, wide rows.
inline std::vector<Case> centroid_tile_cases() {
  std::vector<Case> list;
  const int64_t sizes[][4] = {{63, 65, 63, 65},     {64, 64, 64, 128},   {65, 63, 65, 129},
                              {129, 127, 127, 130}, {130, 700, 16, 200}, {20, 1601, 300, 8},
                              {300, 100, 7, 7},     {3, 64, 256, 256}};
  for (const auto& size : sizes) {
    Case one = find_case("usual");
    one.name = "tiles " + std::to_string(list.size());
    one.batch = 1;
    one.heads = 2;
    one.query_length = size[0];
    one.key_length = size[1];
    one.head_dim = size[2];
    one.value_dim = size[3];
    one.top_k = 70;
    one.layout = list.size() % 2 == 0 ? Layout::bhld : Layout::blhd;
    list.push_back(one);
  }
  return list;
}

/// One sequence, whose sums over keys or queries are long.
inline Case long_case(int64_t queries, int64_t keys, int64_t dim) {
  Case one = find_case("long-keys");
  one.name = std::to_string(queries) + " queries, " + std::to_string(keys) + " keys, D and E " +
             std::to_string(dim);
  one.query_length = queries;
  one.key_length = keys;
  one.head_dim = one.value_dim = dim;
  return one;
}

/// One sequence of rows as wide as each of the widths that kernels are made for: 32, 64, 128 and
/// 256 columns, their last one a whole chunk or not.
inline std::vector<Case> width_cases(int64_t queries, int64_t keys, int64_t clusters) {
  std::vector<Case> list;
  for (int64_t dim : {20, 64, 97, 200}) {
    list.push_back(long_case(queries, keys, dim));
    list.back().clusters = clusters;
  }
  return list;
}

/// Of CAST: tokens, D, E, kappa and C.
inline Case cast_tile_case(const std::array<int64_t, 5>& size) {
  Case one = find_case("usual");
  one.name = "tiles of " + std::to_string(size[0]);
  one.batch = 1;
  one.query_length = one.key_length = size[0];
  one.head_dim = size[1];
  one.value_dim = size[2];
  one.cluster_size = size[3];
  one.clusters = size[4];
  return one;
}

/// Several tiles of clusters (of `many` tokens) and of members, wide rows.
inline std::vector<Case> cast_tile_cases(int64_t many) {
  const std::array<int64_t, 5> sizes[] = {{65, 63, 65, 63, 4},     {64, 64, 64, 64, 3},
                                          {127, 130, 129, 65, 20}, {many, 16, 200, 9, 130},
                                          {150, 70, 8, 128, 2},    {90, 256, 256, 30, 3}};
  std::vector<Case> list;
  for (const auto& size : sizes) {
    list.push_back(cast_tile_case(size));
    list.back().layout = list.size() % 2 == 0 ? Layout::blhd : Layout::bhld;
  }
  return list;
}

/// Rows of whole chunks of 16 bytes: several tiles of tokens, of members and of clusters, in the
/// last one more than a block has at once.
inline std::vector<Case> cast_chunk_cases() {
  const std::array<int64_t, 5> sizes[] = {
      {150, 64, 64, 129, 3}, {200, 16, 24, 70, 70}, {140, 8, 8, 5, 270}};
  std::vector<Case> list;
  for (const auto& size : sizes) list.push_back(cast_tile_case(size));
  return list;
}

}  // namespace cluster_attention::test
