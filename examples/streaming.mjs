// A stream of sequences through attention, with backpressure and a deadline:
//   node examples/streaming.mjs [--sequences 30] [--concurrency 2] [--timeout 60000]
// The source is asked for more only while fewer than `concurrency` sequences are being computed;
// when the signal fires, calls in progress stop, the source is closed, and memory is given back.
import { parseArgs } from 'node:util';
import { improvedClusteredAttention } from 'cluster-attention';

const HEADS = 4;
const DIM = 32;

/** The results of `compute` on what `source` gives, in order, `concurrency` of them at a time. */
export async function* mapInOrder(source, compute, concurrency) {
  const pending = [];
  try {
    for await (const item of source) {
      pending.push(compute(item));
      pending.at(-1).catch(() => {}); // it is awaited below, perhaps after it has failed
      if (pending.length >= concurrency) yield await pending.shift();
    }
    while (pending.length > 0) yield await pending.shift();
  } finally {
    await Promise.allSettled(pending);
  }
}

/** Self-attention over one sequence. */
export function attend({ tokens, length }, signal) {
  const shape = { batch: 1, heads: HEADS, queryLength: length, headDim: DIM };
  return improvedClusteredAttention({
    query: tokens,
    key: tokens,
    value: tokens,
    shape,
    clusters: Math.max(1, Math.floor(length / 40)),
    signal,
  });
}

/** Made-up sequences, as a file or a socket would give them. */
async function* sequences(count) {
  for (let index = 0; index < count; ++index) {
    const length = 200 + ((index * 311) % 1800);
    const size = HEADS * length * DIM;
    yield { length, tokens: Float32Array.from({ length: size }, (_, i) => Math.sin(index + i)) };
  }
}

async function main() {
  const { values } = parseArgs({
    options: {
      sequences: { type: 'string', default: '30' },
      concurrency: { type: 'string', default: '2' },
      timeout: { type: 'string', default: '60000' },
    },
  });
  const signal = AbortSignal.timeout(Number(values.timeout));
  let count = 0;
  let sum = 0;
  const compute = (sequence) => attend(sequence, signal);
  const source = sequences(Number(values.sequences));
  for await (const output of mapInOrder(source, compute, Number(values.concurrency))) {
    ++count;
    sum += output.reduce((total, x) => total + Math.abs(x), 0) / output.length;
  }
  console.log(`${count} sequences, mean magnitude ${(sum / count).toFixed(4)}`);
}

if (process.argv[1]?.endsWith('streaming.mjs')) {
  try {
    await main();
  } catch (error) {
    if (error.name !== 'TimeoutError') throw error;
    console.error('stopped by the deadline');
    process.exitCode = 1;
  }
}
