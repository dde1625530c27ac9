// Mutated safetensors files: each is read whole, or refused with a SafetensorsError.
//   node test/hard/fuzz-safetensors.mjs [executions=20000] [seed=1]
// Starts from the files that the package writes and from test/fuzz/corpus/safetensors; a file that
// breaks the promise is kept in the temporary folder and named.

import { existsSync, mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { createRequire } from 'node:module';
import { tmpdir } from 'node:os';
import path from 'node:path';
import { generator } from '../lib/support/data.mjs';
import { fail, figure, number } from './support/program.mjs';

const { readSafetensors, SafetensorsError, writeSafetensors } = createRequire(import.meta.url)(
  '../../dist/safetensors.js',
);

const executions = number('executions', 20_000);
const random = generator(number('seed', 1));
const below = (bound) => Math.floor(random() * bound);
const pick = (list) => list[below(list.length)];

// In memory where that can be had: each execution writes a file.
const base = existsSync('/dev/shm') ? '/dev/shm' : tmpdir();
const folder = mkdtempSync(path.join(base, 'cluster-attention-'));
const file = path.join(folder, 'fuzzed.safetensors');

/** A file with this header, whatever it says. */
function withHeader(header, data = 16) {
  const text = Buffer.from(typeof header === 'string' ? header : JSON.stringify(header));
  const length = Buffer.alloc(8);
  length.writeBigUInt64LE(BigInt(text.length));
  return Buffer.concat([length, text, Buffer.alloc(data, 1)]);
}

function seeds() {
  writeSafetensors(
    file,
    new Map([
      ['a', { shape: [2, 3], data: new Float32Array(6) }],
      ['b', { shape: [], data: new Float32Array(1) }],
    ]),
  );
  const corpus = new URL('../fuzz/corpus/safetensors/', import.meta.url);
  return [
    readFileSync(file),
    withHeader({ x: { dtype: 'F16', shape: [8], data_offsets: [0, 16] } }),
    withHeader({
      x: { dtype: 'BF16', shape: [2, 4], data_offsets: [0, 16] },
      __metadata__: { k: 'v' },
    }),
    withHeader({ x: { dtype: 'F32', shape: [0, 5], data_offsets: [0, 0] } }, 0),
    withHeader({}, 0),
    ...readdirSync(corpus).map((name) => readFileSync(new URL(name, corpus))),
  ];
}

const WORDS = [
  '"dtype"',
  '"shape"',
  '"data_offsets"',
  '[]',
  '{}',
  '-1',
  '1e308',
  '9007199254740993',
]
  .concat([
    'null',
    '"F32"',
    '"I64"',
    '"__metadata__"',
    '"__proto__"',
    '[0,16]',
    '4294967296',
    '\u0000',
  ])
  .map((word) => Buffer.from(word));

const MUTATIONS = [
  (bytes) => {
    const copy = Buffer.from(bytes);
    if (copy.length > 0) copy[below(copy.length)] ^= 1 << below(8);
    return copy;
  },
  (bytes) => bytes.subarray(0, below(bytes.length + 1)),
  (bytes) => {
    const at = below(bytes.length + 1);
    return Buffer.concat([bytes.subarray(0, at), pick(WORDS), bytes.subarray(at)]);
  },
  (bytes) => {
    const at = below(bytes.length + 1);
    return Buffer.concat([bytes.subarray(0, at), bytes.subarray(at + 1 + below(8))]);
  },
  (bytes) => {
    const copy = Buffer.from(bytes);
    if (copy.length >= 8) copy.writeBigUInt64LE(BigInt(below(copy.length + 9)), 0);
    return copy;
  },
  (bytes) => {
    // The length in front fits again after an insertion.
    if (bytes.length < 8) return bytes;
    const copy = Buffer.from(bytes);
    copy.writeBigUInt64LE(BigInt(Math.max(0, copy.length - 8 - pick([0, 16, 28]))), 0);
    return copy;
  },
  (bytes) => {
    const copy = Buffer.from(bytes);
    for (let i = 8; i < copy.length; ++i) {
      if (copy[i] >= 48 && copy[i] <= 57 && below(3) === 0) copy[i] = 48 + below(10);
    }
    return copy;
  },
];

/** How a file was taken: `wrong` when it was neither read nor refused as promised. */
function take() {
  const said = [];
  try {
    for (const [name, { shape, data }] of readSafetensors(file)) {
      const elements = shape.reduce((product, axis) => product * axis, 1);
      if (data.length !== elements) {
        return { wrong: `${name}: ${data.length} elements for [${shape}]` };
      }
      said.push(`${shape.length} axes`);
    }
  } catch (error) {
    if (!(error instanceof SafetensorsError && error.code === 'ERR_INVALID_FILE')) {
      return { wrong: error.stack };
    }
    said.push(
      error.message
        .replace(file, '')
        .replaceAll(/".*?"|\d+/g, '')
        .slice(0, 80),
    );
  }
  return { answer: said.join() };
}

const pool = seeds();
const answers = new Set();
let taken = 0;
for (let i = 0; i < executions; ++i) {
  let bytes = pick(pool);
  for (let depth = 1 + below(4); depth > 0; --depth) bytes = pick(MUTATIONS)(bytes);
  writeFileSync(file, bytes);
  const { wrong, answer } = take();
  if (wrong !== undefined) {
    const kept = path.join(tmpdir(), `safetensors-${number('seed', 1)}-${i}`);
    writeFileSync(kept, bytes);
    fail(`execution ${i}: ${wrong}\n  kept: ${kept}`);
    break;
  }
  // What is answered as nothing was before has come further, and is worth more mutations.
  if (!answers.has(answer) && pool.length < 500) {
    answers.add(answer);
    pool.push(bytes);
  }
  taken += 1;
}
rmSync(folder, { recursive: true });
figure('fuzzing: mutated safetensors files', taken);
figure('fuzzing: different answers of the reader', answers.size);
