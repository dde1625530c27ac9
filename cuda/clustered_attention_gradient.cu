#include <algorithm>
#include <limits>

#include "cuda/attention_gradient.h"
#include "cuda/clustered_attention_gradient.cuh"
#include "cuda/clustered_attention_gradient.h"
#include "cuda/clustered_pass.h"
#include "cuda/counting_sort.h"
#include "cuda/gradient_pass.h"
#include "cuda/launch.h"
#include "cuda/top_key_gradient.h"
#include "cuda/widths.h"

namespace cluster_attention::cuda {

namespace {

/// Pairs (cluster, top key) whose rows are kept at a time: kSlotsPerKey per key, or kMinimumSlots.
constexpr int64_t kSlotsPerKey = 2;
constexpr int64_t kMinimumSlots = 4096;

class ClusteredGradient {
 public:
  ClusteredGradient(Session& session, DeviceWorkspace::Scope& scope,
                    const ClusteredAttentionGradientProblem& problem, const Call& call)
      : session_(session),
        scope_(scope),
        problem_(problem),
        forward_(problem.forward),
        wanted_(problem.gradients),
        shape_(problem.forward.inputs.shape),
        call_(call),
        sequences_(shape_.batch * shape_.heads),
        clusters_(forward_.clusters),
        k_(forward_.top_k),
        rows_(checked_size(sequences_, clusters_)),
        is_bfloat16_(call.storage == Storage::bfloat16) {}

  Status run() {
    CA_RETURN_IF_ERROR(allocate());
    CA_RETURN_IF_ERROR(group());
    CA_RETURN_IF_ERROR(make_all_operands());
    CA_RETURN_IF_ERROR(cluster_terms());
    if (k_ > 0) CA_RETURN_IF_ERROR(prepare_top_keys());
    CA_RETURN_IF_ERROR(pass());
    if (wants_query()) CA_RETURN_IF_ERROR(mean_gradients());
    if (k_ == 0) return Status::success();
    if (wants_query()) {
      CA_RETURN_IF_ERROR(top_key_queries(session_, top_, mean_gradient_,
                                         stored_output(wanted_.query, is_bfloat16_)));
    }
    return wants_keys() ? add_top_keys() : Status::success();
  }

 private:
  bool wants_query() const { return wanted_.query.data != nullptr; }
  bool wants_keys() const { return wanted_.key.data != nullptr || wanted_.value.data != nullptr; }
  /// A gradient that goes through the logits.
  bool wants_change() const { return wants_query() || wanted_.key.data != nullptr; }

  Status allocate() {
    stretch_ = pass_stretch(shape_.key_length);
    parts_ = std::max<int64_t>(1, divide_up(shape_.key_length, stretch_));
    CA_RETURN_IF_ERROR(scope_.allocate(&gradients_, checked_size(rows_, shape_.value_dim)));
    CA_RETURN_IF_ERROR(scope_.allocate(&maximum_, rows_));
    CA_RETURN_IF_ERROR(scope_.allocate(&offset_, rows_));
    if (wants_query()) {
      const int64_t size = checked_size(rows_, shape_.head_dim);
      CA_RETURN_IF_ERROR(scope_.allocate(&mean_gradient_, size));
      CA_RETURN_IF_ERROR(scope_.allocate(&partial_, checked_size(rows_, parts_, shape_.head_dim)));
    }
    return k_ > 0 ? allocate_top_keys() : Status::success();
  }

  Status allocate_top_keys() {
    const int64_t queries = checked_size(sequences_, shape_.query_length);
    const int64_t slots = checked_size(rows_, k_);
    CA_RETURN_IF_ERROR(scope_.allocate(&top_.maximum, queries));
    CA_RETURN_IF_ERROR(scope_.allocate(&top_.offset, queries));
    CA_RETURN_IF_ERROR(scope_.allocate(&lists_, slots));
    CA_RETURN_IF_ERROR(scope_.allocate(&list_counts_, rows_));
    CA_RETURN_IF_ERROR(scope_.allocate(&masses_, rows_));
    CA_RETURN_IF_ERROR(scope_.allocate(&shares_, slots));
    CA_RETURN_IF_ERROR(scope_.allocate(&changes_, slots));
    CA_RETURN_IF_ERROR(scope_.allocate(&correction_, checked_size(rows_, shape_.head_dim)));
    if (!wants_keys()) return Status::success();
    const int64_t most = std::max(kSlotsPerKey * shape_.key_length, kMinimumSlots);
    chunk_ = std::clamp<int64_t>(most / k_, 1, clusters_);
    CA_RETURN_IF_ERROR(
        scope_.allocate(&key_offsets_, checked_size(sequences_, shape_.key_length + 1)));
    CA_RETURN_IF_ERROR(scope_.allocate(&slots_, slots));
    const int64_t keys = checked_size(sequences_, shape_.key_length);
    const int64_t chunk_rows = checked_size(sequences_, chunk_, k_);
    CA_RETURN_IF_ERROR(
        allocate_sum(wanted_.key, shape_.head_dim, keys, chunk_rows, &key_sum_, &key_rows_));
    return allocate_sum(wanted_.value, shape_.value_dim, keys, chunk_rows, &value_sum_,
                        &value_rows_);
  }

