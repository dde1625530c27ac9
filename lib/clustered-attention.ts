import {
  allocateOutput,
  ATTENTION_OPTIONS,
  ATTENTION_SHAPE,
  type AttentionInputs,
  readAttentionInputs,
  refuseCausal,
} from './attention-inputs';
import { Grouping, Threshold } from './binding';
import type { Call } from './call';
import { drawPlanes } from './hash';
import { asynchronous, synchronous } from './operation';
import { MAXIMUM_DIMENSION } from './options';
import type {
  AttentionGradients,
  AttentionOptions,
  DetailedOperation,
  DetailedOperationSync,
  VjpOperation,
  VjpOperationSync,
} from './types';
import {
  asynchronousVjp,
  synchronousVjp,
  type DifferentiableOperation,
  type PreparedGradient,
} from './vjp';

/** Options of {@link clusteredAttention}. */
export interface ClusteredAttentionOptions extends AttentionOptions {
  /** These attentions are not causal. */
  causal?: false | undefined;
  /** C ≥ 1; more clusters than a sequence has real queries stay empty. */
  clusters: number;
  /**
   * How the queries are grouped: K-means of their LSH codes ('hamming', the paper's and the
   * default) or of the queries themselves ('euclidean', better on data far from the origin).
   */
  grouping?: 'hamming' | 'euclidean' | undefined;
  /** Bits of an LSH code, 1 to 64. Default those of `planes`, else 63. 'hamming' only. */
  bits?: number | undefined;
  /** K-means iterations. Default 10, for 'euclidean' 4. */
  iterations?: number | undefined;
  /** Whether drawn planes have a random threshold. Default true. 'hamming' only. */
  hashBias?: boolean | undefined;
  /**
   * Thresholds from N(0,1) ('normal', the paper's and the default) or random quantiles of the
   * projected queries of each sequence ('data'), which keeps the codes apart when the queries are
   * far from the origin. 'hamming' only.
   */
  threshold?: 'normal' | 'data' | undefined;
  /** Of the planes, the thresholds and the first centroids; a safe integer ≥ 0. Default 0. */
  seed?: number | undefined;
  /** (bits, D+1): planes to hash with, the threshold last. Default drawn from N(0,1) by `seed`. */
  planes?: Float32Array | undefined;
  /**
   * (B,H,L): ready groups in 0…C−1, −1 for none. They take the place of the grouping: `grouping`,
   * `bits`, `iterations`, `hashBias`, `threshold`, `seed` and `planes` then say nothing.
   */
  labels?: Int32Array | undefined;
}

/** Options of {@link improvedClusteredAttention}. */
export interface ImprovedClusteredAttentionOptions extends ClusteredAttentionOptions {
  /** k ≥ 1: keys per cluster that are attended to exactly; clamped to S. Default 32. */
  topK?: number | undefined;
  /**
   * Says how a gradient treats the share m̂ of the attention that a cluster gives to its top keys:
   * as a constant (true, as the authors' code does) or exactly (false, the default). The forward
   * result does not depend on it.
   */
  detachMass?: boolean | undefined;
}

/** What {@link clusteredAttention} returns with `details: true`. */
export interface ClusteredAttentionDetails {
  /** (B,H,L,E) in `layout` */
  output: Float32Array;
  /** (B,H,L): cluster of each query, −1 for padding */
  labels: Int32Array;
  /** (B,H,C): queries of each cluster */
  counts: Int32Array;
}

/** What {@link improvedClusteredAttention} returns with `details: true`. */
export interface ImprovedClusteredAttentionDetails extends ClusteredAttentionDetails {
  /** (B,H,C,k): the keys of each cluster, best first; −1 where there are fewer */
  indices: Int32Array;
}

const CLUSTERED_OPTIONS = [
  ...ATTENTION_OPTIONS,
  'clusters',
  'grouping',
  'bits',
  'iterations',
  'hashBias',
  'threshold',
  'seed',
  'planes',
  'labels',
] as const;

