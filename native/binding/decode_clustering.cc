// Batched clustering: §2 of the operations.

#include "native/binding/decode.h"
#include "native/kernels/hash.h"

namespace cluster_attention {
namespace binding {
namespace {

/// Elements of an array with a row for each position, and with a row for each cluster.
template <typename Problem>
int64_t position_count(const Problem& problem) {
  return element_count(problem.batch, problem.length, problem.dim);
}
template <typename Problem>
int64_t cluster_count(const Problem& problem) {
  return element_count(problem.batch, problem.clusters, problem.dim);
}

template <typename Problem>
void decode_labels(Request& request, Problem& problem) {
  problem.batch = request.size("batch");
  problem.length = request.size("length");
  problem.dim = request.size("dim", 1);
  problem.clusters = request.size("clusters", 1);
  request.array("labels", problem.labels, element_count(problem.batch, problem.length));
}

}  // namespace

Status run(const LshPlanesProblem& problem, const CallSettings&, Context& context) {
  return lsh_planes(problem.bits, problem.dim, problem.seed, problem.bias, context, problem.output);
}

void decode(Request& request, LshPlanesProblem& problem) {
  problem.bits = request.integer("bits", 1, 64);
  problem.dim = request.size("dim", 1);
  problem.seed = request.seed("seed");
  problem.bias = request.flag("hashBias");
  request.array("output", problem.output, element_count(problem.bits, problem.dim + 1));
}

void decode(Request& request, HashProblem& problem) {
  problem.rows = request.integer("rows", 0, kMaximumSafeInteger);
  problem.dim = request.size("dim", 1);
  problem.bits = request.integer("bits", 1, 64);
  request.array("inputs", problem.inputs, element_count(problem.rows, problem.dim));
  request.array("planes", problem.planes, element_count(problem.bits, problem.dim + 1));
  request.array("hashes", problem.hashes, problem.rows);
}

void decode(Request& request, HammingKMeansProblem& problem) {
  problem.batch = request.size("batch");
  problem.length = request.size("length");
  problem.clusters = request.size("clusters", 1);
  problem.bits = request.integer("bits", 1, 64);
  problem.max_iterations = request.integer("maxIterations", 0, kMaximumSafeInteger);
  problem.seed = request.seed("seed");
  const int64_t positions = element_count(problem.batch, problem.length);
  const int64_t centroids = element_count(problem.batch, problem.clusters);
  request.array("hashes", problem.hashes, positions);
  request.array("initial", problem.initial, centroids, Presence::optional);
  request.lengths("lengths", problem.lengths, problem.batch, problem.length);
  request.array("labels", problem.labels, positions);
  request.array("counts", problem.counts, centroids);
  request.array("centroids", problem.centroids, centroids);
  request.array("iterations", problem.iterations, problem.batch);
}

void decode(Request& request, KMeansProblem& problem) {
  problem.batch = request.size("batch");
  problem.length = request.size("length");
  problem.dim = request.size("dim", 1);
  problem.clusters = request.size("clusters", 1);
  problem.max_iterations = request.integer("maxIterations", 0, kMaximumSafeInteger);
  problem.tolerance = request.number("tolerance");
  problem.seed = request.seed("seed");
  problem.metric = request.choice("metric", Metric::cosine);
  problem.start = request.choice("start", KMeansStart::given);
  const int64_t rows = element_count(problem.batch, problem.clusters, problem.dim);
  request.rows("inputs", problem.inputs, Layout::bhld, problem.batch, problem.heads, problem.length,
               problem.dim);
  request.array("initial", problem.initial, rows,
                problem.start == KMeansStart::given ? Presence::required : Presence::optional);
  request.lengths("lengths", problem.lengths, problem.batch, problem.length);
  request.array("centroids", problem.centroids, rows);
  request.array("labels", problem.labels, element_count(problem.batch, problem.length));
  request.array("counts", problem.counts, element_count(problem.batch, problem.clusters));
  request.array("inertia", problem.inertia, problem.batch);
  request.array("iterations", problem.iterations, problem.batch);
}

void decode(Request& request, AggregateProblem& problem) {
  decode_labels(request, problem);
  problem.reduce = request.choice("reduce", Reduce::sum);
  request.rows("inputs", problem.inputs, Layout::bhld, problem.batch, problem.heads, problem.length,
               problem.dim);
  request.array("output", problem.output, cluster_count(problem));
}

void decode(Request& request, AggregateGradientProblem& problem) {
  AggregateProblem& forward = problem.forward;
  decode_labels(request, forward);
  forward.reduce = request.choice("reduce", Reduce::sum);
  request.array("gradOutput", problem.output_gradient, cluster_count(forward));
  request.rows("inputsGradient", problem.inputs, Layout::bhld, forward.batch, forward.heads,
               forward.length, forward.dim, Presence::optional);
}

void decode(Request& request, BroadcastProblem& problem) {
  decode_labels(request, problem);
  request.array("inputs", problem.inputs, cluster_count(problem));
  request.array("output", problem.output, position_count(problem));
}

void decode(Request& request, BroadcastGradientProblem& problem) {
  decode_labels(request, problem.forward);
  request.array("gradOutput", problem.output_gradient, position_count(problem.forward));
  request.array("inputsGradient", problem.inputs, cluster_count(problem.forward),
                Presence::optional);
}

}  // namespace binding
}  // namespace cluster_attention
