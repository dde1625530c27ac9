// The examples that a service would start from, run as their users run them.
import { spawnSync } from 'node:child_process';
import { fileURLToPath } from 'node:url';
import { centroidPoolSync, getNumThreads, setNumThreads } from 'cluster-attention';
import { afterAll, beforeAll, describe, expect, test, vi } from 'vitest';
import { startServer, statusOf } from '../../examples/pooling-service/server.mjs';
import { QueueFullError, WorkerPool } from '../../examples/pooling-service/worker-pool.mjs';
import { attend, mapInOrder } from '../../examples/streaming.mjs';

const root = fileURLToPath(new URL('../..', import.meta.url));
const workerScript = new URL('../../examples/pooling-service/worker.mjs', import.meta.url);

const tokensOf = (length, dim) =>
  Float32Array.from({ length: length * dim }, (_, i) => Math.sin(i));

function example(...args) {
  const { status, stdout, stderr } = spawnSync(process.execPath, args, {
    cwd: root,
    encoding: 'utf8',
  });
  return { status, output: stdout + stderr };
}

describe('pooling service', () => {
  const threads = getNumThreads();
  let server;
  let origin;

  beforeAll(async () => {
    server = await startServer();
    origin = `http://127.0.0.1:${server.port}`;
  });
  afterAll(async () => {
    await server.close();
    setNumThreads(threads);
  });

  const post = (path, body, signal) => fetch(`${origin}${path}`, { method: 'POST', body, signal });

  test('pools the token vectors of a document', async () => {
    const inputs = tokensOf(300, 8);
    const answer = await post('/pool?dim=8&centroids=5', inputs);
    expect(answer.status).toBe(200);
    const shape = { batch: 1, length: 300, dim: 8 };
    const expected = centroidPoolSync({ inputs, shape, centroids: 5 });
    expect(new Float32Array(await answer.arrayBuffer())).toEqual(expected);
  });

  test.each([
    ['/pool?centroids=5', 'dim must be a positive integer'],
    ['/pool?dim=8&centroids=-1', 'centroids must be a positive integer'],
    ['/pool?dim=7&centroids=5', 'rows of 7 float32'],
    ['/pool?dim=8&centroids=11', 'centroids must be at most 10, the rows of the body'],
  ])('refuses %s', async (path, message) => {
    const answer = await post(path, tokensOf(10, 8));
    expect(answer.status).toBe(400);
    expect(await answer.text()).toContain(message);
  });

  test('refuses what is no number, with the error of the package', async () => {
    const tokens = tokensOf(10, 8);
    tokens[13] = NaN;
    const answer = await post('/pool?dim=8&centroids=2', tokens);
    expect(answer.status).toBe(400);
    expect(await answer.text()).toContain('inputs');
  });

  test.each([
    ['ERR_NON_FINITE', 400],
    ['ERR_OUT_OF_MEMORY', 503],
    ['ERR_WORKER_OUT_OF_MEMORY', 500],
    ['ERR_BINDING_LOAD', 500],
    [undefined, 500],
  ])('an error with the code %s is answered with %d', (code, status) => {
    expect(statusOf(Object.assign(new Error('some'), { code }))).toBe(status);
  });

  test('knows no other path', async () => {
    expect((await fetch(`${origin}/`)).status).toBe(404);
  });

  test('answers GET /health while it computes', async () => {
    let computed = false;
    const long = post('/pool?dim=128&centroids=512', tokensOf(20000, 128)).then((answer) => {
      computed = true;
      return answer.arrayBuffer();
    });
    let state;
    do {
      state = await (await fetch(`${origin}/health`)).json();
    } while (state.running === 0);
    expect(state).toMatchObject({ status: 'ok', running: 1 });
    expect(computed).toBe(false);
    expect((await long).byteLength).toBe(512 * 128 * 4);
  });

  test('survives a client that goes away', async () => {
    const gone = new AbortController();
    const request = post('/pool?dim=128&centroids=256', tokensOf(20000, 128), gone.signal);
    gone.abort();
    await expect(request).rejects.toThrow();
    expect((await post('/pool?dim=8&centroids=2', tokensOf(10, 8))).status).toBe(200);
  });
});

