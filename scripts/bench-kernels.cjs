'use strict';
// Times every kernel at several lengths and thread counts, each case in a fresh process that checks
// its result first, and prints one table.
//   node scripts/bench-kernels.cjs [--lengths 1024,4096] [--threads 1,2] [--kernels a,b]
//                                  [--rounds 5] [--json file]

const { execFileSync } = require('node:child_process');
const { writeFileSync } = require('node:fs');
const os = require('node:os');
const { join } = require('node:path');
const { parseArgs } = require('node:util');
const { cmake } = require('./build.cjs');

const root = join(__dirname, '..');
const program = join(root, 'build', 'benchmarks', 'kernel_bench');

const { values } = parseArgs({
  options: {
    lengths: { type: 'string', default: '1024,4096,16384' },
    threads: { type: 'string', default: '1,2' },
    kernels: { type: 'string' },
    rounds: { type: 'string', default: '0' },
    json: { type: 'string' },
  },
});

const list = (text) => text.split(',').filter((part) => part !== '');

function git(...args) {
  try {
    return execFileSync('git', args, { cwd: root, encoding: 'utf8' }).trim();
  } catch {
    return 'unknown';
  }
}

function row(cells) {
  const widths = [38, 8, 8, 11, 9, 9, 7, 9];
  return cells
    .map((cell, i) => (i === 0 ? cell.padEnd(widths[i]) : cell.padStart(widths[i])))
    .join('');
}

cmake('build/benchmarks', { CA_BUILD_ADDON: 'OFF', CA_BUILD_BENCHMARKS: 'ON' });
const kernels = values.kernels
  ? list(values.kernels)
  : list(execFileSync(program, ['--list'], { encoding: 'utf8' }).replaceAll('\n', ','));

console.log(row(['kernel', 'length', 'threads', 'median ms', 'GFLOP/s', 'peak', 'share', 'error']));
const results = [];
for (const kernel of kernels) {
  for (const length of list(values.lengths)) {
    for (const threads of list(values.threads)) {
      const line = execFileSync(program, [kernel, length, threads, values.rounds], {
        encoding: 'utf8',
      });
      const result = JSON.parse(line);
      results.push(result);
      console.log(
        row([
          kernel,
          length,
          threads,
          result.milliseconds.toFixed(3),
          result.gflops.toFixed(0),
          result.peakGflops.toFixed(0),
          `${(100 * result.shareOfPeak).toFixed(0)}%`,
          result.relativeError.toExponential(1),
        ]),
      );
    }
  }
}

if (values.json) {
  const report = {
    command: `npm run bench:kernels -- ${process.argv.slice(2).join(' ')}`,
    commit: git('rev-parse', 'HEAD'),
    date: new Date().toISOString(),
    machine: { cpu: os.cpus()[0]?.model, cores: os.cpus().length, memory: os.totalmem() },
    results,
  };
  writeFileSync(values.json, `${JSON.stringify(report, null, 1)}\n`);
}
