/**
 * The layers around the attention, each as a function that computes its output and can carry a
 * gradient back. Arrays are flat rows; gradients of parameters are added to `gradient`.
 */
import { matmulSync } from 'cluster-attention';
import type { Parameter } from './parameters';

export interface Layer<Inputs = Float32Array> {
  readonly output: Float32Array;
  /** The gradients by the inputs, given those by the output. */
  backward(gradient: Float32Array): Inputs;
}

/** y = x Wᵀ + b for x (rows,inputs) and W (outputs,inputs). */
export function linear(x: Float32Array, weight: Parameter, bias: Parameter): Layer {
  const [outputs, inputs] = weight.shape as [number, number];
  const rows = x.length / inputs;
  const out = new Float32Array(rows * outputs);
  for (let r = 0; r < rows; ++r) out.set(bias.value, r * outputs);
  const output = matmulSync({
    a: x,
    b: weight.value,
    shape: { rows, columns: outputs, depth: inputs },
    transposeB: true,
    accumulate: true,
    out,
  });
  const backward = (gradient: Float32Array): Float32Array => {
    matmulSync({
      a: gradient,
      b: x,
      shape: { rows: outputs, columns: inputs, depth: rows },
      transposeA: true,
      accumulate: true,
      out: weight.gradient,
    });
    const byBias = bias.gradient;
    for (let r = 0, i = 0; r < rows; ++r) {
      for (let o = 0; o < outputs; ++o, ++i) byBias[o]! += gradient[i]!;
    }
    const shape = { rows, columns: inputs, depth: outputs };
    return matmulSync({ a: gradient, b: weight.value, shape });
  };
  return { output, backward };
}

export function relu(x: Float32Array): Layer {
  const output = new Float32Array(x.length);
  for (let i = 0; i < x.length; ++i) output[i] = x[i]! > 0 ? x[i]! : 0;
  const backward = (gradient: Float32Array): Float32Array => {
    const result = new Float32Array(x.length);
    for (let i = 0; i < x.length; ++i) result[i] = output[i]! > 0 ? gradient[i]! : 0;
    return result;
  };
  return { output, backward };
}

const VARIANCE_FLOOR = 1e-5;

/** Each row brought to mean 0 and variance 1, then scaled and shifted. */
export function layerNorm(x: Float32Array, scale: Parameter, shift: Parameter): Layer {
  const dim = scale.value.length;
  const [scales, shifts] = [scale.value, shift.value];
  const rows = x.length / dim;
  const normal = new Float32Array(x.length);
  const inverse = new Float32Array(rows);
  const output = new Float32Array(x.length);
  for (let r = 0; r < rows; ++r) {
    let mean = 0;
    for (let d = 0; d < dim; ++d) mean += x[r * dim + d]!;
    mean /= dim;
    let squares = 0;
    for (let d = 0; d < dim; ++d) squares += (x[r * dim + d]! - mean) * (x[r * dim + d]! - mean);
    const factor = 1 / Math.sqrt(squares / dim + VARIANCE_FLOOR);
    inverse[r] = factor;
    for (let d = 0; d < dim; ++d) {
      const i = r * dim + d;
      normal[i] = (x[i]! - mean) * factor;
      output[i] = normal[i]! * scales[d]! + shifts[d]!;
    }
  }
  const backward = (gradient: Float32Array): Float32Array => {
    const result = new Float32Array(x.length);
    const [byScale, byShift] = [scale.gradient, shift.gradient];
    for (let r = 0; r < rows; ++r) {
      let sum = 0;
      let product = 0;
      for (let d = 0; d < dim; ++d) {
        const i = r * dim + d;
        const g = gradient[i]! * scales[d]!;
        sum += g;
        product += g * normal[i]!;
        byScale[d]! += gradient[i]! * normal[i]!;
        byShift[d]! += gradient[i]!;
      }
      sum /= dim;
      product /= dim;
      const factor = inverse[r]!;
      for (let d = 0; d < dim; ++d) {
        const i = r * dim + d;
        const g = gradient[i]! * scales[d]!;
        result[i] = factor * (g - sum - normal[i]! * product);
      }
    }
    return result;
  };
  return { output, backward };
}

/** Rows of a table of tokens plus those of a table of positions: (batch,length,dim). */
export function embed(
  tokens: Int32Array,
  length: number,
  tokenTable: Parameter,
  positionTable: Parameter,
): { output: Float32Array; backward(gradient: Float32Array): void } {
  const dim = tokenTable.shape[1]!;
  const output = new Float32Array(tokens.length * dim);
  for (let r = 0; r < tokens.length; ++r) {
    for (let d = 0; d < dim; ++d) {
      output[r * dim + d] =
        tokenTable.value[tokens[r]! * dim + d]! + positionTable.value[(r % length) * dim + d]!;
    }
  }
  const backward = (gradient: Float32Array): void => {
    for (let r = 0; r < tokens.length; ++r) {
      for (let d = 0; d < dim; ++d) {
        const g = gradient[r * dim + d]!;
        tokenTable.gradient[tokens[r]! * dim + d]! += g;
        positionTable.gradient[(r % length) * dim + d]! += g;
      }
    }
  };
  return { output, backward };
}

/** Mean of the real rows of each sequence: (batch,length,dim) to (batch,dim). */
export function meanOfRows(x: Float32Array, lengths: Int32Array, dim: number): Layer {
  const length = x.length / lengths.length / dim;
  const output = new Float32Array(lengths.length * dim);
  lengths.forEach((real, b) => {
    for (let l = 0; l < real; ++l) {
      for (let d = 0; d < dim; ++d) output[b * dim + d]! += x[(b * length + l) * dim + d]! / real;
    }
  });
  const backward = (gradient: Float32Array): Float32Array => {
    const result = new Float32Array(x.length);
    lengths.forEach((real, b) => {
      for (let l = 0; l < real; ++l) {
        for (let d = 0; d < dim; ++d) {
          result[(b * length + l) * dim + d] = gradient[b * dim + d]! / real;
        }
      }
    });
    return result;
  };
  return { output, backward };
}

export interface Verdict {
  /** Mean of −log p(target) over the rows that were asked. */
  loss: number;
  asked: number;
  correct: number;
  /** Of the loss by the logits. */
  gradient: Float32Array;
}

/** Softmax cross-entropy of logits (rows,classes); rows whose target is −1 are not asked. */
export function crossEntropy(logits: Float32Array, targets: Int32Array, classes: number): Verdict {
  const gradient = new Float32Array(logits.length);
  const asked = targets.reduce((count, target) => count + (target >= 0 ? 1 : 0), 0);
  let loss = 0;
  let correct = 0;
  targets.forEach((target, r) => {
    if (target < 0) return;
    const row = logits.subarray(r * classes, (r + 1) * classes);
    const maximum = row.reduce((a, b) => Math.max(a, b));
    const sum = row.reduce((total, x) => total + Math.exp(x - maximum), 0);
    loss += Math.log(sum) + maximum - row[target]!;
    if (row[target] === maximum) ++correct;
    for (let c = 0; c < classes; ++c) {
      const share = Math.exp(row[c]! - maximum) / sum - (c === target ? 1 : 0);
      gradient[r * classes + c] = share / asked;
    }
  });
  return { loss: loss / Math.max(1, asked), asked, correct, gradient };
}

export function add(a: Float32Array, b: Float32Array): Float32Array {
  const sum = new Float32Array(a.length);
  for (let i = 0; i < a.length; ++i) sum[i] = a[i]! + b[i]!;
  return sum;
}
