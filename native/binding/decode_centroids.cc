// Centroid pooling and encoding: §6 of the operations.

#include "native/binding/decode.h"

namespace cluster_attention {
namespace binding {

void decode(Request& request, CentroidPoolProblem& problem) {
  problem.batch = request.size("batch");
  problem.length = request.size("length");
  problem.dim = request.size("dim", 1);
  problem.centroids = request.size("centroids", 1);
  problem.iterations = request.integer("iterations", 0, kMaximumSafeInteger);
  problem.similarity = request.choice("similarity", Similarity::euclidean);
  problem.temperature = request.real("temperature");
  problem.start = request.choice("start", PoolStart::given);
  problem.seed = request.seed("seed");
  const int64_t rows = element_count(problem.batch, problem.centroids, problem.dim);
  request.array("inputs", problem.inputs,
                element_count(problem.batch, problem.length, problem.dim));
  request.array("initial", problem.initial, rows,
                problem.start == PoolStart::given ? Presence::required : Presence::optional);
  request.lengths("lengths", problem.lengths, problem.batch, problem.length);
  request.array("output", problem.output, rows);
  request.array("labels", problem.labels, element_count(problem.batch, problem.length),
                Presence::optional);
  request.array("masses", problem.masses, element_count(problem.batch, problem.centroids),
                Presence::optional);
}

void decode(Request& request, CentroidEncodeProblem& problem) {
  problem.batch = request.size("batch");
  problem.length = request.size("length");
  problem.dim = request.size("dim", 1);
  problem.heads = request.size("heads", 1);
  problem.head_dim = request.size("headDim", 1);
  problem.centroids = request.size("centroids", 1);
  problem.steps = request.integer("steps", 0, kMaximumSafeInteger);
  problem.step_size = request.real("stepSize");
  problem.scale = request.real("scale");
  problem.normalize = request.choice("normalize", Normalize::inputs);
  problem.aggregate = request.choice("aggregate", Collect::mean);
  problem.start = request.choice("start", PoolStart::given);
  problem.seed = request.seed("seed");
  problem.neighbor_count = request.size("neighborCount");
  const int64_t rows = element_count(problem.batch, problem.centroids, problem.dim);
  const int64_t weight = element_count(problem.heads, problem.head_dim, problem.dim);
  request.array("inputs", problem.inputs,
                element_count(problem.batch, problem.length, problem.dim));
  request.array("initial", problem.initial, rows,
                problem.start == PoolStart::given ? Presence::required : Presence::optional);
  request.array("queryWeight", problem.query_weight, weight);
  request.array("keyWeight", problem.key_weight, weight);
  request.array("valueWeight", problem.value_weight, weight);
  request.array("outputWeight", problem.output_weight, weight);
  request.array("weights", problem.weights, element_count(problem.batch, problem.length),
                Presence::optional);
  request.array("neighbors", problem.neighbors,
                element_count(problem.batch, problem.centroids, problem.neighbor_count),
                Presence::optional);
  request.array("output", problem.output, rows);
}

}  // namespace binding
}  // namespace cluster_attention
