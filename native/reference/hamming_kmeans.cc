#include "native/reference/hamming_kmeans.h"

#include <algorithm>
#include <bitset>

#include "native/core/random.h"

namespace cluster_attention::reference {

namespace {

int hamming_distance(uint64_t a, uint64_t b) {
  return static_cast<int>(std::bitset<64>(a ^ b).count());
}

/// Nearest centroid; tie: the lowest cluster.
int32_t nearest(uint64_t hash, const std::vector<uint64_t>& centroids) {
  int32_t best = 0;
  for (size_t j = 1; j < centroids.size(); ++j) {
    if (hamming_distance(hash, centroids[j]) < hamming_distance(hash, centroids[best])) {
      best = static_cast<int32_t>(j);
    }
  }
  return best;
}

/// Each bit is the majority of the members; tie: 0.
uint64_t majority(const std::vector<uint64_t>& members) {
  uint64_t result = 0;
  for (int bit = 0; bit < 64; ++bit) {
    size_t ones = 0;
    for (uint64_t hash : members) ones += hash >> bit & 1;
    if (2 * ones > members.size()) result |= uint64_t{1} << bit;
  }
  return result;
}

}  // namespace

HammingKMeansResult hamming_kmeans(const std::vector<uint64_t>& hashes, int64_t clusters,
                                   int64_t max_iterations, uint64_t seed, const uint64_t* initial) {
  const int64_t length = static_cast<int64_t>(hashes.size());
  clusters = std::min(clusters, length);
  std::vector<uint64_t> centroids(clusters);
  for (int64_t j = 0; j < clusters; ++j) {
    centroids[j] = initial != nullptr
                       ? initial[j]
                       : hashes[random_position(seed, RandomStream::start_positions, length, j)];
  }

  std::vector<int32_t> labels(length, -1);
  std::vector<std::vector<uint64_t>> members;
  int32_t updates = 0;
  for (;; ++updates) {
    const std::vector<int32_t> previous = labels;
    members.assign(clusters, {});
    for (int64_t i = 0; i < length; ++i) {
      labels[i] = nearest(hashes[i], centroids);
      members[labels[i]].push_back(hashes[i]);
    }
    if (labels == previous || updates == max_iterations) break;
    for (int64_t j = 0; j < clusters; ++j) {
      if (!members[j].empty()) centroids[j] = majority(members[j]);
    }
  }

  std::vector<int32_t> counts;
  for (const auto& cluster : members) counts.push_back(static_cast<int32_t>(cluster.size()));
  return {labels, counts, centroids, {updates}};
}

HammingKMeansResult hamming_kmeans(const HammingKMeansProblem& problem) {
  const int64_t length = problem.length;
  const int64_t clusters = problem.clusters;
  HammingKMeansResult result{std::vector<int32_t>(problem.batch * length, -1),
                             std::vector<int32_t>(problem.batch * clusters),
                             std::vector<uint64_t>(problem.batch * clusters),
                             std::vector<int32_t>(problem.batch)};
  for (int64_t b = 0; b < problem.batch; ++b) {
    const uint64_t* first = problem.hashes + b * length;
    const std::vector<uint64_t> hashes(first, first + real_length(problem.lengths, b, length));
    const uint64_t* initial = problem.initial != nullptr ? problem.initial + b * clusters : nullptr;
    const HammingKMeansResult one =
        hamming_kmeans(hashes, clusters, problem.max_iterations, problem.seed, initial);
    std::copy(one.labels.begin(), one.labels.end(), result.labels.begin() + b * length);
    std::copy(one.counts.begin(), one.counts.end(), result.counts.begin() + b * clusters);
    std::copy(one.centroids.begin(), one.centroids.end(), result.centroids.begin() + b * clusters);
    result.iterations[b] = one.iterations[0];
  }
  return result;
}

}  // namespace cluster_attention::reference
