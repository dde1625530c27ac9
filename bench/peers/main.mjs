// npm run bench:peers: the methods of this package beside what others offer, in the same run, on the
// same arrays, under the same checks. It takes the options of `cluster-attention bench`. A peer that
// is not installed is listed as missing, with what would install it.

import { spawnSync } from 'node:child_process';
import { totalmem } from 'node:os';
import { fileURLToPath } from 'node:url';
import argumentsModule from '../../dist/bench/arguments.js';
import labels from '../../dist/bench/labels.js';
import planModule from '../../dist/bench/plan.js';
import runModule from '../../dist/bench/run.js';
import selection from '../../dist/bench/selection.js';
import terminal from '../../dist/bench/terminal.js';

const { Arguments } = argumentsModule;
const { conclude, exitCodeOf, measure, quoteCommand } = runModule;
const { FLAGS, METHOD_OPTIONS, readSelection, readSettings, RUN_OPTIONS, SOURCE_OPTIONS } =
  selection;

const file = (name) => fileURLToPath(new URL(name, import.meta.url));
const node = (name) => [process.execPath, '--expose-gc', file(name)];

const runs = (code) => (program) => spawnSync(program, ['-c', code]).status === 0;

/** The first Python that has these modules, else the first there is. */
function findPython(modules) {
  const programs = [process.env.PYTHON, 'python3', '/usr/bin/python3'].filter(Boolean);
  return programs.find(runs(`import ${modules}`)) ?? programs.find(runs('pass'));
}

function python(modules) {
  const program = findPython(modules);
  return program === undefined ? undefined : [program, '-u', file('python_peer.py')];
}

const NO_PYTHON = { status: 'missing', reason: 'there is no python3' };

/** Each peer: what it is called, who runs it, and whether it keeps the whole matrix of weights. */
const ATTENTIONS = [
  { implementation: 'onnxruntime', method: 'MultiHeadAttention', command: node('onnxruntime.cjs') },
  {
    implementation: 'onnxruntime',
    method: 'MatMul, Softmax, MatMul',
    command: node('onnxruntime.cjs'),
    matrix: true,
  },
  {
    implementation: 'PyTorch',
    method: 'scaled_dot_product_attention',
    command: python('numpy, torch'),
    gradient: true,
  },
  {
    implementation: 'PyTorch',
    method: 'matmul, softmax, matmul',
    command: python('numpy, torch'),
    gradient: true,
    matrix: true,
  },
];

/** K-means of the queries of each sequence, from the same start, to the same number of updates. */
const GROUPINGS = [
  { implementation: 'cluster-attention', command: node('k-means.cjs') },
  { implementation: 'scikit-learn', command: python('numpy, sklearn') },
];
const K_MEANS_ITERATIONS = 10;

const skipped = (reason) => ({ status: 'skipped', reason });

function absenceOf(peer, one, exactUpTo) {
  const { batch, heads, queryLength, keyLength } = one.problem;
  if (peer.command === undefined) return NO_PYTHON;
  if (one.gradient && !peer.gradient) return skipped('it is measured forwards only');
  if (one.precision !== 'float32' || one.device !== 'cpu') {
    return skipped('it is measured in float32 on the CPU');
  }
  if (keyLength > exactUpTo) return skipped(`longer than --exact-up-to ${exactUpTo}`);
  const bytes = 4 * batch * heads * queryLength * keyLength;
  if (peer.matrix && 4 * bytes > totalmem()) {
    return skipped(`its matrix of weights takes ${labels.formatMemory(bytes)}`);
  }
  return undefined;
}

function entryOf(base, peer, parameters, exactUpTo) {
  const { implementation, method = 'kmeans', command } = peer;
  const one = { ...base, implementation, method, parameters };
  const absent = absenceOf(peer, one, exactUpTo);
  return absent ? { case: one, absent } : { case: one, command };
}

/** A group with the peers of attention, and one for K-means. */
function withPeers(group, chosen) {
  const base = group.entries[0].case;
  const attentions = ATTENTIONS.map((peer) => entryOf(base, peer, {}, chosen.exactUpTo));
  const attention = { ...group, entries: [...group.entries, ...attentions] };
  if (base.gradient) return [attention];
  const possible = chosen.parameters.clusters.filter((n) => n <= base.problem.queryLength);
  if (possible.length === 0) return [attention];
  const groupings = possible.flatMap((clusters) =>
    GROUPINGS.map((peer) =>
      entryOf(base, peer, { clusters, iterations: K_MEANS_ITERATIONS }, Infinity),
    ),
  );
  return [attention, { ...group, entries: groupings }];
}

async function main(parameters) {
  const names = [...SOURCE_OPTIONS, ...METHOD_OPTIONS, ...RUN_OPTIONS];
  const options = new Arguments(parameters, names, FLAGS);
  if (options.flag('help')) {
    terminal.print('The options are those of: npx cluster-attention bench --help');
    return 0;
  }
  const chosen = readSelection(options);
  const recording = await measure({
    groups: planModule.planGroups(chosen).flatMap((group) => withPeers(group, chosen)),
    settings: readSettings(options),
    destinations: { json: options.writablePath('json'), report: options.writablePath('report') },
    command: quoteCommand(['npm', 'run', 'bench:peers', '--', ...parameters]),
  });
  conclude(recording);
  return exitCodeOf(recording);
}

await terminal.runCommand('bench:peers', () => main(process.argv.slice(2)));
