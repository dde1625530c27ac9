/** What every attention kind reads: query, key, value, their sizes, lengths and scale. */
import { Layout } from './binding';
import type { Axes } from './arrays';
import { CALL_OPTIONS, type Call, type Floats } from './call';
import { unsupported } from './errors';

export const ATTENTION_SHAPE = [
  'batch',
  'heads',
  'queryLength',
  'keyLength',
  'headDim',
  'valueDim',
] as const;

export const ATTENTION_OPTIONS = [
  ...CALL_OPTIONS,
  'query',
  'key',
  'value',
  'shape',
  'layout',
  'scale',
  'queryLengths',
  'keyLengths',
  'causal',
  'out',
] as const;

/** The fields of a request that all attention kinds share, but for the output. */
export interface AttentionInputs {
  readonly batch: number;
  readonly heads: number;
  readonly queryLength: number;
  readonly keyLength: number;
  readonly headDim: number;
  readonly valueDim: number;
  readonly layout: number;
  readonly query: Floats;
  readonly key: Floats;
  readonly value: Floats;
  readonly scale: number;
  readonly queryLengths: Int32Array | undefined;
  readonly keyLengths: Int32Array | undefined;
}

export function readAttentionInputs(call: Call): AttentionInputs {
  const batch = call.dimension('batch', 0);
  const heads = call.dimension('heads', 1);
  const queryLength = call.dimension('queryLength', 0);
  const keyLength = call.dimension('keyLength', 0, queryLength);
  const headDim = call.dimension('headDim', 1);
  const valueDim = call.dimension('valueDim', 1, headDim);
  const layout = call.choice('layout', Layout, Layout.BHLD);
  return {
    batch,
    heads,
    queryLength,
    keyLength,
    headDim,
    valueDim,
    layout,
    scale: call.real('scale', 1 / Math.sqrt(headDim)),
    queryLengths: call.lengths('queryLengths', { batch }, queryLength),
    keyLengths: call.lengths('keyLengths', { batch }, keyLength),
    query: call.floats('query', inLayout(layout, { batch, heads, queryLength, headDim })),
    key: call.floats('key', inLayout(layout, { batch, heads, keyLength, headDim })),
    value: call.floats('value', inLayout(layout, { batch, heads, keyLength, valueDim })),
  };
}

/** For the kinds that cannot hide the future from a query; `why` completes the message. */
export function refuseCausal(call: Call, why: string): void {
  if (!call.flag('causal', false)) return;
  throw unsupported('causal', `causal must be false or absent, received true: ${why}`);
}

/** The output of every attention kind, (B,H,L,E) in the layout of the inputs. */
export function allocateOutput(call: Call, inputs: AttentionInputs): Floats {
  const { layout, batch, heads, queryLength, valueDim } = inputs;
  return call.output(inLayout(layout, { batch, heads, queryLength, valueDim }));
}

/** (batch, heads, length, dim) in the order of the layout. */
export function inLayout(layout: number, axes: Axes): Axes {
  if (layout === Layout.BHLD) return axes;
  const { batch, heads, ...rest } = axes;
  const [length, dim] = Object.keys(rest) as [string, string];
  return { batch: batch!, [length]: rest[length]!, heads: heads!, [dim]: rest[dim]! };
}
