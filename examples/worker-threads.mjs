// Many documents over a pool of worker threads:
//   node examples/worker-threads.mjs [--documents 40] [--workers 2]
import { availableParallelism } from 'node:os';
import { parseArgs } from 'node:util';
import { centroidPoolSync } from 'cluster-attention';
import { WorkerPool } from './pooling-service/worker-pool.mjs';

const DIM = 64;
const CENTROIDS = 16;

const { values } = parseArgs({
  options: {
    documents: { type: 'string', default: '40' },
    workers: { type: 'string', default: String(availableParallelism()) },
  },
});

/** Token vectors of a made-up document. */
function document(index) {
  const length = 100 + ((index * 37) % 400);
  return Float32Array.from({ length: length * DIM }, (_, i) => Math.sin(index + i * 0.37));
}

const script = new URL('pooling-service/worker.mjs', import.meta.url);
const pool = new WorkerPool(script, Number(values.workers), Number(values.documents));
const pooled = await Promise.all(
  Array.from({ length: Number(values.documents) }, (_, index) => {
    const tokens = document(index).buffer; // moves to the worker: nothing is copied
    return pool.run({ id: index, tokens, dim: DIM, centroids: CENTROIDS }, [tokens]);
  }),
);
await pool.close();

// Every worker computes the same bits as this thread does.
const different = pooled.filter(({ id, vectors }) => {
  const inputs = document(id);
  const shape = { batch: 1, length: inputs.length / DIM, dim: DIM };
  const expected = centroidPoolSync({ inputs, shape, centroids: CENTROIDS });
  return Buffer.compare(Buffer.from(vectors), Buffer.from(expected.buffer)) !== 0;
});
console.log(`${pooled.length} documents pooled by ${values.workers} workers`);
if (different.length > 0) throw new Error(`${different.length} documents differ`);
