// The attention kinds: §1, §4-§7 of the operations.

#include "native/binding/decode.h"

namespace cluster_attention {
namespace binding {
namespace {

AttentionShape decode_shape(Request& request) {
  AttentionShape shape;
  shape.batch = request.size("batch");
  shape.heads = request.size("heads", 1);
  shape.query_length = request.size("queryLength");
  shape.key_length = request.size("keyLength");
  shape.head_dim = request.size("headDim", 1);
  shape.value_dim = request.size("valueDim", 1);
  return shape;
}

/// The inputs of every attention kind. Returns their layout, which outputs and gradients share.
Layout decode_inputs(Request& request, AttentionInputs& inputs) {
  const AttentionShape shape = decode_shape(request);
  const Layout layout = request.choice("layout", Layout::blhd);
  inputs.shape = shape;
  inputs.scale = request.real("scale");
  request.rows("query", inputs.query, layout, shape.batch, shape.heads, shape.query_length,
               shape.head_dim);
  request.rows("key", inputs.key, layout, shape.batch, shape.heads, shape.key_length,
               shape.head_dim);
  request.rows("value", inputs.value, layout, shape.batch, shape.heads, shape.key_length,
               shape.value_dim);
  request.lengths("queryLengths", inputs.query_lengths, shape.batch, shape.query_length);
  request.lengths("keyLengths", inputs.key_lengths, shape.batch, shape.key_length);
  return layout;
}

/// A tensor of the output's shape: the output itself or its gradient.
template <typename T>
void decode_output(Request& request, const char* name, RowView<T>& output, Layout layout,
                   const AttentionShape& shape) {
  request.rows(name, output, layout, shape.batch, shape.heads, shape.query_length, shape.value_dim);
}

void decode_tensors(Request& request, AttentionInputs& inputs, OutputRows& output) {
  const Layout layout = decode_inputs(request, inputs);
  decode_output(request, "output", output, layout, inputs.shape);
}

/// What the gradients of every attention kind share: its inputs, the gradient of its output, and
/// those of query, key and value that are wanted.
Layout decode_gradients(Request& request, AttentionInputs& inputs, InputRows& output_gradient,
                        AttentionGradients& gradients) {
  const Layout layout = decode_inputs(request, inputs);
  const AttentionShape& shape = inputs.shape;
  decode_output(request, "gradOutput", output_gradient, layout, shape);
  request.rows("queryGradient", gradients.query, layout, shape.batch, shape.heads,
               shape.query_length, shape.head_dim, Presence::optional);
  request.rows("keyGradient", gradients.key, layout, shape.batch, shape.heads, shape.key_length,
               shape.head_dim, Presence::optional);
  request.rows("valueGradient", gradients.value, layout, shape.batch, shape.heads, shape.key_length,
               shape.value_dim, Presence::optional);
  return layout;
}

/// What clustered attention chose and found per cluster: results of the forward, and what its
/// gradient reads.
void decode_choices(Request& request, ClusteredAttentionProblem& problem, Presence presence) {
  const AttentionShape& shape = problem.inputs.shape;
  const int64_t clusters = element_count(shape.batch, shape.heads, problem.clusters);
  request.array("resultLabels", problem.labels,
                element_count(shape.batch, shape.heads, shape.query_length), presence);
  request.array("resultIndices", problem.indices,
                element_count(shape.batch, shape.heads, problem.clusters, problem.top_k),
                problem.top_k > 0 ? presence : Presence::optional);
  request.array("clusterValues", problem.cluster_values,
                element_count(shape.batch, shape.heads, problem.clusters, shape.value_dim),
                presence);
  request.array("clusterLogsumexp", problem.cluster_logsumexp, clusters, presence);
}

void decode_weighting(Request& request, CentroidAttentionProblem& problem) {
  const AttentionShape& shape = problem.inputs.shape;
  problem.normalize = request.choice("normalize", Normalize::inputs);
  problem.aggregate = request.choice("aggregate", Collect::mean);
  problem.neighbor_count = request.size("neighborCount");
  request.array("weights", problem.weights, element_count(shape.batch, shape.key_length),
                Presence::optional);
  request.array("neighbors", problem.neighbors,
                element_count(shape.batch, shape.query_length, problem.neighbor_count),
                Presence::optional);
}

/// Sizes, surrogates and gate of CAST. Returns the number of its slots.
int64_t decode_surrogates(Request& request, CastAttentionProblem& problem) {
  const AttentionShape& shape = problem.inputs.shape;
  request.require(shape.query_length == shape.key_length, "queryLength",
                  "keyLength, each token being a query and a key,");
  problem.has_scale = request.flag("hasScale");
  problem.clusters = request.size("clusters", 1);
  problem.cluster_size = request.size("clusterSize");  // given lists may be wider than N
  problem.activation = request.choice("activation", Activation::laplace);
  request.array("surrogates", problem.surrogates,
                element_count(shape.heads, problem.clusters, shape.head_dim));
  request.array("gate", problem.gate, element_count(shape.batch, shape.key_length));
  return element_count(shape.batch, problem.clusters, problem.cluster_size);
}

}  // namespace

void decode(Request& request, AttentionProblem& problem) {
  decode_tensors(request, problem.inputs, problem.output);
  const AttentionShape& shape = problem.inputs.shape;
  problem.causal = request.flag("causal");
  request.array("logsumexp", problem.logsumexp,
                element_count(shape.batch, shape.heads, shape.query_length), Presence::optional);
}

void decode(Request& request, AttentionGradientProblem& problem) {
  AttentionProblem& forward = problem.forward;
  const Layout layout =
      decode_gradients(request, forward.inputs, problem.output_gradient, problem.gradients);
  const AttentionShape& shape = forward.inputs.shape;
  forward.causal = request.flag("causal");
  decode_output(request, "output", forward.output, layout, shape);
  request.array("logsumexp", forward.logsumexp,
                element_count(shape.batch, shape.heads, shape.query_length));
}

void decode(Request& request, ClusteredAttentionProblem& problem) {
  decode_tensors(request, problem.inputs, problem.output);
  const AttentionShape& shape = problem.inputs.shape;
  problem.clusters = request.size("clusters", 1);
  problem.top_k = request.integer("topK", 0, shape.key_length);
  problem.grouping = request.choice("grouping", Grouping::given);
  problem.threshold = request.choice("threshold", Threshold::data);
  problem.bits = request.integer("bits", 1, 64);
  problem.iterations = request.integer("iterations", 0, kMaximumSafeInteger);
  problem.seed = request.seed("seed");
  const int64_t queries = element_count(shape.batch, shape.heads, shape.query_length);
  problem.hash_bias = request.flag("hashBias");
  request.array("planes", problem.planes, element_count(problem.bits, shape.head_dim + 1),
                Presence::optional);
  request.array("labels", problem.given_labels, queries,
                problem.grouping == Grouping::given ? Presence::required : Presence::optional);
  decode_choices(request, problem, Presence::optional);
  request.array("counts", problem.counts, element_count(shape.batch, shape.heads, problem.clusters),
                Presence::optional);
}

void decode(Request& request, ClusteredAttentionGradientProblem& problem) {
  ClusteredAttentionProblem& forward = problem.forward;
  decode_gradients(request, forward.inputs, problem.output_gradient, problem.gradients);
  forward.clusters = request.size("clusters", 1);
  forward.top_k = request.integer("topK", 0, forward.inputs.shape.key_length);
  forward.grouping = Grouping::given;
  problem.detach_mass = request.flag("detachMass");
  decode_choices(request, forward, Presence::required);
}

void decode(Request& request, CentroidAttentionProblem& problem) {
  decode_tensors(request, problem.inputs, problem.output);
  decode_weighting(request, problem);
  const AttentionShape& shape = problem.inputs.shape;
  const int64_t centroids = element_count(shape.batch, shape.heads, shape.query_length);
  request.array("labels", problem.labels, element_count(shape.batch, shape.heads, shape.key_length),
                Presence::optional);
  request.array("masses", problem.masses, centroids, Presence::optional);
  request.array("objective", problem.objective, shape.batch, Presence::optional);
  request.array("logsumexp", problem.logsumexp, centroids, Presence::optional);
}

void decode(Request& request, CentroidAttentionGradientProblem& problem) {
  CentroidAttentionProblem& forward = problem.forward;
  const Layout layout =
      decode_gradients(request, forward.inputs, problem.output_gradient, problem.gradients);
  decode_weighting(request, forward);
  const AttentionShape& shape = forward.inputs.shape;
  const int64_t centroids = element_count(shape.batch, shape.heads, shape.query_length);
  decode_output(request, "output", forward.output, layout, shape);
  request.array("masses", forward.masses, centroids,
                forward.aggregate == Collect::mean ? Presence::required : Presence::optional);
  request.array("logsumexp", forward.logsumexp, centroids,
                forward.normalize == Normalize::inputs ? Presence::required : Presence::optional);
  request.array("weightsGradient", problem.weights, element_count(shape.batch, shape.key_length),
                Presence::optional);
}

void decode(Request& request, CastAttentionProblem& problem) {
  decode_tensors(request, problem.inputs, problem.output);
  const int64_t slots = decode_surrogates(request, problem);
  problem.selection = request.choice("selection", Selection::given);
  request.array("indices", problem.given_indices, slots,
                problem.selection == Selection::given ? Presence::required : Presence::optional);
  request.array("resultIndices", problem.indices, slots, Presence::optional);
  request.array("coverage", problem.coverage, problem.inputs.shape.batch, Presence::optional);
}

void decode(Request& request, CastAttentionGradientProblem& problem) {
  CastAttentionProblem& forward = problem.forward;
  decode_gradients(request, forward.inputs, problem.output_gradient, problem.gradients);
  const int64_t slots = decode_surrogates(request, forward);
  const AttentionShape& shape = forward.inputs.shape;
  request.array("resultIndices", forward.indices, slots);
  request.array("surrogatesGradient", problem.surrogates,
                element_count(shape.heads, forward.clusters, shape.head_dim), Presence::optional);
  request.array("gateGradient", problem.gate, element_count(shape.batch, shape.key_length),
                Presence::optional);
}

}  // namespace binding
}  // namespace cluster_attention
