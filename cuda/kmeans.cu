#include <algorithm>

#include "cuda/iterations.h"
#include "cuda/kmeans.cuh"
#include "cuda/kmeans_start.cuh"
#include "cuda/launch.h"
#include "cuda/start_rows.h"

namespace cluster_attention::cuda {

namespace {

template <Read kRead>
class Lloyd {
 public:
  Lloyd(Session& session, const KMeansProblem& problem, const Call& call)
      : session_(session),
        scope_(session.workspace()),
        problem_(problem),
        call_(call),
        sequences_(problem.batch * problem.heads) {
    params_.problem = problem;
    params_.clusters = std::min(problem.clusters, problem.length);
    params_.chunks = std::max<int64_t>(divide_up(problem.length, kKMeansChunk), 1);
    params_.round_initial = call.precision == Precision::bfloat16;
    params_.flags = session.flags();
  }

  Status run() {
    if (problem_.max_iterations > 0 &&
        update_layout(problem_.dim).bytes > session_.shared_bytes()) {
      return {StatusCode::unsupported, "dim", -1};
    }
    CA_RETURN_IF_ERROR(allocate());
    CA_RETURN_IF_ERROR(start());
    CA_RETURN_IF_ERROR(iterate_until_settled(session_, sequences_, problem_.max_iterations,
                                             [this](int64_t i) { return iterate(i); }));
    if (problem_.inertia == nullptr) return Status::success();
    return launch(session_, sequences_ * params_.chunks, kKMeansThreads,
                  kKMeansThreads * sizeof(double), kmeans_inertia_kernel<kRead>, params_);
  }

 private:
  Status allocate() {
    const int64_t rows = checked_size(sequences_, problem_.length);
    const int64_t clusters = checked_size(sequences_, params_.clusters);
    const int64_t chunks = checked_size(sequences_, params_.chunks);
    const int64_t dim = problem_.dim;
    const bool tolerant = problem_.tolerance > 0.0;
    SortProblem& sort = sort_.problem;
    CA_RETURN_IF_ERROR(scope_.allocate(&params_.state, sequences_));
    CA_RETURN_IF_ERROR(scope_.allocate(&params_.chunk_sums, chunks));
    CA_RETURN_IF_ERROR(
        scope_.allocate(&params_.scales, problem_.metric == Metric::cosine ? rows : 0));
    if (problem_.start == KMeansStart::plus_plus) CA_RETURN_IF_ERROR(prepare_draws());
    CA_RETURN_IF_ERROR(scope_.allocate(&params_.packed, checked_size(rows, dim)));
    CA_RETURN_IF_ERROR(scope_.allocate(&params_.origin, checked_size(sequences_, dim)));
    CA_RETURN_IF_ERROR(scope_.allocate(&params_.shifted, checked_size(clusters, dim)));
    CA_RETURN_IF_ERROR(scope_.allocate(&params_.bias, clusters));
    CA_RETURN_IF_ERROR(scope_.allocate(&params_.movement, tolerant ? clusters : 0));
    CA_RETURN_IF_ERROR(
        scope_.allocate(&params_.moments, tolerant ? checked_size(chunks, 2, dim) : 0));
    CA_RETURN_IF_ERROR(
        scope_.allocate(&sort.offsets, checked_size(sequences_, params_.clusters + 1)));
    CA_RETURN_IF_ERROR(scope_.allocate(&sort.order, rows));
    sort.sequences = sequences_;
    sort.heads = problem_.heads;
    sort.length = problem_.length;
    sort.clusters = params_.clusters;
    sort.labels = problem_.labels;
    sort.lengths = problem_.lengths;
    plan_sort(sort_);
    CA_RETURN_IF_ERROR(session_.tickets(sequences_, &params_.tickets));
    sort_.done = &params_.state->done;
    sort_.done_stride = sizeof(KMeansState) / sizeof(int32_t);
    return scope_.allocate(&sort_.counts, checked_size(sequences_, sort_.parts, params_.clusters));
  }

  Status prepare_draws() {
    draws_.start = PoolStart::plus_plus;
    draws_.batch = sequences_;
    draws_.heads = problem_.heads;
    draws_.length = problem_.length;
    draws_.dim = problem_.dim;
    draws_.count = params_.clusters;
    draws_.inputs = tensor_of(problem_.inputs, call_.storage);
    draws_.inputs.round = call_.precision == Precision::bfloat16;
    draws_.lengths = problem_.lengths;
    draws_.seed = problem_.seed;
    draws_.unit_rows = problem_.metric == Metric::cosine;
    draws_.scales = params_.scales;
    draws_.flags = session_.flags();
    CA_RETURN_IF_ERROR(allocate_start_rows(scope_, draws_));
    params_.chosen = draws_.chosen;
    return Status::success();
  }

  Status start() {
    const int64_t row_blocks = sequences_ * divide_up(problem_.length, kKMeansThreads);
    if (problem_.metric == Metric::cosine) {
      CA_RETURN_IF_ERROR(
          launch(session_, row_blocks, kKMeansThreads, 0, kmeans_scales_kernel<kRead>, params_));
    }
    if (problem_.start == KMeansStart::plus_plus) {
      CA_RETURN_IF_ERROR(launch_start_rows(session_, draws_));
    }
    CA_RETURN_IF_ERROR(
        launch(session_, sequences_, kKMeansThreads, 0, kmeans_start_kernel<kRead>, params_));
    CA_RETURN_IF_ERROR(
        launch(session_, row_blocks, kKMeansThreads, 0, kmeans_pack_kernel<kRead>, params_));
    if (!(problem_.tolerance > 0.0)) return Status::success();
    return launch(session_, sequences_ * params_.chunks, kKMeansThreads, sizeof(uint32_t),
                  kmeans_tolerance_kernel<kRead>, params_);
  }

  Status iterate(int64_t iteration) {
    params_.iteration = iteration;
    const KMeansStep step{params_, sort_};
    CA_RETURN_IF_ERROR(launch(session_, sequences_ * sort_.parts, kFmaThreads,
                              assign_layout().bytes, kmeans_assign_kernel<>, step));
    if (iteration == problem_.max_iterations) return Status::success();
    CA_RETURN_IF_ERROR(
        launch(session_, sequences_ * sort_.blocks, kSortThreads, 0, place_rows_kernel<>, sort_));
    const int64_t threads = std::clamp<int64_t>(round_up(problem_.dim, kWarp), kWarp, 256);
    return launch(session_, sequences_ * params_.clusters, threads,
                  update_layout(problem_.dim).bytes, kmeans_update_kernel<kRead>, step);
  }

  Session& session_;
  DeviceWorkspace::Scope scope_;
  const KMeansProblem& problem_;
  const Call& call_;
  const int64_t sequences_;
  KMeansParams params_{};
  StartParams draws_;
  SortParams sort_{};
};

}  // namespace

Status kmeans(Session& session, const KMeansProblem& problem, const Call& call) {
  // grid: see run(); every kernel has blocks for all sequences
  if (problem.batch * problem.heads == 0) return Status::success();
  return with_read(
      call, [&](auto read) { return Lloyd<decltype(read)::value>(session, problem, call).run(); });
}

}  // namespace cluster_attention::cuda
