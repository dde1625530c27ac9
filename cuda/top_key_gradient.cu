#include "cuda/launch.h"
#include "cuda/top_key_gradient.cuh"
#include "cuda/widths.h"

namespace cluster_attention::cuda {

namespace {

/// Warps of a block that takes tiles of about `rows` rows; the bits do not depend on it.
template <typename Sizes>
int64_t warps_for(Session& session, int64_t rows) {
  int64_t warps = divide_up(rows, Sizes::kWarpRows);
  warps = warps < 1 ? 1 : warps > kTopKeyWarps ? kTopKeyWarps : warps;
  while (warps > 1 &&
         bytes_of_block<Sizes>(session, warps, kMemberTileWords * 4) > session.shared_bytes()) {
    warps /= 2;
  }
  return warps;
}

template <typename Body>
Status with_sizes(const TopKeyGradient& problem, Body body) {
  return with_width(problem.shape.head_dim, problem.shape.value_dim, [&](auto width) {
    return with_split(problem.split, [&](auto split) { return body(width, split); });
  });
}

/// A launch over tiles of members; `slices` says whether blocks take slices of the columns.
template <typename Sizes, typename Params>
Status launch_members(Session& session, Params params, bool slices, void (*kernel)(Params)) {
  // grid: (sequences * most tiles of members * slices)
  const TopKeyGradient& problem = params.problem;
  const AttentionShape& shape = problem.shape;
  const int64_t warps = warps_for<Sizes>(session, divide_up(shape.query_length, problem.clusters));
  params.tiles = most_tiles(problem.clusters, shape.query_length, Sizes::kWarpRows * warps);
  const int64_t blocks = shape.batch * shape.heads * params.tiles * (slices ? Sizes::kSlices : 1);
  return launch(session, blocks, kWarp * warps,
                bytes_of_block<Sizes>(session, warps, kMemberTileWords * 4), kernel, params);
}

}  // namespace

Status top_key_terms(Session& session, const TopKeyGradient& problem, bool wants_offset) {
  TopKeyTermsParams params = {};
  params.problem = problem;
  params.wants_offset = wants_offset;
  return with_sizes(problem, [&](auto width, auto split) {
    constexpr int kWidth = decltype(width)::value;
    constexpr bool kSplit = decltype(split)::value;
    return launch_members<GradientSizes<kWidth, kSplit>>(session, params, false,
                                                         top_key_terms_kernel<kWidth, kSplit>);
  });
}

Status top_key_queries(Session& session, const TopKeyGradient& problem, const float* mean_gradient,
                       const StoredOutput& query) {
  TopKeyQueriesParams params = {};
  params.problem = problem;
  params.mean_gradient = mean_gradient;
  params.query = query;
  params.flags = session.flags();
  return with_sizes(problem, [&](auto width, auto split) {
    constexpr int kWidth = decltype(width)::value;
    constexpr bool kSplit = decltype(split)::value;
    return launch_members<GradientSizes<kWidth, kSplit>>(session, params, true,
                                                         top_key_queries_kernel<kWidth, kSplit>);
  });
}

Status top_key_rows(Session& session, const TopKeyGradient& problem, const TopKeyRows& rows) {
  // grid: (sequences * clusters * tiles of keys * slices)
  TopKeyRowsParams params = {};
  params.problem = problem;
  params.rows = rows;
  return with_sizes(problem, [&](auto width, auto split) {
    constexpr int kWidth = decltype(width)::value;
    constexpr bool kSplit = decltype(split)::value;
    using Sizes = GradientSizes<kWidth, kSplit>;
    const int64_t warps = warps_for<Sizes>(session, problem.top_k);
    params.tiles = divide_up(problem.top_k, Sizes::kWarpRows * warps);
    const int64_t sequences = problem.shape.batch * problem.shape.heads;
    return launch(session, sequences * rows.count * params.tiles * Sizes::kSlices, kWarp * warps,
                  bytes_of_block<Sizes>(session, warps), top_key_rows_kernel<kWidth, kSplit>,
                  params);
  });
}

}  // namespace cluster_attention::cuda
