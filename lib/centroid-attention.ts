import {
  allocateOutput,
  ATTENTION_OPTIONS,
  ATTENTION_SHAPE,
  readAttentionInputs,
  refuseCausal,
} from './attention-inputs';
import { Collect, Normalize } from './binding';
import type { Call } from './call';
import { readCentroidWeighting, type CentroidWeighting } from './centroid-weighting';
import { asynchronous, synchronous } from './operation';
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

/** Options of {@link centroidAttention}: queryLength is M centroids, keyLength N inputs. */
export interface CentroidAttentionOptions extends AttentionOptions, CentroidWeighting {
  /** Centroids have no position. */
  causal?: false | undefined;
}

/** What {@link centroidAttention} returns with `details: true`. */
export interface CentroidAttentionDetails {
  /** (B,H,M,E) in `layout` */
  output: Float32Array;
  /** (B,H,N): the centroid with the largest share of each input (tie: lowest), −1 for none */
  labels: Int32Array;
  /** (B,H,M): Σ_i a_ji */
  masses: Float32Array;
  /** (B): sum of the log-sum-exps, weighted with `weights` */
  objective: Float64Array;
}

/** Gradients of {@link centroidAttention}, in the layout of the call. */
export interface CentroidAttentionGradients extends AttentionGradients {
  /** (B,N), when `weights` were given; 0 for an input of weight 0, which is removed */
  weights?: Float32Array;
}

const operation: DifferentiableOperation = {
  name: 'centroidAttention',
  native: 'centroidAttention',
  gradient: {
    native: 'centroidAttentionGradient',
    options: ['query', 'key', 'value', 'weights'],
  },
  options: [
    ...ATTENTION_OPTIONS,
    'normalize',
    'aggregate',
    'weights',
    'neighbors',
    'neighborCount',
  ],
  shape: ATTENTION_SHAPE,
  prepare(call: Call): PreparedGradient {
    refuseCausal(call, 'centroids have no position in the sequence');
    const inputs = readAttentionInputs(call);
    const { batch, heads, queryLength, keyLength, keyLengths } = inputs;
    const weighting = readCentroidWeighting(call, batch, queryLength, keyLength, keyLengths);
    const { details, differentiable } = call;
    const output = allocateOutput(call, inputs);
    const perCentroid = { batch, heads, queryLength };
    const masses =
      details || (differentiable && weighting.aggregate === Collect.mean)
        ? call.result('Float32Array', 'masses', perCentroid)
        : undefined;
    const logsumexp =
      differentiable && weighting.normalize === Normalize.inputs
        ? call.result('Float32Array', 'log-sum-exps', perCentroid)
        : undefined;
    const known = details && {
      labels: call.result('Int32Array', 'labels', { batch, heads, keyLength }),
      objective: call.result('Float64Array', 'objective', { batch }),
    };
    return {
      request: [inputs, weighting, { output, masses, logsumexp }, { ...known }],
      result: () => (known ? { output: call.deliver(), masses, ...known } : call.deliver()),
      saved: () => ({ ...inputs, ...weighting, output, masses, logsumexp }),
    };
  },
};

/**
 * Centroid attention (Wu, Liu, Liu, "Centroid Transformers", 2021, section 3): summarises N inputs
 * by M centroids. Σ_i a_ji v_i with a_ji = exp(τ q_j·k_i) / Σ_j' exp(τ q_j'·k_i): the softmax runs
 * over the centroids, for each input (the derivation in the paper), or over the inputs
 * (`normalize: 'inputs'`). The queries come from the centroids, keys and values from the inputs.
 *
 * @returns (B,H,M,E) in `layout`; with `details: true` also `labels`, `masses` and `objective`.
 * @throws ERR_INVALID_ARG_TYPE, ERR_OUT_OF_RANGE, ERR_SHAPE_MISMATCH for wrong options,
 * ERR_NON_FINITE for a NaN or an infinity in a row that is read, ERR_OUT_OF_MEMORY,
 * ERR_CUDA_UNAVAILABLE.
 */
export const centroidAttention =
  asynchronous<DetailedOperation<CentroidAttentionOptions, CentroidAttentionDetails>>(operation);

/** {@link centroidAttention} on the calling thread, which it blocks; borrows the inputs. */
export const centroidAttentionSync =
  synchronous<DetailedOperationSync<CentroidAttentionOptions, CentroidAttentionDetails>>(operation);

/** {@link centroidAttention} with its gradients. */
export const centroidAttentionVjp =
  asynchronousVjp<
    VjpOperation<CentroidAttentionOptions, CentroidAttentionDetails, CentroidAttentionGradients>
  >(operation);

/** {@link centroidAttentionVjp} on the calling thread; borrows the inputs until `dispose()`. */
export const centroidAttentionVjpSync =
  synchronousVjp<
    VjpOperationSync<CentroidAttentionOptions, CentroidAttentionDetails, CentroidAttentionGradients>
  >(operation);
