// Top-k and the products that read only listed keys: §3 of the operations.

#include "native/binding/decode.h"

namespace cluster_attention {
namespace binding {
namespace {

/// Which of the attention dimensions a product uses; the other is not in its request.
enum class Inner { head_dim, value_dim };

AttentionShape decode_shape(Request& request, Inner inner) {
  AttentionShape shape;
  shape.batch = request.size("batch");
  shape.heads = request.size("heads", 1);
  shape.query_length = request.size("queryLength");
  shape.key_length = request.size("keyLength");
  if (inner == Inner::head_dim) shape.head_dim = request.size("headDim", 1);
  if (inner == Inner::value_dim) shape.value_dim = request.size("valueDim", 1);
  return shape;
}

SparseIndices decode_sizes(Request& request) {
  SparseIndices sparse;
  sparse.k = request.size("k", 1);
  sparse.clusters = request.size("clusters");
  return sparse;
}

void decode_indices(Request& request, const AttentionShape& shape, SparseIndices& sparse) {
  const bool per_cluster = sparse.clusters > 0;
  const int64_t lists = per_cluster ? sparse.clusters : shape.query_length;
  request.array("indices", sparse.indices,
                element_count(shape.batch, shape.heads, lists, sparse.k));
  if (per_cluster) {
    request.array("labels", sparse.labels,
                  element_count(shape.batch, shape.heads, shape.query_length));
  }
}

/// Elements of an array (B,H,L,k).
template <typename Problem>
int64_t listed_count(const Problem& problem) {
  const AttentionShape& shape = problem.shape;
  return element_count(shape.batch, shape.heads, shape.query_length, problem.sparse.k);
}

/// The inputs of a product. Returns the layout of its tensors.
Layout decode_inputs(Request& request, SparseDotProblem& problem) {
  const AttentionShape shape = decode_shape(request, Inner::head_dim);
  const Layout layout = request.choice("layout", Layout::blhd);
  problem.shape = shape;
  problem.sparse = decode_sizes(request);
  request.rows("query", problem.query, layout, shape.batch, shape.heads, shape.query_length,
               shape.head_dim);
  request.rows("key", problem.key, layout, shape.batch, shape.heads, shape.key_length,
               shape.head_dim);
  decode_indices(request, shape, problem.sparse);
  request.lengths("queryLengths", problem.query_lengths, shape.batch, shape.query_length);
  request.lengths("keyLengths", problem.key_lengths, shape.batch, shape.key_length);
  return layout;
}

Layout decode_inputs(Request& request, SparseWeightedSumProblem& problem) {
  const AttentionShape shape = decode_shape(request, Inner::value_dim);
  const Layout layout = request.choice("layout", Layout::blhd);
  problem.shape = shape;
  problem.sparse = decode_sizes(request);
  request.array("weights", problem.weights, listed_count(problem));
  request.rows("value", problem.value, layout, shape.batch, shape.heads, shape.key_length,
               shape.value_dim);
  decode_indices(request, shape, problem.sparse);
  request.lengths("queryLengths", problem.query_lengths, shape.batch, shape.query_length);
  request.lengths("keyLengths", problem.key_lengths, shape.batch, shape.key_length);
  return layout;
}

}  // namespace

void decode(Request& request, TopKProblem& problem) {
  problem.rows = request.integer("rows", 0, kMaximumSafeInteger);
  problem.columns = request.size("columns");
  problem.k = request.integer("k", 0, problem.columns);
  const int64_t results = element_count(problem.rows, problem.k);
  request.array("scores", problem.scores, element_count(problem.rows, problem.columns));
  request.lengths("lengths", problem.lengths, problem.rows, problem.columns);
  request.array("values", problem.values, results);
  request.array("indices", problem.indices, results);
}

void decode(Request& request, SparseDotProblem& problem) {
  decode_inputs(request, problem);
  request.array("output", problem.output, listed_count(problem));
}

void decode(Request& request, SparseDotGradientProblem& problem) {
  const Layout layout = decode_inputs(request, problem.forward);
  const AttentionShape& shape = problem.forward.shape;
  request.array("gradOutput", problem.output_gradient, listed_count(problem.forward));
  request.rows("queryGradient", problem.query, layout, shape.batch, shape.heads, shape.query_length,
               shape.head_dim, Presence::optional);
  request.rows("keyGradient", problem.key, layout, shape.batch, shape.heads, shape.key_length,
               shape.head_dim, Presence::optional);
}

void decode(Request& request, SparseWeightedSumProblem& problem) {
  const Layout layout = decode_inputs(request, problem);
  const AttentionShape& shape = problem.shape;
  request.rows("output", problem.output, layout, shape.batch, shape.heads, shape.query_length,
               shape.value_dim);
}

void decode(Request& request, SparseWeightedSumGradientProblem& problem) {
  const Layout layout = decode_inputs(request, problem.forward);
  const AttentionShape& shape = problem.forward.shape;
  request.rows("gradOutput", problem.output_gradient, layout, shape.batch, shape.heads,
               shape.query_length, shape.value_dim);
  request.array("weightsGradient", problem.weights, listed_count(problem.forward),
                Presence::optional);
  request.rows("valueGradient", problem.value, layout, shape.batch, shape.heads, shape.key_length,
               shape.value_dim, Presence::optional);
}

}  // namespace binding
}  // namespace cluster_attention
