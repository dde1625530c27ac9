// The types as users' compilers meet them, without @types/node and with every check on.
import { writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { beforeAll, expect, inject, test } from 'vitest';
import { examplesOfReadme, install, project, run } from './project.mjs';

const code = `
import {
  aggregate,
  aggregateSync,
  attention,
  attentionSync,
  attentionVjp,
  attentionVjpSync,
  broadcastSync,
  centroidEncode,
  centroidEncodeSync,
  hashSync,
  improvedClusteredAttentionSync,
  info,
  kMeansSync,
  lshPlanes,
  lshPlanesSync,
  matmul,
  matmulSync,
  sparseDotSync,
  sparseWeightedSumSync,
} from 'cluster-attention';
import type {
  AggregateOptions,
  AttentionDetails,
  AttentionOptions,
  BroadcastOptions,
  CallOptions,
  CentroidEncodeOptions,
  DeviceTensor,
  ExactAttentionOptions,
  HashOptions,
  KMeansOptions,
  MatmulOptions,
  OnDevice,
  PerhapsDetails,
  SparseDotOptions,
  SparseWeightedSumOptions,
  SyncOptions,
  WithDetails,
} from 'cluster-attention';
import { SafetensorsError, type Tensor, writeSafetensors } from 'cluster-attention/safetensors';

const shape = { batch: 1, heads: 2, queryLength: 4, headDim: 4 };
const rows = new Float32Array(32);
const options = { query: rows, key: rows, value: rows, shape } satisfies AttentionOptions;
const output: Float32Array = attentionSync(options);
const details: Promise<{ output: Float32Array; logsumexp: Float32Array }> = attention({
  ...options,
  details: true,
});
const { labels }: { labels: Int32Array } = improvedClusteredAttentionSync({
  ...options,
  clusters: 2,
  details: true,
});
// @ts-expect-error clusters is required
improvedClusteredAttentionSync(options);
// @ts-expect-error no such layout
attentionSync({ ...options, layout: 'LBHD' });
const { signal } = new AbortController();
export const interruptible = [attention({ ...options, signal }), attentionVjp({ ...options, signal })];
// @ts-expect-error nothing can interrupt it
attentionSync({ ...options, signal });
// @ts-expect-error nor this
attentionVjpSync({ ...options, signal, details: true });
const tensor: Tensor = { shape: [32], data: rows };
writeSafetensors('rows', { tensor });
export const { path }: SafetensorsError = new SafetensorsError('rows', 'none', { cause: 1 });

type DeviceFloats = DeviceTensor<'float32' | 'bfloat16'>;
export async function onDevice(query: DeviceTensor<'float32'>): Promise<void> {
  const state = attentionVjpSync({ ...options, query, details: true });
  const { value }: { value: DeviceFloats } = state.backward(rows, { gradients: ['value'] });
  const later = await attentionVjp({ ...options, key: query });
  const gradients: { query: DeviceFloats } = await later.backward(state.output);
  const plain: Float32Array = attentionVjpSync(options).backward(rows).query;
  // @ts-expect-error it computed on the CPU
  attentionVjpSync(options).backward(query);
  console.log(state.logsumexp.dtype, value.device, gradients.query.length, plain.length);
}
console.log(output, details, labels, info().threads);

type Output = { output: Float32Array };
type DeviceOutput = { output: DeviceFloats };
const more = { details: true } as const;

// What knows nothing else returns { output } with details.
declare const a: AggregateOptions;
declare const b: BroadcastOptions;
declare const e: CentroidEncodeOptions;
declare const h: HashOptions;
declare const k: KMeansOptions;
declare const m: MatmulOptions;
declare const d: SparseDotOptions;
declare const w: SparseWeightedSumOptions;
export const outputs: Output[] = [
  aggregateSync({ ...a, ...more }),
  broadcastSync({ ...b, ...more }),
  centroidEncodeSync({ ...e, ...more }),
  lshPlanesSync({ bits: 4, dim: 3, ...more }),
  matmulSync({ ...m, ...more }),
  sparseDotSync({ ...d, ...more }),
  sparseWeightedSumSync({ ...w, ...more }),
];
export const hashes: { output: BigUint64Array } = hashSync({ ...h, ...more });
export const codes: BigUint64Array = hashSync({ ...h, details: false });
export const arrays: Float32Array[] = [
  aggregateSync({ ...a, details: false }),
  centroidEncodeSync({ ...e, details: undefined }),
];
declare const perhaps: { details?: boolean };
export const either: Output | Float32Array = matmulSync({ ...m, ...perhaps });
// @ts-expect-error it may be the array
export const neither: Output = matmulSync({ ...m, ...perhaps });
export const later: Promise<Output>[] = [
  aggregate({ ...a, ...more }),
  centroidEncode({ ...e, ...more }),
  lshPlanes({ bits: 4, dim: 3, ...more }),
  matmul({ ...m, ...more }),
];
export const there = (tensor: DeviceTensor<'float32'>): DeviceOutput =>
  matmulSync({ ...m, a: tensor, out: undefined, ...more });

// The exported types fit the functions, as they are.
export const plain = (o: ExactAttentionOptions): Promise<Float32Array> => attention(o);
export const base = (o: AttentionOptions): Float32Array => attentionSync({ ...o, causal: true });
export const full = (o: ExactAttentionOptions & WithDetails): Promise<AttentionDetails> =>
  attention(o);
export const writes = (o: MatmulOptions, { out, device }: CallOptions): Float32Array =>
  matmulSync({ ...o, out, device });
export const device = (o: OnDevice<ExactAttentionOptions>): Promise<DeviceFloats> => attention(o);
export const deviceSync = (o: OnDevice<SyncOptions<ExactAttentionOptions>>): DeviceFloats =>
  attentionSync(o);
export const deviceMatmul = (
  o: OnDevice<MatmulOptions> & PerhapsDetails,
): Promise<DeviceFloats | DeviceOutput> => matmul(o);
export const clusters: Int32Array = kMeansSync({ ...k, details: true }).labels;
export const deviceVjp = (o: OnDevice<ExactAttentionOptions>) => attentionVjp(o);
`;

/** Compiles what the settings name, without a word of complaint. */
function compile(settings) {
  const tsc = join(inject('root'), 'node_modules', '.bin', 'tsc');
  const { status, output } = run(folder, tsc, ['-p', settings]);
  expect(output).toBe('');
  expect(status).toBe(0);
}

let folder;
beforeAll(() => {
  folder = project();
  expect(install(folder, inject('tarball')).status).toBe(0);
});

test.each([
  ['node16', 'node16', 'cts'],
  ['node16', 'node16', 'mts'],
  ['nodenext', 'nodenext', 'cts'],
  ['nodenext', 'nodenext', 'mts'],
  ['esnext', 'bundler', 'ts'],
])('module %s, moduleResolution %s, .%s', (module, moduleResolution, extension) => {
  const file = `${moduleResolution}.${extension}`;
  writeFileSync(join(folder, file), code);
  const compilerOptions = {
    lib: ['ES2020', 'DOM'], // the oldest that will do
    module,
    moduleResolution,
    noEmit: true,
    skipLibCheck: false,
    strict: true,
    target: 'ES2020',
    types: [],
  };
  const settings = join(folder, `${file}.json`);
  writeFileSync(settings, JSON.stringify({ compilerOptions, files: [file] }));
  compile(settings);
});

test('the examples of the README, checked as JavaScript and pasted into TypeScript', () => {
  const files = examplesOfReadme().flatMap((example, i) => {
    const script = `readme-${i}.${/^import /m.test(example) ? 'mjs' : 'cjs'}`;
    writeFileSync(join(folder, script), example);
    const pasted = example.replace(/^const (.+) = require\((.+)\);$/gm, 'import $1 from $2;');
    writeFileSync(join(folder, `readme-${i}.mts`), pasted);
    return [script, `readme-${i}.mts`];
  });
  const compilerOptions = {
    allowJs: true,
    checkJs: true,
    module: 'nodenext',
    noEmit: true,
    strict: true,
    target: 'ES2022',
    typeRoots: [join(inject('root'), 'node_modules', '@types')],
    types: ['node'],
  };
  const settings = join(folder, 'readme.json');
  writeFileSync(settings, JSON.stringify({ compilerOptions, files }));
  compile(settings);
});

test('docs/api.md is what the docstrings say', () => {
  const root = inject('root');
  const script = join('scripts', 'api-docs.cjs');
  const { status, output } = run(root, process.execPath, [script, '--check']);
  expect(output).not.toContain('npm run docs');
  expect(status).toBe(0);
});
