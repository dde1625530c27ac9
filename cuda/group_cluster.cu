#include <algorithm>

#include "cuda/group_cluster.cuh"
#include "cuda/launch.h"

namespace cluster_attention::cuda {

namespace {

/// Shared memory with places for the sums of all groups of a block, or of some of them; `places`
/// tells how many.
int64_t shared_bytes_with_sums(int64_t bytes, int64_t parts, GroupSums* after) {
  constexpr int64_t kPlaceBytes = kSliceSums<kGroupColumns> * static_cast<int64_t>(sizeof(double));
  constexpr int64_t kUsual = 8;
  int64_t slices = 1;
  for (int i = 0; i < after->count; ++i) {
    MemberSumsParams& sums = after->sums[i];
    sums.slices = divide_up(sums.problem.dim, kWarp * kGroupColumns);
    slices = std::max(slices, divide_up(sums.problem.clusters, parts) * sums.slices);
  }
  const int64_t all = std::max(bytes, std::min(slices, kUsual) * kPlaceBytes);
  after->places = static_cast<int>(all / kPlaceBytes);
  return all;
}

class GroupLauncher {
 public:
  GroupLauncher(Session& session, const GroupProblem& problem, const Call& call,
                const ClusterLimits& limits)
      : session_(session), problem_(problem), call_(call), limits_(limits) {
    after_.count = problem.sum_count;
    for (int i = 0; i < problem.sum_count; ++i) {
      after_.sums[i].problem = problem.sums[i];
      after_.sums[i].flags = session.flags();
    }
    if (problem.packing != nullptr) after_.packing = *problem.packing;
  }

  Status run(bool* done) {
    *done = false;
    if (session_.capability() < 90 || problem_.sort.sequences == 0) return Status::success();
    return problem_.hashing == nullptr ? group_labels(done) : group_hashes(done);
  }

 private:
  template <Read kRead>
  bool all_have_pairs() const {
    for (int i = 0; i < problem_.sum_count; ++i) {
      if (!has_pairs<kRead>(problem_.sums[i].inputs, problem_.sums[i].dim)) return false;
    }
    return true;
  }

  Status group_labels(bool* done) {
    // grid: a cluster of blocks per sequence
    const SortProblem& sort = problem_.sort;
    const SortPlan plan = plan_sort_clusters(sort.sequences, sort.length, sort.clusters, limits_);
    if (plan.parts == 0 || divide_up(sort.length, plan.parts) > kMostGroupRows) {
      return Status::success();
    }
    GroupLabelsParams params{};
    params.sort = sort_cluster_params(session_, sort, plan);
    params.after = after_;
    const int64_t bytes =
        shared_bytes_with_sums(sort_cluster_layout(plan.warps, plan.run_rows, sort.clusters).bytes,
                               plan.parts, &params.after);
    return with_read(call_, [&](auto read) {
      constexpr Read kRead = decltype(read)::value;
      if (!all_have_pairs<kRead>()) return Status::success();
      return launch_if_it_fits(group_labels_kernel<kRead>, params, plan.parts, plan.warps * kWarp,
                               bytes, done);
    });
  }

  Status group_hashes(bool* done) {
    // grid: a cluster of blocks per sequence
    const HashSequences& hashing = *problem_.hashing;
    const int64_t clusters = std::min(problem_.kmeans.clusters, hashing.length);
    const HammingPlan plan =
        plan_hamming_kmeans(problem_.kmeans.batch, hashing.length, clusters, limits_);
    const int64_t rows = divide_up(hashing.length, plan.parts);
    if (plan.way == HammingPlan::Way::launches || hashing.threshold == Threshold::data ||
        hashing.dim > kMostProductColumns || rows > kMostGroupRows) {
      return Status::success();
    }
    GroupHashesParams params{};
    params.kmeans = hamming_cluster_params(problem_.kmeans, hashing.heads, plan, &problem_.sort);
    params.steps = hamming_steps(hashing.length, plan);
    params.hash.hash.sequences = hashing;
    params.hash.hash.round_planes = call_.precision == Precision::bfloat16;
    params.hash.hash.flags = session_.flags();
    params.after = after_;
    const int64_t planes = planes_offset(params) + hash_product_layout(hashing.dim).bytes;
    const int64_t bytes = shared_bytes_with_sums(
        std::max(planes, group_hamming_layout(params).bytes), plan.parts, &params.after);
    return with_read(call_, [&](auto read) {
      constexpr Read kRead = decltype(read)::value;
      constexpr int kFewestThreads = 256;  // the other steps gain by more than the rounds lose
      if (!has_vectors<kRead>(hashing.inputs, hashing.dim) || !all_have_pairs<kRead>()) {
        return Status::success();
      }
      params.hash.tolerance = product_tolerance<kRead>(hashing.dim, params.hash.hash.round_planes);
      return launch_if_it_fits(group_hashes_kernel<kRead>, params, plan.parts,
                               std::max(plan.threads, kFewestThreads), bytes, done);
    });
  }

  template <typename Params>
  Status launch_if_it_fits(void (*kernel)(Params), const Params& params, int64_t parts,
                           int64_t threads, int64_t bytes, bool* done) {
    const int64_t sequences = problem_.sort.sequences;
    const LaunchShape shape{sequences * parts, threads, bytes, parts};
    // Where clusters take turns they wait for each other's latencies: launches of their own share
    // the device better.
    if (bytes > limits_.shared_bytes || sequences > limits_.resident_clusters(parts)) {
      return Status::success();
    }
    *done = true;
    return launch(session_, shape, kernel, params);
  }

  Session& session_;
  const GroupProblem& problem_;
  const Call& call_;
  const ClusterLimits& limits_;
  GroupSums after_ = {};
};

}  // namespace

Status group_at_once(Session& session, const GroupProblem& problem, const Call& call, bool* done) {
  return group_at_once(session, problem, call, session.limits(), done);
}

Status group_at_once(Session& session, const GroupProblem& problem, const Call& call,
                     const ClusterLimits& limits, bool* done) {
  return GroupLauncher(session, problem, call, limits).run(done);
}

}  // namespace cluster_attention::cuda
