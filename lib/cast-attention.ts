import {
  allocateOutput,
  ATTENTION_OPTIONS,
  ATTENTION_SHAPE,
  type AttentionInputs,
  readAttentionInputs,
  refuseCausal,
} from './attention-inputs';
import { Activation, Selection } from './binding';
import type { Call } from './call';
import { outOfRange, shapeMismatch, unsupported } from './errors';
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

/** Options of {@link castAttention}: self-attention, so queryLength = keyLength = N. */
export interface CastAttentionOptions extends AttentionOptions {
  /** CAST is not causal. */
  causal?: false | undefined;
  /** C ≥ 1 */
  clusters: number;
  /** κ ≥ 1: tokens per cluster; clamped to N. */
  clusterSize: number;
  /** (H,C,D): surrogate tokens, the learned directions of the clusters */
  surrogates: Float32Array;
  /** (B,N): gate logits φ, one linear projection of the tokens */
  gate: Float32Array;
  /**
   * 'topK' (default): each cluster takes its κ best tokens; a token may be in several clusters or
   * in none. 'singleAssignment': every token goes to exactly one cluster; needs κ·C ≥ N.
   */
  selection?: 'topK' | 'singleAssignment' | undefined;
  /**
   * 'softmax' (default) or 'laplace', 0.5(1+erf((x−μ)/(σ√2))) with μ=0.707107, σ=0.282095; without
   * a `scale`, 'laplace' divides each product by the number of its keys.
   */
  activation?: 'softmax' | 'laplace' | undefined;
  /** (B,C,κ): ready tokens of each cluster, −1 for an empty slot; `selection` then says nothing. */
  indices?: Int32Array | undefined;
}

/** What {@link castAttention} returns with `details: true`. */
export interface CastAttentionDetails {
  /** (B,H,N,E) in `layout` */
  output: Float32Array;
  /** (B,C,κ): tokens of each cluster, −1 for an empty slot */
  indices: Int32Array;
  /** (B): share of the real tokens that are in at least one cluster */
  coverage: Float64Array;
}

/** Gradients of {@link castAttention}, in the layout of the call. */
export interface CastAttentionGradients extends AttentionGradients {
  /** (H,C,D) */
  surrogates: Float32Array;
  /** (B,N) */
  gate: Float32Array;
}

function readSelection(call: Call, batch: number, clusters: number, clusterSize: number) {
  const { topK, singleAssignment, given } = Selection;
  if (!call.has('indices')) {
    return { selection: call.choice('selection', { topK, singleAssignment }, topK) };
  }
  return { selection: given, indices: call.integers('indices', { batch, clusters, clusterSize }) };
}

function longestSequence(lengths: Int32Array | undefined, batch: number, full: number): number {
  if (lengths === undefined) return full;
  let longest = 0;
  for (let b = 0; b < batch; ++b) longest = Math.max(longest, lengths[b]!);
  return longest;
}

/** In self-attention queries and keys are the same rows: their lengths may not differ. */
function checkLengths({ batch, keyLength, queryLengths, keyLengths }: AttentionInputs): void {
  if (queryLengths === undefined) return;
  for (let b = 0; b < batch; ++b) {
    const expected = keyLengths?.[b] ?? keyLength;
    if (queryLengths[b] === expected) continue;
    throw unsupported(
      'queryLengths',
      `queryLengths must equal keyLengths (self-attention), received ${queryLengths[b]} ` +
        `instead of ${expected} at index ${b}`,
    );
  }
}

/** Every real token must find a slot. */
function checkRoom(
  clusters: number,
  clusterSize: number,
  longest: number,
  received: unknown,
): void {
  if (clusters * clusterSize >= longest) return;
  const minimum = Math.ceil(longest / clusters);
  throw outOfRange(
    'clusterSize',
    `at least ${minimum} (clusters × clusterSize ≥ ${longest} tokens) for single assignment`,
    received,
  );
}

