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

/// Inputs and output of every attention kind: they share one layout.
void decode_tensors(Request& request, AttentionInputs& inputs, OutputRows& output) {
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
  request.rows("output", output, layout, shape.batch, shape.heads, shape.query_length,
               shape.value_dim);
}

}  // namespace

void decode(Request& request, AttentionProblem& problem) {
  decode_tensors(request, problem.inputs, problem.output);
  const AttentionShape& shape = problem.inputs.shape;
  problem.causal = request.flag("causal");
  request.array("logsumexp", problem.logsumexp,
                element_count(shape.batch, shape.heads, shape.query_length), Presence::optional);
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
  request.array("planes", problem.planes, element_count(problem.bits, shape.head_dim + 1),
                problem.grouping == Grouping::hamming ? Presence::required : Presence::optional);
  request.array("labels", problem.given_labels, queries,
                problem.grouping == Grouping::given ? Presence::required : Presence::optional);
  request.array("resultLabels", problem.labels, queries, Presence::optional);
  request.array("counts", problem.counts, element_count(shape.batch, shape.heads, problem.clusters),
                Presence::optional);
  request.array("resultIndices", problem.indices,
                element_count(shape.batch, shape.heads, problem.clusters, problem.top_k),
                Presence::optional);
}

void decode(Request& request, CentroidAttentionProblem& problem) {
  decode_tensors(request, problem.inputs, problem.output);
  const AttentionShape& shape = problem.inputs.shape;
  problem.normalize = request.choice("normalize", Normalize::inputs);
  problem.aggregate = request.choice("aggregate", Collect::mean);
  problem.neighbor_count = request.size("neighborCount");
  request.array("weights", problem.weights, element_count(shape.batch, shape.key_length),
                Presence::optional);
  request.array("neighbors", problem.neighbors,
                element_count(shape.batch, shape.query_length, problem.neighbor_count),
                Presence::optional);
  request.array("labels", problem.labels, element_count(shape.batch, shape.heads, shape.key_length),
                Presence::optional);
  request.array("masses", problem.masses,
                element_count(shape.batch, shape.heads, shape.query_length), Presence::optional);
  request.array("objective", problem.objective, shape.batch, Presence::optional);
}

void decode(Request& request, CastAttentionProblem& problem) {
  decode_tensors(request, problem.inputs, problem.output);
  const AttentionShape& shape = problem.inputs.shape;
  problem.has_scale = request.flag("hasScale");
  problem.clusters = request.size("clusters", 1);
  problem.cluster_size = request.size("clusterSize");  // given lists may be wider than N
  problem.selection = request.choice("selection", Selection::given);
  problem.activation = request.choice("activation", Activation::laplace);
  const int64_t slots = element_count(shape.batch, problem.clusters, problem.cluster_size);
  request.array("surrogates", problem.surrogates,
                element_count(shape.heads, problem.clusters, shape.head_dim));
  request.array("gate", problem.gate, element_count(shape.batch, shape.key_length));
  request.array("indices", problem.given_indices, slots,
                problem.selection == Selection::given ? Presence::required : Presence::optional);
  request.array("resultIndices", problem.indices, slots, Presence::optional);
  request.array("coverage", problem.coverage, shape.batch, Presence::optional);
}

}  // namespace binding
}  // namespace cluster_attention
