// Centroid pooling and encoding: §6 of the operations.

#include "native/binding/decode.h"

namespace cluster_attention {
namespace binding {
namespace {

void decode_inputs(Request& request, CentroidPoolProblem& problem) {
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
}

void decode_inputs(Request& request, CentroidEncodeProblem& problem) {
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
}

/// Elements of the inputs, and of the centroids, which are the output too.
template <typename Problem>
int64_t input_count(const Problem& problem) {
  return element_count(problem.batch, problem.length, problem.dim);
}
template <typename Problem>
int64_t output_count(const Problem& problem) {
  return element_count(problem.batch, problem.centroids, problem.dim);
}

/// The gradients of the output, and those of the inputs and the start that are wanted.
template <typename Problem>
void decode_gradients(Request& request, Problem& problem) {
  const int64_t rows = output_count(problem.forward);
  request.array("gradOutput", problem.output_gradient, rows);
  request.array("inputsGradient", problem.inputs, input_count(problem.forward), Presence::optional);
  request.array("initialGradient", problem.initial, rows, Presence::optional);
}

}  // namespace

void decode(Request& request, CentroidPoolProblem& problem) {
  decode_inputs(request, problem);
  request.array("output", problem.output, output_count(problem));
  request.array("labels", problem.labels, element_count(problem.batch, problem.length),
                Presence::optional);
  request.array("masses", problem.masses, element_count(problem.batch, problem.centroids),
                Presence::optional);
}

void decode(Request& request, CentroidPoolGradientProblem& problem) {
  decode_inputs(request, problem.forward);
  decode_gradients(request, problem);
}

void decode(Request& request, CentroidEncodeProblem& problem) {
  decode_inputs(request, problem);
  request.array("output", problem.output, output_count(problem));
}

void decode(Request& request, CentroidEncodeGradientProblem& problem) {
  CentroidEncodeProblem& forward = problem.forward;
  decode_inputs(request, forward);
  decode_gradients(request, problem);
  const int64_t weight = element_count(forward.heads, forward.head_dim, forward.dim);
  request.array("queryWeightGradient", problem.query_weight, weight, Presence::optional);
  request.array("keyWeightGradient", problem.key_weight, weight, Presence::optional);
  request.array("valueWeightGradient", problem.value_weight, weight, Presence::optional);
  request.array("outputWeightGradient", problem.output_weight, weight, Presence::optional);
}

}  // namespace binding
}  // namespace cluster_attention
