/** What a call should give, and what it gave, on sampled rows. */
import { type Sample, sampleRows } from './accuracy';
import { type Inputs, roundInputs } from './inputs';
import type { CallOptions, Method, Rows } from './methods';
import type { Problem } from './record';
import { weightedValues } from './weights';

/** A method in double precision, from the discrete choices that a call made. */
export interface Definition extends Rows {
  readonly method: Method;
  /** The inputs as the operation rounds them to its precision. */
  readonly operands: Inputs;
  /** Of the call: centroid attention has other queries than its inputs. */
  readonly shape: Problem;
}

/** @param details what the call returned with `details: true` */
export function define(
  { method, inputs }: { readonly method: Method; readonly inputs: Inputs },
  options: CallOptions,
  details: CallOptions,
): Definition {
  const operands = options.precision === 'bfloat16' ? roundInputs(inputs) : inputs;
  const rows = method.define(operands, options, details);
  return { ...rows, method, operands, shape: options.shape as Problem };
}

/** Rows of an output, drawn from `seed`, beside those of the definition. */
export function sampleOutput(
  { method, operands, shape, weights }: Definition,
  output: Float32Array,
  count: number,
  seed: number,
): Sample[] {
  const sequences = Math.min(shape.batch * shape.heads, method.sequences);
  return sampleRows(sequences, shape.queryLength, count, seed).map((row) => {
    const own = weights(row);
    const place = (row.sequence * shape.queryLength + row.query) * shape.valueDim;
    return {
      row,
      output: output.subarray(place, place + shape.valueDim),
      own: weightedValues(operands, row.sequence, own),
      ...(method.approximates && { weights: own }),
    };
  });
}