describe('load', () => {
  const load = (...args) => example('examples/pooling-service/load.mjs', '--seconds', '1', ...args);

  test('measures the service', () => {
    expect(load('--clients', '1', '--length', '64')).toEqual({
      status: 0,
      output: expect.stringMatching(/documents of 64 tokens pooled.*\nGET \/health.*p99/),
    });
  });

  test('says what failed, and ends the server', () => {
    // It would not return while a server that is left holds its output.
    expect(load('--clients', '1', '--length', '8')).toEqual({
      status: 1,
      output: 'load: centroids must be at most 8, the rows of the body\n',
    });
  });
});

describe('worker pool', () => {
  const task = (length) => ({ tokens: tokensOf(length, 8).buffer, dim: 8, centroids: 4 });

  test('refuses more waiting tasks than it may hold, and withdraws those given up', async () => {
    const pool = new WorkerPool(workerScript, 1, 1);
    const running = pool.run(task(5000));
    const given = new AbortController();
    const waiting = pool.run(task(10), [], given.signal);
    await expect(pool.run(task(10))).rejects.toBeInstanceOf(QueueFullError);
    given.abort(new Error('given up'));
    await expect(waiting).rejects.toThrow('given up');
    expect((await running).vectors.byteLength).toBe(4 * 8 * 4);
    await pool.close();
    await expect(pool.run(task(10))).rejects.toThrow('closed');
  });

  test('replaces a worker that dies', async () => {
    const dying = new URL(
      `data:text/javascript,${encodeURIComponent(`
        import { parentPort } from 'node:worker_threads';
        parentPort.on('message', ({ die }) => {
          if (die) process.exit(1);
          parentPort.postMessage({ alive: true });
        });`)}`,
    );
    const pool = new WorkerPool(dying, 1);
    await expect(pool.run({ die: true })).rejects.toThrow('ended before its task');
    expect(await pool.run({ die: false })).toEqual({ alive: true });
    await pool.close();
  });

  test('does not start workers again and again that cannot start', async () => {
    const ends = [];
    const onWorker = (worker) =>
      ends.push(new Promise((resolve) => void worker.once('exit', resolve)));
    process.on('worker', onWorker);
    const pool = new WorkerPool(new URL('data:text/javascript,throw new Error("no start")'), 1);
    await expect(pool.run({})).rejects.toThrow('no start'); // fails the task that it was given,
    await vi.waitUntil(() => ends.length === 2);
    await ends[1]; // and its successor ends without one
    await expect(pool.run({})).rejects.toThrow('no start');
    expect(ends).toHaveLength(2);
    process.off('worker', onWorker);
    await pool.close();
  });

  test('computes the same bits in every worker', () => {
    const args = ['examples/worker-threads.mjs', '--documents', '12', '--workers', '3'];
    expect(example(...args)).toEqual({ status: 0, output: '12 documents pooled by 3 workers\n' });
  });
});

describe('streaming', () => {
  test('keeps order and never runs more than it may', async () => {
    let running = 0;
    let most = 0;
    let taken = 0;
    async function* source() {
      for (; taken < 10; ++taken) yield taken;
    }
    const compute = async (item) => {
      most = Math.max(most, ++running);
      await new Promise((resolve) => {
        setTimeout(resolve, item % 3);
      });
      --running;
      return item;
    };
    const results = [];
    for await (const item of mapInOrder(source(), compute, 3)) {
      results.push(item);
      expect(taken).toBeLessThanOrEqual(item + 3);
    }
    expect(results).toEqual([0, 1, 2, 3, 4, 5, 6, 7, 8, 9]);
    expect(most).toBe(3);
  });

  test('stops calls in progress when its signal fires', async () => {
    const stop = new AbortController();
    const length = 4000;
    const item = { length, tokens: tokensOf(4 * length, 32) };
    let closed = false;
    async function* endless() {
      try {
        for (;;) yield item;
      } finally {
        closed = true;
      }
    }
    const results = mapInOrder(endless(), (sequence) => attend(sequence, stop.signal), 2);
    expect((await results.next()).value.length).toBe(item.tokens.length);
    stop.abort(new Error('enough'));
    await expect(results.next().then(() => results.next())).rejects.toThrow('enough');
    expect(closed).toBe(true);
  });

  test('runs from the command line, to the end or to its deadline', () => {
    expect(example('examples/streaming.mjs', '--sequences', '5')).toMatchObject({
      status: 0,
      output: expect.stringMatching(/^5 sequences, mean magnitude 0\.\d+\n$/),
    });
    const late = example('examples/streaming.mjs', '--sequences', '100000', '--timeout', '200');
    expect(late).toEqual({ status: 1, output: 'stopped by the deadline\n' });
  });
});
