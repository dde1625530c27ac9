/** Rows of CAST attention with softmax activation, in double precision. See weights.ts. */
import type { Inputs } from './inputs';
import { listOf, products, queryRow, type Row, scaleOf, softmax, weightsAmong } from './weights';

/** What CAST has beside query, key and value, and the tokens that it chose. */
export interface CastState {
  /** (H,C,D) */
  readonly surrogates: Float32Array;
  /** (B,N) */
  readonly gate: Float32Array;
  readonly clusters: number;
  readonly clusterSize: number;
  /** (B,C,κ) */
  readonly indices: Int32Array;
}

/** log(1+eˣ)+1 */
const softplus = (x: number): number => Math.max(x, 0) + Math.log1p(Math.exp(-Math.abs(x))) + 1;

/**
 * The weight of every token in the row of one: of the clusters that hold it the attention within,
 * of the others their summary, each times the affinity to the cluster.
 */
export function castWeights(inputs: Inputs, state: CastState, row: Row): Float64Array {
  const { heads, keyLength, headDim } = inputs.problem;
  const { surrogates, gate, clusters, clusterSize, indices } = state;
  const [batch, head] = [Math.floor(row.sequence / heads), row.sequence % heads];
  const scale = scaleOf(inputs);
  const gateOf = (token: number): number => gate[batch * keyLength + token]!;
  const affinities = softmax(
    products(queryRow(inputs, row), surrogates, head * clusters, clusters),
    scale * softplus(gateOf(row.query)),
  );
  const weights = new Float64Array(keyLength);
  for (let c = 0; c < clusters; ++c) {
    const members = listOf(indices, batch * clusters + c, clusterSize);
    const surrogate = (head * clusters + c) * headDim;
    const direction = surrogates.subarray(surrogate, surrogate + headDim);
    const shares = members.includes(row.query)
      ? weightsAmong(inputs, row, members)
      : softmax(
          Float64Array.from(members, (token) => {
            const place = row.sequence * keyLength + token;
            return softplus(-gateOf(token)) * products(direction, inputs.key, place, 1)[0]!;
          }),
          scale,
        );
    members.forEach((token, slot) => {
      weights[token]! += affinities[c]! * shares[slot]!;
    });
  }
  return weights;
}