  /// Where a gradient of keys is summed: in its place, or in float32 where that is bfloat16.
  Status allocate_sum(const OutputRows& wanted, int64_t dim, int64_t keys, int64_t chunk_rows,
                      StoredOutput* sum, float** rows) {
    if (wanted.data == nullptr) return Status::success();
    CA_RETURN_IF_ERROR(scope_.allocate(rows, checked_size(chunk_rows, dim)));
    *sum = stored_output(wanted, false);
    if (!is_bfloat16_) return Status::success();
    float* memory = nullptr;
    CA_RETURN_IF_ERROR(scope_.allocate(&memory, checked_size(keys, dim)));
    *sum = {memory, shape_.heads * shape_.key_length * dim, shape_.key_length * dim, dim, false};
    return Status::success();
  }

  /// Members, mean queries, and G.
  Status group() {
    ClusteredAttentionProblem given = forward_;
    given.grouping = Grouping::given;
    given.given_labels = forward_.labels;
    GroupExtras extras;
    extras.rows = problem_.output_gradient;
    extras.dim = shape_.value_dim;
    extras.sums = gradients_;
    return group_queries(session_, given, call_, scope_, groups_, extras);
  }

  OperandSource cluster_rows(const float* rows, int64_t dim) const {
    OperandSource source;
    source.rows = {rows, shape_.heads * clusters_ * dim, clusters_ * dim, dim, false};
    source.length = clusters_;
    source.dim = dim;
    return source;
  }

  Status make_all_operands() {
    OperandSource inputs[kGradientSources];
    gradient_sources(forward_.inputs, problem_.output_gradient, call_, inputs);
    inputs[0].labels = inputs[1].labels = forward_.labels;
    const OperandSource sources[kMostOperands] = {inputs[2],
                                                  inputs[3],
                                                  cluster_rows(groups_.means, shape_.head_dim),
                                                  cluster_rows(gradients_, shape_.value_dim),
                                                  inputs[0],
                                                  inputs[1]};
    Operand operands[kMostOperands];
    // Clustered attention meets the queries as means alone.
    CA_RETURN_IF_ERROR(make_operands(session_, scope_, sources, k_ > 0 ? 6 : 4, shape_.batch,
                                     shape_.heads, cut_in_two(call_), operands));
    keys_ = {operands[0], operands[1]};
    means_ = {operands[2], operands[3]};
    top_.query_operands = {operands[4], operands[5]};
    return Status::success();
  }

  Status cluster_terms() {
    // grid: (sequences * clusters)
    ClusterTermsParams params = {};
    params.means = means_;
    params.keys = keys_;
    params.offsets = groups_.offsets;
    params.indices = forward_.indices;
    params.values = forward_.cluster_values;
    params.logsumexp = forward_.cluster_logsumexp;
    params.key_lengths = forward_.inputs.key_lengths;
    params.heads = shape_.heads;
    params.key_length = shape_.key_length;
    params.clusters = clusters_;
    params.top_k = k_;
    params.head_dim = shape_.head_dim;
    params.value_dim = shape_.value_dim;
    params.scale = forward_.inputs.scale;
    params.maximum = maximum_;
    params.offset = offset_;
    params.masses = masses_;
    params.lists = lists_;
    params.list_counts = list_counts_;
    params.shares = shares_;
    params.products = changes_;
    params.flags = session_.flags();
    return launch(session_, rows_, kClusterThreads, kWarp * (sizeof(double) + sizeof(int32_t)),
                  cluster_terms_kernel<>, params);
  }