/** Bits when they are not given: as many as the planes given have, else 63. */
function bitsOf(elements: number, headDim: number): number {
  const bits = elements / (headDim + 1);
  return Number.isInteger(bits) && bits >= 1 && bits <= 64 ? bits : 63;
}

/** The fields of a request that say how queries are grouped. */
function readGrouping(call: Call, { batch, heads, queryLength, headDim }: AttentionInputs): object {
  const seed = call.seed();
  const ready = {
    bits: 1,
    iterations: 0,
    threshold: Threshold.normal,
    seed,
    hashBias: true,
    planes: undefined,
  };
  if (call.has('labels')) {
    const labels = call.integers('labels', { batch, heads, queryLength });
    return { ...ready, grouping: Grouping.given, labels };
  }
  const { hamming, euclidean } = Grouping;
  const grouping = call.choice('grouping', { hamming, euclidean }, hamming);
  const iterations = call.iterations('iterations', grouping === euclidean ? 4 : 10);
  const bits = call.integer('bits', 1, 64, bitsOf(call.lengthOf('planes'), headDim));
  const hashBias = call.flag('hashBias', true);
  const threshold = call.choice('threshold', Threshold, Threshold.normal);
  const given = call.optionalFloats('planes', { bits, 'headDim + 1': headDim + 1 });
  // Without queries there is nothing to hash, and no array bounds the size of the planes.
  const empty = batch * queryLength === 0;
  if (grouping === euclidean || empty) return { ...ready, grouping: euclidean, iterations };
  const planes = given ?? drawPlanes(bits, headDim, seed, hashBias);
  return { grouping, bits, iterations, threshold, seed, hashBias, planes };
}

/** `improved` adds the exact attention to the top keys of each cluster. */
function prepare(call: Call, improved: boolean): PreparedGradient {
  refuseCausal(call, 'the mean query of a cluster stands for queries at many positions');
  const detachMass = call.flag('detachMass', false); // used by the gradient alone
  const inputs = readAttentionInputs(call);
  const { batch, heads, queryLength, keyLength, valueDim } = inputs;
  const { details, differentiable } = call;
  const asked = call.count('clusters');
  // Surplus clusters stay empty: they are kept where their labels or counts can be seen.
  const seen = details || call.has('labels');
  const clusters = seen ? asked : Math.min(asked, Math.max(queryLength, 1));
  const topK = improved ? Math.min(call.integer('topK', 1, MAXIMUM_DIMENSION, 32), keyLength) : 0;
  const grouping = readGrouping(call, inputs);
  const output = allocateOutput(call, inputs);
  const perCluster = { batch, heads, clusters };
  const results = {
    ...((details || differentiable) && {
      resultLabels: call.result('Int32Array', 'labels', { batch, heads, queryLength }),
      resultIndices: improved
        ? call.result('Int32Array', 'indices', { ...perCluster, topK })
        : undefined,
    }),
    ...(details && { counts: call.result('Int32Array', 'counts', perCluster) }),
    ...(differentiable && {
      clusterValues: call.result('Float32Array', 'cluster values', { ...perCluster, valueDim }),
      clusterLogsumexp: call.result('Float32Array', 'cluster log-sum-exps', perCluster),
    }),
  };
  const { resultLabels: labels, resultIndices: indices, counts } = results;
  return {
    request: [inputs, grouping, { clusters, topK, output }, results],
    result: () =>
      details
        ? { output: call.deliver(), labels, counts, ...(improved && { indices }) }
        : call.deliver(),
    saved: () => ({ ...inputs, clusters, topK, detachMass, ...results, counts: undefined }),
  };
}

const GRADIENT = { native: 'clusteredGradient', options: ['query', 'key', 'value'] } as const;

const clustered: DifferentiableOperation = {
  name: 'clusteredAttention',
  native: 'clustered',
  gradient: GRADIENT,
  options: CLUSTERED_OPTIONS,
  shape: ATTENTION_SHAPE,
  prepare: (call) => prepare(call, false),
};