const operation: DifferentiableOperation = {
  name: 'castAttention',
  native: 'castAttention',
  gradient: {
    native: 'castAttentionGradient',
    options: ['query', 'key', 'value', 'surrogates', 'gate'],
  },
  options: [
    ...ATTENTION_OPTIONS,
    'clusters',
    'clusterSize',
    'surrogates',
    'gate',
    'selection',
    'activation',
    'indices',
  ],
  shape: ATTENTION_SHAPE,
  prepare(call: Call): PreparedGradient {
    refuseCausal(call, 'the cluster selection and the summaries of CAST read the future');
    const inputs = readAttentionInputs(call);
    const { batch, heads, queryLength, keyLength, headDim, keyLengths } = inputs;
    if (keyLength !== queryLength) {
      throw shapeMismatch('shape.keyLength', `queryLength (${queryLength})`, String(keyLength));
    }
    checkLengths(inputs);
    const hasScale = call.has('scale');
    const clusters = call.count('clusters');
    const asked = call.integer('clusterSize', 1, MAXIMUM_DIMENSION);
    // Given lists are as wide as they are, a selection finds no more than N tokens.
    const clusterSize = call.has('indices') ? asked : Math.min(asked, keyLength);
    const surrogates = call.floats('surrogates', { heads, clusters, headDim });
    const gate = call.floats('gate', { batch, keyLength });
    const activation = call.choice('activation', Activation, Activation.softmax);
    const selection = readSelection(call, batch, clusters, clusterSize);
    if (selection.selection === Selection.singleAssignment) {
      const longest = longestSequence(keyLengths, batch, keyLength);
      checkRoom(clusters, clusterSize, longest, call.value('clusterSize'));
    }
    const { details, differentiable } = call;
    const output = allocateOutput(call, inputs);
    const learned = { hasScale, clusters, clusterSize, activation, surrogates, gate };
    const indices =
      details || differentiable
        ? call.result('Int32Array', 'indices', { batch, clusters, clusterSize })
        : undefined;
    const coverage = details ? call.result('Float64Array', 'coverage', { batch }) : undefined;
    return {
      request: [inputs, learned, selection, { output, resultIndices: indices, coverage }],
      result: () => (details ? { output: call.deliver(), indices, coverage } : call.deliver()),
      saved: () => ({ ...inputs, ...learned, resultIndices: indices }),
    };
  },
};

/**
 * CAST, clustering self-attention with surrogate tokens (van Engelenhoven, Strisciuglio, Talavera,
 * "CAST: Clustering Self-Attention using Surrogate Tokens", 2024): each cluster takes the tokens
 * nearest to its surrogate, tokens attend inside their clusters, and one summary per cluster
 * carries information between clusters. The factors of the summaries (softplus₁ of ±φ) follow from
 * φ having to receive a gradient; the full text of the paper could not be checked for them.
 *
 * Not causal. Padded tokens (`keyLengths`) enter no cluster.
 *
 * @returns (B,H,N,E) in `layout`; with `details: true` also `indices` and `coverage`.
 * @throws ERR_INVALID_ARG_TYPE, ERR_OUT_OF_RANGE, ERR_SHAPE_MISMATCH for wrong options,
 * ERR_UNSUPPORTED for `causal: true` or for `queryLengths` other than `keyLengths`, ERR_NON_FINITE
 * for a NaN or an infinity in a row that is read, ERR_OUT_OF_MEMORY, ERR_CUDA_UNAVAILABLE.
 */
export const castAttention =
  asynchronous<DetailedOperation<CastAttentionOptions, CastAttentionDetails>>(operation);

/** {@link castAttention} on the calling thread, which it blocks; borrows the inputs. */
export const castAttentionSync =
  synchronous<DetailedOperationSync<CastAttentionOptions, CastAttentionDetails>>(operation);

/**
 * {@link castAttention} with its gradients: the selection of the tokens is a constant, all else is
 * differentiated exactly.
 */
export const castAttentionVjp =
  asynchronousVjp<VjpOperation<CastAttentionOptions, CastAttentionDetails, CastAttentionGradients>>(
    operation,
  );

/** {@link castAttentionVjp} on the calling thread; borrows the inputs until `dispose()`. */
export const castAttentionVjpSync =
  synchronousVjp<
    VjpOperationSync<CastAttentionOptions, CastAttentionDetails, CastAttentionGradients>
  >(operation);
