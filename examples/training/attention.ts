/** The attention of a layer: the package's kinds behind one signature, with what each adds. */
import {
  aggregateVjpSync,
  attentionVjpSync,
  castAttentionVjpSync,
  centroidAttentionVjpSync,
  clusteredAttentionVjpSync,
  improvedClusteredAttentionVjpSync,
} from 'cluster-attention';
import { add, linear, type Layer } from './layers';
import type { Parameter, Parameters } from './parameters';

export const KINDS = ['exact', 'clustered', 'improved-clustered', 'cast', 'centroid'] as const;
export type Kind = (typeof KINDS)[number];

export interface AttentionSizes {
  readonly batch: number;
  readonly length: number;
  readonly heads: number;
  readonly headDim: number;
}

export interface Projections {
  readonly query: Float32Array; // (B,L,H,D), as the others
  readonly key: Float32Array;
  readonly value: Float32Array;
}

/** Gradients by the projections, and by the hidden rows where a kind reads them itself. */
export interface AttentionBackward extends Projections {
  readonly hidden?: Float32Array;
}

/** (projections, hidden rows, real lengths) to (B,L,H,D). */
export type Attend = (
  sizes: AttentionSizes,
  projections: Projections,
  hidden: Float32Array,
  lengths: Int32Array | undefined,
) => Layer<AttentionBackward>;

/** What all kinds are called with. */
function common(sizes: AttentionSizes, projections: Projections, lengths: Int32Array | undefined) {
  const { batch, length, heads, headDim } = sizes;
  return {
    ...projections,
    shape: { batch, heads, queryLength: length, headDim },
    layout: 'BLHD' as const,
    keyLengths: lengths,
  };
}

const exact: Attend = (sizes, projections, _hidden, lengths) =>
  attentionVjpSync({ ...common(sizes, projections, lengths), queryLengths: lengths });

/** Twice as many groups as the square root of the length: of a few queries each. */
function clustersFor(length: number): number {
  return Math.max(2, Math.round(2 * Math.sqrt(length)));
}

const clustered: Attend = (sizes, projections, _hidden, lengths) =>
  clusteredAttentionVjpSync({
    ...common(sizes, projections, lengths),
    queryLengths: lengths,
    clusters: clustersFor(sizes.length),
  });

const improvedClustered: Attend = (sizes, projections, _hidden, lengths) =>
  improvedClusteredAttentionVjpSync({
    ...common(sizes, projections, lengths),
    queryLengths: lengths,
    clusters: clustersFor(sizes.length),
    topK: 32,
  });

/** CAST: surrogate tokens per head and a gate per token, both learned. */
function cast(parameters: Parameters, name: string, sizes: AttentionSizes): Attend {
  const { length, heads, headDim } = sizes;
  const dim = heads * headDim;
  const clusters = Math.max(2, Math.round(Math.sqrt(length) / 2));
  const surrogates = parameters.normal(`${name}.surrogates`, [heads, clusters, headDim], 1);
  const gateWeight = parameters.weight(`${name}.gate.weight`, 1, dim);
  const gateBias = parameters.vector(`${name}.gate.bias`, 1, 0);
  return (of, projections, hidden, lengths) => {
    const gate = linear(hidden, gateWeight, gateBias);
    const vjp = castAttentionVjpSync({
      ...common(of, projections, lengths),
      surrogates: surrogates.value,
      clusters,
      gate: gate.output,
      clusterSize: Math.ceil((2 * length) / clusters),
    });
    const backward = (gradient: Float32Array): AttentionBackward => {
      const gradients = vjp.backward(gradient);
      accumulate(surrogates, gradients.surrogates);
      return { ...gradients, hidden: gate.backward(gradients.gate) };
    };
    return { output: vjp.output, backward };
  };
}

function accumulate({ gradient }: Parameter, more: Float32Array): void {
  for (let i = 0; i < gradient.length; ++i) gradient[i]! += more[i]!;
}

/**
 * Centroid attention gives one row per centroid. To give one per token again, the tokens attend to
 * the centroids: their queries' strided means u summarise the sequence, softmax over the centroids
 * collects the values, and every token reads what it is nearest to.
 */
const centroid: Attend = (sizes, projections, _hidden, lengths) => {
  const { batch, length, heads, headDim } = sizes;
  const centroids = Math.max(2, Math.floor(length / 4));
  const labels = Int32Array.from({ length: batch * length }, (_, i) => {
    const [b, l] = [Math.floor(i / length), i % length];
    const real = lengths === undefined ? length : lengths[b]!;
    return l < real ? Math.floor((l * centroids) / length) : -1;
  });
  const dim = heads * headDim;
  const means = aggregateVjpSync({
    inputs: projections.query,
    labels,
    shape: { batch, length, dim },
    clusters: centroids,
  });
  const summary = centroidAttentionVjpSync({
    ...common(sizes, { ...projections, query: means.output }, lengths),
    shape: { batch, heads, queryLength: centroids, keyLength: length, headDim },
    aggregate: 'mean',
  });
  const reading = attentionVjpSync({
    query: projections.query,
    key: means.output,
    value: summary.output,
    shape: { batch, heads, queryLength: length, keyLength: centroids, headDim },
    layout: 'BLHD',
    queryLengths: lengths,
  });
  const backward = (gradient: Float32Array): AttentionBackward => {
    const read = reading.backward(gradient);
    const collected = summary.backward(read.value);
    const averaged = means.backward(add(read.key, collected.query));
    return {
      query: add(read.query, averaged.inputs),
      key: collected.key,
      value: collected.value,
    };
  };
  return { output: reading.output, backward };
};

/** The attention of one layer; adds the parameters that its kind needs. */
export function makeAttention(
  kind: Kind,
  parameters: Parameters,
  name: string,
  sizes: AttentionSizes,
): Attend {
  switch (kind) {
    case 'exact':
      return exact;
    case 'clustered':
      return clustered;
    case 'improved-clustered':
      return improvedClustered;
    case 'cast':
      return cast(parameters, name, sizes);
    case 'centroid':
      return centroid;
  }
}
