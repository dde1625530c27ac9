// An HTTP service that pools the token vectors of a document to a few vectors for retrieval:
//   node examples/pooling-service/server.mjs [--port 8080] [--workers 1]
//   POST /pool?dim=128&centroids=32   body: float32 token vectors (length,dim), little endian
//                                     answer: float32 vectors (centroids,dim), centroids ≤ length
//   GET /health                       answers at once, whatever is being computed
import { createServer } from 'node:http';
import { availableParallelism } from 'node:os';
import { pathToFileURL } from 'node:url';
import { parseArgs } from 'node:util';
import { setNumThreads } from 'cluster-attention';
import { QueueFullError, WorkerPool } from './worker-pool.mjs';

const LARGEST_BODY = 64 * 2 ** 20;
/** Codes of errors that a request causes; all others are the service's own. */
const REQUEST_CODES = new Set(['ERR_INVALID_URL', 'ERR_NON_FINITE', 'ERR_OUT_OF_RANGE']);

class RequestError extends Error {
  constructor(status, message) {
    super(message);
    this.status = status;
  }
}

function positiveInteger(parameters, name) {
  const value = Number(parameters.get(name));
  if (Number.isSafeInteger(value) && value > 0) return value;
  throw new RequestError(400, `${name} must be a positive integer`);
}

/** The body as one ArrayBuffer of its own, which can move to a worker. */
async function readBody(request) {
  const chunks = [];
  let length = 0;
  for await (const chunk of request) {
    length += chunk.length;
    if (length > LARGEST_BODY) throw new RequestError(413, `at most ${LARGEST_BODY} bytes`);
    chunks.push(chunk);
  }
  const bytes = new Uint8Array(length);
  let offset = 0;
  for (const chunk of chunks) {
    bytes.set(chunk, offset);
    offset += chunk.length;
  }
  return bytes.buffer;
}

async function pool(workers, request, parameters, signal) {
  const dim = positiveInteger(parameters, 'dim');
  const centroids = positiveInteger(parameters, 'centroids');
  const tokens = await readBody(request);
  if (tokens.byteLength === 0 || tokens.byteLength % (4 * dim) !== 0) {
    throw new RequestError(400, `the body must hold rows of ${dim} float32 numbers`);
  }
  const rows = tokens.byteLength / (4 * dim);
  // More would only repeat rows, in an answer of any size.
  if (centroids > rows) {
    throw new RequestError(400, `centroids must be at most ${rows}, the rows of the body`);
  }
  const { vectors } = await workers.run({ tokens, dim, centroids }, [tokens], signal);
  return Buffer.from(vectors);
}

/** What went wrong, in the terms of HTTP. */
export function statusOf(error) {
  if (error instanceof RequestError) return error.status;
  if (error instanceof QueueFullError) return 503;
  if (error.code === 'ERR_OUT_OF_MEMORY') return 503;
  return REQUEST_CODES.has(error.code) ? 400 : 500;
}

async function respond(workers, request, response) {
  const url = new URL(request.url, 'http://localhost');
  if (request.method === 'GET' && url.pathname === '/health') {
    response.setHeader('content-type', 'application/json');
    response.end(JSON.stringify({ status: 'ok', ...workers.load }));
    return;
  }
  if (request.method !== 'POST' || url.pathname !== '/pool') {
    throw new RequestError(404, 'POST /pool or GET /health');
  }
  const gone = new AbortController();
  response.on('close', () => gone.abort(new Error('the client went away')));
  const vectors = await pool(workers, request, url.searchParams, gone.signal);
  response.setHeader('content-type', 'application/octet-stream');
  response.end(vectors);
}

/** A server that listens on `port` (0: any); `close()` ends it and its workers. */
export async function startServer({ port = 0, workers = 1 } = {}) {
  // The kernels leave one core to the requests, where there are several.
  setNumThreads(Math.max(1, availableParallelism() - 1));
  const pooling = new WorkerPool(new URL('worker.mjs', import.meta.url), workers);
  const server = createServer((request, response) => {
    respond(pooling, request, response).catch((error) => {
      if (response.destroyed) return;
      response.statusCode = statusOf(error);
      response.end(`${error.message}\n`);
    });
  });
  await new Promise((resolve, reject) => {
    server.once('error', reject);
    server.listen(port, '127.0.0.1', resolve);
  });
  const close = async () => {
    server.closeAllConnections();
    await new Promise((resolve) => server.close(resolve));
    await pooling.close();
  };
  return { port: server.address().port, close };
}

if (import.meta.url === pathToFileURL(process.argv[1]).href) {
  const { values } = parseArgs({
    options: {
      port: { type: 'string', default: '8080' },
      workers: { type: 'string', default: '1' },
    },
  });
  const { port } = await startServer({
    port: Number(values.port),
    workers: Number(values.workers),
  });
  console.log(`http://127.0.0.1:${port}/health`);
}