  /// The terms of the queries, delta with the mass's part, and the top keys sorted by key.
  Status prepare_top_keys() {
    // grid: (sequences * clusters), and those of the operations called
    top_.shape = shape_;
    top_.clusters = clusters_;
    top_.top_k = k_;
    top_.scale = forward_.inputs.scale;
    top_.split = cut_in_two(call_);
    top_.key_operands = keys_;
    top_.mean_operands = means_;
    top_.offsets = groups_.offsets;
    top_.order = groups_.order;
    top_.lists = lists_;
    top_.list_counts = list_counts_;
    top_.masses = masses_;
    if (wants_keys()) CA_RETURN_IF_ERROR(sort_top_keys());
    CA_RETURN_IF_ERROR(top_key_terms(session_, top_, wants_change()));
    if (!wants_change()) return Status::success();
    ClusterMassParams params = {};
    params.keys = keys_.first;
    params.offsets = groups_.offsets;
    params.order = groups_.order;
    params.lists = lists_;
    params.list_counts = list_counts_;
    params.masses = masses_;
    params.query_offsets = top_.offset;
    params.shares = shares_;
    params.changes = changes_;
    params.offset = offset_;
    params.correction = correction_;
    params.heads = shape_.heads;
    params.query_length = shape_.query_length;
    params.clusters = clusters_;
    params.top_k = k_;
    params.head_dim = shape_.head_dim;
    params.detach = problem_.detach_mass;
    return launch(session_, rows_, kClusterThreads, kWarp * sizeof(double), cluster_mass_kernel<>,
                  params);
  }

  Status sort_top_keys() {
    SortProblem sort;
    sort.sequences = sequences_;
    sort.heads = shape_.heads;
    sort.length = checked_size(clusters_, k_);
    if (sort.length < 0 || sort.length > std::numeric_limits<int32_t>::max()) {
      return {StatusCode::unsupported, "indices", -1};
    }
    sort.clusters = shape_.key_length;
    sort.labels = lists_;
    sort.argument = SortArgument::indices;
    // One block per sequence; their counts take as much as so many integers per key.
    constexpr int64_t kParts = 8;
    sort.part_rows = round_up(divide_up(sort.length, kParts), sort_part_rows(0));
    sort.offsets = key_offsets_;
    sort.order = slots_;
    return sort_by_label(session_, sort);
  }

  /// The attention of the mean queries over all keys.
  Status pass() {
    GradientPass pass;
    pass.batch = shape_.batch;
    pass.heads = shape_.heads;
    pass.rows = shape_.query_length > 0 ? clusters_ : 0;
    pass.keys = shape_.key_length;
    pass.head_dim = shape_.head_dim;
    pass.value_dim = shape_.value_dim;
    pass.row_operands = means_;
    pass.key_operands = keys_;
    pass.member_lengths = forward_.inputs.query_lengths;
    pass.key_lengths = forward_.inputs.key_lengths;
    pass.maximum = maximum_;
    pass.offset = offset_;
    pass.scale = forward_.inputs.scale;
    pass.split = cut_in_two(call_);
    pass.key = k_ > 0 ? key_sum_ : stored_output(wanted_.key, is_bfloat16_);
    pass.value = k_ > 0 ? value_sum_ : stored_output(wanted_.value, is_bfloat16_);
    pass.partial = partial_;
    pass.parts = wants_query() ? parts_ : 1;
    pass.stretch = stretch_;
    return gradient_pass(session_, pass);
  }

  /// dq̄_j / n_j, and with it the gradients of queries that have no other part.
  Status mean_gradients() {
    // grid: (elements of the means / 256 + chunks of queries / 256); (chunks of queries / 256)
    MeanGradientParams params = {};
    params.partial = partial_;
    params.correction = correction_;
    params.offsets = groups_.offsets;
    params.labels = groups_.labels;
    params.key_lengths = forward_.inputs.key_lengths;
    params.heads = shape_.heads;
    params.query_length = shape_.query_length;
    params.key_length = shape_.key_length;
    params.clusters = clusters_;
    params.sequences = sequences_;
    params.parts = parts_;
    params.stretch = stretch_;
    params.head_dim = shape_.head_dim;
    params.scale = forward_.inputs.scale;
    params.join_blocks = divide_up(rows_ * shape_.head_dim, kQueryThreads);
    params.mean_gradient = mean_gradient_;
    params.query = stored_output(wanted_.query, is_bfloat16_);
    params.vectors = params.query.aligned(16);
    params.flags = session_.flags();
    const int64_t items = sequences_ * shape_.query_length * divide_up(shape_.head_dim, 8);
    const int64_t blocks = divide_up(items, kQueryThreads);
    CA_RETURN_IF_ERROR(launch(session_, params.join_blocks + (k_ > 0 ? blocks : 0), kQueryThreads,
                              0, mean_gradient_kernel<>, params));
    if (k_ > 0) return Status::success();
    return launch(session_, blocks, kQueryThreads, 0, spread_gradient_kernel<>, params);
  }

