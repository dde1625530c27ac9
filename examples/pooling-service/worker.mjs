// A worker of the pool: takes the bytes of one document's token vectors, gives those of its
// multi-vectors. It blocks itself while it computes; the thread that serves requests it does not.
import { parentPort } from 'node:worker_threads';
import { centroidPoolSync } from 'cluster-attention';

parentPort.on('message', ({ id, tokens, dim, centroids }) => {
  try {
    const inputs = new Float32Array(tokens);
    const shape = { batch: 1, length: inputs.length / dim, dim };
    const output = centroidPoolSync({ inputs, shape, centroids });
    parentPort.postMessage({ id, vectors: output.buffer }, [output.buffer]);
  } catch (error) {
    const { message, code } = error;
    parentPort.postMessage({ id, failure: { message, code } });
  }
});