const improvedClustered: DifferentiableOperation = {
  name: 'improvedClusteredAttention',
  native: 'clustered',
  gradient: GRADIENT,
  options: [...CLUSTERED_OPTIONS, 'topK', 'detachMass'],
  shape: ATTENTION_SHAPE,
  prepare: (call) => prepare(call, true),
};

/**
 * Clustered attention (Vyas, Katharopoulos, Fleuret, "Fast Transformers with Clustered Attention",
 * NeurIPS 2020, section 3.2): queries are grouped, and each gets the attention of its cluster's
 * mean, V^c = softmax(τ q̄ Kᵀ) V. Costs O(S·C·(D+E)) instead of O(L·S·(D+E)).
 *
 * @returns (B,H,L,E) in `layout`; with `details: true` also `labels` and `counts`.
 * @throws ERR_INVALID_ARG_TYPE, ERR_OUT_OF_RANGE, ERR_SHAPE_MISMATCH for wrong options,
 * ERR_NON_FINITE for a NaN or an infinity in a row that is read, ERR_OUT_OF_MEMORY,
 * ERR_CUDA_UNAVAILABLE.
 */
export const clusteredAttention =
  asynchronous<DetailedOperation<ClusteredAttentionOptions, ClusteredAttentionDetails>>(clustered);

/** {@link clusteredAttention} on the calling thread, which it blocks; borrows the inputs. */
export const clusteredAttentionSync =
  synchronous<DetailedOperationSync<ClusteredAttentionOptions, ClusteredAttentionDetails>>(
    clustered,
  );

/**
 * Improved clustered attention (the same paper, section 3.3): clustered attention, but the top k
 * keys of each cluster are attended to exactly by each of its queries, with the share of the
 * attention that the cluster gives to them. Row by row never farther from exact attention than
 * {@link clusteredAttention} (proposition 2); k ≥ S is exact attention.
 *
 * @returns (B,H,L,E) in `layout`; with `details: true` also `labels`, `counts` and `indices`.
 * @throws as {@link clusteredAttention}
 */
export const improvedClusteredAttention =
  asynchronous<
    DetailedOperation<ImprovedClusteredAttentionOptions, ImprovedClusteredAttentionDetails>
  >(improvedClustered);

/** {@link improvedClusteredAttention} on the calling thread, which it blocks; borrows the inputs. */
export const improvedClusteredAttentionSync =
  synchronous<
    DetailedOperationSync<ImprovedClusteredAttentionOptions, ImprovedClusteredAttentionDetails>
  >(improvedClustered);

/**
 * {@link clusteredAttention} with its gradients: the groups are constants, all else is
 * differentiated exactly.
 */
export const clusteredAttentionVjp =
  asynchronousVjp<
    VjpOperation<ClusteredAttentionOptions, ClusteredAttentionDetails, AttentionGradients>
  >(clustered);

/** {@link clusteredAttentionVjp} on the calling thread; borrows the inputs until `dispose()`. */
export const clusteredAttentionVjpSync =
  synchronousVjp<
    VjpOperationSync<ClusteredAttentionOptions, ClusteredAttentionDetails, AttentionGradients>
  >(clustered);

/**
 * {@link improvedClusteredAttention} with its gradients: the groups and their top keys are
 * constants, all else is differentiated exactly, unless `detachMass` says otherwise.
 */
export const improvedClusteredAttentionVjp =
  asynchronousVjp<
    VjpOperation<
      ImprovedClusteredAttentionOptions,
      ImprovedClusteredAttentionDetails,
      AttentionGradients
    >
  >(improvedClustered);

/** {@link improvedClusteredAttentionVjp} on the calling thread; borrows the inputs until `dispose()`. */
export const improvedClusteredAttentionVjpSync =
  synchronousVjp<
    VjpOperationSync<
      ImprovedClusteredAttentionOptions,
      ImprovedClusteredAttentionDetails,
      AttentionGradients
    >
  >(improvedClustered);