  /// What the clusters add to dk and dv of their top keys, a chunk of clusters at a time.
  Status add_top_keys() {
    // grid: top_key_rows(), then a warp per key
    AddKeyRowsParams params = {};
    params.key_offsets = key_offsets_;
    params.slots = slots_;
    params.heads = shape_.heads;
    params.key_length = shape_.key_length;
    params.keys = sequences_ * shape_.key_length;
    params.slot_stride = clusters_ * k_;
    params.flags = session_.flags();
    for (int64_t first = 0; first < clusters_; first += chunk_) {
      TopKeyRows rows;
      rows.first = first;
      rows.count = std::min(chunk_, clusters_ - first);
      rows.shares = shares_;
      rows.changes = changes_;
      rows.key_rows = key_rows_;
      rows.value_rows = value_rows_;
      CA_RETURN_IF_ERROR(top_key_rows(session_, top_, rows));
      const bool last = first + chunk_ >= clusters_;
      params.first = first * k_;
      params.count = rows.count * k_;
      params.tensors[0] = add_to(key_sum_, key_rows_, shape_.head_dim, wanted_.key, last);
      params.tensors[1] = add_to(value_sum_, value_rows_, shape_.value_dim, wanted_.value, last);
      CA_RETURN_IF_ERROR(launch(session_, divide_up(params.keys, kQueryThreads / kWarp),
                                kQueryThreads, 0, add_key_rows_kernel<>, params));
    }
    return Status::success();
  }

  AddKeyRowsParams::Tensor add_to(const StoredOutput& sum, const float* rows, int64_t dim,
                                  const OutputRows& wanted, bool last) const {
    AddKeyRowsParams::Tensor tensor = {};
    tensor.rows = rows;
    tensor.source = {sum.data, sum.batch_stride, sum.head_stride, sum.row_stride, false};
    tensor.target = last ? stored_output(wanted, is_bfloat16_) : sum;
    tensor.dim = dim;
    return tensor;
  }

  Session& session_;
  DeviceWorkspace::Scope& scope_;
  const ClusteredAttentionGradientProblem& problem_;
  const ClusteredAttentionProblem& forward_;
  const AttentionGradients& wanted_;
  const AttentionShape& shape_;
  const Call& call_;
  const int64_t sequences_;
  const int64_t clusters_;
  const int64_t k_;
  const int64_t rows_;  // clusters of all sequences
  const bool is_bfloat16_;
  int64_t stretch_ = 0;  // keys of a part of the pass
  int64_t parts_ = 1;
  int64_t chunk_ = 0;  // clusters whose rows per top key are kept at a time
  QueryGroups groups_;
  OperandPair keys_;
  OperandPair means_;
  TopKeyGradient top_;
  float* gradients_ = nullptr;      // (B,H,C,E): G
  float* maximum_ = nullptr;        // (B,H,C)
  float* offset_ = nullptr;         // (B,H,C): delta
  float* partial_ = nullptr;        // (B,H,parts,C,D)
  float* mean_gradient_ = nullptr;  // (B,H,C,D)
  float* correction_ = nullptr;     // (B,H,C,D)
  int32_t* lists_ = nullptr;        // (B,H,C,k)
  int32_t* list_counts_ = nullptr;  // (B,H,C)
  float* masses_ = nullptr;         // (B,H,C)
  float* shares_ = nullptr;         // (B,H,C,k)
  float* changes_ = nullptr;        // (B,H,C,k)
  int32_t* key_offsets_ = nullptr;  // (B,H,S+1)
  int32_t* slots_ = nullptr;        // (B,H,C*k)
  StoredOutput key_sum_;            // (B,H,S,D)
  StoredOutput value_sum_;          // (B,H,S,E)
  float* key_rows_ = nullptr;       // (B,H,chunk,k,D)
  float* value_rows_ = nullptr;     // (B,H,chunk,k,E)
};

}  // namespace

Status clustered_attention_gradient(Session& session,
                                    const ClusteredAttentionGradientProblem& problem,
                                    const Call& call) {
  const AttentionShape& shape = problem.forward.inputs.shape;
  const AttentionGradients& wanted = problem.gradients;
  if (shape.head_dim > kMaximumWidth) return {StatusCode::unsupported, "headDim", -1};
  if (shape.value_dim > kMaximumWidth) return {StatusCode::unsupported, "valueDim", -1};
  if (shape.batch * shape.heads == 0) return Status::success();
  if (wanted.query.data == nullptr && wanted.key.data == nullptr && wanted.value.data == nullptr) {
    return Status::success();
  }
  DeviceWorkspace::Scope scope(session.workspace());
  return ClusteredGradient(session, scope, problem, call).run();
}

}  // namespace cluster_attention::cuda
