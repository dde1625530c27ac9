// Puts load on the service and measures how fast it still answers GET /health:
//   node examples/pooling-service/load.mjs [--seconds 10] [--clients 4] [--length 4096]
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { setTimeout } from 'node:timers/promises';
import { fileURLToPath } from 'node:url';
import { parseArgs } from 'node:util';

const DIM = 128;
const CENTROIDS = 64;

const { values } = parseArgs({
  options: {
    seconds: { type: 'string', default: '10' },
    clients: { type: 'string', default: '4' },
    length: { type: 'string', default: '4096' },
  },
});

const server = spawn(
  process.execPath,
  [fileURLToPath(new URL('server.mjs', import.meta.url)), '--port', '0'],
  { stdio: ['ignore', 'pipe', 'inherit'] },
);
let pooled = 0;
let running = true;

async function client(origin, tokens) {
  while (running) {
    const answer = await fetch(`${origin}/pool?dim=${DIM}&centroids=${CENTROIDS}`, {
      method: 'POST',
      body: tokens,
    });
    if (!answer.ok) throw new Error((await answer.text()).trim());
    await answer.arrayBuffer();
    ++pooled;
  }
}

/** How long GET /health takes, in milliseconds, again and again until the load ends. */
async function observe(origin) {
  const latencies = [];
  const end = performance.now() + Number(values.seconds) * 1000;
  while (running && performance.now() < end) {
    const start = performance.now();
    await (await fetch(`${origin}/health`)).json();
    latencies.push(performance.now() - start);
    await setTimeout(5);
  }
  running = false;
  return latencies;
}

function report(latencies) {
  latencies.sort((a, b) => a - b);
  const at = (share) =>
    latencies[Math.min(latencies.length - 1, Math.floor(share * latencies.length))];
  const figures = [0.5, 0.9, 0.99, 1].map((share) => at(share).toFixed(1));
  console.log(`${pooled} documents of ${values.length} tokens pooled in ${values.seconds} s`);
  console.log(
    `GET /health under that load, ${latencies.length} times: p50 ${figures[0]} ms, ` +
      `p90 ${figures[1]} ms, p99 ${figures[2]} ms, slowest ${figures[3]} ms`,
  );
}

try {
  const [line] = await once(server.stdout, 'data');
  const { origin } = new URL(String(line).trim());
  const tokens = Float32Array.from({ length: Number(values.length) * DIM }, () => Math.random());
  const clients = Array.from({ length: Number(values.clients) }, () => client(origin, tokens));
  const [latencies] = await Promise.all([observe(origin), ...clients]);
  report(latencies);
} catch (error) {
  console.error(`load: ${error.message}`);
  process.exitCode = 1;
} finally {
  running = false;
  server.kill();
}
