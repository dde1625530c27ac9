import {
  allocateOutput,
  ATTENTION_OPTIONS,
  ATTENTION_SHAPE,
  readAttentionInputs,
} from './attention-inputs';
import type { Call } from './call';
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

/** Options of {@link attention}. */
export interface ExactAttentionOptions extends AttentionOptions {
  /**
   * Query l sees the keys s ≤ l + S − L; with lengths, of the real rows of the sequence. Default
   * false.
   */
  causal?: boolean | undefined;
}

/** What {@link attention} returns with `details: true`. */
export interface AttentionDetails {
  /** (B,H,L,E) in `layout` */
  output: Float32Array;
  /** (B,H,L): natural logarithm of the sum of the exponentials; −Infinity without a key */
  logsumexp: Float32Array;
}

const operation: DifferentiableOperation = {
  name: 'attention',
  native: 'attention',
  gradient: { native: 'attentionGradient', options: ['query', 'key', 'value'] },
  options: ATTENTION_OPTIONS,
  shape: ATTENTION_SHAPE,
  prepare(call: Call): PreparedGradient {
    const inputs = readAttentionInputs(call);
    const { batch, heads, queryLength } = inputs;
    const causal = call.flag('causal', false);
    const { details } = call;
    const output = allocateOutput(call, inputs);
    const logsumexp =
      details || call.differentiable
        ? call.result('Float32Array', 'logsumexp', { batch, heads, queryLength })
        : undefined;
    return {
      request: [inputs, { causal, output, logsumexp }],
      result: () => (details ? { output: call.deliver(), logsumexp } : call.deliver()),
      saved: () => ({ ...inputs, causal, output, logsumexp }),
    };
  },
};

/**
 * Exact attention, softmax(τ Q Kᵀ + mask) V, without ever holding the L×S matrix: the baseline of
 * the approximations.
 *
 * @returns (B,H,L,E) in `layout`; with `details: true` also the log-sum-exp of every row. A query
 * without a real key gets 0.
 * @throws ERR_INVALID_ARG_TYPE, ERR_OUT_OF_RANGE, ERR_SHAPE_MISMATCH for wrong options,
 * ERR_NON_FINITE for a NaN or an infinity in a row that is read, ERR_OUT_OF_MEMORY,
 * ERR_CUDA_UNAVAILABLE.
 */
export const attention =
  asynchronous<DetailedOperation<ExactAttentionOptions, AttentionDetails>>(operation);

/** {@link attention} on the calling thread, which it blocks; borrows the inputs. */
export const attentionSync =
  synchronous<DetailedOperationSync<ExactAttentionOptions, AttentionDetails>>(operation);

/** {@link attention} with its gradients. Memory O(N): the L×S matrix is computed again. */
export const attentionVjp =
  asynchronousVjp<VjpOperation<ExactAttentionOptions, AttentionDetails, AttentionGradients>>(
    operation,
  );

/** {@link attentionVjp} on the calling thread; borrows the inputs until `dispose()`. */
export const attentionVjpSync =
  synchronousVjp<VjpOperationSync<ExactAttentionOptions, AttentionDetails, AttentionGradients>>(
    operation,
  );
